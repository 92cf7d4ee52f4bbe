"""Which object of one list is which of another: by how much their boxes overlap.

Boxes are rows (xmin, ymin, xmax, ymax) in pixels with continuous edges: a box from 0 to 10 is 10 wide.
"""

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float64]
"""Shape (N, 4), xyxy."""
Matrix = npt.NDArray[np.float64]
"""Shape (N, M): one row for each object of the first list, one column for each of the second."""


def as_boxes(xyxys: object) -> Boxes:
    """Boxes as an array, also of an empty list."""
    return np.asarray(xyxys, dtype=np.float64).reshape(-1, 4)


def iou_matrix(first: Boxes, second: Boxes) -> Matrix:
    """Intersection over union of each box with each, from 0 to 1. A box without area overlaps nothing."""
    shared = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def intersections(first: Boxes, second: Boxes) -> Matrix:
    """The area, in px², that each box has in common with each."""
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared: Matrix = np.prod(np.maximum(bottom_right - top_left, 0.0), axis=2)
    return shared


def areas(boxes: Boxes) -> npt.NDArray[np.float64]:
    """Of each box, in px²."""
    found: npt.NDArray[np.float64] = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1)
    return found


def best_pairs(iou: Matrix, at_least: float, allowed: npt.NDArray[np.bool_] | None = None) -> list[tuple[int, int]]:
    """Pairs (row, column) that overlap by `at_least` or more, each row and each column in one pair at most.

    The pair that overlaps most is taken first, and so on; of equal ones that of the lower row, then of the lower
    column. `allowed`, of the same shape, says which may be a pair at all: for those of one label first and of different
    labels afterwards, call it twice, and leave out of the second call what the first one has paired.

    Greedy and not optimal over the whole image (the Hungarian method): objects that are the same in both lists are
    always a pair, each pair can be explained by itself, and a box more elsewhere in the image changes none of the
    better ones. The optimum would break up a perfect pair where two mediocre ones add up to more.
    """
    candidates = iou >= at_least if allowed is None else (iou >= at_least) & allowed
    rows, columns = np.nonzero(candidates & (iou > 0))
    order = np.argsort(-iou[rows, columns], kind="stable")
    free_rows, free_columns = set(rows.tolist()), set(columns.tolist())
    pairs = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row in free_rows and column in free_columns:
            free_rows.remove(row)
            free_columns.remove(column)
            pairs.append((row, column))
    return pairs
