"""What the emulator says of what it sees: in the words of the schema if there is one, else as the prompt asks."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import orjson
from numpy.typing import NDArray

from pixscribe.emulator.request import Asked
from pixscribe.emulator.schema import resolve
from pixscribe.emulator.vision import PALETTE, SHAPES, Scene, Seen

_MASK_SIDE_PX = 256


@dataclass(slots=True)
class Draft:
    """An answer before it is sent.

    `items` are the objects inside `value`, and the same dicts, so that both change together. `text`
    is None when the model said nothing; `has_steps` is False when even the list of steps is missing.
    """

    value: Any
    items: list[dict[str, Any]] = field(default_factory=list)
    text: str | None = ""
    status: str = "completed"
    errors: list[dict[str, str]] = field(default_factory=list)
    has_steps: bool = True

    def say(self, value: Any) -> None:
        """Make `value` the answer, as JSON."""
        self.value = value
        self.text = orjson.dumps(value).decode()


def compose(asked: Asked, scenes: Sequence[Scene], *, png_masks: bool) -> Draft:
    """Boxes are those of the first image; a sentence speaks of all."""
    scene = _named_in(asked.text, scenes[0]) if scenes else ()
    speaker = _Speaker(asked, [_named_in(asked.text, s) for s in scenes], scene, png_masks=png_masks)
    draft = Draft(value=None, items=speaker.items)
    if asked.schema is not None:
        draft.say(speaker.fill(asked.schema))
    elif re.search(r"\b(mask|segment|outline|contour|detect|box|bounding|locate)", asked.text, re.IGNORECASE):
        with_mask = re.search(r"\b(mask|segment|outline|contour)", asked.text, re.IGNORECASE) is not None
        draft.say([speaker.item(seen, seen.label, with_mask=with_mask) for seen in scene])
        if not asked.as_json:
            draft.text = f"```json\n{draft.text}\n```"
    elif asked.as_json:
        draft.say({"caption": speaker.sentence()})
    else:
        draft.value = draft.text = speaker.sentence()
    return draft


class _Speaker:
    """Fills a schema with what is seen; collects the objects it speaks of in `items`."""

    def __init__(self, asked: Asked, scenes: Sequence[Scene], scene: Scene, *, png_masks: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self._asked, self._scenes, self._scene = asked, scenes, scene
        self._png_masks = png_masks
        self._root = asked.schema or {}

    def fill(self, schema: Mapping[str, Any], name: str = "") -> Any:
        """A value of this schema. Objects with `box_2d`, `caption`, `answer`, `label` and `labels` are understood."""
        schema = resolve(schema, self._root)
        if "anyOf" in schema or "oneOf" in schema:
            return self.fill((schema.get("anyOf") or schema["oneOf"])[0], name)
        kind = schema.get("type")
        kind = kind[0] if isinstance(kind, list) else kind
        if kind == "object" or "properties" in schema:
            return {
                key: self.fill(child, key)
                for key, child in schema.get("properties", {}).items()
                if key in _needed(schema)
            }
        if kind == "array":
            return self._fill_array(schema, name)
        if kind == "string" or "enum" in schema:
            return self._fill_string(schema, name)
        return {"boolean": bool(self._scene), "null": None}.get(str(kind), len(self._scene))

    def item(
        self, seen: Seen, label: Any, *, with_mask: bool = False, schema: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """One object: box y first, polygon x first, integers 0-1000 of the whole image."""
        x0, y0, x1, y1 = (round(1000 * edge) for edge in seen.box)
        known: dict[str, Any] = {"box_2d": [y0, x0, y1, x1], "label": label}
        if with_mask:
            as_string = schema is not None and resolve(schema["mask"], self._root).get("type") == "string"
            known["mask"] = _png_mask(seen) if self._png_masks or as_string else _polygon(seen)
        if schema is not None:
            known = {key: known[key] if key in known else self.fill(child, key) for key, child in schema.items()}
        self.items.append(known)
        return known

    def sentence(self) -> str:
        pictures = [_enumerate([seen.label for seen in scene]) for scene in self._scenes]
        if not pictures:
            return "There is no picture to look at."
        if len(pictures) == 1:
            return f"A picture of {pictures[0]} on a plain light background."
        return " ".join(f"Picture {number} shows {what}." for number, what in enumerate(pictures, start=1))

    def _fill_array(self, schema: Mapping[str, Any], name: str) -> list[Any]:
        member = resolve(schema.get("items", {}), self._root)
        properties = member.get("properties", {})
        if "box_2d" in properties:
            return self._fill_boxes(properties)
        if name in ("labels", "label", "tags", "classes") or "enum" in member:
            return list(dict.fromkeys(label for seen in self._scene if (label := _choose(seen, member)) is not None))
        return [self.fill(member, name) for _ in range(min(schema.get("minItems", 0), 100))]

    def _fill_boxes(self, properties: Mapping[str, Any]) -> list[Any]:
        label_schema = resolve(properties.get("label", {}), self._root)
        named = [(seen, _choose(seen, label_schema)) for seen in self._scene]
        return [
            self.item(seen, label, with_mask="mask" in properties, schema=properties)
            for seen, label in named
            if label is not None
        ]

    def _fill_string(self, schema: Mapping[str, Any], name: str) -> Any:
        if "enum" in schema:
            chosen = (_choose(seen, schema) for seen in self._scene)
            return next((value for value in chosen if value is not None), schema["enum"][0])
        if name in ("label", "name", "class"):
            return self._scene[0].label if self._scene else "nothing"
        if re.search(r"\bhow many\b", self._asked.text, re.IGNORECASE):
            return str(len(self._scene))
        return self.sentence()


def _needed(schema: Mapping[str, Any]) -> set[str]:
    """Optional members are left out only where a schema refers to itself, or filling would not end."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    required = set(schema.get("required", ()))
    return required | {key for key, child in properties.items() if "$ref" not in child}


def _named_in(text: str, scene: Scene) -> Scene:
    """The objects whose colour or shape the prompt names ("every red shape", "circles"), or all if it names none."""
    mentions = [(m["colour"], m["shape"] or m["shape_alone"]) for m in _MENTION.finditer(text.lower())]
    if not mentions:
        return scene
    return tuple(s for s in scene if any(c in (None, s.colour) and f in (None, s.shape) for c, f in mentions))


_COLOURS = "|".join(PALETTE)
_NAMED_SHAPES = "|".join(shape for shape in SHAPES if shape != "shape")
_MENTION = re.compile(
    rf"\b(?P<colour>{_COLOURS})\b(?:\s+(?P<shape>{_NAMED_SHAPES})s?\b)?|\b(?P<shape_alone>{_NAMED_SHAPES})s?\b"
)


def _choose(seen: Seen, schema: Mapping[str, Any]) -> Any:
    """The object's label, or the enum's value that shares most words with it; None if none shares any."""
    if "enum" not in schema:
        return seen.label
    words = set(seen.label.split())
    shared = [len(words & _words(str(value))) for value in schema["enum"]]
    return schema["enum"][shared.index(max(shared))] if max(shared) else None


def _words(value: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall(r"\w+", value.lower())}


def _polygon(seen: Seen) -> list[list[int]]:
    points = np.rint(seen.outline * 1000).astype(int).tolist()
    return [point for index, point in enumerate(points) if point != points[index - 1]]


def _png_mask(seen: Seen) -> str:
    """A probability map of the inside of the box, as 2.5 models sent it: 255 inside, 0 outside, grey on the rim."""
    png = cv2.imencode(".png", _probabilities(seen))[1].tobytes()
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _probabilities(seen: Seen) -> NDArray[np.uint8]:
    fine = 4 * _MASK_SIDE_PX
    # the box as answered, in whole thousandths: it is what the reader will stretch the map over
    low, high = (np.rint(1000 * np.array(seen.box[i : i + 2])) / 1000 for i in (0, 2))
    points = (seen.outline - low) / np.maximum(high - low, 1e-3) * fine
    canvas = np.zeros((fine, fine), np.uint8)
    cv2.fillPoly(canvas, [np.rint(points * 16 - 8).astype(np.int32)], 255, shift=4)
    return cv2.resize(canvas, (_MASK_SIDE_PX, _MASK_SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _enumerate(labels: Sequence[str]) -> str:
    named = [f"{'an' if label[0] in 'aeiou' else 'a'} {label}" for label in labels]
    if len(named) < 2:
        return named[0] if named else "nothing in particular"
    return f"{', '.join(named[:-1])} and {named[-1]}"
