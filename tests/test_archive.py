"""Running the same again: what was paid for is found by content and question, wherever it stands."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pixscribe.emulator import Emulator
from pixscribe.errors import BudgetExhausted
from pixscribe.run import list_runs
from tests.conftest import SAMPLES, MakeConfig, annotate
from tests.test_end_to_end import FILES, copy_samples, digests

CONTENTS = len(FILES) - 1
"""One of the samples is a duplicate."""


def rows(output: str, table: str, run: str) -> pd.DataFrame:
    frame: pd.DataFrame = pq.read_table(f"{output}/{table}/run={run}").to_pandas()
    return frame.drop(columns="run", errors="ignore")


async def test_a_finished_run_that_is_run_again_calls_nothing_and_gives_the_same_rows(
    make: MakeConfig, emulator: Emulator, tmp_path: Path
):
    config = make()
    first = await annotate(config, run_id="a")
    emulator.books.reset()
    second = await annotate(config, run_id="b")
    assert set(emulator.books.by_endpoint) == {"models.get"}
    assert (second.totals.requests, second.totals.uploads, second.totals.cost_usd) == (0, 0, 0)
    assert second.totals.objects == first.totals.objects
    for table in ("images", "annotations"):
        parts = [digests(tmp_path / "out" / table, f"run={run}") for run in ("a", "b")]
        assert parts[0] == parts[1]
    assert rows(config.output.uri, "responses", "b").reused.all()


async def test_what_an_earlier_run_paid_is_not_added_up_again(make: MakeConfig):
    config = make()
    first = await annotate(config)
    await annotate(config)
    responses = pq.read_table(f"{config.output.uri}/responses").to_pandas()
    assert responses.cost_usd.sum() == pytest.approx(first.totals.cost_usd)
    assert responses.attempts.sum() == first.totals.requests


async def test_one_image_more_costs_one_images_requests_and_one_fewer_costs_none(
    make: MakeConfig, emulator: Emulator, tmp_path: Path
):
    source = copy_samples(tmp_path / "in", *FILES[:6])
    config = make(source={"uri": str(source)})
    await annotate(config)
    emulator.books.reset()
    # the new one comes first in the order of names, so every other changes its place
    shutil.copy(SAMPLES / FILES[-1], source / "0-new.png")
    summary = await annotate(config)
    assert (len(emulator.books.questions), len(emulator.books.uploads)) == (2, 1)
    assert (summary.totals.requests, summary.totals.images) == (2, 7)
    emulator.books.reset()
    (source / FILES[0]).unlink()
    assert (await annotate(config)).totals.images == 6
    assert emulator.books.questions == []


async def test_a_renamed_image_costs_nothing(make: MakeConfig, emulator: Emulator, tmp_path: Path):
    source = copy_samples(tmp_path / "in", *FILES[:3])
    config = make(source={"uri": str(source)})
    await annotate(config)
    emulator.books.reset()
    (source / FILES[0]).rename(source / "renamed.jpg")
    await annotate(config)
    assert (emulator.books.questions, emulator.books.uploads) == ([], [])


async def test_a_prompt_more_is_asked_alone(make: MakeConfig, emulator: Emulator):
    prompts: list[dict[str, Any]] = [{"name": "objects", "kind": "detect"}]
    await annotate(make(prompts=prompts))
    emulator.books.reset()
    await annotate(make(prompts=[*prompts, {"name": "caption", "kind": "caption"}]))
    assert len(emulator.books.questions) == CONTENTS
    # the files of the first run are still there, and are found instead of sent once more
    assert (emulator.books.uploads, emulator.books.by_endpoint["upload.start"]) == ([], 0)


async def test_another_model_is_asked_everything(make: MakeConfig, emulator: Emulator):
    await annotate(make())
    emulator.books.reset()
    await annotate(make(model={"name": "gemini-3.5-flash-lite"}))
    assert len(emulator.books.questions) == 2 * CONTENTS


async def test_new_means_that_everything_is_asked_anew(make: MakeConfig, emulator: Emulator):
    await annotate(make())
    emulator.books.reset()
    await annotate(make(), new=True)
    assert len(emulator.books.questions) == 2 * CONTENTS


@pytest.mark.parametrize(
    ("fault", "attempts", "asked_again"),
    [
        pytest.param("503", 2, 1, id="the-service-was-down"),
        pytest.param("429", 2, 1, id="too-many-requests"),
        pytest.param("empty_text", 2, 1, id="no-use"),
        pytest.param("blocked", 1, 0, id="blocked"),
        pytest.param("invalid_image_400", 1, 0, id="refused"),
    ],
)
async def test_only_what_failed_for_a_reason_that_can_pass_is_asked_again(
    make: MakeConfig, emulator: Emulator, fault: str, attempts: int, asked_again: int
):
    config = make(
        source={"uri": str(SAMPLES), "limit": 1},
        prompts=[{"name": "objects", "kind": "detect"}],
        retry={"max_attempts": 2},
    )
    emulator.script(*[fault] * attempts)
    first = await annotate(config)
    assert first.totals.requests == attempts
    emulator.books.reset()
    second = await annotate(config)
    assert len(emulator.books.questions) == asked_again
    assert second.is_all_ok == bool(asked_again)
    if not asked_again:
        assert second.totals.errors == first.totals.errors


async def test_an_upload_that_failed_is_tried_again(make: MakeConfig, emulator: Emulator):
    config = make(source={"uri": str(SAMPLES), "limit": 2}, retry={"max_attempts": 1})
    emulator.script("upload_500")
    assert (await annotate(config)).totals.errors == {"upload_failed": 2}
    assert (await annotate(config)).is_all_ok


async def test_answers_of_a_stopped_run_serve_the_run_of_a_changed_config(make: MakeConfig, emulator: Emulator):
    with pytest.raises(BudgetExhausted):
        await annotate(make(limits={"budget_usd": 0.1, "concurrency": 4}))
    paid = len(emulator.books.answered())
    summary = await annotate(make(name="other"))
    assert len(list_runs(summary.output)) == 2
    assert len(emulator.books.answered()) == 2 * CONTENTS
    assert summary.totals.requests == 2 * CONTENTS - paid


async def test_a_duplicate_of_an_image_in_a_committed_shard_is_not_asked_after_a_resume(
    make: MakeConfig, emulator: Emulator, tmp_path: Path
):
    source = copy_samples(tmp_path / "in", *FILES[:8])
    shutil.copy(source / FILES[0], source / "zz-twin.jpg")
    small = {"shard_size": 4, "shards_in_flight": 1}
    stopped = make(source={"uri": str(source)}, execution=small, limits={"budget_usd": 0.11, "concurrency": 1})
    with pytest.raises(BudgetExhausted):
        await annotate(stopped)
    assert (tmp_path / "out" / "images").exists()  # the first shard is committed
    summary = await annotate(make(source={"uri": str(source)}, execution=small))
    assert summary.totals.images == 9
    assert len(emulator.books.questions) == 2 * len(set(FILES[:8]))


async def test_a_damaged_part_of_another_run_costs_its_answers_and_not_the_run(
    make: MakeConfig, emulator: Emulator, caplog: pytest.LogCaptureFixture
):
    config = make(source={"uri": str(SAMPLES), "limit": 2})
    first = await annotate(config)
    [part] = Path(config.output.uri).glob(f"responses/run={first.run}/*.parquet")
    part.write_bytes(b"PAR1 and then nothing")
    assert (await annotate(make(name="other", source={"uri": str(SAMPLES), "limit": 2}))).is_all_ok
    assert "cannot be read, so its answers are not used" in caplog.text


async def test_images_that_were_never_asked_about_do_not_disturb_what_is_found(
    make: MakeConfig, emulator: Emulator, tmp_path: Path
):
    source = copy_samples(tmp_path / "in", *FILES[:3])
    (source / "0-broken.jpg").write_bytes(b"no image")
    await annotate(make(source={"uri": str(source)}))
    emulator.books.reset()
    summary = await annotate(make(source={"uri": str(source)}))
    assert emulator.books.questions == []
    assert (summary.totals.images_ok, summary.totals.errors) == (3, {"decode_error": 2})


async def test_a_run_that_asks_anew_goes_on_doing_so_after_a_stop(make: MakeConfig, emulator: Emulator):
    await annotate(make())
    emulator.books.reset()
    with pytest.raises(BudgetExhausted):
        await annotate(make(limits={"budget_usd": 0.12, "concurrency": 4}), new=True)
    summary = await annotate(make())
    assert len(emulator.books.answered()) == 2 * CONTENTS == summary.totals.requests
    assert not list(Path(summary.output).glob("runs/*/anew"))
