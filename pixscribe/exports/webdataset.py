"""WebDataset: tar shards with `<key>.jpg` (or `.png`, `.webp`), `<key>.txt` and `<key>.json` for each image.

A key is a number: WebDataset ends it at the first dot of a name, and tools of all kinds unpack it into paths. What the
image is called is in the JSON, with everything that was answered. The text is its caption: of the first prompt of kind
caption, or else of the first question. It is empty where there is none, as img2dataset writes it, so that every sample
has the same files. The bytes of a shard depend on nothing but its images and answers.
"""

import io
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import orjson

from pixscribe.exports.base import Dataset, DatasetImage, Exporter
from pixscribe.exports.content import ALL_KINDS, TEXT_KINDS, bbox_of, classes_of, objects_of, text_of
from pixscribe.exports.names import split_suffix
from pixscribe.types import Kind

COPY_BYTES = 1 << 20


class WebDatasetExporter(Exporter):
    """Shards `shard-000000.tar`, …, for `shard-{000000..000123}.tar`."""

    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS
    picture_folder: ClassVar[str] = ""
    needs_pictures: ClassVar[bool] = True
    embeds_pictures: ClassVar[bool] = True
    shard_images: ClassVar[int] = 10_000
    """As many as img2dataset puts into one."""
    shard_bytes: ClassVar[int] = 1_000_000_000
    """A shard is ended when it has passed this."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._count = self._count_in_shard = 0
        self._shards = 0
        self._caption_prompt = _caption_prompt(dataset)
        self._open_shard()

    def add(self, image: DatasetImage) -> None:
        assert image.picture is not None  # `needs_pictures`
        if self._count_in_shard == self.shard_images or self._tar.offset > self.shard_bytes:
            self.close()
            self._open_shard()
        key = f"{self._count:09d}"
        self._add_picture(key + _suffix(image.name), image.picture)
        caption = text_of(image, self._caption_prompt) if self._caption_prompt else None
        self._add_bytes(f"{key}.txt", (caption or "").encode())
        self._add_bytes(f"{key}.json", orjson.dumps(_said(image, self.dataset)))
        self._count += 1
        self._count_in_shard += 1

    def close(self) -> None:
        self._tar.close()
        self._file.close()

    def _open_shard(self) -> None:
        path = self.dataset.root / f"shard-{self._shards:06d}.tar"
        self._file = self.resources.enter_context(path.open("wb", COPY_BYTES))
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._shards += 1
        self._count_in_shard = 0

    def _add_picture(self, name: str, path: Path) -> None:
        with path.open("rb") as file:
            self._tar.addfile(_member(name, path.stat().st_size), file)

    def _add_bytes(self, name: str, data: bytes) -> None:
        self._tar.addfile(_member(name, len(data)), io.BytesIO(data))


def _caption_prompt(dataset: Dataset) -> str | None:
    """Whose words are the caption: always the same, so that all captions answer one question."""
    by_kind = [name for kind in ("caption", "ask") for name, each in dataset.prompts.items() if each == kind]
    return by_kind[0] if by_kind else None


def _suffix(name: str) -> str:
    suffix = split_suffix(name)[1].lower()
    return ".jpg" if suffix == ".jpeg" else suffix


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    """Of nobody, at no time."""
    member = tarfile.TarInfo(name)
    member.size = size_bytes
    return member


def _said(image: DatasetImage, dataset: Dataset) -> dict[str, Any]:
    """Everything that is known about an image, in pixels of the picture beside it."""
    row, prompts = image.rows.image, dataset.prompts
    return {
        "file_name": image.name,
        "width": image.width,
        "height": image.height,
        "sha256": row["image_id"],
        "uri": row["uri"],
        "source_file_name": row["file_name"],
        "texts": {name: text_of(image, name) for name, kind in prompts.items() if kind in TEXT_KINDS},
        "classes": {name: classes_of(image, name) for name, kind in prompts.items() if kind == "classify"},
        "objects": [
            {
                "label": found["label"],
                "bbox": bbox_of(found),
                "area": found["area"],
                "segmentation": found["polygons"] or found["rle"] or [],
                "score": found["score"],
                "prompt": found["prompt"],
                "flags": found["flags"],
            }
            for found in objects_of(image, prompts)
        ],
    }
