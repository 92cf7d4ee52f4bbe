"""Ground truth that is written down in a test."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Box = tuple[float, float, float, float]
"""xyxy, px."""


def outline_of(box: Box) -> tuple[float, ...]:
    """A pentagon that fills most of the box."""
    xmin, ymin, xmax, ymax = box
    return (xmin, ymin, xmax, ymin, xmax, (ymin + ymax) / 2, (xmin + xmax) / 2, ymax, xmin, ymax)


def true(label: str, box: Box, **keys: Any) -> dict[str, Any]:
    """An object of a truth; `label` becomes its id."""
    xmin, ymin, xmax, ymax = box
    area = (xmax - xmin) * (ymax - ymin)
    return {"label": label, "bbox": [xmin, ymin, xmax - xmin, ymax - ymin], "area": area, "iscrowd": 0, **keys}


def coco(objects: Mapping[str, Sequence[dict[str, Any]]], labels: Sequence[str] = ()) -> dict[str, Any]:
    """Objects by file name, of images of 1000 x 1000 px."""
    named = [*labels, *(each["label"] for many in objects.values() for each in many)]
    names = list(dict.fromkeys(named))
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    for image_id, (file_name, many) in enumerate(objects.items(), start=1):
        content["images"].append({"id": image_id, "file_name": file_name, "width": 1000, "height": 1000})
        for each in many:
            number = len(content["annotations"]) + 1
            category_id = names.index(each["label"]) + 1
            content["annotations"].append({"id": number, "image_id": image_id, "category_id": category_id, **each})
    return content


def write_truth(folder: Path, content: Any) -> Path:
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path
