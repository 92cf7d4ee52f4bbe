"""Where shards are labelled: in this process, or by the workers of a Dask or Ray cluster.

A cluster gets the same task as this process, by Prefect's task runner for it, a few shards for each worker at a time.
What goes over the wire is the name of the run, the name of the shard, and what it came to.
"""

import asyncio
import logging
import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, Protocol
from urllib.parse import urlsplit

from prefect.settings import get_current_settings

from pixscribe.concurrency import each_in_window
from pixscribe.config import ExecutionConfig
from pixscribe.errors import ConfigError, RunError
from pixscribe.progress import Totals
from pixscribe.run import Run, session_of
from pixscribe.source import Shard, Shards
from pixscribe.worker import stop_working
from tasks.label import label_shard
from tasks.surroundings import share_limits

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 10.0
"""How long workers may take to write down what they have; it is about twice of what they wait for answers."""
CONNECT_LIMIT_S = 10.0
WORKERS_LIMIT_S = 60.0
"""How long a cluster may be without any worker at the start."""
RAY_TRIES = 20
"""How often Ray may give a shard to another worker. Dask does three times, as it comes."""
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # at the next version it becomes the default, of which every start warns
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# else it listens on all interfaces, and asks nobody for a password
RAY_ON_THIS_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
RAY_STORE_BYTES = 100 * 1024 * 1024
"""Ray's shared memory; names and numbers are all that goes through it."""


async def label_shards(run: Run, shards: Shards) -> None:
    """Label all of them where the config says. Raises `RunError`."""
    async with _open_engine(run) as engine:
        await each_in_window(engine.label, shards, size=engine.window)


class Engine(Protocol):
    """What labels shards."""

    @property
    def window(self) -> int:
        """How many at a time."""

    async def label(self, shard: Shard) -> None:
        """Label one. Raises `RunError`."""


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """This process."""

    run: Run
    window: int

    async def label(self, shard: Shard) -> None:
        """Label one shard on this process's engine."""
        await label_shard(self.run, shard)


@dataclass(slots=True)
class ClusterEngine(ABC):
    """The workers of a cluster, which are reached by `runner`, one of Prefect's task runners."""

    run: Run
    runner: Any
    window: int
    given_up: list[Any] = field(default_factory=list)
    """Futures that nobody waits for any more."""

    async def label(self, shard: Shard) -> None:
        """Have one shard labelled by a worker, and count what came of it."""
        future = self.submit({"run": self.run, "shard": shard})
        try:
            totals = await _result_of(future)
        except asyncio.CancelledError:
            self.given_up.append(future)
            raise
        except RunError:
            raise
        except Exception as error:
            name = type(error).__name__
            raise RunError(f"shard {shard.name} could not be labelled by any worker: {name}: {error}") from error
        session_of(self.run).tally.count_remote_shard(totals)

    @abstractmethod
    def submit(self, parameters: dict[str, Any]) -> Any:
        """Begin one task run, and return its future."""

    @abstractmethod
    def stop(self) -> None:
        """Have the workers write down what they have, and wait for that. Blocks."""


class DaskEngine(ClusterEngine):
    """Workers that a Dask scheduler knows. It gives the shards of a lost one to others by itself."""

    def submit(self, parameters: dict[str, Any]) -> Any:
        return self.runner.submit(label_shard, parameters)

    def stop(self) -> None:
        assert self.run.lead is not None
        self.runner.client.run(stop_working, self.run.lead.token, on_error="ignore")


class RayEngine(ClusterEngine):
    """Workers of a Ray cluster: one process for each core, each of which labels one shard at a time."""

    def submit(self, parameters: dict[str, Any]) -> Any:
        from prefect_ray.context import remote_options

        with remote_options(max_retries=RAY_TRIES, retry_exceptions=False):
            return self.runner.submit(label_shard, parameters)

    def stop(self) -> None:
        import ray

        tasks = [future.wrapped_future for future in self.given_up]
        for task in tasks:
            ray.cancel(task)
        if tasks:
            ray.wait(tasks, num_returns=len(tasks), timeout=STOP_LIMIT_S)


@asynccontextmanager
async def _open_engine(run: Run) -> AsyncIterator[Engine]:
    session = session_of(run)
    if run.lead is None:
        yield LocalEngine(run, session.labeller.shards_in_flight)
        return
    if get_current_settings().api.url is None:
        raise ConfigError(
            f"execution.engine: {session.config.execution.engine} needs a Prefect server for its workers: "
            "set PREFECT_API_URL, or use `pixscribe run`"
        )
    async with share_limits(run, session.config, session.past), _open_cluster(run, session.config.execution) as engine:
        yield engine


@asynccontextmanager
async def _open_cluster(run: Run, execution: ExecutionConfig) -> AsyncIterator[ClusterEngine]:
    """Start a cluster, or connect to one, which blocks for seconds, and so happens on another thread."""
    start = _start_dask if execution.engine == "dask" else _start_ray
    with ExitStack() as stack:
        starting = asyncio.ensure_future(asyncio.to_thread(_start, partial(start, run, execution, stack), execution))
        try:
            engine = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])  # only what has come up can be ended
            raise
        try:
            yield engine
        finally:
            await _stop(engine)
            await asyncio.to_thread(stack.close)


def _start(start: Callable[[], ClusterEngine], execution: ExecutionConfig) -> ClusterEngine:
    """Raises `RunError` for whatever goes wrong in other people's clusters."""
    try:
        _require_listener(execution.address)
        with _no_interrupts():
            return start()
    except Exception as error:
        whose = "a cluster on this machine" if execution.address is None else f"execution.address: {execution.address}"
        raise RunError(f"{whose}: no workers: {type(error).__name__}: {error}".replace("\n", " ")) from error


def _require_listener(address: str | None) -> None:
    """Ray would wait for minutes, and could not be interrupted, for a head that is not there. Raises OSError."""
    parts = urlsplit(address if address and "://" in address else f"//{address or ''}")
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_LIMIT_S).close()


async def _stop(engine: ClusterEngine) -> None:
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            await asyncio.to_thread(engine.stop)
    except Exception as error:
        # they find out by themselves, from the lock, and what is journaled is journaled
        logger.warning("the workers could not be told to stop: %s: %s", type(error).__name__, error)


def _start_dask(run: Run, execution: ExecutionConfig, stack: ExitStack) -> DaskEngine:
    from prefect_dask.task_runners import DaskTaskRunner

    local = {
        "n_workers": execution.workers or os.cpu_count(),
        "threads_per_worker": execution.shards_in_flight,
        "processes": True,
        "dashboard_address": None,
        "silence_logs": logging.CRITICAL,
    }
    here = {"cluster_kwargs": local} if execution.address is None else {"address": execution.address}
    runner = stack.enter_context(DaskTaskRunner(**here))
    runner.client.wait_for_workers(1, timeout=WORKERS_LIMIT_S)
    workers = len(runner.client.scheduler_info(n_workers=-1)["workers"])
    return DaskEngine(run, runner, _window(workers, execution))


def _start_ray(run: Run, execution: ExecutionConfig, stack: ExitStack) -> RayEngine:
    os.environ.update(RAY_SETTINGS if execution.address else RAY_SETTINGS | RAY_ON_THIS_MACHINE)
    import ray
    from prefect_ray.task_runners import RayTaskRunner

    local = {
        "num_cpus": execution.workers or os.cpu_count(),
        "include_dashboard": False,
        "object_store_memory": RAY_STORE_BYTES,
    }
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    init = quiet | (local if execution.address is None else {})
    runner = stack.enter_context(RayTaskRunner(address=execution.address, init_kwargs=init))
    cores = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    return RayEngine(run, runner, _window(int(cores), execution))


def _window(workers: int, execution: ExecutionConfig) -> int:
    return max(1, workers) * max(2, execution.shards_in_flight)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; those started here leave it to us, and write down what they have."""
    resource_tracker.ensure_running()  # it would let interrupts in again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _result_of(future: Any) -> Totals:
    """What a task run came to, or the error that it ended with. No thread waits meanwhile."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: object) -> None:
        with suppress(RuntimeError):  # the loop may be closed by then
            loop.call_soon_threadsafe(ended.set)

    future.add_done_callback(wake)
    await ended.wait()
    totals: Totals = await asyncio.to_thread(future.result)
    return totals
