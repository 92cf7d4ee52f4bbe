from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixscribe.asking import Answer
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import AuthenticationError, BudgetExhausted, HopelessRun, OutputError
from pixscribe.journal import Journal
from pixscribe.lock import RunLock
from pixscribe.prices import PRICES
from pixscribe.run import list_runs
from pixscribe.storage import Folder, open_storage
from pixscribe.types import Usage
from tests.conftest import SAMPLES, MakeConfig, annotate
from tests.test_end_to_end import FILES, digests

CONTENTS = len(FILES) - 1
"""One of the samples is a duplicate."""


def journal_files(output: str) -> list[Path]:
    return sorted(Path(output).glob("runs/*/journal/*.arrow"))


async def test_a_run_that_stops_for_its_budget_again_and_again_pays_for_nothing_twice(
    make: MakeConfig, emulator: Emulator
):
    # one shard, so that nothing is committed before the end: all that is known stands in the journal
    for budget_usd in (0.1, 0.12, 0.14):
        stopped = make(limits={"budget_usd": budget_usd, "concurrency": 4})
        with pytest.raises(BudgetExhausted):
            await annotate(stopped)
        assert journal_files(stopped.output.uri)
    config = make(limits={"budget_usd": 100.0})
    summary = await annotate(config)
    assert summary.is_all_ok
    assert len(emulator.books.questions) == 2 * CONTENTS == summary.totals.requests
    assert journal_files(config.output.uri) == []


async def test_what_was_journaled_gives_the_rows_of_an_undisturbed_run(make: MakeConfig, tmp_path: Path):
    await annotate(make(output={"uri": str(tmp_path / "calm")}), run_id="r")
    stopped = make(output={"uri": str(tmp_path / "stopped")}, limits={"budget_usd": 0.12, "concurrency": 4})
    with pytest.raises(BudgetExhausted):
        await annotate(stopped, run_id="r")
    await annotate(make(output={"uri": str(tmp_path / "stopped")}), run_id="r")
    for table in ("images", "annotations"):
        assert digests(tmp_path / "calm", table) == digests(tmp_path / "stopped", table)
    calm, resumed = (pq.read_table(tmp_path / name / "responses") for name in ("calm", "stopped"))
    for column in ("text", "status", "request_key", "cost_usd", "attempts"):
        assert sorted(map(str, calm[column].to_pylist())) == sorted(map(str, resumed[column].to_pylist()))
    assert sum(resumed["reused"].to_pylist()) > 2


async def test_what_is_on_the_wire_when_a_run_stops_is_waited_for_and_kept(make: MakeConfig):
    with Emulator(EmulatorOptions(latency_s=0.5)) as emulator:
        emulator.script("ok", "ok", "ok", "bad_key")
        config = make(model={"base_url": emulator.url}, source={"uri": str(SAMPLES), "limit": 6})
        with pytest.raises(Exception, match="GEMINI_API_KEY is refused"):
            await annotate(config)
        answered = sum(question.status == 200 for question in emulator.books.questions)
    kept = sum(pa.ipc.open_file(path).read_all().num_rows for path in journal_files(config.output.uri))
    assert kept == answered > 0


async def test_a_run_that_stopped_over_useless_answers_asks_again(make: MakeConfig, emulator: Emulator):
    config = make(prompts=[{"name": "objects", "kind": "detect"}])
    emulator.script(*["empty_text"] * 2 * CONTENTS)  # each question is asked twice before it is given up
    with pytest.raises(HopelessRun, match="'objects' failed with invalid_answer"):
        await annotate(config)
    [stopped] = list_runs(config.output.uri)
    summary = await annotate(config)
    assert (summary.run, summary.is_all_ok) == (stopped["run"], True)


async def test_a_damaged_journal_is_refused_and_not_ignored(make: MakeConfig):
    stopped = make(limits={"budget_usd": 0.1, "concurrency": 4})
    with pytest.raises(BudgetExhausted):
        await annotate(stopped)
    journal_files(stopped.output.uri)[0].write_bytes(b"ARROW1 and then nothing")
    with pytest.raises(OutputError, match="is damaged"):
        await annotate(make())


async def test_a_journal_of_another_version_is_refused(make: MakeConfig):
    stopped = make(limits={"budget_usd": 0.1, "concurrency": 4})
    with pytest.raises(BudgetExhausted):
        await annotate(stopped)
    path = journal_files(stopped.output.uri)[0]
    table = pa.ipc.open_file(path).read_all().replace_schema_metadata({"pixscribe.journal_version": "9"})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(OutputError, match="is a journal of version '9'"):
        await annotate(make())


async def test_a_second_process_at_the_same_run_is_refused(make: MakeConfig):
    stopped = make(limits={"budget_usd": 0.1, "concurrency": 4})
    with pytest.raises(BudgetExhausted):
        await annotate(stopped)
    [run] = list_runs(stopped.output.uri)
    lock = RunLock(open_storage(stopped.output.uri), f"runs/.{run['config_digest']}.lock")
    lock.acquire()
    with pytest.raises(OutputError, match=r"another process is at work on this config: pid \d+ on "):
        await annotate(make())
    lock.release()
    assert (await annotate(make())).run == run["run"]


async def test_what_an_answer_of_no_use_cost_is_kept_when_the_run_stops_before_the_next_try(
    make: MakeConfig, emulator: Emulator
):
    config = make(source={"uri": str(SAMPLES), "limit": 1}, prompts=[{"name": "objects", "kind": "detect"}])
    emulator.script("empty_text", "bad_key")
    with pytest.raises(AuthenticationError):
        await annotate(config)
    assert journal_files(config.output.uri)
    summary = await annotate(config)
    [row] = pq.read_table(f"{config.output.uri}/responses").to_pylist()
    answered = emulator.books.answered()
    assert (len(answered), row["attempts"]) == (2, 3)
    assert row["input_tokens"] == sum(question.input_tokens for question in answered)
    price = PRICES[config.model.name]
    output_tokens = sum(question.output_tokens for question in answered)
    assert summary.totals.cost_usd == pytest.approx(price.cost_usd(Usage(row["input_tokens"], output_tokens)))


class FullDisk(Folder):
    """A place that takes nothing for a while."""

    is_full = True

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        if self.is_full:
            raise OutputError("no space left")
        with super().create(key) as file:
            yield file


async def test_what_could_not_be_written_is_tried_again_at_the_end(tmp_path: Path):
    storage = FullDisk(str(tmp_path))
    journal = Journal(storage, "r")
    journal.add("00000", Answer("ok", "k1", text="first"))
    with pytest.raises(OutputError):
        await journal.flush()
    journal.fail(OutputError("no space left"))
    with pytest.raises(OutputError):
        journal.add("00000", Answer("ok", "k2", text="on the wire when the disk was full"))
    storage.is_full = False
    await journal.flush()
    assert set(Journal(storage, "r").answers()) == {"k1", "k2"}
