"""Every start of a real server costs 5 to 25 s, so the stories share one PREFECT_HOME and as few runs as they can."""

import fcntl
import os
import select
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.prefect_server import _reread_settings, prefect_api
from pixscribe.errors import ConfigError, RunError

ROOT = Path(__file__).parents[1]

RUN_FIFTY_TASKS = """
import asyncio, os, signal, sys, uuid
from functools import partial
from flows.prefect_server import prefect_api

with prefect_api(partial(print, flush=True)) as server:
    from prefect import flow, get_run_logger, task
    from prefect.runtime import flow_run

    @task
    async def nap(number: int) -> None:
        if number == 7:
            get_run_logger().warning("seven was slow")

    @flow
    async def fifty() -> str:
        await asyncio.gather(*(nap(number) for number in range(50)))
        return flow_run.id

    server.wait_ready()
    flow_run_id = asyncio.run(fifty())
    if "without server" in sys.argv:
        os.kill(server.pid, signal.SIGKILL)
    server.drain(uuid.UUID(flow_run_id), 50)
print(flow_run_id)
"""

WAIT_FOR_THE_END = """
import signal, sys
from flows.prefect_server import prefect_api

with prefect_api(lambda line: None) as server:
    if sys.argv[1] == "ready":
        server.wait_ready()
    print(server.pid, flush=True)
    signal.pause()
"""


@dataclass(frozen=True)
class Run:
    returncode: int
    said: list[str]
    flow_run_id: str
    stderr: str


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def first_run(home: Path) -> Run:
    return finish(start_fifty_tasks(home))


@pytest.fixture
def own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`PREFECT_HOME` of this process, in which nothing names a Prefect API."""
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    _reread_settings()  # Prefect may have been imported, and remember the API that a test before this one named
    return home


def test_every_task_run_is_recorded(home: Path, first_run: Run) -> None:
    assert completed_task_runs(home, first_run.flow_run_id) == 50


def test_the_first_start_says_what_it_waits_for_and_nothing_else_is_written(first_run: Run) -> None:
    assert first_run.said == ["starting Prefect's server (the first start creates its database, about 25 s)"]
    assert first_run.stderr == ""


def test_what_a_task_logs_is_kept(home: Path, first_run: Run) -> None:
    assert ask(home, "select message from log where flow_run_id = ?", first_run.flow_run_id) == [("seven was slow",)]


def test_a_finished_run_leaves_no_process_and_no_log(home: Path, first_run: Run) -> None:
    assert first_run.returncode == 0
    assert processes_with(home) == []
    assert [path.name for path in (home / "pixscribe").iterdir()] == ["start.lock"]


def test_two_runs_at_once_share_the_database(home: Path, first_run: Run) -> None:
    runs = [start_fifty_tasks(home), start_fifty_tasks(home)]
    assert [completed_task_runs(home, finish(run).flow_run_id) for run in runs] == [50, 50]


def test_the_end_of_a_run_does_not_wait_for_a_dead_server(home: Path, first_run: Run) -> None:
    run = finish(start_fifty_tasks(home, "without server"))
    assert run.returncode == 0
    assert "of 50 task runs; the tables are not affected" in run.said[-1]


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="looks at processes as Linux shows them")
@pytest.mark.parametrize("stage", ["starting", "ready"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_a_parent_that_is_killed(
    home: Path, first_run: Run, stage: str, end: signal.Signals
) -> None:
    parent = start_python(WAIT_FOR_THE_END, home, stage)
    assert parent.stdout is not None
    server = os.pidfd_open(int(parent.stdout.readline()))
    parent.send_signal(end)
    parent.communicate()
    ended, _, _ = select.select([server], [], [], 20)
    os.close(server)
    assert ended
    assert processes_with(home) == []


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(own_home: Path) -> None:
    with prefect_api(print) as server:
        assert server is not None
        assert os.getsid(server.pid) != os.getsid(0)


def test_an_exception_stops_the_server(own_home: Path) -> None:
    with pytest.raises(ZeroDivisionError), prefect_api(print):
        raise ZeroDivisionError
    assert processes_with(own_home) == []


def test_the_named_api_is_used_and_nothing_started(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with prefect_api(print) as server:
        assert server is None
        assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:9/api"
        assert processes_with(own_home) == []


def test_the_api_of_the_active_profile_counts_as_named(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text(
        'active = "office"\n[profiles.office]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    )
    script = "from flows.prefect_server import prefect_api\nwith prefect_api(print) as server: print(server)"
    assert start_python(script, tmp_path).communicate()[0] == "None\n"


def test_prefect_sees_our_api_though_it_was_imported_before(own_home: Path) -> None:
    from prefect.settings import get_current_settings

    with prefect_api(print) as server:
        assert server is not None
        assert get_current_settings().api.url == server.url
    assert get_current_settings().api.url is None


def test_the_environment_is_put_back(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "intranet")
    before = dict(os.environ)
    with prefect_api(print):
        assert os.environ["DO_NOT_TRACK"] == "1"
        assert os.environ["no_proxy"] == "intranet,127.0.0.1"
    assert dict(os.environ) == before


def test_a_log_level_that_the_user_chose_stays(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    with prefect_api(print):
        assert os.environ["PREFECT_LOGGING_LEVEL"] == "DEBUG"
        assert "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL" not in os.environ


def test_a_home_that_cannot_be_written_is_named(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ConfigError, match=r"PREFECT_HOME \(.*/file/home\) must be a folder that can be written"):
        prefect_api(print).__enter__()


def test_a_server_that_cannot_start_quotes_its_log(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "paper://drawer")
    with prefect_api(print) as server:
        assert server is not None
        with pytest.raises(RunError, match=r"ended before it was ready; the end of .*\.log reads: .*paper"):
            server.wait_ready()


def test_a_server_lets_another_one_finish_its_start_and_is_given_up_in_the_end(own_home: Path, first_run: Run) -> None:
    with (own_home / "pixscribe" / "start.lock").open("w") as lock, prefect_api(print) as server:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert server is not None
        with pytest.raises(RunError, match="was not ready after 9 s"):
            server.wait_ready(limit_s=9)


def start_fifty_tasks(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return start_python(RUN_FIFTY_TASKS, home, *arguments)


def start_python(script: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**environment, "PREFECT_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Run:
    stdout, stderr = process.communicate(timeout=120)
    assert stdout, stderr
    *said, flow_run_id = stdout.splitlines()
    return Run(process.returncode, said, flow_run_id, stderr)


def completed_task_runs(home: Path, flow_run_id: str) -> int:
    return len(ask(home, "select 1 from task_run where flow_run_id = ? and state_type = 'COMPLETED'", flow_run_id))


def ask(home: Path, question: str, flow_run_id: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(home / "prefect.db")) as connection:
        return connection.execute(question, [flow_run_id]).fetchall()


def processes_with(home: Path) -> list[int]:
    """The processes whose environment names this PREFECT_HOME."""
    marker = f"PREFECT_HOME={home}\0".encode()
    return [pid for pid in all_pids() if marker in environment_of(pid)]


def all_pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
