"""From model coordinates to source pixels.

`x_px = x / 1000 * width`, each axis by its own side. Sending an image smaller keeps its proportions, so that the same
fractions hold in the upright source, whatever was sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixscribe.errors import AnswerError
from pixscribe.types import Annotation, Box2D, ModelObject, ParsedAnswer, Polygon, Size, Xyxy

if TYPE_CHECKING:
    from pixscribe.masks import Mask

MODEL_SIDE = 1000


def place_objects(parsed: ParsedAnswer, source_wh: Size) -> tuple[list[Annotation], list[str]]:
    """Turn the objects of an answer into annotations in source pixels; the second list says why others were dropped.

    `index` is the position in `parsed.objects`. Flags that may be added: `clipped`, `polygon_degenerate` (a ring
    without area is left out), `box_from_polygon`, `mask_unreadable` and `mask_empty` (the box is kept, the mask is
    not). Objects with nothing but a label pass unchanged. Raises `AnswerError` if there were objects and none is left.
    """
    annotations: list[Annotation] = []
    dropped: list[str] = []
    for index, found in enumerate(parsed.objects):
        try:
            annotations.append(_place(found, index, source_wh))
        except AnswerError as error:
            dropped.append(f"object {index}: {error}")
    if dropped and not annotations:
        raise AnswerError(f"none of {len(dropped)} objects is inside the image: {'; '.join(dropped[:3])}")
    return annotations, dropped


def scale_box(box: Box2D, source_wh: Size) -> Xyxy:
    """Turn a model box into source pixels.

    `box` is (ymin, xmin, ymax, xmax), each 0-1000 of the image as sent; sending keeps the aspect ratio, so the same
    fractions hold in the upright source. Corners are clipped to the image. Raises `AnswerError` when nothing is left.
    Source: Gemini API docs, "Image understanding".
    """
    unclipped = _unclipped(box, source_wh)
    xyxy = _clip(unclipped, source_wh)
    if not (xyxy[0] < xyxy[2] and xyxy[1] < xyxy[3]):
        raise AnswerError(f"nothing of the box {list(box)} is inside the image of {source_wh[0]}x{source_wh[1]} px")
    return xyxy


def scale_polygon(polygon: Polygon, source_wh: Size) -> Polygon:
    """Turn a ring of model coordinates, x first, into source pixels; points outside are moved to the image's edge."""
    return tuple(
        min(max(value * side / MODEL_SIDE, 0.0), float(side))
        for value, side in zip(polygon, source_wh * (len(polygon) // 2), strict=True)
    )


def box_area(xyxy: Xyxy) -> float:
    return (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1])


def polygon_area(polygon: Polygon) -> float:
    """The area inside one ring (shoelace), whichever way it turns; of a ring that crosses itself parts cancel out."""
    if not polygon:
        return 0.0
    # measured from the first point: far from the origin the products would lose the digits that matter
    xs, ys = [x - polygon[0] for x in polygon[::2]], [y - polygon[1] for y in polygon[1::2]]
    doubled = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
    return abs(doubled) / 2


@dataclass(frozen=True, slots=True)
class _Shape:
    """What an object covers, in source pixels."""

    polygons: tuple[Polygon, ...]
    mask: "Mask | None"
    flags: tuple[str, ...]


def _place(found: ModelObject, index: int, source_wh: Size) -> Annotation:
    shape = _shape(found, source_wh)
    xyxy, box_flags = _box(found, shape.polygons, source_wh)
    return Annotation(
        index=index,
        label=found.label,
        xyxy=xyxy,
        area=_area(xyxy, shape),
        polygons=shape.polygons if shape.mask is None else shape.mask.to_polygons(),
        rle=None if shape.mask is None else shape.mask.to_rle(),
        box_2d=found.box_2d,
        flags=tuple(dict.fromkeys((*found.flags, *box_flags, *shape.flags))),
    )


def _shape(found: ModelObject, source_wh: Size) -> _Shape:
    scaled = [scale_polygon(ring, source_wh) for ring in found.polygons]
    polygons = tuple(ring for ring in scaled if polygon_area(ring) > 0)
    flags = ["clipped"] if any(not 0 <= value <= MODEL_SIDE for ring in found.polygons for value in ring) else []
    if len(polygons) < len(scaled):
        flags.append("polygon_degenerate")
    mask = None
    if found.mask_png is not None and found.box is not None:
        mask, flag = _mask(found.mask_png, found.box, source_wh)
        flags.extend(flag)
    return _Shape(polygons, mask, tuple(flags))


def _mask(png: bytes, box: Box2D, source_wh: Size) -> tuple["Mask | None", Sequence[str]]:
    try:
        from pixscribe.masks import decode_mask  # OpenCV: most models answer with polygons, which need none of it

        mask = decode_mask(png, _unclipped(box, source_wh), source_wh)
    except AnswerError:
        return None, ["mask_unreadable"]
    return (mask, []) if mask.area_px else (None, ["mask_empty"])


def _box(found: ModelObject, polygons: tuple[Polygon, ...], source_wh: Size) -> tuple[Xyxy | None, Sequence[str]]:
    if found.box is None and not found.polygons:
        return None, []
    try:
        if found.box is None:
            raise AnswerError("neither box nor polygon covers any part of the image")
        xyxy = scale_box(found.box, source_wh)
    except AnswerError:
        if not polygons:
            raise
        return _around(polygons), ["box_from_polygon"]
    return xyxy, [] if xyxy == _unclipped(found.box, source_wh) else ["clipped"]


def _around(polygons: tuple[Polygon, ...]) -> Xyxy:
    xs = [x for ring in polygons for x in ring[::2]]
    ys = [y for ring in polygons for y in ring[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def _area(xyxy: Xyxy | None, shape: _Shape) -> float | None:
    if shape.mask is not None:
        return float(shape.mask.area_px)
    if shape.polygons:
        return sum(polygon_area(ring) for ring in shape.polygons)
    return None if xyxy is None else box_area(xyxy)


def _unclipped(box: Box2D, source_wh: Size) -> Xyxy:
    width, height = source_wh
    ymin, xmin, ymax, xmax = box
    # the product first: whole numbers stay exact until the one division
    return xmin * width / MODEL_SIDE, ymin * height / MODEL_SIDE, xmax * width / MODEL_SIDE, ymax * height / MODEL_SIDE


def _clip(xyxy: Xyxy, source_wh: Size) -> Xyxy:
    width, height = (float(side) for side in source_wh)
    x0, y0, x1, y1 = xyxy
    return (
        min(max(x0, 0.0), width),
        min(max(y0, 0.0), height),
        min(max(x1, 0.0), width),
        min(max(y1, 0.0), height),
    )
