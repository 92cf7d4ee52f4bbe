"""What every format has in common: an image of the data set, and what writes one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pixscribe.results import ImageRows
from pixscribe.types import Kind

BOX_KINDS: frozenset[Kind] = frozenset({"detect", "segment"})
LABEL_KINDS: frozenset[Kind] = BOX_KINDS | {"classify"}
"""Whose labels are categories; those of the others are sentences."""
UNLABELLED = "unlabelled"
"""What an object is called that the model gave no name."""


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """One image of a data set.

    `name` is what the data set calls it: a relative path with `/` that no other image of it has, and that leads
    nowhere else. It is `file_name` of the table unless the picture had to be converted or the name was taken.
    `picture` is where it lies if the data set holds its pictures (upright, of a type that every tool opens), else None;
    of a format that embeds them, until `add` returns.
    `rows` holds the selected prompts only; boxes of failed answers have been left out. Each object of a detect or
    segment prompt has a box, and each label of a prompt in `LABEL_KINDS` is one of `Dataset.categories`.
    """

    name: str
    width: int
    height: int
    rows: ImageRows
    picture: Path | None


@dataclass(frozen=True, slots=True)
class Dataset:
    """What an exporter is told before the first image: where to write, and what there is to write."""

    root: Path
    """An empty folder, which appears under its final name when everything is written."""
    name: str
    """Of the run, or of the first one."""
    categories: Mapping[str, int]
    """The id of each label, from 1 on without gaps; the same in all exports of an output."""
    prompts: Mapping[str, Kind]
    """The selected prompts, in the order of the config."""
    has_pictures: bool


class Exporter(ABC):
    """Writes one format. `add` is called once for each image, also for those without objects, and then `close`."""

    kinds: ClassVar[frozenset[Kind]]
    """The prompts that the format can hold."""
    picture_folder: ClassVar[str]
    """Where pictures go below the root, under their names."""
    needs_stems: ClassVar[bool] = False
    """Whether names have to differ without their suffix too."""
    reserved_folders: ClassVar[frozenset[str]] = frozenset()
    """What a folder in a name must not be called, because readers would take it for another one."""
    needs_pictures: ClassVar[bool] = False
    """Whether there is no data set without them: they are copied then, also if nobody asked for it."""
    embeds_pictures: ClassVar[bool] = False
    """Whether they go into files of the format, and not into `picture_folder`."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.resources = ExitStack()
        """Closed by whoever runs the export, however it ends: the place for open files."""

    @abstractmethod
    def add(self, image: DatasetImage) -> None:
        """Write, or remember, one image and its objects."""

    @abstractmethod
    def close(self) -> None:
        """Write what can only be written at the end."""
