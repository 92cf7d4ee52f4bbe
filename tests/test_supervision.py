"""Our reading of an answer beside that of supervision, a parser written by others from the same documentation.

Only answers that both accept are compared. Where the two differ by rule, the test says so and by how much.
"""

import base64
import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import supervision as sv
from PIL import Image
from pycocotools import mask as coco

from pixscribe.answers import parse_answer
from pixscribe.geometry import place_objects
from pixscribe.types import Annotation, Kind, Size

# pycocotools 2.0.11 decodes in a way that numpy 2 warns about
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES: list[Size] = [(1000, 1000), (640, 480), (333, 777), (4032, 3024), (17, 23)]
BOXES = [[0, 0, 1000, 1000], [543, 40, 728, 200], [653, 352, 820, 522], [1, 2, 999, 3], [700, 100, 200, 50]]


def ours(text: str, kind: Kind, source_wh: Size) -> list[Annotation]:
    annotations, dropped = place_objects(parse_answer(text, kind), source_wh)
    assert not dropped
    return annotations


def theirs(vlm: sv.VLM, text: str, source_wh: Size) -> sv.Detections:
    return sv.Detections.from_vlm(vlm, text, resolution_wh=source_wh)


def fenced(items: list[dict[str, Any]]) -> str:
    return f"```json\n{json.dumps(items)}\n```"


def boxes_of(annotations: list[Annotation]) -> npt.NDArray[np.float64]:
    return np.array([annotation.xyxy for annotation in annotations])


@pytest.mark.parametrize("source_wh", SIZES)
@pytest.mark.parametrize(
    ("vlm", "boxes"),
    [
        # supervision's 2.0 parser does not sort the corners; its 2.5 parser does, as we do
        pytest.param(sv.VLM.GOOGLE_GEMINI_2_0, BOXES[:4], id="2.0"),
        pytest.param(sv.VLM.GOOGLE_GEMINI_2_5, BOXES, id="2.5"),
    ],
)
def test_boxes_and_labels_agree(vlm: sv.VLM, boxes: list[list[int]], source_wh: Size):
    text = fenced([{"box_2d": box, "label": f"object {number}"} for number, box in enumerate(boxes)])
    expected, found = theirs(vlm, text, source_wh), ours(text, "detect", source_wh)
    np.testing.assert_allclose(boxes_of(found), expected.xyxy, rtol=0, atol=0.5)
    assert [annotation.label for annotation in found] == list(expected.data["class_name"])


@pytest.mark.parametrize("source_wh", SIZES)
def test_boxes_of_structured_output_agree(source_wh: Size):
    text = json.dumps({"boxes": [{"box_2d": box, "label": "x"} for box in BOXES]})
    expected = theirs(sv.VLM.GOOGLE_GEMINI_3_6, text, source_wh)
    np.testing.assert_allclose(boxes_of(ours(text, "detect", source_wh)), expected.xyxy, rtol=0, atol=0.5)


def test_supervision_leaves_a_box_beyond_the_image_and_we_clip_it():
    text = fenced([{"box_2d": [-100, 900, 500, 1100], "label": "x"}])
    assert np.asarray(theirs(sv.VLM.GOOGLE_GEMINI_2_5, text, (1000, 1000)).xyxy).tolist() == [[900, -100, 1100, 500]]
    assert ours(text, "detect", (1000, 1000))[0].xyxy == (900, 0, 1000, 500)


# ---- masks ----


def probability_map() -> str:
    """A blurred disc, as the models draw them: 255 in the middle, falling to 0 over a rim."""
    rows, columns = np.mgrid[:64, :64]
    distance = np.hypot(rows - 31.5, columns - 31.5)
    pixels = np.clip((28 - distance) / 8 * 255, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def decoded(annotation: Annotation) -> npt.NDArray[np.bool_]:
    assert annotation.rle is not None
    mask: npt.NDArray[np.uint8] = coco.decode({"size": list(annotation.rle.size), "counts": annotation.rle.counts})
    return mask.astype(bool)


@pytest.mark.parametrize("box", [[100, 200, 300, 400], [-100, 900, 500, 1100], [0, 0, 1000, 1000]])
def test_masks_are_the_same_pixels_where_the_box_ends_on_whole_pixels(box: list[int]):
    text = fenced([{"box_2d": box, "mask": probability_map(), "label": "disc"}])
    expected = theirs(sv.VLM.GOOGLE_GEMINI_2_5, text, (1000, 500)).mask
    assert expected is not None
    assert np.array_equal(decoded(ours(text, "segment", (1000, 500))[0]), expected[0])


@pytest.mark.parametrize("source_wh", [(641, 479), (333, 777), (4032, 3024)])
def test_masks_differ_by_less_than_a_pixel_where_it_does_not(source_wh: Size):
    # supervision cuts the box's edges down to whole pixels, we round them: each edge is at most one pixel apart, so
    # that the masks can differ in a band of one pixel along the outline of the disc and nowhere else
    text = fenced([{"box_2d": [103, 207, 611, 719], "mask": probability_map(), "label": "disc"}])
    (found,), expected = ours(text, "segment", source_wh), theirs(sv.VLM.GOOGLE_GEMINI_2_5, text, source_wh).mask
    assert expected is not None
    differing = decoded(found) ^ expected[0]
    assert differing.sum() > 0
    assert not (differing & ~_rim(expected[0])).any()


def _rim(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The pixels within one pixel of the outline, on both sides of it."""
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    shifted = [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    rim: npt.NDArray[np.bool_] = np.logical_or.reduce(shifted) & ~np.logical_and.reduce(shifted)
    return rim


def test_polygons_cover_the_same_pixels_up_to_their_outline():
    mask = [[200, 250], [800, 250], [800, 750], [500, 900], [200, 750]]
    text = json.dumps({"boxes": [{"box_2d": [250, 200, 900, 800], "mask": mask, "label": "bowl"}]})
    expected = theirs(sv.VLM.GOOGLE_GEMINI_3_6, text, (1000, 500)).mask
    assert expected is not None
    (found,) = ours(text, "segment", (1000, 500))
    # 600 x 250 px and a triangle of 600 x 75; supervision paints the outline too: half a pixel along some 1,800 px
    assert found.area == 600 * 250 + 600 * 75 / 2
    assert 0 <= int(expected[0].sum()) - found.area <= 900
