"""What a worker does with the shards that it is handed, without a cluster: claims, journals, the leader's lock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pixscribe.archive import Archive
from pixscribe.config import RunConfig
from pixscribe.emulator import Emulator
from pixscribe.engine import engine
from pixscribe.errors import BudgetExhausted, LockLost, RunError
from pixscribe.limits import LeasedBudget
from pixscribe.lock import LIFE_S, LeadersLock, RunLock
from pixscribe.run import Run, Surroundings, labeller_of, open_run, scan_source
from pixscribe.source import Shard
from pixscribe.storage import Folder, Storage, open_storage
from pixscribe.tables import find_totals
from pixscribe.worker import label_as_worker, stop_working
from tests.clock import Time
from tests.conftest import SAMPLES, MakeConfig

KEY = "runs/.0123abcd.lock"


@pytest.fixture
def place(tmp_path: Path) -> Storage:
    return Folder(str(tmp_path))


async def look_around(run: Run, config: RunConfig) -> Surroundings:
    return Surroundings()


@asynccontextmanager
async def leading(config: RunConfig) -> AsyncIterator[tuple[Run, list[Shard]]]:
    """A run that is led from here, and whose worker is here too."""
    async with open_run(config) as run:
        assert run.lead is not None
        shards = list(scan_source(run))
        try:
            yield run, shards
        finally:
            await stop_working(run.lead.token)


def on_workers(make: MakeConfig, **sections: Any) -> RunConfig:
    return make(execution={"engine": "dask", "shard_size": 4}, **sections)


async def test_a_worker_labels_what_it_is_handed(make: MakeConfig, emulator: Emulator):
    async with leading(on_workers(make, source={"uri": str(SAMPLES), "limit": 8})) as (run, shards):
        totals = await asyncio.gather(*(label_as_worker(run, shard, look_around) for shard in shards))
        assert [each.images for each in totals] == [4, 4]
        assert open_storage(run.output_uri).list(run.key("claims")) == []
        assert open_storage(run.output_uri).list(run.key("journal")) == []


async def test_a_shard_that_is_there_is_not_done_again(make: MakeConfig, emulator: Emulator):
    async with leading(on_workers(make, source={"uri": str(SAMPLES), "limit": 4})) as (run, [shard]):
        first = await label_as_worker(run, shard, look_around)
        asked = len(emulator.books.questions)
        assert await label_as_worker(run, shard, look_around) == first
        assert len(emulator.books.questions) == asked


async def test_a_shard_that_another_worker_is_at_is_waited_for(make: MakeConfig, emulator: Emulator):
    async with leading(on_workers(make, source={"uri": str(SAMPLES), "limit": 4})) as (run, [shard]):
        storage = open_storage(run.output_uri)
        claim = RunLock(storage, run.key(f"claims/{shard.name}.lock"))
        claim.acquire()
        waiting = asyncio.create_task(label_as_worker(run, shard, look_around))
        done, _ = await asyncio.wait([waiting], timeout=1.5)
        assert (done, len(emulator.books.questions)) == (set(), 0)
        # the other one commits it
        await engine().run(labeller_of(run).label(shard))
        asked = len(emulator.books.questions)
        assert await waiting == find_totals(storage, run.id, shard)
        assert len(emulator.books.questions) == asked
        claim.release()


async def test_what_a_lost_worker_has_journaled_is_not_paid_for_again(make: MakeConfig, emulator: Emulator):
    async with leading(on_workers(make, source={"uri": str(SAMPLES), "limit": 4})) as (run, [shard]):
        storage = open_storage(run.output_uri)
        labeller = labeller_of(run)
        # a worker that writes its journal and dies at the commit
        with pytest.raises(LockLost):
            await engine().run(labeller.label(shard, _refuse))
        await engine().run(labeller.journal.flush())
        asked = len(emulator.books.questions)
        totals = await label_as_worker(run, shard, look_around)
        assert len(emulator.books.questions) == asked
        assert totals.cost_usd > 0
        assert storage.list(run.key("journal")) == []


async def test_a_worker_finds_what_others_have_committed_meanwhile(make: MakeConfig, emulator: Emulator):
    async with leading(on_workers(make, source={"uri": str(SAMPLES), "limit": 4})) as (run, [shard]):
        archive = Archive(open_storage(run.output_uri), run.id)
        archive.open({}, only_this_run=False)
        await label_as_worker(run, shard, look_around)
        archive.refresh()
        assert archive.is_empty  # it has looked a moment ago
        archive._refreshed_s = float("-inf")  # half a minute later
        archive.refresh()
        assert not archive.is_empty


async def test_a_stopped_worker_takes_no_more_shards(make: MakeConfig, emulator: Emulator):
    async with leading(on_workers(make, source={"uri": str(SAMPLES), "limit": 8})) as (run, shards):
        assert run.lead is not None
        await label_as_worker(run, shards[0], look_around)
        await stop_working(run.lead.token)
        with pytest.raises(RunError, match="was stopped"):
            await label_as_worker(run, shards[1], look_around)


async def test_a_resumed_run_takes_the_engine_of_the_new_config_and_keeps_its_shards(make: MakeConfig):
    config = on_workers(make, source={"uri": str(SAMPLES), "limit": 6})
    async with leading(config) as (run, shards):
        await label_as_worker(run, shards[0], look_around)
    async with open_run(make(source={"uri": str(SAMPLES), "limit": 6})) as resumed:
        assert (resumed.id, resumed.is_resumed, resumed.lead) == (run.id, True, None)
        assert [shard.name for shard in scan_source(resumed)] == ["00001"]


def test_a_worker_stops_when_the_leader_has_changed(place: Storage):
    leader = RunLock(place, KEY)
    leader.acquire()
    seen = LeadersLock(place, KEY, leader.owner.token)
    seen.check(0)
    leader.release()
    RunLock(place, KEY).acquire()
    seen.check()  # as of a moment ago
    with pytest.raises(LockLost, match="the process that leads this run has ended or lost it"):
        seen.check(0)
    assert seen.is_lost


def test_a_worker_stops_when_nothing_is_heard_of_the_leader(place: Storage):
    now_s = 0.0
    leader = RunLock(place, KEY)
    leader.acquire()
    seen = LeadersLock(place, KEY, leader.owner.token, clock=lambda: now_s)
    seen.check()
    now_s = LIFE_S - 1
    seen.check()
    leader.beat()
    now_s = 2 * LIFE_S - 2
    seen.check()
    now_s = 4 * LIFE_S
    with pytest.raises(LockLost):
        seen.check()


class Purse:
    """What processes share, in memory: the meaning of `SharedBudget`, without Prefect."""

    def __init__(self, usd: float) -> None:
        self.usd = usd
        self.taken = 0.0

    async def take(self, usd: float) -> bool:
        fits = self.taken + usd <= self.usd + 1e-9
        self.taken += usd if fits else 0.0
        return fits

    async def give_back(self, usd: float) -> None:
        self.taken -= usd

    async def taken_usd(self) -> float:
        return self.taken

    async def close(self) -> None:
        pass


def leased(purse: Purse, time: Time) -> LeasedBudget:
    return LeasedBudget(purse.usd, purse, lambda: time.now_s, time.sleep)


async def spend(budget: LeasedBudget, most_usd: float, usd: float, count: int) -> None:
    for _ in range(count):
        async with budget.reserve(most_usd) as spent:
            await asyncio.sleep(0)
            spent.append(usd)


async def test_processes_spend_one_budget_to_its_end_and_never_pass_it():
    purse, time = Purse(1.0), Time()
    first, second = leased(purse, time), leased(purse, time)
    results = await asyncio.gather(
        *(spend(budget, 0.1, 0.01, 100) for budget in (first, second) for _ in range(3)), return_exceptions=True
    )
    assert {type(result) for result in results} <= {BudgetExhausted, type(None)}
    assert BudgetExhausted in {type(result) for result in results}
    # the last request has to fit at its worst
    assert 0.85 < first.spent_usd + second.spent_usd <= 1.0


async def test_what_was_reserved_here_and_not_spent_is_left_to_others():
    purse, time = Purse(1.0), Time()
    first, second = leased(purse, time), leased(purse, time)
    await spend(first, 1.0, 0.2, 1)
    assert purse.taken == pytest.approx(1.0)
    await first.rest()
    assert purse.taken == pytest.approx(0.2)
    await spend(second, 0.8, 0.8, 1)
    with pytest.raises(BudgetExhausted, match="what is left of 1 USD does not cover the next request"):
        await spend(first, 0.1, 0.1, 1)


async def test_a_budget_that_lies_with_a_lost_process_is_not_waited_for_without_end():
    purse, time = Purse(1.0), Time()
    await spend(leased(purse, time), 0.9, 0.1, 1)  # and is never heard of again
    began_s = time.now_s
    with pytest.raises(BudgetExhausted):
        await spend(leased(purse, time), 0.5, 0.1, 1)
    assert time.now_s - began_s == pytest.approx(LeasedBudget.STILL_S, abs=2)


def _refuse() -> None:
    raise LockLost("lost")
