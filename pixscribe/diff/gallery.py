"""The images that changed most, with the objects of both runs drawn over them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pixscribe.diff.columns import SCHEMAS, read_columns
from pixscribe.diff.objects import Objects, Pair, pair_objects
from pixscribe.diff.pairing import Place
from pixscribe.diff.result import ImageChange, PromptDiff, RunDiff
from pixscribe.report.gallery import (
    Gallery,
    GalleryAnswer,
    GalleryImage,
    GalleryObject,
    Layer,
    Picture,
    gallery_answers,
    gallery_image,
    gallery_object,
)
from pixscribe.report.run_report import PICTURE_BYTES
from pixscribe.report.thumbnails import SourceRules, load_pictures
from pixscribe.results import ImageRows, RunResults
from pixscribe.tables import Row
from pixscribe.types import Size

MAX_IMAGES = 240
MAX_NOTE = 200
LAYERS = (Layer("after"), Layer("before", is_dashed=True))
AFTER, BEFORE = range(2)
STATES = ("moved", "relabelled", "new", "gone", "same")
"""In this order: of more objects than a page tells, those come first that changed."""
EVERYTHING = {table: schema.names for table, schema in SCHEMAS.items()}


def changed_images(diff: RunDiff, before: RunResults, after: RunResults) -> Gallery:
    """Those of `diff.changed` in which most changed, `MAX_IMAGES` at most. Raises `OutputError`."""
    changes = sorted(diff.changed, key=lambda change: -change.counts.changed)[:MAX_IMAGES]
    prompts = sorted(diff.prompts)
    old, new = (
        _rows_at(results, prompts, [change.places[number] for change in changes])
        for number, results in enumerate((before, after))
    )
    pictures = _pictures((before, old), (after, new))
    images = [_image(diff, *each) for each in zip(changes, old, new, pictures, strict=True)]
    return Gallery(
        images=images,
        images_total=diff.images.changed,
        about=_about(diff),
        title="Changed images",
        layers=LAYERS,
        colour_by="state",
        order="most changed",
    )


def _about(diff: RunDiff) -> str:
    lines = "Solid lines are the second run's, dashed ones the first run's."
    if diff.images.changed > len(diff.changed):
        return f"Those of the first {len(diff.changed):,} changed images in which most changed. {lines}"
    return f"Those in which most changed come first. {lines}"


def _rows_at(results: RunResults, prompts: Sequence[str], places: Sequence[Place]) -> list[ImageRows]:
    by_part: dict[int, list[int]] = {}
    for place in sorted(places):
        by_part.setdefault(place.part, []).append(place.row)
    parts = [results.parts[part] for part in by_part]
    found: dict[Place, ImageRows] = {}
    for (part, rows), columns in zip(by_part.items(), read_columns(results, prompts, parts, EVERYTHING), strict=True):
        found |= zip((Place(part, row) for row in rows), columns.take(np.array(rows)).to_rows(), strict=True)
    return [found[place] for place in places]


def _pictures(*sides: tuple[RunResults, Sequence[ImageRows]]) -> list[Picture | str]:
    """Of the second run's images; where one cannot be had there, and the first run had it from elsewhere, of that."""
    (before, old), (after, new) = sides
    pictures = load_pictures([rows.image for rows in new], PICTURE_BYTES, _source_rules(after))
    lacking = [
        number
        for number, picture in enumerate(pictures)
        if isinstance(picture, str) and old[number].image["uri"] != new[number].image["uri"]
    ]
    limit_bytes = PICTURE_BYTES * len(lacking) // len(pictures)
    instead = load_pictures([old[number].image for number in lacking], limit_bytes, _source_rules(before))
    for number, picture in zip(lacking, instead, strict=True):
        if isinstance(picture, Picture):
            pictures[number] = picture
    return pictures


def _source_rules(results: RunResults) -> SourceRules:
    return SourceRules(results.config.image.max_pixels, results.config.source.allow_private_hosts)


def _image(
    diff: RunDiff, change: ImageChange, before: ImageRows, after: ImageRows, picture: Picture | str
) -> GalleryImage:
    """In the frame of the second run's image, or of the first one's if that could not be read."""
    shown = before if after.image["width"] is None else after
    image = replace(
        gallery_image(shown),
        status=change.status[1].name,
        error_code=change.status[1].error_code,
        error=after.image["error"],
        objects=_objects(diff, before, after),
        answers=_answers(before, after),
        note=change.words(),
    )
    return replace(image, picture=picture) if isinstance(picture, Picture) else replace(image, no_picture=picture)


def _objects(diff: RunDiff, before: ImageRows, after: ImageRows) -> list[GalleryObject]:
    """Each object of both runs, in the layer of its run, and in the order of `STATES`."""
    found = [
        one
        for prompt in diff.prompts.values()
        for one in _objects_of(prompt, _of_prompt(before, prompt), _of_prompt(after, prompt), diff.same_iou)
    ]
    return sorted(found, key=lambda one: (STATES.index(one.state), one.layer))


def _of_prompt(rows: ImageRows, prompt: PromptDiff) -> ImageRows:
    return rows.only(frozenset({prompt.prompt}))


def _objects_of(prompt: PromptDiff, before: ImageRows, after: ImageRows, same_iou: float) -> Iterator[GalleryObject]:
    old, new = before.annotations, after.annotations
    sizes = _sizes(before, after)
    sides = (Objects.from_rows(rows, size) for rows, size in zip((old, new), sizes, strict=True))
    for pair in pair_objects(*sides, is_text=prompt.is_text, same_iou=same_iou):
        if pair.after is not None:
            note = _note(pair, "was", None if pair.before is None else old[pair.before])
            yield gallery_object(new[pair.after], AFTER, pair.state, note)
        if pair.before is not None:
            note = _note(pair, "became", None if pair.after is None else new[pair.after])
            yield _scaled(gallery_object(old[pair.before], BEFORE, pair.state, note), *sizes)


def _note(pair: Pair, verb: str, other: Row | None) -> str:
    if pair.state == "relabelled" and other is not None:
        return f"{verb} {other['label'] or 'no label'}"[:MAX_NOTE]
    return f"overlap {pair.iou:.2f}" if pair.state == "moved" else ""


def _sizes(before: ImageRows, after: ImageRows) -> tuple[Size, Size]:
    """Of both images; that of one that could not be read is taken from the other."""
    old, new = (_size(rows.image) for rows in (before, after))
    return old or new or (0, 0), new or old or (0, 0)


def _size(image: Row) -> Size | None:
    return None if image["width"] is None else (image["width"], image["height"])


def _scaled(one: GalleryObject, before: Size, after: Size) -> GalleryObject:
    """An object of an image of another size, in the frame of what is shown."""
    if before == after:
        return one
    scale = after[0] / before[0], after[1] / before[1]
    box = one.xyxy and (one.xyxy[0] * scale[0], one.xyxy[1] * scale[1], one.xyxy[2] * scale[0], one.xyxy[3] * scale[1])
    return replace(one, xyxy=box, polygons=[_stretched(ring, scale) for ring in one.polygons])


def _stretched(values: Sequence[float], scale: tuple[float, float]) -> tuple[float, ...]:
    return tuple(value * scale[place % 2] for place, value in enumerate(values))


def _answers(before: ImageRows, after: ImageRows) -> tuple[GalleryAnswer, ...]:
    """The words of both runs, unless they are the same."""
    said = {row["prompt"]: (row["status"], row["text"]) for row in after.responses}
    others = [row for row in before.responses if (row["status"], row["text"]) != said[row["prompt"]]]
    return (*gallery_answers(after, AFTER), *gallery_answers(replace(before, responses=others), BEFORE))
