"""Which bytes are which type of image, and which types go where."""

import re

IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"})
"""What the image guide promises. The schema's enum also has gif, bmp and tiff: the harsher reading is taken."""

URL_TYPES = frozenset({"image/png", "image/jpeg", "image/webp"})
"""Documented for public URLs, and in `IMAGE_TYPES`."""

URL_LIMIT_BYTES = 100_000_000

BATCH_TYPES = frozenset({"application/jsonl", "text/plain", "jsonl", "application/json"})
"""What the requests of a batch may be uploaded as; `jsonl` is in the guide, and JSON in the cookbook."""

TOKENS_BY_RESOLUTION = {"low": 280, "medium": 560, "high": 1120, "ultra_high": 2240}

_UPLOADABLE = re.compile(
    r"(jsonl|text/[\w.+-]+|(audio|video)/[\w.+-]+|application/(pdf|json|jsonl|rtf)"
    r"|image/(png|jpeg|webp|heic|heif|gif|bmp|tiff|avif))"
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})


def is_uploadable(mime_type: str) -> bool:
    """The Files API takes more than the model does: a TIFF uploads, and fails when it is used."""
    return _UPLOADABLE.fullmatch(mime_type) is not None


def types_of(head: bytes) -> frozenset[str]:
    """The names the content may go by, from its first bytes; empty if the model does not take it.

    HEIC and HEIF are one container, and phones disagree on its name: either is taken for both.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return frozenset({"image/png"})
    if head.startswith(b"\xff\xd8\xff"):
        return frozenset({"image/jpeg"})
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return frozenset({"image/webp"})
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return frozenset({"image/heic", "image/heif"})
    return frozenset()
