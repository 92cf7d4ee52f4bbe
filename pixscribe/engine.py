"""One event loop per process, on a thread of its own, on which everything that touches the network happens.

Prefect gives each submitted async task a loop of its own, so connections, limits and caches could not be shared between
tasks. They live here instead, and a task awaits them from whatever loop it runs on.
"""

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


class Engine:
    """A running event loop that other threads hand coroutines to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pixscribe-engine", daemon=True)
        self._thread.start()

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run on the engine's loop and await the result here; cancelling here cancels there, and waits for its end."""
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_signal_end(coroutine, ended), self._loop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # what was cancelled must not write or ask any more when the caller goes on
            await asyncio.to_thread(ended.wait, 5)
            raise


async def _signal_end(coroutine: Coroutine[Any, Any, T], ended: threading.Event) -> T:
    try:
        return await coroutine
    finally:
        ended.set()


_starting = threading.Lock()


def engine() -> Engine:
    """The process's one engine, started when first asked for."""
    with _starting:  # the two threads of a Dask worker may ask at the same time, and `cache` would start two
        return _engine()


@cache
def _engine() -> Engine:
    return Engine()
