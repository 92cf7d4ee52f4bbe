"""The columns of a Hugging Face data set: what Arrow calls their types, and what `datasets` calls them.

`datasets` takes its own types from the schema's metadata, so that labels keep their names without a script. They are
written as it did before version 4, which every later one reads. Objects are a struct of lists, as in `cppe-5` and the
guides to object detection.
"""

from hashlib import sha256
from typing import Any

import orjson
import pyarrow as pa

from pixscribe.exports.base import BOX_KINDS, Dataset, DatasetImage
from pixscribe.exports.content import TEXT_KINDS, bbox_of, classes_of, objects_of, text_of
from pixscribe.tables import Row
from pixscribe.types import Kind

Feature = dict[str, Any]

_PICTURE = ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
_FIXED = [
    ("image_id", pa.int64()),
    ("file_name", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("sha256", pa.string()),
    ("uri", pa.string()),
    # imagefolder would take a column `…_file_name` for another picture
    ("source_name", pa.string()),
]
_OBJECT = {
    "id": pa.int64(),
    "area": pa.float64(),
    "bbox": pa.list_(pa.float64()),
    "category": pa.int64(),
    "segmentation": pa.list_(pa.list_(pa.float64())),
    "score": pa.float64(),
    "prompt": pa.string(),
    "flags": pa.list_(pa.string()),
}
_DTYPES = {"double": "float64"}


class Columns:
    """The columns that a data set needs, and the rows for them. Images and objects are counted from 1, as they come."""

    def __init__(self, dataset: Dataset, *, embed_pictures: bool) -> None:
        self._dataset = dataset
        self._embed_pictures = embed_pictures
        self._has_objects = not BOX_KINDS.isdisjoint(dataset.prompts.values())
        self._images = self._objects = 0
        fixed = [*([_PICTURE] if embed_pictures else []), *_FIXED, *([_objects_type()] if self._has_objects else [])]
        self._of_prompt = _prompt_columns(dataset, {"image", "objects", *(name for name, _ in fixed)})
        of_prompts = [(column, _type_of(dataset.prompts[prompt])) for prompt, column in self._of_prompt.items()]
        self._schema = pa.schema([*fixed, *of_prompts])
        self._digest = sha256(str(self.schema.metadata).encode())

    @property
    def schema(self) -> pa.Schema:
        """With the features where `datasets` looks for them."""
        features = {field.name: _feature(field.type) for field in self._schema}
        if self._embed_pictures:
            features["image"] = {"_type": "Image"}
        if self._has_objects:
            labels = {"names": list(self._dataset.categories), "_type": "ClassLabel"}
            features["objects"]["category"] = {"feature": labels, "_type": "Sequence"}
        return self._schema.with_metadata({"huggingface": orjson.dumps({"info": {"features": features}})})

    @property
    def digest(self) -> str:
        """Of the features and all rows so far; hexadecimal. Pictures are in it as the `sha256` of their sources."""
        return self._digest.hexdigest()

    def row(self, image: DatasetImage) -> Row:
        """What is written of an image."""
        self._images += 1
        source = image.rows.image
        row = {
            "image_id": self._images,
            "file_name": image.name,
            "width": image.width,
            "height": image.height,
            "sha256": source["image_id"],
            "uri": source["uri"],
            "source_name": source["file_name"],
        }
        if self._has_objects:
            row["objects"] = self._objects_of(image)
        row |= {column: self._said(image, prompt) for prompt, column in self._of_prompt.items()}
        self._digest.update(orjson.dumps(row))
        if self._embed_pictures and image.picture:
            row["image"] = {"bytes": image.picture.read_bytes(), "path": image.name}
        return row

    def _objects_of(self, image: DatasetImage) -> dict[str, list[Any]]:
        found = objects_of(image, self._dataset.prompts)
        start = self._objects + 1
        self._objects += len(found)
        return {
            "id": list(range(start, start + len(found))),
            "bbox": [bbox_of(row) for row in found],
            "category": [self._dataset.categories[row["label"]] - 1 for row in found],
            "segmentation": [row["polygons"] or [] for row in found],
            **{name: [row[name] for row in found] for name in ("area", "score", "prompt", "flags")},
        }

    def _said(self, image: DatasetImage, prompt: str) -> str | list[str] | None:
        return text_of(image, prompt) if self._dataset.prompts[prompt] in TEXT_KINDS else classes_of(image, prompt)


def _objects_type() -> tuple[str, pa.DataType]:
    return "objects", pa.struct([(name, pa.list_(of_one)) for name, of_one in _OBJECT.items()])


def _type_of(kind: Kind) -> pa.DataType:
    return pa.string() if kind in TEXT_KINDS else pa.list_(pa.string())


def _prompt_columns(dataset: Dataset, taken: set[str]) -> dict[str, str]:
    """The column of each prompt that asks for no objects: called as it, or `image_` if that would be another."""
    columns: dict[str, str] = {}
    for prompt, kind in dataset.prompts.items():
        if kind not in BOX_KINDS:
            column = prompt
            # imagefolder takes a column `…file_name` for a picture
            while column in taken or column.endswith(("file_name", "file_names")):
                column += "_"
            columns[prompt] = column
            taken = taken | {column}
    return columns


def _feature(type_: pa.DataType) -> Feature:
    """What `datasets` calls a type of Arrow."""
    if pa.types.is_struct(type_):
        return {field.name: _feature(field.type) for field in type_}
    if pa.types.is_list(type_):
        return {"feature": _feature(type_.value_type), "_type": "Sequence"}
    return {"dtype": _DTYPES.get(str(type_), str(type_)), "_type": "Value"}
