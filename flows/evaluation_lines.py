"""An evaluation as lines of text, none longer than the terminal is wide."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flows.text_tables import (
    ELLIPSIS,
    MIN_NAME,
    SEPARATOR,
    Row,
    cut,
    cut_start,
    name_width,
    plain,
    table_lines,
    wrapped,
)

if TYPE_CHECKING:
    from pixscribe.evaluation.outcome import Averages, Confusion, Evaluation, LabelScore, PromptEvaluation, WorstImage

MAX_LABELS = 20
MAX_CONFUSIONS = 20
FULL_WIDTH, HALF_WIDTH = 68, 52
"""In narrower terminals some columns are left out."""
LABEL_HEADS: Row = ("label", "truth", "missed", "wrong", "prec.", "recall", "F1", "mAP")


def evaluation_lines(evaluation: "Evaluation", width: int) -> Iterator[str]:
    """The evaluation for people; everything else is in the JSON."""
    truth = evaluation.truth
    yield from wrapped(
        f"{plain(truth.file)}: {evaluation.images.both} of {truth.images} images are in the run, "
        f"{truth.objects} objects of {truth.labels} labels",
        width,
    )
    for prompt in evaluation.prompts:
        yield ""
        yield from _prompt_lines(prompt, width)
    if evaluation.notes:
        yield ""
    for note in evaluation.notes:
        yield from wrapped(f"- {plain(note)}", width, "  ")


def _prompt_lines(prompt: "PromptEvaluation", width: int) -> Iterator[str]:
    yield from wrapped(
        f"{prompt.prompt} ({prompt.kind}): {prompt.truth_objects} objects in the truth of {prompt.images} images, "
        f"{prompt.answered_objects} answered",
        width,
    )
    yield ""
    yield from _averages(prompt)
    yield ""
    yield from _labels(prompt, width)
    confusions = [cell for cell in prompt.confusion if cell.truth is not None and _is_mistaken(cell)]
    if confusions:
        yield ""
        yield from _confusions(confusions, width)
    if prompt.worst_images:
        yield ""
        yield from _worst(prompt.worst_images, width)


def _averages(prompt: "PromptEvaluation") -> Iterator[str]:
    """COCO's numbers, and those at one threshold."""
    rows: list[Row] = [("COCO", "mAP", "AP50", "AP75"), _average_row("  boxes", prompt.boxes)]
    if prompt.masks is not None:
        rows.append(_average_row("  masks", prompt.masks))
    rows.append(("IoU 0.5, boxes", "prec.", "recall", "F1"))
    for name, rates in (("  all objects", prompt.micro), ("  mean of labels", prompt.macro)):
        rows.append((name, _number(rates.precision), _number(rates.recall), _number(rates.f1)))
    return table_lines(rows, FULL_WIDTH)


def _average_row(name: str, averages: "Averages") -> Row:
    return name, _number(averages.map), _number(averages.ap50), _number(averages.ap75)


def _labels(prompt: "PromptEvaluation", width: int) -> Iterator[str]:
    """Where most goes wrong first: that is what somebody looks for."""
    columns = _columns_within(width)
    labels = sorted(prompt.labels, key=lambda label: (-label.missed - label.wrong, -label.truth))
    rows = [_label_row(label) for label in labels[:MAX_LABELS]]
    yield from table_lines([tuple(row[column] for column in columns) for row in (LABEL_HEADS, *rows)], width)
    if rest := labels[MAX_LABELS:]:
        missed, wrong = sum(label.missed for label in rest), sum(label.wrong for label in rest)
        yield f"{ELLIPSIS} {len(rest)} more labels: {missed} missed, {wrong} wrong"


def _columns_within(width: int) -> tuple[int, ...]:
    if width >= FULL_WIDTH:
        return tuple(range(len(LABEL_HEADS)))
    return (0, 1, 2, 3, 6, 7) if width >= HALF_WIDTH else (0, 2, 3, 6)


def _label_row(label: "LabelScore") -> Row:
    name = label.label if label.in_truth else f"{label.label} (not in the truth)"
    counts = (str(label.truth), str(label.missed), str(label.wrong))
    return name, *counts, *map(_number, (label.precision, label.recall, label.f1, label.map))


def _is_mistaken(cell: "Confusion") -> bool:
    return cell.answered is not None and cell.answered != cell.truth


def _confusions(cells: Sequence["Confusion"], width: int) -> Iterator[str]:
    yield "confused"
    count_width = max(len(str(cell.count)) for cell in cells)
    for cell in cells[:MAX_CONFUSIONS]:
        room = max(MIN_NAME, (width - count_width - 2 * len(SEPARATOR) - len(" answered as ")) // 2)
        truth, answered = (cut(str(name), room) for name in (cell.truth, cell.answered))
        yield f"{SEPARATOR}{cell.count:{count_width}}{SEPARATOR}{truth} answered as {answered}"
    if len(cells) > MAX_CONFUSIONS:
        yield f"{SEPARATOR}{ELLIPSIS} {len(cells) - MAX_CONFUSIONS} more"


def _worst(images: Sequence["WorstImage"], width: int) -> Iterator[str]:
    heads = ("worst images", "missed", "confused", "surplus")
    counts = [(str(image.missed), str(image.confused), str(image.surplus)) for image in images]
    room = name_width([heads, *(("", *row) for row in counts)], width)
    names = [cut_start(image.file_name, room) for image in images]
    return table_lines([heads, *((name, *row) for name, row in zip(names, counts, strict=True))], width)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
