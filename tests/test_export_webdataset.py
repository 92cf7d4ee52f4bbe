"""WebDataset as `webdataset` reads it."""

import gc
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset

from pixscribe.exports import ExportOptions, ExportSummary, export_runs
from pixscribe.exports.webdataset import WebDatasetExporter
from pixscribe.results import RunResults, open_results
from tests.conftest import MakeConfig, annotate
from tests.made_runs import thing
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
    pictured,
    run_of,
    words,
    xyxy,
)


def export(run: RunResults, to: Path, **options: Any) -> ExportSummary:
    return export_runs([run], "webdataset", to, ExportOptions(**options), no_matter)


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.tar"))


def load(folder: Path) -> list[dict[str, Any]]:
    paths = [str(folder / name) for name in shards(folder)]
    with warnings.catch_warnings():
        # the library leaves the files that it opens to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
        gc.collect()
    return samples


def picture_of(sample: dict[str, Any]) -> Any:
    (picture,) = (sample[suffix] for suffix in ("jpg", "png", "webp") if suffix in sample)
    return picture


def test_webdataset_gives_back_every_box_on_its_upright_picture(sample_run: str, tmp_path: Path):
    run = open_results(sample_run)
    export(run, tmp_path / "to", prompts=["objects"])
    count = 0
    samples = load(tmp_path / "to")
    for sample, (image, objects) in zip(samples, objects_of(run, "objects"), strict=True):
        said, size = sample["json"], (image["width"], image["height"])
        assert (said["source_file_name"], said["uri"]) == (image["file_name"], image["uri"])
        assert (picture_of(sample).size, (said["width"], said["height"])) == (size, size)
        assert [each["label"] for each in said["objects"]] == [row["label"] for row in objects]
        for each, row in zip(said["objects"], objects, strict=True):
            assert around(each["bbox"]) == pytest.approx(xyxy(row), abs=0.5)
            assert each["label"].startswith(colour_in(picture_of(sample), around(each["bbox"])))
            count += 1
    assert (len(samples), count) == (26, 89)


def test_a_caption_is_that_of_the_table_whatever_it_and_its_image_are_called(tmp_path: Path):
    export(hard_run(tmp_path), tmp_path / "to")
    nothing, *others = load(tmp_path / "to")
    assert (nothing["txt"], nothing["json"]["objects"]) == ("", [])
    assert [sample["json"]["source_file_name"] for sample in others] == sorted(HARD_NAMES)
    for sample in others:
        label = HARD_LABELS[HARD_NAMES.index(sample["json"]["source_file_name"])]
        assert sample["txt"] == f"caption of {label}"
        assert sample["json"]["texts"] == {"caption": f"caption of {label}", "weather": label}
        assert sample["json"]["classes"] == {"scene": [label, "indoor"]}
        assert [each["prompt"] for each in sample["json"]["objects"]] == ["objects", "outlines"]
        assert [each["segmentation"] for each in sample["json"]["objects"]] == [[], [list(OUTLINE)]]
        assert picture_of(sample).size == SIZE


@pytest.mark.parametrize(
    ("prompts", "text"),
    [
        pytest.param([("why", "ask"), ("long", "caption"), ("short", "caption")], "to long", id="the-first-caption"),
        pytest.param([("why", "ask"), ("how", "ask")], "to why", id="or-else-the-first-answer"),
        pytest.param([("classes", "classify")], "", id="or-else-none"),
    ],
)
def test_the_text_is_the_answer_to_one_prompt(tmp_path: Path, prompts: Sequence[tuple[str, str]], text: str):
    asked = [{"name": name, "kind": kind, "text": "Tell me."} for name, kind in prompts]
    image = pictured(tmp_path, "a.png", {name: words(f"to {name}") for name, _ in prompts})
    export(run_of(tmp_path, [image], asked), tmp_path / "to")
    assert [sample["txt"] for sample in load(tmp_path / "to")] == [text]


def test_an_image_whose_caption_failed_has_an_empty_text_and_says_so(tmp_path: Path):
    prompts = [{"name": "objects", "kind": "detect"}, {"name": "caption", "kind": "caption"}]
    image = pictured(tmp_path, "a.png", {"objects": [thing("cup", BOX)], "caption": None})
    export(run_of(tmp_path, [image], prompts), tmp_path / "to", statuses=frozenset({"partial"}))
    (sample,) = load(tmp_path / "to")
    assert (sample["txt"], sample["json"]["texts"]) == ("", {"caption": None})


def test_keys_are_numbers_and_every_member_is_of_nobody_and_of_no_time(tmp_path: Path):
    export(hard_run(tmp_path), tmp_path / "to")
    with tarfile.open(tmp_path / "to/shard-000000.tar") as tar:
        members = tar.getmembers()
    expected = [f"{number:09d}.{suffix}" for number in range(11) for suffix in ("png", "txt", "json")]
    assert [member.name for member in members] == expected
    assert {(each.mtime, each.uid, each.gid, each.uname, each.mode) for each in members} == {(0, 0, 0, "", 0o644)}


def test_an_export_that_is_made_again_has_the_same_bytes(tmp_path: Path):
    run = hard_run(tmp_path)
    export(run, tmp_path / "once", pictures="copy")
    export(run, tmp_path / "again", pictures="link")
    once, again = ((tmp_path / name / "shard-000000.tar").read_bytes() for name in ("once", "again"))
    assert once == again


def test_shards_are_ended_by_their_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(WebDatasetExporter, "shard_images", 4)
    export(hard_run(tmp_path), tmp_path / "to")
    assert shards(tmp_path / "to") == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert [sample["__key__"] for sample in load(tmp_path / "to")] == [f"{number:09d}" for number in range(11)]


def test_shards_are_ended_by_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(WebDatasetExporter, "shard_bytes", 6000)
    export(hard_run(tmp_path), tmp_path / "to")
    # a sample is three headers and three files of one or two blocks each, 3 to 5 kB, and with long labels more
    assert 4 <= len(shards(tmp_path / "to")) <= 7
    assert len(load(tmp_path / "to")) == 11


def test_pictures_are_in_the_shards_and_nowhere_else_also_if_nobody_asked_for_them(tmp_path: Path):
    summary = export(hard_run(tmp_path), tmp_path / "to")
    assert summary.pictures == "copy"
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["pixscribe-export.json", "shard-000000.tar"]


async def test_a_run_labels_what_was_exported(sample_run: str, tmp_path: Path, make: MakeConfig):
    export(open_results(sample_run), tmp_path / "to", prompts=["objects"])
    source = {"uri": str(tmp_path / "to/shard-{000000..000000}.tar")}
    summary = await annotate(make(source=source, output={"uri": str(tmp_path / "again")}))
    assert (summary.totals.images, summary.totals.images_ok, summary.totals.objects) == (26, 26, 178)
