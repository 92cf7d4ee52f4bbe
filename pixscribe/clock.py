"""Time is a parameter: what waits takes one of these, and tests move it."""

from collections.abc import Awaitable, Callable

Clock = Callable[[], float]
"""Seconds since some moment; only differences mean anything."""
Sleep = Callable[[float], Awaitable[None]]
"""Wait so many seconds."""
