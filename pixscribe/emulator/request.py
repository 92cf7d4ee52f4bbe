"""The body of POST /interactions, checked as strictly as the reference is documented, or more so."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pixscribe.emulator.checks import (
    Check,
    absent,
    boolean,
    each,
    integer,
    number,
    one_of,
    record,
    string,
    tagged,
    text,
    unknown,
)
from pixscribe.emulator.media import IMAGE_TYPES, TOKENS_BY_RESOLUTION
from pixscribe.emulator.replies import Refused, interactions_error, invalid
from pixscribe.emulator.schema import check_schema

MAX_OUTPUT_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One image of a question; exactly one of `data` (base64) and `uri` is set."""

    mime_type: str
    data: str | None
    uri: str | None
    resolution: str

    @property
    def tokens(self) -> int:
        return TOKENS_BY_RESOLUTION[self.resolution]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that may be answered. `schema` is None unless one was given; `as_json`: JSON was asked for."""

    model: str
    texts: tuple[str, ...]
    images: tuple[ImagePart, ...]
    schema: Mapping[str, Any] | None
    as_json: bool
    thinking_level: str
    max_output_tokens: int
    stop_sequences: tuple[str, ...]
    store: bool
    service_tier: str
    input: Any

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    @property
    def text_tokens(self) -> int:
        return -(-sum(map(len, self.texts)) // 4)

    @property
    def image_tokens(self) -> int:
        return sum(image.tokens for image in self.images)


def read_question(raw: bytes, version: str) -> Asked:
    """Raises `Refused`: 400 for what is wrong with the body, 404 for the model, 501 for what is not emulated."""
    body = parse_object(raw)
    if "outputs" in body:
        raise invalid("The legacy Interactions API schema is no longer supported. Please migrate to the new schema.")
    (_BODY if version == "v1beta" else _BODY_V1)("", body)
    _check_combinations(body)
    _check_model(body["model"], version)
    return _understand(body)


def is_offered(model: str, version: str) -> bool:
    """Whether new users may ask this model; the `-latest` aliases are only in v1beta."""
    known = re.fullmatch(r"gemini-[a-z0-9.-]{1,80}", model) is not None and not model.startswith("gemini-2.5")
    return known and not (model.endswith("-latest") and version == "v1")


def parse_object(raw: bytes) -> dict[str, Any]:
    """Raises `Refused` (400) for what is no JSON object."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as cause:
        raise invalid(f"Invalid JSON payload received: {cause}.") from cause
    if not isinstance(body, dict):
        raise invalid("Invalid JSON payload received: expected an object.")
    return body


def _check_combinations(body: Mapping[str, Any]) -> None:
    if "agent" in body or "model" not in body:
        raise invalid("Exactly one of 'model' and 'agent' must be given; the emulator has models only.")
    if body.get("store") is False and (body.get("background") or "previous_interaction_id" in body):
        raise invalid("'store' must be true with 'background' or 'previous_interaction_id'.")
    for name in ("stream", "background", "previous_interaction_id"):
        if body.get(name):
            absent(f"'{name}'")(name, body[name])


def _understand(body: Mapping[str, Any]) -> Asked:
    contents = _contents(body.get("input"))
    if not contents or all(c["type"] == "text" and not c["text"].strip() for c in contents):
        raise invalid("Missing required parameter 'input'.")
    config = body.get("generation_config", {})
    level = config.get("thinking_level", default_level(body["model"]))
    check_level(body["model"], level)
    entry = _text_format(body.get("response_format"))
    return Asked(
        model=body["model"],
        texts=tuple(c["text"] for c in contents if c["type"] == "text"),
        images=tuple(_image(c) for c in contents if c["type"] == "image"),
        schema=entry.get("schema"),
        as_json=entry.get("mime_type", body.get("response_mime_type")) == "application/json",
        thinking_level=level,
        max_output_tokens=config.get("max_output_tokens", MAX_OUTPUT_TOKENS),
        stop_sequences=tuple(config.get("stop_sequences", ())),
        store=body.get("store", True),
        service_tier=body.get("service_tier", "standard"),
        input=body["input"],
    )


def _contents(given: Any) -> list[dict[str, Any]]:
    """The user's content in any of the four documented forms of `input`; checks them on the way."""
    if isinstance(given, str):
        return [{"type": "text", "text": given}]
    if isinstance(given, dict):
        _CONTENT("input", given)
        return [given]
    if isinstance(given, list) and any(isinstance(m, dict) and m.get("type") in _STEP_TYPES for m in given):
        each(_STEP)("input", given)
        return [content for step in given if step["type"] == "user_input" for content in step["content"]]
    each(_CONTENT)("input", given)
    return list(given)


def _image(content: Mapping[str, Any]) -> ImagePart:
    if ("data" in content) == ("uri" in content):
        raise invalid("Exactly one of 'data' and 'uri' must be given for an image.")
    resolution = content.get("resolution", "high")
    return ImagePart(content["mime_type"], content.get("data"), content.get("uri"), resolution)


def _text_format(given: Any) -> Mapping[str, Any]:
    entries = given if isinstance(given, list) else [given] if given is not None else []
    if len(entries) > 1:
        raise invalid("Only one text entry is supported in 'response_format'.")
    if entries and "schema" in entries[0] and entries[0].get("mime_type") != "application/json":
        raise invalid("'response_format.schema' requires the mime_type 'application/json'.")
    return entries[0] if entries else {}


def _check_model(model: str, version: str) -> None:
    if not is_offered(model, version):
        message = f"Model '{model}' was not found, or is no longer available to new users."
        raise Refused(interactions_error(404, "model_not_found", message))


_NO_MINIMAL = ("gemini-3.7-flash", "gemini-3.8-flash", "gemini-3.1-pro")


def default_level(model: str) -> str:
    """How much a model thinks when nothing is said about it."""
    if "flash-lite" in model:
        return "minimal"
    return "high" if model.startswith(("gemini-3.1-pro", "gemini-3-flash")) else "medium"


def check_level(model: str, level: str) -> None:
    """Raises `Refused` (400) for a level that this model has not."""
    levels = ("low", "medium", "high") if model.startswith(_NO_MINIMAL) else ("minimal", "low", "medium", "high")
    if level not in levels:
        supported = ", ".join(levels)
        raise invalid(f"Thinking level '{level}' is not supported for model '{model}'. Supported values: {supported}.")


def _string_map(path: str, value: Any) -> None:
    """At most 64 labels of 63 lowercase letters, digits, underscores and dashes; keys begin with a letter."""
    if not isinstance(value, dict) or len(value) > 64:
        raise invalid(f"Invalid value at '{path}': expected an object of at most 64 strings.")
    for key, member in value.items():
        string(f"{path}.{key}", member)
        if not re.fullmatch(r"[^\W\d_][\w-]{0,62}", key) or not re.fullmatch(r"[\w-]{0,63}", member):
            raise invalid(f"Invalid label at '{path}.{key}'.")
        if key != key.lower() or member != member.lower():
            raise invalid(f"Invalid label at '{path}.{key}': lowercase only.")


def _response_format(path: str, value: Any) -> None:
    (each(_FORMAT_ENTRY, least=1) if isinstance(value, list) else _FORMAT_ENTRY)(path, value)


def _any_input(path: str, value: Any) -> None:
    if not isinstance(value, str | dict | list):
        raise invalid(f"Invalid value at '{path}': expected a string, an object or an array.")


_KIND = one_of("text", "image", "audio", "video", "document", "user_input", "model_output", "thought")
_TEXT = record({"type": _KIND, "text": string, "annotations": each(lambda p, v: None)}, required=["text"])
_IMAGE = record(
    {
        "type": _KIND,
        "mime_type": one_of(*sorted(IMAGE_TYPES)),
        "data": text,
        "uri": text,
        "resolution": one_of(*TOKENS_BY_RESOLUTION),
    },
    required=["mime_type"],
)
_OTHER_MEDIA = dict.fromkeys(("audio", "video", "document"), absent("media other than images"))
_CONTENT = tagged({"text": _TEXT, "image": _IMAGE, **_OTHER_MEDIA})
_STEP_TYPES = frozenset({"user_input", "model_output", "thought"})
_TURN = record({"type": _KIND, "content": each(_CONTENT, least=1)}, required=["content"])
_THOUGHT = record({"type": _KIND, "signature": string, "summary": each(_CONTENT)})
_STEP = tagged({"user_input": _TURN, "model_output": _TURN, "thought": _THOUGHT})
_FORMAT_ENTRY = record(
    {"type": one_of("text"), "mime_type": one_of("application/json", "text/plain"), "schema": check_schema},
    required=["type"],
)
_GENERATION: dict[str, Check] = {
    "thinking_level": one_of("minimal", "low", "medium", "high", "xhigh"),
    "thinking_summaries": one_of("auto", "none"),
    "max_output_tokens": integer(1, MAX_OUTPUT_TOKENS),
    "seed": integer(-(2**31), 2**31 - 1),
    "stop_sequences": each(text, most=5),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    **{
        name: absent(f"'generation_config.{name}'")
        for name in ("tool_choice", "speech_config", "image_config", "video_config", "transcription_config")
    },
}


def _refuse_safety(path: str, value: Any) -> None:
    raise invalid("Custom safety settings are not supported.")


_FIELDS: dict[str, Check] = {
    "model": string,
    "agent": string,
    "input": _any_input,
    "system_instruction": string,
    "response_format": _response_format,
    "response_mime_type": one_of("application/json", "text/plain"),
    "response_modalities": each(one_of("text")),
    "generation_config": record(_GENERATION),
    "store": boolean,
    "stream": boolean,
    "background": boolean,
    "previous_interaction_id": text,
    "service_tier": one_of("standard", "flex", "priority"),
    "labels": _string_map,
    "safety_settings": _refuse_safety,
    **{
        name: absent(f"'{name}'")
        for name in ("tools", "webhook_config", "continuation_token", "environment", "cached_content")
    },
}
_BODY = record(_FIELDS)


def _unknown_in_v1(path: str, value: Any) -> None:
    raise unknown("", path)


_BODY_V1 = record(
    {
        **_FIELDS,
        "generation_config": record({**_GENERATION, "temperature": _unknown_in_v1, "top_p": _unknown_in_v1}),
        "service_tier": _unknown_in_v1,
        "labels": _unknown_in_v1,
    }
)
