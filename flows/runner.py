"""Runs the flow in this process, under a Prefect server, with progress, until it ends or is told to stop.

The flow runs on a thread of its own. The main thread keeps the signals (Prefect would otherwise take SIGTERM for itself
and kill the process with it) and draws the progress.
"""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from uuid import UUID

from flows.console import say
from flows.live import ProgressDisplay, jobs_text
from flows.memory import keep_memory_together
from flows.prefect_server import prefect_api
from pixscribe.config import ExecutionConfig, RunConfig
from pixscribe.errors import ConfigError, RunError
from pixscribe.run import RunSummary, Session, check_before, open_sessions


class Interrupted(RunError):
    """Ctrl-C or SIGTERM ended the run before it was complete."""

    def __init__(self, signal_number: int, *, new: bool) -> None:
        command = "the same command without --new" if new else "the same command"
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name}; finished shards are kept, run {command} to go on"
        )
        self.exit_code = 128 + signal_number


def run_here(config: RunConfig, *, run_id: str | None, new: bool) -> RunSummary:
    """Annotate, and return what came of it. Raises `RunError`, `Interrupted` among them."""
    check_before(config, run_id)
    with prefect_api(say) as server:
        if server:
            _refuse_address(config.execution)
        job = FlowThread(config, run_id, new)
        if server:
            server.wait_ready()
        with ProgressDisplay() as display, _signals_go_to(job):
            _keep_imports_out_of_garbage_collection()
            keep_memory_together()
            job.start()
            while not job.has_ended(within_s=0.2):
                display.update()
        if server and _flow_runs and display.session:
            server.drain(_flow_runs[-1], _task_runs(display.session))
        if display.session and display.session.tally.batch_jobs:
            say(f"{jobs_text(display.session.tally)} go on without us; the same command fetches the answers")
        return job.result(display.session)


def _refuse_address(execution: ExecutionConfig) -> None:
    """A server of our own listens on this machine only, and ends with the run."""
    if execution.address is not None:
        raise ConfigError(
            f"execution.address: {execution.address!r}: its workers need a Prefect server that they can reach; "
            "start one with `prefect server start --host 0.0.0.0` and set PREFECT_API_URL"
        )


class FlowThread:
    """The flow `annotate` on a thread and an event loop of its own."""

    def __init__(self, config: RunConfig, run_id: str | None, new: bool) -> None:
        # takes seconds, in which a server of ours can start
        from flows.annotate import annotate

        self.signal_number: int | None = None
        self._flow = annotate.with_options(on_running=[_remember])
        self._arguments = (config, run_id, new)
        self._thread = threading.Thread(target=self._run, name="pixscribe-flow")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._summary: RunSummary | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def has_ended(self, *, within_s: float) -> bool:
        """Wait so long at most."""
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def stop(self, signal_number: int) -> None:
        """Cancel the flow; the second call ends the process at once."""
        if self.signal_number is not None:
            os._exit(128 + signal_number)
        self.signal_number = signal_number
        say("stopping; once more to stop now")
        for session in open_sessions():
            session.labeller.send_no_more()  # at once: Prefect takes its time to cancel
        if self._loop and self._task:
            self._loop.call_soon_threadsafe(self._task.cancel)

    def result(self, session: Session | None) -> RunSummary:
        """The summary, or the error that ended the flow."""
        if self._summary:
            return self._summary
        if session and session.summary:
            say(f"the tables are complete, but Prefect could not record it ({type(self._error).__name__})")
            return session.summary
        if self.signal_number is not None:
            raise Interrupted(self.signal_number, new=self._arguments[2])
        assert self._error is not None
        raise self._error

    def _run(self) -> None:
        try:
            self._summary = asyncio.run(self._annotate())
        except BaseException as error:
            self._error = error

    async def _annotate(self) -> RunSummary:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.signal_number is not None:
            raise asyncio.CancelledError
        summary: RunSummary = await self._flow(*self._arguments)
        return summary


_flow_runs: list[UUID] = []


def _remember(flow: object, flow_run: Any, state: object) -> None:
    # a plain function: it is sent to the workers with the flow
    _flow_runs.append(flow_run.id)


@contextmanager
def _signals_go_to(job: FlowThread) -> Iterator[None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        job.stop(signal_number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep_imports_out_of_garbage_collection() -> None:
    """Prefect leaves half a million objects that never go away; walking them took a fifth of the engine's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _task_runs(session: Session) -> int:
    """How many task runs Prefect should know of: scan and publish, and those of every shard that was written."""
    return 2 + session.tally.shards_done
