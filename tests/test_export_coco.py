"""COCO as pycocotools and supervision read it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import supervision as sv
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixscribe.exports import ExportOptions, export_runs
from pixscribe.results import RunResults, open_results
from pixscribe.tables import Row
from tests.made_runs import Made, thing, write_run

# pycocotools 2.0.11 decodes in a way that numpy 2 warns about
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SEGMENT = ({"name": "outlines", "kind": "segment"},)


def deaf(sentence: str) -> None:
    """For what a test is not about."""


@pytest.fixture
def run(sample_run: str) -> RunResults:
    return open_results(sample_run)


def objects_of(run: RunResults, prompt: str) -> Iterator[tuple[Row, list[Row]]]:
    """Each image with what was found in it."""
    for each in run:
        yield each.image, [row for row in each.annotations if row["prompt"] == prompt]


def xyxy(row: Row) -> list[float]:
    return [row[edge] for edge in ("xmin", "ymin", "xmax", "ymax")]


def test_pycocotools_gives_back_every_box_of_every_image(run: RunResults, tmp_path: Path):
    export_runs([run], "coco", tmp_path / "to", ExportOptions(prompts=["objects"]), deaf)
    loaded = COCO(str(tmp_path / "to/annotations.json"))
    by_name = {image["file_name"]: image for image in loaded.imgs.values()}
    count = 0
    for image, objects in objects_of(run, "objects"):
        entry = by_name[image["file_name"]]
        assert (entry["width"], entry["height"]) == (image["width"], image["height"])
        found = loaded.loadAnns(loaded.getAnnIds(imgIds=entry["id"]))
        assert [loaded.cats[each["category_id"]]["name"] for each in found] == [row["label"] for row in objects]
        for each, row in zip(found, objects, strict=True):
            x, y, width, height = each["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx(xyxy(row))
            count += 1
    assert (len(by_name), count) == (26, 89)
    assert sorted(loaded.imgs) == list(range(1, 27))
    assert sorted(loaded.anns) == list(range(1, 90))


def test_the_mask_that_pycocotools_draws_of_an_outline_has_the_area_that_is_said(run: RunResults, tmp_path: Path):
    export_runs([run], "coco", tmp_path / "to", ExportOptions(prompts=["outlines"]), deaf)
    loaded = COCO(str(tmp_path / "to/annotations.json"))
    assert len(loaded.anns) == 89
    for found in loaded.anns.values():
        image = loaded.imgs[found["image_id"]]
        mask = loaded.annToMask(found)
        assert mask.shape == (image["height"], image["width"])
        # what is drawn differs by half a pixel along the outline at most
        around = sum(
            np.hypot(*np.diff(np.reshape([*ring, *ring[:2]], (-1, 2)).T)).sum() for ring in found["segmentation"]
        )
        assert abs(int(mask.sum()) - found["area"]) < around / 2


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_evaluated_with_itself_the_truth_is_perfect(run: RunResults, tmp_path: Path, kind: str):
    export_runs([run], "coco", tmp_path / "to", ExportOptions(prompts=["outlines"]), deaf)
    truth = COCO(str(tmp_path / "to/annotations.json"))
    keys = ("image_id", "category_id", "bbox")
    answers = [{**{key: each[key] for key in keys}, "score": 1.0} for each in truth.anns.values()]
    if kind == "segm":
        for answer, each in zip(answers, truth.anns.values(), strict=True):
            answer["segmentation"] = truth.annToRLE(each)
    evaluation = COCOeval(truth, truth.loadRes(answers), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_supervision_gives_back_the_boxes_of_copied_pictures(run: RunResults, tmp_path: Path):
    export_runs([run], "coco", tmp_path / "to", ExportOptions(prompts=["objects"], pictures="copy"), deaf)
    loaded = sv.DetectionDataset.from_coco(str(tmp_path / "to/images"), str(tmp_path / "to/annotations.json"))
    expected = list(objects_of(run, "objects"))
    assert len(loaded) == len(expected) == 26
    for (path, picture, found), (image, objects) in zip(loaded, expected, strict=True):
        assert Path(path).name.startswith(Path(image["file_name"]).name)
        assert picture.shape[:2] == (image["height"], image["width"])
        labels = [] if found.class_id is None else [loaded.classes[number] for number in found.class_id]
        assert labels == [row["label"] for row in objects]
        np.testing.assert_allclose(found.xyxy, np.reshape([xyxy(row) for row in objects], (-1, 4)), rtol=0, atol=0.5)


def read(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = orjson.loads((folder / "annotations.json").read_bytes())
    return loaded


def test_an_object_is_said_by_outlines_or_else_by_its_mask_or_else_by_its_box_alone(tmp_path: Path):
    # a mask of one column: 5 rows of nothing and 5 of it, in an image of 2 x 10 px
    rle = {"size": [10, 2], "counts": "55:"}
    ring = (0.0, 0.0, 2.0, 0.0, 2.0, 10.0)
    things = [
        thing("both", (0, 0, 2, 10), [ring], rle),
        thing("mask", (0, 5, 1, 10), rle=rle),
        thing("box", (0, 0, 1, 1)),
    ]
    made = write_run(tmp_path / "out", "a", [Made("a.jpg", {"outlines": things}, size=(2, 10))], SEGMENT)
    export_runs([made], "coco", tmp_path / "to", tell=deaf)
    both, mask, box = read(tmp_path / "to")["annotations"]
    assert both["segmentation"] == [list(ring)]
    assert mask["segmentation"] == rle
    assert box["segmentation"] == []
    drawn = COCO(str(tmp_path / "to/annotations.json")).annToMask(mask)
    assert drawn.tolist() == [[0, 0]] * 5 + [[1, 0]] * 5


@pytest.mark.parametrize("label", ['<img src=x onerror="alert(1)">', "a\0b\n\r\u2028\"'\\", "😀", "{", "NaN", " "])
def test_labels_and_names_of_any_kind_come_back_as_they_are(tmp_path: Path, label: str):
    made = write_run(tmp_path / "out", "a", [Made(f"x/{label}.jpg", {"objects": [thing(label, (0, 0, 1, 1))]})])
    export_runs([made], "coco", tmp_path / "to", tell=deaf)
    loaded = read(tmp_path / "to")
    assert [category["name"] for category in loaded["categories"]] == [label]
    assert loaded["images"][0]["source_file_name"] == f"x/{label}.jpg"


def test_readers_are_told_where_an_object_comes_from(tmp_path: Path):
    flagged = {**thing("car", (0, 0, 1, 1)), "flags": ["clipped"]}
    image = Made("../a.jpg", {"objects": [flagged]}, uri="file:///photos/a.jpg", sha256="00ff")
    export_runs([write_run(tmp_path / "out", "a", [image])], "coco", tmp_path / "to", tell=deaf)
    loaded = read(tmp_path / "to")
    assert loaded["images"] == [
        {
            "id": 1,
            "file_name": "a.jpg",
            "width": 640,
            "height": 480,
            "sha256": "00ff",
            "uri": "file:///photos/a.jpg",
            "source_file_name": "../a.jpg",
        }
    ]
    assert (loaded["annotations"][0]["prompt"], loaded["annotations"][0]["flags"]) == ("objects", ["clipped"])
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["annotations.json", "pixscribe-export.json"]
