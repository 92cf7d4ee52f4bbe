"""The nouns that travel between the modules.

Two frames are in use. *Model* coordinates run 0-1000 on each axis of the image as it was sent. *Source* coordinates are
pixels of the source image after its orientation is applied: origin top left, x right, y down, edges continuous
(0 ... width), so that a box around the whole image is (0, 0, width, height).
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["detect", "segment", "caption", "classify", "ask"]
ImageStatus = Literal["ok", "partial", "failed"]
ResponseStatus = Literal["ok", "repaired", "failed"]
ErrorCode = Literal[
    "read_error",
    "decode_error",
    "too_large",
    "unsupported_type",
    "changed_during_run",
    "upload_failed",
    "rate_limited",
    "quota_exhausted",
    "server_error",
    "timeout",
    "network_error",
    "request_refused",
    "blocked",
    "truncated",
    "invalid_json",
    "invalid_answer",
    "budget_exhausted",
    "cancelled",
]

Size = tuple[int, int]
"""(width, height) in pixels."""

Box2D = tuple[float, float, float, float]
"""The model's box: (ymin, xmin, ymax, xmax), 0-1000, y first."""

Xyxy = tuple[float, float, float, float]
"""(xmin, ymin, xmax, ymax) in source pixels."""

Polygon = tuple[float, ...]
"""One ring, flat: (x1, y1, x2, y2, ...), x first, COCO order; model or source coordinates as the field says."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One line of the manifest: an image that the scan found.

    `file_name` is for people and for joins (relative, `/`, bytes that are not UTF-8 as `\\xff`); `uri` is exact and
    percent-encoded, and the only thing that is ever opened. `error` says why it cannot be read, when the scan knows.
    `version` is another after each change, where the listing tells one (time of change, ETag, generation).
    """

    file_name: str
    uri: str
    size_bytes: int | None = None
    error: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image that was read, measured, and made ready to send.

    `image_id` is the sha256 (hex) of the source bytes, `sent_sha256` that of `data`, which is what goes to the model.
    `width` and `height` are those of the upright source, `sent_width` and `sent_height` those of `data`.
    `flags` names what the user should know of the conversion (`first_frame`).
    """

    image_id: str
    size_bytes: int
    width: int
    height: int
    exif_orientation: int
    mime_type: str
    data: bytes
    sent_mime_type: str
    sent_width: int
    sent_height: int
    sent_sha256: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelObject:
    """One object of an answer, in model coordinates, as far as it could be understood.

    `box_2d` holds the model's own numbers, untouched; `box` the same after repair (corners in order, 0-1 scale
    undone, still unclipped). `polygons` are x first, 0-1000 of the whole image. `mask_png` is a probability map of the
    inside of the box, not yet decoded. `flags` names every repair.
    """

    label: str | None
    box_2d: tuple[float, ...] | None = None
    box: Box2D | None = None
    polygons: tuple[Polygon, ...] = ()
    mask_png: bytes | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """What the words of one answer mean.

    `repairs` names what had to be done to the answer as a whole (`fenced`, `surrounded`, ...), `dropped` says for each
    object that was given up why. `truncated` means that the text was cut and `objects` is its complete part.
    """

    objects: tuple[ModelObject, ...]
    repairs: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Rle:
    """A COCO run-length mask: `size` is (height, width) of the source, `counts` pycocotools' compressed string."""

    size: tuple[int, int]
    counts: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object in source pixels: a row of the table `annotations` without the columns of its image."""

    index: int
    label: str | None
    xyxy: Xyxy | None
    area: float | None
    polygons: tuple[Polygon, ...]
    rle: Rle | None
    box_2d: tuple[float, ...] | None
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that an answer was billed for; thought tokens are billed as output."""

    input_tokens: int = 0
    output_tokens: int = 0
    thought_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.thought_tokens + other.thought_tokens,
        )
