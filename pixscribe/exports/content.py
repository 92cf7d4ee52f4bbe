"""What the answers about an image say, by the kind of their prompts: objects, words, classes."""

from collections.abc import Mapping

from pixscribe.exports.base import BOX_KINDS, DatasetImage
from pixscribe.tables import Row
from pixscribe.types import Kind

TEXT_KINDS: frozenset[Kind] = frozenset({"caption", "ask"})
ALL_KINDS: frozenset[Kind] = BOX_KINDS | TEXT_KINDS | {"classify"}


def objects_of(image: DatasetImage, prompts: Mapping[str, Kind]) -> list[Row]:
    """The objects of all prompts, each with a box."""
    return [row for row in image.rows.annotations if prompts[row["prompt"]] in BOX_KINDS]


def text_of(image: DatasetImage, prompt: str) -> str | None:
    """A caption, or the answer to a question; None if there is none."""
    return next((row["label"] for row in image.rows.annotations if row["prompt"] == prompt), None)


def classes_of(image: DatasetImage, prompt: str) -> list[str] | None:
    """The classes of an image, perhaps none of them; None if there is no answer."""
    is_answered = any(row["prompt"] == prompt and row["status"] != "failed" for row in image.rows.responses)
    return [row["label"] for row in image.rows.annotations if row["prompt"] == prompt] if is_answered else None


def bbox_of(found: Row) -> list[float]:
    """x, y of the top left corner, width and height in pixels, as COCO has it."""
    return [found["xmin"], found["ymin"], found["xmax"] - found["xmin"], found["ymax"] - found["ymin"]]
