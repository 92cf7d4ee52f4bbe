"""Tasks as Label Studio's own SDK checks and converts them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import orjson
import pytest
from PIL import Image

from pixscribe.exports import ExportOptions, export_runs
from pixscribe.exports.labelstudio import LabelStudioExporter
from pixscribe.results import RunResults, open_results
from pixscribe.tables import Row
from tests.foreign import ask
from tests.made_runs import Made, thing, write_run
from tests.pictured_runs import (
    BOX,
    HARD_LABELS,
    HARD_NAMES,
    OUTLINE,
    SIZE,
    around,
    colour_in,
    hard_run,
    no_matter,
    objects_of,
    words,
    xyxy,
)

OBJECTS: dict[str, Any] = {"name": "objects", "kind": "detect"}
OUTLINES = {"name": "outlines", "kind": "segment"}
SCENE = {"name": "scene", "kind": "classify"}

Accepted = tuple[Path, dict[str, Any]]


def export(run: RunResults, to: Path, **options: Any) -> Path:
    export_runs([run], "labelstudio", to, ExportOptions(**options), no_matter)
    return to


def tasks(folder: Path, name: str = "tasks.json") -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = orjson.loads((folder / name).read_bytes())
    return read


def results(folder: Path) -> list[dict[str, Any]]:
    return [part for task in tasks(folder) for each in task["predictions"] for part in each["result"]]


def labels_of(folder: Path) -> dict[str, list[str]]:
    """What the labelling interface offers, by control."""
    controls = ElementTree.parse(folder / "config.xml").getroot()
    return {each.get("name", ""): [label.get("value", "") for label in each] for each in controls if len(each)}


@pytest.fixture(scope="module")
def accepted(sample_run: str, tmp_path_factory: pytest.TempPathFactory) -> Accepted:
    """The samples in Label Studio."""
    folder = tmp_path_factory.mktemp("labelstudio")
    to = export(open_results(sample_run), folder / "to", pictures="copy")
    return to, ask("labelstudio", to, folder)


def test_label_studio_gives_back_every_box_on_its_upright_picture(sample_run: str, accepted: Accepted):
    folder, said = accepted
    assert said["errors"] == []
    count = 0
    for entry, found, image, objects in converted(said, open_results(sample_run), "objects"):
        size = (image["width"], image["height"])
        # the converter has found the picture by the address that the task gives
        with Image.open(folder / entry["file_name"]) as picture:
            assert ((entry["width"], entry["height"]), picture.size) == (size, size)
            for each, row in zip(found, objects, strict=True):
                assert around(each["bbox"]) == pytest.approx(xyxy(row), abs=0.5)
                assert row["label"].startswith(colour_in(picture, around(each["bbox"])))
                count += 1
    assert (len(said["coco"]["images"]), count) == (26, 89)


def test_label_studio_gives_back_every_corner_of_an_outline(sample_run: str, accepted: Accepted):
    count = 0
    for _, found, _, objects in converted(accepted[1], open_results(sample_run), "outlines"):
        for each, row in zip(found, objects, strict=True):
            (ring,), (expected,) = each["segmentation"], row["polygons"]
            assert ring == pytest.approx(expected, abs=0.01)
            count += 1
    assert count == 89


def converted(
    said: dict[str, Any], run: RunResults, prompt: str
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], Row, list[Row]]]:
    """Of each image what Label Studio makes of it and of the objects of a prompt, and the rows that it should be."""
    labels = {category["id"]: category["name"] for category in said["coco"]["categories"]}
    for entry, (image, objects) in zip(said["coco"]["images"], objects_of(run, prompt), strict=True):
        own = [each for each in said["coco"]["annotations"] if each["image_id"] == entry["id"]]
        found = [each for each in own if bool(each["segmentation"]) == (prompt == "outlines")]
        assert [labels[each["category_id"]] for each in found] == [row["label"] for row in objects]
        yield entry, found, image, objects


def test_the_ids_of_categories_are_kept(sample_run: str, accepted: Accepted):
    kept = orjson.loads((Path(sample_run.partition("@")[0]) / "categories.json").read_bytes())
    assert {each["name"]: each["id"] for each in accepted[1]["coco"]["categories"]} == kept


def test_no_name_and_no_label_is_too_hard(tmp_path: Path):
    folder = export(hard_run(tmp_path), tmp_path / "to", pictures="copy")
    (tmp_path / "scratch").mkdir()
    said = ask("labelstudio", folder, tmp_path / "scratch")
    assert said["errors"] == []
    # NUL is no character of XML, nor of the text of PostgreSQL
    shown = {label: label.replace("\0", "\N{REPLACEMENT CHARACTER}") for label in HARD_LABELS}
    assert sorted(said["labels"]["objects"]) == sorted(shown.values())
    labels = {category["id"]: category["name"] for category in said["coco"]["categories"]}
    for entry, name in zip(said["coco"]["images"][1:], sorted(HARD_NAMES), strict=True):
        box, outline = (each for each in said["coco"]["annotations"] if each["image_id"] == entry["id"])
        label = shown[HARD_LABELS[HARD_NAMES.index(name)]]
        assert [labels[each["category_id"]] for each in (box, outline)] == [label, label]
        assert around(box["bbox"]) == around(outline["bbox"]) == pytest.approx(BOX)
        with Image.open(folder / entry["file_name"]) as picture:
            assert (picture.size, colour_in(picture, BOX)) == (SIZE, "red")


def test_each_kind_of_answer_is_what_a_person_would_have_entered(tmp_path: Path):
    image = Made(
        "a.jpg",
        {
            "objects": [thing("cup", BOX)],
            "outlines": [thing("cup", BOX, [OUTLINE])],
            "scene": words("indoor", "kitchen"),
            "caption": words("A cup."),
        },
        SIZE,
    )
    run = write_run(tmp_path / "out", "a", [image], [OBJECTS, OUTLINES, SCENE, {"name": "caption", "kind": "caption"}])
    found = {part["from_name"]: part for part in results(export(run, tmp_path / "to"))}
    assert {name: (part["type"], part["value"]) for name, part in found.items()} == {
        # of 60 x 40 px
        "objects": (
            "rectanglelabels",
            {"x": 10, "y": 20, "width": 20, "height": 50, "rotation": 0, "rectanglelabels": ["cup"]},
        ),
        "outlines": (
            "polygonlabels",
            {"points": [[10, 20], [30, 20], [30, 70], [10, 70]], "closed": True, "polygonlabels": ["cup"]},
        ),
        "scene": ("choices", {"choices": ["indoor", "kitchen"]}),
        "caption": ("textarea", {"text": ["A cup."]}),
    }
    assert (found["objects"]["original_width"], found["objects"]["original_height"]) == SIZE
    assert all("score" not in part for part in found.values())


def test_an_outline_of_several_rings_is_as_many_polygons_and_one_that_is_missing_is_the_box(tmp_path: Path):
    several = thing("cup", (0, 0, 30, 40), [(0, 0, 10, 0, 10, 40), (20, 0, 30, 0, 30, 40)])
    image = Made("a.jpg", {"outlines": [several, {**thing("cup", BOX), "flags": ["no_mask"]}]}, SIZE)
    folder = export(write_run(tmp_path / "out", "a", [image], [OUTLINES]), tmp_path / "to")
    first, second, box = results(folder)
    assert [part["id"] for part in (first, second, box)] == ["outlines-0-1", "outlines-0-2", "outlines-1"]
    assert [part["meta"]["text"] for part in (first, second, box)] == [["part 1 of 2"], ["part 2 of 2"], ["no_mask"]]
    assert box["value"]["points"] == [[10, 20], [30, 20], [30, 70], [10, 70]]


def test_an_image_without_objects_is_a_task_with_an_empty_prediction(tmp_path: Path):
    images = [Made("a.jpg", {"objects": []}), Made("b.jpg", {"objects": [thing("cup", BOX)]})]
    first, second = tasks(export(write_run(tmp_path / "out", "a", images), tmp_path / "to"))
    assert [(task["id"], task["data"]["file_name"]) for task in (first, second)] == [(1, "a.jpg"), (2, "b.jpg")]
    assert [len(task["predictions"][0]["result"]) for task in (first, second)] == [0, 1]


def test_a_prediction_says_which_model_and_which_parser_made_it(sample_run: str, tmp_path: Path):
    folder = export(open_results(sample_run), tmp_path / "to")
    versions = [[each["model_version"] for each in task["predictions"]] for task in tasks(folder)]
    assert versions == [["gemini-3.5-flash, parser 1"]] * 26


def test_a_failed_answer_gives_no_prediction(tmp_path: Path):
    images = [Made("a.jpg", {"objects": None}, failed={"objects": [thing("cup", BOX)]})]
    folder = export(write_run(tmp_path / "out", "a", images), tmp_path / "to", statuses=frozenset({"failed"}))
    assert [task["predictions"] for task in tasks(folder)] == [[{"result": []}]]


def test_the_interface_offers_what_the_model_did_not_say_but_boxes_no_classes_of_whole_images(tmp_path: Path):
    asked = {**OBJECTS, "labels": ["cup", "plate"]}
    image = Made("a.jpg", {"objects": [thing("cup", BOX)], "scene": words("indoor"), "caption": words("plate")})
    prompts = [asked, SCENE, {"name": "caption", "kind": "caption"}]
    folder = export(write_run(tmp_path / "out", "a", [image], prompts), tmp_path / "to")
    assert labels_of(folder) == {"objects": ["cup", "plate"], "scene": ["plate", "indoor"]}
    colours = re.findall(r'background="(#[0-9a-f]{6})"', (folder / "config.xml").read_text())
    assert len(set(colours)) == 2


def test_a_prompt_may_be_called_image(tmp_path: Path):
    run = write_run(
        tmp_path / "out", "a", [Made("a.jpg", {"image": words("A cup.")})], [{"name": "image", "kind": "caption"}]
    )
    folder = export(run, tmp_path / "to")
    (task,), (part,) = tasks(folder), results(folder)
    assert (part["from_name"], part["to_name"], set(task["data"])) == (
        "image",
        "image_",
        {"image_", "file_name", "sha256"},
    )


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("https://host/a%20b.jpg?x=1", "https://host/a%20b.jpg?x=1"),
        # Label Studio asks for the key as it stands
        ("s3://bucket/a%20%23b.jpg", "s3://bucket/a #b.jpg"),
        ("gs://bucket/a.jpg", "gs://bucket/a.jpg"),
        ("abfs://box@account.dfs.core.windows.net/x/a.jpg", "azure-blob://box/x/a.jpg"),
        ("file:///photos/a%20b%26c.jpg", "/data/local-files/?d=photos/a%20b%26c.jpg"),
    ],
)
def test_without_pictures_a_task_names_the_source(tmp_path: Path, uri: str, place: str):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": []}, uri=uri)])
    assert [task["data"]["image"] for task in tasks(export(run, tmp_path / "to"))] == [place]


def test_a_picture_of_the_data_set_is_named_by_its_path_below_it(tmp_path: Path):
    folder = export(hard_run(tmp_path), tmp_path / "to", pictures="copy")
    for task in tasks(folder):
        (path,) = parse_qs(urlsplit(task["data"]["image"]).query)["d"]
        assert (folder / path).is_file()
    assert "set to the absolute path of this folder" in (folder / "README.md").read_text()


def test_many_tasks_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LabelStudioExporter, "max_file_bytes", 300)
    found: dict[str, list[Row] | None] = {"objects": []}
    run = write_run(tmp_path / "out", "a", [Made(f"{number}.jpg", found) for number in range(5)])
    folder = export(run, tmp_path / "to")
    names = sorted(path.name for path in folder.glob("*.json") if path.name.startswith("tasks"))
    assert names == ["tasks-00000.json", "tasks-00001.json", "tasks-00002.json"]
    assert [task["id"] for name in names for task in tasks(folder, name)] == [1, 2, 3, 4, 5]
    assert "the 3 files `tasks-*.json`" in (folder / "README.md").read_text()
