"""FiftyOne: `labels.json` and the pictures in `data/`, where `fo.types.COCODetectionDataset` looks for them.

It is COCO as in `coco`. FiftyOne makes a field of each key that COCO does not know: `prompt` and `flags` of an object
are there to filter by. The folder of the pictures has to be there, or nothing is opened.
"""

from typing import ClassVar

from pixscribe.exports.coco import CocoExporter


class FiftyOneExporter(CocoExporter):
    """`fo.Dataset.from_dir(DIR, fo.types.COCODetectionDataset)` reads it, with `label_field` and so on as usual."""

    picture_folder: ClassVar[str] = "data"
    needs_pictures: ClassVar[bool] = True
    file_name: ClassVar[str] = "labels.json"
