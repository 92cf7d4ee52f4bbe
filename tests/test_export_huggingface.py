"""Hugging Face as `datasets` reads it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pixscribe.exports import ExportOptions, export_runs
from pixscribe.exports.huggingface import HuggingFaceExporter
from pixscribe.results import RunResults, open_results
from pixscribe.types import Kind
from tests.conftest import MakeConfig, annotate
from tests.made_runs import Made, thing, write_run
from tests.pictured_runs import (
    BOX,
    HARD_LABELS,
    HARD_NAMES,
    OUTLINE,
    PROMPTS,
    SIZE,
    around,
    colour_in,
    hard_run,
    no_matter,
    objects_of,
    pictured,
    run_of,
    words,
    xyxy,
)

Load = Callable[[Path], Any]
BOTH = ["huggingface", "imagefolder"]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The one split of a data set, as a user gets it by the name of the folder alone."""
    # they are looked at when the library is imported, which takes a second
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets

    datasets.disable_progress_bars()

    def load_one(folder: Path) -> Any:
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        assert list(loaded) == ["train"]
        return loaded["train"]

    return load_one


def export(run: RunResults, to: Path, format_name: str = "huggingface", **options: Any) -> Path:
    export_runs([run], format_name, to, ExportOptions(**options), no_matter)
    return to


@pytest.mark.parametrize("format_name", BOTH)
def test_datasets_gives_back_every_box_on_its_upright_picture(
    sample_run: str, tmp_path: Path, load: Load, format_name: str
):
    run = open_results(sample_run)
    loaded = load(export(run, tmp_path / "to", format_name, prompts=["objects"], pictures="copy"))
    to_name = loaded.features["objects"]["category"].feature.int2str
    count = 0
    for example, (image, objects) in zip(loaded, objects_of(run, "objects"), strict=True):
        size = (image["width"], image["height"])
        assert (example["source_name"], example["image"].size) == (image["file_name"], size)
        assert (example["width"], example["height"]) == size
        found = example["objects"]
        assert [to_name(number) for number in found["category"]] == [row["label"] for row in objects]
        for bbox, row in zip(found["bbox"], objects, strict=True):
            assert around(bbox) == pytest.approx(xyxy(row), abs=0.5)
            assert row["label"].startswith(colour_in(example["image"], around(bbox)))
            count += 1
    assert (loaded.num_rows, count) == (26, 89)


def test_objects_are_as_in_the_guides_to_object_detection(tmp_path: Path, load: Load):
    stop, way = thing("stop", BOX, [OUTLINE]), {**thing("yield", BOX), "flags": ["no_mask"]}
    images = [Made("a.jpg", {"outlines": [stop, way]}), Made("b.jpg", {"outlines": [stop]})]
    run = write_run(tmp_path / "out", "a", images, [{"name": "outlines", "kind": "segment", "labels": ["yield"]}])
    loaded = load(export(run, tmp_path / "to"))
    assert loaded[0]["objects"] == {
        "id": [1, 2],
        "area": [240.0, 240.0],
        "bbox": [[6.0, 8.0, 12.0, 20.0], [6.0, 8.0, 12.0, 20.0]],
        # the vocabulary of the config comes first
        "category": [1, 0],
        "segmentation": [[list(OUTLINE)], []],
        "score": [None, None],
        "prompt": ["outlines", "outlines"],
        "flags": [[], ["no_mask"]],
    }
    assert loaded.features["objects"]["category"].feature.names == ["yield", "stop"]
    assert (loaded[1]["image_id"], loaded[1]["objects"]["id"]) == (2, [3])


@pytest.mark.parametrize("format_name", BOTH)
def test_another_export_into_a_folder_of_the_same_name_is_not_taken_for_the_first(
    tmp_path: Path, load: Load, format_name: str
):
    # of one image and one label, so that the same files are there
    for place, box in (("x", BOX), ("y", (1.0, 2.0, 3.0, 4.0))):
        run = run_of(tmp_path / place, [pictured(tmp_path, "a.png", {"objects": [thing("stop", box)]})], PROMPTS[:1])
        loaded = load(export(run, tmp_path / place / "same", format_name))
        assert [around(bbox) for bbox in loaded[0]["objects"]["bbox"]] == [list(box)]


def test_a_folder_that_is_called_like_the_file_of_the_labels_is_beside_it(tmp_path: Path, load: Load):
    run = run_of(tmp_path, [pictured(tmp_path, "metadata.parquet/x.png", {"objects": []})], PROMPTS[:1])
    (only,) = load(export(run, tmp_path / "to", "imagefolder"))
    assert (only["source_name"], only["image"].size) == ("metadata.parquet/x.png", SIZE)


def test_without_pictures_it_says_where_they_are(tmp_path: Path, load: Load):
    run = write_run(tmp_path / "out", "a", [Made("../a.jpg", {"objects": []}, uri="s3://bucket/a.jpg", sha256="00ff")])
    (only,) = load(export(run, tmp_path / "to"))
    assert {name: said for name, said in only.items() if name != "objects"} == {
        "image_id": 1,
        "file_name": "a.jpg",
        "width": 640,
        "height": 480,
        "sha256": "00ff",
        "uri": "s3://bucket/a.jpg",
        "source_name": "../a.jpg",
    }


@pytest.mark.parametrize("format_name", BOTH)
def test_no_name_and_no_label_is_too_hard(tmp_path: Path, load: Load, format_name: str):
    loaded = load(export(hard_run(tmp_path), tmp_path / "to", format_name, pictures="copy"))
    nothing, *others = loaded
    assert nothing["objects"]["bbox"] == []
    assert (nothing["caption"], nothing["scene"], nothing["weather"]) == ("", [], "?")
    to_name = loaded.features["objects"]["category"].feature.int2str
    assert [example["source_name"] for example in others] == sorted(HARD_NAMES)
    for example in others:
        label = HARD_LABELS[HARD_NAMES.index(example["source_name"])]
        assert [to_name(number) for number in example["objects"]["category"]] == [label, label]
        assert (example["caption"], example["scene"]) == (f"caption of {label}", [label, "indoor"])
        assert example["weather"] == label
        assert colour_in(example["image"], BOX) == "red"
        assert example["image"].getpixel((50, 20)) == (255, 255, 255)


@pytest.mark.parametrize("format_name", BOTH)
def test_a_single_picture_with_nothing_in_it_is_a_data_set(tmp_path: Path, load: Load, format_name: str):
    prompts = [{"name": "objects", "kind": "detect"}]
    run = run_of(tmp_path, [pictured(tmp_path, "a.png", {"objects": []})], prompts)
    (only,) = load(export(run, tmp_path / "to", format_name, pictures="copy"))
    assert (only["image"].size, only["objects"]["bbox"]) == ((60, 40), [])


def test_an_imagefolder_may_hold_links(tmp_path: Path, load: Load):
    folder = export(hard_run(tmp_path), tmp_path / "to", "imagefolder", pictures="link")
    links = [path for path in (folder / "data").rglob("*.png") if path.is_symlink()]
    assert (len(links), {example["image"].size for example in load(folder)}) == (11, {SIZE})


def test_what_was_not_answered_is_null_and_no_empty_answer(tmp_path: Path, load: Load):
    prompts = [{"name": "caption", "kind": "caption"}, {"name": "scene", "kind": "classify"}]
    images = [Made("a.jpg", {"caption": words("A cup."), "scene": None}), Made("b.jpg", {"caption": None, "scene": []})]
    run = write_run(tmp_path / "out", "a", images, prompts)
    first, second = load(export(run, tmp_path / "to", statuses=frozenset({"partial"})))
    assert (first["caption"], first["scene"]) == ("A cup.", None)
    assert (second["caption"], second["scene"]) == (None, [])
    assert "objects" not in first


@pytest.mark.parametrize("format_name", BOTH)
def test_a_prompt_that_is_called_like_a_column_gets_one_of_its_own(tmp_path: Path, load: Load, format_name: str):
    names = ["image", "image_", "my_file_name"]
    image = pictured(tmp_path, "a.png", {name: words(f"to {name}") for name in names})
    run = run_of(tmp_path, [image], [{"name": name, "kind": "caption"} for name in names])
    (only,) = load(export(run, tmp_path / "to", format_name, pictures="copy"))
    assert only["image"].size == (60, 40)
    by_column = {"image_": "to image", "image__": "to image_", "my_file_name_": "to my_file_name"}
    assert {column: only[column] for column in by_column} == by_column


def test_shards_are_ended_by_their_size(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HuggingFaceExporter, "shard_bytes", 3000)
    monkeypatch.setattr("pixscribe.exports.huggingface.GROUP_ROWS", 2)
    folder = export(hard_run(tmp_path), tmp_path / "to", pictures="copy")
    shards = sorted(path.name for path in (folder / "data").iterdir())
    assert len(shards) > 2
    assert shards == [f"train-{number:05d}-of-{len(shards):05d}.parquet" for number in range(len(shards))]
    assert [pq.read_metadata(folder / "data" / name).num_rows for name in shards[:2]] == [2, 2]
    assert load(folder)["image_id"][:] == list(range(1, 12))


def test_the_card_says_which_files_there_are_and_what_they_are_for(tmp_path: Path):
    folder = export(hard_run(tmp_path), tmp_path / "to")
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n")
    card = yaml.safe_load(front)
    assert re.fullmatch("content [0-9a-f]{64}", card["configs"][0].pop("description"))
    assert card == {
        "pretty_name": "made",
        "task_categories": [
            "image-classification",
            "image-segmentation",
            "image-to-text",
            "object-detection",
            "visual-question-answering",
        ],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]},
        ],
    }
    kinds: dict[str, Kind] = {"objects": "detect", "caption": "caption"}
    assert all(f"- `{name}`: {kind}\n" in text for name, kind in kinds.items())


async def test_a_run_labels_what_was_exported(sample_run: str, tmp_path: Path, make: MakeConfig):
    run = open_results(sample_run)
    folder = export(run, tmp_path / "to", prompts=["objects"], pictures="copy")
    config = make(source={"uri": str(folder / "data/train-*.parquet")}, output={"uri": str(tmp_path / "again")})
    summary = await annotate(config)
    again = open_results(f"{tmp_path / 'again'}@{summary.run}")
    assert (summary.totals.images_ok, summary.totals.objects) == (26, 178)
    sizes = {(image["width"], image["height"]) for image, _ in objects_of(run, "objects")}
    assert {(image["width"], image["height"]) for image, _ in objects_of(again, "objects")} == sizes
