"""What the machine does to a process: kills it, stops it, runs out of disk, files and time. The rows are numbered."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pixscribe.config import RunConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import BudgetExhausted, ConfigError, OutputError
from pixscribe.run import describe_run, list_runs
from tests.conftest import ROOT, SAMPLES, MakeConfig, annotate, write_yaml
from tests.invariants import check_output
from tests.test_end_to_end import FILES, digests

DETECT = [{"name": "objects", "kind": "detect"}]
FAKETIME = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), Path("none")][0]
LIMIT_S = 60


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.run_without_prefect", str(path), *arguments]


def start(path: Path, *, limits: Callable[[], None] | None = None, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(path, "r"),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limits,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code, and what was said on stderr by the command itself."""
    with process:
        _, stderr = process.communicate(timeout=LIMIT_S)
    return process.returncode, "\n".join(line for line in stderr.splitlines() if line.startswith("pixscribe: "))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def slow() -> Iterator[Emulator]:
    """An emulator that takes its time, so that something can happen meanwhile."""
    with Emulator(EmulatorOptions(latency_s=0.3)) as emulator:
        yield emulator


@pytest.fixture
def config(make: MakeConfig, slow: Emulator) -> RunConfig:
    return make(
        model={"base_url": slow.url},
        prompts=DETECT,
        limits={"concurrency": 4},
        execution={"shard_size": 8, "shards_in_flight": 1},
    )


@pytest.fixture
def path(config: RunConfig, tmp_path: Path) -> Path:
    return write_yaml(tmp_path / "config.yaml", config)


def parts(config: RunConfig, table: str = "images") -> list[Path]:
    return sorted(Path(config.output.uri).glob(f"{table}/run=r/*.parquet"))


async def calm(make: MakeConfig, tmp_path: Path) -> Path:
    """The output of an undisturbed run of the same name."""
    output = {"uri": str(tmp_path / "calm")}
    await annotate(make(output=output, prompts=DETECT, execution={"shard_size": 8}), run_id="r")
    return tmp_path / "calm"


def same_tables(first: Path, second: Path) -> bool:
    return all(digests(first, table) == digests(second, table) for table in ("images", "annotations"))


async def test_p2_what_a_kill_leaves_of_a_commit_hides_nothing_and_is_replaced(make: MakeConfig, tmp_path: Path):
    undisturbed = await calm(make, tmp_path)
    stopped = make(
        prompts=DETECT, execution={"shard_size": 8, "shards_in_flight": 1}, limits={"budget_usd": 0.1, "concurrency": 1}
    )
    output = Path(stopped.output.uri)
    with pytest.raises(BudgetExhausted):
        await annotate(stopped, run_id="r")
    written = len(parts(stopped))
    assert 0 < written < 4
    # killed in the next shard's commit: two whole parts, and the first bytes of the third beside its place
    name = f"shard-{written:05d}.parquet"
    for table in ("annotations", "responses"):
        shutil.copy(undisturbed / table / "run=r" / "shard-00000.parquet", output / table / "run=r" / name)
    (output / "images" / "run=r" / f".{name}.0123456789ab.tmp").write_bytes(b"PAR1 and then the end")
    assert pq.read_table(output / "images").num_rows == 8 * written
    assert describe_run(str(output), "r")["totals"]["images"] == 8 * written
    finished = make(prompts=DETECT, execution={"shard_size": 8})
    await annotate(finished, run_id="r")
    assert same_tables(undisturbed, output)


def test_p3_a_second_interrupt_ends_a_run_at_once(config: RunConfig, path: Path, slow: Emulator, tmp_path: Path):
    slow.always("timeout")  # nothing that is on the wire will ever come
    command_line = [str(Path(sys.executable).with_name("pixscribe")), "run", str(path)]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    with subprocess.Popen(command_line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: len(slow.books.questions) + len(slow.books.uploads) >= 4)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        interrupted_s = time.monotonic()
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert time.monotonic() - interrupted_s < 3
    assert "once more to stop now" in stderr
    assert "Traceback" not in stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a file system")
async def test_p5_a_full_disk_ends_a_run_which_goes_on_when_there_is_room(make: MakeConfig, tmp_path: Path):
    place = tmp_path / "small"
    place.mkdir()
    with Emulator() as emulator:
        config = make(
            model={"base_url": emulator.url},
            output={"uri": str(place / "out")},
            execution={"shard_size": 4, "shards_in_flight": 1},
        )
        path = write_yaml(tmp_path / "config.yaml", config)
        run = " ".join(command(path, "r"))
        script = "\n".join(
            [
                f"mount -t tmpfs -o size=120k none {place} || exit 1",
                f"{run} > /dev/null 2> {tmp_path}/full; echo $? > {tmp_path}/code",
                f"ls {place}/out/images/run=r > {tmp_path}/kept",
                f"mount -o remount,size=16m {place}",
                f"{run} > {tmp_path}/summary && cp -r {place}/out {tmp_path}/done",
            ]
        )
        subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=ROOT, check=True, timeout=LIMIT_S, env=os.environ)
        paid = len(emulator.books.answered())
    said = [line for line in (tmp_path / "full").read_text().splitlines() if line.startswith("pixscribe: ")]
    assert (tmp_path / "code").read_text().strip() == "3"
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert (tmp_path / "kept").read_text().count("shard-") < 7
    summary = json.loads((tmp_path / "summary").read_text())
    assert summary["totals"]["images_ok"] == len(FILES)
    # what came in while the disk was full could not be kept; everything else was paid for once
    assert paid <= 2 * (len(FILES) - 1) + 2 * config.limits.concurrency
    check_output(
        config.model_copy(update={"output": config.output.model_copy(update={"uri": f"{tmp_path}/done"})}), "r"
    )


@pytest.mark.parametrize("name", ["manifest.parquet", "config.yaml", "part"])
async def test_p6_a_state_that_is_damaged_is_said_and_nothing_is_paid_again(
    make: MakeConfig, emulator: Emulator, name: str
):
    small = {"shard_size": 8, "shards_in_flight": 1}
    stopped = make(prompts=DETECT, execution=small, limits={"budget_usd": 0.1, "concurrency": 1})
    with pytest.raises(BudgetExhausted):
        await annotate(stopped, run_id="r")
    damaged = parts(stopped, "responses")[0] if name == "part" else Path(stopped.output.uri) / "runs/r" / name
    damaged.write_bytes(damaged.read_bytes()[:40])
    emulator.books.reset()
    with pytest.raises((OutputError, ConfigError), match=r"is no part of a run|cannot be read|exists already"):
        await annotate(make(prompts=DETECT, execution=small), run_id="r")
    assert emulator.books.questions == []


async def test_p7_an_output_that_cannot_be_written_is_refused_before_anything_is_paid(
    make: MakeConfig, emulator: Emulator, tmp_path: Path
):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        await annotate(make(output={"uri": str(tmp_path / "file" / "out")}))
    assert not emulator.books.by_endpoint


async def test_p7_foreign_files_beside_the_tables_disturb_nothing(make: MakeConfig, tmp_path: Path):
    config = make(source={"uri": str(SAMPLES), "limit": 2})
    for folder in ("runs", "runs/holiday", "responses", "responses/run=x", "images"):
        (tmp_path / "out" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / folder / "notes.txt").write_text("not ours")
    (tmp_path / "out" / "responses" / "run=x" / "a.parquet").write_bytes(b"not Parquet either")
    assert (await annotate(config)).is_all_ok
    assert len(list_runs(config.output.uri)) == 1


def test_p7_a_bucket_that_goes_away_ends_the_run_with_one_sentence(
    make: MakeConfig, slow: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tests.conftest import _port_from

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    moto = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", "0"]
    with (tmp_path / "moto").open("wb") as log, subprocess.Popen(moto, stderr=log) as server:
        port = _port_from(tmp_path / "moto")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        filesystem = pafs.S3FileSystem(
            endpoint_override=f"http://127.0.0.1:{port}", region="us-east-1", allow_bucket_creation=True
        )
        filesystem.create_dir("gone")
        config = make(
            model={"base_url": slow.url},
            limits={"concurrency": 2},
            execution={"shard_size": 4},
            output={"uri": "s3://gone/out"},
        )
        process = start(write_yaml(tmp_path / "config.yaml", config))
        wait_until(lambda: len(slow.books.answered()) >= 4)
        server.kill()
        code, said = finish(process)
    assert code == 3
    assert said.count("pixscribe: ") == 1
    assert "s3://gone/out" in said


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_p8_two_processes_of_one_config_do_not_work_at_once(
    make: MakeConfig, slow: Emulator, tmp_path: Path, place: str, request: pytest.FixtureRequest
):
    if place == "bucket":
        request.getfixturevalue("bucket")
    uri = str(tmp_path / "out") if place == "folder" else "s3://tables/twice"
    config = make(model={"base_url": slow.url}, prompts=DETECT, limits={"concurrency": 4}, output={"uri": uri})
    path = write_yaml(tmp_path / "config.yaml", config)
    processes = [start(path), start(path)]
    ended = sorted(finish(process) for process in processes)
    assert [code for code, _ in ended] == [0, 3]
    assert "another process" in ended[1][1]
    assert len(slow.books.answered()) == len(FILES) - 1
    if place == "folder":
        check_output(config, "r")


def test_p9_an_owner_that_wakes_up_after_a_takeover_commits_nothing(
    config: RunConfig, path: Path, slow: Emulator, tmp_path: Path
):
    life_s = "6"  # in which the second process has to come up, be refused and end
    sleeper = start(path, PIXSCRIBE_TEST_LOCK_LIFE_S=life_s)
    wait_until(lambda: len(parts(config)) >= 1)
    sleeper.send_signal(signal.SIGSTOP)
    code, said = finish(start(path, PIXSCRIBE_TEST_LOCK_LIFE_S=life_s))
    assert (code, "another process is at work on this config" in said) == (3, True)
    time.sleep(6.2)
    code, _ = finish(start(path, PIXSCRIBE_TEST_LOCK_LIFE_S=life_s))
    assert code == 0
    before = {
        part: part.read_bytes() for table in ("images", "responses", "annotations") for part in parts(config, table)
    }
    sleeper.send_signal(signal.SIGCONT)
    code, said = finish(sleeper)
    assert (code, "another process has taken over" in said) == (3, True)
    after = {
        part: part.read_bytes() for table in ("images", "responses", "annotations") for part in parts(config, table)
    }
    assert after == before
    check_output(config, "r")


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs libfaketime (apt install libfaketime)")
@pytest.mark.parametrize("jump", ["+7200", "-7200"])
async def test_p10_a_clock_that_jumps_changes_nothing(
    make: MakeConfig, config: RunConfig, path: Path, tmp_path: Path, jump: str
):
    undisturbed = await calm(make, tmp_path)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    process = start(
        path,
        LD_PRELOAD=str(FAKETIME),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        FAKETIME_FORCE_MONOTONIC_FIX="0",
    )
    wait_until(lambda: len(parts(config)) >= 1)
    clock.write_text(jump)
    assert finish(process)[0] == 0
    assert same_tables(undisturbed, Path(config.output.uri))


async def test_p11_few_open_files_are_enough(make: MakeConfig, tmp_path: Path):
    with Emulator(EmulatorOptions(latency_s=0.05)) as emulator:
        config = make(model={"base_url": emulator.url}, limits={"concurrency": 64})
        path = write_yaml(tmp_path / "config.yaml", config)
        process = start(path, limits=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
        code, said = finish(process)
    assert (code, said) == (0, "")
    check_output(config, "r")


def test_p12_a_home_that_is_not_there_does_not_matter_to_a_run(config: RunConfig, path: Path, tmp_path: Path):
    nowhere = str(tmp_path / "not there")
    assert finish(start(path, HOME=nowhere, TMPDIR=nowhere, PREFECT_HOME=nowhere)) == (0, "")
    check_output(config, "r")


def test_p13_nobody_reads_what_a_run_says(config: RunConfig, path: Path):
    with subprocess.Popen(command(path, "r"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        process.wait(LIMIT_S)
    assert describe_run(config.output.uri, "r")["status"] == "complete"
    check_output(config, "r")
