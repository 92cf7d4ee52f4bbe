"""Draw the sample images and their ground truth: `python data/samples/draw.py` rewrites `images/` and `truth.json`.

Every picture is a scene of flat shapes on a light background, drawn at four times its size and reduced, so that an edge
pixel holds the exact share of each side. The scene depends on the file's name alone: drawing again changes nothing.
"""

import io
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pillow_heif
from PIL import ExifTags, Image, ImageDraw

Point = tuple[float, float]
Contour = list[Point]
Write = Callable[[Image.Image], bytes]

BACKGROUND = (245, 245, 240)
COLORS = {
    "red": (214, 39, 40),
    "blue": (31, 119, 180),
    "green": (44, 160, 44),
    "orange": (255, 127, 14),
    "purple": (148, 103, 189),
    "black": (30, 30, 30),
    "yellow": (240, 200, 0),
    "teal": (0, 150, 150),
}
SUPERSAMPLING = 4
CURVE_POINTS = 96
GAP = 0.035
"""Between objects and to the border, as a share of the longer side."""
SIDE = (0.17, 0.25)
"""The larger side of an object, likewise."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `contour` in pixels of the upright picture, edges continuous."""

    color: str
    shape: str
    contour: Contour

    @property
    def label(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        xs, ys = zip(*self.contour, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class Sample:
    """A file to write. `scene` names the scene when it is not the file's own."""

    file_name: str
    width: int
    height: int
    objects: int
    write: Write
    scene: str = ""


def main(folder: Path = Path(__file__).parent) -> None:
    """Rewrite `folder/images` and `folder/truth.json`."""
    images = folder / "images"
    shutil.rmtree(images, ignore_errors=True)
    for sample in SAMPLES:
        target = images / sample.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sample.write(draw(sample)))
    (folder / "truth.json").write_text(_json(truth(SAMPLES)), encoding="utf-8")


def draw(sample: Sample) -> Image.Image:
    """The upright picture."""
    canvas = Image.new("RGB", (sample.width * SUPERSAMPLING, sample.height * SUPERSAMPLING), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for thing in scene(sample):
        # Pillow's whole numbers are the centres of pixels, ours are their edges.
        pen.polygon(
            [(x * SUPERSAMPLING - 0.5, y * SUPERSAMPLING - 0.5) for x, y in thing.contour], fill=COLORS[thing.color]
        )
    return canvas.reduce(SUPERSAMPLING)


def scene(sample: Sample) -> list[Thing]:
    """The objects of a picture, none touching another or the border."""
    random = Random(zlib.crc32((sample.scene or sample.file_name).encode()))
    while True:
        things = _try_scene(random, sample)
        if len(things) == sample.objects:
            return things


def truth(samples: Sequence[Sample]) -> dict[str, Any]:
    """COCO: `file_name` relative to `images/`, numbers in upright pixels, edges continuous."""
    scenes = [scene(sample) for sample in samples]
    labels = sorted({thing.label for things in scenes for thing in things})
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (sample, things) in enumerate(zip(samples, scenes, strict=True), start=1):
        images.append({"id": image_id, "file_name": sample.file_name, "width": sample.width, "height": sample.height})
        for thing in things:
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": labels.index(thing.label) + 1}
            annotations.append(ids | _geometry(thing))
    categories = [{"id": number, "name": label} for number, label in enumerate(labels, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _try_scene(random: Random, sample: Sample) -> list[Thing]:
    """Throw objects at the picture and keep those that fit."""
    things: list[Thing] = []
    for _ in range(60):
        thing = _random_thing(random, sample)
        if len(things) < sample.objects and _has_room(thing, things, sample):
            things.append(thing)
    return things


def _random_thing(random: Random, sample: Sample) -> Thing:
    color = list(COLORS)[int(random.random() * len(COLORS))]
    shape = list(SHAPES)[int(random.random() * len(SHAPES))]
    contour = SHAPES[shape]
    low, high = SIDE
    scale = (low + (high - low) * random.random()) * max(sample.width, sample.height)
    left, top = random.random() * sample.width, random.random() * sample.height
    return Thing(color, shape, [(round(left + x * scale, 2), round(top + y * scale, 2)) for x, y in contour])


def _has_room(thing: Thing, others: Iterable[Thing], sample: Sample) -> bool:
    gap_px = GAP * max(sample.width, sample.height)
    x0, y0, x1, y1 = thing.xyxy
    if x0 < gap_px or y0 < gap_px or x1 > sample.width - gap_px or y1 > sample.height - gap_px:
        return False
    return all(
        x0 - gap_px > ox1 or x1 + gap_px < ox0 or y0 - gap_px > oy1 or y1 + gap_px < oy0
        for ox0, oy0, ox1, oy1 in (other.xyxy for other in others)
    )


def _geometry(thing: Thing) -> dict[str, Any]:
    x0, y0, x1, y1 = thing.xyxy
    return {
        "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
        "area": round(_area(thing.contour), 2),
        "segmentation": [[number for point in thing.contour for number in point]],
        "iscrowd": 0,
    }


def _area(contour: Contour) -> float:
    """The shoelace formula."""
    following = contour[1:] + contour[:1]
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(contour, following, strict=True))) / 2


def _json(coco: dict[str, Any]) -> str:
    """One entry a line, for readable diffs."""
    parts = (
        f'"{name}": [\n' + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]"
        for name, entries in coco.items()
    )
    return "{\n" + ",\n".join(parts) + "\n}\n"


# Shapes: contours whose larger side is 1. Each side stays above 0.14 of the picture when scaled by SIDE.


def _ring(corners: int, inner_radius: float = 1.0, start_deg: float = -90.0) -> Contour:
    """Corners on a circle, every second one pulled in to `inner_radius`."""
    contour = []
    for corner in range(corners):
        angle = math.radians(start_deg + 360 * corner / corners)
        radius = inner_radius if corner % 2 else 1.0
        contour.append((radius * math.cos(angle), radius * math.sin(angle)))
    return _fitted(contour)


def _fitted(contour: Contour) -> Contour:
    xs, ys = zip(*contour, strict=True)
    scale = max(max(xs) - min(xs), max(ys) - min(ys))
    return [((x - min(xs)) / scale, (y - min(ys)) / scale) for x, y in contour]


def _flattened(contour: Contour, share: float, larger: float) -> Contour:
    return [(x * larger, y * larger * share) for x, y in contour]


SHAPES: dict[str, Contour] = {
    "circle": _ring(CURVE_POINTS),
    "square": _ring(4, start_deg=45),
    "rectangle": _flattened(_ring(4, start_deg=45), share=0.6, larger=1.4),
    "triangle": _ring(3),
    "star": _ring(10, inner_radius=0.382),
    "ellipse": _flattened(_ring(CURVE_POINTS), share=0.6, larger=1.4),
    "pentagon": _ring(5),
    "hexagon": _ring(6),
}

# Files ---------------------------------------------------------------------------------------------------------------

_STORED_BY_ORIENTATION = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _saved(format_name: str, orientation: int | None = None, **options: Any) -> Write:
    """Write upright, or so that the orientation tag is what makes it upright."""

    def write(upright: Image.Image) -> bytes:
        target = io.BytesIO()
        if orientation is None:
            upright.save(target, format_name, **options)
        else:
            _stored(upright, orientation).save(target, format_name, exif=_exif(orientation), **options)
        return target.getvalue()

    return write


def _converted(mode: str, write: Write) -> Write:
    return lambda upright: write(upright.convert(mode, palette=Image.Palette.ADAPTIVE))


def _heic(upright: Image.Image) -> bytes:
    return _heif_file(upright)


def _heif(upright: Image.Image) -> bytes:
    """The same container under the general brand, which makes it image/heif."""
    data = _heif_file(upright)
    return data[:8] + b"mif1" + data[12:]


def _heic_turned_by_box(upright: Image.Image) -> bytes:
    """As phones write it: stored lying, with an `irot` box. The encoder makes the box from the tag."""
    return _heif_file(_stored(upright, 6), exif=_exif(6).tobytes())


def _heif_file(image: Image.Image, **options: Any) -> bytes:
    target = io.BytesIO()
    pillow_heif.from_pillow(image).save(target, quality=90, **options)
    return target.getvalue()


def _stored(upright: Image.Image, orientation: int) -> Image.Image:
    method = _STORED_BY_ORIENTATION[orientation]
    return upright if method is None else upright.transpose(method)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


_JPEG: dict[str, Any] = {"quality": 90, "subsampling": "4:4:4"}
_jpeg = _saved("JPEG", **_JPEG)
_png = _saved("PNG", optimize=True)

SAMPLES: tuple[Sample, ...] = (
    Sample("formats/scene.jpg", 640, 480, 4, _jpeg),
    Sample("formats/scene.png", 720, 540, 5, _png),
    Sample("formats/scene.webp", 640, 480, 3, _saved("WEBP", quality=90)),
    Sample("formats/scene.heic", 640, 480, 4, _heic),
    Sample("formats/scene.heif", 640, 480, 3, _heif),
    *(
        Sample(f"orientation/exif-{tag}.jpg", 640, 480, 2 + tag % 3, _saved("JPEG", tag, **_JPEG))
        for tag in range(1, 9)
    ),
    Sample("orientation/exif-6.png", 480, 360, 3, _saved("PNG", 6, optimize=True)),
    Sample("orientation/exif-8.webp", 480, 640, 4, _saved("WEBP", 8, lossless=True)),
    Sample("orientation/irot.heic", 640, 480, 4, _heic_turned_by_box),
    Sample("converted/scan.tiff", 600, 450, 3, _saved("TIFF", compression="tiff_lzw")),
    Sample("converted/indexed.bmp", 480, 360, 2, _converted("P", _saved("BMP"))),
    Sample("converted/indexed.gif", 480, 360, 3, _converted("P", _saved("GIF"))),
    Sample("converted/photo.avif", 640, 480, 3, _saved("AVIF", quality=90, subsampling="4:4:4")),
    Sample("converted/print.jpg", 640, 480, 3, _converted("CMYK", _jpeg)),
    Sample("dup/copy of scene.jpg", 640, 480, 4, _jpeg, scene="formats/scene.jpg"),
    Sample("large/six objects.png", 960, 720, 6, _png),
    Sample("large/tall.jpg", 720, 960, 6, _jpeg),
    Sample("nothing.png", 480, 360, 0, _png),
    Sample("señal über №7.png", 600, 480, 4, _png),
)

if __name__ == "__main__":
    main()
