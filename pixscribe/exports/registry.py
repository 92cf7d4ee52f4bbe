"""The formats by their names."""

from collections.abc import Mapping
from importlib import import_module

from pixscribe.errors import ConfigError
from pixscribe.exports.base import Exporter

FORMATS: Mapping[str, str] = {
    "coco": "coco:CocoExporter",
    "yolo": "yolo:YoloExporter",
    "yolo-seg": "yolo:YoloSegExporter",
    "voc": "voc:VocExporter",
    "cvat": "cvat:CvatExporter",
    "labelstudio": "labelstudio:LabelStudioExporter",
    "huggingface": "huggingface:HuggingFaceExporter",
    "imagefolder": "huggingface:ImageFolderExporter",
    "fiftyone": "fiftyone:FiftyOneExporter",
    "webdataset": "webdataset:WebDatasetExporter",
}
"""The module and the class of each, imported when it is asked for."""


def find_exporter(format_name: str) -> type[Exporter]:
    """What writes a format. Raises `ConfigError` for one that is not known."""
    if format_name not in FORMATS:
        raise ConfigError(f"--format {format_name}: unknown; allowed: {', '.join(FORMATS)}")
    module, _, name = FORMATS[format_name].partition(":")
    exporter: type[Exporter] = getattr(import_module(f"pixscribe.exports.{module}"), name)
    return exporter
