"""Ground truth: COCO instances, read whole and held to their form.

Unknown keys are left alone, as is `annotations.id`, which many tools leave out or begin at 0 (pycocotools would take
the object 0 for missed). Everything else that an evaluation uses is right, or one sentence.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import ErrorDetails

from pixscribe.config import key_path, shortened
from pixscribe.errors import ConfigError
from pixscribe.types import Xyxy

MAX_TRUTH_BYTES = 2 * 1024**3
"""The instances of COCO's 118,000 training images are 450 MB."""
MAX_COORDINATE_PX = 1_000_000
MAX_IMAGE_PX = 4_000_000_000
"""pycocotools counts pixels in 32 bits."""
MAX_OUTLINE_PX = 50_000_000
"""Of one ring, by a bound on its length: pycocotools takes memory for 5 numbers a pixel, unchecked."""

_SEGMENTATION_FORM = (
    "should be polygons, [[x1, y1, x2, y2, x3, y3, …], …], or RLE, {size: [height, width], counts: text or numbers}"
)
_BBOX_FORM = "should be [x, y, width, height], four numbers in px"

Coordinate = Annotated[float, Field(ge=-MAX_COORDINATE_PX, le=MAX_COORDINATE_PX)]
Extent = Annotated[float, Field(ge=0, le=MAX_COORDINATE_PX)]
Side = Annotated[int, Field(ge=1, le=MAX_COORDINATE_PX)]
Text = Annotated[str, Field(min_length=1)]
Ring = tuple[Coordinate, ...]
"""x1, y1, x2, y2, … in px."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class TruthImage(_Part):
    """An image by the name and, if they are given, the sides in px that the truth has for it.

    `source_file_name` is what `pixscribe export` writes beside the name: that of the run, where a picture that was
    converted has another.
    """

    id: int
    file_name: Text
    width: Side | None = None
    height: Side | None = None
    source_file_name: object = None


class TruthCategory(_Part):
    """A label."""

    id: int
    name: Text


class TruthRle(_Part):
    """A mask: `size` is (height, width), `counts` COCO's compressed text or the lengths of the runs themselves."""

    size: tuple[Side, Side]
    counts: str | tuple[Annotated[int, Field(ge=0)], ...]


class TruthObject(_Part):
    """An object: `bbox` is COCO's (x, y, width, height) in px."""

    image_id: int
    category_id: int
    bbox: tuple[Coordinate, Coordinate, Extent, Extent]
    area: Annotated[float, Field(ge=0)] | None = None
    segmentation: tuple[Ring, ...] | TruthRle | None = None
    iscrowd: Literal[0, 1] = 0

    @property
    def xyxy(self) -> Xyxy:
        """The box by its edges."""
        x, y, width, height = self.bbox
        return x, y, x + width, y + height

    @property
    def has_outline(self) -> bool:
        """Whether there is more than a box: `[]` and `[[]]` are how converters say that there is not."""
        return isinstance(self.segmentation, TruthRle) or any(self.segmentation or ())


class _File(_Part):
    images: Annotated[tuple[TruthImage, ...], FailFast()]
    annotations: Annotated[tuple[TruthObject, ...], FailFast()]
    categories: Annotated[tuple[TruthCategory, ...], FailFast()]


@dataclass(frozen=True, slots=True)
class Truth:
    """The content of a file."""

    file: str
    images: tuple[TruthImage, ...]
    categories: tuple[TruthCategory, ...]
    objects: dict[int, list[TruthObject]] = field(repr=False)
    """By image id, in the order of the file; images without one are left out."""


def read_truth(path: Path) -> Truth:
    """Read COCO instances. Raises `ConfigError`: one sentence with file, key path, value and what is allowed."""
    data = _read(path)
    try:
        content = _File.model_validate_json(data)
    except ValidationError as error:
        # `from None`: the cause repeats every value at length
        raise ConfigError(f"{path}: {_sentence(error, data)}") from None
    for problem in _contradictions(content):
        raise ConfigError(f"{path}: {problem}")
    objects: dict[int, list[TruthObject]] = {}
    for annotation in content.annotations:
        objects.setdefault(annotation.image_id, []).append(annotation)
    return Truth(str(path), content.images, content.categories, objects)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRUTH_BYTES + 1)  # a pipe tells no size beforehand
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{str(path)!r}: is no path: {error}") from error
    if len(data) > MAX_TRUTH_BYTES:
        raise ConfigError(f"{path}: larger than the {MAX_TRUTH_BYTES} bytes that are read; split it by images")
    return data.removeprefix(codecs.BOM_UTF8)


def _sentence(error: ValidationError, data: bytes) -> str:
    found = error.errors(include_url=False)
    # of the forms that an outline may have, the one that was followed furthest is the one that was meant
    first = max(found, key=lambda detail: len(detail["loc"])) if "segmentation" in found[0]["loc"] else found[0]
    if first["type"] == "json_invalid":
        return f"is not JSON: {first['ctx']['error']}" if _is_utf_8(data) else "is not UTF-8 text, as JSON is"
    if not first["loc"]:
        return "should be one JSON object with the keys images, annotations and categories (COCO instances)"
    return _explain(first)


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _explain(detail: ErrorDetails) -> str:
    loc = detail["loc"]
    name = loc[2] if len(loc) > 2 else None
    if name == "segmentation":
        # what follows in `loc` are the alternatives that were tried
        return f"{key_path(loc[:3])}: {shortened(detail['input'])} in it: {_SEGMENTATION_FORM}"
    if name == "bbox" and detail["type"] in ("missing", "tuple_type", "too_long", "float_type"):
        return f"{key_path(loc[:3])}: {shortened(detail['input'])}: {_BBOX_FORM}"
    if detail["type"] == "missing":
        return f"{key_path(loc)}: missing"
    if detail["type"] == "model_type":
        return f"{key_path(loc)}: {shortened(detail['input'])}: should be an object with keys and values"
    return f"{key_path(loc)}: {shortened(detail['input'])}: {detail['msg'].removeprefix('Input ')}"


def _contradictions(content: _File) -> Iterator[str]:
    """What is wrong between the parts, and within outlines."""
    if not content.images:
        yield "images: is empty"
    for place, image in enumerate(content.images):
        if (image.width or 1) * (image.height or 1) > MAX_IMAGE_PX:
            yield f"images[{place}]: {image.width} x {image.height} px: should be {MAX_IMAGE_PX} pixels at most"
    yield from _repeated("images", "id", [image.id for image in content.images])
    yield from _repeated("images", "file_name", [image.file_name for image in content.images])
    yield from _repeated("categories", "id", [category.id for category in content.categories])
    images = {image.id: image for image in content.images}
    categories = {category.id for category in content.categories}
    for place, annotation in enumerate(content.annotations):
        if annotation.image_id not in images:
            yield f"annotations[{place}].image_id: {annotation.image_id}: is the id of no image"
        if annotation.category_id not in categories:
            yield f"annotations[{place}].category_id: {annotation.category_id}: is the id of no category"
        if problem := _outline_problem(annotation, images[annotation.image_id]):
            yield f"annotations[{place}].segmentation{problem}"


def _repeated(part: str, key: str, values: Sequence[int | str]) -> Iterator[str]:
    first: dict[int | str, int] = {}
    for place, value in enumerate(values):
        other = first.setdefault(value, place)
        if other != place:
            yield f"{part}[{place}].{key}: {shortened(value)}: is that of {part}[{other}] too; each needs its own"


def _outline_problem(annotation: TruthObject, image: TruthImage) -> str | None:
    if isinstance(annotation.segmentation, TruthRle):
        return _rle_problem(annotation.segmentation, image)
    for number, ring in enumerate(annotation.segmentation or ()):
        if ring and (len(ring) < 6 or len(ring) % 2):
            return f"[{number}]: {len(ring)} numbers: should be x and y of at least three points"
        if ring and (max(ring) - min(ring)) * len(ring) > MAX_OUTLINE_PX:
            return f"[{number}]: {len(ring)} numbers from {min(ring):g} to {max(ring):g}: is too long to be an outline"
    return None


def _rle_problem(rle: TruthRle, image: TruthImage) -> str | None:
    height, width = rle.size
    if height * width > MAX_IMAGE_PX:
        return f".size: [{height}, {width}]: should be {MAX_IMAGE_PX} pixels at most"
    if (image.height or height, image.width or width) != rle.size:
        return f".size: [{height}, {width}]: should be [{image.height}, {image.width}], height and width of the image"
    runs = _unpacked(rle.counts) if isinstance(rle.counts, str) else np.array(rle.counts, dtype=object)
    if runs is None:
        return f".counts: {shortened(rle.counts)}: is no compressed RLE"
    if (len(runs) and min(runs) < 0) or sum(runs) != height * width:
        return f".counts: {sum(runs)} pixels in {len(runs)} runs: should be {height} x {width} pixels in all"
    return None


def _unpacked(counts: str) -> npt.NDArray[np.int64] | None:
    """The runs of COCO's compressed text, or None if it is none: pycocotools reads past the end of what is broken.

    Five bits a character from `0` on, the lowest first; 32 says that more follow, 16 in the last is the sign. From the
    fourth on, a number is the difference to the last but one.
    """
    if not re.fullmatch(r"([P-o]{0,6}[0-O])*", counts):
        return None
    digits = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not len(ends):
        return np.zeros(0, dtype=np.int64)
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((digits & 31) << (5 * places), starts)
    numbers -= np.where(digits[ends] & 16, np.int64(1) << (5 * (ends - starts + 1)), 0)
    for parity in (1, 2):
        numbers[parity::2] = np.cumsum(numbers[parity::2])
    return numbers
