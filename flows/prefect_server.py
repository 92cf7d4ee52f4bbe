"""A Prefect server of our own, for runs that nobody gave one.

Prefect starts an embedded server by itself, but that one comes up later, loses most task runs that end shortly before
the process does, and stays behind when the process is killed. Ours is a child that starts while the parent still
imports, is asked whether it has recorded everything, and ends with its parent however that ends.

Nothing here imports Prefect before it must: the environment has to be complete by then.
"""

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING
from uuid import UUID

from pixscribe.errors import ConfigError, RunError

if TYPE_CHECKING:
    from prefect.events import Event

START_LIMIT_S = 120.0
DRAIN_LIMIT_S = 30.0
FLUSH_LIMIT_S = 5.0
STOP_LIMIT_S = 10.0
LOG_LIFE_S = 7 * 24 * 3600.0

SERVER_SETTINGS = {
    # each of the two silences another part of Prefect's telemetry
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    # one transaction for many task runs instead of one each: 3-7 ms of CPU per task run instead of 26-44
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    # whole seconds: Prefect cuts 0.5 to 0, and then never sleeps
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_EVENTS_STREAM_OUT_ENABLED": "true",
    # the database may hold deployments; a server that lives for one run must neither plan nor judge their runs
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
}

QUIET_CLIENT = {
    # Warnings and errors of flows and tasks go to the API, where they cost nothing worth naming and are found beside
    # the run. Not to the terminal: what went wrong is told there once, by us.
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    # has a handler of its own, which prints every event that a dead server no longer takes
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
}

ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


@contextmanager
def prefect_api(say: Callable[[str], None]) -> Iterator["OwnServer | None"]:
    """Give this process a Prefect API: the one that PREFECT_API_URL names (yields None), or a child of our own.

    PREFECT_API_URL may stand in the environment or in the active Prefect profile. The child is starting when the body
    begins: import what the run needs, then call `wait_ready`. Blocks, so use it outside any event loop. Raises
    `ConfigError` when PREFECT_HOME cannot be written.
    """
    if configured_api_url():
        with _environment(_client_settings()):
            yield None
        return
    server = _start_server(say)
    try:
        with _environment({**_client_settings(), **_proxy_exemption(), "PREFECT_API_URL": server.url}):
            try:
                yield server
            finally:
                server.flush()
    finally:
        server.stop()


class OwnServer:
    """A Prefect server that belongs to this process. `url` ends in /api, as PREFECT_API_URL does."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, log: Path, is_first_start: bool, say: Callable[[str], None]
    ) -> None:
        self.url = f"http://127.0.0.1:{port}/api"
        self.pid = process.pid
        self._process = process
        self._port = port
        self._log = log
        self._is_first_start = is_first_start
        self._say = say
        self._was_ready = False

    def wait_ready(self, limit_s: float = START_LIMIT_S) -> None:
        """Block until the server answers. Raises `RunError`, quoting the server's log, if it dies or `limit_s` pass."""
        deadline_s = time.monotonic() + limit_s
        if not self._is_healthy():
            self._say(_what_takes_long(self._is_first_start))
        while not self._is_healthy():
            if self._process.poll() is not None:
                raise RunError(f"Prefect's server ended before it was ready; {self._last_words()}")
            if time.monotonic() > deadline_s:
                raise RunError(f"Prefect's server was not ready after {limit_s:.0f} s; {self._last_words()}")
        self._was_ready = True

    def drain(self, flow_run_id: UUID, task_run_count: int, limit_s: float = DRAIN_LIMIT_S) -> None:
        """Wait until `task_run_count` task runs of this flow run are recorded as ended.

        Task runs reach the database as events, up to seconds after the flow has returned. Gives up after `limit_s`, and
        says so: what is lost then is a line in Prefect's history, never a result.
        """
        recorded = 0
        deadline_s = time.monotonic() + limit_s
        while self._process.poll() is None and time.monotonic() < deadline_s:
            recorded = _ended_task_runs(flow_run_id)
            if recorded >= task_run_count:
                return
            time.sleep(0.1)
        self._say(f"Prefect's history holds {recorded} of {task_run_count} task runs; the tables are not affected")

    def flush(self) -> None:
        """Send the events and logs that Prefect's threads still hold: after `stop` they are lost, and loudly.

        If the server is dead, events are dropped: the process would try each of them for 1.5 s before it could end.
        """
        if "prefect.flow_engine" not in sys.modules:
            return
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        if self._process.poll() is not None:
            for worker in tuple(EventsWorker._instances.values()):  # type: ignore[misc]
                _clear(worker._queue)
        EventsWorker.drain_all(timeout=FLUSH_LIMIT_S)
        APILogWorker.drain_all(timeout=FLUSH_LIMIT_S)

    def stop(self) -> None:
        """End the server and wait until it is gone. Its log stays only if it never became ready and says why."""
        if not self._was_ready:
            self._process.kill()  # it holds no record of ours, and would finish a first start before it listens
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._was_ready or self._log.stat().st_size == 0:
            self._log.unlink(missing_ok=True)

    def _is_healthy(self) -> bool:
        # The socket has been listening since before the child was born: the request waits there and is answered the
        # moment the server is up.
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1.0)
        try:
            connection.request("GET", "/api/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"the end of {self._log} reads: {' | '.join(lines[-3:]) or '(nothing)'}"


def _start_server(say: Callable[[str], None]) -> OwnServer:
    home = _writable_home()
    is_first_start = _is_first_start(home)
    with (
        tempfile.NamedTemporaryFile(prefix="server-", suffix=".log", dir=home / "pixscribe", delete=False) as log,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        process = _spawn(listener.fileno(), log.fileno(), home / "pixscribe" / "start.lock")
        return OwnServer(process, listener.getsockname()[1], Path(log.name), is_first_start, say)


def _spawn(listening_fd: int, log_fd: int, lock_file: Path) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("server_child.py")
    return subprocess.Popen(
        [sys.executable, "-P", str(script), str(listening_fd), str(os.getpid()), str(lock_file)],
        env={**{name: value for name, value in os.environ.items() if name != "GEMINI_API_KEY"}, **SERVER_SETTINGS},
        stdin=subprocess.PIPE,
        stdout=log_fd,
        stderr=log_fd,
        pass_fds=[listening_fd],  # an inherited socket cannot be taken by someone else in between
        start_new_session=True,  # Ctrl-C reaches the parent only, which still has to drain
    )


def _writable_home() -> Path:
    home = _prefect_home()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)  # as Prefect makes it: the database holds its secrets
        (home / "pixscribe").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            _forget_old_logs(home / "pixscribe")
    except OSError as cause:
        raise ConfigError(f"PREFECT_HOME ({home}) must be a folder that can be written: {cause}") from cause
    return home


def _prefect_home() -> Path:
    try:
        return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    except RuntimeError as cause:
        raise ConfigError("there is no home folder: set PREFECT_HOME to a folder that can be written") from cause


def _forget_old_logs(folder: Path) -> None:
    # Only a run that was killed, or never came up, leaves one.
    for log in folder.glob("server-*.log"):
        if time.time() - log.stat().st_mtime > LOG_LIFE_S:
            log.unlink(missing_ok=True)


def _is_first_start(home: Path) -> bool:
    names = ("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL")
    return not (home / "prefect.db").exists() and not any(os.environ.get(name) for name in names)


def _what_takes_long(is_first_start: bool) -> str:
    reason = " (the first start creates its database, about 25 s)" if is_first_start else ""
    return f"starting Prefect's server{reason}"


def _ended_task_runs(flow_run_id: UUID) -> int:
    import httpx
    from prefect.client.orchestration import get_client

    question = {
        "flow_runs": {"id": {"any_": [str(flow_run_id)]}},
        "task_runs": {"state": {"type": {"any_": ENDED}}},
    }
    try:
        with get_client(sync_client=True) as client:
            return int(client.request("POST", "/task_runs/count", json=question).json())
    except httpx.HTTPError:  # a busy database or a server just dead: the next question, or the limit, will tell
        return 0


def _clear(waiting: "Queue[Event | None]") -> None:
    with waiting.mutex:
        waiting.queue.clear()


@contextmanager
def _environment(updates: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in updates}
    try:
        os.environ.update(updates)
        _reread_settings()
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        _reread_settings()


def _reread_settings() -> None:
    # Prefect reads the environment when it is imported. Its `temporary_settings` would reach only the threads that
    # inherit this context; the global settings reach all of them.
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


def _client_settings() -> dict[str, str]:
    is_user_choice = bool(os.environ.get("PREFECT_LOGGING_LEVEL"))
    return {"DO_NOT_TRACK": "1"} if is_user_choice else {"DO_NOT_TRACK": "1", **QUIET_CLIENT}


def _proxy_exemption() -> dict[str, str]:
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if hosts.strip() == "*":
        return {}
    hosts = f"{hosts},127.0.0.1" if hosts else "127.0.0.1"
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def configured_api_url() -> str | None:
    """What PREFECT_API_URL says in the environment or in the active Prefect profile."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    if "prefect.context" not in sys.modules:
        return _profile_api_url()
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def _profile_api_url() -> str | None:
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or _prefect_home() / "profiles.toml")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no profiles: Prefect too goes on without, and says so if they are unreadable
        return None
    active = os.environ.get("PREFECT_PROFILE") or settings.get("active")
    url = settings.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return str(url) if url else None
