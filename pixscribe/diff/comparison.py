"""Two runs compared, block by block: memory for the names of their images, and for one block of rows of each."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pixscribe.diff.columns import Bools, Columns, Integers, equal_answers, equal_columns, joined, read_columns
from pixscribe.diff.configs import config_changes
from pixscribe.diff.objects import SAME_IOU, Objects, pair_objects
from pixscribe.diff.pairing import ImageIndex, Place, index_images, pair_images
from pixscribe.diff.result import Counts, ImageChange, PromptDiff, RunDiff, Side
from pixscribe.errors import ConfigError, OutputError
from pixscribe.progress import Totals
from pixscribe.results import RunResults
from pixscribe.types import Kind, Size

BLOCK_BYTES = 32 * 1024 * 1024
"""Of rows of the first run that are kept while those of the second are read. Where its images come in another order,
each block reads its parts anew, so that smaller blocks would take longer."""
PIECE_BYTES = 4 * 1024 * 1024
"""Of rows of the second run that are compared at a time: that takes several times as much memory."""
CHUNK_ANSWERS = 4096
"""That are turned into Python objects at a time, of those that are not equal anyway."""
TEXT_KINDS: frozenset[Kind] = frozenset({"caption", "ask"})


def compare_runs(
    before: RunResults, after: RunResults, *, prompts: Sequence[str] = (), same_iou: float = SAME_IOU
) -> RunDiff:
    """Say what changed between two runs, as far as they are committed.

    Images are the same if their `file_name` is (see `pair_images`), objects as `pair_objects` says. `prompts` are those
    to compare; empty: all that both have asked. Raises `ConfigError` for a prompt that neither run has, or a config
    that cannot be read, and `OutputError` for tables that cannot.
    """
    kinds = _kinds_of_both(before, after, prompts)
    indexes = index_images(before), index_images(after)
    diff = RunDiff(
        before=_side(before, indexes[0]),
        after=_side(after, indexes[1]),
        prompts_before=_only(before, after, prompts),
        prompts_after=_only(after, before, prompts),
        config=config_changes(before.config, after.config),
        same_iou=same_iou,
        prompts={name: PromptDiff(name, kind, is_text) for name, (kind, is_text) in kinds.items()},
    )
    _Comparison(diff, (before, after), indexes, tuple(sorted(kinds))).run()
    return diff


def _kinds_of_both(before: RunResults, after: RunResults, prompts: Sequence[str]) -> dict[str, tuple[Kind, bool]]:
    """Those to compare, in the order of the second run, with their kind there, and whether they are texts."""
    known = [*before.kinds, *after.kinds]
    for name in prompts:
        if name not in known:
            allowed = ", ".join(dict.fromkeys(known))
            raise ConfigError(f"--prompt: {name!r}: is asked by neither run; allowed: {allowed}")
    both = [name for name in after.kinds if name in before.kinds and (not prompts or name in prompts)]
    return {
        name: (after.kinds[name], not TEXT_KINDS.isdisjoint((before.kinds[name], after.kinds[name]))) for name in both
    }


def _only(one: RunResults, other: RunResults, prompts: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in one.kinds if name not in other.kinds and (not prompts or name in prompts))


def _side(results: RunResults, index: ImageIndex) -> Side:
    name = f"{results.storage.uri}@{results.run_id}"
    return Side(name, results.summary["status"] == "complete", len(index), _totals(results, name))


def _totals(results: RunResults, name: str) -> Totals:
    """Of run.json, which anybody may have written."""
    told = results.summary["totals"]
    totals = Totals.from_json(told) if isinstance(told, dict) else None
    if totals is None or not all(isinstance(value, int | float | dict) for value in asdict(totals).values()):
        raise OutputError(f"{name}: its run.json is no account of a run")
    return totals


@dataclass(frozen=True, slots=True)
class _Both:
    """Images of both runs, the nth of one being the nth of the other, with their places in the runs."""

    before: Columns
    after: Columns
    places: tuple[Sequence[Place], Sequence[Place]]

    def change(self, number: int, counts: Counts, differs: "_ImageDifferences") -> ImageChange:
        return ImageChange(
            file_name=self.after.images.column("file_name")[number].as_py(),
            places=(self.places[0][number], self.places[1][number]),
            counts=counts,
            status=(differs.statuses[0][number], differs.statuses[1][number]),
            size=(_size(self.before, number), _size(self.after, number)),
            is_content_changed=bool(differs.content[number]),
        )


class _ImageDifferences:
    """In what images differ, apart from their objects."""

    def __init__(self, both: _Both) -> None:
        self.statuses = both.before.statuses(), both.after.statuses()
        are_read = ~(_is_null(both.before, "image_id") | _is_null(both.after, "image_id"))
        before, after = both.before.images, both.after.images
        self.content: Bools = are_read & ~equal_columns(before, after, ("image_id",))
        self.size: Bools = are_read & ~equal_columns(before, after, ("width", "height"))

    def any(self) -> Bools:
        statuses = zip(*self.statuses, strict=True)
        differs: Bools = self.content | self.size | np.array([old != new for old, new in statuses], dtype=bool)
        return differs


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The work on one `RunDiff`."""

    diff: RunDiff
    runs: tuple[RunResults, RunResults]
    indexes: tuple[ImageIndex, ImageIndex]
    prompts: tuple[str, ...]

    def run(self) -> None:
        partners = pair_images(*self.indexes)
        start = 0
        for block in _blocks(read_columns(self.runs[0], self.prompts, self.runs[0].parts), BLOCK_BYTES):
            self._compare_block(block, start, partners[start : start + len(block)])
            start += len(block)
        for images in self._read_positions(np.setdiff1d(np.arange(len(self.indexes[1])), partners)):
            self.diff.added.add(_names(images), images.object_count)

    def _compare_block(self, block: Columns, start: int, partners: Integers) -> None:
        """`start` is the position of the block's first image."""
        removed = block.take(np.flatnonzero(partners < 0))
        self.diff.removed.add(_names(removed), removed.object_count)
        # in the order of the second run, each of whose parts is then read once
        order = np.argsort(partners, kind="stable")[len(removed) :]
        done = 0
        for after in _blocks(self._read_positions(partners[order]), PIECE_BYTES):
            rows = order[done : done + len(after)]
            done += len(after)
            places = self.indexes[0].places(start + rows), self.indexes[1].places(partners[rows])
            self._compare(_Both(block.take(rows), after, places))

    def _read_positions(self, positions: Integers) -> Iterator[Columns]:
        """Images of the second run by their ascending positions, part by part."""
        after = self.runs[1]
        by_part: dict[int, list[int]] = {}
        for place in self.indexes[1].places(positions):
            by_part.setdefault(place.part, []).append(place.row)
        parts = [after.parts[part] for part in by_part]
        for rows, columns in zip(by_part.values(), read_columns(after, self.prompts, parts), strict=True):
            yield columns.take(np.array(rows))

    def _compare(self, both: _Both) -> None:
        self.diff.images.compared += len(both.before)
        equal = equal_answers(both.before, both.after)
        self._count_equal(both.before, equal)
        self._count_answers(both)
        counts = self._compare_answers(both, np.flatnonzero(~equal))
        differs = _ImageDifferences(both)
        same = np.where(equal, both.before.answers.counts, 0).reshape(len(both.before), len(self.prompts)).sum(axis=1)
        for number in sorted({*counts, *np.flatnonzero(differs.any()).tolist()}):
            own = Counts.sum([Counts(same=int(same[number])), *counts[number]])
            change = both.change(number, own, differs)
            if not change.is_empty:
                self.diff.add(change)

    def _count_equal(self, columns: Columns, equal: Bools) -> None:
        labels = columns.annotations.column("label")
        for number, prompt in enumerate(self.prompts):
            of_prompt = np.arange(len(columns)) * len(self.prompts) + number
            rows = columns.answers.take(of_prompt[equal[of_prompt]]).rows()
            for entry in labels.take(rows).value_counts().to_pylist():
                self.diff.prompts[prompt].add("same", entry["values"], entry["values"], entry["counts"])

    def _count_answers(self, both: _Both) -> None:
        before, after = (side.failed().reshape(len(side), side.prompts) for side in (both.before, both.after))
        is_empty = both.before.answers.counts.reshape(before.shape) == 0
        for number, prompt in enumerate(self.prompts):
            line = self.diff.prompts[prompt]
            is_lost = after[:, number] & ~before[:, number]
            line.answers_lost += int(np.count_nonzero(is_lost))
            line.empty_answers_lost += int(np.count_nonzero(is_lost & is_empty[:, number]))
            line.answers_gained += int(np.count_nonzero(before[:, number] & ~after[:, number]))

    def _compare_answers(self, both: _Both, answers: Integers) -> dict[int, list[Counts]]:
        """Objects of answers that are not equal, by the number of their image."""
        counts: dict[int, list[Counts]] = defaultdict(list)
        for chunk in (answers[at : at + CHUNK_ANSWERS].tolist() for at in range(0, len(answers), CHUNK_ANSWERS)):
            sides = both.before.objects_of(chunk), both.after.objects_of(chunk)
            for answer, before, after in zip(chunk, *sides, strict=True):
                image, prompt = divmod(answer, len(self.prompts))
                counts[image].append(self._compare_answer(self.prompts[prompt], before, after))
        return counts

    def _compare_answer(self, prompt: str, before: Objects, after: Objects) -> Counts:
        line, counts = self.diff.prompts[prompt], Counts()
        for pair in pair_objects(before, after, is_text=line.is_text, same_iou=self.diff.same_iou):
            old = None if pair.before is None else before.labels[pair.before]
            new = None if pair.after is None else after.labels[pair.after]
            line.add(pair.state, old, new)
            counts.add(pair.state)
        return counts


def _blocks(pieces: Iterable[Columns], enough_bytes: int) -> Iterator[Columns]:
    """So many of them joined as come to `enough_bytes`."""
    waiting: list[Columns] = []
    waiting_bytes = 0
    for piece in pieces:
        waiting.append(piece)
        waiting_bytes += piece.size_bytes
        if waiting_bytes >= enough_bytes:
            yield joined(waiting)
            waiting, waiting_bytes = [], 0
    if waiting:
        yield joined(waiting)


def _names(columns: Columns) -> list[str]:
    names: list[str] = columns.images.column("file_name").to_pylist()
    return names


def _is_null(columns: Columns, name: str) -> Any:
    return columns.images.column(name).is_null().to_numpy()


def _size(columns: Columns, number: int) -> Size | None:
    width, height = (columns.images.column(name)[number].as_py() for name in ("width", "height"))
    return None if width is None or height is None else (width, height)
