"""Time as tests move it."""

import asyncio
from datetime import datetime, timedelta

from pixscribe.config import LimitsConfig
from pixscribe.limits import PACIFIC, Limiter, SharedQuota


class Time:
    """A clock that moves when somebody sleeps: monotonic seconds, and the time of day in California."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.day = datetime(2026, 11, 22, 9, 30, tzinfo=PACIFIC)

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.day += timedelta(seconds=seconds)
        await asyncio.sleep(0)

    def limiter(self, limits: LimitsConfig, shared: SharedQuota | None = None) -> Limiter:
        return Limiter(limits, clock=lambda: self.now_s, sleep=self.sleep, now=lambda: self.day, shared=shared)
