import hashlib
import shutil
from pathlib import Path

import pytest

from pixscribe.emulator import Emulator
from pixscribe.emulator.fault_answers import SPOILERS
from pixscribe.errors import ConfigError, OutputError
from pixscribe.replay import replay
from pixscribe.results import open_results
from pixscribe.run import RunSummary, list_runs
from pixscribe.types import ParsedAnswer
from tests.conftest import SAMPLES, MakeConfig, annotate


def digests(summary: RunSummary, table: str) -> dict[str, str]:
    folder = Path(summary.output, table, f"run={summary.run}")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.parquet")}


async def test_a_replay_gives_the_same_tables_and_needs_neither_requests_nor_key_nor_images(
    make: MakeConfig, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "in"
    shutil.copytree(SAMPLES, source)
    (source / "broken.jpg").write_bytes(b"this is text and no picture")
    emulator.always("blocked", *SPOILERS)
    config = make(source={"uri": str(source)}, execution={"shard_size": 7}, retry={"max_attempts": 1})
    summary = await annotate(config)
    assert {"blocked", "truncated", "invalid_json", "unsupported_type"} <= set(summary.totals.errors)
    asked = len(emulator.books.questions)
    shutil.rmtree(source)
    monkeypatch.delenv("GEMINI_API_KEY")
    again = replay(open_results(f"{summary.output}@{summary.run}"))
    assert len(emulator.books.questions) == asked
    for table in ("images", "annotations"):
        assert digests(again, table) == digests(summary, table)
    assert (again.totals.cost_usd, again.totals.requests) == (0, 0)
    assert again.totals.errors == summary.totals.errors


@pytest.mark.parametrize("second", ["blocked", "500", "empty_text"])
async def test_what_is_left_of_a_cut_answer_is_replayed_whatever_became_of_the_next_try(
    make: MakeConfig, emulator: Emulator, second: str
):
    source = {"uri": str(SAMPLES), "include": ["large/tall.jpg"]}
    emulator.script("incomplete", second)
    config = make(source=source, prompts=[{"name": "objects", "kind": "detect"}], retry={"max_attempts": 2})
    summary = await annotate(config)
    assert (summary.totals.images_failed, summary.totals.requests) == (1, 2)
    again = replay(open_results(f"{summary.output}@{summary.run}"))
    for table in ("images", "annotations"):
        assert digests(again, table) == digests(summary, table)
    assert again.totals.objects == summary.totals.objects


async def test_a_replay_that_broke_off_is_no_run_to_go_on_with_but_can_be_replayed_again(make: MakeConfig):
    summary = await annotate(make())
    results = open_results(f"{summary.output}@{summary.run}")
    part = Path(summary.output, "annotations", f"run={summary.run}", "shard-00000.parquet")
    aside = part.with_suffix(".aside")
    part.rename(aside)
    with pytest.raises(OutputError):
        replay(results, run_id="again")
    aside.rename(part)
    next_run = await annotate(make())
    assert next_run.run != "again"
    again = replay(results, run_id="again")
    assert digests(again, "annotations") == digests(summary, "annotations")
    with pytest.raises(ConfigError, match="'again' exists already"):
        replay(results, run_id="again")


async def test_a_replay_with_another_parser_says_so_in_the_rows_it_changed(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch
):
    summary = await annotate(make())
    monkeypatch.setattr("pixscribe.replay.PARSER_VERSION", "next")
    monkeypatch.setattr("pixscribe.replay.parse_answer", lambda text, kind, labels: ParsedAnswer(objects=()))
    again = replay(open_results(f"{summary.output}@{summary.run}"), run_id="next")
    responses = list(open_results(f"{again.output}@next").read_parts({"responses": ["parser_version"]}))
    assert {version for (table,) in responses for version in table["parser_version"].to_pylist()} == {"next"}
    assert (summary.totals.objects > 0, again.totals.objects) == (True, 0)


async def test_a_replay_is_a_run_like_others_and_can_be_replayed_itself(make: MakeConfig):
    summary = await annotate(make())
    second = replay(open_results(f"{summary.output}@{summary.run}"))
    third = replay(open_results(f"{second.output}@{second.run}"), run_id="third")
    assert digests(third, "images") == digests(summary, "images")
    assert {run["run"] for run in list_runs(summary.output)} == {summary.run, second.run, "third"}


async def test_the_answers_of_a_replay_cost_no_later_run_anything(make: MakeConfig, emulator: Emulator):
    summary = await annotate(make())
    replay(open_results(f"{summary.output}@{summary.run}"))
    asked = len(emulator.books.questions)
    await annotate(make())
    assert len(emulator.books.questions) == asked


async def test_a_run_that_is_not_complete_is_not_replayed(make: MakeConfig):
    summary = await annotate(make())
    Path(summary.output, "runs", summary.run, "run.json").unlink()
    with pytest.raises(ConfigError, match="is not complete"):
        replay(open_results(f"{summary.output}@{summary.run}"))


@pytest.mark.parametrize("name", ["7", "a/b", ""])
async def test_a_name_that_no_run_may_have_is_refused_before_anything_is_written(make: MakeConfig, name: str):
    summary = await annotate(make())
    with pytest.raises(ConfigError, match="--run-id"):
        replay(open_results(f"{summary.output}@{summary.run}"), run_id=name)
    assert [run["run"] for run in list_runs(summary.output)] == [summary.run]
