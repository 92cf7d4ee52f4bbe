"""Everything that can be made to go wrong, and which of it comes next.

A fault of an interaction is drawn after the request was found valid and within its quota. A fault of an upload is drawn
at its start, and acts when the upload is finalized (`upload_storage_full`: at once).
"""

import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from pixscribe.emulator.fault_answers import SPOILERS
from pixscribe.emulator.fault_replies import REPLIES
from pixscribe.emulator.fault_uploads import UPLOAD_REPLIES, UPLOAD_SPOILERS
from pixscribe.errors import ConfigError

_ALL: dict[str, Callable[..., Any]] = {**REPLIES, **SPOILERS, **UPLOAD_REPLIES, **UPLOAD_SPOILERS}
FAULTS: Mapping[str, str] = {name: (fault.__doc__ or "").rstrip(".") for name, fault in _ALL.items()}
"""One line on each."""


class FaultSource:
    """Which fault is next: the script first, then a draw. Safe to script from another thread."""

    def __init__(self, probabilities: Mapping[str, float], seed: int) -> None:
        self._script: deque[str] = deque()
        self._upload_script: deque[str] = deque()
        self._probabilities = dict(probabilities)
        self._random = random.Random(seed)

    def script(self, *names: str) -> None:
        for name in names:
            if name not in ("ok", "upload_ok"):
                check_fault_name(name)
            (self._upload_script if name.startswith("upload_") else self._script).append(name)

    def next_interaction(self) -> str | None:
        return self._next(self._script, uploads=False)

    def next_upload(self) -> str | None:
        return self._next(self._upload_script, uploads=True)

    def _next(self, script: deque[str], *, uploads: bool) -> str | None:
        if script:
            name = script.popleft()
            return None if name in ("ok", "upload_ok") else name
        chances = [(n, p) for n, p in self._probabilities.items() if n.startswith("upload_") is uploads]
        draw = self._random.random() if chances else 1.0
        for name, probability in chances:
            draw -= probability
            if draw < 0:
                return name
        return None


def check_fault_name(name: str) -> None:
    """Raises `ConfigError`."""
    if name not in FAULTS:
        raise ConfigError(f"unknown fault {name!r}: must be one of {', '.join(FAULTS)}")
