"""What the words of an answer mean.

Structured output is a promise the model mostly keeps. Each way of breaking it that was seen, or that nothing prevents,
has one rule here, and every repair leaves a name: in `ParsedAnswer.repairs` for the answer, in `ModelObject.flags` for
an object. What is given up is counted in `ParsedAnswer.dropped`, in words.

The answer as a whole:

| deviation | what is done | repair |
|---|---|---|
| empty or blank text | `AnswerError` invalid_answer; an empty *list* is a success with no objects | |
| longer than 4 MiB, or of more than 100,000 brackets | `AnswerError` invalid_answer | |
| markdown fence · other text around the JSON | ignored | `fenced` · `surrounded` |
| a bare list, or one bare object, instead of the wrapper | taken | `bare_list` · `bare_object` |
| another wrapper: a known key, the only list of objects, one key inside another | unwrapped | `wrapper` |
| JSON inside a JSON string | parsed once more | `double_encoded` |
| NaN, Infinity, control characters in strings, lone surrogates | read; a box with NaN is dropped | `lenient_json` |
| several blocks | joined in order, exact repeats collapse; caption and ask take the first | `several_blocks` |
| a complete block, then a cut one | the cut one is ignored | `trailing_fragment` |
| cut JSON (detect, segment) | complete objects are kept, `truncated` is set; none: `AnswerError` truncated | |
| cut JSON (other kinds) | `AnswerError` truncated | |
| JSON broken in the middle (detect, segment) | objects that can be read are kept | `broken_json` |
| the same object again, next to the first or later | kept once, flag `repeated` | `repeated` |
| more than 1,000 different objects, or endless pieces of JSON | what comes first is kept | `object_limit` |
| every box within 0-1 and one number not an integer | all boxes times 1,000, flag `scale_0_1` | |
| caption, ask: a JSON string or number, or no JSON at all | the words are the answer | `plain_text` |
| objects, but none usable | `AnswerError` invalid_answer, never "no objects" | |
| any other shape · no JSON | `AnswerError` invalid_answer · invalid_json | |

A box of integers 0 and 1 alone, [0, 0, 1, 1], stays in 0-1000: it may be a speck or the whole image, and nothing tells
which. Polygons are judged in the same way, apart from the boxes. A key that occurs twice in an object counts with its
last value, as in every JSON reader, and is not noticed.

One object:

| deviation | what is done | flag |
|---|---|---|
| corners in the wrong order | sorted | `corners_swapped` |
| outside 0-1000 | kept in `box`; geometry clips | `clipped` (there) |
| no area, not four numbers, bool, null, NaN, text | box unusable | |
| numbers as strings ("250") | converted | `numbers_from_text` |
| box2d, BOX_2D, ... · name, class for the label | taken | `renamed_key` |
| bbox, box, bounding_box | box unusable: the order of the axes is not known | |
| box unusable, but a good polygon | kept without box | `box_unusable` |
| box unusable, no polygon | dropped | |
| polygon as a flat list · of several rings | taken | `polygon_flat` · `polygon_rings` |
| polygon of {"x", "y"} · as text "x,y x,y" | taken | `polygon_named` · `polygon_text` |
| ring of fewer than three points | ring dropped | `polygon_too_short` |
| `<seg_35>` tokens | mask null | `mask_tokens` |
| PNG in base64 without `data:` | taken | `mask_no_prefix` |
| JPEG, or no image · broken base64 · anything else | mask null | `mask_not_png` · `mask_unreadable` · `mask_unusable` |
| no mask, null or empty (segment) | mask null | `no_mask` |
| label missing, null, blank, or no text | label null | `no_label` |
| label is a number or bool | its JSON text | `label_not_text` |
| lone surrogate in a label | U+FFFD, since Parquet holds UTF-8 | `label_not_unicode` |
| label equal to one of the vocabulary but for case and space | the vocabulary's | `label_normalized` |
| label outside the vocabulary | kept | `unknown_label` |

Otherwise a label is stored exactly, whatever its length; NUL and newline are valid text. A mask that comes with a
`detect` answer is read too.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from pixscribe.errors import AnswerError
from pixscribe.types import ErrorCode, Kind, ModelObject, ParsedAnswer, Polygon

PARSER_VERSION = "1"
"""Stored with each answer; changes when the same words would mean something else."""

MAX_TEXT_BYTES = 4 * 1024 * 1024
MAX_BRACKETS = 100_000
"""More lists and objects than the longest answer of the API has tokens; each costs Python as much as a page of text."""
MAX_OBJECTS = 1000

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_BOX_KEY = "box_2d"
_AMBIGUOUS_BOX_KEYS = ("bbox", "box", "bounding_box", "boundingbox", "bbox_2d")
_MASK_KEYS = ("mask", "polygon", "polygons")
_LABEL_KEYS = ("label", "name", "class")
_LIST_KEYS = ("boxes", "objects", "items", "detections", "annotations", "results", "masks")
_TEXT_KEYS: Mapping[str, tuple[str, ...]] = {
    "caption": ("caption", "description", "text", "answer"),
    "ask": ("answer", "response", "text", "caption"),
}
_OBJECT_KEYS = frozenset(
    {"box2d", *(key.replace("_", "") for key in (*_AMBIGUOUS_BOX_KEYS, *_MASK_KEYS, *_LABEL_KEYS))}
)
_MAX_WRAPPING = 4


def parse_answer(text: str, kind: Kind, labels: Sequence[str] = ()) -> ParsedAnswer:
    """Read an answer by the rules of the module's docstring.

    Boxes and polygons stay in model coordinates; the objects of caption, classify and ask have a label only. `labels`
    is the closed vocabulary, empty when it is open. Raises `AnswerError` with `code` invalid_json, invalid_answer or
    truncated when no object, and no honest "none", can be had from the text.
    """
    _check_size(text)
    try:
        return _parse(text, kind, labels)
    except RecursionError as error:
        raise AnswerError("the JSON is nested too deeply", code="invalid_json") from error


def _check_size(text: str) -> None:
    if not text or text.isspace():
        raise AnswerError("the answer is empty", code="invalid_answer")
    if len(text) > MAX_TEXT_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise AnswerError(f"the answer is longer than {MAX_TEXT_BYTES} bytes", code="invalid_answer")
    if text.count("[") + text.count("{") > MAX_BRACKETS:
        raise AnswerError(f"the answer has more than {MAX_BRACKETS} brackets", code="invalid_answer")


def _parse(text: str, kind: Kind, labels: Sequence[str]) -> ParsedAnswer:
    reading = _read(text, kind)
    items, repeated = _distinct(reading)
    if kind in ("detect", "segment"):
        objects = _located_objects(items, kind, labels, reading)
    else:
        objects = _worded_objects(items, labels, reading)
    if items and not objects:
        code: ErrorCode = "truncated" if reading.truncated else "invalid_answer"
        raise AnswerError(f"none of {len(items)} objects is usable: {'; '.join(reading.dropped[:3])}", code=code)
    return ParsedAnswer(
        objects=tuple(_flagged(found, "repeated") if number in repeated else found for number, found in objects),
        repairs=tuple(dict.fromkeys(reading.repairs)),
        dropped=tuple(reading.dropped),
        truncated=reading.truncated,
    )


def _flagged(found: ModelObject, flag: str) -> ModelObject:
    return ModelObject(found.label, found.box_2d, found.box, found.polygons, found.mask_png, (*found.flags, flag))


@dataclass(slots=True)
class _Reading:
    """The raw items of an answer, and what it took to find them."""

    items: list[Any]
    repairs: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    truncated: bool = False


def _distinct(reading: _Reading) -> tuple[list[Any], set[int]]:
    """Drop exact repeats and what exceeds `MAX_OBJECTS`; the set numbers the kept items that occurred again."""
    first: dict[str, int] = {}
    kept: list[Any] = []
    repeated: set[int] = set()
    for item in reading.items:
        if kept and item == kept[-1]:  # the usual loop, without the price of a key
            repeated.add(len(kept) - 1)
            continue
        number = first.setdefault(repr(item), len(kept))
        if number < len(kept):
            repeated.add(number)
        elif len(kept) == MAX_OBJECTS:
            reading.repairs.append("object_limit")
            reading.dropped.append(f"objects after the first {MAX_OBJECTS} are not read")
            break
        else:
            kept.append(item)
    if repeated:
        reading.repairs.append("repeated")
    return kept, repeated


# ---- from text to items ----


@dataclass(slots=True, frozen=True)
class _Items:
    """The list inside one JSON value, and the names of the repairs that led to it."""

    items: list[Any]
    repairs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def via(self, repair: str) -> "_Items":
        return _Items(self.items, (*self.repairs, repair), self.notes)


_Unwrap = Callable[[Any], _Items | None]


def _read(text: str, kind: Kind) -> _Reading:
    unwrap = _unwrapper(kind)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _read_tolerantly(text, kind, unwrap)
    found = unwrap(value)
    if found is None:
        raise AnswerError(f"the JSON has another shape than asked for: {_excerpt(value)}", code="invalid_answer")
    return _Reading(found.items, list(found.repairs), list(found.notes))


def _unwrapper(kind: Kind) -> _Unwrap:
    if kind in ("detect", "segment"):
        return _unwrap_objects
    if kind == "classify":
        return _unwrap_labels
    keys = _TEXT_KEYS[kind]
    return lambda value: _unwrap_text(value, keys)


def _excerpt(value: Any) -> str:
    """A short form for messages; ASCII, so that no label can break a log or a table."""
    shown = ascii(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _unwrap_objects(value: Any, depth: int = 0) -> _Items | None:
    if depth > _MAX_WRAPPING:
        return None
    if isinstance(value, dict):
        return _unwrap_dict(value, depth)
    if isinstance(value, list):
        return _unwrap_list(value, depth)
    if isinstance(value, str) and depth == 0:
        return _unwrap_string(value)
    return None


def _unwrap_dict(value: dict[str, Any], depth: int) -> _Items | None:
    if len(value) == 1 and "boxes" in value and _lists_objects(value["boxes"]):
        return _Items(value["boxes"])
    key = _wrapper_key(value)
    if key is not None:
        found = _Items(value[key], () if key == "boxes" else ("wrapper",))
        others = [name for name in value if name != key and _lists_objects(value[name]) and value[name]]
        return _Items(found.items, found.repairs, tuple(f"list {_excerpt(name)} beside {key!r}" for name in others))
    if _is_object(value):
        return _Items([value], ("bare_object",))
    inner = [value[name] for name in _LIST_KEYS if isinstance(value.get(name), dict)] or list(value.values())
    found_inner = _unwrap_objects(inner[0], depth + 1) if len(inner) == 1 and isinstance(inner[0], dict) else None
    return None if found_inner is None else found_inner.via("wrapper")


def _wrapper_key(value: dict[str, Any]) -> str | None:
    """The key of the list of objects: a known one, else the only one that can be meant."""
    full = [name for name in value if value[name] and _lists_objects(value[name])]
    known = [name for name in _LIST_KEYS if name in full]
    if known or _is_object(value):
        return known[0] if known else None
    if full:
        return full[0] if len(full) == 1 else None
    # {"signs": []} says "none"; an unknown empty list among other things may be about anything
    empty = [name for name in value if value[name] == [] and (name in _LIST_KEYS or len(value) == 1)]
    return empty[0] if empty else None


def _unwrap_list(value: list[Any], depth: int) -> _Items | None:
    if _lists_objects(value):
        return _Items(value, ("bare_list",))
    if len(value) > _MAX_WRAPPING:
        return None
    parts = [_unwrap_objects(part, depth + 1) for part in value]
    joined = [item for part in parts if part is not None for item in part.items]
    return _Items(joined, ("bare_list", "wrapper")) if joined and None not in parts else None


def _unwrap_string(value: str) -> _Items | None:
    try:
        found = _unwrap_objects(orjson.loads(value), depth=1)
    except orjson.JSONDecodeError:
        return None
    return None if found is None else found.via("double_encoded")


def _lists_objects(value: Any) -> bool:
    return isinstance(value, list) and (not value or any(_is_object(item) for item in value))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and any(_plain_key(key) in _OBJECT_KEYS for key in value)


def _plain_key(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _unwrap_labels(value: Any) -> _Items | None:
    if isinstance(value, str):
        return _Items([value], ("bare_object",))
    if isinstance(value, list):
        usable = not value or any(isinstance(item, str | dict) for item in value)
        return _Items(value, ("bare_list",)) if usable else None
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("labels"), list):
        return _Items(value["labels"])
    if any(key in value for key in _LABEL_KEYS):
        return _Items([value], ("bare_object",))
    lists = [inner for inner in value.values() if isinstance(inner, list)]
    return _Items(lists[0], ("wrapper",)) if len(lists) == 1 and (lists[0] or len(value) == 1) else None


def _unwrap_text(value: Any, keys: Sequence[str]) -> _Items | None:
    if isinstance(value, str | bool | int | float):
        return _Items([value], ("plain_text",))
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | dict):
        found = _unwrap_text(value[0], keys)
        return None if found is None else _Items(found.items, ("bare_list",))
    if not isinstance(value, dict):
        return None
    if isinstance(value.get(keys[0]), str | bool | int | float):
        return _Items([value[keys[0]]])
    named = [value[key] for key in keys if isinstance(value.get(key), str)]
    words = named or [inner for inner in value.values() if isinstance(inner, str)]
    return _Items(words[:1], ("wrapper",)) if named or len(words) == 1 else None


# ---- text that is not exactly one JSON value ----

_LENIENT = json.JSONDecoder(strict=False)
_OPENING = re.compile(r"[\[{]")
_FENCE = re.compile(r"```[\w-]*")
_JSON_LIKE = re.compile(r'\s*+(?:```[\w-]*\s*+)?(?:[\[{]|"[^"]*\Z)')
_CUT_TAIL = re.compile(r"[\w.+\-\\,]{0,12}\s*+(?:```\s*+)?\Z")

_ATTEMPT_CHARS = 1024
"""What an attempt costs besides its length: Python takes for one as long as the decoder for some hundred characters."""
_SCAN_BUDGET_CHARS = 16 * 1024 * 1024
"""How many characters all attempts together may read. A text that never closes would otherwise be read again from every
bracket in it, which is quadratic; an honest cut answer needs four attempts."""


@dataclass(slots=True)
class _Scan:
    """The JSON values found in a text.

    `broken_until` is how far a failed attempt has read: values before it lie inside something that never closed.
    """

    blocks: list[_Items] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    whole: int = 0
    strange: str | None = None
    broken_from: int = 0
    broken_until: int = 0
    salvaged: bool = False
    cut: bool = False
    fragment: bool = False
    unread_from: int | None = None


def _read_tolerantly(text: str, kind: Kind, unwrap: _Unwrap) -> _Reading:
    text = text.removeprefix("\ufeff")
    scan = _scan(text, unwrap, salvage=kind in ("detect", "segment"))
    if not scan.blocks or (scan.cut and not any(block.items for block in scan.blocks)):
        return _without_json(text, kind, scan)
    blocks = scan.blocks[:1] if kind in _TEXT_KEYS else scan.blocks
    reading = _Reading([item for block in blocks for item in block.items], truncated=scan.cut)
    for block in blocks:
        reading.repairs.extend(block.repairs)
        reading.dropped.extend(block.notes)
    reading.repairs.extend(_scan_repairs(text, scan))
    if scan.salvaged and not scan.cut:
        reading.dropped.append(f"the JSON breaks at character {scan.broken_until}; what is there is lost")
    if scan.unread_from is not None:
        reading.dropped.append(f"what follows character {scan.unread_from} is not read")
    return reading


def _scan(text: str, unwrap: _Unwrap, *, salvage: bool) -> _Scan:
    scan = _Scan()
    budget, position = _SCAN_BUDGET_CHARS, 0
    while budget > 0 and not scan.fragment and (opening := _OPENING.search(text, position)):
        start = opening.start()
        if text[start] == "[" and start < scan.broken_until:
            position = start + 1  # a list in something broken is a part of it; its objects are found one by one
            continue
        try:
            value, position = _LENIENT.raw_decode(text, start)
        except json.JSONDecodeError as error:
            _note_failure(scan, text, start, error.pos)
            position = start + 1
            budget -= error.pos - start + len(text) // 16 + _ATTEMPT_CHARS  # the exception counts the lines before it
        except ValueError as error:  # an integer of thousands of digits
            raise AnswerError(f"the JSON cannot be read: {error}", code="invalid_json") from error
        else:
            _note_value(scan, value, (start, position), unwrap, salvage)
            budget -= position - start + _ATTEMPT_CHARS
    scan.unread_from = position if budget <= 0 else None
    return scan


def _note_failure(scan: _Scan, text: str, start: int, failed_at: int) -> None:
    if _is_cut(text, failed_at):
        scan.fragment = scan.whole > 0 and start >= scan.broken_until
        scan.cut = not scan.fragment
    if failed_at > scan.broken_until and not scan.fragment:
        scan.broken_from = start if start >= scan.broken_until else scan.broken_from
        scan.broken_until = failed_at


def _is_cut(text: str, failed_at: int) -> bool:
    """Whether the JSON is wrong only in that it ends: at most the start of a value is left, or a string stays open."""
    if _CUT_TAIL.match(text, failed_at):
        return True
    if not text.startswith('"', failed_at):
        return False
    try:
        _LENIENT.raw_decode(text, failed_at)
    except json.JSONDecodeError:
        return True
    return False


def _note_value(scan: _Scan, value: Any, span: tuple[int, int], unwrap: _Unwrap, salvage: bool) -> None:
    found = unwrap(value)
    inside = span[0] < scan.broken_until
    if found is None or (inside and not (salvage and found.items)):
        scan.strange = scan.strange or _excerpt(value)
        return
    scan.blocks.append(found)
    scan.spans.append(span)
    scan.salvaged |= inside
    scan.whole += not inside and "bare_object" not in found.repairs


def _scan_repairs(text: str, scan: _Scan) -> Iterable[str]:
    outside = text[: scan.broken_from] if scan.salvaged else _outside(text, scan.spans)
    if "```" in (text if scan.salvaged else outside):
        yield "fenced"
    if _FENCE.sub("", outside).strip(" \t\r\n,;"):
        yield "surrounded"
    if not outside.strip() and len(scan.blocks) == 1 and not scan.salvaged:
        yield "lenient_json"
    if scan.salvaged and not scan.cut:
        yield "broken_json"
    if scan.unread_from is not None:
        yield "object_limit"
    if scan.fragment:
        yield "trailing_fragment"
    if scan.whole > 1:
        yield "several_blocks"


def _outside(text: str, spans: Sequence[tuple[int, int]]) -> str:
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), len(text)]
    return "".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def _without_json(text: str, kind: Kind, scan: _Scan) -> _Reading:
    """No usable value: plain words are an answer to caption and ask, for everything else this says what is wrong."""
    if kind in _TEXT_KEYS and not _JSON_LIKE.match(text):
        return _Reading([text.strip()], ["plain_text"])
    if scan.cut:
        raise AnswerError("the answer is cut before its first complete object", code="truncated")
    if scan.strange is not None and scan.broken_until == 0:
        raise AnswerError(f"the JSON has another shape than asked for: {scan.strange}", code="invalid_answer")
    raise AnswerError(f"the answer is no JSON: {_excerpt(text[:100])}", code="invalid_json")


# ---- from items to objects ----

_Numbered = tuple[int, ModelObject]
_NUMERAL = re.compile(r"\s*[-+]?\d{1,30}(?:\.\d{0,30})?\s*", re.ASCII)
_NUMERALS = re.compile(r"[-+]?\d{1,30}(?:\.\d{0,30})?", re.ASCII)
_POINTS_TEXT = re.compile(r"[\d\s.,;:+\-()\[\]]+", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Unusable(ValueError):
    """A part of an object cannot be understood; the message says why."""


@dataclass(slots=True)
class _Draft:
    """An object before the scale of the whole answer is known."""

    label: str | None = None
    numbers: tuple[float, ...] | None = None
    why_no_box: str = "no box_2d"
    rings: list[list[float]] = field(default_factory=list)
    mask_png: bytes | None = None
    flags: list[str] = field(default_factory=list)


def _located_objects(items: list[Any], kind: Kind, labels: Sequence[str], reading: _Reading) -> list[_Numbered]:
    vocabulary = _vocabulary(labels)
    drafts = [_draft(item, kind, vocabulary) if isinstance(item, dict) else None for item in items]
    known = [draft for draft in drafts if draft is not None]
    box_factor = _scale_factor([draft.numbers for draft in known if draft.numbers and len(draft.numbers) == 4])
    ring_factor = _scale_factor([ring for draft in known for ring in draft.rings])
    objects: list[_Numbered] = []
    for number, draft in enumerate(drafts):
        try:
            if draft is None:
                raise _Unusable(f"no object but {_excerpt(items[number])}")
            objects.append((number, _finish(draft, box_factor, ring_factor)))
        except _Unusable as reason:
            reading.dropped.append(f"object {number}: {reason}")
    return objects


def _draft(item: dict[str, Any], kind: Kind, vocabulary: Mapping[str, str]) -> _Draft:
    draft = _Draft()
    draft.label = _label(_pick(item, _LABEL_KEYS, draft.flags), vocabulary, draft.flags)
    try:
        draft.numbers = _box_numbers(item, draft.flags)
    except _Unusable as reason:
        draft.why_no_box = str(reason)
    mask = _pick(item, _MASK_KEYS, draft.flags)
    if mask is not None and mask != "" and mask != []:
        _read_mask(mask, draft)
    elif kind == "segment":
        draft.flags.append("no_mask")
    return draft


def _pick(item: dict[str, Any], keys: Sequence[str], flags: list[str]) -> Any:
    if keys[0] in item:
        return item[keys[0]]
    for key in keys[1:]:
        if key in item:
            flags.append("renamed_key")
            return item[key]
    return None


def _box_numbers(item: dict[str, Any], flags: list[str]) -> tuple[float, ...]:
    raw = item.get(_BOX_KEY)
    if raw is None:
        raw = _box_by_another_name(item, flags)
    if not isinstance(raw, list):
        raise _Unusable(f"box_2d is {_excerpt(raw)}, not a list of numbers")
    return tuple([_number(value, flags) for value in raw])


def _box_by_another_name(item: dict[str, Any], flags: list[str]) -> Any:
    for key, value in item.items():
        if _plain_key(key) == "box2d" and value is not None:
            flags.append("renamed_key")
            return value
    for key in _AMBIGUOUS_BOX_KEYS:
        if key in item:
            raise _Unusable(f"the order of the axes in {key!r} is not known")
    raise _Unusable("no box_2d")


def _number(value: Any, flags: list[str]) -> float:
    if type(value) is int or type(value) is float:  # not isinstance: True is an int
        number = _as_float(value)
        if math.isfinite(number):
            return number
    elif isinstance(value, str) and _NUMERAL.fullmatch(value):
        flags.append("numbers_from_text")
        return float(value)
    raise _Unusable(f"{_excerpt(value)} is no number")


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _scale_factor(groups: Sequence[Sequence[float]]) -> float:
    """1000 if the model has answered in 0-1: nothing leaves it, and one number can be nothing else."""
    if not all(0 <= number <= 1 for group in groups for number in group):
        return 1.0
    return 1000.0 if any(number % 1 for group in groups for number in group) else 1.0


def _finish(draft: _Draft, box_factor: float, ring_factor: float) -> ModelObject:
    box: tuple[float, float, float, float] | None = None
    flags = draft.flags
    try:
        box = _ordered_box(draft, box_factor)
    except _Unusable:
        if not draft.rings:
            raise
        flags.append("box_unusable")
    if (box is not None and box_factor != 1) or (draft.rings and ring_factor != 1):
        flags.append("scale_0_1")
    rings: tuple[Polygon, ...] = tuple(tuple([number * ring_factor for number in ring]) for ring in draft.rings)
    return ModelObject(draft.label, draft.numbers, box, rings, draft.mask_png, tuple(dict.fromkeys(flags)))


def _ordered_box(draft: _Draft, factor: float) -> tuple[float, float, float, float]:
    if draft.numbers is None:
        raise _Unusable(draft.why_no_box)
    if len(draft.numbers) != 4:
        raise _Unusable(f"box_2d has {len(draft.numbers)} numbers, not 4")
    y0, x0, y1, x1 = draft.numbers
    if y0 == y1 or x0 == x1:
        raise _Unusable(f"box_2d {list(draft.numbers)} has no area")
    if y0 > y1 or x0 > x1:
        draft.flags.append("corners_swapped")
    return min(y0, y1) * factor, min(x0, x1) * factor, max(y0, y1) * factor, max(x0, x1) * factor


# ---- masks ----


def _read_mask(mask: Any, draft: _Draft) -> None:
    try:
        if isinstance(mask, list):
            draft.rings = _rings(mask, draft.flags)
        elif isinstance(mask, str):
            _read_mask_text(mask.strip(), draft)
        else:
            raise _Unusable("neither a list nor a string")
    except _Unusable:
        draft.flags.append("mask_unusable")


def _read_mask_text(mask: str, draft: _Draft) -> None:
    if "<seg_" in mask[:200] or mask.startswith("<start_of_mask>"):
        draft.flags.append("mask_tokens")
    elif _POINTS_TEXT.fullmatch(mask):
        draft.rings = _rings(_points_in_text(mask), draft.flags)
        draft.flags.append("polygon_text")
    else:
        draft.mask_png = _mask_png(mask, draft.flags)


def _points_in_text(text: str) -> list[Any]:
    """The points of "x,y x,y ..." or of a JSON list that arrived as a string."""
    if text.startswith("["):
        with suppress(orjson.JSONDecodeError):
            return list(orjson.loads(text))
    numbers = [float(number) for number in _NUMERALS.findall(text)]
    if len(numbers) % 2:
        raise _Unusable("an odd number of coordinates")
    return [numbers[start : start + 2] for start in range(0, len(numbers), 2)]


def _mask_png(mask: str, flags: list[str]) -> bytes | None:
    _, comma, payload = mask.partition(",") if mask.startswith("data:") else ("", "", mask)
    try:
        data = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        flags.append("mask_unreadable")
        return None
    if not data.startswith(PNG_SIGNATURE):
        flags.append("mask_not_png")
        return None
    if not comma:
        flags.append("mask_no_prefix")
    return data


def _rings(mask: list[Any], flags: list[str]) -> list[list[float]]:
    """The rings of a polygon in any of the forms models use; each is [x1, y1, x2, y2, ...], x first."""
    nested = mask
    if all(isinstance(part, list) and part and isinstance(part[0], list | dict) for part in mask):
        flags.append("polygon_rings")
    elif all(_is_flat_ring(part) for part in mask):
        flags.extend(("polygon_rings", "polygon_flat"))
    else:
        nested = [mask]
    rings = [_ring(ring, flags) for ring in nested]
    kept = [ring for ring in rings if len(ring) >= 6]
    if len(kept) < len(rings):
        flags.append("polygon_too_short")
    return kept


def _is_flat_ring(part: Any) -> bool:
    return isinstance(part, list) and len(part) >= 6 and not isinstance(part[0], list | dict)


def _ring(ring: list[Any], flags: list[str]) -> list[float]:
    if ring and not isinstance(ring[0], list | dict) and not _is_point_text(ring[0]):
        if len(ring) % 2:
            raise _Unusable("an odd number of coordinates")
        if "polygon_flat" not in flags:
            flags.append("polygon_flat")
        return [_number(value, flags) for value in ring]
    numbers: list[float] = []
    for point in ring:
        numbers.extend(_point(point, flags))
    return numbers


def _is_point_text(value: Any) -> bool:
    return isinstance(value, str) and not _NUMERAL.fullmatch(value)


def _point(point: Any, flags: list[str]) -> tuple[float, float]:
    if isinstance(point, dict) and "x" in point and "y" in point:
        flags.append("polygon_named")
        point = [point["x"], point["y"]]
    elif isinstance(point, str) and _POINTS_TEXT.fullmatch(point):
        flags.append("polygon_text")
        point = _NUMERALS.findall(point)
        return _point([float(number) for number in point], flags)
    if not isinstance(point, list) or len(point) != 2:
        raise _Unusable(f"{_excerpt(point)} is no point")
    return _number(point[0], flags), _number(point[1], flags)


# ---- labels and words ----


def _worded_objects(items: list[Any], labels: Sequence[str], reading: _Reading) -> list[_Numbered]:
    vocabulary = _vocabulary(labels)
    objects: list[_Numbered] = []
    for number, item in enumerate(items):
        flags: list[str] = []
        raw = _pick(item, _LABEL_KEYS, flags) if isinstance(item, dict) else item
        words = _label(raw, vocabulary, flags)
        if words is None:
            reading.dropped.append(f"object {number}: {_excerpt(item)} holds no words")
        else:
            objects.append((number, ModelObject(words, flags=tuple(flags))))
    return objects


def _vocabulary(labels: Sequence[str]) -> dict[str, str]:
    return {_folded(label): label for label in labels}


def _folded(label: str) -> str:
    return " ".join(label.split()).casefold()


def _label(raw: Any, vocabulary: Mapping[str, str], flags: list[str]) -> str | None:
    if type(raw) in (bool, int, float):
        flags.append("label_not_text")
        raw = json.dumps(raw)
    if not isinstance(raw, str) or not raw or raw.isspace():
        flags.append("no_label")
        return None
    if not raw.isascii() and _SURROGATE.search(raw):
        flags.append("label_not_unicode")
        raw = _SURROGATE.sub("\ufffd", raw)
    return _in_vocabulary(raw, vocabulary, flags) if vocabulary else raw


def _in_vocabulary(label: str, vocabulary: Mapping[str, str], flags: list[str]) -> str:
    canonical = vocabulary.get(_folded(label))
    if canonical is None:
        flags.append("unknown_label")
        return label
    if canonical != label:
        flags.append("label_normalized")
    return canonical
