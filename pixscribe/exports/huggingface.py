"""Hugging Face: `datasets.load_dataset(DIR)` opens both of these without a script.

`huggingface` is Parquet in `data/`, with the pictures in it if they are copied. `imagefolder` is the pictures
themselves in `data/`, and `metadata.parquet` beside them, which `datasets` reads from 3.4 on: as JSON lines, types
would be guessed from the first ones, which may have no objects. README.md is the card of the data set, and names the
files of its one split, `train`. It also has a digest of what is in them: `datasets` knows a folder that it has loaded
before by its last name and the card alone, and would give the rows of another export in its place.

A class is the id of its category less 1, and all categories of the output are named.
"""

from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pixscribe.exports.base import Dataset, DatasetImage, Exporter
from pixscribe.exports.columns import Columns
from pixscribe.exports.content import ALL_KINDS
from pixscribe.tables import Row
from pixscribe.types import Kind

SHARD_BYTES = 400_000_000
"""A shard is ended when it has passed this; `datasets` itself writes 500 MB at most."""
GROUP_BYTES = 32_000_000
"""Of rows in memory at once; what reads one row reads its group."""
GROUP_ROWS = 1000
PICTURE_LEAF = "image.bytes"
OBJECT_BYTES = 500
"""What an object of a few corners comes to."""
_TASKS: dict[Kind, str] = {
    "detect": "object-detection",
    "segment": "image-segmentation",
    "caption": "image-to-text",
    "classify": "image-classification",
    "ask": "visual-question-answering",
}


class HuggingFaceExporter(Exporter):
    """`data/train-00000-of-00001.parquet`, …"""

    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS
    picture_folder: ClassVar[str] = "data"
    embeds_pictures: ClassVar[bool] = True
    shard_bytes: ClassVar[int] = SHARD_BYTES

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._columns = Columns(dataset, embed_pictures=dataset.has_pictures)
        self._folder = dataset.root / "data"
        self._folder.mkdir()
        self._shards: list[Path] = []
        self._open_shard()

    def add(self, image: DatasetImage) -> None:
        if self._parquet.size_bytes > self.shard_bytes:
            self._parquet.close()
            self._open_shard()
        self._parquet.append(self._columns.row(image))

    def close(self) -> None:
        self._parquet.close()
        for number, path in enumerate(self._shards):
            path.rename(path.with_name(f"train-{number:05d}-of-{len(self._shards):05d}.parquet"))
        write_card(self.dataset, "data/train-*.parquet", self._columns.digest)

    def _open_shard(self) -> None:
        self._shards.append(self._folder / f"train-{len(self._shards):05d}.parquet")
        self._parquet = ParquetFile(self._shards[-1], self._columns.schema)
        self.resources.callback(self._parquet.abandon)


class ImageFolderExporter(Exporter):
    """`data/metadata.parquet` and the pictures below `data/`."""

    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS
    picture_folder: ClassVar[str] = "data"
    needs_pictures: ClassVar[bool] = True

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._columns = Columns(dataset, embed_pictures=False)
        path = dataset.root / "data/metadata.parquet"
        path.parent.mkdir()
        self._parquet = ParquetFile(path, self._columns.schema)
        self.resources.callback(self._parquet.abandon)

    def add(self, image: DatasetImage) -> None:
        self._parquet.append(self._columns.row(image))

    def close(self) -> None:
        self._parquet.close()
        write_card(self.dataset, "data/**", self._columns.digest)


class ParquetFile:
    """A file that rows are appended to; a group of them is in memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._file = path.open("wb")
        # pictures are compressed already and never the same: a sixth of the time
        leaves = _leaves(schema)
        packing = {leaf: "NONE" if leaf == PICTURE_LEAF else "ZSTD" for leaf in leaves}
        coded = [leaf for leaf in leaves if leaf != PICTURE_LEAF]
        self._writer = pq.ParquetWriter(self._file, schema, compression=packing, use_dictionary=coded)
        self._rows: list[Row] = []
        self._group_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Of the groups that are written."""
        return self._file.tell()

    def append(self, row: Row) -> None:
        self._rows.append(row)
        self._group_bytes += _size_of(row)
        if len(self._rows) == GROUP_ROWS or self._group_bytes > GROUP_BYTES:
            self._write()

    def close(self) -> None:
        self._write()
        self._writer.close()
        self._file.close()

    def abandon(self) -> None:
        """Let go of the file, whatever is missing in it; harmless after `close`."""
        # or the writer, when it is collected, ends a file that is closed
        self._writer.is_open = False
        self._file.close()

    def _write(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._group_bytes = [], 0


def write_card(dataset: Dataset, files: str, digest: str) -> None:
    """README.md: what the Hub and `load_dataset` read, and a word for people. `digest` is that of the content."""
    config = {"config_name": "default", "data_files": [{"split": "train", "path": files}]}
    about: dict[str, Any] = {
        "pretty_name": dataset.name,
        "task_categories": sorted({_TASKS[kind] for kind in dataset.prompts.values()}),
        "configs": [{**config, "description": f"content {digest}"}],
    }
    asked = "\n".join(f"- `{name}`: {kind}" for name, kind in dataset.prompts.items())
    (dataset.root / "README.md").write_text(
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n\n# {dataset.name}\n\n"
        f"Labelled by a model through pixscribe, which asked:\n\n{asked}\n\n"
        "Boxes are `x, y, width, height` in pixels of the upright picture, from its top left corner; `segmentation`\n"
        "has the outlines, each as `x1, y1, x2, y2, …`. No split was made: all of it is `train`.\n",
        encoding="utf-8",
    )


def _leaves(schema: pa.Schema) -> list[str]:
    """What Parquet calls the columns without parts that it makes of nested ones."""
    file = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), file)
    columns = pq.ParquetFile(pa.BufferReader(file.getvalue())).schema
    return [columns.column(number).path for number in range(len(columns.names))]


def _size_of(row: Row) -> int:
    picture = row.get("image")
    objects = row.get("objects", {"id": [], "segmentation": []})
    corners = sum(len(ring) for rings in objects["segmentation"] for ring in rings)
    return len(picture["bytes"] if picture else b"") + OBJECT_BYTES * (1 + len(objects["id"])) + 32 * corners
