"""Eyes of the emulator: flat, saturated shapes on a plain light background, found with sub-pixel edges.

Pixels are taken as they are stored: an EXIF orientation is not applied (a HEIF rotation is, by its decoder), so that a
rotation which the sender forgot shows as a wrong box. Coordinates are fractions of the image (0-1, x first), on
continuous pixel edges: a shape on the pixel columns 10 ... 19 of 100 reaches from 0.10 to 0.20.
"""

import functools
import io
from dataclasses import dataclass

import cv2
import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image

from pixscribe.emulator.outlines import Outline, trace

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "blue": (31, 119, 180),
    "green": (44, 160, 44),
    "orange": (255, 127, 14),
    "purple": (148, 103, 189),
    "black": (30, 30, 30),
    "yellow": (240, 200, 0),
    "teal": (0, 150, 150),
}
BACKGROUND = (245, 245, 240)
SHAPES = ("circle", "square", "rectangle", "triangle", "star", "ellipse", "pentagon", "hexagon", "shape")
MAX_OBJECTS = 40

_MAX_SIDE_PX = 1024  # finer than the answer's grid of 1000
_MAX_PIXELS = 250_000_000
_LEAST_SHARE = 0.0005  # of the image; smaller is a speck
_TOLERANCE = 48.0  # RGB distance; blue and teal, the nearest pair, are 53 apart and parted by the nearer one
_RIM_PX = 3  # how far antialiasing and chroma subsampling smear an edge
_CHROMA = 0.3  # its weight beside luma: lossy formats store it at half the resolution
_TO_YCC = np.array([[0.299, -0.169, 0.5], [0.587, -0.331, -0.419], [0.114, 0.5, -0.081]], dtype=np.float32)
_TO_YCC[:, 1:] *= _CHROMA

Pixels = NDArray[np.uint8]
Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.int32]


class NotAnImage(Exception):
    """The bytes cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One object; `outline` and `box` (x0, y0, x1, y1) are fractions of the image."""

    colour: str
    shape: str
    outline: NDArray[np.float64]
    box: tuple[float, float, float, float]

    @property
    def label(self) -> str:
        return f"{self.colour} {self.shape}"


Scene = tuple[Seen, ...]


def look(data: bytes) -> Scene:
    """At most 40 objects, from top to bottom. Raises `NotAnImage`."""
    pixels = _shrink(_decode(data))
    labels = _classify(pixels)
    background = _median_colour(pixels, labels == 0, BACKGROUND)
    owners, parts = _part(labels)
    seen = (_see(pixels, owners, part, background) for part in parts)
    return tuple(sorted((s for s in seen if s), key=lambda s: (s.box[1], s.box[0], s.label)))


FIXED_SCENE: Scene = (
    Seen("red", "square", np.array([[0.1, 0.2], [0.3, 0.2], [0.3, 0.5], [0.1, 0.5]]), (0.1, 0.2, 0.3, 0.5)),
    Seen("blue", "triangle", np.array([[0.7, 0.5], [0.9, 0.8], [0.5, 0.8]]), (0.5, 0.5, 0.9, 0.8)),
)
"""What an emulator with `look=False` says of every image."""


def _decode(data: bytes) -> Pixels:
    try:
        with _open(data) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise NotAnImage(f"{image.width}x{image.height} px")
            return np.asarray(_flat(image))
    except NotAnImage:
        raise
    except Exception as cause:  # Pillow raises seven types on broken files, and RuntimeError from its decoders
        raise NotAnImage(repr(cause)) from cause


def _open(data: bytes) -> Image.Image:
    if data[4:8] == b"ftyp":
        return pillow_heif.open_heif(data, convert_hdr_to_8bit=True).to_pillow()
    return Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))


def _flat(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _shrink(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = _MAX_SIDE_PX / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _classify(pixels: Pixels) -> Labels:
    """0 is background, 1 ... 8 the palette's colours, 255 anything else (rims, photos)."""
    index = pixels[..., 0].astype(np.int32) >> 2
    for channel in (1, 2):
        index <<= 6
        index |= pixels[..., channel] >> 2
    return np.take(_nearest_colours(), index)


@functools.cache
def _nearest_colours() -> Labels:
    """The class of every colour, at 6 bits a channel."""
    levels = np.arange(64, dtype=np.float32) * 4 + 1.5
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    references = np.array([BACKGROUND, *PALETTE.values()], dtype=np.float32)
    distances = np.stack([np.linalg.norm(colours - reference, axis=1) for reference in references])
    nearest: Labels = distances.argmin(axis=0).astype(np.uint8)
    nearest[distances.min(axis=0) > _TOLERANCE] = 255
    return nearest


@dataclass(frozen=True, slots=True)
class _Part:
    """A connected patch of one colour: where `owners` holds `number`, inside a bounding box in pixels."""

    colour: str
    number: int
    x: int
    y: int
    width: int
    height: int


def _part(labels: Labels) -> tuple[Numbers, list[_Part]]:
    """The largest patches, and which pixel belongs to which (0: none)."""
    owners = np.zeros(labels.shape, np.int32)
    found: list[tuple[int, str, Numbers, NDArray[np.int32], int]] = []
    for code, colour in enumerate(PALETTE, start=1):
        numbers, stats, kept = _components(labels == code)
        found += [(int(stats[n][4]), colour, numbers, stats[n], n) for n in kept]
    found.sort(key=lambda entry: -entry[0])
    parts = []
    for number, (_, colour, numbers, stat, n) in enumerate(found[:MAX_OBJECTS], start=1):
        owners[numbers == n] = number
        parts.append(_Part(colour, number, *map(int, stat[:4])))
    return owners, parts


def _components(mask: Mask) -> tuple[Numbers, NDArray[np.int32], list[int]]:
    """The connected patches of a mask that are neither specks nor mere rims of something else."""
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    deep = np.unique(numbers[cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0])
    least = max(4, _LEAST_SHARE * mask.size)
    kept = [int(n) for n in deep if n and stats[n][4] >= least]
    return numbers.astype(np.int32, copy=False), stats.astype(np.int32, copy=False), kept


def _see(pixels: Pixels, owners: Numbers, part: _Part, background: NDArray[np.float32]) -> Seen | None:
    margin = _RIM_PX + 1
    top, left = max(0, part.y - margin), max(0, part.x - margin)
    window = (slice(top, part.y + part.height + margin), slice(left, part.x + part.width + margin))
    outline = trace(_coverage(pixels[window], owners[window], part, background))
    return None if outline is None else _to_fractions(part.colour, outline, (left, top), owners.shape)


def _coverage(crop: Pixels, owners: Numbers, part: _Part, background: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much of each pixel the part covers, 0-1: where its colour is between the background's and the part's."""
    core = owners == part.number
    axis = (_median_colour(crop, core, PALETTE[part.colour]) - background) @ _TO_YCC
    covered = (crop.astype(np.float32) - background) @ (_TO_YCC @ axis) / max(1.0, float(axis @ axis))
    near = cv2.dilate(core.astype(np.uint8), np.ones((2 * _RIM_PX + 1, 2 * _RIM_PX + 1), np.uint8)) > 0
    covered[~near | ((owners > 0) & ~core)] = 0
    return np.clip(covered, 0, 1).astype(np.float32)


def _median_colour(pixels: Pixels, mask: Mask, otherwise: tuple[int, int, int]) -> NDArray[np.float32]:
    chosen = pixels[mask]
    if not len(chosen):
        return np.array(otherwise, dtype=np.float32)
    step = 1 + len(chosen) // 4096
    return np.asarray(np.median(chosen[::step], axis=0), dtype=np.float32)


def _to_fractions(colour: str, outline: Outline, offset: tuple[int, int], shape: tuple[int, ...]) -> Seen:
    size = np.array([shape[1], shape[0]], dtype=np.float64)
    points = np.clip((outline.points + offset) / size, 0, 1)
    x0, y0, x1, y1 = np.clip((outline.box.reshape(2, 2) + offset) / size, 0, 1).reshape(-1).tolist()
    return Seen(colour, outline.shape, points, (x0, y0, x1, y1))
