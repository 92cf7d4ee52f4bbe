import numpy as np
import pytest
import supervision as sv
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from pixscribe.matching import Boxes, as_boxes, best_pairs, intersections, iou_matrix

side = st.integers(0, 40)
boxes = st.lists(st.tuples(side, side, side, side), max_size=6).map(
    lambda many: as_boxes([(x, y, x + width, y + height) for x, y, width, height in many])
)


def xywh(many: Boxes) -> Boxes:
    return np.hstack([many[:, :2], many[:, 2:] - many[:, :2]])


def test_half_a_box_beside_it_is_a_third_of_both():
    iou = iou_matrix(as_boxes([(0, 0, 10, 10)]), as_boxes([(5, 0, 15, 10), (0, 0, 10, 10), (10, 0, 20, 10)]))
    assert iou.tolist() == [[50 / 150, 1.0, 0.0]]


def test_a_box_without_area_overlaps_nothing_not_even_itself():
    line = as_boxes([(3, 3, 3, 9)])
    assert iou_matrix(line, line).tolist() == [[0.0]]
    assert best_pairs(iou_matrix(line, line), at_least=0.0) == []


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 2), (2, 0)])
def test_nothing_pairs_with_nothing(rows: int, columns: int):
    iou = iou_matrix(as_boxes([(0, 0, 1, 1)] * rows), as_boxes([(0, 0, 1, 1)] * columns))
    assert iou.shape == (rows, columns)
    assert best_pairs(iou, 0.5) == []


def test_what_two_boxes_share_is_an_area():
    assert intersections(as_boxes([(0, 0, 10, 10)]), as_boxes([(8, 7, 20, 20)])).tolist() == [[2.0 * 3.0]]


@given(boxes, boxes)
def test_the_overlap_is_that_of_two_other_libraries(first: Boxes, second: Boxes):
    ours = iou_matrix(first, second)
    if len(first) and len(second):
        theirs = coco.iou(xywh(first), xywh(second), [0] * len(second))
        has_area = ours > 0  # of two boxes without area pycocotools makes 0 / 0
        assert ours[has_area] == pytest.approx(theirs[has_area], abs=1e-12)
        assert ours == pytest.approx(np.nan_to_num(sv.box_iou_batch(first, second)), abs=1e-6)


def test_each_object_is_in_one_pair_at_most_and_the_best_pair_comes_first():
    iou = np.array([[0.9, 0.8], [0.7, 0.0]])
    # both together would be 0.8 + 0.7, but 0.9 is no worse for what else there is
    assert best_pairs(iou, 0.5) == [(0, 0)]


def test_a_perfect_pair_is_never_broken_up_for_a_greater_sum():
    iou = np.array([[1.0, 0.8], [0.8, 0.0]])
    assert best_pairs(iou, 0.5) == [(0, 0)]
    assert iou[0, 1] + iou[1, 0] > iou[0, 0]


def test_the_threshold_itself_is_enough():
    iou = iou_matrix(as_boxes([(0, 0, 10, 10)]), as_boxes([(0, 0, 10, 20)]))
    assert iou.tolist() == [[0.5]]
    assert best_pairs(iou, 0.5) == [(0, 0)]
    assert best_pairs(iou, 0.51) == []


def test_of_equal_overlaps_the_first_in_both_lists_are_paired():
    assert best_pairs(np.full((3, 2), 0.6), 0.5) == [(0, 0), (1, 1)]


def test_those_of_one_label_can_be_paired_before_those_of_different_labels():
    iou = np.array([[0.6, 0.9], [0.0, 0.8]])
    same_label = np.array([[True, False], [False, False]])
    assert best_pairs(iou, 0.5, same_label) == [(0, 0)]
    left = np.array([[False, False], [False, True]])
    assert best_pairs(iou, 0.5, left) == [(1, 1)]


@given(boxes, boxes)
def test_pairs_overlap_enough_and_nobody_left_over_had_a_partner(first: Boxes, second: Boxes):
    iou = iou_matrix(first, second)
    pairs = best_pairs(iou, 0.3)
    rows, columns = {row for row, _ in pairs}, {column for _, column in pairs}
    assert len(rows) == len(columns) == len(pairs)
    assert all(iou[pair] >= 0.3 for pair in pairs)
    alone = iou.copy()
    alone[list(rows), :] = 0
    alone[:, list(columns)] = 0
    assert not (alone >= 0.3).any()
