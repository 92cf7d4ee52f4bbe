"""How the emulator behaves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pixscribe.emulator.faults import FAULT_CLASSES, check_fault_name, class_of
from pixscribe.emulator.replies import STORAGE_BYTES
from pixscribe.errors import ConfigError

MaskDialect = Literal["polygon", "png"]


@dataclass(frozen=True, slots=True)
class EmulatorOptions:
    """Raises `ConfigError` for a value out of range or an unknown fault."""

    host: str = "127.0.0.1"
    port: int = 0
    latency_s: float = 0.0
    """Waited before an answer of the model is sent; refusals come at once."""
    jitter_s: float = 0.0
    """Waited on top of the latency: up to this long, uniformly at random, from the seed."""
    requests_per_minute: float | None = None
    """Token bucket of 5 % of a minute, at least one request, per key and model; above it 429."""
    tokens_per_minute: float | None = None
    """Input tokens. A request larger than the bucket passes when the bucket is full, and is paid off afterwards."""
    requests_per_day: int | None = None
    """Counted from midnight, UTC-8."""
    faults: Mapping[str, float] = field(default_factory=dict)
    """Fault name -> probability, of an upload for names that begin with `upload_`, of a look at a model for `model_`,
    of a request of a batch for `batch_line_`, of a batch for `batch_`, and of an interaction for the others."""
    storage_bytes: int = STORAGE_BYTES
    """What the live files of a key may hold together; what does not fit is answered 429."""
    batch_latency_s: float = 0.0
    """From the creation of a batch until its requests are answered, all at once; it is RUNNING in the second half."""
    batch_tokens: int | None = None
    """Input tokens that may wait in the batches of a key and model together; a job that is too much is answered 429."""
    seed: int = 0
    masks: MaskDialect = "polygon"
    look: bool = True
    """False: no pixel is decoded and every image holds the same two objects (for benchmarks)."""

    def __post_init__(self) -> None:
        _check_range("latency_s", self.latency_s, 0, 3600)
        _check_range("jitter_s", self.jitter_s, 0, 3600)
        _check_range("batch_latency_s", self.batch_latency_s, 0, 7 * 86_400)
        _check_range("storage_bytes", self.storage_bytes, 0, math.inf)
        for name in ("requests_per_minute", "tokens_per_minute", "requests_per_day", "batch_tokens"):
            rate = getattr(self, name)
            if rate is not None and not (math.isfinite(rate) and rate > 0):
                raise ConfigError(f"emulator {name}={rate}: must be above 0, or absent for no limit")
        for name, probability in self.faults.items():
            check_fault_name(name)
            _check_range(f"fault {name}", probability, 0, 1)
        for kind in FAULT_CLASSES:
            total = sum(p for name, p in self.faults.items() if class_of(name) == kind)
            _check_range(f"sum of {kind} fault probabilities", total, 0, 1 + 1e-9)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # false for NaN too
        raise ConfigError(f"emulator {name}={value}: must be {low:g} to {high:g}")
