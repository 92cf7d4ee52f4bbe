"""A few of many things, spread evenly over all of them, without knowing beforehand how many there will be."""

from itertools import pairwise
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")


class Spread(Generic[T]):
    """Keeps at most twice `size` of the things that are added, as many of each stretch of them.

    Of a stretch, any is as likely to be taken as any other. The same things and `seed` always give the same choice.
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self._size = size
        self._seed = seed
        self._random = Random(seed)
        self._kept: list[T] = []
        self._stretch = 1
        self._in_last = 1
        """How many things the last stretch has had so far."""

    def add(self, thing: T) -> None:
        """One more."""
        if self._in_last < self._stretch:
            self._in_last += 1
            if self._random.random() * self._in_last < 1:
                self._kept[-1] = thing
            return
        if len(self._kept) == 2 * self._size:
            self._kept = [self._random.choice(self._kept[at : at + 2]) for at in range(0, len(self._kept), 2)]
            self._stretch *= 2
        self._kept.append(thing)
        self._in_last = 1

    def take(self, size: int | None = None) -> list[T]:
        """`size` of them (None: as many as there may be), in the order of adding; all if there are fewer."""
        wanted = min(self._size if size is None else size, len(self._kept))
        random = Random(f"taken {self._seed}")  # other numbers than those that decided what was kept
        edges = [number * len(self._kept) // max(wanted, 1) for number in range(wanted + 1)]
        return [self._kept[random.randrange(start, stop)] for start, stop in pairwise(edges)]
