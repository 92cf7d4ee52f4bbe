import asyncio

import pytest

from pixscribe.concurrency import Capacity, SingleFlight, each_in_window, gather_or_cancel
from pixscribe.engine import Engine


async def test_one_failure_cancels_the_others_and_waits_for_their_end():
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await gather_or_cancel([endless(), fails(), endless()])
    assert ended == ["cleaned up"] * 2


async def test_a_window_keeps_its_size_and_begins_in_order():
    now = most = 0
    begun: list[int] = []

    async def work(number: int) -> None:
        nonlocal now, most
        begun.append(number)
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    await each_in_window(work, range(7), size=2)
    assert (begun, most) == ([0, 1, 2, 3, 4, 5, 6], 2)


async def test_capacity_is_given_out_by_weight_first_come_first_served():
    capacity = Capacity(10)
    order: list[str] = []

    async def take(name: str, weight: int) -> None:
        async with capacity.hold(weight):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(take("a", 6), take("large", 8), take("small", 2))
    assert order == ["a", "large", "small"]


async def test_what_weighs_more_than_everything_gets_everything():
    capacity = Capacity(10)
    async with asyncio.timeout(5), capacity.hold(99):
        waiting = asyncio.ensure_future(capacity.acquire(1))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting == 1


async def test_who_stops_waiting_gives_up_the_place():
    capacity = Capacity(1)
    await capacity.acquire(1)
    gone = asyncio.ensure_future(capacity.acquire(1))
    next_one = asyncio.ensure_future(capacity.acquire(1))
    await asyncio.sleep(0)
    gone.cancel()
    capacity.release(1)
    assert await asyncio.wait_for(next_one, 5) == 1


async def test_what_is_being_made_is_made_once():
    flights = SingleFlight[str]()
    calls = 0

    async def make() -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return "made"

    results = await asyncio.gather(*(flights.once("key", make) for _ in range(3)))
    assert (calls, results) == (1, [("made", True), ("made", False), ("made", False)])
    flights.forget("key")
    assert await flights.once("key", make) == ("made", True)


async def test_the_engine_runs_on_a_loop_of_its_own_and_cancelling_reaches_it():
    engine = Engine()
    cancelled: list[bool] = []

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(asyncio.get_running_loop() is not here)
            raise

    here = asyncio.get_running_loop()
    waiting = asyncio.ensure_future(engine.run(wait_for_ever()))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cancelled == [True]


async def test_what_is_held_may_be_released_early_and_only_once():
    capacity = Capacity(10)
    async with asyncio.timeout(5), capacity.hold(10) as held:
        held.release()
        assert await capacity.acquire(10) == 10
    waiting = asyncio.ensure_future(capacity.acquire(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_parts_of_several_capacities_are_released_together():
    bytes_held, pixels = Capacity(10), Capacity(10)
    async with asyncio.timeout(5), bytes_held.hold(4) as held:
        await held.take(pixels, 10)
        held.correct(pixels, 3)
        assert await pixels.acquire(7) == 7
    assert (await bytes_held.acquire(10), await pixels.acquire(3)) == (10, 3)


async def test_what_turns_out_to_weigh_more_is_waited_for_by_the_next():
    capacity = Capacity(10)
    async with capacity.hold(4) as held:
        held.correct(capacity, 12)
        waiting = asyncio.ensure_future(capacity.acquire(1))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting == 1
    assert await capacity.acquire(9) == 9
