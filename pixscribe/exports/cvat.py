"""CVAT for images 1.1: `annotations.xml`, written as the images come, and pictures in `images/`.

An object with outlines is a polygon, several of them in one group; with a mask alone it is a mask; else it is a box. In
CVAT the labels have to exist in the task that the file is loaded into; `<meta>` lists them. Those that XML would
make one are told apart by the id of their category: `car` and `car (7)`.
"""

from collections.abc import Iterable, Iterator
from typing import ClassVar
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from pycocotools import mask as coco

from pixscribe.exports.base import BOX_KINDS, Dataset, DatasetImage, Exporter
from pixscribe.exports.xmltext import add_texts, decimal, label_names, xml_text
from pixscribe.tables import Row
from pixscribe.types import Kind


class CvatExporter(Exporter):
    """Ids of images count from 0, groups within an image from 1."""

    kinds: ClassVar[frozenset[Kind]] = BOX_KINDS
    picture_folder: ClassVar[str] = "images"

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._file = self.resources.enter_context((dataset.root / "annotations.xml").open("wb"))
        self._label_names = label_names(dataset.categories)
        self._count = 0
        self._file.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        self._write(_meta(dataset, self._label_names.values()))

    def add(self, image: DatasetImage) -> None:
        element = Element(
            "image",
            id=str(self._count),
            name=xml_text(image.name),
            width=str(image.width),
            height=str(image.height),
        )
        groups = 0
        for found in image.rows.annotations:
            shapes = list(_shapes(found, self._label_names[found["label"]]))
            groups += len(shapes) > 1
            for shape in shapes:
                if len(shapes) > 1:
                    shape.set("group_id", str(groups))
                element.append(shape)
        self._write(element)
        self._count += 1

    def close(self) -> None:
        self._file.write(b"</annotations>\n")

    def _write(self, element: Element) -> None:
        self._file.write(tostring(element, encoding="utf-8") + b"\n")


def _meta(dataset: Dataset, names: Iterable[str]) -> Element:
    meta = Element("meta")
    task = SubElement(meta, "task")
    add_texts(task, name=dataset.name, mode="annotation")
    labels = SubElement(task, "labels")
    for name in names:
        label = SubElement(labels, "label")
        add_texts(label, name=name)
        SubElement(label, "attributes")
    return meta


def _shapes(found: Row, label: str) -> Iterator[Element]:
    common = {"label": label, "source": "auto", "occluded": "0", "z_order": "0"}
    if found["polygons"]:
        for ring in found["polygons"]:
            points = ";".join(f"{decimal(x)},{decimal(y)}" for x, y in zip(ring[::2], ring[1::2], strict=True))
            yield Element("polygon", common, points=points)
    elif found["rle"]:
        yield Element("mask", common | _mask(found["rle"]))
    else:
        edges = {"xtl": "xmin", "ytl": "ymin", "xbr": "xmax", "ybr": "ymax"}
        yield Element("box", common | {name: decimal(found[edge]) for name, edge in edges.items()})


def _mask(rle: Row) -> dict[str, str]:
    """CVAT's runs go along the rows of the crop, the first one of 0; COCO's down the columns of the image."""
    left, top, width, height = (int(number) for number in coco.toBbox(rle))
    crop = coco.decode(rle)[top : top + height, left : left + width].ravel()
    edges = np.flatnonzero(np.diff(crop, prepend=0, append=2))
    runs = np.diff(edges, prepend=0)
    return {
        "rle": ", ".join(map(str, runs)),
        "left": str(left),
        "top": str(top),
        "width": str(width),
        "height": str(height),
    }
