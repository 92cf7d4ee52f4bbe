"""Which object of one answer is which of another, and what became of it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from pixscribe.matching import Boxes, as_boxes, best_pairs, iou_matrix
from pixscribe.tables import Row
from pixscribe.types import Size

State = Literal["same", "moved", "relabelled", "new", "gone"]

PAIR_IOU = 0.5
"""Boxes that overlap by less are of two objects, as everywhere in the field."""
SAME_IOU = 0.99
"""Boxes and outlines that overlap by this share are where they were: less than that nobody sees."""

Outline = tuple[Sequence[Sequence[float]], Row | None]
"""The polygons and the RLE of an object, as in `annotations`."""
_NO_OUTLINE: Outline = ((), None)


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one answer."""

    labels: Sequence[str | None]
    boxes: Boxes
    """In pixels; a row of NaN where an object has none: words are objects too."""
    outline_of: Callable[[int], Outline]
    """By position. Few are looked at, and to read one takes as long as all the rest."""
    size: Size
    """Of the image, in pixels."""

    @classmethod
    def from_rows(cls, rows: Sequence[Row], size: Size) -> "Objects":
        """Those of some rows of `annotations`."""
        corners = [[row["xmin"], row["ymin"], row["xmax"], row["ymax"]] for row in rows]
        return cls(
            [row["label"] for row in rows],
            as_boxes(corners),
            lambda position: (rows[position]["polygons"] or (), rows[position]["rle"]),
            size,
        )

    def resized(self, size: Size) -> "Objects":
        """The same objects in an image of another size: their boxes and polygons cover the same share of its sides."""
        if size == self.size or 0 in self.size:
            return self
        scale = size[0] / self.size[0], size[1] / self.size[1]
        return Objects(self.labels, self.boxes * (scale * 2), lambda at: _scaled(self.outline_of(at), scale), size)


@dataclass(frozen=True, slots=True)
class Pair:
    """One object of either answer or of both, by position. `iou` is that of the boxes, if there are two."""

    state: State
    before: int | None
    after: int | None
    iou: float | None = None


def pair_objects(before: Objects, after: Objects, *, is_text: bool, same_iou: float = SAME_IOU) -> Iterator[Pair]:
    """Each object of both answers to one prompt about one image, once.

    Boxes of one label that overlap by `PAIR_IOU` or more are pairs, the best first: `same` if box and outline overlap
    by `same_iou`, else `moved`. Boxes of different labels that are left and overlap like that are `relabelled`. Objects
    without a box are `same` if they have the same words; if the answer is a text (`is_text`: of caption and ask), other
    words in the same place are `relabelled` too. Everything else is `gone` or `new`. An image whose size has changed is
    compared as shares of its sides.
    """
    before = before.resized(after.size)
    pairs = [*_pair_boxes(before, after, same_iou), *_pair_words(before, after, is_text)]
    yield from pairs
    yield from (Pair("gone", at, None) for at in _missing(len(before.labels), (pair.before for pair in pairs)))
    yield from (Pair("new", None, at) for at in _missing(len(after.labels), (pair.after for pair in pairs)))


def _pair_boxes(before: Objects, after: Objects, same_iou: float) -> Iterator[Pair]:
    left, right = _boxed(before), _boxed(after)
    if not len(left) or not len(right):
        return
    iou = iou_matrix(before.boxes[left], after.boxes[right])
    of_one_label = _equal_labels([before.labels[at] for at in left], [after.labels[at] for at in right])
    pairs = best_pairs(iou, PAIR_IOU, of_one_label)
    for row, column in pairs:
        at, there = int(left[row]), int(right[column])
        stayed = iou[row, column] >= same_iou and _outlines_overlap(before, at, after, there, same_iou)
        yield Pair("same" if stayed else "moved", at, there, float(iou[row, column]))
    is_free = np.ones_like(of_one_label)
    for row, column in pairs:
        is_free[row, :] = is_free[:, column] = False
    for row, column in best_pairs(iou, PAIR_IOU, is_free & ~of_one_label):
        yield Pair("relabelled", int(left[row]), int(right[column]), float(iou[row, column]))


def _pair_words(before: Objects, after: Objects, is_text: bool) -> Iterator[Pair]:
    left, right = _unboxed(before), _unboxed(after)
    waiting: dict[str | None, list[int]] = defaultdict(list)
    for at in reversed(right):
        waiting[after.labels[at]].append(at)
    pairs = {at: waiting[before.labels[at]].pop() for at in left if waiting.get(before.labels[at])}
    yield from (Pair("same", at, there) for at, there in pairs.items())
    if is_text:
        taken = set(pairs.values())
        alone = [at for at in left if at not in pairs], [at for at in right if at not in taken]
        yield from (Pair("relabelled", at, there) for at, there in zip(*alone, strict=False))


def _boxed(objects: Objects) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.isfinite(objects.boxes).all(axis=1))


def _unboxed(objects: Objects) -> list[int]:
    found: list[int] = np.flatnonzero(~np.isfinite(objects.boxes).all(axis=1)).tolist()
    return found


def _equal_labels(left: Sequence[str | None], right: Sequence[str | None]) -> npt.NDArray[np.bool_]:
    numbers: dict[str | None, int] = {}
    mine, theirs = (np.array([numbers.setdefault(label, len(numbers)) for label in side]) for side in (left, right))
    equal: npt.NDArray[np.bool_] = mine[:, None] == theirs[None, :]
    return equal


def _missing(count: int, found: Iterator[int | None]) -> list[int]:
    return sorted(set(range(count)).difference(at for at in found if at is not None))


def _scaled(outline: Outline, scale: tuple[float, float]) -> Outline:
    """Polygons only: a raster cannot be compared with one of another size."""
    return tuple([value * scale[place % 2] for place, value in enumerate(ring)] for ring in outline[0]), None


def _outlines_overlap(before: Objects, at: int, after: Objects, there: int, same_iou: float) -> bool:
    """Whether two objects whose boxes are the same cover the same. One that has no outline any more does not."""
    mine, theirs = before.outline_of(at), after.outline_of(there)
    if mine == theirs:
        return True
    if _NO_OUTLINE in (mine, theirs):
        return False
    rasters = _rle(mine, after.size), _rle(theirs, after.size)
    return float(coco.iou([rasters[0]], [rasters[1]], [0])[0, 0]) >= same_iou


def _rle(outline: Outline, size: Size) -> Any:
    polygons, rle = outline
    if rle is not None:
        return rle
    width, height = size
    return coco.merge(coco.frPyObjects([list(ring) for ring in polygons], height, width))
