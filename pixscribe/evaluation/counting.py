"""Hits, misses and confusions at IoU 0.5 of boxes: image by image, without a score.

In one image, objects of one label are paired first, those that overlap most before others. Answers that are left over
and lie half or more inside a crowd of their label are ignored, as in COCO. What is then left on both sides and overlaps
is a confusion, whatever the labels. So a hit is a hit in precision and recall and on the diagonal of the confusion
matrix alike, and a dog that was answered as `dog` and as `cat` is no confusion but one `cat` too many.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pixscribe.evaluation.outcome import Confusion, LabelScore, Rates, TruthBox, WorstImage
from pixscribe.matching import areas, as_boxes, best_pairs, intersections, iou_matrix
from pixscribe.types import Xyxy

MIN_IOU = 0.5
MAX_BOXES = 100
MAX_WORST = 20
MAX_FOREIGN = 200


@dataclass(frozen=True, slots=True)
class Found:
    """One object, of the truth or of an answer."""

    label: str
    xyxy: Xyxy
    is_crowd: bool = False
    index: int = 0
    """Of an answer: its place in it."""


class Counts:
    """What the images of one prompt add up to."""

    def __init__(self) -> None:
        self.truth: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.cells: Counter[tuple[str | None, str | None]] = Counter()
        """By (truth, answer): hits where both are the same; None is background and miss."""
        self._worst: list[WorstImage] = []

    def add(self, file_name: str, truth: Sequence[Found], answers: Sequence[Found], *, has_answer: bool) -> None:
        """Count one image."""
        objects = [each for each in truth if not each.is_crowd]
        pairing = _pair(objects, [each for each in truth if each.is_crowd], answers)
        self.truth.update(each.label for each in objects)
        self.answered.update(each.label for each in answers)
        self.ignored.update(answers[place].label for place in pairing.ignored)
        self.cells.update(_cells(objects, answers, pairing))
        image = _judged(file_name, objects, answers, pairing, has_answer)
        if image.errors:
            self._worst.append(image)
            if len(self._worst) >= 10 * MAX_WORST:
                self._worst = list(self.worst_images())

    def worst_images(self) -> tuple[WorstImage, ...]:
        """Those with most errors first, then by name."""
        return tuple(sorted(self._worst, key=lambda image: (-image.errors, image.file_name))[:MAX_WORST])

    def scores(self, names: Sequence[str], map_by_name: dict[str, float | None]) -> tuple[LabelScore, ...]:
        """One for each of the labels `names` of the truth that is in it or in an answer, and for foreign ones."""
        known = {name for name in names if self.truth[name] or self.answered[name]}
        listed = sorted(known, key=lambda name: (-self.truth[name], -self.answered[name], name))
        return tuple(
            self._score(name, name in known, map_by_name.get(name)) for name in [*listed, *self.foreign(names)]
        )

    def foreign(self, names: Sequence[str]) -> list[str]:
        """The labels of answers that are none of `names`, the most frequent first, at most `MAX_FOREIGN`."""
        return sorted(self.foreign_counts(names), key=lambda name: (-self.answered[name], name))[:MAX_FOREIGN]

    def foreign_counts(self, names: Sequence[str]) -> dict[str, int]:
        """How often each label was answered that is none of `names`."""
        known = set(names)
        return {name: count for name, count in self.answered.items() if name not in known}

    def confusion(self, names: Sequence[str]) -> tuple[Confusion, ...]:
        """All cells that are not zero, without foreign labels that are not listed."""
        shown = {None, *names, *self.foreign(names)}
        cells = (
            Confusion(truth, answered, count)
            for (truth, answered), count in self.cells.items()
            if truth in shown and answered in shown
        )
        return tuple(sorted(cells, key=lambda cell: (-cell.count, cell.truth or "", cell.answered or "")))

    def micro(self) -> Rates:
        """Over all objects: labels that are frequent weigh most."""
        return _rates(sum(self._hits(name) for name in self.truth), self.truth.total(), self._claimed())

    def macro(self) -> Rates:
        """The mean over the labels with objects in the truth; a label that was never answered has precision 0 here."""
        if not self.truth:
            return Rates(None, None, None)
        rates = [self._rates(name) for name in sorted(self.truth)]
        return Rates(*(float(np.mean([value or 0.0 for value in values])) for values in zip(*rates, strict=True)))

    def _score(self, name: str, in_truth: bool, mean_precision: float | None) -> LabelScore:
        hits, ignored = self._hits(name), self.ignored[name]
        return LabelScore(
            label=name,
            in_truth=in_truth,
            truth=self.truth[name],
            answered=self.answered[name],
            hits=hits,
            missed=self.truth[name] - hits,
            wrong=self.answered[name] - ignored - hits,
            ignored=ignored,
            **dict(zip(("precision", "recall", "f1"), self._rates(name), strict=True)),
            map=mean_precision,
        )

    def _hits(self, name: str) -> int:
        return self.cells[name, name]

    def _claimed(self) -> int:
        return self.answered.total() - self.ignored.total()

    def _rates(self, name: str) -> tuple[float | None, float | None, float | None]:
        rates = _rates(self._hits(name), self.truth[name], self.answered[name] - self.ignored[name])
        return rates.precision, rates.recall, rates.f1


@dataclass(frozen=True, slots=True)
class _Pairing:
    """Places in the two lists of one image."""

    hits: list[tuple[int, int]]
    confused: list[tuple[int, int]]
    missed: list[int]
    surplus: list[int]
    ignored: list[int]


def _pair(objects: Sequence[Found], crowds: Sequence[Found], answers: Sequence[Found]) -> _Pairing:
    iou = iou_matrix(_boxes(objects), _boxes(answers))
    hits = best_pairs(iou, MIN_IOU, _same_label(objects, answers))
    free_objects, free_answers = _others(hits, len(objects), 0), _others(hits, len(answers), 1)
    ignored = _inside(crowds, answers) & free_answers if crowds else np.zeros(len(answers), dtype=np.bool_)
    free_answers &= ~ignored
    confused = best_pairs(iou, MIN_IOU, free_objects[:, None] & free_answers[None, :])
    return _Pairing(
        hits=hits,
        confused=confused,
        missed=_places(free_objects & _others(confused, len(objects), 0)),
        surplus=_places(free_answers & _others(confused, len(answers), 1)),
        ignored=_places(ignored),
    )


def _boxes(found: Sequence[Found]) -> npt.NDArray[np.float64]:
    return as_boxes([each.xyxy for each in found])


def _same_label(rows: Sequence[Found], columns: Sequence[Found]) -> npt.NDArray[np.bool_]:
    same = [[row.label == column.label for column in columns] for row in rows]
    return np.array(same, dtype=np.bool_).reshape(len(rows), len(columns))


def _others(pairs: Sequence[tuple[int, int]], length: int, side: int) -> npt.NDArray[np.bool_]:
    free = np.ones(length, dtype=np.bool_)
    free[[pair[side] for pair in pairs]] = False
    return free


def _inside(crowds: Sequence[Found], answers: Sequence[Found]) -> npt.NDArray[np.bool_]:
    """Whether an answer lies in a crowd of its label: of its own area, not of both together, as COCO has it."""
    answered = _boxes(answers)
    shared = intersections(_boxes(crowds), answered)
    enough = (shared > 0) & (shared >= MIN_IOU * areas(answered)[None, :])
    return np.asarray((enough & _same_label(crowds, answers)).any(axis=0))


def _places(chosen: npt.NDArray[np.bool_]) -> list[int]:
    return [int(place) for place in np.flatnonzero(chosen)]


def _cells(
    objects: Sequence[Found], answers: Sequence[Found], pairing: _Pairing
) -> Iterable[tuple[str | None, str | None]]:
    for row, column in (*pairing.hits, *pairing.confused):
        yield objects[row].label, answers[column].label
    for row in pairing.missed:
        yield objects[row].label, None
    for column in pairing.surplus:
        yield None, answers[column].label


def _judged(
    file_name: str, objects: Sequence[Found], answers: Sequence[Found], pairing: _Pairing, has_answer: bool
) -> WorstImage:
    answered_as = {row: answers[column].label for row, column in (*pairing.hits, *pairing.confused)}
    gone_wrong = sorted([*pairing.missed, *(row for row, _ in pairing.confused)])
    order = [*gone_wrong, *sorted(row for row, _ in pairing.hits)]
    wrong = sorted(answers[place].index for place in (*pairing.surplus, *(column for _, column in pairing.confused)))
    return WorstImage(
        file_name=file_name,
        errors=len(pairing.missed) + len(pairing.confused) + len(pairing.surplus),
        missed=len(pairing.missed),
        confused=len(pairing.confused),
        surplus=len(pairing.surplus),
        has_answer=has_answer,
        truth_boxes=tuple(
            TruthBox(objects[row].label, objects[row].xyxy, answered_as.get(row)) for row in order[:MAX_BOXES]
        ),
        truth_objects=len(objects),
        wrong=tuple(wrong[:MAX_BOXES]),
    )


def _rates(hits: int, truth: int, claimed: int) -> Rates:
    return Rates(
        precision=hits / claimed if claimed else None,
        recall=hits / truth if truth else None,
        f1=2 * hits / (truth + claimed) if truth + claimed else None,
    )
