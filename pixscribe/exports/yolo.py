"""YOLO, as ultralytics reads it: `data.yaml`, `labels/**/x.txt` beside `images/**/x.jpg`, detection and segmentation.

A class is the id of its category less 1, and `names` lists all categories of the output, so that models of several
exports agree. No split is made: `val` names the same pictures as `train`, since readers want both; make your own.
There is no `path` in data.yaml: readers then take the folder that it lies in, wherever that was moved.

An image without objects has an empty label file. Segmentation takes one outline per object: several rings are joined by
seams of no width at their nearest corners, as ultralytics joins those of COCO, holes are filled, and an object with a
box alone is the box's four corners.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import yaml

from pixscribe.exports.base import BOX_KINDS, Dataset, DatasetImage, Exporter
from pixscribe.exports.names import split_suffix
from pixscribe.tables import Row
from pixscribe.types import Kind

Ring = npt.NDArray[np.float64]
"""Corners in pixels, one (x, y) a row."""


class YoloExporter(Exporter):
    """One box a line: class, then x and y of the centre, width and height, as shares of the image's sides."""

    kinds: ClassVar[frozenset[Kind]] = BOX_KINDS
    picture_folder: ClassVar[str] = "images"
    needs_stems: ClassVar[bool] = True
    # readers find the labels of a picture by putting `labels` in the place of the last `images` of its path
    reserved_folders: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._labels = dataset.root / "labels"
        self._folder = Path()

    def add(self, image: DatasetImage) -> None:
        path = self._labels / f"{split_suffix(image.name)[0]}.txt"
        if path.parent != self._folder:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = path.parent
        path.write_text("".join(self._line(found, image) for found in image.rows.annotations))

    def close(self) -> None:
        names = {number - 1: label for label, number in self.dataset.categories.items()}
        told = "" if self.dataset.has_pictures else "# the pictures go into images/, under the names of the labels\n"
        listed = yaml.safe_dump(
            {"train": "images", "val": "images", "nc": len(names), "names": names},
            sort_keys=False,
            allow_unicode=True,
            width=float("inf"),
        )
        (self.dataset.root / "data.yaml").write_text(
            f"# val is the same as train: no split was made\n{told}{listed}", encoding="utf-8"
        )

    def _line(self, found: Row, image: DatasetImage) -> str:
        numbers = self._numbers(found) / (image.width, image.height)
        # 7 digits are 0.002 px of 20,000
        shares = " ".join(f"{share:.7f}" for share in numbers.ravel())
        return f"{self.dataset.categories[found['label']] - 1} {shares}\n"

    def _numbers(self, found: Row) -> Ring:
        low, high = _corners(found)
        return np.array([(low + high) / 2, high - low])


class YoloSegExporter(YoloExporter):
    """One outline a line: class, then x and y of each corner, as shares of the image's sides."""

    kinds: ClassVar[frozenset[Kind]] = frozenset({"segment"})

    def _numbers(self, found: Row) -> Ring:
        rings = [np.array(ring).reshape(-1, 2) for ring in found["polygons"] or ()]
        return join_rings(rings) if rings else _rectangle(found)


def join_rings(rings: list[Ring]) -> Ring:
    """One ring that goes round all of them, and to the next and back along the shortest way between two corners."""
    joined, *others = rings
    for ring in others:
        distances = np.square(joined[:, None] - ring[None]).sum(axis=2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        detour = np.concatenate((np.roll(ring, -there, axis=0), ring[there][None], joined[here][None]))
        joined = np.concatenate((joined[: here + 1], detour, joined[here + 1 :]))
    return joined


def _corners(found: Row) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return np.array([found["xmin"], found["ymin"]]), np.array([found["xmax"], found["ymax"]])


def _rectangle(found: Row) -> Ring:
    (xmin, ymin), (xmax, ymax) = _corners(found)
    return np.array([(xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax)])
