"""What a run takes from Prefect: its key from a Secret block, and its share of limits that many processes keep to."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import TypeVar, cast

import httpx
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate, VariableCreate, VariableUpdate
from prefect.exceptions import ObjectNotFound, PrefectException

from pixscribe.config import LimitsConfig, RunConfig, checked_key
from pixscribe.errors import ConfigError, RunError
from pixscribe.limits import BURST_S, PACIFIC, Quota, per_second
from pixscribe.run import Lead, Past, Run, Surroundings

SLOTS: dict[Quota, int] = {"requests": 1000, "tokens": 1}
"""For one of each: Prefect forgets fractions of a slot with every lease, and a thousandth does not matter."""
ENDLESS = 2**31 - 1
BUDGET_SLOTS = 10**9
"""What a whole budget is cut into."""

T = TypeVar("T")


async def look_around(config: RunConfig) -> Surroundings:
    """Load what the config names. Raises `ConfigError` if it is not there."""
    block = config.model.api_key_block
    key = await _load_key(block) if block else None
    name = config.limits.shared_as
    return Surroundings(key, await PrefectQuota.open(name, config.limits) if name else None)


async def look_around_as_worker(run: Run, config: RunConfig) -> Surroundings:
    """Load on a worker what the config names, and take part in the limits that `share_limits` has set up."""
    assert run.lead is not None
    block = config.model.api_key_block
    budget = PrefectBudget(_budget_name(run.lead), config.limits) if config.limits.budget_usd is not None else None
    return Surroundings(
        await _load_key(block) if block else None, PrefectQuota(run.lead.shared_as, config.limits), budget
    )


@asynccontextmanager
async def share_limits(run: Run, config: RunConfig, past: Past) -> AsyncIterator[None]:
    """Set up what the workers of a run share, of which `past` is used up already, and remove it at the end."""
    assert run.lead is not None
    limits, lead = config.limits, run.lead
    quota = await PrefectQuota.open(lead.shared_as, limits)
    budget = PrefectBudget(_budget_name(lead), limits)
    try:
        if limits.shared_as is None:
            await quota.begin_day(past.asked_today)
        if limits.budget_usd is not None:
            await budget.begin(past.spent_usd)
        yield
    finally:
        if limits.shared_as is None:
            await quota.remove()
        await budget.remove()
        await asyncio.gather(quota.close(), budget.close())


def _budget_name(lead: Lead) -> str:
    # of this attempt: what the workers of an earlier one may still take is none of ours
    return f"{lead.shared_as}-{lead.token[:12]}-budget"


async def _load_key(block: str) -> str:
    try:
        secret = await Secret.aload(block)
    except ValueError:
        raise ConfigError(f"model.api_key_block: Prefect has no Secret block named {block!r}") from None
    return checked_key(str(cast(Secret[str], secret).get()).strip(), f"model.api_key_block: {block}")


class Counters:
    """Global concurrency limits of Prefect, asked on one connection, which opens when it is first used."""

    def __init__(self) -> None:
        self._client: PrefectClient | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """End the connections to Prefect."""
        client, self._client = self._client, None
        if client is not None:
            await client.__aexit__(None, None, None)

    async def _ask(self, question: Callable[[PrefectClient], Awaitable[T]]) -> T:
        """Ask Prefect, a few times if need be. Raises `RunError`: without its share a run must not go on."""
        async with self._opening:
            if self._client is None:
                # made on the loop that uses it, which is the engine's
                self._client = await get_client().__aenter__()
        return await _patiently(partial(question, self._client))

    async def _set(self, name: str, limit: int, taken: int) -> None:
        """Let so much of a limit without decay be taken, of which `taken` is gone."""

        async def begin(client: PrefectClient) -> None:
            await client.upsert_global_concurrency_limit_by_name(name, limit)
            await client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=taken))

        await self._ask(begin)

    async def _take_slots(self, name: str, slots: int) -> bool:
        async def take(client: PrefectClient) -> bool:
            try:
                await client.increment_concurrency_slots([name], slots, "concurrency")
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.LOCKED:
                    return False
                raise
            return True

        return await self._ask(take)

    async def _remove(self, *names: str) -> None:
        async def remove(client: PrefectClient) -> None:
            for name in names:
                with suppress(ObjectNotFound):
                    await client.delete_global_concurrency_limit_by_name(name)

        await self._ask(remove)


class PrefectBudget(Counters):
    """Money that processes spend together: a global concurrency limit that never decays, in billionths of the budget.

    What is taken is rounded up, what is returned down, so that the budget is never passed.
    """

    def __init__(self, name: str, limits: LimitsConfig) -> None:
        super().__init__()
        self._name = name
        self._budget_usd = limits.budget_usd or 0.0
        self._slots_per_usd = BUDGET_SLOTS / limits.budget_usd if limits.budget_usd else 0.0

    async def begin(self, spent_usd: float) -> None:
        """Let what is left be taken."""
        left_usd = max(0.0, self._budget_usd - spent_usd)
        await self._set(self._name, math.floor(left_usd * self._slots_per_usd), 0)

    async def take(self, usd: float) -> bool:
        """Take so much, if there is so much left."""
        return await self._take_slots(self._name, math.ceil(usd * self._slots_per_usd))

    async def give_back(self, usd: float) -> None:
        """Return what was taken and not spent."""
        if slots := math.floor(usd * self._slots_per_usd):
            # how long they were held does not matter to us, and may not be 0
            await self._ask(lambda client: client.release_concurrency_slots([self._name], slots, 1.0))

    async def taken_usd(self) -> float:
        """How much all have taken and not returned."""
        found = await self._ask(lambda client: client.read_global_concurrency_limit_by_name(self._name))
        return found.active_slots / self._slots_per_usd

    async def remove(self) -> None:
        """Leave nothing of it in Prefect."""
        await self._remove(self._name)


class PrefectQuota(Counters):
    """Quotas that processes share by way of global concurrency limits, which serve as counters of what is owed.

    Slots are taken without bound and decay at the rate of the quota, so those that are active after a lease say how
    long it takes until all who came before, and we, are paid off: nobody is ever refused, which Prefect answers with
    waits that lose a part of the rate. A day's requests are a limit without decay, with the date in its name.
    """

    def __init__(self, name: str, limits: LimitsConfig) -> None:
        super().__init__()
        self._name = name
        self._limits = limits
        self._paused_until_s = 0.0
        self._looked_s = float("-inf")
        self._day = ""

    @classmethod
    async def open(cls, name: str, limits: LimitsConfig) -> "PrefectQuota":
        """Set up the limits in Prefect under this name, as this config has them."""
        quota = cls(name, limits)
        async with get_client() as client:
            for kind, slots in SLOTS.items():
                if per_minute := getattr(limits, f"{kind}_per_minute"):
                    decay = per_second(per_minute) * slots
                    name = quota._limit(kind)
                    # several that begin at the same time may stumble over each other once
                    await _patiently(partial(client.upsert_global_concurrency_limit_by_name, name, ENDLESS, decay))
        return quota

    async def take(self, quota: Quota, amount: float) -> float:
        """Take `amount`, and return after how many seconds it begins to be ours."""
        per_s = per_second(getattr(self._limits, f"{quota}_per_minute"))
        name = self._limit(quota)

        async def lease(client: PrefectClient) -> float:
            await client.increment_concurrency_slots([name], round(amount * SLOTS[quota]), "rate_limit")
            owed = (await client.read_global_concurrency_limit_by_name(name)).active_slots / SLOTS[quota]
            return max(0.0, owed - amount) / per_s

        return await self._ask(lease)

    async def take_of_day(self, requests: int) -> bool:
        """Take so many of today's requests, if there are so many left."""
        name, per_day = self._today, self._limits.requests_per_day or ENDLESS
        if name != self._day:
            await self._ask(lambda client: client.upsert_global_concurrency_limit_by_name(name, per_day))
            self._day = name
        return await self._take_slots(name, requests)

    async def begin_day(self, asked_today: int) -> None:
        """Let as many requests of today's be taken as `asked_today` leaves."""
        if self._limits.requests_per_day is not None:
            await self._set(self._today, self._limits.requests_per_day, asked_today)

    async def remove(self) -> None:
        """Leave nothing of it in Prefect but the counts of earlier days."""
        await self._remove(*map(self._limit, SLOTS), self._today)

        async def forget(client: PrefectClient) -> None:
            with suppress(ObjectNotFound):
                await client.delete_variable_by_name(self._variable)

        await self._ask(forget)

    async def pause(self, seconds: float) -> None:
        """Tell everyone to wait, by a variable that they read with each lease."""
        until = time.time() + seconds

        async def tell(client: PrefectClient) -> None:
            # not by way of prefect.variables, which leaves a client open with each call
            if await client.read_variable_by_name(self._variable) is None:
                await client.create_variable(VariableCreate(name=self._variable, value=until))
            else:
                await client.update_variable(VariableUpdate(name=self._variable, value=until))

        await self._ask(tell)

    async def paused_s(self) -> float:
        """For how long someone told everyone to wait, as of half a second ago."""
        if time.monotonic() - self._looked_s > BURST_S:
            self._looked_s = time.monotonic()

            async def look(client: PrefectClient) -> float:
                variable = await client.read_variable_by_name(self._variable)
                return float(str(variable.value)) if variable else 0.0

            self._paused_until_s = await self._ask(look)
        return self._paused_until_s - time.time()

    @property
    def _variable(self) -> str:
        return re.sub(r"[^a-z0-9]", "_", f"{self._name}_paused_until".lower())

    @property
    def _today(self) -> str:
        return f"{self._name}-{datetime.now(PACIFIC).date().isoformat()}"

    def _limit(self, kind: str) -> str:
        return f"{self._name}-{kind}"


async def _patiently(question: Callable[[], Awaitable[T]]) -> T:
    """Try a few times. Raises `RunError`."""
    for pause_s in (0.2, 1.0, 3.0, None):
        try:
            return await question()
        except (httpx.HTTPError, PrefectException, OSError) as error:
            if pause_s is None:
                raise RunError(f"limits.shared_as: Prefect does not answer: {_reason(error)}") from error
            await asyncio.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
