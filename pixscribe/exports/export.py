"""From runs to a data set: what is taken, what it is called, where its pictures come from, and what was left out."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from pixscribe import __version__
from pixscribe.errors import ConfigError
from pixscribe.exports.base import BOX_KINDS, LABEL_KINDS, UNLABELLED, Dataset, DatasetImage, Exporter
from pixscribe.exports.categories import number_labels
from pixscribe.exports.folder import MARK, check_apart, check_free, check_sources, new_folder
from pixscribe.exports.names import Names, split_suffix
from pixscribe.exports.pictures import Missing, Picture, PictureMode, get_pictures
from pixscribe.exports.registry import find_exporter
from pixscribe.exports.selection import Selection, choose_images, choose_prompts
from pixscribe.results import ImageRows, RunResults
from pixscribe.storage import Folder, Storage
from pixscribe.tables import Row
from pixscribe.types import ImageStatus, Kind

logger = logging.getLogger(__name__)

NO_PICTURE = "whose picture is gone or has changed"
OF_FAILED_ANSWER = "of answers that failed, such as those that were cut off"
WITHOUT_BOX = "without a box"
PICTURES_SHOWN = 5
"""Of those that are missing, how many are named."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What may be chosen beside runs, format and place."""

    prompts: Sequence[str] = ()
    """Empty: all that the format can hold."""
    statuses: AbstractSet[ImageStatus] = frozenset({"ok"})
    """Of images, over the selected prompts alone."""
    pictures: PictureMode | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export came to."""

    format: str
    folder: str
    runs: tuple[str, ...]
    """OUTPUT@RUN_ID."""
    prompts: tuple[str, ...]
    statuses: tuple[ImageStatus, ...]
    pictures: PictureMode | None
    images: int
    objects: int
    """With a box."""
    texts: int
    """Captions, answers to questions, and classes of images."""
    categories: int
    left_out: dict[str, int] = field(default_factory=dict)
    """How many images are not in it, by why."""
    objects_left_out: dict[str, int] = field(default_factory=dict)
    """How many objects and texts of its images are not in it, by why."""

    @property
    def lost_pictures(self) -> int:
        """How many images are not in it because their pictures could not be had."""
        return self.left_out.get(NO_PICTURE, 0)

    def to_json(self) -> bytes:
        """The file that lies in the data set: nothing of it depends on when and where it was made."""
        said = {name: getattr(self, name) for name in self.__slots__ if name != "folder"}
        return orjson.dumps({**said, "version": __version__}, option=orjson.OPT_INDENT_2)


def export_runs(
    runs: Sequence[RunResults],
    format_name: str,
    to: Path,
    options: ExportOptions | None = None,
    tell: Callable[[str], None] = logger.warning,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportSummary:
    """Write the images and objects of some runs as a data set, whole or not at all.

    `tell` gets a sentence about whatever the user would not expect, `progress` how many images are done of how many,
    after each. Raises `ConfigError` for what cannot be exported in
    this way, `OutputError` for a run that cannot be read or a folder that cannot be written.
    """
    options = options or ExportOptions()
    if not runs:
        raise ConfigError("RUN: should be one run at least, as OUTPUT@RUN_ID or the folder OUTPUT/runs/RUN_ID")
    exporter_type = find_exporter(format_name)
    pictures = _picture_mode(exporter_type, options.pictures)
    check_free(to, overwrite=options.overwrite)
    _check_places(runs, to)
    runs = _without_repetitions(runs)
    prompts = choose_prompts(runs, options.prompts, exporter_type.kinds, format_name, tell)
    selection = choose_images(runs, prompts, options.statuses)
    _tell_beforehand(runs, prompts, selection, tell)
    categories = number_labels(runs[0].storage, _labels(runs, prompts, selection), tell)
    with new_folder(to, overwrite=options.overwrite) as root:
        dataset = Dataset(root, runs[0].config.name, categories, prompts, pictures is not None)
        writer = _Writer(exporter_type(dataset), pictures, tell)
        writer.write(selection, progress)
        summary = ExportSummary(
            format=format_name,
            folder=str(to),
            runs=tuple(f"{run.storage.uri}@{run.run_id}" for run in runs),
            prompts=tuple(prompts),
            statuses=tuple(sorted(options.statuses)),
            pictures=pictures,
            images=writer.images,
            objects=writer.objects,
            texts=writer.texts,
            categories=len(categories),
            left_out=dict(sorted((selection.left_out + writer.left_out).items())),
            objects_left_out=dict(sorted(writer.objects_left_out.items())),
        )
        (root / MARK).write_bytes(summary.to_json())
    return summary


class _Writer:
    """Hands one image after the other to an exporter."""

    def __init__(self, exporter: Exporter, pictures: PictureMode | None, tell: Callable[[str], None]) -> None:
        self.exporter = exporter
        self.images = self.objects = self.texts = 0
        self.left_out = Counter[str]()
        self.objects_left_out = Counter[str]()
        self._pictures = pictures
        self._tell = tell
        self._names = Names(by_stem=exporter.needs_stems, reserved=exporter.reserved_folders)
        dataset = exporter.dataset
        self._folder = dataset.root / exporter.picture_folder
        self._prompts = dict(dataset.prompts)

    def write(self, selection: Selection, progress: Callable[[int, int], None]) -> None:
        """Raises `ConfigError` if no image is left."""
        total = selection.count()
        with self.exporter.resources, closing(self._with_pictures(selection)) as images:
            for done, (rows, picture) in enumerate(images, 1):
                if isinstance(picture, Missing):
                    self._leave_out(rows.image, picture)
                else:
                    self._add(rows, picture)
                progress(done, total)
            if self.images == 0:
                raise _nothing_left(self.left_out)
            self.exporter.close()

    def _with_pictures(
        self, selection: Iterable[tuple[RunResults, ImageRows]]
    ) -> Generator[tuple[ImageRows, Picture | Missing | None]]:
        if self._pictures is None:
            yield from ((image, None) for _, image in selection)
        else:
            yield from get_pictures(selection, self._pictures)

    def _add(self, rows: ImageRows, picture: Picture | None) -> None:
        image, rows = rows.image, self._exported(rows)
        name = self._names.take(image["file_name"], image["uri"], picture.format_name if picture else None)
        path = self._place(name) if picture else None
        if picture and path:
            picture.put(path)
        self.exporter.add(DatasetImage(name, image["width"], image["height"], rows, path))
        if path and self.exporter.embeds_pictures:
            path.unlink()
        self.images += 1
        objects = sum(self._prompts[row["prompt"]] in BOX_KINDS for row in rows.annotations)
        self.objects += objects
        self.texts += len(rows.annotations) - objects

    def _exported(self, rows: ImageRows) -> ImageRows:
        """What the data set has of an image: each object with a category if its kind has such."""
        reasons = [_why_not(row, rows, self._prompts) for row in rows.annotations]
        self.objects_left_out.update(why for why in reasons if why is not None)
        found = [
            {**row, "label": UNLABELLED}
            if row["label"] is None and self._prompts[row["prompt"]] in LABEL_KINDS
            else row
            for row, why in zip(rows.annotations, reasons, strict=True)
            if why is None
        ]
        return replace(rows, annotations=found)

    def _place(self, name: str) -> Path:
        if self.exporter.embeds_pictures:
            return self.exporter.dataset.root / f"picture{split_suffix(name)[1]}"
        return self._folder / name

    def _leave_out(self, image: Row, picture: Missing) -> None:
        self.left_out[NO_PICTURE] += 1
        count = self.left_out[NO_PICTURE]
        if count <= PICTURES_SHOWN:
            self._tell(f"left out: {image['file_name']!r} {picture.why}")
        elif count == PICTURES_SHOWN + 1:
            self._tell("left out: …")


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """`3 images without any answer, 1 whose picture is gone or has changed`."""
    if not left_out:
        return "there are none"
    (first, count), *others = sorted(left_out.items())
    rest = "".join(f", {number} {why}" for why, number in others)
    return f"{count} {'image' if count == 1 else 'images'} {first}{rest}"


def _picture_mode(exporter_type: type[Exporter], asked: PictureMode | None) -> PictureMode | None:
    """A link cannot be embedded."""
    if asked is None and not exporter_type.needs_pictures:
        return None
    return "copy" if exporter_type.embeds_pictures else asked or "copy"


def _why_not(found: Row, rows: ImageRows, prompts: Mapping[str, Kind]) -> str | None:
    """Why an object is left out, if it is: its answer failed, or its kind has boxes and it has none."""
    if any(row["prompt"] == found["prompt"] and row["status"] == "failed" for row in rows.responses):
        return OF_FAILED_ANSWER
    return WITHOUT_BOX if prompts[found["prompt"]] in BOX_KINDS and found["xmin"] is None else None


def _check_places(runs: Sequence[RunResults], to: Path) -> None:
    """Raise `ConfigError` if the data set would stand in the way of what it is made of."""
    for run in runs:
        check_apart(to, run.storage)
        if to.exists():  # an export that is replaced, or an empty folder
            check_sources(to, _uris(run))


def _uris(run: RunResults) -> Iterator[str]:
    for (images,) in run.read_parts({"images": ["uri"]}):
        yield from images["uri"].to_pylist()


def _without_repetitions(runs: Sequence[RunResults]) -> list[RunResults]:
    """Of a run that is named twice, the last place in the order counts."""
    named = {(_place_of(run.storage), run.run_id): run for run in reversed(runs)}
    return list(reversed(named.values()))


def _place_of(storage: Storage) -> str:
    """The same for each way in which a folder can be written."""
    return os.path.realpath(storage.root) if isinstance(storage, Folder) else storage.uri


def _labels(runs: Sequence[RunResults], prompts: Mapping[str, Kind], selection: Selection) -> list[str]:
    """Those of the prompts in the order of the config, then the others in that of the alphabet."""
    in_config = [
        label
        for run in runs
        for prompt in run.config.prompts
        if prompt.name in prompts and prompt.kind in LABEL_KINDS
        for label in prompt.labels
    ]
    return [*in_config, *sorted(selection.labels)]


def _tell_beforehand(
    runs: Sequence[RunResults], prompts: Mapping[str, Kind], selection: Selection, tell: Callable[[str], None]
) -> None:
    """Raises `ConfigError` if no image is left."""
    with_boxes = [name for name, kind in prompts.items() if kind in BOX_KINDS]
    if len(with_boxes) > 1:
        tell(f"an object may be there once for each of the prompts {', '.join(with_boxes)}; --prompt chooses")
    for run in runs:
        if not run.is_complete:
            tell(f"the run {run.run_id} is not complete: what it has so far is exported")
    if selection.count() == 0:
        raise _nothing_left(selection.left_out)
    if selection.left_out:
        tell(f"not exported: {describe_left_out(selection.left_out)}")


def _nothing_left(left_out: Mapping[str, int]) -> ConfigError:
    return ConfigError(f"no image is left to export; left out: {describe_left_out(left_out)}")
