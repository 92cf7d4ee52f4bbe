"""What a run takes from Prefect: its key from a Secret block, and its share of limits that many processes keep to."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import TypeVar, cast

import httpx
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.exceptions import PrefectException

from pixscribe.config import LimitsConfig, RunConfig, checked_key
from pixscribe.errors import ConfigError, RunError
from pixscribe.limits import BURST_S, PACIFIC, Quota, per_second
from pixscribe.run import Surroundings

SLOTS: dict[Quota, int] = {"requests": 1000, "tokens": 1}
"""For one of each: Prefect forgets fractions of a slot with every lease, and a thousandth does not matter."""
ENDLESS = 2**31 - 1

T = TypeVar("T")


async def look_around(config: RunConfig) -> Surroundings:
    """Load what the config names. Raises `ConfigError` if it is not there."""
    block = config.model.api_key_block
    key = await _load_key(block) if block else None
    shared = await PrefectQuota.open(config.limits) if config.limits.shared_as else None
    return Surroundings(key, shared)


async def _load_key(block: str) -> str:
    try:
        secret = await Secret.aload(block)
    except ValueError:
        raise ConfigError(f"model.api_key_block: Prefect has no Secret block named {block!r}") from None
    return checked_key(str(cast(Secret[str], secret).get()).strip(), f"model.api_key_block: {block}")


class PrefectQuota:
    """Quotas that processes share by way of global concurrency limits, which serve as counters of what is owed.

    Slots are taken without bound and decay at the rate of the quota, so those that are active after a lease say how
    long it takes until all who came before, and we, are paid off: nobody is ever refused, which Prefect answers with
    waits that lose a part of the rate. A day's requests are a limit without decay, with the date in its name.
    """

    def __init__(self, name: str, limits: LimitsConfig) -> None:
        self._name = name
        self._limits = limits
        self._client: PrefectClient | None = None
        self._opening = asyncio.Lock()
        self._paused_until_s = 0.0
        self._looked_s = float("-inf")
        self._day = ""

    @classmethod
    async def open(cls, limits: LimitsConfig) -> "PrefectQuota":
        """Set up the limits in Prefect, as this config has them."""
        assert limits.shared_as is not None
        quota = cls(limits.shared_as, limits)
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
        name = f"{self._name}-{datetime.now(PACIFIC).date().isoformat()}"

        async def lease(client: PrefectClient) -> bool:
            if name != self._day:
                await client.upsert_global_concurrency_limit_by_name(name, self._limits.requests_per_day or ENDLESS)
                self._day = name
            try:
                await client.increment_concurrency_slots([name], requests, "concurrency")
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.LOCKED:
                    return False
                raise
            return True

        return await self._ask(lease)

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

    async def close(self) -> None:
        """End the connections to Prefect."""
        if self._client is not None:
            await self._client.__aexit__(None, None, None)

    async def paused_s(self) -> float:
        """For how long someone told everyone to wait, as of half a second ago."""
        if time.monotonic() - self._looked_s > BURST_S:
            self._looked_s = time.monotonic()

            async def look(client: PrefectClient) -> float:
                variable = await client.read_variable_by_name(self._variable)
                return float(str(variable.value)) if variable else 0.0

            self._paused_until_s = await self._ask(look)
        return self._paused_until_s - time.time()

    async def _ask(self, question: Callable[[PrefectClient], Awaitable[T]]) -> T:
        """Ask Prefect, a few times if need be. Raises `RunError`: without its share a run must not go on."""
        async with self._opening:
            if self._client is None:
                # made on the loop that uses it, which is the engine's
                self._client = await get_client().__aenter__()
        return await _patiently(partial(question, self._client))

    @property
    def _variable(self) -> str:
        return f"{self._name}_paused_until".lower().replace("-", "_")

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
