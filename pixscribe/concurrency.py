"""Four ways of doing many things at once without doing too many."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def gather_or_cancel(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all; when one raises, cancel the others, wait for their end, and raise that first error."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def each_in_window(function: Callable[[T], Awaitable[object]], items: Iterable[T], *, size: int) -> None:
    """Await `function(item)` for each item, `size` at a time, in their order; errors as in `gather_or_cancel`."""
    remaining = iter(items)

    async def work() -> None:
        for item in remaining:
            await function(item)

    await gather_or_cancel(work() for _ in range(size))


class SingleFlight(Generic[T]):
    """Remembers by key what was made or is being made, so that nothing is made twice; a failure is remembered too."""

    def __init__(self) -> None:
        self._made: dict[str, asyncio.Future[T]] = {}

    async def once(self, key: str, make: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The value of `key`, and whether this call made it."""
        if key in self._made:
            return await asyncio.shield(self._made[key]), False
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._made[key] = future
        try:
            value = await make()
        except Exception as error:
            future.set_exception(error)
            future.exception()  # marks it as seen: often there is nobody else to see it
            raise
        except asyncio.CancelledError:
            future.cancel()
            raise
        future.set_result(value)
        return value, True

    def forget(self, key: str) -> None:
        """Let the next call make it anew."""
        self._made.pop(key, None)


class Capacity:
    """A semaphore with weights, first come, first served: bytes or pixels that may be held at a time.

    Whatever weighs more than everything gets everything, alone.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, weight: int) -> int:
        """Wait for `weight`; returns what is to be given back to `release`."""
        weight = min(weight, self._total)
        if self._waiting or weight > self._free:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((weight, turn))
            try:
                await turn
            except asyncio.CancelledError:
                self._leave(weight, turn)
                raise
        else:
            self._free -= weight
        return weight

    def release(self, weight: int) -> None:
        """Give back what `acquire` returned."""
        self._free += weight
        self._admit()

    @asynccontextmanager
    async def hold(self, weight: int) -> AsyncIterator["Held"]:
        """`acquire` and `release` around a block, in which it may be released early."""
        with Held() as held:
            await held.take(self, weight)
            yield held

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            weight, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free -= weight
                turn.set_result(None)

    def _leave(self, weight: int, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self.release(weight)  # it was admitted in the moment of its cancellation
        else:
            with suppress(ValueError):
                self._waiting.remove((weight, turn))
            self._admit()


class Held:
    """Parts of capacities that are released together, at the end of a block or before."""

    def __init__(self) -> None:
        self._parts: dict[Capacity, int] = {}

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def take(self, capacity: Capacity, weight: int) -> None:
        """Wait for a part of `capacity`, once for each. Take them in one order everywhere."""
        self._parts[capacity] = await capacity.acquire(weight)

    def correct(self, capacity: Capacity, weight: int) -> None:
        """Set the part of a capacity to what it turned out to be; when that is more, others wait the longer for it."""
        difference, self._parts[capacity] = self._parts[capacity] - weight, weight
        capacity.release(difference)

    def release(self) -> None:
        """Give everything back; the second time does nothing."""
        while self._parts:
            capacity, weight = self._parts.popitem()
            capacity.release(weight)
