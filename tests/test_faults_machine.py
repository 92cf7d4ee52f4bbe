"""More of what the machine does to a process: kills in the commit, little memory, streams and folders that are gone."""

import os
import random
import resource
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pixscribe.config import RunConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import BudgetExhausted, OutputError
from pixscribe.run import describe_run, list_runs
from pixscribe.storage import open_storage
from tests.conftest import ROOT, SAMPLES, MakeConfig, annotate, pixscribe, write_yaml
from tests.invariants import TABLES, check_output
from tests.test_end_to_end import FILES
from tests.test_faults_process import DETECT, LIMIT_S, command, finish, parts, same_tables, start, wait_until

PIXSCRIBE = str(Path(sys.executable).with_name("pixscribe"))
SMALL: dict[str, Any] = {"shard_size": 8, "shards_in_flight": 1}
CONTENTS = len(FILES) - 1
"""One of the samples is a duplicate."""
HUGE_PX = 20_000
"""The side of an image whose pixels alone take 1.6 GB."""
needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs to mount a file system (root, and unshare permitted)",
)


def in_own_mounts(script: str) -> None:
    subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=ROOT, check=True, timeout=2 * LIMIT_S)


async def stop_half_way(make: MakeConfig) -> RunConfig:
    """Leave a run `r` with a committed shard and a journal, and return its config."""
    stopped = make(prompts=DETECT, execution=SMALL, limits={"budget_usd": 0.1, "concurrency": 1})
    with pytest.raises(BudgetExhausted):
        await annotate(stopped, run_id="r")
    assert parts(stopped)
    return make(prompts=DETECT, execution=SMALL)


def commits_in_progress(output: Path) -> list[str]:
    """What of a shard is there before its part of `images`: temporary files, and parts of the other tables."""
    names: dict[str, set[str]] = {}
    for table in TABLES:
        folder = output / table / "run=r"
        names[table] = set(os.listdir(folder)) if folder.is_dir() else set()  # noqa: PTH208 (it has to be quick)
    half = [name for found in names.values() for name in found if name.endswith(".tmp")]
    return half + sorted((names["annotations"] | names["responses"]) - names["images"] - set(half))


async def test_p2_a_run_killed_in_the_middle_of_commits_ends_as_if_undisturbed(make: MakeConfig, tmp_path: Path):
    tiny = {"shard_size": 2, "shards_in_flight": 1}
    await annotate(make(output={"uri": str(tmp_path / "calm")}, prompts=DETECT, execution=tiny), run_id="r")
    with Emulator(EmulatorOptions(latency_s=0.05)) as emulator:
        config = make(model={"base_url": emulator.url}, prompts=DETECT, execution=tiny, limits={"concurrency": 4})
        output, path = Path(config.output.uri), write_yaml(tmp_path / "config.yaml", config)
        left = list[str]()
        for _ in range(3):
            before = set(commits_in_progress(output))
            with start(path) as process:
                deadline_s = time.monotonic() + LIMIT_S
                while process.poll() is None and not set(commits_in_progress(output)) - before:
                    assert time.monotonic() < deadline_s
                    time.sleep(0.0003)  # the emulator is a thread of this process
                process.kill()
            left += commits_in_progress(output)
            for table in TABLES:
                if list((output / table).rglob("shard-*.parquet")):
                    pq.read_table(output / table)  # no half file is taken for a part
        assert left, "no kill hit a commit"
        assert finish(start(path))[0] == 0
    assert same_tables(tmp_path / "calm", output)
    check_output(config, "r")


async def test_p2_a_run_killed_in_a_bucket_shows_whole_parts_only_and_is_resumed(
    make: MakeConfig, bucket: pafs.S3FileSystem, tmp_path: Path
):
    execution = {"shard_size": 4, "shards_in_flight": 1}
    await annotate(make(output={"uri": str(tmp_path / "calm")}, prompts=DETECT, execution=execution), run_id="r")
    dice, waits = random.Random(5), list[int]()
    with Emulator(EmulatorOptions(latency_s=0.1)) as emulator:
        config = make(
            model={"base_url": emulator.url},
            prompts=DETECT,
            execution=execution,
            limits={"concurrency": 2},
            output={"uri": "s3://tables/killed"},
        )
        path = write_yaml(tmp_path / "config.yaml", config)
        for _ in range(2):
            asked = len(emulator.books.questions)
            with start(path) as process:
                wait_until(lambda asked=asked: len(emulator.books.questions) >= asked + 3)  # type: ignore[misc]
                time.sleep(dice.uniform(0, 0.4))
                process.kill()
            waits.append(process.returncode)
            check_bucket(bucket, "tables/killed")
        assert waits == [-signal.SIGKILL] * 2
        assert finish(start(path))[0] == 0
    for table in ("images", "annotations"):
        there = pq.read_table(f"tables/killed/{table}", filesystem=bucket)
        assert there.equals(pq.read_table(tmp_path / "calm" / table))


def check_bucket(bucket: pafs.S3FileSystem, prefix: str) -> None:
    """What is to be seen in the tables are whole parts, and images have the rows of the other tables beside them."""
    seen = dict[str, set[str]]()
    for table in TABLES:
        selector = pafs.FileSelector(f"{prefix}/{table}", recursive=True, allow_not_found=True)
        files = [info for info in bucket.get_file_info(selector) if info.type == pafs.FileType.File]
        for info in files:
            pq.read_table(info.path, filesystem=bucket, partitioning=None)
        seen[table] = {info.base_name for info in files}
    assert seen["images"] <= seen["responses"] & seen["annotations"]


@pytest.fixture(scope="module")
def huge_and_small_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, and one of 400 megapixels in 5 MB."""
    folder = tmp_path_factory.mktemp("huge")
    for number in range(6):
        Image.new("RGB", (640 + number, 480), (0, 30 * number, 90)).save(folder / f"{number}.png")
    packing, rows = zlib.compressobj(1), bytes(1 + 3 * HUGE_PX) * 100
    data = b"".join(packing.compress(rows) for _ in range(HUGE_PX // 100)) + packing.flush()
    header = struct.pack(">IIBBBBB", HUGE_PX, HUGE_PX, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    png = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    return folder


def allow_1200_mb() -> None:
    # what is written to, not the address space: of that, threads and libraries reserve what they never use
    resource.setrlimit(resource.RLIMIT_DATA, (1200 << 20, 1200 << 20))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts all of a process's memory in RLIMIT_DATA")
def test_p4_an_image_that_needs_more_memory_than_there_is_is_a_row(
    make: MakeConfig, huge_and_small_pictures: Path, tmp_path: Path
):
    with Emulator(EmulatorOptions(look=False)) as emulator:
        config = make(
            source={"uri": str(huge_and_small_pictures)},
            model={"base_url": emulator.url},
            prompts=DETECT,
            image={"max_side_px": 512, "max_pixels": HUGE_PX**2},
        )
        code, _ = finish(start(write_yaml(tmp_path / "config.yaml", config), limits=allow_1200_mb))
    assert code == 0
    rows = pq.read_table(f"{config.output.uri}/images").to_pylist()
    assert {row["file_name"]: row["error_code"] for row in rows if row["status"] != "ok"} == {"huge.png": "too_large"}
    assert len(rows) == 7
    check_output(config, "r")


@needs_mounts
async def test_p5_a_disk_that_gets_full_in_mid_run_leaves_whole_parts_and_the_run_goes_on_later(
    make: MakeConfig, tmp_path: Path
):
    place = tmp_path / "small"
    place.mkdir()
    with Emulator(EmulatorOptions(latency_s=0.3)) as emulator:
        config = make(
            model={"base_url": emulator.url},
            prompts=DETECT,
            limits={"concurrency": 4},
            output={"uri": str(place / "out")},
            execution={"shard_size": 4, "shards_in_flight": 1},
        )
        run = shlex.join(command(write_yaml(tmp_path / "config.yaml", config), "r"))
        in_own_mounts(f"""
            mount -t tmpfs -o size=2m none {place} || exit 1
            {run} > {tmp_path}/stdout 2> {tmp_path}/stderr & running=$!
            for _ in $(seq 1000); do
                [ -e {place}/out/images/run=r/shard-00000.parquet ] && break; sleep 0.02
            done
            cat /dev/zero > {place}/ballast 2> /dev/null
            wait $running; echo $? > {tmp_path}/code
            cp -r {place}/out {tmp_path}/kept
            mount -o remount,size=64m {place}
            {run} > {tmp_path}/summary || exit 1
            cp -r {place}/out {tmp_path}/done
        """)
        paid = len(emulator.books.answered())
    said = [line for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("pixscribe: ")]
    assert (tmp_path / "code").read_text() == "3\n"
    assert len(said) == 1, said
    assert "No space left on device" in said[0]
    committed = sorted((tmp_path / "kept/images/run=r").glob("*.parquet"))
    assert 0 < len(committed) < 7
    assert pq.read_table(tmp_path / "kept/images").num_rows == 4 * len(committed)
    for part in committed:
        assert part.read_bytes() == (tmp_path / "done/images/run=r" / part.name).read_bytes()
    # lost is what came in while nothing could be written: what was on the wire, and a second's worth
    assert paid <= CONTENTS + 4 + 4 / 0.3
    check_output(moved(config, tmp_path / "done"), "r")


def moved(config: RunConfig, output: Path) -> RunConfig:
    return config.model_copy(update={"output": config.output.model_copy(update={"uri": str(output)})})


@pytest.mark.parametrize("table", ["images", "annotations"])
async def test_p6_a_cut_part_of_a_run_that_is_taken_up_is_not_passed_over(
    make: MakeConfig, emulator: Emulator, table: str
):
    config = await stop_half_way(make)
    part = parts(config, table)[0]
    part.write_bytes(part.read_bytes()[:40])
    emulator.books.reset()
    refusal = None
    try:
        await annotate(config, run_id="r")
    except OutputError as error:
        refusal = str(error)
    if refusal is None:
        check_output(config, "r")  # it was made anew
    else:
        assert part.name in refusal
        assert emulator.books.questions == []


async def test_p6_a_cut_config_of_an_unfinished_run_costs_none_of_its_answers(
    make: MakeConfig, emulator: Emulator, caplog: pytest.LogCaptureFixture
):
    config = await stop_half_way(make)
    frozen = Path(config.output.uri) / "runs/r/config.yaml"
    frozen.write_bytes(frozen.read_bytes()[:20])
    summary = await annotate(config)
    assert summary.run != "r"
    assert "an unfinished run is left alone" in caplog.text
    assert len(emulator.books.answered()) == CONTENTS
    check_output(config, summary.run)


@pytest.mark.parametrize("garbage", [b"", b"{", b"\xff\xfe", b"null", b"[]", b"{}"])
async def test_p6_a_damaged_run_json_hides_no_other_run_and_costs_nothing(
    make: MakeConfig, emulator: Emulator, garbage: bytes
):
    config = make(source={"uri": str(SAMPLES), "limit": 2}, prompts=DETECT)
    await annotate(config, run_id="broken")
    await annotate(config, run_id="whole")
    (Path(config.output.uri) / "runs/broken/run.json").write_bytes(garbage)
    with pytest.raises(OutputError, match=r"run\.json: "):
        describe_run(config.output.uri, "broken")
    listed = [(run["run"], run["status"], run["totals"]["images"]) for run in list_runs(config.output.uri)]
    assert listed == [("broken", "unreadable", 0), ("whole", "complete", 2)]
    emulator.books.reset()
    assert (await annotate(config)).is_all_ok
    assert emulator.books.questions == []


@needs_mounts
def test_p7_a_read_only_output_is_one_sentence_before_anything_is_paid(
    make: MakeConfig, emulator: Emulator, tmp_path: Path
):
    place = tmp_path / "frozen"
    place.mkdir()
    config = make(output={"uri": str(place / "out")})
    run = shlex.join(command(write_yaml(tmp_path / "config.yaml", config), "r"))
    in_own_mounts(f"""
        mount -t tmpfs -o ro none {place} || exit 1
        {run} > /dev/null 2> {tmp_path}/stderr; echo $? > {tmp_path}/code
    """)
    said = (tmp_path / "stderr").read_text()
    assert (tmp_path / "code").read_text() == "3\n"
    assert said.count("\n") == 1
    assert said.startswith(f"pixscribe: {place}/out/runs/.probe-")
    assert "cannot be written: Read-only file system" in said
    assert not emulator.books.by_endpoint


async def test_p7_a_bucket_that_is_not_there_is_found_out_before_anything_is_paid(
    make: MakeConfig, emulator: Emulator, bucket: pafs.S3FileSystem
):
    with pytest.raises(OutputError, match=r"s3://none/out/.*cannot be written"):
        await annotate(make(output={"uri": "s3://none/out"}))
    assert not emulator.books.by_endpoint


def test_p8_two_processes_in_one_bucket_leave_each_row_once(
    make: MakeConfig, bucket: pafs.S3FileSystem, tmp_path: Path
):
    with Emulator(EmulatorOptions(latency_s=0.3)) as emulator:
        config = make(
            model={"base_url": emulator.url},
            prompts=DETECT,
            limits={"concurrency": 4},
            output={"uri": "s3://tables/rows-once"},
        )
        path = write_yaml(tmp_path / "config.yaml", config)
        first, second = start(path), start(path)
        ended = sorted((finish(first), finish(second)))
    assert [code for code, _ in ended] == [0, 3]
    assert ended[1][1].count("pixscribe: ") == 1
    check_bucket(bucket, "tables/rows-once")
    rows = pq.read_table("tables/rows-once/images", filesystem=bucket)["file_name"].to_pylist()
    assert sorted(rows) == FILES


@pytest.mark.parametrize("variable", ["PREFECT_HOME", "HOME"])
def test_p12_a_home_that_cannot_be_made_is_one_sentence_before_any_work(
    make: MakeConfig, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
):
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "file").touch()
    path = write_yaml(tmp_path / "config.yaml", make())
    refused = pixscribe("run", str(path), **{variable: str(tmp_path / "file" / "home")})
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"pixscribe: PREFECT_HOME ({tmp_path}/file/home")
    assert refused.stderr.count("\n") == 1
    assert not emulator.books.by_endpoint


def test_p12_a_bucket_needs_no_folder_for_temporary_files(make: MakeConfig, bucket: pafs.S3FileSystem, tmp_path: Path):
    nowhere = str(tmp_path / "not there")
    with Emulator() as emulator:
        config = make(model={"base_url": emulator.url}, prompts=DETECT, output={"uri": "s3://tables/no-tmp"})
        path = write_yaml(tmp_path / "config.yaml", config)
        assert finish(start(path, HOME=nowhere, TMPDIR=nowhere)) == (0, "")
    assert pq.read_table("tables/no-tmp/images", filesystem=bucket).num_rows == len(FILES)


def test_p12_a_part_that_finds_no_folder_for_its_temporary_file_is_one_sentence(
    bucket: pafs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # as on a machine where nothing but the bucket can be written
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))

    def write_bit_by_bit() -> None:
        with open_storage("s3://tables/no-room").create("a.parquet") as file:
            file.write(bytes(20_000_000))

    with pytest.raises(OutputError, match=r"s3://tables/no-room/a\.parquet: cannot be written"):
        write_bit_by_bit()


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all runs of these tests: only the first pays for making it."""
    return tmp_path_factory.mktemp("prefect")


@pytest.mark.parametrize(
    "streams",
    [
        pytest.param("--json > /dev/full", id="stdout-full"),
        pytest.param("--json >&-", id="stdout-closed"),
        pytest.param("> >(true)", id="stdout-broken"),
        pytest.param("--json 2> /dev/full", id="stderr-full"),
        # a reader that takes one line and leaves
        pytest.param("--json 2> >(head -n 1 > /dev/null)", id="stderr-broken"),
    ],
)
def test_p13_a_run_is_completed_and_says_so_by_its_code_whoever_listens(
    make: MakeConfig, tmp_path: Path, prefect_home: Path, streams: str
):
    with Emulator() as emulator:
        config = make(model={"base_url": emulator.url}, source={"uri": str(SAMPLES), "limit": 4}, prompts=DETECT)
        path = write_yaml(tmp_path / "config.yaml", config)
        line = f"exec {PIXSCRIBE} run {path} --run-id r {streams}"
        with subprocess.Popen(
            ["bash", "-c", line], cwd=ROOT, env={**os.environ, "PREFECT_HOME": str(prefect_home)}
        ) as process:
            try:
                code = process.wait(45)
            finally:
                process.kill()
    assert describe_run(config.output.uri, "r")["status"] == "complete"
    assert code == 0
    check_output(config, "r")


@pytest.mark.parametrize("streams", ["2> /dev/full", "2>&-", ">&- 2>&-"])
def test_p13_a_refusal_that_nobody_can_read_keeps_its_exit_code(streams: str):
    line = f"exec {PIXSCRIBE} check none.yaml {streams}"
    assert subprocess.run(["bash", "-c", line], cwd=ROOT, check=False, timeout=LIMIT_S).returncode == 2


async def test_p14_an_answer_that_never_comes_ends_as_a_row_at_its_limit(make: MakeConfig, emulator: Emulator):
    emulator.script("timeout", "ok", "ok", "ok", "ok", "timeout")
    config = make(
        source={"uri": str(SAMPLES), "limit": 5},
        prompts=DETECT,
        limits={"concurrency": 8},
        retry={"timeout_s": 1.0, "max_attempts": 2},
    )
    summary = await annotate(config)
    [failed] = [row for row in pq.read_table(f"{config.output.uri}/responses").to_pylist() if row["status"] == "failed"]
    assert (failed["error_code"], failed["attempts"]) == ("timeout", 2)
    assert summary.totals.images_ok == 4
    assert 2.0 <= summary.elapsed_s < 4.0
    begun_s = emulator.books.questions[0].at_s
    # the others did not wait for it, not even for its first attempt
    assert [question.at_s - begun_s < 1.0 for question in emulator.books.answered()] == [True] * 4
    check_output(config, summary.run)
