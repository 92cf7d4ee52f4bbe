"""A gallery as the one JSON object that the page's script reads, within so many bytes.

    {"layers": [{"name", "dashed"}], "prompts": [{"name", "kind"}], "labels": [{"name", "colour", "dash"}],
     "states": [name], "by": "label" | "state", "order": name, "total": images_total,
     "images": [{"name", "w", "h", "status", "code", "error", "note", "facts": [[name, value]], "src" | "gone", "more",
                 "objects": [{"p": prompt, "i": index, "l": label, "b": [xmin, ymin, xmax, ymax], "g": [[x, y, …]],
                              "f": [flag], "y": layer, "s": state, "n": note}],
                 "answers": [{"p": prompt, "y": layer, "kind", "status", "code", "error", "text", "cut", "facts"}]}]}

`prompts`, `labels`, `states` and `layers` are referred to by their place. What is empty is left out. `more` counts
objects that were left out, `cut` the characters. Long labels have their `short_label` here, as in the tables.
"""

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import orjson

from pixscribe.report.gallery import STATES, Gallery, GalleryAnswer, GalleryImage, GalleryObject
from pixscribe.report.outlines import reduced_outline
from pixscribe.report.wording import TEXT_KINDS, cut, short_label

COLOURS = 12
DASHES = 3
"""The page has so many colours for labels and ways to break a line; together they tell 36 labels apart."""

VIEW_PX = 800
"""About how large an image is looked at: outlines are drawn as exactly as that needs."""

ESCAPES = {
    b"<": b"\\u003c",
    b">": b"\\u003e",
    b"&": b"\\u0026",
    "\u2028".encode(): b"\\u2028",
    "\u2029".encode(): b"\\u2029",
}
"""What could end a `<script>`, or a line in one. All of it can only stand inside JSON strings."""


@dataclass(frozen=True, slots=True)
class EncodedGallery:
    """JSON that is safe inside a `<script>`, and how many images and pictures it holds."""

    data: bytes
    images: int
    pictures: int


def encode_gallery(gallery: Gallery, limit_bytes: int, text_limit_bytes: int) -> EncodedGallery:
    """The gallery in at most `limit_bytes`, of which all but the pictures take at most `text_limit_bytes`.

    Long answers and outlines are cut first; then images are left out, and pictures, both from the end.
    """
    told = _fitting(gallery, text_limit_bytes)
    left_bytes = limit_bytes - len(_dump(told))
    pictures = 0
    for image, source in zip(told["images"], gallery.images, strict=False):
        uri = _data_uri(source)
        if uri and len(uri) < left_bytes:
            left_bytes -= len(uri)
            pictures += 1
            image["src"] = uri
        elif uri:
            image["gone"] = "left out, so that the page stays small"
    return EncodedGallery(_dump(told), len(told["images"]), pictures)


@dataclass(frozen=True, slots=True)
class LabelStyle:
    """Which of the page's colours and line patterns a label has."""

    colour: int
    dash: int


def label_styles(counts: Mapping[str, int]) -> dict[str, LabelStyle]:
    """A look for each label, the most frequent first: twelve have colours of their own, the next ones broken lines.

    The label's own name says which colour it would like, so that it mostly has the same on every page.
    """
    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    styles: dict[str, LabelStyle] = {}
    for start in range(0, len(ranked), COLOURS):
        free = list(range(COLOURS))
        for label in ranked[start : start + COLOURS]:
            wanted = crc32(label.encode("utf-8", "replace")) % COLOURS
            colour = min(free, key=lambda each: (each - wanted) % COLOURS)
            free.remove(colour)
            styles[label] = LabelStyle(colour, start // COLOURS % DASHES)
    return styles


def styles_of(gallery: Gallery) -> dict[str, LabelStyle]:
    """The looks of all labels that are drawn."""
    shown = Counter(
        short_label(one.label)
        for image in gallery.images
        for one in image.objects
        if one.label is not None and one.xyxy is not None
    )
    return label_styles(dict(shown) | {label: gallery.label_counts.get(label, shown[label]) for label in shown})


def escape_json(data: bytes) -> bytes:
    """JSON that may stand inside a `<script>`."""
    for mark, escape in ESCAPES.items():
        data = data.replace(mark, escape)
    return data


@dataclass(frozen=True, slots=True)
class _Caps:
    """How much is told of one image."""

    text_chars: int
    objects: int
    points: int


_CAPS = (_Caps(20_000, 400, 400), _Caps(6_000, 200, 120), _Caps(2_000, 100, 60), _Caps(600, 50, 30), _Caps(150, 25, 12))
MAX_NOTE = 300
"""Letters of what is said in a few words."""
_ROOM_FOR_GONE = 64
_PLACES = frozenset("pils")


def _fitting(gallery: Gallery, limit_bytes: int) -> dict[str, Any]:
    """Everything but the pictures, as much of it as fits. Its images are those of the gallery, or the first of them."""
    for caps in _CAPS:
        told = _tell(gallery, caps)
        if len(_dump(told)) + _ROOM_FOR_GONE * len(told["images"]) <= limit_bytes:
            return told
    images = gallery.images
    while images:
        images = images[: len(images) * 3 // 4]
        told = _tell(replace(gallery, images=images), _CAPS[-1])
        if len(_dump(told)) + _ROOM_FOR_GONE * len(images) <= limit_bytes:
            break
    return told


def _tell(gallery: Gallery, caps: _Caps) -> dict[str, Any]:
    teller = _Teller(gallery, caps)
    images = [teller.image(each) for each in gallery.images]
    return {
        "layers": [_full({"name": each.name, "dashed": each.is_dashed}) for each in gallery.layers],
        "prompts": [_full({"name": name, "kind": teller.kinds.get(name)}) for name in teller.prompts],
        "labels": [
            {"name": name, "colour": style.colour, "dash": style.dash} for name, style in teller.labelled().items()
        ],
        "states": STATES,
        "by": gallery.colour_by,
        "order": gallery.order,
        "total": gallery.images_total,
        "images": images,
    }


class _Teller:
    """Says of one image after the other what the script needs; labels and prompts are said once, and then numbered."""

    def __init__(self, gallery: Gallery, caps: _Caps) -> None:
        self.prompts: dict[str, int] = {}
        self.kinds: dict[str, str] = {}
        self._labels: dict[str, int] = {}
        self._styles = styles_of(gallery)
        self._texts = {each.prompt for image in gallery.images for each in image.answers if each.kind in TEXT_KINDS}
        self._caps = caps

    def labelled(self) -> dict[str, LabelStyle]:
        """The labels in the order of their numbers. Those that nothing is drawn of have no colour: -1."""
        return {name: self._styles.get(name, LabelStyle(-1, 0)) for name in self._labels}

    def image(self, image: GalleryImage) -> dict[str, Any]:
        shown = image.objects[: self._caps.objects]
        tolerance_px = max(image.width or 0, image.height or 0) / VIEW_PX / 2
        return _full(
            {
                "name": image.file_name,
                "w": image.width,
                "h": image.height,
                "status": image.status,
                "code": image.error_code,
                "error": image.error and image.error[: self._caps.text_chars],
                "note": cut(image.note, MAX_NOTE),
                "gone": None if image.picture else cut(image.no_picture, MAX_NOTE),
                "facts": self._facts(image.facts),
                "more": len(image.objects) - len(shown),
                "objects": [self._object(each, tolerance_px) for each in shown],
                "answers": [self._answer(each) for each in image.answers],
            }
        )

    def _object(self, one: GalleryObject, tolerance_px: float) -> dict[str, Any]:
        points = self._caps.points // max(1, len(one.polygons))
        return _full(
            {
                "p": self._prompt(one.prompt),
                "i": one.index,
                "l": self._label(one),
                "b": one.xyxy and [round(edge, 2) for edge in one.xyxy],
                "g": [reduced_outline(ring, tolerance_px, points) for ring in one.polygons if len(ring) >= 6],
                "f": list(one.flags),
                "y": one.layer,
                "s": STATES.index(one.state) if one.state else None,
                "n": cut(one.note, MAX_NOTE),
            }
        )

    def _answer(self, answer: GalleryAnswer) -> dict[str, Any]:
        text = answer.text
        self.kinds[answer.prompt] = answer.kind
        return _full(
            {
                "p": self._prompt(answer.prompt),
                "y": answer.layer,
                "kind": answer.kind,
                "status": answer.status,
                "code": answer.error_code,
                "error": answer.error and answer.error[: self._caps.text_chars],
                "text": text if text is None else text[: self._caps.text_chars],
                "cut": max(0, len(text or "") - self._caps.text_chars),
                "facts": self._facts(answer.facts),
            }
        )

    def _prompt(self, name: str) -> int:
        return self.prompts.setdefault(name, len(self.prompts))

    def _label(self, one: GalleryObject) -> int | None:
        """The words of a text are as long as its answer may be."""
        if one.label is None:
            return None
        is_text = one.prompt in self._texts
        name = cut(one.label, self._caps.text_chars) if is_text else short_label(one.label)
        return self._labels.setdefault(name, len(self._labels))

    def _facts(self, facts: Mapping[str, str]) -> list[tuple[str, str]]:
        return [(name, cut(value, self._caps.text_chars)) for name, value in facts.items()]


def _full(values: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing. 0 says nothing of a count, and something of a place in a list."""
    return {name: value for name, value in values.items() if value or (name in _PLACES and value == 0)}


def _data_uri(image: GalleryImage) -> str:
    if image.picture is None:
        return ""
    return f"data:{image.picture.mime_type};base64,{base64.b64encode(image.picture.data).decode('ascii')}"


def _dump(value: dict[str, Any]) -> bytes:
    try:
        return escape_json(orjson.dumps(value))
    except orjson.JSONEncodeError:  # lone surrogates, which no table holds, but a file of somebody else may
        return escape_json(orjson.dumps(_clean(value)))


def _clean(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode("utf-8")
        case dict():
            return {key: _clean(each) for key, each in value.items()}
        case list() | tuple():
            return [_clean(each) for each in value]
    return value
