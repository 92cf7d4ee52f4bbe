"""COCO's average precision, by pycocotools itself.

Objects without a score count as if they had 1. pycocotools sorts by score and keeps the order of equal ones: images by
the ids of the truth, objects in the order of the answer. So the result does not depend on the order of the tables, but
it is that of one operating point: there is no score by which less certain objects could be left out.
"""

import contextlib
import io
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixscribe.evaluation.outcome import Averages
from pixscribe.evaluation.truth import TruthRle
from pixscribe.types import Size, Xyxy

MAX_PER_LABEL = 100
"""COCO's: of one label in one image, no more objects than these are looked at."""
_EVERY_AREA = [[0, math.inf]]
"""pycocotools itself passes over objects above 1e10 px²."""
_AT_50, _AT_75 = [0], [5]
"""Places of the IoU thresholds 0.50, 0.55, … 0.95."""
T = TypeVar("T", "TrueObject", "AnsweredObject")

CocoRle = dict[str, Any]
"""`size` and the compressed `counts`, as pycocotools has it."""


@dataclass(frozen=True, slots=True)
class TrueObject:
    """An object to be found. `image` orders the images, `label` is a position in the vocabulary."""

    image: int
    label: int
    bbox: Sequence[float]
    """COCO's (x, y, width, height), px."""
    area: float
    is_crowd: bool
    outline: CocoRle | None


@dataclass(frozen=True, slots=True)
class AnsweredObject:
    """An object that was answered, in the order of the answer."""

    image: int
    label: int
    xyxy: Xyxy
    score: float | None
    outline: CocoRle | None


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """Of all labels, and of each by its position; null where no object of the truth is there to be found."""

    averages: Averages
    map_by_label: dict[int, float | None]


def average_precision(
    truth: Sequence[TrueObject], answers: Sequence[AnsweredObject], of: Literal["bbox", "segm"]
) -> AveragePrecision:
    """Compare boxes or outlines. For the latter, each object has one.

    Labels are compared one by one, since they have nothing to do with each other: pycocotools alone would look at every
    label in every image. An answer of a label that nothing in the truth has is no part of COCO's mean.
    """
    sought, found = _by_label(truth), _by_label(answers)
    if not sought:
        return AveragePrecision(Averages(None, None, None), {})
    labels = sorted(sought)
    # (IoU thresholds, recall thresholds, labels), -1 where there is nothing to be found
    precision = np.stack([_precision(sought[label], found.get(label, []), of) for label in labels], axis=2)
    averages = Averages(*(_mean(part) for part in (precision, precision[_AT_50], precision[_AT_75])))
    return AveragePrecision(averages, {label: _mean(precision[:, :, place]) for place, label in enumerate(labels)})


def count_beyond_limit(answers: Sequence[AnsweredObject]) -> int:
    """How many objects COCO does not look at, because their image has `MAX_PER_LABEL` others of their label."""
    counts = Counter((each.image, each.label) for each in answers)
    return sum(max(0, count - MAX_PER_LABEL) for count in counts.values())


def rasterized(rings: Sequence[Sequence[float]], size: Size) -> CocoRle:
    """The pixels inside polygons, as pycocotools draws them: all rings together, holes filled."""
    width, height = size
    drawn: CocoRle = mask.merge(mask.frPyObjects([list(ring) for ring in rings], height, width))
    return drawn


def compressed(rle: TruthRle) -> CocoRle:
    """The same mask in the form that pycocotools works with."""
    if isinstance(rle.counts, str):
        return {"size": list(rle.size), "counts": rle.counts.encode("ascii")}
    packed: CocoRle = mask.frPyObjects({"size": list(rle.size), "counts": list(rle.counts)}, *rle.size)
    return packed


def _by_label(objects: Sequence[T]) -> dict[int, list[T]]:
    found: dict[int, list[T]] = {}
    for each in objects:
        found.setdefault(each.label, []).append(each)
    return found


def _precision(truth: Sequence[TrueObject], answers: Sequence[AnsweredObject], of: str) -> npt.NDArray[np.float64]:
    """Of one label: by IoU threshold and recall threshold."""
    # it prints what it is at; and it converts masks in a way that numpy 2 warns about
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        dataset = _dataset(truth, answers)
        sought = _indexed(dataset)
        # loadRes cannot load nothing
        found = sought.loadRes([*map(_result, answers)]) if answers else _indexed({**dataset, "annotations": []})
        evaluation = COCOeval(sought, found, of)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = _EVERY_AREA, ["all"]
        evaluation.params.maxDets = [MAX_PER_LABEL]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: npt.NDArray[np.float64] = evaluation.eval["precision"][:, :, 0, 0, 0]
    return precision


def _dataset(truth: Sequence[TrueObject], answers: Sequence[AnsweredObject]) -> dict[str, Any]:
    images = sorted({each.image for each in truth} | {each.image for each in answers})
    return {
        # their sides are asked for, but only polygons would need them
        "images": [{"id": image, "width": 0, "height": 0} for image in images],
        "categories": [{"id": truth[0].label}],
        # pycocotools takes an id of 0 for "no match"
        "annotations": [_annotation(number, each) for number, each in enumerate(truth, start=1)],
    }


def _annotation(number: int, one: TrueObject) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": one.image,
        "category_id": one.label,
        "bbox": list(one.bbox),
        "area": one.area,
        "iscrowd": int(one.is_crowd),
        "segmentation": one.outline,
    }


def _result(answer: AnsweredObject) -> dict[str, Any]:
    xmin, ymin, xmax, ymax = answer.xyxy
    return {
        "image_id": answer.image,
        "category_id": answer.label,
        "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
        "score": answer.score if is_score(answer.score) else 1.0,
        "segmentation": answer.outline,
    }


def is_score(score: float | None) -> bool:
    """Whether something was measured."""
    return score is not None and math.isfinite(score)


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _mean(precision: npt.NDArray[np.float64]) -> float | None:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None
