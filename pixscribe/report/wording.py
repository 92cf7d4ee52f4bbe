"""Numbers as people read them, and what the codes of the tables mean in a few words."""

import re
from collections.abc import Mapping
from hashlib import blake2b

ERROR_HELP: Mapping[str, str] = {
    "read_error": "The file cannot be opened, is no file, or is a link that leads out of the source.",
    "decode_error": "A broken, cut or empty image.",
    "too_large": "Above image.max_pixels, 512 MiB, or what fits into a request.",
    "unsupported_type": "No image, or one that cannot be converted without lying.",
    "changed_during_run": "The file was replaced while it was in use. Run again.",
    "upload_failed": "The Files API did not take it. Run again.",
    "rate_limited": "Asked too often, retry.max_attempts times in vain. Lower limits, run again.",
    "server_error": "The service failed retry.max_attempts times. Run again.",
    "timeout": "No answer within retry.timeout_s, retry.max_attempts times. Run again.",
    "network_error": "The connection broke retry.max_attempts times. Run again.",
    "quota_exhausted": "A daily quota was used up. Run again when it is reset.",
    "budget_exhausted": "limits.budget_usd was spent. Raise it, run again.",
    "request_refused": "The service will not take this image or question.",
    "blocked": "The service's policy blocks the image or the answer.",
    "truncated": "The answer was cut off. Raise model.max_output_tokens.",
    "invalid_json": "The model's words are no JSON, twice.",
    "invalid_answer": "The model's words are not what was asked for, twice.",
    "cancelled": "The run was stopped before this was answered.",
}
FLAG_HELP: Mapping[str, str] = {
    "box_from_polygon": "There was no usable box; it was drawn around the outline.",
    "box_unusable": "The box could not be understood; the outline is kept.",
    "clipped": "It reached beyond the image and was cut at its edge.",
    "corners_swapped": "The corners of the box were in the wrong order.",
    "first_frame": "The file has several frames; the first one was asked about.",
    "label_normalized": "The label differed from the vocabulary in case or spaces.",
    "label_not_text": "The label was a number or a truth value.",
    "label_not_unicode": "The label held letters that are none.",
    "mask_empty": "The mask covered nothing; the box is kept.",
    "mask_no_prefix": "The mask came without its data URI.",
    "mask_not_png": "The mask was no PNG; the box is kept.",
    "mask_tokens": "The mask came as tokens that cannot be read; the box is kept.",
    "mask_unreadable": "The mask could not be decoded; the box is kept.",
    "mask_unusable": "The mask could not be understood; the box is kept.",
    "no_label": "The object came without a label.",
    "no_mask": "An outline was asked for and did not come.",
    "numbers_from_text": "Numbers came as text.",
    "polygon_degenerate": "A ring without area was left out.",
    "polygon_flat": "The outline was one flat list of numbers.",
    "polygon_named": "The outline's points had names.",
    "polygon_rings": "The outline came as several rings.",
    "polygon_text": "The outline came as text.",
    "polygon_too_short": "A ring of fewer than three points was left out.",
    "renamed_key": "A field had another name than was asked for.",
    "repeated": "The same object was said more than once.",
    "scale_0_1": "The box was in fractions, not in thousandths.",
    "truncated": "The answer was cut off after it.",
    "unknown_label": "The label is not in the vocabulary.",
}


TEXT_KINDS: frozenset[str] = frozenset({"caption", "ask"})
"""Prompts whose answers are sentences: they are no labels."""
MAX_LABEL = 200
"""Letters of a label, with what tells it from another one that begins alike."""


def cut(text: str, letters: int) -> str:
    """At most so many letters; what is left out becomes `…`."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def short_label(label: str) -> str:
    """The name of a label on a page: a long one is cut, and keeps a name of its own. A short name stays what it is."""
    if len(label) <= MAX_LABEL:
        return label
    digest = blake2b(label.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{cut(label, MAX_LABEL - 40)} ({len(label):,} letters, {digest})"


def plural(count: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def usd(amount: float) -> str:
    """Dollars, as exactly as that is worth."""
    return f"{amount:,.2f}" if abs(amount) >= 10 else f"{amount:,.4f}"


def duration(seconds: float) -> str:
    """`1.7 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def moment(text: str) -> str:
    """A time as `run.json` has it, without its letters; any other text as it is."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?\+00:00$", r"\1 \2 UTC", text)


def milliseconds(amount: float) -> str:
    """`340 ms`, `1.2 s`."""
    return f"{amount:.0f} ms" if amount < 1000 else f"{amount / 1000:.3g} s"


def short_count(count: int) -> str:
    """`950`, `56.7 k`, `1.23 M`, for numbers that are too long to be read."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= limit:
            return f"{count / (1e3 if unit == 'k' else limit):,.3g} {unit}"
    return f"{count:,}"
