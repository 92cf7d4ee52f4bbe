"""Source and output in a bucket, on a real S3 server."""

import gc
import hashlib
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pixscribe.emulator import Emulator
from pixscribe.errors import BudgetExhausted, ConfigError, OutputError
from pixscribe.run import list_runs
from pixscribe.storage import open_storage
from tests.conftest import SAMPLES, MakeConfig, annotate


def put(filesystem: pafs.S3FileSystem, key: str, data: bytes) -> None:
    with filesystem.open_output_stream(key) as stream:
        stream.write(data)


async def test_a_bucket_gives_the_same_tables_as_a_folder(make: MakeConfig, bucket: pafs.S3FileSystem, tmp_path: Path):
    for path in SAMPLES.rglob("*"):
        if path.is_file():
            put(bucket, f"images/set 1/{path.relative_to(SAMPLES)}", path.read_bytes())
    local = await annotate(make(), run_id="r")
    config = make(source={"uri": "s3://images/set 1/"}, output={"uri": "s3://tables/runs"})
    remote = await annotate(config, run_id="r")
    assert remote.totals.images == local.totals.images
    for table in ("images", "annotations"):
        there = pq.read_table(f"tables/runs/{table}", filesystem=bucket)
        here = pq.read_table(tmp_path / "out" / table)
        drop = ["uri"] if table == "images" else []
        assert there.drop_columns(drop).equals(here.drop_columns(drop))


async def test_hard_names_in_a_bucket_come_back_exactly(make: MakeConfig, bucket: pafs.S3FileSystem):
    data = next(SAMPLES.rglob("*.png")).read_bytes()
    names = ["a b.png", "100%25.png", "#1?.png", "\u00e9.png", "dt=1/z.png", "😀.png"]
    for name in names:
        put(bucket, f"images/hard/{name}", data)
    config = make(source={"uri": "s3://images/hard"}, output={"uri": "s3://tables/hard"})
    summary = await annotate(config)
    assert summary.is_all_ok
    images = pq.read_table("tables/hard/images", filesystem=bucket).to_pandas()
    assert sorted(images.file_name) == sorted(names)
    assert set(images.image_id) == {hashlib.sha256(data).hexdigest()}


async def test_a_bucket_that_is_not_there_is_one_sentence(make: MakeConfig, bucket: pafs.S3FileSystem):
    with pytest.raises(ConfigError, match=r"source\.uri: 's3://none/x'"):
        await annotate(make(source={"uri": "s3://none/x"}))
    with pytest.raises(OutputError, match=r"s3://none/out/.*cannot be written"):
        await annotate(make(output={"uri": "s3://none/out"}))


def test_a_write_to_a_bucket_that_fails_half_way_leaves_nothing(bucket: pafs.S3FileSystem):
    storage = open_storage("s3://tables/half")

    def write_half(size_bytes: int) -> None:
        with storage.create("a.parquet") as file:
            file.write(bytes(size_bytes))
            raise RuntimeError

    for size_bytes in (10, 30_000_000):
        with pytest.raises(RuntimeError):
            write_half(size_bytes)
        gc.collect()
        assert storage.list("") == []


def test_a_key_can_be_written_listed_read_and_deleted(bucket: pafs.S3FileSystem):
    storage = open_storage("s3://tables/keys")
    storage.write("runs/a/run.json", b"{}")
    assert (storage.list("runs"), storage.exists("runs/a/run.json"), storage.read("runs/a/run.json")) == (
        ["a"],
        True,
        b"{}",
    )
    storage.delete("runs/a/run.json")
    assert not storage.exists("runs/a/run.json")
    assert storage.list("nothing/here") == []


async def test_a_stopped_run_in_a_bucket_is_taken_up_and_pays_for_nothing_twice(
    make: MakeConfig, emulator: Emulator, bucket: pafs.S3FileSystem
):
    output = {"uri": "s3://tables/stopped"}
    with pytest.raises(BudgetExhausted):
        await annotate(make(output=output, limits={"budget_usd": 0.12, "concurrency": 4}))
    [run] = list_runs(output["uri"])
    storage = open_storage(output["uri"])
    assert storage.list(f"runs/{run['run']}/journal") != []
    summary = await annotate(make(output=output))
    assert (summary.run, summary.is_all_ok) == (run["run"], True)
    assert len(emulator.books.questions) == summary.totals.requests == len({q.digest for q in emulator.books.questions})
    assert storage.list(f"runs/{run['run']}/journal") == []


async def test_a_finished_run_in_a_bucket_that_is_run_again_asks_nothing(
    make: MakeConfig, emulator: Emulator, bucket: pafs.S3FileSystem
):
    config = make(output={"uri": "s3://tables/again"})
    await annotate(config)
    emulator.books.reset()
    assert (await annotate(config)).is_all_ok
    assert (emulator.books.questions, emulator.books.uploads) == ([], [])
    left = [info.path for info in bucket.get_file_info(pafs.FileSelector("tables/again/runs", recursive=True))]
    assert not any("lock" in path for path in left)
