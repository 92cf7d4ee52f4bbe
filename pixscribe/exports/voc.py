"""Pascal VOC: `Annotations/**/x.xml`, `JPEGImages/**/x.jpg`, and `ImageSets/Main/trainval.txt` with all names.

Boxes are written as VOC's devkit counts: the first pixel is 1, and `xmax` and `ymax` are the last pixel that belongs to
the object. In continuous edges, `xmin` and `ymin` are one more and `xmax` and `ymax` the same. supervision, detectron2,
and datumaro with `coordinate_mode="voc-one-based"` give the same edges back; whoever takes the numbers as they stand
has two of the edges off by one pixel. They are decimal where VOC's own are (2011 and later), in thousandths of a pixel.

`labelmap.txt` lists the labels for CVAT and datumaro, which refuse labels other than VOC's own without it; its form has
no way to say a label with a colon or a line break in it, and those are not there.

The last pixel of a box under a pixel wide or high is its first: such a box grows, and is never the wrong way round.

Labels that XML would make one, such as those with a character that it cannot hold, are told apart by the id of their
category: `car` and `car (7)`.

Outlines are no part of VOC's annotations. No split is made. Pictures keep their type, as everywhere: torchvision, which
opens `.jpg` only, wants a data set of JPEG.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from pixscribe.exports.base import BOX_KINDS, Dataset, DatasetImage, Exporter
from pixscribe.exports.names import split_suffix
from pixscribe.exports.xmltext import add_texts, decimal, label_names
from pixscribe.tables import Row
from pixscribe.types import Kind


class VocExporter(Exporter):
    """One XML file for each image, also for those without objects."""

    kinds: ClassVar[frozenset[Kind]] = BOX_KINDS
    picture_folder: ClassVar[str] = "JPEGImages"
    needs_stems: ClassVar[bool] = True

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._label_names = label_names(dataset.categories)
        self._annotations = dataset.root / "Annotations"
        self._folder = Path()
        names = dataset.root / "ImageSets/Main/trainval.txt"
        names.parent.mkdir(parents=True)
        self._names = self.resources.enter_context(names.open("w", encoding="utf-8"))

    def add(self, image: DatasetImage) -> None:
        stem, _ = split_suffix(image.name)
        path = self._annotations / f"{stem}.xml"
        if path.parent != self._folder:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = path.parent
        tree = ElementTree(_annotation(image, self._label_names))
        indent(tree)
        tree.write(path, encoding="utf-8")
        self._names.write(f"{stem}\n")

    def close(self) -> None:
        lines = "".join(f"{label}:::\n" for label in self._label_names.values() if _fits_on_a_line(label))
        (self.dataset.root / "labelmap.txt").write_text(f"# label:color_rgb:parts:actions\n{lines}", encoding="utf-8")


def _fits_on_a_line(label: str) -> bool:
    return label == label.strip() and not re.match(r"#|$|.*[:\n]", label, re.DOTALL)


def _annotation(image: DatasetImage, names: Mapping[str, str]) -> Element:
    root = Element("annotation")
    add_texts(root, folder=VocExporter.picture_folder, filename=image.name)
    add_texts(SubElement(root, "source"), database="pixscribe")
    add_texts(SubElement(root, "size"), width=image.width, height=image.height, depth=3)
    add_texts(root, segmented=0)
    for found in image.rows.annotations:
        root.append(_object(found, names[found["label"]], image))
    root.tail = "\n"
    return root


def _object(found: Row, name: str, image: DatasetImage) -> Element:
    element = Element("object")
    add_texts(element, name=name, pose="Unspecified", truncated=0, difficult=0)
    xmin, xmax = _pixels(found["xmin"], found["xmax"], image.width)
    ymin, ymax = _pixels(found["ymin"], found["ymax"], image.height)
    add_texts(SubElement(element, "bndbox"), xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    return element


def _pixels(low: float, high: float, side: int) -> tuple[str, str]:
    """The first and the last one, counted from 1, of two edges."""
    first = min(low + 1, side)
    return decimal(first), decimal(max(first, high))
