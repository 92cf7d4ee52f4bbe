"""Everything that can be made to go wrong, one small function each.

A fault of an interaction either replaces the answer (`REPLIES`) or spoils it (`SPOILERS`); it is drawn after the
request was found valid and within its quota. A fault of an upload is drawn at its start, and acts when the upload is
finalized (`upload_storage_full`: at once).
`FAULTS` has one line on each, the docstring of its function.
"""

import base64
import functools
import hashlib
import json
import random
import re
import struct
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pixscribe.emulator.replies import (
    HTML,
    INVALID_IMAGE,
    PER_DAY,
    PER_MINUTE,
    Reply,
    bad_key,
    file_gone_message,
    file_inactive_message,
    interactions_error,
    json_reply,
    quota_exceeded,
    retry_info,
    rpc_error,
)
from pixscribe.errors import ConfigError

if TYPE_CHECKING:
    from pixscribe.emulator.files import StoredFile
    from pixscribe.emulator.request import Asked
    from pixscribe.emulator.speech import Draft

Delivery = Literal["whole", "reset"]
ReplyFault = Callable[["Asked"], Reply]
Spoiler = Callable[["Draft"], None]
UploadReply = Callable[[str], Reply]
UploadSpoiler = Callable[["StoredFile", dict[str, Any]], Delivery]

REPLIES: dict[str, ReplyFault] = {}
SPOILERS: dict[str, Spoiler] = {}
UPLOAD_REPLIES: dict[str, UploadReply] = {}
UPLOAD_SPOILERS: dict[str, UploadSpoiler] = {}
FAULTS: dict[str, str] = {}


class FaultSource:
    """Which fault is next: the script first, then a draw. Safe to script from another thread."""

    def __init__(self, probabilities: Mapping[str, float], seed: int) -> None:
        self._script: deque[str] = deque()
        self._upload_script: deque[str] = deque()
        self._probabilities = dict(probabilities)
        self._random = random.Random(seed)

    def script(self, *names: str) -> None:
        for name in names:
            if name not in ("ok", "upload_ok"):
                check_fault_name(name)
            (self._upload_script if name.startswith("upload_") else self._script).append(name)

    def next_interaction(self) -> str | None:
        return self._next(self._script, uploads=False)

    def next_upload(self) -> str | None:
        return self._next(self._upload_script, uploads=True)

    def _next(self, script: deque[str], *, uploads: bool) -> str | None:
        if script:
            name = script.popleft()
            return None if name in ("ok", "upload_ok") else name
        chances = [(n, p) for n, p in self._probabilities.items() if n.startswith("upload_") is uploads]
        draw = self._random.random() if chances else 1.0
        for name, probability in chances:
            draw -= probability
            if draw < 0:
                return name
        return None


def check_fault_name(name: str) -> None:
    """Raises `ConfigError`."""
    if name not in FAULTS:
        raise ConfigError(f"unknown fault {name!r}: must be one of {', '.join(FAULTS)}")


_Fault = TypeVar("_Fault", bound=Callable[..., Any])


def _entry(table: dict[str, _Fault], name: str) -> Callable[[_Fault], _Fault]:
    def enter(function: _Fault) -> _Fault:
        table[name] = function
        FAULTS[name] = (function.__doc__ or "").rstrip(".")
        return function

    return enter


# --- instead of an answer: quota


@_entry(REPLIES, "429")
def _quota(asked: "Asked") -> Reply:
    """429 with QuotaFailure, Help and RetryInfo, per minute."""
    return quota_exceeded(PER_MINUTE, 1000, asked.model, 1.5)


@_entry(REPLIES, "429_bare")
def _quota_bare(asked: "Asked") -> Reply:
    """429 without any details."""
    return rpc_error(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).")


@_entry(REPLIES, "429_text")
def _quota_text(asked: "Asked") -> Reply:
    """429 whose delay stands in the text only."""
    message = "You exceeded your current quota, please check your plan and billing details. Please retry in 1.5s."
    return rpc_error(429, "RESOURCE_EXHAUSTED", message)


@_entry(REPLIES, "429_interactions")
def _quota_interactions(asked: "Asked") -> Reply:
    """429 in the form of Interactions, code rate_limit_exceeded."""
    return interactions_error(429, "rate_limit_exceeded", "Rate limit exceeded. Please try again later.")


@_entry(REPLIES, "429_daily")
def _quota_daily(asked: "Asked") -> Reply:
    """429 for the day, with a RetryInfo of 10 s that is not to be believed."""
    return quota_exceeded(PER_DAY, 20, asked.model, 10)


@_entry(REPLIES, "429_list")
def _quota_list(asked: "Asked") -> Reply:
    """429 whose body is an array."""
    return json_reply([json.loads(_quota(asked).body)], 429)


# --- instead of an answer: server and network


@_entry(REPLIES, "500")
def _internal(asked: "Asked") -> Reply:
    """500 internal error."""
    return interactions_error(500, "api_error", "An internal error has occurred.")


@_entry(REPLIES, "502_html")
def _bad_gateway(asked: "Asked") -> Reply:
    """502 with a page of HTML."""
    return Reply(502, b"<html><title>502 Bad Gateway</title><h1>502. That is an error.</h1></html>", HTML)


@_entry(REPLIES, "503")
def _overloaded(asked: "Asked") -> Reply:
    """503 overloaded."""
    return rpc_error(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")


@_entry(REPLIES, "504")
def _deadline(asked: "Asked") -> Reply:
    """504 deadline exceeded."""
    return interactions_error(504, "deadline_exceeded", "Deadline expired before the operation could complete.")


@_entry(REPLIES, "408")
def _request_timeout(asked: "Asked") -> Reply:
    """408 request timeout."""
    return interactions_error(408, "request_timeout", "The request timed out.")


@_entry(REPLIES, "timeout")
def _never(asked: "Asked") -> Reply:
    """No answer until the client leaves."""
    return Reply(0, delivery="never")


@_entry(REPLIES, "reset")
def _reset(asked: "Asked") -> Reply:
    """The connection is reset instead of an answer."""
    return Reply(0, delivery="reset")


@_entry(REPLIES, "cut")
def _cut(asked: "Asked") -> Reply:
    """The body ends before its Content-Length."""
    body = {"status": "completed", "steps": [{"type": "model_output", "content": [{"type": "text", "text": "[]"}]}]}
    return Reply(200, json_reply(body).body, delivery="cut")


@_entry(REPLIES, "html_200")
def _portal(asked: "Asked") -> Reply:
    """200 with a page of HTML, as captive portals answer."""
    return Reply(200, b"<html><title>Welcome</title>Please log in to the network.</html>", HTML)


@_entry(REPLIES, "not_json_200")
def _not_json(asked: "Asked") -> Reply:
    """200 called JSON that is none."""
    return Reply(200, b"OK, here is your answer")


# --- instead of an answer: refusals


@_entry(REPLIES, "blocked")
def _blocked(asked: "Asked") -> Reply:
    """400 content_blocked."""
    return interactions_error(400, "content_blocked", "The request was blocked by the content policy.")


@_entry(REPLIES, "bad_key")
def _bad_key(asked: "Asked") -> Reply:
    """400 API_KEY_INVALID, as if the key had just been revoked."""
    return bad_key()


@_entry(REPLIES, "key_revoked_403")
def _revoked(asked: "Asked") -> Reply:
    """403 for a key reported as leaked."""
    message = "Your API key was reported as leaked. Please use another API key."
    return rpc_error(403, "PERMISSION_DENIED", message)


@_entry(REPLIES, "file_gone_403")
def _file_gone(asked: "Asked") -> Reply:
    """403 for the question's file, as if it had expired."""
    return interactions_error(403, "permission_denied", file_gone_message(_file_id(asked)))


@_entry(REPLIES, "not_active_400")
def _not_active(asked: "Asked") -> Reply:
    """400 for the question's file, as if it were still processed."""
    return interactions_error(400, "failed_precondition", file_inactive_message(_file_id(asked)))


@_entry(REPLIES, "invalid_image_400")
def _invalid_image(asked: "Asked") -> Reply:
    """400 for the image."""
    return interactions_error(400, "invalid_request", INVALID_IMAGE)


def _file_id(asked: "Asked") -> str:
    uris = [image.uri for image in asked.images if image.uri]
    return uris[0].rpartition("/")[2] if uris else "unknown"


# --- a spoiled answer: its frame


@_entry(SPOILERS, "failed_200")
def _failed(draft: "Draft") -> None:
    """200 with status failed and errors."""
    draft.status, draft.text = "failed", None
    draft.errors = [{"code": "safety", "message": "The answer was blocked."}]


@_entry(SPOILERS, "incomplete")
def _incomplete(draft: "Draft") -> None:
    """Cut text with status incomplete."""
    draft.status = "incomplete"
    _truncate(draft)


@_entry(SPOILERS, "incomplete_empty")
def _incomplete_empty(draft: "Draft") -> None:
    """Status incomplete and no text at all."""
    draft.status, draft.text = "incomplete", None


@_entry(SPOILERS, "truncated_completed")
def _truncate(draft: "Draft") -> None:
    """Cut text with status completed."""
    text = draft.text or ""
    draft.text = text[: len(text) * 7 // 10]


@_entry(SPOILERS, "empty_text")
def _empty(draft: "Draft") -> None:
    """An empty string of text."""
    draft.text = ""


@_entry(SPOILERS, "no_steps")
def _no_steps(draft: "Draft") -> None:
    """Status completed without any steps."""
    draft.has_steps = False


@_entry(SPOILERS, "thought_only")
def _thought_only(draft: "Draft") -> None:
    """A thought and no output."""
    draft.text = None


# --- a spoiled answer: around the JSON


@_entry(SPOILERS, "fenced")
def _fenced(draft: "Draft") -> None:
    """The answer in a markdown fence."""
    draft.text = f"```json\n{draft.text}\n```"


@_entry(SPOILERS, "surrounded")
def _surrounded(draft: "Draft") -> None:
    """Words before and after the answer."""
    draft.text = f"Here is what I found:\n{draft.text}\nLet me know if you need anything else!"


@_entry(SPOILERS, "bare_list")
def _bare_list(draft: "Draft") -> None:
    """The list of objects without the object around it."""
    draft.say(draft.items)


@_entry(SPOILERS, "wrapper")
def _wrapper(draft: "Draft") -> None:
    """The list of objects under another key than the schema's."""
    draft.say({"detections": draft.items})


@_entry(SPOILERS, "empty_list")
def _empty_list(draft: "Draft") -> None:
    """No objects, which is a valid answer."""
    draft.say({"boxes": []} if isinstance(draft.value, dict) else [])


@_entry(SPOILERS, "repetition")
def _repetition(draft: "Draft") -> None:
    """The last object again and again until the token limit."""
    items = [*draft.items, *draft.items[-1:] * 400]
    draft.say({"boxes": items} if isinstance(draft.value, dict) else items)
    _incomplete(draft)


@_entry(SPOILERS, "nan")
def _nan(draft: "Draft") -> None:
    """NaN in place of the first number of each box."""
    draft.text = re.sub(r'("box_2d":\[)\d+', r"\1NaN", draft.text or "")


# --- spoiled objects


def _spoils_items(name: str) -> Callable[[Callable[[dict[str, Any]], None]], Callable[[dict[str, Any]], None]]:
    """Enter a fault that changes one object; it is applied to all."""

    def enter(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        def spoil(draft: "Draft") -> None:
            for item in draft.items:
                change(item)
            if draft.items:
                draft.say(draft.value)

        spoil.__doc__ = change.__doc__
        _entry(SPOILERS, name)(spoil)
        return change

    return enter


@_spoils_items("swapped_corners")
def _swap(item: dict[str, Any]) -> None:
    """Minimum and maximum of both axes exchanged."""
    y0, x0, y1, x1 = item["box_2d"]
    item["box_2d"] = [y1, x1, y0, x0]


@_spoils_items("out_of_range")
def _out_of_range(item: dict[str, Any]) -> None:
    """Boxes that reach beyond the image."""
    y0, x0, _, _ = item["box_2d"]
    item["box_2d"] = [y0 - 1000, x0, 1200, 1040]


@_spoils_items("zero_area")
def _zero_area(item: dict[str, Any]) -> None:
    """Boxes without height."""
    y0, x0, _, x1 = item["box_2d"]
    item["box_2d"] = [y0, x0, y0, x1]


@_spoils_items("wrong_length")
def _wrong_length(item: dict[str, Any]) -> None:
    """Boxes of three numbers."""
    item["box_2d"] = item["box_2d"][:3]


@_spoils_items("non_numbers")
def _non_numbers(item: dict[str, Any]) -> None:
    """Boxes of words, null and a boolean."""
    item["box_2d"] = ["top", None, True, item["box_2d"][3]]


@_spoils_items("scale_0_1")
def _unit_scale(item: dict[str, Any]) -> None:
    """Boxes on a scale of 0 to 1."""
    item["box_2d"] = [edge / 1000 for edge in item["box_2d"]]


@_spoils_items("null_label")
def _null_label(item: dict[str, Any]) -> None:
    """Labels that are null."""
    item["label"] = None


@_spoils_items("long_label")
def _long_label(item: dict[str, Any]) -> None:
    """Labels of 10,000 characters."""
    item["label"] = "very " * 2000


@_entry(SPOILERS, "hostile_label")
def _hostile_label(draft: "Draft") -> None:
    """Labels with NUL, newline, HTML, an emoji and a lone surrogate."""
    for item in draft.items:
        item["label"] = "<script>alert(1)</script>\x00\n\U0001f6a6 \ud800"
    if draft.items:
        draft.text = json.dumps(draft.value)  # orjson has no lone surrogates


# --- spoiled masks


@_spoils_items("flat_polygon")
def _flat_polygon(item: dict[str, Any]) -> None:
    """Polygons as one flat list of numbers."""
    if isinstance(item.get("mask"), list):
        item["mask"] = [coordinate for point in item["mask"] for coordinate in point]


@_spoils_items("string_polygon")
def _string_polygon(item: dict[str, Any]) -> None:
    """Polygons as a string of numbers."""
    if isinstance(item.get("mask"), list):
        item["mask"] = " ".join(f"{x},{y}" for x, y in item["mask"])


@_spoils_items("seg_tokens")
def _seg_tokens(item: dict[str, Any]) -> None:
    """Masks as the model's inner tokens."""
    if "mask" in item:
        item["mask"] = "<start_of_mask>" + "".join(f"<seg_{n}>" for n in (35, 7, 99, 120, 64)) + "</end_of_mask>"


@_spoils_items("bare_base64_mask")
def _bare_base64(item: dict[str, Any]) -> None:
    """Masks as base64 without the data: prefix."""
    if "mask" in item:
        item["mask"] = base64.b64encode(_png(np.full((64, 64), 255, np.uint8))).decode()


@_spoils_items("mask_not_image")
def _mask_not_image(item: dict[str, Any]) -> None:
    """Masks called PNG that are none."""
    if "mask" in item:
        item["mask"] = "data:image/png;base64," + base64.b64encode(b"this is no image").decode()


@_spoils_items("mask_bomb")
def _mask_bomb(item: dict[str, Any]) -> None:
    """Masks of 20,000 x 20,000 pixels."""
    if "mask" in item:
        item["mask"] = "data:image/png;base64," + base64.b64encode(_bomb()).decode()


@functools.cache
def _bomb() -> bytes:
    """A PNG of one bit a pixel: 50 KB that unfold to 400 megapixels."""
    side = 20_000
    rows = zlib.compress(bytes(side * (1 + side // 8)), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, (b"IHDR", b"IDAT", b"IEND"), (header, rows, b"")))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


# --- uploads


@_entry(UPLOAD_REPLIES, "upload_500")
def _upload_500(file_id: str) -> Reply:
    """500 when the upload is finalized; nothing is stored."""
    return rpc_error(500, "INTERNAL", "An internal error has occurred.")


@_entry(UPLOAD_REPLIES, "upload_503")
def _upload_503(file_id: str) -> Reply:
    """503 when the upload is finalized; nothing is stored."""
    return rpc_error(503, "UNAVAILABLE", "The service is currently unavailable.")


@_entry(UPLOAD_REPLIES, "upload_409")
def _upload_409(file_id: str) -> Reply:
    """409 when the upload is finalized, though no file has the name."""
    return json_reply({"error": {"message": f"files/{file_id} already exists.", "code": 409}}, 409)


@_entry(UPLOAD_REPLIES, "upload_reset")
def _upload_reset(file_id: str) -> Reply:
    """The connection is reset and nothing is stored."""
    return Reply(0, delivery="reset")


@_entry(UPLOAD_REPLIES, "upload_storage_full")
def _storage_full(file_id: str) -> Reply:
    """429 at the start of the upload, with a delay of 292 years."""
    message = "You exceeded your current quota: file storage, limit: 21474836480 bytes."
    return rpc_error(429, "RESOURCE_EXHAUSTED", message, [retry_info("9223372036854775807s")])


@_entry(UPLOAD_SPOILERS, "upload_lost_finalize")
def _lost_finalize(file: "StoredFile", answer: dict[str, Any]) -> Delivery:
    """The file is stored, and the connection reset before the answer."""
    return "reset"


@_entry(UPLOAD_SPOILERS, "upload_no_uri")
def _no_uri(file: "StoredFile", answer: dict[str, Any]) -> Delivery:
    """The file is stored, and the answer lacks its name and uri."""
    del answer["uri"], answer["name"]
    return "whole"


@_entry(UPLOAD_SPOILERS, "upload_wrong_hash")
def _wrong_hash(file: "StoredFile", answer: dict[str, Any]) -> Delivery:
    """The answer has the hash of other bytes."""
    answer["sha256Hash"] = base64.b64encode(hashlib.sha256(b"other bytes").hexdigest().encode()).decode()
    return "whole"


@_entry(UPLOAD_SPOILERS, "upload_processing")
def _processing(file: "StoredFile", answer: dict[str, Any]) -> Delivery:
    """The file is PROCESSING, in the answer and for two GETs more."""
    file.state, file.gets_until_active = "PROCESSING", 2
    answer["state"] = "PROCESSING"
    return "whole"


@_entry(UPLOAD_SPOILERS, "upload_failed_state")
def _failed_state(file: "StoredFile", answer: dict[str, Any]) -> Delivery:
    """The file is FAILED."""
    file.state = "FAILED"
    answer.update(file.to_json())
    return "whole"
