"""What an evaluation comes to. `runs/<id>/evaluation.json` is `Evaluation` as JSON: the names here are its keys.

A number that is not defined (the precision of a label that was never answered) is null, never NaN. Nothing depends on
the clock or on the order of the tables: the same run and truth give the same bytes.
"""

from dataclasses import dataclass

from pixscribe.types import Kind, Xyxy

EVALUATION_VERSION = "1"
NO_LABEL = "(no label)"
"""What an object is listed under that was answered without a label."""


@dataclass(frozen=True, slots=True)
class Averages:
    """COCO average precision, 0 to 1; null if no object of the truth is there to be found."""

    map: float | None
    """Mean over the IoU thresholds 0.50, 0.55, … 0.95, and over the labels."""
    ap50: float | None
    ap75: float | None


@dataclass(frozen=True, slots=True)
class Rates:
    """At IoU 0.5 of boxes, each 0 to 1."""

    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label, at IoU 0.5 of boxes: `hits + missed = truth`, `hits + wrong + ignored = answered`."""

    label: str
    """As the truth spells it; as the answer does if the truth does not have it."""
    in_truth: bool
    truth: int
    answered: int
    hits: int
    missed: int
    """Objects of the truth without an answer of this label."""
    wrong: int
    """Answers of this label without an object of the truth that has it."""
    ignored: int
    """Answers inside a crowd of this label, which count neither way."""
    precision: float | None
    recall: float | None
    f1: float | None
    map: float | None
    """COCO, of boxes, of this label; null also for a label that the truth does not have."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """One cell of the confusion matrix that is not zero: how often what is `truth` was answered as `answered`.

    `truth` null is background: nothing of the truth is there. `answered` null is a miss: nothing was answered.
    """

    truth: str | None
    answered: str | None
    count: int


@dataclass(frozen=True, slots=True)
class TruthBox:
    """One object of the truth (no crowd) in an image that went wrong."""

    label: str
    xyxy: Xyxy
    """Source pixels, unclipped."""
    answered: str | None
    """The label of the answer that overlaps it; null if it was missed."""


@dataclass(frozen=True, slots=True)
class WorstImage:
    """An image where much went wrong."""

    file_name: str
    """As in the tables of the run."""
    errors: int
    """`missed + confused + surplus`, by which the images are ordered."""
    missed: int
    """Objects of the truth where nothing was answered."""
    confused: int
    """Objects of the truth that were answered with another label."""
    surplus: int
    """Answers where nothing of the truth is."""
    has_answer: bool
    truth_boxes: tuple[TruthBox, ...]
    """At most `MAX_BOXES` of them, those that went wrong first; `truth_objects` says how many there are."""
    truth_objects: int
    wrong: tuple[int, ...]
    """`annotations.index` of the answers that are confused or surplus, at most `MAX_BOXES`."""


@dataclass(frozen=True, slots=True)
class PromptEvaluation:
    """One prompt against the truth."""

    prompt: str
    kind: Kind
    images: int
    """Those that are in the truth as well."""
    without_answer: int
    """Of these, failed ones: all their objects count as missed."""
    truth_objects: int
    answered_objects: int
    scored_objects: int
    """Objects with a score of their own; the others count as if they had 1."""
    boxes: Averages
    masks: Averages | None
    """null if the prompt gave no outlines, or the truth has none."""
    micro: Rates
    """Over all objects."""
    macro: Rates
    """The mean over the labels that have an object in the truth; what is not defined counts as 0."""
    labels: tuple[LabelScore, ...]
    """Those of the truth first, by frequency in it; then others, by frequency in the answers, `MAX_FOREIGN` of them."""
    foreign_labels: int
    """Labels that the truth does not have: false positives here, but no part of COCO's averages."""
    foreign_objects: int
    confusion: tuple[Confusion, ...]
    """Largest first, hits included; foreign labels beyond `MAX_FOREIGN` are left out."""
    worst_images: tuple[WorstImage, ...]
    """The first `MAX_WORST`; none without an error."""


@dataclass(frozen=True, slots=True)
class TruthSummary:
    """What was in the file."""

    file: str
    images: int
    objects: int
    """Crowds included."""
    crowds: int
    labels: int


@dataclass(frozen=True, slots=True)
class ImageMatches:
    """How the images of the truth and the rows of the run went together."""

    both: int
    """Evaluated."""
    by_end_of_name: int
    """Of these, those whose names agree only from the end on, such as `images/x.jpg` and `x.jpg`."""
    ambiguous: int
    """Images of the truth that could be several rows: left out."""
    truth_only: int
    """Images of the truth that the run was not about: left out."""
    run_only: int
    """Rows of the run that the truth does not know: left out."""
    other_size: int
    """Evaluated, although width and height of truth and image differ."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A run against a truth."""

    version: str
    run: str
    output: str
    truth: TruthSummary
    images: ImageMatches
    warnings: tuple[str, ...]
    """Sentences about what may be wrong with the comparison itself."""
    notes: tuple[str, ...]
    """Sentences about what counts how."""
    prompts: tuple[PromptEvaluation, ...]
    """In the order of the config."""
