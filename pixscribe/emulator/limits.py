"""Quotas of the emulated project: requests and tokens per minute, requests per day."""

from dataclasses import dataclass, field

from pixscribe.emulator.replies import PER_DAY, PER_MINUTE, TOKENS_PER_MINUTE, Refused, quota_exceeded

_BURST_SHARE = 0.05
"""Of a minute's quota. Smaller would refuse clients that are on time but for the jitter of the network."""
_DAY_S = 86_400
_PACIFIC_OFFSET_S = 8 * 3600


@dataclass(slots=True)
class Bucket:
    """Refills steadily. `take` answers 0.0 and takes, or answers the seconds to wait and leaves it as it was."""

    per_minute: float
    least_burst: float = 0.0
    level: float = field(init=False)
    filled_at_s: float | None = None

    def __post_init__(self) -> None:
        self.level = self.burst

    @property
    def burst(self) -> float:
        return max(self.least_burst, self.per_minute * _BURST_SHARE)

    def wait_s(self, cost: float, now_s: float) -> float:
        elapsed_s = 0.0 if self.filled_at_s is None else max(0.0, now_s - self.filled_at_s)
        self.filled_at_s = now_s
        self.level = min(self.burst, self.level + elapsed_s * self.per_minute / 60)
        # the margin absorbs rounding: a caller who waited exactly as told must be let in
        missing = min(cost, self.burst) - self.level - 1e-6
        return max(0.0, missing * 60 / self.per_minute)

    def take(self, cost: float) -> None:
        self.level -= cost


class Quota:
    """The limits of one key and one model."""

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, requests_per_day: int | None
    ) -> None:
        self._requests = Bucket(requests_per_minute, least_burst=1.0) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute) if tokens_per_minute else None
        self._requests_per_day = requests_per_day
        self._day, self._today = -1, 0

    def admit(self, model: str, tokens: int, now_s: float) -> None:
        """Count one request; raises `Refused` (429), and counts nothing, when it is one too many."""
        self._check_day(model, now_s)
        if self._requests and (wait_s := self._requests.wait_s(1, now_s)):
            raise Refused(quota_exceeded(PER_MINUTE, self._requests.per_minute, model, wait_s))
        if self._tokens and (wait_s := self._tokens.wait_s(tokens, now_s)):
            raise Refused(quota_exceeded(TOKENS_PER_MINUTE, self._tokens.per_minute, model, wait_s))
        if self._requests:
            self._requests.take(1)
        if self._tokens:
            self._tokens.take(tokens)
        self._today += 1

    def _check_day(self, model: str, now_s: float) -> None:
        day, second = divmod(now_s - _PACIFIC_OFFSET_S, _DAY_S)
        if day != self._day:
            self._day, self._today = int(day), 0
        if self._requests_per_day is not None and self._today >= self._requests_per_day:
            raise Refused(quota_exceeded(PER_DAY, self._requests_per_day, model, round(_DAY_S - second, 3)))
