"""Faults that spoil an answer: its frame, the text around the JSON, its objects, their masks."""

import base64
import functools
import json
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pixscribe.emulator.fault_table import enter
from pixscribe.emulator.speech import Draft

SPOILERS: dict[str, Callable[[Draft], None]] = {}


# --- its frame


@enter(SPOILERS, "failed_200")
def _failed(draft: Draft) -> None:
    """200 with status failed and errors."""
    draft.status, draft.text = "failed", None
    draft.errors = [{"code": "safety", "message": "The answer was blocked."}]


@enter(SPOILERS, "incomplete")
def _incomplete(draft: Draft) -> None:
    """Cut text with status incomplete."""
    draft.status = "incomplete"
    _truncate(draft)


@enter(SPOILERS, "incomplete_empty")
def _incomplete_empty(draft: Draft) -> None:
    """Status incomplete and no text at all."""
    draft.status, draft.text = "incomplete", None


@enter(SPOILERS, "unknown_status")
def _unknown_status(draft: Draft) -> None:
    """A good answer with a status that nobody documented."""
    draft.status = "dreaming"


@enter(SPOILERS, "truncated_completed")
def _truncate(draft: Draft) -> None:
    """Cut text with status completed."""
    text = draft.text or ""
    draft.text = text[: len(text) * 7 // 10]


@enter(SPOILERS, "empty_text")
def _empty(draft: Draft) -> None:
    """An empty string of text."""
    draft.text = ""


@enter(SPOILERS, "no_steps")
def _no_steps(draft: Draft) -> None:
    """Status completed without any steps."""
    draft.has_steps = False


@enter(SPOILERS, "thought_only")
def _thought_only(draft: Draft) -> None:
    """A thought and no output."""
    draft.text = None


# --- around the JSON


@enter(SPOILERS, "fenced")
def _fenced(draft: Draft) -> None:
    """The answer in a markdown fence."""
    draft.text = f"```json\n{draft.text}\n```"


@enter(SPOILERS, "two_blocks")
def _two_blocks(draft: Draft) -> None:
    """The answer twice, each in a markdown fence."""
    draft.text = f"```json\n{draft.text}\n```\nOn reflection:\n```json\n{draft.text}\n```"


@enter(SPOILERS, "surrounded")
def _surrounded(draft: Draft) -> None:
    """Words before and after the answer."""
    draft.text = f"Here is what I found:\n{draft.text}\nLet me know if you need anything else!"


@enter(SPOILERS, "bare_list")
def _bare_list(draft: Draft) -> None:
    """The list of objects without the object around it."""
    draft.say(draft.items)


@enter(SPOILERS, "wrapper")
def _wrapper(draft: Draft) -> None:
    """The list of objects under another key than the schema's."""
    draft.say({"detections": draft.items})


@enter(SPOILERS, "empty_list")
def _empty_list(draft: Draft) -> None:
    """No objects, which is a valid answer."""
    draft.say({"boxes": []} if isinstance(draft.value, dict) else [])


@enter(SPOILERS, "repetition")
def _repetition(draft: Draft) -> None:
    """The last object again and again until the token limit."""
    items = [*draft.items, *draft.items[-1:] * 400]
    draft.say({"boxes": items} if isinstance(draft.value, dict) else items)
    _incomplete(draft)


@enter(SPOILERS, "nan")
def _nan(draft: Draft) -> None:
    """NaN in place of the first number of each box."""
    draft.text = re.sub(r'("box_2d":\[)\d+', r"\1NaN", draft.text or "")


@enter(SPOILERS, "deep_json")
def _deep(draft: Draft) -> None:
    """10,000 nested brackets."""
    draft.text = "[" * 10_000 + "]" * 10_000


@enter(SPOILERS, "control_chars")
def _control_chars(draft: Draft) -> None:
    """Raw control characters inside the strings of the JSON."""
    draft.text = (draft.text or "").replace(" ", "\t\x01\n")  # compact JSON has blanks in strings only


# --- spoiled objects


def _spoils_items(name: str) -> Callable[[Callable[[dict[str, Any]], None]], Callable[[dict[str, Any]], None]]:
    """Enter a fault that changes one object; it is applied to all."""

    def put(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        def spoil(draft: Draft) -> None:
            for item in draft.items:
                change(item)
            if draft.items:
                draft.say(draft.value)

        spoil.__doc__ = change.__doc__
        enter(SPOILERS, name)(spoil)
        return change

    return put


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


@_spoils_items("extra_numbers")
def _extra_numbers(item: dict[str, Any]) -> None:
    """Boxes of five numbers."""
    item["box_2d"] = [*item["box_2d"], 95]


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


@enter(SPOILERS, "hostile_label")
def _hostile_label(draft: Draft) -> None:
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
