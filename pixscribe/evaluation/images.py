"""The images that run and truth have in common, and what is odd about the others.

Images that only one side has are left out: nobody was asked about them, or nobody knows what is in them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pixscribe.config import shortened
from pixscribe.errors import ConfigError
from pixscribe.evaluation.names import NameMatches, match_names
from pixscribe.evaluation.outcome import ImageMatches
from pixscribe.evaluation.truth import Truth, TruthImage, TruthObject, TruthRle
from pixscribe.results import ImageRows, RunResults
from pixscribe.tables import Row
from pixscribe.types import Size


@dataclass(frozen=True, slots=True)
class EvaluatedImage:
    """An image that both sides have."""

    rows: ImageRows
    number: int
    """Orders images as the ids of the truth do."""
    wh: Size
    """The canvas on which outlines are compared: as the truth says, or else the table."""
    objects: Sequence[TruthObject]


@dataclass(frozen=True, slots=True)
class OtherSize:
    """An image that is not as large as the truth has it, upright (width, height)."""

    file_name: str
    truth_wh: Size
    wh: Size


@dataclass(frozen=True, slots=True)
class CommonImages:
    """Which images of the truth are which rows."""

    matches: NameMatches
    parts: tuple[str, ...]
    """Of the tables: those that hold such a row."""
    other_sizes: tuple[OtherSize, ...]
    rows: int
    """All those of the run."""

    def counts(self) -> ImageMatches:
        """How many of each sort there are."""
        matches = self.matches
        return ImageMatches(
            both=len(matches.names),
            by_end_of_name=len(matches.by_end),
            ambiguous=len(matches.ambiguous),
            truth_only=len(matches.missing),
            run_only=self.rows - len(matches.names) - matches.ambiguous_rows,
            other_size=len(self.other_sizes),
        )

    def warnings(self) -> Iterator[str]:
        """What may be wrong with the comparison, each with an example."""
        matches, both = self.matches, len(self.matches.names)
        if self.other_sizes:
            yield _size_warning(self.other_sizes, both)
        if matches.by_end:
            row = next(row for row, name in matches.names.items() if name == matches.by_end[0])
            yield (
                f"{counted(len(matches.by_end), 'image')} matched by the end of the name only, "
                f"such as {shortened(matches.by_end[0])} with {shortened(row)}"
            )
        if matches.ambiguous:
            yield (
                f"{counted(len(matches.ambiguous), 'image')} of the truth left out, whose names fit several images, "
                f"such as {shortened(matches.ambiguous[0])}"
            )
        if matches.missing:
            yield (
                f"{counted(len(matches.missing), 'image')} of the truth left out that the run was not about, "
                f"such as {shortened(matches.missing[0])}"
            )


def find_common_images(results: RunResults, truth: Truth) -> CommonImages:
    """Match by name, in two passes, so that only names of the truth are kept.

    Raises `ConfigError` if no image is in both.
    """
    images = {image.file_name: image for image in truth.images}
    matches = match_names(images, _row_names(results), _renamed(truth))
    if not matches.names:
        raise ConfigError(f"{truth.file}: {_nothing_in_common(results, truth, matches)}")
    parts, rows, sizes = list[str](), 0, dict[str, tuple[int | None, int | None]]()
    tables = results.read_parts({"images": ["file_name", "width", "height"]})
    for part, (table,) in zip(results.parts, tables, strict=True):
        rows += table.num_rows
        names, widths, heights = (column.to_pylist() for column in table.columns)
        here = [place for place, name in enumerate(names) if name in matches.names]
        parts += [part] if here else []
        for place in here:
            sizes.setdefault(names[place], (widths[place], heights[place]))
    others = (_other_size(name, size, images[matches.names[name]]) for name, size in sizes.items())
    return CommonImages(matches, tuple(parts), tuple(other for other in others if other), rows)


def read_common_images(results: RunResults, truth: Truth, common: CommonImages) -> Iterator[EvaluatedImage]:
    """The images with their rows, in the order of the tables."""
    by_name = {image.file_name: image for image in truth.images}
    numbers = {image_id: number for number, image_id in enumerate(sorted(image.id for image in truth.images), start=1)}
    names = common.matches.names
    for rows in (rows for part in results.read_images(common.parts) for rows in part):
        name = names.get(rows.image["file_name"])
        if name is not None:
            image = by_name[name]
            objects = truth.objects.get(image.id, [])
            yield EvaluatedImage(rows, numbers[image.id], _canvas(image, rows.image, objects), objects)


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _renamed(truth: Truth) -> dict[str, str]:
    """By the name that an image had before an export renamed it; names that several had are not there."""
    had = [(each.source_file_name, each.file_name) for each in truth.images if isinstance(each.source_file_name, str)]
    counts = Counter(name for name, _ in had)
    return {source: name for source, name in had if counts[source] == 1 and source != name}


def _row_names(results: RunResults) -> Iterator[str]:
    for (table,) in results.read_parts({"images": ["file_name"]}):
        yield from table.column("file_name").to_pylist()


def _nothing_in_common(results: RunResults, truth: Truth, matches: NameMatches) -> str:
    if matches.ambiguous:
        return f"no image of it is exactly one of the run's: {shortened(matches.ambiguous[0])} could be several"
    first = next(_row_names(results), None)
    theirs = shortened(truth.images[0].file_name)
    ours = "the run has no images yet" if first is None else f"the run has such names as {shortened(first)}"
    return f"none of its {counted(len(truth.images), 'image')} is in the run: it has such names as {theirs}, {ours}"


def _other_size(name: str, size: tuple[int | None, int | None], image: TruthImage) -> OtherSize | None:
    width, height = size
    if width is None or height is None:  # the image could not be read
        return None
    truth_wh = (image.width or width, image.height or height)
    return None if truth_wh == (width, height) else OtherSize(name, truth_wh, (width, height))


def _size_warning(sizes: Sequence[OtherSize], both: int) -> str:
    first = sizes[0]
    turned = sum(size.truth_wh == size.wh[::-1] for size in sizes)
    cause = (
        f"; {turned} the other way round: such a truth was made on pictures that nobody had turned upright (EXIF)"
        if turned
        else ""
    )
    return (
        f"{len(sizes)} of {counted(both, 'image')} not as large as the truth says, so that boxes cannot be compared: "
        f"{shortened(first.file_name)} is {_by(first.wh)} px and {_by(first.truth_wh)} in the truth{cause}"
    )


def _canvas(image: TruthImage, row: Row, objects: Sequence[TruthObject]) -> Size:
    masks = (each.segmentation.size for each in objects if isinstance(each.segmentation, TruthRle))
    height, width = next(masks, (row["height"] or 1, row["width"] or 1))
    return image.width or width, image.height or height


def _by(wh: Size) -> str:
    return f"{wh[0]}x{wh[1]}"
