"""CVAT for images as datumaro reads it, which is what CVAT itself imports with."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from pycocotools import mask as coco

from pixscribe.exports import ExportOptions, export_runs
from pixscribe.exports.pictures import PictureMode
from pixscribe.results import RunResults, open_results
from pixscribe.tables import Row
from tests.conftest import SAMPLES, MakeConfig, annotate
from tests.datumaro import needs_datumaro, read_with_datumaro
from tests.made_runs import Made, thing, write_run

SEGMENT = ({"name": "outlines", "kind": "segment"},)

# pycocotools 2.0.11 decodes in a way that numpy 2 warns about
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def export(run: RunResults, to: Path, *prompts: str, pictures: PictureMode | None = None) -> None:
    export_runs([run], "cvat", to, ExportOptions(prompts=prompts, pictures=pictures), lambda sentence: None)


def parse(folder: Path) -> ElementTree.Element:
    return ElementTree.parse(folder / "annotations.xml").getroot()


def edges(row: Row) -> list[float]:
    """Of the outline, if there is one: the model may draw it less than a pixel beside its box."""
    if not row["polygons"]:
        return [row[edge] for edge in ("xmin", "ymin", "xmax", "ymax")]
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in row["polygons"]])
    return [*points.min(axis=0), *points.max(axis=0)]


@needs_datumaro
@pytest.mark.parametrize("prompt", ["objects", "outlines"])
async def test_datumaro_gives_back_every_object_of_every_sample(make: MakeConfig, tmp_path: Path, prompt: str):
    # it knows an image by its name without suffix, CVAT does not
    same_stem = ["formats/scene.png", "formats/scene.webp", "orientation/*.png", "orientation/*.webp"]
    summary = await annotate(make(source={"uri": str(SAMPLES), "exclude": same_stem}))
    run = open_results(f"{summary.output}@{summary.run}")
    export(run, tmp_path / "to", prompt, pictures="copy")
    read = read_with_datumaro(tmp_path / "to", "cvat")
    for item, each in zip(read, run, strict=True):
        objects = [row for row in each.annotations if row["prompt"] == prompt]
        assert item["size"] == [each.image["height"], each.image["width"]]
        assert [shape["label"] for shape in item["shapes"]] == [row["label"] for row in objects]
        assert {shape["type"] for shape in item["shapes"]} <= {"bbox" if prompt == "objects" else "polygon"}
        corners = np.reshape([edges(row) for row in objects], (-1, 4))
        found = np.reshape([shape["xyxy"] for shape in item["shapes"]], (-1, 4))
        np.testing.assert_allclose(found, corners, rtol=0, atol=0.5)
    assert len(read) == 22


def test_the_head_lists_no_label_twice_and_each_object_has_one_of_them(tmp_path: Path):
    things = [thing(label, (0, 0, 1, 1)) for label in ("a\ufffdb", "a\0b")]
    export(write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": things})]), tmp_path / "to")
    root = parse(tmp_path / "to")
    assert [each.text for each in root.iterfind("meta/task/labels/label/name")] == ["a\ufffdb", "a\ufffdb (2)"]
    assert [box.get("label") for box in root.iter("box")] == ["a\ufffdb (2)", "a\ufffdb"]


def test_boxes_are_in_pixels_and_labels_in_the_head(tmp_path: Path):
    images = [Made("d/a.jpg", {"objects": [thing("car", (10.5, 20, 30.125, 40))]}), Made("none.jpg", {"objects": []})]
    export(write_run(tmp_path / "out", "a", images), tmp_path / "to")
    root = parse(tmp_path / "to")
    assert root.findtext("version") == "1.1"
    assert [label.text for label in root.findall("meta/task/labels/label/name")] == ["car"]
    first, second = root.findall("image")
    assert first.attrib == {"id": "0", "name": "d/a.jpg", "width": "640", "height": "480"}
    (box,) = first
    assert {name: box.get(name) for name in ("label", "xtl", "ytl", "xbr", "ybr")} == {
        "label": "car",
        "xtl": "10.5",
        "ytl": "20",
        "xbr": "30.125",
        "ybr": "40",
    }
    assert (second.get("id"), second.get("name"), len(second)) == ("1", "none.jpg", 0)


def test_outlines_of_one_object_are_a_group(tmp_path: Path):
    rings = [(0, 0, 10, 0, 10, 10), (20, 0, 30, 0, 30, 10)]
    things = [
        thing("x", (0, 0, 30, 10), rings),
        thing("y", (0, 0, 10, 10), rings[:1]),
        thing("z", (0, 0, 30, 10), rings),
    ]
    made = write_run(tmp_path / "out", "a", [Made("a.jpg", {"outlines": things})], SEGMENT)
    export(made, tmp_path / "to")
    found = [
        (each.get("label"), each.get("group_id"), each.get("points")) for each in parse(tmp_path / "to").iter("polygon")
    ]
    one, two = "0,0;10,0;10,10", "20,0;30,0;30,10"
    assert found == [("x", "1", one), ("x", "1", two), ("y", None, one), ("z", "2", one), ("z", "2", two)]


def ring_mask() -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A frame with a hole: no outline could say it."""
    mask = np.zeros((6, 8), np.uint8)
    mask[1:5, 2:7] = 1
    mask[2:4, 3:6] = 0
    return mask


def encoded(mask: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> dict[str, object]:
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def test_a_mask_without_outlines_is_runs_along_the_rows_of_its_box(tmp_path: Path):
    things = [thing("x", (2, 1, 7, 5), rle=encoded(ring_mask()))]
    made = write_run(tmp_path / "out", "a", [Made("a.jpg", {"outlines": things}, size=(8, 6))], SEGMENT)
    export(made, tmp_path / "to")
    (mask,) = parse(tmp_path / "to").iter("mask")
    assert {name: mask.get(name) for name in ("left", "top", "width", "height")} == {
        "left": "2",
        "top": "1",
        "width": "5",
        "height": "4",
    }
    # 11111 10001 10001 11111: no 0 to begin with, then 6 of 1, 3 of 0, ...
    assert mask.get("rle") == "0, 6, 3, 2, 3, 6"


@needs_datumaro
def test_datumaro_draws_the_same_mask(tmp_path: Path):
    things = [thing("x", (2, 1, 7, 5), rle=encoded(ring_mask()))]
    made = write_run(tmp_path / "out", "a", [Made("a.png", {"outlines": things}, size=(8, 6))], SEGMENT)
    export(made, tmp_path / "to")
    (tmp_path / "to/images").mkdir()
    (tmp_path / "to/images/a.png").touch()  # it wants a picture of that name
    (item,) = read_with_datumaro(tmp_path / "to", "cvat")
    assert item["shapes"][0]["mask"] == ring_mask().tolist()


@pytest.mark.parametrize("label", ['"><script>', "a\0b", "two\nlines\tand\r", "😀&amp;"])
def test_labels_of_any_kind_are_the_same_in_the_head_and_at_the_objects(tmp_path: Path, label: str):
    made = write_run(tmp_path / "out", "a", [Made(f"{label}.jpg", {"objects": [thing(label, (0, 0, 1, 1))]})])
    export(made, tmp_path / "to")
    root = parse(tmp_path / "to")
    (box,) = root.iter("box")
    assert (
        box.get("label")
        == root.findtext("meta/task/labels/label/name")
        == label.replace("\0", "\ufffd").replace("\r", "\n")
    )
