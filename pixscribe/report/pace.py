"""How fast answers came, and how long each took, over the time of a run: bounded, in whatever order they are told."""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

WIDTHS_S = (0.25, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 10_800, 21_600, 43_200, 86_400)
"""Each is a multiple of the one before, so that steps are joined without being cut."""
MAX_STEPS = 480

_LATENCIES = 600
_LONGEST_MS = 86_400_000.0
_PER_FACTOR = _LATENCIES / math.log(_LONGEST_MS)
"""Latencies are counted in classes that are 3 % wide."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of time: when it begins (seconds since 1970), the answers that came in it, and what they took."""

    start_s: float
    answers: int
    median_ms: float | None
    p95_ms: float | None


@dataclass(slots=True)
class Pace:
    """Answers by when they came, in steps that get wider when there are too many of them."""

    _width: int = 0
    _steps: dict[int, Counts] = field(default_factory=dict)

    @property
    def width_s(self) -> float:
        """How long a step is."""
        return self._width_at(self._width)

    def add(self, asked_at_s: npt.NDArray[np.float64], latency_ms: npt.NDArray[np.float64]) -> None:
        """Count answers. What was asked at no time, or took none, is passed over."""
        known = np.isfinite(asked_at_s) & np.isfinite(latency_ms)
        came_s = asked_at_s[known] + latency_ms[known] / 1000
        classes = _classes(latency_ms[known])
        if len(came_s):
            # before they are counted: a part that spans years would have as many steps as answers
            self._widen(MAX_STEPS, (float(came_s.min()), float(came_s.max())))
        for place in np.unique(np.floor(came_s / self.width_s)).tolist():
            of_step = np.floor(came_s / self.width_s) == place
            self._count(int(place), np.bincount(classes[of_step], minlength=_LATENCIES))

    def steps(self, at_most: int) -> list[Step]:
        """The whole time in equal steps, `at_most` of them, also those in which nothing came."""
        self._widen(at_most)
        if not self._steps:
            return []
        nothing = np.zeros(_LATENCIES, np.int64)
        places = range(min(self._steps), max(self._steps) + 1)
        return [_step(place * self.width_s, self._steps.get(place, nothing)) for place in places]

    def overall(self) -> Step:
        """All of it as one step."""
        total = np.zeros(_LATENCIES, np.int64)
        for counts in self._steps.values():
            total += counts
        return _step(min(self._steps, default=0) * self.width_s, total)

    def _count(self, place: int, counts: Counts) -> None:
        if place in self._steps:
            self._steps[place] = self._steps[place] + counts
        else:
            self._steps[place] = counts

    def _widen(self, at_most: int, coming_s: tuple[float, ...] = ()) -> None:
        """Until there is room for what is there and for what is coming."""
        while self._span(coming_s) > at_most:
            factor = round(self._width_at(self._width + 1) / self.width_s)
            self._width += 1
            steps, self._steps = self._steps, {}
            for place, counts in steps.items():
                self._count(place // factor, counts)

    def _span(self, coming_s: tuple[float, ...]) -> int:
        places = [*self._steps, *(math.floor(second / self.width_s) for second in coming_s)]
        return max(places) - min(places) + 1 if places else 0

    def _width_at(self, number: int) -> float:
        last = len(WIDTHS_S) - 1
        return WIDTHS_S[number] if number <= last else WIDTHS_S[last] * 2.0 ** (number - last)


def _classes(latency_ms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    within = np.clip(latency_ms, 1.0, _LONGEST_MS * 0.999)
    return np.floor(np.log(within) * _PER_FACTOR).astype(np.int64)


def _step(start_s: float, counts: Counts) -> Step:
    return Step(start_s, int(counts.sum()), _quantile(counts, 0.5), _quantile(counts, 0.95))


def _quantile(counts: Counts, share: float) -> float | None:
    """The middle of the class that the quantile falls into."""
    total = int(counts.sum())
    if total == 0:
        return None
    place = int(np.searchsorted(np.cumsum(counts), share * total))
    return math.exp((place + 0.5) / _PER_FACTOR)
