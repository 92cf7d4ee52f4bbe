import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest

from flows.prefect_server import prefect_api
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.run import list_runs
from tests.conftest import ROOT, SAMPLES, MakeConfig, pixscribe, write_yaml

COMMANDS = ["run", "plan", "check", "schema", "runs", "show", "emulate", "diff"]
PIXSCRIBE = str(Path(sys.executable).with_name("pixscribe"))
FILES = [path for path in SAMPLES.rglob("*") if path.is_file()]


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all runs of these tests: only the first pays for making it."""
    return tmp_path_factory.mktemp("prefect")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str):
    shown = pixscribe(command, "--help")
    assert shown.returncode == 0
    assert f"Example: pixscribe {command}" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["run"], "requires an argument", id="no-config"),
        pytest.param(["rum"], 'Unknown command "rum"', id="typo"),
        pytest.param(["check", "none.yaml"], "none.yaml: cannot be read: No such file or directory", id="no-file"),
        pytest.param(["run", "configs/demo.yaml", "--limit", "x"], "limit", id="no-number"),
        pytest.param(["run", "configs/demo.yaml", "--limit", "0"], "source.limit: 0: should be greater", id="zero"),
        pytest.param(["run", "configs/demo.yaml", "--set", "limits.rpm=3"], "limits.rpm: unknown key", id="set"),
        pytest.param(["run", "configs/demo.yaml", "--set", "limits"], "should be key.path=value", id="set-what"),
        pytest.param(
            ["run", "configs/demo.yaml", "--source", "none"], "source.uri: 'none' does not exist", id="source"
        ),
        pytest.param(["show", "data"], "'data' names no run; write OUTPUT@RUN_ID", id="no-run"),
        pytest.param(["show", "data@none"], "there is no run 'none'", id="no-such-run"),
        pytest.param(["emulate", "--fault", "428=0.1"], "--fault 428: unknown; allowed: ", id="fault"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str):
    refused = pixscribe(*arguments)
    assert refused.returncode == 2
    assert sentence in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


def test_an_empty_source_is_one_sentence_and_exit_code_2(tmp_path: Path):
    refused = pixscribe("run", "configs/demo.yaml", "--source", str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"pixscribe: source.uri: '{tmp_path}' holds no image")


def test_check_says_what_would_be_done():
    checked = pixscribe("check", "configs/demo.yaml")
    assert checked.returncode == 0
    assert "data/samples/images -> data/runs" in checked.stdout


def test_schema_is_json():
    assert json.loads(pixscribe("schema").stdout)["properties"]["source"]


def test_closing_our_output_early_is_no_traceback():
    command = f"{PIXSCRIBE} schema | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_the_demo_labels_the_samples_and_its_run_can_be_shown(tmp_path: Path, prefect_home: Path):
    output, called = str(tmp_path / "out"), tmp_path / "called"
    environment = {"PREFECT_HOME": str(prefect_home), "PYTHONPATH": str(watch_sockets(tmp_path, called))}
    done = pixscribe("run", "configs/demo.yaml", "--output", output, "--json", **environment)
    assert done.returncode == 0, done.stderr
    assert {line for line in called.read_text().splitlines() if not line.startswith("127.0.0.1")} == set()
    assert task_runs_in(prefect_home) == ["label shard 00000", "label shard 00001", "publish results", "scan source"]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["totals"]["images"] == summary["totals"]["images_ok"] == len(FILES)
    artifacts = artifacts_in(prefect_home)
    assert artifacts["pixscribe-progress"] == 100
    assert f"| objects | {summary['totals']['objects']} in 52 responses |" in artifacts["pixscribe-run"]
    assert "| images | 26 ok, 0 partial, 0 failed |" in artifacts["pixscribe-run"]
    page = Path(output, "runs", summary["run"], "report.html")
    assert artifacts["pixscribe-report"] == f"[the run's page]({page.as_uri()})"
    assert summary["report"] == str(page)
    assert page.read_text().startswith("<!doctype html>")
    assert "shard 1 of 2: " in done.stderr
    assert "shard 2 of 2: " in done.stderr
    assert "duckdb -c" in done.stderr
    assert "Traceback" not in done.stderr
    listed = pixscribe("runs", output)
    assert summary["run"] in listed.stdout
    assert "complete" in listed.stdout
    shown = json.loads(pixscribe("show", f"{output}@{summary['run']}", "--json").stdout)
    assert shown == summary
    assert pq.read_table(f"{output}/images").num_rows == len(FILES)


@pytest.fixture
def prefect_server(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A standing server; the environment names it, as a user would."""
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home))
    with prefect_api(print) as server:
        assert server is not None
        server.wait_ready()
        yield server.url


def test_some_failed_rows_are_exit_code_1_and_a_server_that_is_there_is_used(tmp_path: Path, prefect_server: str):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_bytes(next(path for path in FILES if path.suffix == ".png").read_bytes())
    (source / "b.png").write_bytes(b"this is text and no picture")
    arguments = ["--source", str(source), "--output", str(tmp_path / "out"), "--json"]
    done = pixscribe("run", "configs/demo.yaml", *arguments, PREFECT_API_URL=prefect_server)
    assert done.returncode == 1, done.stderr
    assert "starting Prefect's server" not in done.stderr
    assert json.loads(done.stdout)["totals"]["errors"] == {"unsupported_type": 2}


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on_and_leaves_no_process(
    make: MakeConfig, tmp_path: Path, prefect_home: Path, signal_number: int, code: int
):
    with Emulator(EmulatorOptions(latency_s=0.5)) as emulator:
        config = make(model={"base_url": emulator.url}, limits={"concurrency": 4}, execution={"shard_size": 4})
        path = write_yaml(tmp_path / "slow.yaml", config)
        environment = {**os.environ, "PREFECT_HOME": str(prefect_home), "MARK": str(tmp_path)}
        with subprocess.Popen(
            [PIXSCRIBE, "run", str(path)], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        ) as process:
            wait_until(lambda: len(emulator.books.questions) >= 8)
            process.send_signal(signal_number)
            _, stderr = process.communicate(timeout=30)
        assert process.returncode == code, stderr
        assert "run the same command to go on" in stderr
        assert "Traceback" not in stderr
        assert processes_with(f"MARK={tmp_path}") == []
        [run] = list_runs(config.output.uri)
        assert run["status"] == "unfinished"


def test_a_killed_run_leaves_no_process_and_is_resumed(make: MakeConfig, tmp_path: Path, prefect_home: Path):
    with Emulator(EmulatorOptions(latency_s=0.2)) as emulator:
        config = make(model={"base_url": emulator.url}, limits={"concurrency": 4}, execution={"shard_size": 4})
        path = write_yaml(tmp_path / "slow.yaml", config)
        environment = {**os.environ, "PREFECT_HOME": str(prefect_home), "MARK": str(tmp_path)}
        with subprocess.Popen(
            [PIXSCRIBE, "run", str(path)], stderr=subprocess.DEVNULL, cwd=ROOT, env=environment
        ) as process:
            wait_until(lambda: len(list(Path(config.output.uri).rglob("images/*/*.parquet"))) >= 2)
            process.kill()
        wait_until(lambda: processes_with(f"MARK={tmp_path}") == [])
        [killed] = list_runs(config.output.uri)
        done = pixscribe("run", str(path), "--json", PREFECT_HOME=str(prefect_home))
        assert done.returncode == 0, done.stderr
        assert "resuming run" in done.stderr
        summary = json.loads(done.stdout)
        assert (summary["run"], summary["totals"]["images"]) == (killed["run"], len(FILES))


def watch_sockets(folder: Path, log: Path) -> Path:
    """A folder for PYTHONPATH that makes every Python process note whom it looks up and connects to."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "def note(event, arguments):\n"
        "    if event in ('socket.getaddrinfo', 'socket.connect'):\n"
        "        host = arguments[0] if event == 'socket.getaddrinfo' else arguments[1]\n"
        f"        open({str(log)!r}, 'a').write(str(host[0] if isinstance(host, tuple) else host) + '\\n')\n"
        "sys.addaudithook(note)\n"
    )
    return folder


class HangsOnTheSecondLook(BaseHTTPRequestHandler):
    """Serves each picture once."""

    served: ClassVar[set[str]] = set()
    over: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        if self.path in self.served:
            self.over.wait(120)
            return
        self.served.add(self.path)
        data = next(path for path in FILES if path.suffix == ".png").read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_run_that_is_interrupted_while_its_page_is_drawn_is_complete_without(tmp_path: Path, prefect_home: Path):
    with ThreadingHTTPServer(("127.0.0.1", 0), HangsOnTheSecondLook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = tmp_path / "list.txt"
        source.write_text("".join(f"http://127.0.0.1:{server.server_port}/{n}.png\n" for n in range(40)))
        arguments = ["--source", str(source), "--output", str(tmp_path / "out"), "--run-id", "hasty"]
        arguments += ["--set", "source.allow_private_hosts=true"]
        command = [PIXSCRIBE, "run", "configs/demo.yaml", *arguments]
        environment = {**os.environ, "PREFECT_HOME": str(prefect_home)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)
        assert process.stderr is not None
        assert any("drawing the page" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        interrupted_s = time.monotonic()
        _, said = process.communicate(timeout=60)
        took_s = time.monotonic() - interrupted_s
        HangsOnTheSecondLook.over.set()
        server.shutdown()
    assert process.returncode == 0, said
    assert json.loads((tmp_path / "out/runs/hasty/run.json").read_text())["status"] == "complete"
    # far below the time that pictures may take
    assert took_s < 15


def task_runs_in(prefect_home: Path) -> list[str]:
    """The names of all completed task runs in a Prefect database, sorted."""
    with closing(sqlite3.connect(prefect_home / "prefect.db")) as database:
        rows = database.execute("select name from task_run where state_type = 'COMPLETED' order by name")
        return [name for (name,) in rows]


def artifacts_in(prefect_home: Path) -> dict[str, Any]:
    """What the newest artifact of each key in a Prefect database shows."""
    with closing(sqlite3.connect(prefect_home / "prefect.db")) as database:
        rows = database.execute("select key, data from artifact order by created")
        return {key: json.loads(str(data)) for key, data in rows}


def wait_until(condition: Callable[[], bool], limit_s: float = 90.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def processes_with(mark: str) -> list[str]:
    """The processes that have this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_text(errors="replace").split("\0"):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
