"""What creates a batch: the body of POST models/*:batchGenerateContent, and the requests in it or in its file.

All of it is checked at once, as a parser of the API's messages would, and one bad request refuses the job. What such
a parser lets pass, a model or an image that cannot be used, is the matter of the one request. Source: Gemini API
docs, "Batch API".
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pixscribe.emulator.call import MAX_BODY_BYTES
from pixscribe.emulator.checks import Check, absent, each, record, string, text
from pixscribe.emulator.generate_request import camel_names, understand, unknown_name, well_formed
from pixscribe.emulator.replies import Refused, invalid
from pixscribe.emulator.request import parse_object
from pixscribe.emulator.spool import Spool

_MOST_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Lines:
    """The requests of a job, one JSON object a line. `starts` has one entry more than there are lines."""

    text: Spool
    starts: "array[int]"

    def __len__(self) -> int:
        return len(self.starts) - 1

    def read(self, number: int) -> dict[str, Any]:
        """`request`, with `key` in a file, and `metadata` if inline requests have any."""
        line: dict[str, Any] = orjson.loads(self.text.read(self.starts[number], self.starts[number + 1]))
        return line


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a job is made of: exactly one of `file_id` and `lines` is there."""

    display_name: str
    priority: str | None
    file_id: str | None
    lines: Lines | None


def read_batch(raw: bytes, model: str) -> Wanted:
    """Raises `Refused`."""
    body = camel_names(parse_object(raw), "")
    _BODY("", body)
    batch = _members(body["batch"], "batch")
    if batch.get("model", f"models/{model}") != f"models/{model}":
        raise invalid("The model of the body is not that of the path.")
    _BATCH("batch", batch)
    config = _members(batch["inputConfig"], "batch.inputConfig")
    _CONFIG("batch.inputConfig", config)
    if len(config) != 1:
        raise invalid("Invalid value at 'batch.inputConfig' (oneof): exactly one of fileName and requests must be set.")
    file_name, requests = config.get("fileName"), config.get("requests")
    if file_name is not None and not file_name.startswith("files/"):
        raise invalid(f"Invalid file name {file_name!r}: it must begin with 'files/'.")
    return Wanted(
        display_name=batch["displayName"],
        priority=None if "priority" not in batch else str(batch["priority"]),
        file_id=None if file_name is None else file_name.removeprefix("files/"),
        lines=None if requests is None else _inlined(requests, "batch.inputConfig.requests"),
    )


def read_lines(source: Spool) -> Lines:
    """The requests of a file. Raises `Refused`, with up to 20 lines that are bad."""
    starts, keys, faults = array("Q", [0]), set[str](), list[str]()
    for number, line in enumerate(source.lines(MAX_BODY_BYTES), start=1):
        starts.append(starts[-1] + len(line))
        try:
            _check_line(line, keys)
        except Refused as refused:
            if refused.reply.status != 400:
                raise
            faults.append(f"Error on line {number}: {refused.message}")
        if len(faults) == _MOST_FAULTS:
            break
    if faults or not keys:
        raise invalid("\n".join(faults) or "The input file has no requests.")
    return Lines(source, starts)


def count_tokens(lines: Lines, model: str, version: str) -> int:
    """The input tokens of all requests that are understood."""
    return sum(_tokens(lines.read(number)["request"], model, version) for number in range(len(lines)))


def _tokens(request: Any, model: str, version: str) -> int:
    try:
        asked = understand(request, model, version)
    except Refused:
        return 0
    return asked.text_tokens + asked.image_tokens


def _inlined(given: Any, path: str) -> Lines:
    given = _members(given, path)
    _REQUESTS(path, given)
    source, starts = Spool(), array("Q", [0])
    for index, entry in enumerate(given["requests"]):
        where = f"{path}.requests[{index}]"
        entry = _members(entry, where)
        _ENTRY(where, entry)
        _check_request(entry["request"], f"{where}.request")
        source.write(orjson.dumps(entry) + b"\n")
        starts.append(source.size_bytes)
    return Lines(source, starts)


def _check_line(line: bytes, keys: set[str]) -> None:
    if len(line) > MAX_BODY_BYTES:
        raise invalid(f"Request payload size exceeds the limit: {MAX_BODY_BYTES} bytes.")
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as cause:
        raise invalid(f"invalid JSON, near column {cause.colno}: {cause.msg}") from cause
    _LINE("", entry)
    if entry["key"] in keys:
        raise invalid(f"The key {entry['key']!r} is that of an earlier line.")
    keys.add(entry["key"])
    _check_request(entry["request"], "request")


def _check_request(request: Any, path: str) -> None:
    if "serviceTier" in well_formed(request, path):
        raise unknown_name(path, "serviceTier")  # in the reference of generateContent, and not in that of batches


def _members(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"Invalid value at '{path}': expected an object.")
    return camel_names(value, path)


def _anything(path: str, value: Any) -> None:
    """Checked by itself."""


def _int64(path: str, value: Any) -> None:
    try:
        number = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or not -(2**63) <= number < 2**63:
        raise invalid(f"Invalid value at '{path}': expected an integer.")


def _struct(path: str, value: Any) -> None:
    _members(value, path)


def _messages(fields: Mapping[str, Check], *required: str) -> Check:
    return record(fields, required, refuse=unknown_name)


_BODY = _messages({"batch": _anything}, "batch")
_BATCH = _messages(
    {
        "displayName": text,
        "inputConfig": _anything,
        "priority": _int64,
        "model": string,
        "webhookConfig": absent("webhooks"),
    },
    "displayName",
    "inputConfig",
)
_CONFIG = _messages({"fileName": text, "requests": _anything})
_REQUESTS = _messages({"requests": each(_anything, least=1)}, "requests")
_ENTRY = _messages({"request": _anything, "metadata": _struct}, "request")
_LINE = _messages({"key": text, "request": _anything}, "key", "request")
