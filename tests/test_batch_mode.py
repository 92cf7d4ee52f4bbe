"""Runs by way of the Batch API: the tables of interactive mode at half the price, whatever becomes of the jobs."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pixscribe.batch_store import BatchStore
from pixscribe.config import RunConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import BudgetExhausted, ConfigError, OutputError
from pixscribe.storage import open_storage
from tests.conftest import ROOT, MakeConfig, annotate, write_yaml
from tests.invariants import check_output

QUICK = {"gather_s": 0.2, "poll_s": 0.02}
OBJECTS = [{"name": "objects", "kind": "detect"}]
QUESTION_TOKENS = 1261
"""What a question of kind detect is taken to have at most."""
QUESTION_USD = (1131 * 1.50 + 16 * 9.00) / 1e6 / 2
"""What one of a drawn picture does cost: the tokens that the emulator counts, at the price of a job."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 images of as many contents."""
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.new("RGB", (64, 48), "white")
    image.paste((200, 30, 30), (10, 10, 40, 30))
    for number in range(1000):
        image.putpixel((0, 0), (number % 256, number // 256, 0))
        image.save(folder / f"{number:04d}.png")
    return folder


@pytest.fixture
def batch(make: MakeConfig, pictures: Path) -> Callable[..., RunConfig]:
    """Make a config of one prompt, of the first pictures, and of jobs that do not let a test wait."""

    def make_one(emulator: Emulator, count: int = 12, **sections: Any) -> RunConfig:
        model = {"mode": "batch", "base_url": emulator.url, **sections.pop("model", {})}
        jobs = {**QUICK, **sections.pop("batch", {})}
        source = {"uri": str(pictures), "limit": count}
        return make(**{"source": source, "prompts": OBJECTS, **sections}, model=model, batch=jobs)

    return make_one


def read(config: RunConfig, table: str, run_id: str = "r") -> pa.Table:
    return pq.read_table(Path(config.output.uri) / table / f"run={run_id}", partitioning=None)


def records(config: RunConfig) -> list[dict[str, Any]]:
    """The jobs of the run, as they stand at its output."""
    paths = sorted(Path(config.output.uri).glob("runs/r/batches/*.json"))
    return [json.loads(path.read_text()) for path in paths]


def answers(emulator: Emulator) -> Counter[str]:
    """How often each image was answered about, in jobs."""
    return Counter(question.images[0] for question in emulator.books.answered_in_batches())


def start(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.run_without_prefect", str(path), "r"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """The exit code, and what was said."""
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def journaled_keys(path: Path) -> list[str]:
    keys: list[str] = pa.ipc.open_file(path).read_all()["request_key"].to_pylist()
    return keys


def end_by_kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    assert end(process)[0] == -signal.SIGKILL


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def is_created(config: RunConfig) -> bool:
    return [record["state"] for record in records(config)] == ["created"]


async def test_samples_have_the_same_tables_in_both_modes_at_half_the_price(
    make: MakeConfig, emulator: Emulator, tmp_path: Path
):
    batch = make(model={"mode": "batch"}, batch=QUICK)
    interactive = make(output={"uri": str(tmp_path / "interactive")})
    ours, theirs = await annotate(batch, run_id="r"), await annotate(interactive, run_id="r")
    for table in ("images", "annotations"):
        assert read(batch, table).equals(read(interactive, table))
    keys = [read(config, "responses").column("request_key").to_pylist() for config in (batch, interactive)]
    assert keys[0] == keys[1]
    assert ours.totals.cost_usd == pytest.approx(theirs.totals.cost_usd / 2)
    assert ours.totals.requests == theirs.totals.requests
    assert emulator.books.batch_ends == {"SUCCEEDED": 1}
    check_output(batch, "r")


async def test_a_thousand_images_outlive_lost_jobs_and_bad_lines(
    make: MakeConfig, batch: Callable[..., RunConfig], pictures: Path, tmp_path: Path
):
    faults = {"batch_line_503": 0.03, "batch_line_429": 0.01, "batch_line_500": 0.01}
    with Emulator(EmulatorOptions(faults=faults)) as emulator:
        # a third of the queue is a job of 200 questions
        config = batch(emulator, 1000, batch={"queue_tokens": 3 * 200 * QUESTION_TOKENS})
        emulator.script("batch_ok", "batch_failed", "batch_expired")
        ours = await annotate(config, run_id="r")
        books = emulator.books
    interactive = make(source={"uri": str(pictures)}, prompts=OBJECTS, output={"uri": str(tmp_path / "interactive")})
    theirs = await annotate(interactive, run_id="r")
    for table in ("images", "annotations"):
        assert read(config, table).equals(read(interactive, table))
    assert (ours.totals.images, ours.totals.images_ok) == (1000, 1000)
    assert books.batch_ends["FAILED"] == books.batch_ends["EXPIRED"] == 1
    lost = [record["lost_answers"] for record in records(config)]
    # how many depends on how full the expired job was
    assert sum(lost) == books.lost_answers > 0
    assert sum(answers(emulator).values()) == 1000 + sum(lost)
    assert ours.totals.cost_usd == pytest.approx(theirs.totals.cost_usd / 2)
    check_output(config, "r")


async def test_an_output_of_batch_mode_answers_interactive_mode(batch: Callable[..., RunConfig], emulator: Emulator):
    await annotate(batch(emulator), run_id="r")
    emulator.books.reset()
    summary = await annotate(batch(emulator, model={"mode": "interactive"}), run_id="s")
    assert (summary.totals.reused, emulator.books.questions) == (12, [])


@pytest.mark.parametrize(
    ("fault", "paid"),
    [
        *((name, 12) for name in ("batch_429", "batch_503", "batch_lost_create", "batch_failed", "batch_look_503")),
        *((name, 12) for name in ("batch_file_503", "batch_file_cut", "batch_file_403")),
        *((name, 18) for name in ("batch_expired", "batch_cancelled", "batch_gone")),
    ],
)
async def test_whatever_becomes_of_a_job_every_image_has_its_answer(
    batch: Callable[..., RunConfig], emulator: Emulator, fault: str, paid: int
):
    emulator.script(fault)
    summary = await annotate(batch(emulator), run_id="r")
    assert summary.totals.images_ok == 12
    assert len(answers(emulator)) == 12
    # a job that did not succeed had answered half of its requests, which nobody was given
    assert sum(answers(emulator).values()) == paid
    assert {record["state"] for record in records(batch(emulator))} == {"over"}


@pytest.mark.parametrize(
    ("fault", "attempts", "paid"),
    [
        *((name, 2, 12) for name in ("batch_line_500", "batch_line_503", "batch_line_429")),
        *((name, 2, 13) for name in ("batch_line_lost", "batch_line_bare", "incomplete", "empty_text")),
        *((name, 1, 12) for name in ("batch_line_twice", "batch_line_json_schema")),
    ],
)
async def test_a_request_that_failed_is_asked_again_by_the_next_job(
    batch: Callable[..., RunConfig], emulator: Emulator, fault: str, attempts: int, paid: int
):
    emulator.script(fault)
    summary = await annotate(batch(emulator), run_id="r")
    rows = read(batch(emulator), "responses").to_pylist()
    assert summary.totals.images_ok == 12
    assert sorted(row["attempts"] for row in rows) == [1] * 11 + [attempts]
    assert sum(answers(emulator).values()) == paid


@pytest.mark.parametrize(
    ("fault", "code"), [("batch_line_400", "request_refused"), ("blocked", "blocked"), ("failed_200", "blocked")]
)
async def test_what_no_repeating_helps_is_a_row(
    batch: Callable[..., RunConfig], emulator: Emulator, fault: str, code: str
):
    emulator.script(fault)
    summary = await annotate(batch(emulator), run_id="r")
    assert summary.totals.errors == {code: 1}
    assert sum(answers(emulator).values()) <= 12


async def test_a_request_that_always_fails_is_a_row_after_the_last_attempt(
    batch: Callable[..., RunConfig], emulator: Emulator
):
    emulator.always("batch_line_503")
    summary = await annotate(batch(emulator, 2, retry={"max_attempts": 3}), run_id="r")
    assert summary.totals.errors == {"server_error": 2}
    assert summary.totals.requests == 2 * 3


async def test_jobs_that_always_fail_end_in_rows(batch: Callable[..., RunConfig], emulator: Emulator):
    emulator.always("batch_failed")
    summary = await annotate(batch(emulator, 2, retry={"max_attempts": 3}), run_id="r")
    assert summary.totals.errors == {"server_error": 2}
    assert emulator.books.batch_ends == {"FAILED": 3}


async def test_an_answer_that_was_of_no_use_is_counted(batch: Callable[..., RunConfig], emulator: Emulator):
    emulator.script("incomplete")
    summary = await annotate(batch(emulator, 1), run_id="r")
    assert summary.totals.requests == 2
    booked = emulator.books.answered_in_batches()
    assert summary.totals.input_tokens == sum(question.input_tokens for question in booked)
    assert len({question.digest for question in booked}) == 2  # with another seed


async def test_a_job_too_large_for_the_tier_is_made_in_halves(batch: Callable[..., RunConfig]):
    # 20,000 tokens are 16 questions: none but a job of 12 or fewer finds room, and of the default size none does
    with Emulator(EmulatorOptions(batch_tokens=20_000)) as emulator:
        summary = await annotate(batch(emulator, 40), run_id="r")
        assert summary.totals.images_ok == 40
        assert set(answers(emulator).values()) == {1}


class Clock:
    """Time that moves when told to."""

    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


async def test_after_two_days_job_and_files_are_gone_and_both_are_made_again(batch: Callable[..., RunConfig]):
    clock = Clock()
    with Emulator(clock=clock) as emulator:
        config = batch(emulator)
        emulator.script("batch_stuck")
        run = asyncio.create_task(annotate(config, run_id="r"))
        await asyncio.to_thread(wait_until, lambda: is_created(config))
        clock.now_s += 49 * 3600
        summary = await run
        assert summary.totals.images_ok == 12
        assert set(answers(emulator).values()) == {1}
        # the stuck one, one whose images were gone, and one that had them again
        assert emulator.books.batch_ends == {"EXPIRED": 1, "SUCCEEDED": 2}


async def test_a_killed_run_takes_its_job_up_and_pays_for_nothing_twice(
    batch: Callable[..., RunConfig], tmp_path: Path
):
    with Emulator(EmulatorOptions(batch_latency_s=2.5)) as emulator:
        config = batch(emulator)
        path = write_yaml(tmp_path / "config.yaml", config)
        killed = start(path)
        await asyncio.to_thread(wait_until, lambda: is_created(config))
        end_by_kill(killed)
        assert emulator.books.batch_ends == {}  # the job was pending
        assert end(start(path))[0] == 0
        assert emulator.books.batch_ends == {"SUCCEEDED": 1}
        assert sorted(answers(emulator).values()) == [1] * 12
        assert len(read(config, "images")) == len(read(config, "responses")) == 12
        assert sum(read(config, "responses")["cost_usd"].to_pylist()) == pytest.approx(12 * QUESTION_USD)
        check_output(config, "r")


async def test_a_job_whose_creation_nobody_heard_of_is_found_by_its_name(
    batch: Callable[..., RunConfig], tmp_path: Path
):
    with Emulator(EmulatorOptions(batch_latency_s=1)) as emulator:
        config = batch(emulator)
        path = write_yaml(tmp_path / "config.yaml", config)
        killed = start(path)
        await asyncio.to_thread(wait_until, lambda: is_created(config))
        end_by_kill(killed)
        (record,) = (tmp_path / "out" / "runs/r/batches").iterdir()
        # as if it had been killed a moment before
        record.write_text(json.dumps({**records(config)[0], "name": None, "state": "planned"}))
        assert end(start(path))[0] == 0
        assert emulator.books.batch_ends == {"SUCCEEDED": 1}
        assert sorted(answers(emulator).values()) == [1] * 12


async def test_a_job_that_was_taken_in_before_the_kill_is_not_counted_again(
    batch: Callable[..., RunConfig], emulator: Emulator, tmp_path: Path
):
    # jobs of six questions
    config = batch(emulator, 12, batch={"queue_tokens": 3 * 6 * QUESTION_TOKENS})
    path = write_yaml(tmp_path / "config.yaml", config)
    emulator.script("batch_ok", "batch_stuck")
    killed = start(path)
    # they are created at the same time, so either may be the first
    await asyncio.to_thread(
        wait_until, lambda: sorted(each["state"] for each in records(config)) == ["created", "over"]
    )
    end_by_kill(killed)
    stuck, done = sorted(records(config), key=lambda record: str(record["state"]))
    httpx.post(f"{emulator.url}/v1beta/{stuck['name']}:cancel", headers={"x-goog-api-key": "test-key-4f1c"})
    # as if it had been killed after the answers were in the journal, and before the job was noted to be over
    keys = {key for name in (tmp_path / "out/runs/r/journal").iterdir() for key in journaled_keys(name)}
    requests = [{"request_key": key, "prompt": "objects", "shard": "00000"} for key in keys]
    assert len(keys) == 6
    left = {**done, "state": "created", "requests": requests}
    (tmp_path / "out/runs/r/batches" / f"{done['number']:05d}.json").write_text(json.dumps(left))
    assert end(start(path))[0] == 0
    assert sorted(answers(emulator).values()) == [1] * 12
    assert sum(read(config, "responses")["cost_usd"].to_pylist()) == pytest.approx(12 * QUESTION_USD)
    check_output(config, "r")


@pytest.mark.parametrize("name", [None, "batches/of-another-project"])
async def test_the_questions_of_a_job_that_is_not_there_are_asked_again(
    batch: Callable[..., RunConfig], emulator: Emulator, tmp_path: Path, name: str | None
):
    config = batch(emulator)
    path = write_yaml(tmp_path / "config.yaml", config)
    emulator.script("batch_stuck")
    killed = start(path)
    await asyncio.to_thread(wait_until, lambda: is_created(config))
    end_by_kill(killed)
    left = {**records(config)[0], "name": name, "display_name": "of another project"}
    (tmp_path / "out/runs/r/batches/00001.json").write_text(json.dumps(left))
    code, said = end(start(path))
    assert code == 0
    assert ("ended as GONE (it was deleted, or the key is of another project)" in said) == (name is not None)
    assert sorted(answers(emulator).values()) == [1] * 12


async def test_an_interrupted_run_says_that_its_jobs_go_on(batch: Callable[..., RunConfig], tmp_path: Path):
    with Emulator(EmulatorOptions(batch_latency_s=60)) as emulator:
        config = batch(emulator)
        run = start(write_yaml(tmp_path / "config.yaml", config))
        await asyncio.to_thread(wait_until, lambda: is_created(config))
        run.send_signal(signal.SIGINT)
        _, said = end(run)
    assert "12 questions in batch jobs go on without us (batches/" in said


async def test_the_budget_is_never_passed_by_a_job(batch: Callable[..., RunConfig], emulator: Emulator):
    # a question may cost (1261 x 1.5 + 1000 x 9) / 2e6 = 0.0054 USD, and does cost 0.0009
    config = batch(emulator, 40, limits={"budget_usd": 0.03}, model={"max_output_tokens": 1000})
    with pytest.raises(BudgetExhausted):
        await annotate(config, run_id="r")
    answered = sum(answers(emulator).values())
    assert 0.03 - 0.0054 - 0.001 < answered * QUESTION_USD <= 0.03
    assert max(record["reserved_usd"] for record in records(config)) <= 0.03


async def test_what_a_lost_job_may_have_cost_counts_against_the_budget(
    batch: Callable[..., RunConfig], emulator: Emulator
):
    emulator.script("batch_expired")
    # room for one job of 12 questions at 0.0054 USD; half of it is lost, and 12 more do not fit into the rest
    config = batch(emulator, 12, limits={"budget_usd": 0.07}, model={"max_output_tokens": 1000})
    await annotate(config, run_id="r")
    first, *others = records(config)
    assert (first["ended_as"], first["lost_answers"]) == ("EXPIRED", 6)
    assert first["lost_usd"] == pytest.approx(first["reserved_usd"] / 2)
    assert max(record["reserved_usd"] for record in others) <= 0.07 - first["lost_usd"]


def test_batch_mode_is_refused_where_it_cannot_be(make: MakeConfig):
    for section, key, value in (
        ("execution", "engine", "dask"),
        ("model", "transport", "inline"),
        ("model", "service_tier", "flex"),
    ):
        sections: dict[str, Any] = {"model": {"mode": "batch"}}
        sections[section] = {**sections.get(section, {}), key: value}
        with pytest.raises(ConfigError, match=rf"{section}\.{key}: '{value}' does not go with model.mode: batch"):
            make(**sections)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"version": 1}', '{"version": 1, "requests": 7}', "\udcff", '{"version": 2, "requests": []}'],
)
def test_a_damaged_record_is_one_sentence(tmp_path: Path, text: str):
    folder = tmp_path / "runs/r/batches"
    folder.mkdir(parents=True)
    (folder / "00001.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(OutputError, match=r"00001\.json: is "):
        BatchStore(open_storage(str(tmp_path)), "r").read()
