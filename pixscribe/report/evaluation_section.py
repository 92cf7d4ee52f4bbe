"""What `pixscribe evaluate` left beside a run, as sections of its page, and truth over the pictures."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from pixscribe.report.blocks import Block, Column, Link, Matrix, Note, Section, Table
from pixscribe.report.gallery import GalleryImage, GalleryObject, Layer
from pixscribe.report.wording import plural, short_label
from pixscribe.results import RunResults

if TYPE_CHECKING:
    from pixscribe.evaluation.outcome import Evaluation, PromptEvaluation, TruthBox, WorstImage

MAX_MATRIX = 20
"""Labels on each side of the confusion matrix."""
NOTHING = "(nothing)"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The evaluation of a run, or nothing at all."""

    sections: Sequence[Section] = ()
    worst: frozenset[str] = frozenset()
    """File names that should be in the gallery."""
    truth: Mapping[str, Sequence[GalleryObject]] = field(default_factory=dict)
    """By file name."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        return (Layer("answers"), Layer("truth", is_dashed=True)) if self.truth else (Layer("answers"),)

    def with_truth(self, image: GalleryImage) -> GalleryImage:
        """The image with what should have been found in it."""
        truth = self.truth.get(image.file_name, ())
        return replace(image, objects=(*image.objects, *truth)) if truth else image


def read_judgement(results: RunResults) -> Judgement:
    """`runs/<id>/evaluation.json`, if it is there. One that cannot be read gives a sentence that says so."""
    key = f"runs/{results.run_id}/evaluation.json"
    if not results.storage.exists(key):
        return Judgement()
    # pycocotools and what it brings: most pages do without
    from pixscribe.evaluation.outcome import Evaluation

    try:
        evaluation = TypeAdapter(Evaluation).validate_json(results.storage.read(key))
    except (ValidationError, ValueError, RecursionError):
        words = f"{results.storage.uri_of(key)} is no evaluation that this version can read; evaluate the run again."
        return Judgement((Section("Evaluation", (Note(words, "failed"),)),))
    return _judge(evaluation)


def _judge(evaluation: "Evaluation") -> Judgement:
    truth: dict[str, list[GalleryObject]] = {}
    for prompt in evaluation.prompts:
        for image in prompt.worst_images:
            truth.setdefault(image.file_name, []).extend(_truth_objects(prompt.prompt, image))
    return Judgement((_section(evaluation),), frozenset(truth), truth)


def _truth_objects(prompt: str, image: "WorstImage") -> Iterator[GalleryObject]:
    for index, box in enumerate(image.truth_boxes):
        yield GalleryObject(prompt, index, box.label, box.xyxy, layer=1, note=_fate(box))


def _fate(box: "TruthBox") -> str:
    if box.answered is None:
        return "missed"
    return "" if box.answered == box.label else f"answered as {box.answered}"


def _section(evaluation: "Evaluation") -> Section:
    images, truth = evaluation.images, evaluation.truth
    about = (
        f"Against {truth.file}: {images.both:,} of its {truth.images:,} images are in this run. mAP is COCO's; "
        "everything else is at IoU 0.5 of boxes."
    )
    blocks: list[Block] = [Note(_sentence(words), "partial") for words in evaluation.warnings]
    blocks.append(_scores(evaluation))
    if evaluation.notes:
        blocks.append(Note("\n".join(map(_sentence, evaluation.notes))))
    for prompt in evaluation.prompts:
        blocks += _of_prompt(prompt)
    return Section("Evaluation", blocks, about)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _scores(evaluation: "Evaluation") -> Table:
    rows = [
        (
            *(prompt.prompt, prompt.truth_objects, prompt.answered_objects),
            *(prompt.boxes.map, prompt.boxes.ap50, prompt.masks.map if prompt.masks else None),
            *(prompt.micro.precision, prompt.micro.recall, prompt.micro.f1),
        )
        for prompt in evaluation.prompts
    ]
    rates = ("mAP of boxes", "AP at 0.5", "mAP of masks", "precision", "recall", "F1")
    return Table((Column("prompt"), *_numbers("truth", "answered"), *_rates(*rates)), rows)


def _numbers(*names: str) -> list[Column]:
    return [Column(name, "number") for name in names]


def _rates(*names: str) -> list[Column]:
    return [Column(name, "rate") for name in names]


def _of_prompt(prompt: "PromptEvaluation") -> Iterator[Block]:
    yield _label_table(prompt)
    if prompt.confusion:
        yield _matrix(prompt)
    if prompt.worst_images:
        yield _worst(prompt)


def _label_table(prompt: "PromptEvaluation") -> Table:
    rows = [
        (
            Link(each.label, filters={"label": each.label, "prompt": prompt.prompt}, label=each.label),
            *(each.truth, each.answered, each.hits, each.missed, each.wrong),
            *(each.precision, each.recall, each.f1, each.map),
        )
        for each in prompt.labels
    ]
    columns = (
        *(Column("label"), *_numbers("truth", "answered", "hits", "missed", "wrong")),
        *_rates("precision", "recall", "F1", "mAP"),
    )
    note = ""
    if prompt.foreign_labels:
        objects = plural(prompt.foreign_objects, "object")
        note = f"Not in the truth: {plural(prompt.foreign_labels, 'label')}, of {objects}."
    return Table(columns, rows, f"{prompt.prompt}: by label", note)


def _matrix(prompt: "PromptEvaluation") -> Matrix:
    counts = {(each.truth or NOTHING, each.answered or NOTHING): each.count for each in prompt.confusion}
    truths, answers = (_most_frequent(side, counts) for side in (0, 1))
    labels = list(dict.fromkeys([*truths, *answers]))[:MAX_MATRIX]
    rows, columns = ([*(label for label in labels if label != NOTHING), NOTHING] for _ in range(2))
    left = sum(counts.values()) - sum(counts.get((row, column), 0) for row in rows for column in columns)
    return Matrix(
        row_title="truth",
        column_title="answered as",
        rows=[short_label(row) for row in rows],
        columns=[short_label(column) for column in columns],
        counts=[[counts.get((row, column), 0) for column in columns] for row in rows],
        caption=f"{prompt.prompt}: what was taken for what",
        note=f"{left:,} more, of labels that are rarer." if left else "",
    )


def _most_frequent(side: int, counts: Mapping[tuple[str, str], int]) -> list[str]:
    total = Counter[str]()
    for names, count in counts.items():
        total[names[side]] += count
    return [name for name, _ in total.most_common()]


def _worst(prompt: "PromptEvaluation") -> Table:
    rows = [
        (Link(image.file_name, image=image.file_name), image.errors, image.missed, image.confused, image.surplus)
        for image in prompt.worst_images
    ]
    columns = (Column("image"), *_numbers("errors", "missed", "taken for another", "too many"))
    return Table(
        columns,
        rows,
        f"{prompt.prompt}: where most went wrong",
        "The truth is drawn over these images too, with dashes.",
    )
