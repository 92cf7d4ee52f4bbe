"""Which images of a run are shown: some of all that can be the matter, of each label, and the rest spread evenly.

The choice depends on nothing but what is in the tables: the same run always shows the same images.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import zip_longest
from zlib import crc32

import numpy as np
import numpy.typing as npt

MAX_LABELS = 4096
"""Labels for which images are remembered: of an open vocabulary there may be millions."""

SHARES: Mapping[str, float] = {"error": 0.25, "flag": 0.15, "empty": 0.10, "label": 0.30}
"""How much of a sample each group may take; what is left is spread evenly over all images."""
KEPT: Mapping[str, int] = {"error": 16, "flag": 8, "empty": 12, "label": 2}
"""Images that are remembered of each error code, flag, prompt and label."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """An image, by where its row is. `key` is a number that looks drawn by chance, made of the image's name."""

    key: int
    part: int
    row: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The chosen rows of each part, by the part's number, ascending; and what of them there is."""

    rows: Mapping[int, Sequence[int]]
    about: str


@dataclass(slots=True)
class Sampler:
    """Looks at all images, part by part, and remembers a few for each group."""

    size: int
    wanted: frozenset[str] = frozenset()
    """File names of images that are to be chosen anyway."""
    images: int = 0
    _spread: "_Fewest" = field(init=False)
    _groups: dict[str, dict[str, "_Fewest"]] = field(init=False)
    _wanted: list[Place] = field(default_factory=list)
    _labels_left_out: bool = False

    def __post_init__(self) -> None:
        self._spread = _Fewest(self.size)
        self._groups = {name: {} for name in SHARES}

    def add_part(self, part: int, file_names: Sequence[str]) -> "PartSampler":
        """Take up the images of a part; what they are like is said to what is returned."""
        keys = np.fromiter(map(_key, file_names), np.uint64, len(file_names))
        self.images += len(file_names)
        for row in np.argsort(keys, kind="stable")[: self.size].tolist():
            self._spread.offer(Place(int(keys[row]), part, row))
        if self.wanted:
            found = (row for row, name in enumerate(file_names) if name in self.wanted)
            self._wanted += [Place(int(keys[row]), part, row) for row in found]
        return PartSampler(self, part, keys)

    def offer(self, group: str, name: str, places: Iterator[Place]) -> None:
        """Images that belong to `name` of a group."""
        kept = self._groups[group].setdefault(name, _Fewest(KEPT[group]))
        for place in places:
            kept.offer(place)

    def forget_labels(self) -> None:
        """Keep the labels within bounds: a choice among them that does not depend on their order."""
        labels = self._groups["label"]
        if len(labels) > 2 * MAX_LABELS:
            kept = sorted(labels, key=lambda label: (crc32(label.encode()), label))[:MAX_LABELS]
            self._groups["label"] = {label: labels[label] for label in kept}
            self._labels_left_out = True

    def choose(self, label_counts: Mapping[str, int]) -> Sample:
        """The sample. `label_counts` says which labels are rare: those come first."""
        if self.images <= self.size:
            return Sample(_by_part(self._spread.places()), "")
        chosen = dict.fromkeys(self._wanted[: self.size])
        full = []
        for group, share in SHARES.items():
            wanted = self._in_turn(group, label_counts)
            room = min(int(self.size * share), self.size - len(chosen))
            for place in wanted:
                if place not in chosen and room > 0:
                    chosen[place] = None
                    room -= 1
            full += [group] if all(place in chosen for place in self._firsts(group)) else []
        for place in self._spread.places():
            if len(chosen) < self.size:
                chosen.setdefault(place)
        return Sample(_by_part(chosen), self._describe(frozenset(full)))

    def _in_turn(self, group: str, label_counts: Mapping[str, int]) -> Iterator[Place]:
        """One of each, then a second of each, and so on."""
        names = sorted(
            self._groups[group], key=lambda name: (label_counts.get(name, 0) if group == "label" else 0, name)
        )
        for row in zip_longest(*(self._groups[group][name].places() for name in names)):
            yield from (place for place in row if place is not None)

    def _firsts(self, group: str) -> Iterator[Place]:
        for kept in self._groups[group].values():
            yield kept.places()[0]

    def _describe(self, full: frozenset[str]) -> str:
        told = {
            "error": ("every kind of failure", "many kinds of failure"),
            "flag": ("every flag", "many flags"),
            "empty": ("images without objects", "images without objects"),
            "label": ("every label", "the rarest labels"),
        }
        there = [group for group in SHARES if self._groups[group]]
        if self._labels_left_out:
            full = full - {"label"}
        parts = [told[group][0 if group in full else 1] for group in there]
        return ", ".join([*parts, "and the rest spread evenly over all images"]).capitalize() + "."


class PartSampler:
    """Takes what is said of the images of one part."""

    def __init__(self, sampler: Sampler, part: int, keys: npt.NDArray[np.uint64]) -> None:
        self._sampler, self._part, self._keys = sampler, part, keys

    def offer(
        self, group: str, names: Sequence[str], codes: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> None:
        """`names[codes[i]]` is true of the image in row `rows[i]`, each said as often as you like."""
        if len(codes) == 0:
            return
        pairs = np.unique(codes * len(self._keys) + rows)
        codes, rows = np.divmod(pairs, len(self._keys))
        order = np.lexsort((self._keys[rows], codes))
        codes, rows = codes[order], rows[order]
        starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=True):
            first = rows[start : min(stop, start + KEPT[group])].tolist()
            places = (Place(int(self._keys[row]), self._part, row) for row in first)
            self._sampler.offer(group, names[int(codes[start])], places)
        if group == "label":
            self._sampler.forget_labels()


class _Fewest:
    """The places with the lowest keys among all that were offered."""

    __slots__ = ("_heap", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[int, int, int]] = []
        """Negated, so that the first is the one to go."""

    def offer(self, place: Place) -> None:
        entry = (-place.key, -place.part, -place.row)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def places(self) -> list[Place]:
        """The lowest first."""
        return [Place(-key, -part, -row) for key, part, row in sorted(self._heap, reverse=True)]


def _key(file_name: str) -> int:
    digest = blake2b(file_name.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _by_part(places: Iterator[Place] | Sequence[Place] | Mapping[Place, None]) -> dict[int, list[int]]:
    parts: dict[int, list[int]] = {}
    for place in sorted(places, key=lambda place: (place.part, place.row)):
        parts.setdefault(place.part, []).append(place.row)
    return parts
