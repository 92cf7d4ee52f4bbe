"""From model coordinates to source pixels, worked by hand."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixscribe.errors import AnswerError
from pixscribe.geometry import box_area, place_objects, polygon_area, scale_box, scale_polygon
from pixscribe.types import Annotation, Box2D, ModelObject, ParsedAnswer, Polygon, Size


def place(*objects: ModelObject, source_wh: Size = (2000, 400)) -> list[Annotation]:
    return place_objects(ParsedAnswer(objects), source_wh)[0]


def grey_png(width: int, height: int, value: int = 255) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), value).save(buffer, "PNG")
    return buffer.getvalue()


def test_scale_box_is_y_first_in_and_x_first_out():
    assert scale_box((250, 100, 750, 300), (2000, 400)) == (200.0, 100.0, 600.0, 300.0)


def test_the_whole_image_is_0_to_its_width_and_height():
    assert scale_box((0, 0, 1000, 1000), (641, 479)) == (0.0, 0.0, 641.0, 479.0)


def test_scale_box_clips_to_the_image():
    assert scale_box((-10, 900, 500, 1200), (2000, 400)) == (1800.0, 0.0, 2000.0, 200.0)


@pytest.mark.parametrize("box", [(0, 1000, 500, 1100), (-50, 0, 0, 500), (1001, 0, 1002, 5), (1e-323, 0, 1.5e-323, 5)])
def test_scale_box_refuses_a_box_of_which_nothing_is_left(box: Box2D):
    with pytest.raises(AnswerError, match="is inside the image of 2000x400 px"):
        scale_box(box, (2000, 400))


def test_scale_polygon_is_x_first_and_moves_points_outside_to_the_edge():
    assert scale_polygon((100, 250, 1100, 250, 500, -1), (2000, 400)) == (200.0, 100.0, 2000.0, 100.0, 1000.0, 0.0)


def test_the_area_of_a_box_is_width_times_height():
    assert box_area((10.0, 20.0, 13.0, 24.5)) == 13.5


@pytest.mark.parametrize(
    ("polygon", "area"),
    [
        pytest.param((0, 0, 4, 0, 4, 3), 6.0, id="triangle"),
        pytest.param((4, 3, 4, 0, 0, 0), 6.0, id="triangle-the-other-way"),
        pytest.param((0, 0, 3, 0, 3, 1, 1, 1, 1, 2, 0, 2), 4.0, id="l-shape"),
        pytest.param((0, 0, 2, 2, 4, 4), 0.0, id="line"),
        pytest.param((), 0.0, id="nothing"),
        pytest.param((1e8, 1e8, 1e8 + 1, 1e8, 1e8 + 1, 1e8 + 1, 1e8, 1e8 + 1), 1.0, id="far-from-the-origin"),
    ],
)
def test_the_area_of_a_polygon_does_not_depend_on_its_direction(polygon: Polygon, area: float):
    assert polygon_area(polygon) == area


def test_a_box_is_placed_with_its_own_area_and_the_numbers_of_the_model():
    found = ModelObject("cat", (750, 100, 250, 300), (250, 100, 750, 300), flags=("corners_swapped",))
    assert place(found) == [
        Annotation(
            index=0,
            label="cat",
            xyxy=(200.0, 100.0, 600.0, 300.0),
            area=80_000.0,
            polygons=(),
            rle=None,
            box_2d=(750, 100, 250, 300),
            flags=("corners_swapped",),
        )
    ]


def test_a_clipped_box_is_flagged():
    (placed,) = place(ModelObject("cat", box=(-10, 0, 500, 500)))
    assert (placed.xyxy, placed.area, placed.flags) == ((0.0, 0.0, 1000.0, 200.0), 200_000.0, ("clipped",))


def test_an_object_of_words_has_neither_box_nor_area():
    assert place(ModelObject("A red car.")) == [Annotation(0, "A red car.", None, None, (), None, None, ())]


def test_the_area_is_that_of_the_polygons_where_there_are_some():
    rings = ((0, 0, 100, 0, 100, 1000), (500, 0, 600, 0, 600, 500, 500, 500))
    (placed,) = place(ModelObject("cat", box=(0, 0, 1000, 600), polygons=rings))
    assert placed.polygons == ((0.0, 0.0, 200.0, 0.0, 200.0, 400.0), (1000, 0, 1200, 0, 1200, 200, 1000, 200))
    assert placed.area == 200 * 400 / 2 + 200 * 200
    assert placed.flags == ()


def test_a_ring_without_area_is_left_out_and_flagged():
    (placed,) = place(ModelObject("cat", box=(0, 0, 500, 500), polygons=((0, 0, 10, 10, 20, 20),)))
    assert (placed.polygons, placed.area, placed.flags) == ((), 200_000.0, ("polygon_degenerate",))


def test_a_polygon_outside_the_image_is_clipped_and_flagged():
    (placed,) = place(ModelObject("cat", box=(0, 0, 500, 500), polygons=((0, 0, 1500, 0, 0, 500),)))
    assert (placed.polygons, placed.flags) == (((0.0, 0.0, 2000.0, 0.0, 0.0, 200.0),), ("clipped",))


@pytest.mark.parametrize("box", [None, (0, 1000, 10, 1200)])
def test_an_unusable_box_is_replaced_by_that_of_the_polygon(box: Box2D | None):
    (placed,) = place(ModelObject("cat", box=box, polygons=((100, 250, 300, 500, 200, 750),)))
    assert (placed.xyxy, placed.flags) == ((200.0, 100.0, 600.0, 300.0), ("box_from_polygon",))


def test_what_is_outside_the_image_is_dropped_with_a_reason_and_the_others_keep_their_index():
    outside, inside = ModelObject("a", box=(0, 1000, 10, 1200)), ModelObject("b", box=(0, 0, 10, 10))
    annotations, dropped = place_objects(ParsedAnswer((outside, inside)), (2000, 400))
    assert [(placed.index, placed.label) for placed in annotations] == [(1, "b")]
    assert dropped == ["object 0: nothing of the box [0, 1000, 10, 1200] is inside the image of 2000x400 px"]


def test_objects_of_which_none_is_inside_the_image_are_a_failure():
    with pytest.raises(AnswerError, match="none of 2 objects is inside the image") as caught:
        place(ModelObject("a", box=(0, 1000, 10, 1200)), ModelObject("b", polygons=((0, 0, 1, 1, 2, 2),)))
    assert caught.value.code == "invalid_answer"


def test_an_answer_without_objects_has_no_annotations():
    assert place_objects(ParsedAnswer(()), (2000, 400)) == ([], [])


def test_a_raster_mask_gives_rle_outline_and_area():
    # the left half of the map is the object: columns 10-14 and rows 20-29 of the image
    buffer = io.BytesIO()
    half = Image.new("L", (10, 10), 0)
    half.paste(255, (0, 0, 5, 10))
    half.save(buffer, "PNG")
    (placed,) = place(ModelObject("cat", box=(200, 100, 300, 200), mask_png=buffer.getvalue()), source_wh=(100, 100))
    assert (placed.xyxy, placed.area) == ((10.0, 20.0, 20.0, 30.0), 50.0)
    assert sorted(zip(placed.polygons[0][::2], placed.polygons[0][1::2], strict=True)) == [
        (10, 20),
        (10, 30),
        (15, 20),
        (15, 30),
    ]
    assert placed.rle is not None
    assert placed.rle.size == (100, 100)


def test_a_mask_keeps_its_place_when_its_box_is_clipped():
    # the right half of the box is outside: the whole map would be squeezed if the box were clipped first
    ramp = Image.new("L", (100, 1), 0)
    ramp.paste(255, (25, 0, 100, 1))
    buffer = io.BytesIO()
    ramp.save(buffer, "PNG")
    (placed,) = place(ModelObject("cat", box=(0, 0, 1000, 2000), mask_png=buffer.getvalue()), source_wh=(50, 10))
    assert (placed.xyxy, placed.area, placed.flags) == ((0.0, 0.0, 50.0, 10.0), 25.0 * 10, ("clipped",))


@pytest.mark.parametrize(
    ("png", "flag"),
    [
        pytest.param(grey_png(4, 4)[:40], "mask_unreadable", id="cut"),
        pytest.param(grey_png(4, 4, 127), "mask_empty", id="nothing-above-the-threshold"),
    ],
)
def test_a_mask_that_shows_nothing_leaves_the_box(png: bytes, flag: str):
    (placed,) = place(ModelObject("cat", box=(0, 0, 500, 500), mask_png=png))
    assert (placed.rle, placed.polygons, placed.area, placed.flags) == (None, (), 200_000.0, (flag,))


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    corners=st.lists(st.one_of(finite, st.floats(-50, 1050), st.integers(0, 1000)), min_size=4, max_size=4),
    polygon=st.lists(st.one_of(finite, st.integers(-10, 1010)), min_size=6, max_size=6),
    source_wh=st.tuples(st.integers(1, 40_000), st.integers(1, 40_000)),
)
def test_a_placed_box_is_finite_inside_the_image_and_has_both_sides(
    corners: list[float], polygon: list[float], source_wh: Size
):
    y0, y1, x0, x1 = *sorted(corners[:2]), *sorted(corners[2:])
    found = ModelObject("any", box=(y0, x0, y1, x1), polygons=(tuple(polygon),))
    try:
        (placed,) = place(found, source_wh=source_wh)
    except AnswerError:
        return
    assert placed.xyxy is not None
    left, top, right, bottom = placed.xyxy
    assert 0 <= left < right <= source_wh[0]
    assert 0 <= top < bottom <= source_wh[1]
    assert placed.area is not None
    assert math.isfinite(placed.area)
    assert all(0 <= value <= max(source_wh) for ring in placed.polygons for value in ring)
