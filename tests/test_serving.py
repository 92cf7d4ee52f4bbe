"""Schedules on a standing Prefect server, with all its services, as a user has one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pixscribe.emulator import Emulator
from tests.conftest import ROOT, SAMPLES, pixscribe

BIN = Path(sys.executable).parent
PREFECT = str(BIN / "prefect")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`prefect server start`, and what PREFECT_API_URL then is."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    }
    command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with (home / "log").open("wb") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server:
        try:
            url = f"http://127.0.0.1:{port}/api"
            wait_until(lambda: is_up(f"{url}/health"), 120)
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def is_up(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], Any], limit_s: float) -> Any:
    deadline_s = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.5)
    return found


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def nightly(tmp_path: Path, emulator: Emulator, request: pytest.FixtureRequest) -> Path:
    """A config that labels what is new in `in`, in which there are five pictures."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(1, 6):
        shutil.copy(SAMPLES / f"orientation/exif-{number}.jpg", source / f"{number}.jpg")
    config = {
        "name": "nightly-" + request.node.name.split("_")[1],
        "source": {"uri": str(source), "only_new": True},
        "model": {"base_url": emulator.url},
        "prompts": [{"name": "objects", "kind": "detect"}],
        "output": {"uri": str(tmp_path / "out")},
    }
    path = tmp_path / "nightly.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def runs_of(api: str, deployment: str) -> list[dict[str, Any]]:
    """The flow runs of a deployment that have ended, oldest first."""
    asked = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    runs: list[dict[str, Any]] = httpx.post(f"{api}/flow_runs/filter", json=asked, trust_env=False).json()
    return [run for run in runs if run["state_type"] in ENDED]


def run_now(api: str, deployment: str) -> dict[str, Any]:
    """Ask for a run, and wait for its end."""
    found = httpx.get(f"{api}/deployments/name/annotate/{deployment}", trust_env=False).json()
    answer = httpx.post(f"{api}/deployments/{found['id']}/create_flow_run", json={}, trust_env=False)
    url = f"{api}/flow_runs/{answer.raise_for_status().json()['id']}"

    def ended() -> dict[str, Any] | None:
        run: dict[str, Any] = httpx.get(url, trust_env=False).json()
        return run if run["state_type"] in ENDED else None

    run: dict[str, Any] = wait_until(ended, 150)
    return run


@contextmanager
def running(*command: str, api: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"PREFECT_API_URL": api, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_serving_by_a_schedule_asks_about_what_is_new_and_nothing_else(
    api: str, nightly: Path, emulator: Emulator, tmp_path: Path
):
    name, source = yaml.safe_load(nightly.read_text())["name"], tmp_path / "in"
    before = len(emulator.books.questions)
    command = (str(BIN / "pixscribe"), "serve", str(nightly), "--cron", "* * * * *", "--timezone", "Europe/Berlin")
    with running(*command, api=api, log=tmp_path / "log"):
        first = wait_until(lambda: runs_of(api, name), 200)[0]
        assert first["state_type"] == "COMPLETED", (tmp_path / "log").read_text()
        assert first["auto_scheduled"]
        assert len(emulator.books.questions) - before == 5
        assert run_now(api, name)["state_type"] == "COMPLETED"
        assert len(emulator.books.questions) - before == 5
        for number in range(6, 9):
            shutil.copy(SAMPLES / f"orientation/exif-{number}.jpg", source / f"{number}.jpg")
        (source / "1.jpg").rename(source / "renamed.jpg")
        assert run_now(api, name)["state_type"] == "COMPLETED"
        assert len(emulator.books.questions) - before == 8
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_deployed_to_a_work_pool_a_config_is_run_by_a_worker(
    api: str, nightly: Path, emulator: Emulator, tmp_path: Path
):
    name = yaml.safe_load(nightly.read_text())["name"]
    done = pixscribe("deploy", str(nightly), "--pool", "here", PREFECT_API_URL=api)
    assert (done.returncode, "--pool here" in done.stderr) == (2, True), done.stderr
    environment = os.environ | {"PREFECT_API_URL": api}
    created = [PREFECT, "work-pool", "create", "here", "--type", "process"]
    subprocess.run(created, env=environment, check=True, capture_output=True, cwd=ROOT)
    done = pixscribe("deploy", str(nightly), "--pool", "here", "--cron", "0 2 * * *", PREFECT_API_URL=api)
    assert done.returncode == 0, done.stderr
    assert f"prefect deployment run 'annotate/{name}'" in done.stdout
    before = len(emulator.books.questions)
    worker = (PREFECT, "worker", "start", "--pool", "here", "--type", "process")
    with running(*worker, api=api, log=tmp_path / "log"):
        assert run_now(api, name)["state_type"] == "COMPLETED", (tmp_path / "log").read_text()
    assert len(emulator.books.questions) - before == 5


def test_the_form_of_the_parameters_is_made_from_the_models_and_refuses_a_typo(api: str, nightly: Path):
    name = yaml.safe_load(nightly.read_text())["name"]
    subprocess.run(
        [PREFECT, "work-pool", "create", "form", "--type", "process"],
        env=os.environ | {"PREFECT_API_URL": api},
        check=True,
        capture_output=True,
    )
    assert pixscribe("deploy", str(nightly), "--pool", "form", PREFECT_API_URL=api).returncode == 0
    found = httpx.get(f"{api}/deployments/name/annotate/{name}", trust_env=False).json()
    form = found["parameter_openapi_schema"]["definitions"]["PromptConfig"]["properties"]
    assert form["kind"]["enum"] == ["detect", "segment", "caption", "classify", "ask"]
    config = found["parameters"]["config"] | {"limits": {"requests_per_minut": 5}}
    asked = {"parameters": {"config": config}}
    answer = httpx.post(f"{api}/deployments/{found['id']}/create_flow_run", json=asked, trust_env=False)
    assert answer.status_code == 409
    assert "requests_per_minut" in answer.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--cron", "0 2 * *"), "--cron '0 2 * *'"),
        (("serve", "--cron", "0 2 * * *", "--timezone", "Mars/Olympus"), "--timezone 'Mars/Olympus': is no time zone"),
        (("serve", "--timezone", "Europe/Berlin"), "--timezone: says nothing without --cron"),
        (("serve", "--cron", "0 2 * * *"), "prefect server start"),
        (("deploy", "--pool", "here"), "prefect server start"),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments: tuple[str, ...], said: str, tmp_path: Path):
    command, *options = arguments
    done = pixscribe(command, "configs/demo.yaml", *options, PREFECT_HOME=str(tmp_path))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_server_that_is_not_there_is_named():
    url = "http://127.0.0.1:9/api"
    done = pixscribe("serve", "configs/demo.yaml", "--cron", "0 2 * * *", PREFECT_API_URL=url)
    assert (done.returncode, f"PREFECT_API_URL={url}: no Prefect server can be reached there" in done.stderr) == (
        2,
        True,
    )
    assert len(done.stderr.splitlines()) == 1
