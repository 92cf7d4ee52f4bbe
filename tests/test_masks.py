"""Probability maps put into place, and written as RLE and outlines."""

import io
import struct
import time
import tracemalloc
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from pixscribe.errors import AnswerError
from pixscribe.geometry import place_objects, polygon_area
from pixscribe.masks import MAX_OUTLINES, Bitmap, Mask, decode_mask
from pixscribe.types import ModelObject, ParsedAnswer, Polygon, Size, Xyxy


def as_png(pixels: Any, mode: str | None = None) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def grey(width: int, height: int, value: int = 255) -> bytes:
    return as_png(np.full((height, width), value, np.uint8))


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is as large as this."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I4s", 13, b"IHDR") + header
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", zlib.crc32(chunk[4:]))


def dense(mask: Mask) -> Bitmap:
    width, height = mask.source_wh
    full = np.zeros((height, width), bool)
    (left, top), (rows, columns) = mask.offset, mask.crop.shape
    full[top : top + rows, left : left + columns] = mask.crop
    return full


def corners(polygon: Polygon) -> list[tuple[float, float]]:
    return sorted(zip(polygon[::2], polygon[1::2], strict=True))


# ---- into place ----


def test_a_map_is_stretched_over_its_box():
    mask = decode_mask(grey(4, 4), (10.0, 20.0, 30.0, 50.0), (100, 100))
    assert (mask.offset, mask.crop.shape, mask.area_px) == ((10, 20), (30, 20), 600)


def test_the_cut_is_above_the_midpoint():
    ramp = as_png(np.array([[126, 127, 128, 129]], np.uint8))
    assert decode_mask(ramp, (0, 0, 4, 1), (4, 1)).crop.tolist() == [[False, False, True, True]]


def test_a_drawn_ramp_is_cut_in_its_middle_at_every_size():
    ramp = as_png(np.tile(np.arange(256, dtype=np.uint8), (8, 1)))
    for width in (50, 100, 1000):
        assert decode_mask(ramp, (0, 0, width, 10), (1000, 10)).area_px == pytest.approx(width / 2 * 10, abs=10)


@pytest.mark.parametrize(
    ("xyxy", "offset", "shape"),
    [
        pytest.param((10.4, 20.6, 29.4, 49.5), (10, 21), (29, 19), id="nearest-edge"),
        pytest.param((10.6, 20.0, 10.9, 30.0), (10, 20), (10, 1), id="narrower-than-a-pixel"),
        pytest.param((10.4, 20.0, 10.6, 30.0), (10, 20), (10, 1), id="narrow-over-the-middle"),
        pytest.param((99.7, 99.7, 100.0, 100.0), (99, 99), (1, 1), id="last-pixel"),
        pytest.param((-50.0, -50.0, 10.0, 20.0), (0, 0), (20, 10), id="over-the-top-left"),
        pytest.param((90.0, 80.0, 150.0, 150.0), (90, 80), (20, 10), id="over-the-bottom-right"),
    ],
)
def test_the_pixels_of_a_box_are_those_between_its_rounded_edges(xyxy: Xyxy, offset: Any, shape: Any):
    mask = decode_mask(grey(4, 4), xyxy, (100, 100))
    assert (mask.offset, mask.crop.shape) == (offset, shape)


def test_a_box_that_leaves_the_image_shows_its_part_of_the_map():
    left_half = as_png(np.array([[255, 0]], np.uint8).repeat(10, axis=1))
    assert decode_mask(left_half, (-10, 0, 10, 5), (100, 5)).area_px == 0
    assert decode_mask(left_half, (90, 0, 110, 5), (100, 5)).area_px == 50


def test_a_huge_box_costs_no_more_than_the_image():
    began_s = time.process_time()
    mask = decode_mask(grey(64, 64), (-400_000.0, -400_000.0, 400_000.0, 400_000.0), (100, 100))
    assert mask.area_px == 10_000
    assert time.process_time() - began_s < 0.5


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.new("1", (4, 4), 1), id="1-bit"),
        pytest.param(Image.new("RGB", (4, 4), (200, 200, 200)), id="rgb"),
        pytest.param(Image.new("RGBA", (4, 4), (200, 200, 200, 0)), id="rgba-transparent"),
        pytest.param(Image.new("LA", (4, 4), (200, 0)), id="grey-transparent"),
        pytest.param(Image.new("P", (4, 4), 1), id="palette"),
        pytest.param(Image.fromarray(np.full((4, 4), 128 << 8, np.uint16)), id="16-bit"),
    ],
)
def test_other_modes_are_read_by_their_luminance(image: Image.Image):
    if image.mode == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
    assert decode_mask(as_png(image), (0, 0, 4, 4), (4, 4)).area_px == 16


def test_16_bits_are_not_cut_off_at_255():
    dark = Image.fromarray(np.full((4, 4), 127 << 8 | 255, np.uint16))
    assert decode_mask(as_png(dark), (0, 0, 4, 4), (4, 4)).area_px == 0


@pytest.mark.parametrize(
    ("png", "reason"),
    [
        pytest.param(b"", "no PNG", id="empty"),
        pytest.param(b"\xff\xd8\xff\xe0" + b"0" * 100, "no PNG", id="jpeg"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"0" * 100, "no PNG", id="signature-only"),
        pytest.param(claiming(4097, 10), "4097x10 px", id="too-wide"),
        pytest.param(claiming(4096, 4096), "4096x4096 px", id="too-many-pixels"),
        pytest.param(claiming(2**31 - 1, 2**31 - 1), "2147483647x2147483647 px", id="bomb"),
        pytest.param(claiming(0, 4), "0x4 px", id="no-width"),
        pytest.param(claiming(4, 4), "cannot be decoded", id="header-only"),
        pytest.param(grey(64, 64)[:-30], "cannot be decoded", id="cut"),
    ],
)
def test_what_is_no_map_is_refused(png: bytes, reason: str):
    with pytest.raises(AnswerError, match=reason):
        decode_mask(png, (0, 0, 4, 4), (4, 4))


@pytest.mark.parametrize("xyxy", [(100, 0, 120, 10), (0, -20, 10, 0), (0, 0, 1e300, 10), (0, 0, float("inf"), 10)])
def test_a_box_with_no_pixel_in_the_image_has_no_mask(xyxy: Xyxy):
    with pytest.raises(AnswerError, match="outside the image"):
        decode_mask(grey(4, 4), xyxy, (100, 100))


# ---- RLE ----


def test_rle_counts_run_down_the_columns_of_the_whole_image():
    # rows 1-2 of column 1 in an image of 3x4: 5 pixels before, 2 inside, 5 after, in COCO's alphabet
    mask = Mask(np.ones((2, 1), bool), (1, 1), (3, 4))
    assert mask.to_rle().size == (4, 3)
    assert mask.to_rle().counts == "525"


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    width, height = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    columns, rows = draw(st.integers(1, width - left)), draw(st.integers(1, height - top))
    bits = draw(st.one_of(st.just([True] * (rows * columns)), st.lists(st.booleans(), min_size=rows * columns)))
    return Mask(np.array(bits[: rows * columns], bool).reshape(rows, columns), (left, top), (width, height))


@given(masks())
def test_rle_is_what_pycocotools_makes_of_the_full_mask(mask: Mask):
    expected = coco.encode(np.asfortranarray(dense(mask).astype(np.uint8)))
    rle = mask.to_rle()
    assert (list(rle.size), rle.counts) == (expected["size"], expected["counts"].decode())


def test_rle_of_a_small_object_in_a_200_mp_image_is_quick():
    began_s = time.process_time()
    rle = Mask(np.ones((100, 100), bool), (15_000, 9_000), (20_000, 10_000)).to_rle()
    assert time.process_time() - began_s < 0.1
    assert coco.area({"size": list(rle.size), "counts": rle.counts}) == 10_000


# ---- outlines ----


def test_an_outline_runs_along_the_outer_edges_of_the_pixels():
    (outline,) = Mask(np.ones((5, 10), bool), (10, 20), (100, 100)).to_polygons()
    assert corners(outline) == [(10, 20), (10, 25), (20, 20), (20, 25)]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_even_the_smallest_object_has_an_outline_of_its_area(rows: int, columns: int):
    (outline,) = Mask(np.ones((rows, columns), bool), (3, 4), (100, 100)).to_polygons()
    assert polygon_area(outline) == rows * columns


def test_a_concave_corner_is_not_cut():
    shape = np.ones((20, 20), bool)
    shape[10:, 10:] = False
    (outline,) = Mask(shape, (0, 0), (20, 20)).to_polygons()
    assert corners(outline) == [(0, 0), (0, 20), (10, 10), (10, 20), (20, 0), (20, 10)]


def test_parts_are_outlined_apart_the_longest_first_and_holes_are_filled():
    shape = np.zeros((10, 30), bool)
    shape[2:5, 2:5] = True
    shape[0:10, 10:20] = True
    shape[4:6, 14:16] = False
    outlines = Mask(shape, (100, 0), (200, 10)).to_polygons()
    assert [polygon_area(outline) for outline in outlines] == [100, 9]
    assert corners(outlines[1]) == [(102, 2), (102, 5), (105, 2), (105, 5)]


def test_a_mask_without_pixels_has_no_outline():
    assert Mask(np.zeros((5, 5), bool), (0, 0), (5, 5)).to_polygons() == ()


def test_a_disc_keeps_its_area_with_few_points():
    rows, columns = np.mgrid[:200, :200]
    disc = (rows - 99.5) ** 2 + (columns - 99.5) ** 2 < 80**2
    (outline,) = Mask(disc, (0, 0), (200, 200)).to_polygons()
    assert polygon_area(outline) == pytest.approx(int(disc.sum()), rel=0.01)
    assert len(outline) // 2 < 100


@given(masks())
def test_filling_the_outlines_gives_the_mask_back_up_to_its_holes(mask: Mask):
    # every pixel drawn 16 px wide, so that the tolerance of 1 px is too little to matter
    large = Mask(mask.crop.repeat(16, 0).repeat(16, 1), (0, 0), (mask.crop.shape[1] * 16, mask.crop.shape[0] * 16))
    filled = np.zeros(large.crop.shape, np.uint8)
    for outline in large.to_polygons():
        # fillPoly takes pixel centres: half a pixel inwards from the edges
        centres = np.array(outline).reshape(-1, 2) - 0.5
        cv2.fillPoly(filled, [np.rint(centres * 16).astype(np.int32)], 1, shift=4)
    found = filled[8::16, 8::16].astype(bool)
    holes = _holes(mask.crop)
    assert np.array_equal(found, mask.crop | holes)


def _holes(crop: Bitmap) -> Bitmap:
    """Background that cannot be reached from outside by steps to the four sides (objects join over corners)."""
    padded = np.pad((~crop).astype(np.uint8), 1, constant_values=1)
    _, parts = cv2.connectedComponents(padded, connectivity=4)
    enclosed: Bitmap = np.logical_and(parts != parts[0, 0], padded == 1)[1:-1, 1:-1]
    return enclosed


def test_the_outline_of_a_12_mp_box_is_traced_in_bounded_time():
    rows, columns = np.mgrid[:3000, :4000]
    ellipse = ((rows - 1500) / 1400) ** 2 + ((columns - 2000) / 1900) ** 2 < 1
    mask = Mask(ellipse, (0, 0), (4000, 3000))
    began_s = time.process_time()
    (outline,) = mask.to_polygons()
    assert time.process_time() - began_s < 1.0
    assert polygon_area(outline) == pytest.approx(mask.area_px, rel=0.005)


def test_an_outline_traced_on_a_smaller_copy_stays_inside_the_image():
    size: Size = (4001, 3001)
    (outline,) = Mask(np.ones(size[::-1], bool), (0, 0), size).to_polygons()
    assert corners(outline) == [(0, 0), (0, 3001), (4001, 0), (4001, 3001)]


def test_noise_gives_a_bounded_number_of_outlines():
    noise = np.random.default_rng(7).random((1000, 1000)) < 0.3
    began_s = time.process_time()
    assert len(Mask(noise, (0, 0), (1000, 1000)).to_polygons()) == MAX_OUTLINES
    assert time.process_time() - began_s < 2.0


def test_forty_masks_of_a_12_mp_photo_are_never_dense_at_the_same_time():
    disc = as_png(Image.fromarray(np.hypot(*(np.mgrid[:256, :256] - 128)) < 120).convert("L"))
    objects = tuple(
        ModelObject("disc", box_2d=(0, 0, 1000, 1000), box=(0, 0, 1000, 1000), mask_png=disc) for _ in range(40)
    )
    tracemalloc.start()
    try:
        annotations, dropped = place_objects(ParsedAnswer(objects), (4000, 3000))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(annotations), dropped) == (40, [])
    assert all(each.rle and each.polygons for each in annotations)
    assert peak_bytes < 5 * 4000 * 3000  # one at a time, with its copies; 40 of them would be 480 MB
