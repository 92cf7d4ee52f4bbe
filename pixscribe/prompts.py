"""What is asked: the default words and the answer schema of each kind of prompt.

The texts never spell out the JSON that is wanted: the schema does, and saying it twice makes structured output repeat
itself (Gemini API docs, "Troubleshooting"). The schemas require every field and set no `minItems` or `maxItems`, which
the API answers with a bare 400 once a list holds objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixscribe.errors import ConfigError
from pixscribe.types import Kind

LABELS_PLACEHOLDER = "{labels}"

_OPEN_TEXTS: Mapping[Kind, str] = {
    "detect": "Detect every prominent object in the image.",
    "segment": "Segment every prominent object in the image, each instance on its own.",
    "caption": "Describe the image in one or two plain sentences.",
    "classify": "Name the classes that the image as a whole belongs to.",
}
_CLOSED_TEXTS: Mapping[Kind, str] = {
    "detect": "Detect every instance of these classes in the image: {labels}.",
    "segment": "Segment every instance of these classes in the image, each on its own: {labels}.",
    "classify": "Choose the classes that apply to the image as a whole from this list: {labels}.",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, ready to send.

    `schema` is the JSON Schema for `response_format.schema`; `labels` the closed vocabulary, empty when it is open.
    """

    name: str
    kind: Kind
    text: str
    schema: Mapping[str, Any]
    labels: tuple[str, ...]


def make_question(name: str, kind: Kind, text: str | None, labels: Sequence[str]) -> Question:
    """Complete a prompt of the config; `text` None takes the default of the kind.

    `{labels}` becomes the labels joined with ", "; every other brace stays as it is. A text without it is sent
    unchanged, the schema then carries the labels alone. Raises `ConfigError` for `ask` without a text, and for a text
    with `{labels}` when there are none.
    """
    wanted = _default_text(name, kind, bool(labels)) if text is None else text
    if LABELS_PLACEHOLDER in wanted and not labels:
        raise ConfigError(f'prompt "{name}": text contains {LABELS_PLACEHOLDER}, but labels is empty')
    sent = wanted.replace(LABELS_PLACEHOLDER, ", ".join(labels))
    return Question(name, kind, sent, _schema(kind, labels), tuple(labels))


def _default_text(name: str, kind: Kind, closed: bool) -> str:
    if closed and kind in _CLOSED_TEXTS:
        return _CLOSED_TEXTS[kind]
    if kind not in _OPEN_TEXTS:
        raise ConfigError(f'prompt "{name}": kind "{kind}" has no default text; set text to the question')
    return _OPEN_TEXTS[kind]


def _schema(kind: Kind, labels: Sequence[str]) -> dict[str, Any]:
    match kind:
        case "detect":
            return _object({"boxes": _list_of(_object({"box_2d": _box(), "label": _object_label(labels)}))})
        case "segment":
            fields = {"box_2d": _box(), "mask": _polygon(), "label": _object_label(labels)}
            return _object({"boxes": _list_of(_object(fields))})
        case "caption":
            return _object({"caption": _string("What the image shows.")})
        case "classify":
            return _object({"labels": _list_of(_string("A class that applies to the image.", labels))})
        case "ask":
            return _object({"answer": _string("The answer to the question.", labels)})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list_of(items: dict[str, Any], description: str | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": items}
    return schema if description is None else schema | {"description": description}


def _string(description: str, choices: Sequence[str] = ()) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "description": description}
    return schema | {"enum": list(choices)} if choices else schema


def _box() -> dict[str, Any]:
    return _list_of({"type": "integer"}, "The box around the object as [ymin, xmin, ymax, xmax], normalized to 0-1000.")


def _polygon() -> dict[str, Any]:
    return _list_of(
        _list_of({"type": "integer"}),
        "The outline of the object as a polygon of [x, y] points, normalized to 0-1000 of the whole image.",
    )


def _object_label(labels: Sequence[str]) -> dict[str, Any]:
    return _string("What the object is." if labels else "A short descriptive label of the object.", labels)
