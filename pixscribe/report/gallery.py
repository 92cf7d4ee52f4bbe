"""Images with objects drawn over them, in named layers: what a gallery is told.

All coordinates are source pixels, as in the table `annotations`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pixscribe.report.outlines import outlines_of
from pixscribe.results import ImageRows
from pixscribe.tables import Row
from pixscribe.types import Polygon, Xyxy

State = Literal["", "new", "gone", "moved", "relabelled", "same"]
STATES: tuple[State, ...] = ("new", "gone", "moved", "relabelled", "same")
"""What became of an object between two runs."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A set of objects that can be shown or hidden as one, such as "before", "after" or "truth"."""

    name: str
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture of the upright image, in whatever size."""

    data: bytes
    mime_type: str


@dataclass(frozen=True, slots=True)
class GalleryObject:
    """One object: with a box, polygons or both it is drawn, and without (a caption, a class) listed only.

    `layer` counts in `Gallery.layers`. `note` is a few words for the list, such as "was: cup".
    """

    prompt: str
    index: int
    label: str | None
    xyxy: Xyxy | None = None
    polygons: Sequence[Polygon] = ()
    flags: Sequence[str] = ()
    layer: int = 0
    state: State = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class GalleryAnswer:
    """What was said to one prompt. `text` is shown verbatim; `facts` are names and values that stand below."""

    prompt: str
    kind: str
    status: str
    error_code: str | None = None
    error: str | None = None
    text: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    layer: int = 0


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One image with everything that was found in it.

    Without a `picture`, `no_picture` says in its place why there is none. `width` and `height` are null of an image
    that could not be read. `note` is a few words for the card, such as "2 new, 1 gone".
    """

    file_name: str
    width: int | None
    height: int | None
    status: str
    error_code: str | None = None
    error: str | None = None
    objects: Sequence[GalleryObject] = ()
    answers: Sequence[GalleryAnswer] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    picture: Picture | None = None
    no_picture: str = "no picture"


@dataclass(frozen=True, slots=True)
class Gallery:
    """A part of a page. Put first what must not be missing: what does not fit into the page is left out from the end.

    `images_total` is how many there are, of which `images` are a sample; `about` says how they were chosen. With
    `colour_by` "state" the colours tell what became of the objects, else their labels.
    """

    images: Sequence[GalleryImage]
    images_total: int
    about: str = ""
    title: str = "Images"
    layers: Sequence[Layer] = (Layer("answers"),)
    colour_by: Literal["label", "state"] = "label"
    order: str = "trouble first"
    """What the order of `images` is called."""
    label_counts: Mapping[str, int] = field(default_factory=dict)
    """How often each label is there in all images; the most frequent get the colours that are easiest to tell apart."""


def gallery_image(rows: ImageRows, layer: int = 0) -> GalleryImage:
    """The image of these rows, without a picture."""
    image = rows.image
    return GalleryImage(
        file_name=image["file_name"],
        width=image["width"],
        height=image["height"],
        status=image["status"],
        error_code=image["error_code"],
        error=image["error"],
        objects=gallery_objects(rows, layer),
        answers=gallery_answers(rows, layer),
        facts=_image_facts(image),
    )


def gallery_objects(rows: ImageRows, layer: int = 0) -> tuple[GalleryObject, ...]:
    """The objects of an image, masks as outlines."""
    return tuple(gallery_object(row, layer) for row in rows.annotations)


def gallery_object(row: Row, layer: int = 0, state: State = "", note: str = "") -> GalleryObject:
    """The object of a row of `annotations`."""
    return GalleryObject(
        prompt=row["prompt"],
        index=row["index"],
        label=row["label"],
        xyxy=None if row["xmin"] is None else (row["xmin"], row["ymin"], row["xmax"], row["ymax"]),
        polygons=outlines_of(row),
        flags=row["flags"] or (),
        layer=layer,
        state=state,
        note=note,
    )


def gallery_answers(rows: ImageRows, layer: int = 0) -> tuple[GalleryAnswer, ...]:
    """What was said about an image, one for each prompt."""
    return tuple(
        GalleryAnswer(
            prompt=row["prompt"],
            kind=row["kind"],
            status=row["status"],
            error_code=row["error_code"],
            error=row["error"],
            text=row["text"],
            facts=_answer_facts(row),
            layer=layer,
        )
        for row in rows.responses
    )


def _image_facts(image: Row) -> dict[str, str]:
    facts = {"image_id": image["image_id"], "uri": image["uri"]}
    if image["mime_type"]:
        facts["type"] = image["mime_type"]
    if image["width"]:
        facts["size"] = f"{image['width']} × {image['height']} px"
    if image["size_bytes"] is not None:
        facts["bytes"] = f"{image['size_bytes']:,}"
    return {name: str(value) for name, value in facts.items() if value is not None}


def _answer_facts(row: Row) -> dict[str, str]:
    facts = {
        "model": row["model"],
        "tokens": f"{row['input_tokens']:,} in, {row['output_tokens'] + row['thought_tokens']:,} out",
        "cost": None if row["cost_usd"] is None else f"{row['cost_usd']:.6f} USD",
        "latency": None if row["latency_ms"] is None else f"{row['latency_ms']:,} ms",
        "attempts": str(row["attempts"]),
        "asked at": None if row["asked_at"] is None else f"{row['asked_at']:%Y-%m-%d %H:%M:%S} UTC",
        "reused": "yes: this answer came from a duplicate, the journal or an earlier run" if row["reused"] else None,
        "request key": row["request_key"],
    }
    return {name: value for name, value in facts.items() if value}
