"""One prompt against the truth.

An answer that failed has no objects, also if some were kept of it: all that is in the truth of its image counts as
missed.
"""

from collections.abc import Iterator, Sequence

from pixscribe.evaluation.average_precision import (
    MAX_PER_LABEL,
    AnsweredObject,
    AveragePrecision,
    CocoRle,
    TrueObject,
    average_precision,
    compressed,
    count_beyond_limit,
    is_score,
    rasterized,
)
from pixscribe.evaluation.counting import Counts, Found
from pixscribe.evaluation.images import EvaluatedImage, counted
from pixscribe.evaluation.labels import Vocabulary
from pixscribe.evaluation.outcome import NO_LABEL, PromptEvaluation
from pixscribe.evaluation.truth import TruthObject, TruthRle
from pixscribe.tables import Row
from pixscribe.types import Kind, Size, Xyxy


class Comparison:
    """What one prompt was answered, image after image, and what it comes to."""

    def __init__(self, prompt: str, kind: Kind, vocabulary: Vocabulary, *, has_outlines: bool) -> None:
        """`has_outlines` says whether the truth has any."""
        self._prompt = prompt
        self._kind = kind
        self._vocabulary = vocabulary
        self._compares_outlines = has_outlines and kind == "segment"
        self._counts = Counts()
        self._truth: list[TrueObject] = []
        self._answers: list[AnsweredObject] = []
        self._images = self._without_answer = self._scored = self._without_box = self._bare_truth = 0

    def add(self, image: EvaluatedImage) -> None:
        """Compare one image."""
        own = image.rows.only(frozenset({self._prompt}))
        has_answer = own.status == "ok"
        answered = own.annotations if has_answer else []
        boxed = [row for row in answered if row["xmin"] is not None]
        self._images += 1
        self._without_answer += not has_answer
        self._without_box += len(answered) - len(boxed)
        self._scored += sum(is_score(row["score"]) for row in boxed)
        self._counts.add(
            own.image["file_name"],
            [self._sought(each) for each in image.objects],
            [self._found(row) for row in boxed],
            has_answer=has_answer,
        )
        self._remember(image, boxed)

    def outcome(self) -> PromptEvaluation:
        """What it all comes to."""
        names, counts = self._vocabulary.names, self._counts
        boxes, masks = average_precision(self._truth, self._answers, "bbox"), self._masks()
        foreign = counts.foreign_counts(names)
        return PromptEvaluation(
            prompt=self._prompt,
            kind=self._kind,
            images=self._images,
            without_answer=self._without_answer,
            truth_objects=counts.truth.total(),
            answered_objects=counts.answered.total(),
            scored_objects=self._scored,
            boxes=boxes.averages,
            masks=None if masks is None else masks.averages,
            micro=counts.micro(),
            macro=counts.macro(),
            labels=counts.scores(names, {names[place]: value for place, value in boxes.map_by_label.items()}),
            foreign_labels=len(foreign),
            foreign_objects=sum(foreign.values()),
            confusion=counts.confusion(names),
            worst_images=counts.worst_images(),
        )

    def notes(self) -> Iterator[str]:
        """What of this prompt counts otherwise than one might think."""
        foreign = self._counts.foreign_counts(self._vocabulary.names)
        beyond = count_beyond_limit(self._answers)
        bare = sum(each.outline is None for each in self._answers)
        bare = bare if bare < len(self._answers) else 0
        bare_truth = self._bare_truth
        failed = f"{self._without_answer} of {counted(self._images, 'image')}"
        unknown = f"{counted(sum(foreign.values()), 'object')} with {counted(len(foreign), 'label')}"
        said = {
            f"{failed} without an answer (failed): all that is in them counts as missed": self._without_answer,
            f"{unknown} that the truth does not know: false positives, but no part of mAP": len(foreign),
            f"{counted(beyond, 'object')} beyond {MAX_PER_LABEL} of one label in one image: no part of mAP": beyond,
            f"{counted(self._without_box, 'object')} without a box: left out": self._without_box,
            f"{counted(bare, 'object')} with nothing but a box: no part of mAP of masks": bare,
            f"{counted(bare_truth, 'object')} of the truth with nothing but a box: taken for a mask": bare_truth,
        }
        return (f"{self._prompt}: {sentence}" for sentence, count in said.items() if count)

    def _remember(self, image: EvaluatedImage, boxed: Sequence[Row]) -> None:
        """For COCO's averages, which need all images at once."""
        self._truth += [self._true(each, image) for each in image.objects]
        for row in boxed:
            position = self._vocabulary.find(row["label"] or "")
            if position is not None:
                outline = _answered_outline(row, image.wh) if self._compares_outlines else None
                self._answers.append(AnsweredObject(image.number, position, _xyxy(row), row["score"], outline))

    def _true(self, one: TruthObject, image: EvaluatedImage) -> TrueObject:
        self._bare_truth += self._compares_outlines and not one.has_outline
        return TrueObject(
            image=image.number,
            label=self._vocabulary.position_of(one.category_id),
            bbox=one.bbox,
            area=one.bbox[2] * one.bbox[3] if one.area is None else one.area,
            is_crowd=bool(one.iscrowd),
            outline=_true_outline(one, image.wh) if self._compares_outlines else None,
        )

    def _sought(self, one: TruthObject) -> Found:
        name = self._vocabulary.names[self._vocabulary.position_of(one.category_id)]
        return Found(name, one.xyxy, is_crowd=bool(one.iscrowd))

    def _found(self, row: Row) -> Found:
        label = row["label"] or ""
        position = self._vocabulary.find(label)
        name = label.strip() or NO_LABEL if position is None else self._vocabulary.names[position]
        return Found(name, _xyxy(row), index=row["index"])

    def _masks(self) -> AveragePrecision | None:
        outlined = [each for each in self._answers if each.outline is not None]
        return average_precision(self._truth, outlined, "segm") if outlined else None


def _xyxy(row: Row) -> Xyxy:
    return row["xmin"], row["ymin"], row["xmax"], row["ymax"]


def _true_outline(one: TruthObject, wh: Size) -> CocoRle:
    if isinstance(one.segmentation, TruthRle):
        return compressed(one.segmentation)
    xmin, ymin, xmax, ymax = one.xyxy
    rings = [ring for ring in one.segmentation or () if ring]
    return rasterized(rings or [(xmin, ymin, xmax, ymin, xmax, ymax, xmin, ymax)], wh)


def _answered_outline(row: Row, wh: Size) -> CocoRle | None:
    """The raster, if there is one: it has holes, which polygons have not."""
    if row["rle"] is not None:
        return {"size": row["rle"]["size"], "counts": row["rle"]["counts"].encode("ascii")}
    return rasterized(row["polygons"], wh) if row["polygons"] else None
