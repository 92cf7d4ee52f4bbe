import asyncio

import pytest

from pixscribe.breaker import Breaker
from pixscribe.errors import AnswerError, Blocked, OutageError, ServerUnavailable
from tests.clock import Time

DOWN = ServerUnavailable("503", status=503)


class Service:
    """Answers or fails as told, and counts its calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls = 0

    async def ask(self) -> str:
        self.calls += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return "answer"


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def breaker(time: Time) -> Breaker:
    return Breaker("the model", clock=lambda: time.now_s, sleep=time.sleep, jitter=lambda: 1.0)


async def fail(breaker: Breaker, service: Service, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ServerUnavailable):
            await breaker.call(service.ask)


async def test_a_passing_failure_is_left_to_the_caller(breaker: Breaker):
    await fail(breaker, Service(DOWN), 9)
    assert not breaker.is_open
    assert await breaker.call(Service().ask) == "answer"
    await fail(breaker, Service(DOWN), 9)
    assert not breaker.is_open


async def test_during_an_outage_one_at_a_time_is_sent_and_the_first_answer_frees_all(breaker: Breaker, time: Time):
    service = Service()
    await breaker.call(service.ask)
    service.error, service.calls = DOWN, 0
    waiting = [asyncio.ensure_future(breaker.call(service.ask)) for _ in range(100)]
    for _ in range(200):
        await asyncio.sleep(0)
    in_a_row, at_s = service.calls - 100, time.now_s - 1000
    # 100 were on the wire when it began; after that there were probes after 1, 2, 4 s and so on
    assert 0 < in_a_row <= 10 + at_s / 60
    service.error = None
    assert set(await asyncio.gather(*waiting[10:], return_exceptions=True)) == {"answer"}
    assert not breaker.is_open


async def test_an_outage_uses_up_nobodys_attempts(breaker: Breaker, time: Time):
    service = Service()
    await breaker.call(service.ask)
    service.error = DOWN
    with pytest.raises(ServerUnavailable):
        await asyncio.gather(*(breaker.call(service.ask) for _ in range(10)))
    assert breaker.is_open

    async def recover() -> None:
        while time.now_s < 1600:
            await asyncio.sleep(0)
        service.error = None

    answer, _ = await asyncio.gather(breaker.call(service.ask), recover())
    assert answer == "answer"
    assert time.now_s >= 1600


async def test_a_refusal_is_an_answer_too(breaker: Breaker):
    service = Service(DOWN)
    await fail(breaker, service, 9)
    for error in (Blocked("safety"), AnswerError("cut")):
        service.error = error
        with pytest.raises(type(error)):
            await breaker.call(service.ask)
        service.error = DOWN
        await fail(breaker, service, 9)
    assert not breaker.is_open


async def test_a_500_may_come_from_the_image_and_opens_nothing(breaker: Breaker):
    await fail(breaker, Service(ServerUnavailable("500", status=500)), 30)
    assert not breaker.is_open


async def test_a_service_that_has_never_answered_ends_the_run_soon(breaker: Breaker, time: Time):
    service = Service(ServerUnavailable("refused", code="network_error"))
    await fail(breaker, service, 9)
    with pytest.raises(OutageError, match="the model has not answered once; the last try ended with: refused"):
        await breaker.call(service.ask)
    assert service.calls == 10 + breaker.probes_without_answer
    assert time.now_s < 1060


async def test_an_outage_that_lasts_too_long_ends_the_run(breaker: Breaker, time: Time):
    service = Service()
    await breaker.call(service.ask)
    service.error = DOWN
    await fail(breaker, service, 9)
    with pytest.raises(OutageError, match=r"the model has not answered for 12\d minutes"):
        await breaker.call(service.ask)
    assert time.now_s > 1000 + 7200


async def test_whoever_has_another_way_does_not_wait(breaker: Breaker, time: Time):
    service = Service()
    await breaker.call(service.ask)
    service.error = DOWN
    await fail(breaker, service, 9)
    with pytest.raises(OutageError, match="does not answer at the moment"):
        await breaker.call(service.ask, patient=False)
    calls = service.calls
    for _ in range(5):
        with pytest.raises(OutageError):
            await breaker.call(service.ask, patient=False)
    assert service.calls == calls
    time.now_s += 61
    service.error = None
    assert await breaker.call(service.ask, patient=False) == "answer"


async def test_a_probe_that_is_cancelled_leaves_the_turn_to_the_next(breaker: Breaker):
    service = Service()
    await breaker.call(service.ask)
    service.error = DOWN
    await fail(breaker, service, 9)
    probe = asyncio.ensure_future(breaker.call(service.ask))
    for _ in range(5):
        await asyncio.sleep(0)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    service.error = None
    assert await breaker.call(service.ask) == "answer"


async def test_a_500_during_an_outage_ends_it_for_the_service_says_something(breaker: Breaker):
    service = Service()
    await breaker.call(service.ask)
    service.error = DOWN
    await fail(breaker, service, 9)
    waiting = asyncio.ensure_future(breaker.call(service.ask))
    while not breaker.is_open:
        await asyncio.sleep(0)
    service.error = ServerUnavailable("500", status=500)
    with pytest.raises(ServerUnavailable, match="500"):
        await waiting
    assert not breaker.is_open


async def test_what_waited_for_its_turn_when_the_outage_began_is_not_sent(breaker: Breaker):
    service, may_go = Service(), asyncio.Event()
    await breaker.call(service.ask)
    at_once = most_at_once = 0

    async def wait_and_ask() -> str:
        nonlocal at_once, most_at_once
        await may_go.wait()
        breaker.check()
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        try:
            return await service.ask()
        finally:
            at_once -= 1

    waiting = [asyncio.ensure_future(breaker.call(wait_and_ask)) for _ in range(20)]
    await asyncio.sleep(0)
    service.error = DOWN
    await fail(breaker, service, 9)
    opening = asyncio.ensure_future(breaker.call(service.ask))
    while not breaker.is_open:
        await asyncio.sleep(0)
    may_go.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert most_at_once == 1  # a probe, and then another
    service.error = None
    assert set(await asyncio.gather(*waiting, opening)) == {"answer"}
