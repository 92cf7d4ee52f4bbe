"""Shards on real workers: local clusters of Dask and Ray, and a Dask cluster that was there before.

Every run is compared with one in this process, part by part.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.prefect_server import prefect_api
from flows.runner import run_here
from pixscribe import run as run_module
from pixscribe.config import RunConfig, make_config
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import ConfigError
from pixscribe.journal import read_journal
from pixscribe.run import list_runs
from pixscribe.storage import open_storage
from tests.conftest import ROOT, annotate, pixscribe, write_yaml
from tests.invariants import check_output
from tests.test_cli import PIXSCRIBE, wait_until
from tests.test_end_to_end import digests

Tables = dict[str, dict[str, str]]

IMAGES = 120
PROMPTS = [{"name": "objects", "kind": "detect"}, {"name": "caption", "kind": "caption"}]
QUESTIONS = IMAGES * len(PROMPTS)
RATE_PER_S = 40
IN_FLIGHT = 8
WORKERS = 2
KEY = "test-key-4f1c"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.new("RGB", (64, 48), "white")
    image.paste((200, 30, 30), (10, 10, 40, 30))
    for number in range(IMAGES):
        image.putpixel((0, 0), (number % 256, number // 256, 0))
        image.save(folder / f"{number:04d}.png")
    return folder


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        with prefect_api(print) as server:
            assert server is not None
            server.wait_ready()
            yield server.url


@pytest.fixture(scope="module")
def dask_address(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Iterator[str]:
    """A scheduler and two workers, started by the commands that the README names."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    environment = {**os.environ, "GEMINI_API_KEY": KEY}
    with (
        running("scheduler", "--host=127.0.0.1", "--port=0", f"--scheduler-file={file}", cwd=folder, env=environment),
        running("worker", f"--scheduler-file={file}", f"--nworkers={WORKERS}", cwd=folder, env=environment),
    ):
        wait_until(lambda: file.exists() and '"address"' in file.read_text())
        yield str(json.loads(file.read_text())["address"])


@contextmanager
def running(*arguments: str, **options: Any) -> Iterator[None]:
    dask = Path(sys.executable).with_name("dask")
    with subprocess.Popen(
        [dask, *arguments, "--no-dashboard"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    ) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.fixture
def service() -> Iterator[Emulator]:
    with Emulator(EmulatorOptions(requests_per_minute=60 * RATE_PER_S, latency_s=0.1)) as emulator:
        yield emulator


def config_for(pictures: Path, output: Path, service: Emulator, execution: dict[str, Any], **limits: Any) -> RunConfig:
    rates = {"requests_per_minute": 60 * RATE_PER_S, "concurrency": IN_FLIGHT}
    return make_config(
        {
            "name": "test",
            "source": {"uri": str(pictures)},
            "model": {"base_url": service.url, "transport": "inline", "max_output_tokens": 256},
            "prompts": PROMPTS,
            "limits": {**rates, **limits},
            "retry": {"max_wait_s": 0.01},
            "execution": {"shard_size": 10, **execution},
            "output": {"uri": str(output)},
        }
    )


@pytest.fixture(scope="module")
def expected(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of a run in this process, which nothing slows down."""
    output = tmp_path_factory.mktemp("expected")
    with Emulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMINI_API_KEY", KEY)
        config = config_for(pictures, output, emulator, {}, requests_per_minute=1_000_000, concurrency=64)
        asyncio.run(annotate(config, run_id="r"))
    return tables_of(output)


def tables_of(output: Path) -> Tables:
    """The digest of each part, by table."""
    return {table: digests(output, table) for table in ("images", "annotations")}


@contextmanager
def started(path: Path, prefect_server: str) -> Iterator["subprocess.Popen[str]"]:
    """`pixscribe run` in a process group of its own, as a terminal gives it one."""
    environment = {**os.environ, "PREFECT_API_URL": prefect_server}
    command = [PIXSCRIBE, "run", str(path), "--run-id", "r"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def workers_of(process: "subprocess.Popen[str]", mark: str) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.is_running() and mark in " ".join(child.cmdline())]


def parts_of(output: Path) -> int:
    return len(list(output.glob("images/*/*.parquet")))


def test_a_dask_worker_that_is_killed_and_ctrl_c_change_nothing(
    pictures: Path, tmp_path: Path, service: Emulator, prefect_server: str, dask_address: str, expected: Tables
):
    output = tmp_path / "out"
    path = write_yaml(
        tmp_path / "local.yaml", config_for(pictures, output, service, {"engine": "dask", "workers": WORKERS})
    )
    with started(path, prefect_server) as process:
        wait_until(lambda: parts_of(output) >= 2)
        victim = workers_of(process, "spawn_main")[0]
        victim.kill()
        before = parts_of(output)
        wait_until(lambda: parts_of(output) >= before + 4)
        left = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=40)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "run the same command to go on" in stderr
    psutil.wait_procs(left, timeout=2)
    assert [child for child in left if child.is_running()] == []
    [stopped] = list_runs(str(output))
    assert stopped["status"] == "unfinished"

    config = config_for(pictures, output, service, {"engine": "dask", "address": dask_address})
    done = pixscribe("run", str(write_yaml(path, config)), "--run-id", "r", PREFECT_API_URL=prefect_server)
    assert done.returncode == 0, done.stderr
    assert tables_of(output) == expected
    check_output(config, "r")
    assert 429 not in service.books.by_status
    # at the kill: what is in flight, and a second of answers that are not in the journal yet
    assert len(service.books.questions) <= QUESTIONS + IN_FLIGHT + RATE_PER_S
    assert not (output / "runs/r/claims").exists()


def test_a_ray_worker_that_is_killed_changes_nothing(
    pictures: Path, tmp_path: Path, service: Emulator, prefect_server: str, expected: Tables
):
    output = tmp_path / "out"
    config = config_for(pictures, output, service, {"engine": "ray", "workers": WORKERS})
    with started(write_yaml(tmp_path / "ray.yaml", config), prefect_server) as process:
        wait_until(lambda: parts_of(output) >= 2)
        workers_of(process, "ray::label")[0].kill()
        left = psutil.Process(process.pid).children(recursive=True)
        _, stderr = process.communicate(timeout=90)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    psutil.wait_procs(left, timeout=5)
    assert [child for child in left if child.is_running()] == []
    assert tables_of(output) == expected
    check_output(config, "r")
    assert 429 not in service.books.by_status
    assert len(service.books.questions) <= QUESTIONS + IN_FLIGHT + RATE_PER_S


def test_all_workers_together_keep_to_one_budget(
    pictures: Path, tmp_path: Path, service: Emulator, prefect_server: str, dask_address: str
):
    output, execution = tmp_path / "out", {"engine": "dask", "address": dask_address}
    path = write_yaml(tmp_path / "a.yaml", config_for(pictures, output, service, execution, budget_usd=0.2))
    done = pixscribe("run", str(path), "--run-id", "r", PREFECT_API_URL=prefect_server)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("pixscribe: limits.budget_usd: what is left of 0.2 USD")
    assert 0.15 < spent_usd(output) <= 0.2


def test_an_error_that_ends_a_run_comes_back_from_the_worker_as_itself(
    pictures: Path, tmp_path: Path, service: Emulator, prefect_server: str, dask_address: str
):
    output, execution = tmp_path / "out", {"engine": "dask", "address": dask_address}
    path = write_yaml(tmp_path / "a.yaml", config_for(pictures, output, service, execution))
    with started(path, prefect_server) as process:
        wait_until(lambda: parts_of(output) >= 1)
        service.always("bad_key")
        _, stderr = process.communicate(timeout=40)
    assert process.returncode == 3, stderr
    assert "GEMINI_API_KEY is refused" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_a_cluster_that_is_not_there_is_one_sentence(
    pictures: Path, tmp_path: Path, service: Emulator, prefect_server: str
):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    execution = {"engine": "ray", "address": f"127.0.0.1:{port}"}
    path = write_yaml(tmp_path / "a.yaml", config_for(pictures, tmp_path / "out", service, execution))
    done = pixscribe("run", str(path), PREFECT_API_URL=prefect_server)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"pixscribe: execution.address: 127.0.0.1:{port}: no workers: ")


def test_an_engine_that_is_not_installed_is_one_sentence(
    pictures: Path, tmp_path: Path, service: Emulator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_module, "find_spec", lambda name: None)
    config = config_for(pictures, tmp_path / "out", service, {"engine": "dask"})
    with pytest.raises(ConfigError, match=r"dask needs prefect-dask: pip install 'pixscribe\[dask\]'"):
        run_here(config, run_id=None, new=False)


def test_workers_elsewhere_need_a_prefect_server_that_they_can_reach(pictures: Path, tmp_path: Path, service: Emulator):
    execution = {"engine": "dask", "address": "tcp://192.0.2.1:8786"}
    path = write_yaml(tmp_path / "config.yaml", config_for(pictures, tmp_path / "out", service, execution))
    # in a process of its own: this one may know a server already
    refused = pixscribe("run", str(path), PREFECT_API_URL="", PREFECT_HOME=str(tmp_path / "prefect"))
    assert refused.returncode == 2
    assert "need a Prefect server that they can reach" in refused.stderr


def spent_usd(output: Path) -> float:
    """What stands in the tables and in the journal."""
    storage = open_storage(str(output))
    parts = [pq.read_table(path, columns=["cost_usd"]) for path in output.glob("responses/*/*.parquet")]
    journaled = [read_journal(storage, f"runs/r/journal/{name}") for name in storage.list("runs/r/journal")]
    return sum(sum(part["cost_usd"].to_pylist()) for part in parts) + sum(
        answer.cost_usd or 0.0 for answers in journaled for answer in answers
    )
