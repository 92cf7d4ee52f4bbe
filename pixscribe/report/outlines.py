"""Outlines to draw: masks become polygons, and polygons lose the points that no eye would miss."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pixscribe.masks import Mask
from pixscribe.tables import Row
from pixscribe.types import Polygon

MAX_MASK_PX = 50_000_000
"""Of an image whose masks are decoded for a drawing: a byte each. Others keep their box."""
LEAST_POINTS = 3


def outlines_of(row: Row) -> tuple[Polygon, ...]:
    """The polygons of a row of `annotations`, or those around its mask if it has nothing else. Never raises."""
    if row["polygons"]:
        return tuple(map(tuple, row["polygons"]))
    return _around_mask(row["rle"]) if row["rle"] else ()


def reduced_outline(polygon: Polygon, tolerance_px: float, max_points: int) -> list[float]:
    """The ring with fewer points, none of which lies farther than `tolerance_px` from where the line was.

    More than `max_points` are made fewer by a larger tolerance.
    """
    ring: npt.NDArray[Any] = np.asarray(polygon[: len(polygon) // 2 * 2], dtype=np.float32).reshape(-1, 1, 2)
    for _ in range(12):
        if len(ring) <= LEAST_POINTS or (len(ring) <= max_points and tolerance_px == 0):
            break
        reduced = cv2.approxPolyDP(ring, tolerance_px, True)
        if len(reduced) <= max(max_points, LEAST_POINTS):
            ring = reduced if len(reduced) >= LEAST_POINTS else ring[:LEAST_POINTS]
            break
        tolerance_px = max(2 * tolerance_px, 0.5)
    return [round(float(value), 1) for value in ring.ravel()]


def _around_mask(rle: Row) -> tuple[Polygon, ...]:
    height, width = rle["size"]
    counts = _runs(rle["counts"])
    # pycocotools would believe any numbers, and write beyond the mask
    if not 0 < height * width <= MAX_MASK_PX or min(counts, default=0) < 0 or sum(counts) != height * width:
        return ()
    mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return ()
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Mask(crop, (int(columns[0]), int(rows[0])), (width, height)).to_polygons()


def _runs(letters: str) -> list[int]:
    """The lengths of the runs that COCO's letters stand for: five bits each, and from the fourth run on the difference
    to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for code in letters.encode("ascii", "replace"):
        value |= (code - 48 & 0x1F) << shift
        shift += 5
        if code - 48 & 0x20:
            continue
        if code - 48 & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs
