"""Which row of a run an image of the truth is: by its name.

The same name is the same image, and so is the name that an export of ours has kept beside one that it had to change.
Where nothing has either, the last parts of the paths decide: of the rows that end with the same file name, the one that
has most folders in common with it from the end on (`images/a/x.jpg` is `a/x.jpg` or `data/a/x.jpg` rather than
`b/x.jpg`). If that is more than one, or one that another image of the truth has as good a claim to, the image is left
out, for nobody could say whose boxes would be compared; so it is if several rows have its very name, which a list can
give to any of its images.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

MAX_PARTS = 32
"""Of a path, from its end on, that are compared."""
Parts = tuple[str, ...]
"""A path from its end on: (`x.jpg`, `a`, `images`)."""


@dataclass(frozen=True, slots=True)
class NameMatches:
    """What became of the names of a truth."""

    names: Mapping[str, str]
    """From the name in the run to that in the truth."""
    by_end: tuple[str, ...]
    """Names of the truth that were found by their ends only, in its order."""
    ambiguous: tuple[str, ...]
    """Names of the truth that could be several rows, or a row that could be several of them."""
    missing: tuple[str, ...]
    """Names of the truth that are no row."""
    ambiguous_rows: int
    """Rows that share a name which stands in the truth."""


def match_names(
    truth: Iterable[str], rows: Iterable[str], sources: Mapping[str, str] = MappingProxyType({})
) -> NameMatches:
    """Find the rows of the images of a truth. `rows` is gone through once; of what is not found little is kept.

    `sources` gives the name in the truth of what has been renamed, by the name that it had.
    """
    wanted = dict.fromkeys(truth)
    last_parts = {_parts(name)[:1] for name in wanted}
    exact, renamed, similar = Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        if row in wanted:
            exact[row] += 1
        elif row in sources:
            renamed[row] += 1
        elif _parts(row)[:1] in last_parts:
            similar[row] += 1
    names = {name: name for name in exact} | {row: sources[row] for row in renamed if sources[row] not in exact}
    found = set(names.values())
    claims = dict(_claims([name for name in wanted if name not in found], similar))
    best, ambiguous = _settled(claims)
    counts = {name: exact[row] + renamed[row] for row, name in names.items()}
    shared = {name: counts[name] for name in wanted if counts.get(name, 0) > 1}
    settled = {*counts, *best, *ambiguous}
    return NameMatches(
        names={
            **{row: name for row, name in names.items() if name not in shared},
            **{row: name for name, row in best.items()},
        },
        by_end=tuple(best),
        ambiguous=(*shared, *ambiguous),
        missing=tuple(name for name in wanted if name not in settled),
        ambiguous_rows=sum(shared.values()),
    )


@dataclass(frozen=True, slots=True)
class _Claim:
    """The row that agrees with a name in most parts, or None if several do."""

    row: str | None
    agreeing: int


def _claims(names: Iterable[str], rows: Mapping[str, int]) -> Iterator[tuple[str, _Claim]]:
    ends: Counter[Parts] = Counter()
    row_of: dict[Parts, str] = {}
    for row, count in rows.items():
        for end in _ends(_parts(row)):
            ends[end] += count
            row_of[end] = row
    for name in names:
        longest = next((end for end in reversed(list(_ends(_parts(name)))) if end in ends), None)
        if longest is not None:
            yield name, _Claim(row_of[longest] if ends[longest] == 1 else None, len(longest))


def _settled(claims: Mapping[str, _Claim]) -> tuple[dict[str, str], list[str]]:
    """The row of each name that agrees with it in more than any other does, and the names that are one of several."""
    strongest: dict[str | None, int] = {}
    for claim in claims.values():
        strongest[claim.row] = max(strongest.get(claim.row, 0), claim.agreeing)
    rivals = Counter(claim.row for claim in claims.values() if claim.agreeing == strongest[claim.row])
    best, ambiguous = dict[str, str](), list[str]()
    for name, claim in claims.items():
        if claim.row is None:
            ambiguous.append(name)
        elif claim.agreeing == strongest[claim.row]:
            if rivals[claim.row] == 1:
                best[name] = claim.row
            else:
                ambiguous.append(name)
    return best, ambiguous


def _parts(name: str) -> Parts:
    return tuple(part for part in reversed(name.replace("\\", "/").split("/")) if part not in ("", "."))


def _ends(parts: Parts) -> Iterator[Parts]:
    return (parts[:length] for length in range(1, min(len(parts), MAX_PARTS) + 1))
