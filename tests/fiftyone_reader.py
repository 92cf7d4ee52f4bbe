"""Run by a Python that has FiftyOne: what its importer makes of exports, as a JSON list on stdout.

    fiftyone_reader.py DIR [DIR…]

The importer is what `fo.Dataset.from_dir` reads samples from, before it puts them into a database.
"""

import json
import sys
from typing import Any

from fiftyone.utils.coco import COCODetectionDatasetImporter


def read(folder: str) -> dict[str, Any]:
    with COCODetectionDatasetImporter(folder, label_types=["detections", "segmentations"]) as importer:
        samples = [_sample(*each) for each in importer]
        return {"classes": importer.get_dataset_info()["classes"], "samples": samples}


def _sample(path: str, metadata: Any, labels: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": path,
        "size": [metadata.width, metadata.height],
        **{name: [_object(each) for each in found.detections] for name, found in labels.items()},
    }


def _object(found: Any) -> dict[str, Any]:
    """Boxes are shares of the picture's sides; a mask covers its box."""
    return {
        "label": found.label,
        "box": list(found.bounding_box),
        "mask_px": None if found.mask is None else int(found.mask.sum()),
        "prompt": found["prompt"],
        "flags": list(found["flags"]),
    }


print(json.dumps([read(folder) for folder in sys.argv[1:]]))
