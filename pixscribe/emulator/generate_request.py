"""The body of POST models/*:generateContent, checked as strictly as that of Interactions.

Names of members may be in camelCase or snake_case, as JSON of a proto may. What is refused is refused in the words of
Interactions; `generate` puts it into those of this endpoint. Source: Gemini API docs, "Generating content".
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from pixscribe.emulator.checks import Check, absent, each, integer, join, number, one_of, record, string, text
from pixscribe.emulator.media import IMAGE_TYPES, TOKENS_BY_RESOLUTION
from pixscribe.emulator.replies import Refused, invalid, model_missing, rpc_error, rpc_type
from pixscribe.emulator.request import (
    MAX_OUTPUT_TOKENS,
    Asked,
    ImagePart,
    check_level,
    default_level,
    is_offered,
    parse_object,
)
from pixscribe.emulator.schema import check_schema

_Object = dict[str, Any]


def read_generate(raw: bytes, model: str, version: str) -> Asked:
    """Raises `Refused`: 400 for what is wrong with the body, 404 for the model, 501 for what is not emulated."""
    return understand(parse_object(raw), model, version)


def understand(body: Any, model: str, version: str) -> Asked:
    """The same of a body that was parsed already, such as a line of a batch."""
    if not is_offered(model, version):
        raise Refused(model_missing(model, version))
    request = well_formed(body, "")
    if request.get("model", f"models/{model}") != f"models/{model}":
        raise invalid("The model of the body is not that of the path.")
    config = request.get("generationConfig", {})
    level = _thinking_level(config.get("thinkingConfig", {}), model)
    check_level(model, level)
    return Asked(
        model=model,
        texts=tuple(part["text"] for part in _user_parts(request) if "text" in part),
        images=tuple(_image(part, config) for part in _user_parts(request) if "text" not in part),
        schema=_schema(config),
        as_json=config.get("responseMimeType") == "application/json",
        thinking_level=level,
        max_output_tokens=config.get("maxOutputTokens", MAX_OUTPUT_TOKENS),
        stop_sequences=tuple(config.get("stopSequences", ())),
        store=False,
        service_tier=request.get("serviceTier", "standard").lower(),
        input=None,
    )


def well_formed(body: Any, path: str) -> _Object:
    """The body with its names in camelCase. Raises `Refused` for what no parser of the API's messages would take."""
    request = _camel_case(body, path)
    _BODY(path, request)
    return dict(request)


def _camel_case(value: Any, path: str) -> Any:
    """Every name in camelCase, but inside a JSON Schema, where names are the caller's."""
    if isinstance(value, list):
        return [_camel_case(member, f"{path}[{index}]") for index, member in enumerate(value)]
    if not isinstance(value, dict):
        return value
    return {
        name: member if name in ("responseSchema", "responseJsonSchema") else _camel_case(member, join(path, name))
        for name, member in camel_names(value, path).items()
    }


def camel_names(members: Mapping[str, Any], path: str) -> _Object:
    """The same members, by names in camelCase. Raises `Refused` where one is given in both spellings."""
    renamed: _Object = {}
    for key, member in members.items():
        name = _camel(key)
        if name in renamed:
            raise invalid(f"Invalid JSON payload received. '{name}' is given twice at '{path}'.")
        renamed[name] = member
    return renamed


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name) if "_" in name else name


def _user_parts(request: _Object) -> list[_Object]:
    contents = request["contents"]
    if contents[-1].get("role", "user") != "user":
        raise invalid("Please ensure that the last turn is one of the user.")
    parts = [part for content in contents if content.get("role", "user") == "user" for part in content["parts"]]
    if all("text" in part and not part["text"].strip() for part in parts):
        raise invalid("Unable to submit request because it must have a text parameter that is not empty.")
    return parts


def _image(part: _Object, config: _Object) -> ImagePart:
    level = part.get("mediaResolution", {}).get("level") or config.get("mediaResolution", "MEDIA_RESOLUTION_HIGH")
    resolution = level.removeprefix("MEDIA_RESOLUTION_").lower()
    if "fileData" in part:
        return ImagePart(part["fileData"]["mimeType"], None, part["fileData"]["fileUri"], resolution)
    # JSON of a proto takes both alphabets of base64, and the SDK writes the one of URLs
    data = part["inlineData"]["data"].replace("-", "+").replace("_", "/")
    return ImagePart(part["inlineData"]["mimeType"], data + "=" * (-len(data) % 4), None, resolution)


def _thinking_level(thinking: _Object, model: str) -> str:
    level, budget = thinking.get("thinkingLevel"), thinking.get("thinkingBudget")
    if level is not None and budget is not None:
        raise invalid("You can only set one of thinking budget and thinking level.")
    if level is not None:
        return str(level).lower()
    return "minimal" if budget == 0 else default_level(model)


def _schema(config: _Object) -> Mapping[str, Any] | None:
    if "responseSchema" in config and "responseJsonSchema" in config:
        raise invalid("Only one of 'response_schema' and 'response_json_schema' can be set.")
    schema: Mapping[str, Any] | None = config.get("responseJsonSchema")
    if "responseSchema" in config:
        schema = _json_schema("generation_config.response_schema", config["responseSchema"])
        check_schema("generation_config.response_schema", schema)
    if schema is not None and config.get("responseMimeType") != "application/json":
        raise invalid("A response schema requires the response_mime_type 'application/json'.")
    return schema


def _json_schema(path: str, given: Any) -> _Object:
    """The JSON Schema that says the same as one of OpenAPI's subset, whose types are in capitals."""
    if not isinstance(given, dict):
        raise invalid(f"Invalid schema at '{path}': expected an object.")
    schema: _Object = {}
    for key, value in given.items():
        name = _camel(key)
        if name not in _SCHEMA_NAMES:
            raise unknown_name(path, key)
        if name not in _SAID_ONLY:
            schema[name] = _converted(f"{path}.{key}", name, value)
    if given.get("nullable") and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    return schema


def _converted(path: str, name: str, value: Any) -> Any:
    if name == "properties" and isinstance(value, dict):
        return {key: _json_schema(f"{path}.{key}", child) for key, child in value.items()}
    if name == "items":
        return _json_schema(path, value)
    if name == "anyOf" and isinstance(value, list):
        return [_json_schema(f"{path}[{index}]", child) for index, child in enumerate(value)]
    if name == "type" and isinstance(value, str):
        return value.lower()
    # an int64 may be a string
    return int(value) if name in _COUNTS and isinstance(value, str) and re.fullmatch(r"\d{1,18}", value) else value


_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_SAID_ONLY = ("nullable", "pattern", "example", "default")
_SCHEMA_NAMES = frozenset(
    {"type", "format", "title", "description", "enum", "properties", "required", "items", "anyOf", "propertyOrdering"}
    | {"minimum", "maximum", *_COUNTS, *_SAID_ONLY}
)


def unknown_name(path: str, name: str) -> Refused:
    """The 400 for a member that there is not, with the field in its details."""
    where = f" at '{path}'" if path else ""
    message = f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.'
    violations = [{"field": path, "description": message}] if path else [{"description": message}]
    details = [{"@type": rpc_type("BadRequest"), "fieldViolations": violations}]
    return Refused(rpc_error(400, "INVALID_ARGUMENT", message, details))


_message = functools.partial(record, refuse=unknown_name)


def _part(path: str, value: Any) -> None:
    _PART(path, value)
    kinds = [name for name in ("text", "inlineData", "fileData") if name in value]
    if len(kinds) != 1:
        raise invalid(f"Invalid value at '{path}' (oneof): exactly one of text, inline_data and file_data must be set.")
    if "mediaResolution" in value and kinds == ["text"]:
        raise invalid(f"Invalid value at '{path}.media_resolution': this part is no medium.")


def _mime_type(path: str, value: Any) -> None:
    string(path, value)
    if value not in IMAGE_TYPES:
        raise invalid(f"Unsupported MIME type: {value}")


def _either_case(*values: str) -> Check:
    return one_of(*values, *(value.upper() for value in values))


_LEVELS = tuple(f"MEDIA_RESOLUTION_{name.upper()}" for name in TOKENS_BY_RESOLUTION)
_PART = _message(
    {
        "text": string,
        "inlineData": _message({"mimeType": _mime_type, "data": text}, required=["mimeType", "data"]),
        "fileData": _message({"mimeType": _mime_type, "fileUri": text}, required=["mimeType", "fileUri"]),
        "mediaResolution": _message({"level": one_of(*_LEVELS)}, required=["level"]),
        "thoughtSignature": string,
        **{
            name: absent(f"'{name}'")
            for name in ("thought", "functionCall", "functionResponse", "executableCode", "codeExecutionResult")
        },
        "videoMetadata": absent("media other than images"),
    }
)
_CONTENT = _message({"role": one_of("user", "model"), "parts": each(_part, least=1)}, required=["parts"])
_INSTRUCTION_PART = _message({"text": string}, required=["text"])
_INSTRUCTION = _message({"role": string, "parts": each(_INSTRUCTION_PART, least=1)}, required=["parts"])
_THINKING = {
    "thinkingLevel": _either_case("minimal", "low", "medium", "high"),
    "thinkingBudget": integer(-1, 32_768),
    "includeThoughts": lambda path, value: absent("thoughts in the answer")(path, value) if value else None,
}
_CONFIG: dict[str, Check] = {
    "responseMimeType": one_of("application/json", "text/plain"),
    "responseSchema": lambda path, value: None,  # `_schema` checks it when it is JSON Schema
    "responseJsonSchema": check_schema,
    "responseModalities": each(_either_case("text")),
    "thinkingConfig": _message(_THINKING),
    "mediaResolution": one_of(*(level for level in _LEVELS if not level.endswith("ULTRA_HIGH"))),
    "maxOutputTokens": integer(1, MAX_OUTPUT_TOKENS),
    "candidateCount": integer(1, 1),
    "seed": integer(-(2**31), 2**31 - 1),
    "stopSequences": each(text, most=5),
    "temperature": number(0, 2),
    "topP": number(0, 1),
    "topK": number(1, 1000),
    **dict.fromkeys(("presencePenalty", "frequencyPenalty"), number(-2, 2)),
    **{
        name: absent(f"'generation_config.{name}'")
        for name in ("responseFormat", "responseLogprobs", "logprobs", "speechConfig", "imageConfig")
    },
}
_CATEGORIES = tuple(
    f"HARM_CATEGORY_{name}"
    for name in ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT", "CIVIC_INTEGRITY")
)
_THRESHOLDS = one_of("BLOCK_NONE", "BLOCK_ONLY_HIGH", "BLOCK_MEDIUM_AND_ABOVE", "BLOCK_LOW_AND_ABOVE", "OFF")
_SAFETY = _message({"category": one_of(*_CATEGORIES), "threshold": _THRESHOLDS}, required=["category", "threshold"])
_BODY = _message(
    {
        "model": string,
        "contents": each(_CONTENT, least=1),
        "systemInstruction": _INSTRUCTION,
        "generationConfig": _message(_CONFIG),
        "safetySettings": each(_SAFETY),
        "serviceTier": _either_case("standard", "flex", "priority"),
        **{name: absent(f"'{name}'") for name in ("tools", "toolConfig", "cachedContent")},
    },
    required=["contents"],
)
