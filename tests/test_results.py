from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import main
from pixscribe.errors import ConfigError, OutputError, ReadError
from pixscribe.pictures import read_source
from pixscribe.results import RunResults, open_results
from pixscribe.run import TABLES, RunSummary
from tests.conftest import SAMPLES, MakeConfig, annotate


@pytest.fixture
async def summary(make: MakeConfig) -> RunSummary:
    return await annotate(make(execution={"shard_size": 7}))


@pytest.fixture
def results(summary: RunSummary) -> RunResults:
    return open_results(f"{summary.output}@{summary.run}")


def test_every_image_comes_with_its_own_rows_in_the_order_of_the_tables(results: RunResults):
    images = list(results)
    assert [each.image["file_name"] for each in images] == pq.read_table(
        f"{results.storage.uri}/images/run={results.run_id}"
    )["file_name"].to_pylist()
    for each in images:
        assert [row["prompt"] for row in each.responses] == ["objects", "outlines"]
        assert {row["file_name"] for row in (*each.responses, *each.annotations)} <= {each.image["file_name"]}
        assert len(each.annotations) == sum(row["annotation_count"] for row in each.responses)
    assert sum(len(each.annotations) for each in images) == results.summary["totals"]["objects"]


def test_an_image_without_objects_is_there_with_its_answers(results: RunResults):
    nothing = next(each for each in results if each.image["file_name"] == "nothing.png")
    assert (nothing.status, nothing.annotations, len(nothing.responses)) == ("ok", [], 2)


async def test_the_status_is_that_of_the_prompts_that_are_looked_at(make: MakeConfig, emulator):
    emulator.script("blocked")
    config = make(source={"uri": str(SAMPLES), "include": ["nothing.png"]}, limits={"concurrency": 1})
    summary = await annotate(config)
    (image,) = open_results(f"{summary.output}@{summary.run}")
    by_prompt = {row["prompt"]: image.only(frozenset({row["prompt"]})).status for row in image.responses}
    assert image.status == "partial"
    assert sorted(by_prompt.values()) == ["failed", "ok"]


def test_a_path_names_a_run_as_well(results: RunResults):
    by_path = open_results(f"{results.storage.uri}/runs/{results.run_id}/")
    assert [each.image for each in by_path] == [each.image for each in results]
    assert by_path.kinds == {"objects": "detect", "outlines": "segment"}


def test_a_run_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no run 'monday'"):
        open_results(f"{tmp_path}@monday")


def test_a_damaged_part_is_named(results: RunResults):
    part = Path(results.storage.uri, "annotations", f"run={results.run_id}", results.parts[1])
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(OutputError, match=r"annotations/run=.*/shard-00001.parquet: cannot be read"):
        list(results)


def lose_part(results: RunResults) -> None:
    for table in TABLES:
        Path(results.storage.uri, table, f"run={results.run_id}", "shard-00001.parquet").unlink()


def test_a_complete_run_that_has_lost_a_shard_is_read_by_nobody(results: RunResults):
    lose_part(results)
    sentence = rf"{results.run_id}: its tables hold 19 images, and 26 by run.json"
    with pytest.raises(OutputError, match=sentence):
        list(results)
    with pytest.raises(OutputError, match=sentence):
        list(results.read_parts({"images": ["uri"]}))
    left = results.read_parts({"images": ["uri"]}, results.parts_left)
    assert [images.num_rows for (images,) in left] == [7, 7, 5]


def test_a_run_that_goes_on_may_have_any_number_of_shards(results: RunResults):
    lose_part(results)
    results.storage.delete(f"runs/{results.run_id}/run.json")
    assert len(list(results)) == 19


@pytest.mark.parametrize(
    "command", [["export", "--format", "coco", "--to", "to"], ["report"], ["rerun", "--replay"], ["diff", "RUN"]]
)
def test_a_command_that_is_given_a_run_without_one_of_its_shards_is_one_sentence(
    results: RunResults,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Any,
):
    lose_part(results)
    monkeypatch.chdir(tmp_path)
    run = f"{results.storage.uri}@{results.run_id}"
    with pytest.raises(SystemExit, match="3"):
        main([command[0], run, *(run if word == "RUN" else word for word in command[1:])])
    said = capsys.readouterr()
    assert "its tables hold 19 images, and 26 by run.json" in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("table", ["responses", "annotations"])
def test_rows_of_other_images_are_not_taken_for_these(results: RunResults, table: str):
    folder = Path(results.storage.uri, table, f"run={results.run_id}")
    for name in results.parts[:2]:
        (folder / name).rename(folder / f"{name}.moved")
    (folder / f"{results.parts[0]}.moved").rename(folder / results.parts[1])
    (folder / f"{results.parts[1]}.moved").rename(folder / results.parts[0])
    with pytest.raises(OutputError, match="are not about the same images"):
        list(results)


def test_some_columns_of_all_parts_can_be_had_alone(results: RunResults):
    parts = list(results.read_parts({"images": ["file_name"], "annotations": ["label", "xmin"]}))
    assert [[table.column_names for table in part] for part in parts] == [[["file_name"], ["label", "xmin"]]] * 4
    assert sum(labels.num_rows for _, labels in parts) == results.summary["totals"]["objects"]
    assert all(isinstance(table, pa.Table) for part in parts for table in part)


def test_the_rows_of_other_prompts_need_not_be_read(results: RunResults):
    only = frozenset({"outlines"})
    read = [image for part in results.read_images(results.parts, only) for image in part]
    assert read == [image.only(only) for image in results]


async def test_a_picture_that_was_replaced_since_is_not_taken_for_the_one_that_was_labelled(
    make: MakeConfig, tmp_path: Path
):
    source = tmp_path / "in"
    source.mkdir()
    picture = source / "a.png"
    picture.write_bytes((SAMPLES / "nothing.png").read_bytes())
    summary = await annotate(make(source={"uri": str(source)}))
    (image,) = open_results(f"{summary.output}@{summary.run}")
    assert read_source(image.image) == picture.read_bytes()
    picture.write_bytes((SAMPLES / "formats/scene.png").read_bytes())
    with pytest.raises(ReadError, match="another image"):
        read_source(image.image)
