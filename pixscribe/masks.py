"""Raster masks: the probability map that came with a box, put into place and written as RLE or as outlines.

A mask is kept as its crop and an offset, never as an array of the size of the image: twenty masks of a 200 MP photo
would be 4 GB.
"""

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco

from pixscribe.errors import AnswerError
from pixscribe.types import Polygon, Rle, Size, Xyxy

MAX_MAP_SIDE_PX = 4096
MAX_MAP_PIXELS = 16_000_000
MASK_THRESHOLD = 127
"""A pixel belongs to the object above the midpoint of 0-255, as the Gemini API docs say."""

MAX_TRACED_PIXELS = 2048 * 2048
"""Outlines of larger crops are traced on a reduced copy: 2,000 px a side is finer than the model's thousandths."""
MAX_OUTLINES = 100
OUTLINE_TOLERANCE_PX = 1.0
"""What the pixel stairs of an oblique edge deviate from it at most."""
_SIMPLIFIED_AREA_SHARE = 0.05

_MAX_STRETCHED_PX = 1_000_000
_PNG_START = struct.Struct(">8sI4sII")

Bitmap = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """The pixels of one object: `crop` (rows, columns), whose top left pixel is `offset` (x, y) in the source."""

    crop: Bitmap
    offset: tuple[int, int]
    source_wh: Size

    @property
    def area_px(self) -> int:
        return int(np.count_nonzero(self.crop))

    def to_rle(self) -> Rle:
        """Encode as COCO does for the whole image: runs of 0 and 1, down the columns, the first run one of 0."""
        width, height = self.source_wh
        runs = {"counts": _column_runs(self.crop, self.offset, self.source_wh), "size": [height, width]}
        encoded: dict[str, Any] = coco.frPyObjects(runs, height, width)
        return Rle(size=(height, width), counts=encoded["counts"].decode("ascii"))

    def to_polygons(self) -> tuple[Polygon, ...]:
        """Trace the outer outlines on pixel edges in source pixels, the longest first, at most `MAX_OUTLINES`.

        Pixel columns 10 to 19 have the edges 10 and 20. Vertices within `OUTLINE_TOLERANCE_PX` of a straight line are
        left out. Holes cannot be said in polygons of this form: they are filled here, and kept in `to_rle`.
        """
        traced, pixels_per_cell = _reduced(self.crop)
        outlines = [_simplified(_on_edges(contour)) for contour in _contours(traced)]
        # a reduced copy may reach past the crop by a part of a cell
        limit = np.array(self.crop.shape[::-1], dtype=np.float64)
        placed = [np.minimum(outline * pixels_per_cell, limit) + self.offset for outline in outlines]
        return tuple(tuple(outline.ravel().tolist()) for outline in placed)


def decode_mask(png: bytes, xyxy: Xyxy, source_wh: Size) -> Mask:
    """Decode the probability map of the inside of a box and put it into place.

    `xyxy` is the box in source pixels before clipping: the map covers all of it, and only what lies in the image is
    kept. The map is stretched over the box's edges rounded to the nearest pixel edge, at least one pixel a side. It
    should be 8-bit grey; colour becomes luminance, transparency is ignored, 1-bit is 0 and 255, of 16 bits the upper 8
    count.
    Raises `AnswerError` for what is no PNG, for a map above 4096 px or 16 MP, and for a box outside the image.
    """
    _check_header(png)
    full = _pixel_rectangle(xyxy)
    visible = _inside(full, source_wh)
    stretched = _stretch(_decode_grey(png), full, visible)
    return Mask(np.asarray(stretched) > MASK_THRESHOLD, (visible[0], visible[1]), source_wh)


_Rectangle = tuple[int, int, int, int]


def _check_header(png: bytes) -> None:
    """Refuse a bomb by its own words, before a pixel of it is decoded."""
    if len(png) < _PNG_START.size:
        raise AnswerError(f"the mask is no PNG: {len(png)} bytes")
    signature, _, chunk, width, height = _PNG_START.unpack_from(png)
    if signature != b"\x89PNG\r\n\x1a\n" or chunk != b"IHDR":
        raise AnswerError("the mask is no PNG")
    if not (0 < width <= MAX_MAP_SIDE_PX and 0 < height <= MAX_MAP_SIDE_PX and width * height <= MAX_MAP_PIXELS):
        raise AnswerError(
            f"the mask is {width}x{height} px; up to {MAX_MAP_SIDE_PX} px and {MAX_MAP_PIXELS} are decoded"
        )


def _pixel_rectangle(xyxy: Xyxy) -> _Rectangle:
    if not all(abs(edge) < _MAX_STRETCHED_PX for edge in xyxy):
        raise AnswerError(f"the box {xyxy} is too far outside the image to place a mask in it")
    left, right = _pixel_edges(xyxy[0], xyxy[2])
    top, bottom = _pixel_edges(xyxy[1], xyxy[3])
    return left, top, right, bottom


def _pixel_edges(low: float, high: float) -> tuple[int, int]:
    start, stop = math.floor(low + 0.5), math.floor(high + 0.5)
    if start < stop:
        return start, stop
    start = math.floor((low + high) / 2)
    return start, start + 1


def _inside(full: _Rectangle, source_wh: Size) -> _Rectangle:
    width, height = source_wh
    left, top, right, bottom = max(full[0], 0), max(full[1], 0), min(full[2], width), min(full[3], height)
    if left >= right or top >= bottom:
        raise AnswerError(f"the mask's box {full} is outside the image of {width}x{height} px")
    return left, top, right, bottom


def _decode_grey(png: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            return _grey(image)
    except Exception as error:  # Pillow answers broken files with a dozen unrelated types
        raise AnswerError(f"the mask cannot be decoded: {type(error).__name__}: {error}") from error


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "P":  # straight to L would warn about a transparent palette
        image = image.convert("RGBA")
    return image.convert("L")


def _stretch(grey: Image.Image, full: _Rectangle, visible: _Rectangle) -> Image.Image:
    """Resize the part of the map that lands in the image, so that a huge box costs no more than the image."""
    per_x, per_y = grey.width / (full[2] - full[0]), grey.height / (full[3] - full[1])
    part = (
        (visible[0] - full[0]) * per_x,
        (visible[1] - full[1]) * per_y,
        min((visible[2] - full[0]) * per_x, grey.width),
        min((visible[3] - full[1]) * per_y, grey.height),
    )
    size = (visible[2] - visible[0], visible[3] - visible[1])
    return grey.resize(size, Image.Resampling.BILINEAR, box=part)


def _column_runs(crop: Bitmap, offset: tuple[int, int], source_wh: Size) -> npt.NDArray[np.uint32]:
    """Lengths of the runs of the full image, which is never built."""
    width, height = source_wh
    columns = np.pad(crop.T.astype(np.int8), ((0, 0), (1, 1)))
    steps = np.diff(columns, axis=1)
    starts, stops = (_positions(steps == step, offset, height) for step in (1, -1))
    # a run that ends at the bottom of one column goes on at the top of the next
    joined = starts[1:] == stops[:-1]
    starts, stops = starts[np.r_[True, ~joined][: len(starts)]], stops[np.r_[~joined, True][: len(stops)]]
    edges = np.empty(2 * len(starts) + 2, dtype=np.int64)
    edges[0], edges[-1] = 0, width * height
    edges[1:-1:2], edges[2:-1:2] = starts, stops
    counts = np.diff(edges)
    return (counts[:-1] if counts[-1] == 0 else counts).astype(np.uint32)


def _positions(steps: npt.NDArray[np.bool_], offset: tuple[int, int], height: int) -> npt.NDArray[np.int64]:
    columns, rows = np.nonzero(steps)
    return (columns + offset[0]).astype(np.int64) * height + rows + offset[1]


def _reduced(crop: Bitmap) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """The crop, or a smaller copy of it, and the size (x, y) of its cells in pixels."""
    rows, columns = crop.shape
    factor = max(1, math.ceil(math.sqrt(crop.size / MAX_TRACED_PIXELS)))
    if factor == 1:
        return crop.astype(np.uint8), np.ones(2)
    size = (math.ceil(columns / factor), math.ceil(rows / factor))
    averaged = cv2.resize(crop.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    return (averaged > MASK_THRESHOLD).astype(np.uint8), np.array([columns / size[0], rows / size[1]])


def _contours(cells: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.int64]]:
    """Outer contours of the cells doubled in size, the longest first."""
    doubled = cells.repeat(2, axis=0).repeat(2, axis=1)
    found, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    longest = sorted(found, key=len, reverse=True)[:MAX_OUTLINES]
    return [contour.reshape(-1, 2).astype(np.int64) for contour in longest]


def _on_edges(contour: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Move a contour from cell centres, where OpenCV puts it, to cell edges.

    A cell p of the doubled grid has the halves 2p and 2p+1. The contour touches the half that faces outwards, so that
    2p means the edge p and 2p+1 the edge p+1.
    """
    edges = (contour + 1) // 2
    moved = np.any(edges != np.roll(edges, 1, axis=0), axis=1)
    return edges[moved].astype(np.float32)


def _simplified(outline: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    simple = cv2.approxPolyDP(outline, OUTLINE_TOLERANCE_PX, True).reshape(-1, 2)
    area = cv2.contourArea(outline)
    # a line one pixel wide is all tolerance: it would collapse
    faithful = abs(cv2.contourArea(simple) - area) <= _SIMPLIFIED_AREA_SHARE * area
    return (simple if faithful else outline).astype(np.float64)
