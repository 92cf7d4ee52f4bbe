"""YOLO as supervision reads it, which is as ultralytics does."""

import glob
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import yaml

from pixscribe.errors import ConfigError
from pixscribe.exports import ExportOptions, ExportSummary, export_runs
from pixscribe.exports.pictures import PictureMode
from pixscribe.exports.yolo import join_rings
from pixscribe.geometry import polygon_area
from pixscribe.results import RunResults, open_results
from pixscribe.tables import Row
from tests.conftest import SAMPLES
from tests.made_runs import Made, thing, write_run

SEGMENT = ({"name": "outlines", "kind": "segment"},)


def export(
    run: RunResults, to: Path, *prompts: str, name: str = "yolo", pictures: PictureMode | None = None
) -> ExportSummary:
    return export_runs([run], name, to, ExportOptions(prompts=prompts, pictures=pictures), lambda sentence: None)


def load(folder: Path) -> dict[str, sv.Detections]:
    """What supervision makes of each folder of pictures, by the stem of the labels, with the names of the classes."""
    loaded = {}
    for images in {path.parent for path in (folder / "images").rglob("*.*")}:
        labels = folder / "labels" / images.relative_to(folder / "images")
        read = sv.DetectionDataset.from_yolo(str(images), str(labels), str(folder / "data.yaml"))
        for path, _, found in read:
            if found.class_id is not None:
                found.data["names"] = np.array([read.classes[number] for number in found.class_id], dtype=object)
            loaded[str(Path(path).relative_to(folder / "images").with_suffix(""))] = found
    return loaded


def objects_by_name(run: RunResults, prompt: str) -> dict[str, list[Row]]:
    return {each.image["file_name"]: [row for row in each.annotations if row["prompt"] == prompt] for each in run}


# what the samples are called by the stem of their labels, where it is not the stem of their name
STEMS = [
    *(f"converted/{name}" for name in ("indexed.bmp", "indexed.gif", "photo.avif", "scan.tiff")),
    *(f"formats/scene.{suffix}" for suffix in ("heic", "heif", "png", "webp")),
    *(f"orientation/{name}" for name in ("exif-6.png", "exif-8.webp", "irot.heic")),
]


def stem_of(file_name: str) -> str:
    return file_name if file_name in STEMS else file_name.rpartition(".")[0]


def edges(row: Row) -> list[float]:
    """Of the outline, if there is one: the model may draw it less than a pixel beside its box."""
    if not row["polygons"]:
        return [row[edge] for edge in ("xmin", "ymin", "xmax", "ymax")]
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in row["polygons"]])
    return [*points.min(axis=0), *points.max(axis=0)]


@pytest.mark.parametrize(("name", "prompt"), [("yolo", "objects"), ("yolo-seg", "outlines")])
def test_supervision_gives_back_the_boxes_of_every_sample(sample_run: str, tmp_path: Path, name: str, prompt: str):
    run = open_results(sample_run)
    summary = export(run, tmp_path / "to", prompt, name=name, pictures="copy")
    loaded, expected = load(tmp_path / "to"), objects_by_name(run, prompt)
    assert (summary.images, summary.objects) == (26, 89)
    assert set(loaded) == {stem_of(file_name) for file_name in expected}
    for file_name, objects in expected.items():
        found = loaded[stem_of(file_name)]
        assert list(found.data.get("names", [])) == [row["label"] for row in objects]
        corners = [edges(row) for row in objects]
        np.testing.assert_allclose(found.xyxy, np.reshape(corners, (-1, 4)), rtol=0, atol=0.5)


def test_the_masks_that_supervision_draws_of_the_outlines_have_their_areas(sample_run: str, tmp_path: Path):
    run = open_results(sample_run)
    export(run, tmp_path / "to", name="yolo-seg", pictures="copy")
    loaded = load(tmp_path / "to")
    for file_name, objects in objects_by_name(run, "outlines").items():
        found = loaded[stem_of(file_name)]
        for row, mask in zip(objects, found.mask if found.mask is not None else (), strict=True):
            around = 2 * (row["xmax"] - row["xmin"] + row["ymax"] - row["ymin"])
            assert abs(int(mask.sum()) - row["area"]) < around


def test_an_image_without_objects_has_an_empty_label_file(sample_run: str, tmp_path: Path):
    export(open_results(sample_run), tmp_path / "to", "objects")
    assert (tmp_path / "to/labels/nothing.txt").read_bytes() == b""


def test_a_box_is_said_by_its_centre_and_its_sides_as_shares(tmp_path: Path):
    made = write_run(tmp_path / "out", "a", [Made("d/a.jpg", {"objects": [thing("car", (160, 120, 480, 360))]})])
    export(made, tmp_path / "to")
    assert (tmp_path / "to/labels/d/a.txt").read_text() == "0 0.5000000 0.5000000 0.5000000 0.5000000\n"


def test_half_a_pixel_of_twenty_thousand_is_not_lost(tmp_path: Path):
    box = (12345.5, 1.25, 12346.0, 1.75)
    made = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [thing("x", box)]}, size=(20_000, 20_000))])
    export(made, tmp_path / "to")
    _, *shares = map(float, (tmp_path / "to/labels/a.txt").read_text().split())
    x, y, width, height = (20_000 * share for share in shares)
    found = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    assert found == pytest.approx(box, abs=0.005)


def test_classes_are_the_ids_of_the_output_less_one_whatever_is_exported(tmp_path: Path):
    first = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [thing("bus", (0, 0, 640, 480))]})])
    second = write_run(tmp_path / "out", "b", [Made("b.jpg", {"objects": [thing("ape", (0, 0, 640, 480))]})])
    export(first, tmp_path / "one")
    export(second, tmp_path / "two")
    assert (tmp_path / "two/labels/b.txt").read_text().startswith("1 ")
    assert yaml.safe_load((tmp_path / "two/data.yaml").read_text()) == {
        "train": "images",
        "val": "images",
        "nc": 2,
        "names": {0: "bus", 1: "ape"},
    }


@pytest.mark.parametrize(
    "label", ["a\nb: c", '"', "'", "- x", "{", "no", "1", "😀", "a\0b", "#", " ", "x" * 1000, "\u2028"]
)
def test_names_of_any_kind_come_back_from_data_yaml(tmp_path: Path, label: str):
    made = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [thing(label, (0, 0, 1, 1))]})])
    export(made, tmp_path / "to")
    assert yaml.safe_load((tmp_path / "to/data.yaml").read_text(encoding="utf-8"))["names"] == {0: label}


def test_names_that_differ_in_folder_or_suffix_only_have_label_files_of_their_own(tmp_path: Path):
    names = ["a.jpg", "a.png", "d/a.jpg", "e/a.jpg"]
    images = [Made(name, {"objects": [thing("x", (0, 0, 1, 1))] * number}) for number, name in enumerate(names)]
    export(write_run(tmp_path / "out", "a", images), tmp_path / "to")
    counts = {
        str(path.relative_to(tmp_path / "to/labels")): len(path.read_text().splitlines())
        for path in (tmp_path / "to/labels").rglob("*.txt")
    }
    assert counts == {"a.txt": 0, "a.png.txt": 1, "d/a.txt": 2, "e/a.txt": 3}


def test_labels_lie_where_ultralytics_looks_for_those_of_a_picture(tmp_path: Path):
    images = []
    for name in ("images/train/images/a.png", "labels/b.png", ".hidden/.c.png", "images.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((SAMPLES / "nothing.png").read_bytes())
        digest = sha256(path.read_bytes()).hexdigest()
        images.append(Made(name, {"objects": []}, size=(480, 360), uri=path.as_uri(), sha256=digest))
    export(write_run(tmp_path / "out", "a", images), tmp_path / "to", pictures="copy")
    # as ultralytics does it: `**/*.*`, which passes over hidden names, and the last `images` of the path
    pictures = glob.glob(f"{tmp_path}/to/images/**/*.*", recursive=True)  # noqa: PTH207
    assert len(pictures) == 4
    for picture in pictures:
        assert Path("/labels/".join(picture.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt").is_file(), picture


# ---- outlines ----


def numbers(folder: Path) -> list[list[float]]:
    lines = (folder / "labels/a.txt").read_text().splitlines()
    return [[float(number) for number in line.split()[1:]] for line in lines]


def test_a_box_without_an_outline_is_its_four_corners(tmp_path: Path):
    things = [thing("x", (0, 0, 320, 240)), thing("y", (0, 0, 640, 480), [(0, 0, 640, 0, 640, 480)])]
    made = write_run(tmp_path / "out", "a", [Made("a.jpg", {"outlines": things})], SEGMENT)
    export(made, tmp_path / "to", name="yolo-seg")
    assert numbers(tmp_path / "to") == [[0, 0, 0.5, 0, 0.5, 0.5, 0, 0.5], [0, 0, 1, 0, 1, 1]]


def test_two_rings_are_joined_at_their_nearest_corners():
    left = np.array([(0, 0), (10, 0), (10, 10), (0, 10)], dtype=float)
    right = np.array([(30, 0), (30, 10), (20, 10), (20, 0)], dtype=float)
    # from (10, 0) over to (20, 0), round the second ring, and back
    assert join_rings([left, right]).tolist() == [
        [0, 0], [10, 0], [20, 0], [30, 0], [30, 10], [20, 10], [20, 0], [10, 0], [10, 10], [0, 10],
    ]  # fmt: skip


def test_many_rings_make_one_of_the_same_area():
    rings = [np.array([(x, 0), (x + 5, 0), (x + 5, 7)], dtype=float) for x in (40, 0, 20, 60)]
    joined = join_rings(rings)
    assert polygon_area(tuple(joined.ravel())) == pytest.approx(4 * 17.5)
    assert len(joined) == 3 + 3 * 5


def test_a_detection_prompt_has_no_outlines_to_export(tmp_path: Path):
    made = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [thing("x", (0, 0, 1, 1))]})])
    with pytest.raises(ConfigError, match="--format yolo-seg holds prompts of kind segment, and none is in the run"):
        export(made, tmp_path / "to", name="yolo-seg")
