"""The committed samples are what they promise, and their truth is what their pixels show."""

import importlib.util
import io
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pillow_heif import HeifImageFile

from pixscribe.image import ImageRules, prepare_image
from pixscribe.types import PreparedImage

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
IMAGES = SAMPLES / "images"
TRUTH: dict[str, Any] = json.loads((SAMPLES / "truth.json").read_text(encoding="utf-8"))
NAMES: list[str] = [image["file_name"] for image in TRUTH["images"]]
LABELS: dict[int, str] = {category["id"]: category["name"] for category in TRUTH["categories"]}


def load_draw() -> ModuleType:
    spec = importlib.util.spec_from_file_location("samples_draw", SAMPLES / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


draw = load_draw()


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    draw.main(folder)
    return folder


def prepare(name: str, max_side_px: int | None = None) -> PreparedImage:
    return prepare_image((IMAGES / name).read_bytes(), ImageRules(max_side_px))


def as_sent(image: PreparedImage) -> NDArray[np.float64]:
    """The pixels that the model sees: stored ones, with no EXIF orientation applied."""
    opener = HeifImageFile if image.sent_mime_type in ("image/heic", "image/heif") else Image.open
    with opener(io.BytesIO(image.data)) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float64)


def truth_of(name: str) -> list[dict[str, Any]]:
    (image_id,) = (image["id"] for image in TRUTH["images"] if image["file_name"] == name)
    return [annotation for annotation in TRUTH["annotations"] if annotation["image_id"] == image_id]


def inside(polygon: list[float], width: int, height: int) -> NDArray[np.bool_]:
    """The pixels of which at least half lies inside."""
    mask = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(mask).polygon([4 * coordinate - 0.5 for coordinate in polygon], fill=255)
    return np.asarray(mask.reduce(4)) >= 128


def color_of(annotation: dict[str, Any]) -> NDArray[np.float64]:
    return np.array(draw.COLORS[LABELS[annotation["category_id"]].split()[0]], dtype=np.float64)


def share_of(color: NDArray[np.float64], pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of each pixel is the object: 0 on the background, 1 inside it."""
    background = np.array(draw.BACKGROUND, dtype=np.float64)
    way = color - background
    share: NDArray[np.float64] = (pixels - background) @ way / (way @ way)
    return share


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def around(annotation: dict[str, Any], margin_px: int = 9) -> tuple[slice, slice]:
    """Rows and columns of a window that holds this object and no other."""
    x, y, width, height = annotation["bbox"]
    return (
        slice(int(y) - margin_px, int(y + height) + margin_px),
        slice(int(x) - margin_px, int(x + width) + margin_px),
    )


def test_the_truth_names_exactly_the_files_that_are_there() -> None:
    assert sorted(NAMES) == sorted(p.relative_to(IMAGES).as_posix() for p in IMAGES.rglob("*") if p.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_every_object_fills_its_contour_with_its_color(name: str) -> None:
    pixels = as_sent(prepare(name))
    for annotation in truth_of(name):
        color, window = color_of(annotation), around(annotation)
        mask = inside(annotation["segmentation"][0], pixels.shape[1], pixels.shape[0])
        assert np.median(pixels[mask], axis=0) == pytest.approx(color, abs=8)
        assert iou(share_of(color, pixels[window]) > 0.5, mask[window]) > 0.98
        assert mask.sum() == pytest.approx(annotation["area"], rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_outside_the_objects_there_is_only_background(name: str) -> None:
    pixels = as_sent(prepare(name))
    for annotation in truth_of(name):
        pixels[around(annotation, margin_px=4)] = draw.BACKGROUND
    assert np.abs(pixels - draw.BACKGROUND).max() < 24


@pytest.mark.parametrize("name", NAMES)
def test_the_box_of_the_truth_is_the_box_of_the_pixels(name: str) -> None:
    pixels = as_sent(prepare(name))
    for annotation in truth_of(name):
        window = around(annotation)
        shown = share_of(color_of(annotation), pixels[window]) > 0.2
        rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
        left, top = window[1].start + columns[0], window[0].start + rows[0]
        box = (left, top, left + np.ptp(columns) + 1, top + np.ptp(rows) + 1)
        x, y, width, height = annotation["bbox"]
        assert box == pytest.approx((x, y, x + width, y + height), abs=2)


@pytest.mark.parametrize("image", TRUTH["images"], ids=NAMES)
def test_the_truth_gives_the_upright_size(image: dict[str, Any]) -> None:
    prepared = prepare(image["file_name"])
    assert (prepared.width, prepared.height) == (image["width"], image["height"])


@pytest.mark.parametrize("image", TRUTH["images"], ids=NAMES)
def test_objects_are_large_and_keep_their_distance(image: dict[str, Any]) -> None:
    longer = max(image["width"], image["height"])
    boxes = [annotation["bbox"] for annotation in truth_of(image["file_name"])]
    for x, y, width, height in boxes:
        assert min(width, height) >= 0.14 * longer
        assert min(x, y, image["width"] - x - width, image["height"] - y - height) >= 0.03 * longer
    for (x0, y0, w0, h0), (x1, y1, w1, h1) in itertools.combinations(boxes, 2):
        apart_x = max(x1 - x0 - w0, x0 - x1 - w1)
        apart_y = max(y1 - y0 - h0, y0 - y1 - h1)
        assert max(apart_x, apart_y) >= 0.03 * longer


def test_all_five_types_of_gemini_are_sent_as_they_are() -> None:
    sent = {name: prepare(f"formats/scene.{name}") for name in ("jpg", "png", "webp", "heic", "heif")}
    assert [image.mime_type.removeprefix("image/") for image in sent.values()] == [
        "jpeg",
        "png",
        "webp",
        "heic",
        "heif",
    ]
    assert all(image.sent_sha256 == image.image_id for image in sent.values())


def test_the_jpegs_have_all_eight_orientations() -> None:
    assert [prepare(f"orientation/exif-{tag}.jpg").exif_orientation for tag in range(1, 9)] == list(range(1, 9))
    assert prepare("orientation/exif-6.png").exif_orientation == 6
    assert prepare("orientation/exif-8.webp").exif_orientation == 8


def test_the_turned_heic_is_stored_lying_with_a_rotation_box_and_a_tag() -> None:
    data = (IMAGES / "orientation/irot.heic").read_bytes()
    stored_size = data.index(b"ispe") + 8
    assert data[stored_size : stored_size + 8] == (480).to_bytes(4, "big") + (640).to_bytes(4, "big")
    assert b"irot" in data
    prepared = prepare("orientation/irot.heic")
    assert (prepared.width, prepared.height, prepared.exif_orientation) == (640, 480, 6)


@pytest.mark.parametrize(
    ("name", "mime_type", "sent_mime_type"),
    [
        ("scan.tiff", "image/tiff", "image/png"),
        ("indexed.bmp", "image/bmp", "image/png"),
        ("indexed.gif", "image/gif", "image/png"),
        ("photo.avif", "image/avif", "image/jpeg"),
        ("print.jpg", "image/jpeg", "image/jpeg"),
    ],
)
def test_other_types_are_converted(name: str, mime_type: str, sent_mime_type: str) -> None:
    image = prepare(f"converted/{name}")
    assert (image.mime_type, image.sent_mime_type) == (mime_type, sent_mime_type)
    assert image.sent_sha256 != image.image_id


def test_the_duplicate_has_the_same_bytes_under_another_name() -> None:
    assert (IMAGES / "dup/copy of scene.jpg").read_bytes() == (IMAGES / "formats/scene.jpg").read_bytes()


def test_one_picture_shows_nothing() -> None:
    assert [name for name in NAMES if not truth_of(name)] == ["nothing.png"]


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 1_500_000


def test_drawing_again_gives_the_same_truth(redrawn: Path) -> None:
    assert (redrawn / "truth.json").read_bytes() == (SAMPLES / "truth.json").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_drawing_again_gives_the_same_picture(redrawn: Path, name: str) -> None:
    """Up to one encoder's rounding: another version of a lossy encoder may differ by a hair."""
    again = prepare_image((redrawn / "images" / name).read_bytes(), ImageRules())
    assert np.abs(as_sent(again) - as_sent(prepare(name))).max() <= 6


@pytest.mark.parametrize("name", ["formats/scene.jpg", "orientation/exif-5.jpg", "formats/scene.heic"])
def test_made_smaller_the_objects_keep_their_fractions(name: str) -> None:
    image = prepare(name, max_side_px=256)
    pixels = as_sent(image)
    for annotation in truth_of(name):
        fractions = np.array(annotation["segmentation"][0]).reshape(-1, 2) / (image.width, image.height)
        polygon = fractions * (image.sent_width, image.sent_height)
        mask = inside(polygon.ravel().tolist(), image.sent_width, image.sent_height)
        assert np.median(pixels[mask], axis=0) == pytest.approx(color_of(annotation), abs=8)
        assert iou(mask, mask & (share_of(color_of(annotation), pixels) > 0.5)) > 0.95
