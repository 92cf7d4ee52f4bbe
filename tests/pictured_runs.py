"""Runs about pictures that there are, and what a test looks at in a data set of them."""

import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from data.samples.draw import COLORS
from pixscribe.places import file_uri
from pixscribe.results import RunResults
from pixscribe.tables import Row
from pixscribe.types import Xyxy
from tests.made_runs import Made, thing, write_run

PROMPTS = (
    {"name": "objects", "kind": "detect"},
    {"name": "outlines", "kind": "segment"},
    {"name": "caption", "kind": "caption"},
    {"name": "scene", "kind": "classify"},
    {"name": "weather", "kind": "ask", "text": "How is the weather?"},
)

HARD_NAMES = (
    "# 100%41.png",
    ".hidden/__x__/.y.png",
    "-rf.png",
    "a::b.png",
    "c*d?[1]{2}.png",
    "dot.s in/a.b.c.png",
    "http:/x/y.png",
    'quote".png',
    "two\nlines.png",
    "\N{SNOWMAN} ü/\N{SNOWMAN}.png",
)
"""What a file system takes. In the tables they stand as they are."""

HARD_LABELS = (
    '<img src=x onerror="alert(1)">',
    "]]>&amp;\"'\\",
    "two\nlines\tand a tab",
    "nul\0nul",
    "$image",
    "\N{GRINNING FACE} \u202e",
    "{{ label }}",
    "a: [b, #c]",
    "null",
    "x" * 5000,
)

SIZE = (60, 40)
BOX: Xyxy = (6.0, 8.0, 18.0, 28.0)
"""Of 12 x 20 px, in the upper left: nothing of it is left where it should be if a side is mistaken."""
OUTLINE = (6.0, 8.0, 18.0, 8.0, 18.0, 28.0, 6.0, 28.0)


def no_matter(sentence: str) -> None:
    """What is told is another test's business."""


def draw(path: Path, box: Xyxy | None = BOX) -> None:
    """White, and red in the box."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", SIZE, "white")
    if box is not None:
        left, top, right, bottom = map(int, box)
        picture.paste(COLORS["red"], (left, top, right, bottom))
    picture.save(path)


def pictured(folder: Path, file_name: str, answers: dict[str, list[Row] | None]) -> Made:
    """An image that lies in the folder, called as it is."""
    path = folder / file_name
    draw(path, BOX if answers.get("objects") else None)
    return Made(file_name, answers, SIZE, file_uri(os.fsencode(path)), sha256(path.read_bytes()).hexdigest())


def words(*labels: str) -> list[Row]:
    """The answer of a caption, a question or a classification."""
    return [thing(label, None) for label in labels]


def run_of(folder: Path, images: Sequence[Made], prompts: Sequence[dict[str, Any]] = PROMPTS) -> RunResults:
    return write_run(folder / "out", "a", images, prompts)


def hard_run(folder: Path) -> RunResults:
    """Every hard name with a hard label, and before them an image without objects and almost without words."""
    nothing: dict[str, list[Row] | None] = {"objects": [], "outlines": [], "caption": words(""), "scene": []}
    images = [pictured(folder / "pictures", "!nothing.png", {**nothing, "weather": words("?")})]
    for name, label in zip(HARD_NAMES, HARD_LABELS, strict=True):
        answers: dict[str, list[Row] | None] = {
            "objects": [thing(label, BOX)],
            "outlines": [thing(label, BOX, [OUTLINE])],
            "caption": words(f"caption of {label}"),
            "scene": words(label, "indoor"),
            "weather": words(label),
        }
        images.append(pictured(folder / "pictures", name, answers))
    return run_of(folder, images)


def objects_of(run: RunResults, prompt: str) -> Iterator[tuple[Row, list[Row]]]:
    """Each image with what was found in it."""
    for each in run:
        yield each.image, [row for row in each.annotations if row["prompt"] == prompt]


def xyxy(row: Row) -> list[float]:
    return [row[edge] for edge in ("xmin", "ymin", "xmax", "ymax")]


def around(bbox: Sequence[float]) -> list[float]:
    """The edges of a box that is said by a corner and its sides."""
    x, y, width, height = bbox
    return [x, y, x + width, y + height]


def colour_in(picture: Image.Image, edges: Sequence[float]) -> str:
    """Which of the samples' colours is at the centre of a box."""
    left, top, right, bottom = edges
    pixel = picture.convert("RGB").getpixel((int((left + right) / 2), int((top + bottom) / 2)))
    assert isinstance(pixel, tuple)
    return min(COLORS, key=lambda name: sum(abs(a - b) for a, b in zip(pixel, COLORS[name], strict=True)))
