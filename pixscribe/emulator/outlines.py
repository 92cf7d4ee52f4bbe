"""From a map of coverage (0-1 per pixel) to a named shape with sub-pixel corners.

The contour is the level 0.5 of the enlarged map. It alone would cut the tips of stars and triangles by a pixel, so a
shape that is an ellipse or a polygon is fitted: an ellipse through the contour, or a line through the middle of each
side and corners where the lines meet.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

_ELLIPSE_POINTS = 36
_MAX_POINTS = 100
_POLYGON_NAMES = {3: "triangle", 5: "pentagon", 6: "hexagon"}


@dataclass(frozen=True, slots=True)
class Outline:
    """`points` (n, 2) and `box` (x0, y0, x1, y1) in pixels of the map, on continuous edges."""

    shape: str
    points: Points
    box: Points


def trace(coverage: NDArray[np.float32]) -> Outline | None:
    """The outer outline of the largest blob, or None if nothing is covered by half."""
    contour = _contour(coverage)
    if contour is None:
        return None
    return _as_ellipse(contour) or _as_polygon(contour) or _as_it_is(contour)


def _contour(coverage: NDArray[np.float32]) -> Points | None:
    """The ordered 0.5 level, sampled on the corners of enlarged pixels."""
    factor = 4 if max(coverage.shape) <= 256 else 2
    # without the border, a shape that the image cuts off would be extended by interpolation
    padded = cv2.copyMakeBorder(coverage, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    enlarged = cv2.resize(padded, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    contours, _ = cv2.findContours(_corners(enlarged > 0.5), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    longest = max(contours, key=cv2.contourArea).reshape(-1, 2)
    return longest.astype(np.float64) / factor - 1.0 if len(longest) >= 8 else None


def _corners(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The pixel corners that touch the mask: a contour through them runs along the edges of its pixels."""
    height, width = mask.shape
    corners = np.zeros((height + 1, width + 1), np.uint8)
    for dy in (0, 1):
        for dx in (0, 1):
            corners[dy : height + dy, dx : width + dx] |= mask
    return corners


def _as_ellipse(contour: Points) -> Outline | None:
    (cx, cy), (width, height), degrees = cv2.fitEllipseDirect(contour.astype(np.float32))
    if not (width > 0 and height > 0 and np.isfinite([cx, cy, width, height]).all()):
        return None
    a, b, angle = width / 2, height / 2, np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    radii = np.linalg.norm((contour - (cx, cy)) @ turn / (a, b), axis=1)
    spread_px = float(np.sqrt(np.mean((radii - 1) ** 2))) * (a + b) / 2
    if spread_px > 0.15 + 0.012 * (a + b) / 2:  # a hexagon spreads by 0.04 of its radius
        return None
    t = np.arange(_ELLIPSE_POINTS) * 2 * np.pi / _ELLIPSE_POINTS
    points = np.stack([a * np.cos(t), b * np.sin(t)], axis=1) @ turn.T + (cx, cy)
    half = np.hypot(turn[:, 0] * a, turn[:, 1] * b)
    box = np.array([cx - half[0], cy - half[1], cx + half[0], cy + half[1]])
    return Outline("circle" if min(a, b) > 0.93 * max(a, b) else "ellipse", points, box)


def _as_polygon(contour: Points) -> Outline | None:
    corners = _rough_corners(contour)
    if not 3 <= len(corners) <= 16:
        return None
    reach_px = max(4.0, 0.1 * float(np.ptp(contour, axis=0).max()))
    for _ in range(2):  # a rough corner may lie beside the true one, and bend the first fit
        corners = _fit_sides(contour, corners, reach_px)
    if _stray_px(contour, corners) > 1.5 + 0.01 * float(np.ptp(contour, axis=0).max()):
        return None
    return Outline(_polygon_name(corners), corners, _bounds(corners))


def _rough_corners(contour: Points) -> Points:
    closed = contour.astype(np.float32).reshape(-1, 1, 2)
    length_px = cv2.arcLength(closed, True)
    corners = cv2.approxPolyDP(closed, max(1.2, 0.015 * length_px), True).reshape(-1, 2).astype(np.float64)
    while len(corners) > 3 and (heights := _heights(corners)).min() < max(1.5, 0.025 * length_px):
        corners = np.delete(corners, int(heights.argmin()), axis=0)  # it lies on a side
    return corners


def _fit_sides(contour: Points, corners: Points, reach_px: float) -> Points:
    at = sorted(int(np.abs(contour - corner).sum(axis=1).argmin()) for corner in corners)
    lines = [_side(contour, i, j) for i, j in zip(at, at[1:] + at[:1], strict=True)]
    return np.array([_meet(lines[k - 1], lines[k], contour[i], reach_px) for k, i in enumerate(at)])


def _heights(corners: Points) -> Points:
    """How far each corner is from the line between its neighbours."""
    before, after = np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0)
    chord, arm = after - before, corners - before
    crosses = np.abs(chord[:, 0] * arm[:, 1] - chord[:, 1] * arm[:, 0])
    return np.asarray(crosses / np.maximum(np.linalg.norm(chord, axis=1), 1e-9))


def _interior_degrees(corners: NDArray[np.floating]) -> NDArray[np.floating]:
    back, ahead = np.roll(corners, 1, axis=0) - corners, np.roll(corners, -1, axis=0) - corners
    lengths = np.linalg.norm(back, axis=1) * np.linalg.norm(ahead, axis=1)
    cosines = (back * ahead).sum(axis=1) / np.maximum(lengths, 1e-9)
    return np.asarray(np.rad2deg(np.arccos(np.clip(cosines, -1, 1))))


_Line = tuple[Points, Points]
"""A point and a unit direction."""


def _side(contour: Points, start: int, stop: int) -> _Line:
    """The line through the middle of a side; its ends are rounded by the blur of the edge."""
    indices = np.arange(start, stop if stop > start else stop + len(contour)) % len(contour)
    trim = max(1, round(0.22 * len(indices)))
    middle = contour[indices[trim:-trim]] if len(indices) > 2 * trim + 3 else contour[indices]
    dx, dy, x, y = cv2.fitLine(middle.astype(np.float32), cv2.DIST_L2, 0, 0.001, 0.001).reshape(4).tolist()
    return np.array([x, y]), np.array([dx, dy])


def _meet(first: _Line, second: _Line, corner: Points, reach_px: float) -> Points:
    """Where the lines cross, or `corner` when that is too far away to be believed."""
    (p, d), (q, e) = first, second
    cross = d[0] * e[1] - d[1] * e[0]
    if abs(cross) < 0.05:
        return corner
    meeting = p + d * ((q[0] - p[0]) * e[1] - (q[1] - p[1]) * e[0]) / cross
    return meeting if np.linalg.norm(meeting - corner) < reach_px else corner


def _stray_px(contour: Points, corners: Points) -> float:
    """How far the contour leaves the polygon."""
    polygon = corners.astype(np.float32).reshape(-1, 1, 2)
    sample = contour[:: 1 + len(contour) // 200]
    return max(abs(cv2.pointPolygonTest(polygon, (float(x), float(y)), True)) for x, y in sample)


def _polygon_name(corners: Points) -> str:
    count = len(corners)
    if cv2.isContourConvex(corners.astype(np.float32).reshape(-1, 1, 2)):
        return _quadrilateral_name(corners) if count == 4 else _POLYGON_NAMES.get(count, "shape")
    return "star" if count >= 8 and count % 2 == 0 else "shape"


def _quadrilateral_name(corners: Points) -> str:
    if np.abs(_interior_degrees(corners) - 90).max() > 6:
        return "shape"
    sides = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1)
    return "square" if sides.min() > 0.93 * sides.max() else "rectangle"


def _as_it_is(contour: Points) -> Outline:
    closed, tolerance_px = contour.astype(np.float32).reshape(-1, 1, 2), 0.3
    while len(points := cv2.approxPolyDP(closed, tolerance_px, True)) > _MAX_POINTS:
        tolerance_px *= 2
    kept = points.reshape(-1, 2).astype(np.float64)
    return Outline("shape", kept if len(kept) >= 3 else contour, _bounds(contour))


def _bounds(points: Points) -> Points:
    return np.concatenate([points.min(axis=0), points.max(axis=0)])
