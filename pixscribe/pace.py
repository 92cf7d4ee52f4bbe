"""How fast and how wide a service lets us go, when that is less than the config says: learned from its refusals."""

import asyncio
from collections import deque

from pixscribe.clock import Clock


class Pace:
    """Finds the rate that is really granted, when that is below the configured one.

    Answers are counted in windows. When some were refused, the rate becomes a little less than what was taken; now and
    then a window tries more, and each try in vain makes the next one later. A service that refuses just as many after
    the rate was lowered three times refuses at random, and is not slowed down for.
    """

    WINDOW_S = 2.0
    LONGEST_WINDOW_S = 10.0
    WINDOW_ANSWERS = 40
    FEW_REFUSED = 0.03
    MUCH_REFUSED = 0.3
    LOWERINGS = 3
    HELPED = 0.6
    SAFE = 0.95
    TRY_MORE = 1.3
    WORTH_IT = 1.1
    REST = 4
    LONGEST_REST = 16
    LEAST_SHARE = 0.01

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self._most_per_s = per_minute / 60
        self._clock = clock
        self._granted_per_s = self._before_per_s = self._most_per_s
        self._rest = self._rest_left = self.REST
        self._was_raised = False
        self._lowered_for: list[float] = []
        self._noise = 0.0
        self._begin_window()
        self.share = 1.0
        """Of the configured rate, to go at now."""

    def note(self, *, refused: bool) -> None:
        """Count an answer."""
        self._answers += 1
        self._refused += refused
        elapsed_s = self._clock() - self._since_s
        is_full = elapsed_s >= self.WINDOW_S and self._answers >= self.WINDOW_ANSWERS
        if is_full or elapsed_s >= self.LONGEST_WINDOW_S:
            self._judge(self._refused / self._answers, (self._answers - self._refused) / elapsed_s)
            self._begin_window()

    def _judge(self, refused_share: float, taken_per_s: float) -> None:
        (self._judge_rest if self._rest_left else self._judge_try)(refused_share, taken_per_s)
        self._granted_per_s = min(self._granted_per_s, self._most_per_s)
        wanted = self._granted_per_s * (1.0 if self._rest_left else self.TRY_MORE)
        self.share = min(1.0, max(self.LEAST_SHARE, wanted / self._most_per_s))

    def _judge_rest(self, refused_share: float, taken_per_s: float) -> None:
        self._rest_left -= 1
        if refused_share <= self.FEW_REFUSED:
            self._lowered_for, self._noise = [], self._noise / 2
        is_too_fast = refused_share > self.FEW_REFUSED and not self._is_random(refused_share)
        if is_too_fast:
            # never by more than half: the pauses that the service asks for have slowed us down enough
            self._granted_per_s = max(self.SAFE * taken_per_s, self._granted_per_s / 2)
        if self._was_raised:  # only now are the reserves of the service used up
            self._rest = min(2 * self._rest, self.LONGEST_REST) if is_too_fast else self.REST
            self._rest_left, self._was_raised = self._rest, False

    def _judge_try(self, refused_share: float, taken_per_s: float) -> None:
        self._was_raised = refused_share <= self.FEW_REFUSED or taken_per_s > self.WORTH_IT * self._granted_per_s
        if self._was_raised:
            self._granted_per_s = max(taken_per_s, self._granted_per_s * (1.0 if self._refused else self.TRY_MORE))
            self._rest_left = 1
        else:
            self._rest = self._rest_left = min(2 * self._rest, self.LONGEST_REST)

    def _is_random(self, refused_share: float) -> bool:
        """Whether going slower has not helped; then the rate is put back to what it was."""
        if refused_share <= 2 * self._noise:
            return True
        if not self._lowered_for:
            self._before_per_s = self._granted_per_s
        self._lowered_for.append(refused_share)
        if len(self._lowered_for) <= self.LOWERINGS:
            return False
        first, last, self._lowered_for = self._lowered_for[0], self._lowered_for[-1], []
        if max(first, last) > self.MUCH_REFUSED or last < self.HELPED * first:
            return False
        self._granted_per_s, self._noise = self._before_per_s, max(first, last)
        return True

    def _begin_window(self) -> None:
        self._since_s = self._clock()
        self._answers = self._refused = 0


class Slots:
    """Places for requests in flight: fewer while the service turns more than a few away, then more again."""

    MUCH_REFUSED = 0.2
    FEW_REFUSED = 0.05
    WINDOW_ANSWERS = 20

    def __init__(self, most: int) -> None:
        self.allowed = most
        self._most = most
        self._taken = 0
        self._waiting = deque[asyncio.Future[None]]()
        self._answers = self._refused = 0

    async def __aenter__(self) -> None:
        if self._taken < self.allowed and not self._waiting:
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()  # it was let in in the moment of its cancellation
            raise

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def note(self, *, refused: bool) -> None:
        """Count an answer; `refused` means that the service is limited or overloaded."""
        self._answers += 1
        self._refused += refused
        if self._answers >= max(self.WINDOW_ANSWERS, self.allowed):
            share = self._refused / self._answers
            if share > self.MUCH_REFUSED:
                self.allowed = max(1, int(self.allowed * (1 - share)))
            elif share < self.FEW_REFUSED:
                self.allowed = min(self._most, self.allowed + max(1, self.allowed // 10))
            self._answers = self._refused = 0
            self._admit()

    def _release(self) -> None:
        self._taken -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._taken < self.allowed:
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)
