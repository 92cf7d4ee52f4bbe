"""Everything that can be made to go wrong, and which of it comes next.

A fault of an interaction, or of a look at a model, is drawn after the request was found valid and within its quota. A
request of a batch draws one of its own (`batch_line_`), and one of interactions: it is the same model that answers. A
fault of an upload is drawn at its start, and acts when the upload is finalized; `upload_storage_full` acts at once, and
those that break an upload act on its first bytes. A fault of a batch is drawn when the job is created.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any, Literal

from pixscribe.emulator.fault_answers import SPOILERS
from pixscribe.emulator.fault_batches import BATCH_FATES, BATCH_LINE_ERRORS, BATCH_LINE_SPOILERS
from pixscribe.emulator.fault_models import MODEL_REPLIES
from pixscribe.emulator.fault_replies import REPLIES
from pixscribe.emulator.fault_uploads import UPLOAD_BREAKS, UPLOAD_REPLIES, UPLOAD_SPOILERS
from pixscribe.errors import ConfigError

FaultClass = Literal["interaction", "upload", "model", "batch", "batch_line"]
FAULT_CLASSES: tuple[FaultClass, ...] = ("interaction", "upload", "model", "batch", "batch_line")

_ALL: dict[str, Callable[..., Any]] = {
    **REPLIES,
    **SPOILERS,
    **UPLOAD_REPLIES,
    **UPLOAD_BREAKS,
    **UPLOAD_SPOILERS,
    **MODEL_REPLIES,
    **BATCH_FATES,
    **BATCH_LINE_ERRORS,
    **BATCH_LINE_SPOILERS,
}
FAULTS: Mapping[str, str] = {name: (fault.__doc__ or "").partition("\n")[0].rstrip(".") for name, fault in _ALL.items()}
"""One line on each."""
DECK = 100
"""Draws after which every fault has had its share."""
_NO_FAULT = ("ok", "upload_ok", "model_ok", "batch_ok", "batch_line_ok")


class FaultSource:
    """Which fault is next: the script first, then what stands, then a draw.

    `script` and `always` may be called from any thread, the rest from the server's only.
    """

    def __init__(self, probabilities: Mapping[str, float], seed: int) -> None:
        self._scripts: dict[FaultClass, deque[str]] = {kind: deque() for kind in FAULT_CLASSES}
        self._standing: dict[FaultClass, Iterator[str]] = {kind: cycle(()) for kind in FAULT_CLASSES}
        self._chances = {kind: _of_class(kind, probabilities) for kind in FAULT_CLASSES}
        self._probabilities = dict(probabilities)
        self._decks: dict[FaultClass, list[str | None]] = {kind: [] for kind in FAULT_CLASSES}
        # a fault that is due once in many decks comes at a random time of the first
        self._random = random.Random(seed)
        self._owed = {name: self._random.random() if 0 < p * DECK < 1 else 0.0 for name, p in probabilities.items()}

    def script(self, *names: str) -> None:
        for name in names:
            if name not in _NO_FAULT:
                check_fault_name(name)
        for name in names:
            self._scripts[class_of(name)].append(name)

    def always(self, *names: str) -> None:
        for name in names:
            check_fault_name(name)
        self._standing = {kind: cycle(_of_class(kind, names)) for kind in FAULT_CLASSES}

    def next(self, kind: FaultClass) -> str | None:
        script = self._scripts[kind]
        name = script.popleft() if script else self.standing(kind) or self._draw(kind)
        return None if name in _NO_FAULT else name

    def standing(self, kind: FaultClass) -> str | None:
        return next(self._standing[kind], None)

    def _draw(self, kind: FaultClass) -> str | None:
        """From a deck in which the faults have their share exactly: what a test counts must not be a matter of luck."""
        if not self._chances[kind]:
            return None
        deck = self._decks[kind]
        if not deck:
            deck += self._shuffled(kind)
        return deck.pop()

    def _shuffled(self, kind: FaultClass) -> list[str | None]:
        deck: list[str | None] = []
        for name in self._chances[kind]:
            self._owed[name] += self._probabilities[name] * DECK
            deck += [name] * int(self._owed[name] + 1e-9)
            self._owed[name] -= int(self._owed[name] + 1e-9)
        # what is owed of several rare faults may fall due in the same deck
        deck += [None] * (DECK - len(deck))
        self._random.shuffle(deck)
        return deck


def class_of(name: str) -> FaultClass:
    prefixed: tuple[FaultClass, ...] = ("upload", "model", "batch_line", "batch")
    return next((kind for kind in prefixed if name.startswith(f"{kind}_")), "interaction")


def check_fault_name(name: str) -> None:
    """Raises `ConfigError`."""
    if name not in FAULTS:
        raise ConfigError(f"unknown fault {name!r}: must be one of {', '.join(FAULTS)}")


def _of_class(kind: FaultClass, names: Iterable[str]) -> list[str]:
    return [name for name in names if class_of(name) == kind]
