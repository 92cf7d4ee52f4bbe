"""COCO instances: one file `annotations.json`, written as the images come, and pictures in `images/`.

An object has its outlines as polygons; without polygons its mask as RLE; and with a box alone an empty `segmentation`,
as CVAT, Roboflow and supervision write it. pycocotools evaluates such boxes, but has no mask of them: `annToMask` takes
objects with outlines. A rectangle would be a mask too, and a wrong one to train on. `iscrowd` is 0 for all.

Beside what COCO defines, an image has `sha256` (of the source), `uri` and `source_file_name`, and an annotation has
`prompt` and `flags`; readers pass over keys that they do not know.
"""

import shutil
from typing import BinaryIO, ClassVar

import orjson

from pixscribe import __version__
from pixscribe.exports.base import BOX_KINDS, Dataset, DatasetImage, Exporter
from pixscribe.tables import Row
from pixscribe.types import Kind

BUFFER_BYTES = 1 << 20
"""With Python's 8 KB, a third of the time was spent on waiting for the threads that read, at each write."""


class CocoExporter(Exporter):
    """Ids of images and annotations count from 1 in the order of the tables."""

    kinds: ClassVar[frozenset[Kind]] = BOX_KINDS
    picture_folder: ClassVar[str] = "images"
    file_name: ClassVar[str] = "annotations.json"

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._path = dataset.root / self.file_name
        self._objects_path = self._path.with_suffix(".objects")
        self._images = _List(self.resources.enter_context(self._path.open("wb", BUFFER_BYTES)))
        self._objects = _List(self.resources.enter_context(self._objects_path.open("w+b", BUFFER_BYTES)))
        self._images.file.write(b"{" + self._header() + b',\n"images": [')

    def add(self, image: DatasetImage) -> None:
        row = image.rows.image
        self._images.append(
            {
                "id": self._images.count + 1,
                "file_name": image.name,
                "width": image.width,
                "height": image.height,
                "sha256": row["image_id"],
                "uri": row["uri"],
                "source_file_name": row["file_name"],
            }
        )
        for found in image.rows.annotations:
            self._objects.append(self._annotation(found))

    def close(self) -> None:
        self._images.file.write(b'\n],\n"annotations": [')
        self._objects.file.seek(0)
        shutil.copyfileobj(self._objects.file, self._images.file, BUFFER_BYTES)
        self._images.file.write(b"\n]}\n")
        self._objects_path.unlink()

    def _header(self) -> bytes:
        categories = [
            {"id": number, "name": label, "supercategory": ""} for label, number in self.dataset.categories.items()
        ]
        info = {"description": self.dataset.name, "contributor": f"pixscribe {__version__}"}
        return orjson.dumps({"info": info, "licenses": [], "categories": categories})[1:-1]

    def _annotation(self, found: Row) -> Row:
        xmin, ymin, xmax, ymax = (found[edge] for edge in ("xmin", "ymin", "xmax", "ymax"))
        return {
            "id": self._objects.count + 1,
            "image_id": self._images.count,
            "category_id": self.dataset.categories[found["label"]],
            "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
            "area": found["area"],
            "segmentation": found["polygons"] or found["rle"] or [],
            "iscrowd": 0,
            "prompt": found["prompt"],
            "flags": found["flags"],
        }


class _List:
    """A JSON list in a file, one element a line."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.count = 0

    def append(self, element: Row) -> None:
        self.file.write((b",\n" if self.count else b"\n") + orjson.dumps(element))
        self.count += 1
