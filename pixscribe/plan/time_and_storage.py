"""How long so many questions take under the limits of a config, and what lies in the Files API meanwhile."""

from dataclasses import dataclass

from pixscribe.config import BatchConfig, LimitsConfig
from pixscribe.limits import per_second

UPLOAD_S = 1.0
"""What an upload is assumed to take, both of its requests together."""
STORAGE_BYTES = 20 * 1024**3
"""What the Files API holds for a project."""
FILE_LIFE_H = 48.0
DAY_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be sent."""

    questions: int
    input_tokens: int
    latency_s: float
    """Of one answer."""
    is_latency_measured: bool
    uploads: int
    uploaded_bytes: int


@dataclass(frozen=True, slots=True)
class Duration:
    """How long the run takes at least."""

    total_s: float
    limited_by: str
    """The key of the limit that lets it be no faster."""
    by_limit_s: dict[str, float]
    """How long it would take if there were only this limit."""
    latency_s: float
    """Of one answer."""
    is_latency_measured: bool


@dataclass(frozen=True, slots=True)
class FileStorage:
    """What the Files API holds of this run: each file for 48 hours, and 20 GB in all for the project."""

    uploads: int
    uploaded_bytes: int
    bytes_per_hour: float
    peak_bytes: int
    """If nothing is deleted before its time."""
    peak_after_h: float
    limit_bytes: int
    full_after_h: float | None
    """From then on, the run deletes its oldest files that no image in work needs; null: there is room for all."""


def plan_duration(load: Load, limits: LimitsConfig, processes: int = 1, batch: BatchConfig | None = None) -> Duration:
    """The slowest limit decides. `processes` have `limits.concurrency` requests in flight each.

    With `batch`, questions wait in jobs, as many at a time as fit into the queue, and only uploads are in flight.
    """
    by_limit_s = _by_limit_s(load, limits, processes) if batch is None else _by_queue_s(load, limits, batch)
    slowest = max(by_limit_s, key=lambda key: by_limit_s[key])
    return Duration(by_limit_s[slowest], slowest, by_limit_s, load.latency_s, load.is_latency_measured)


def _by_queue_s(load: Load, limits: LimitsConfig, batch: BatchConfig) -> dict[str, float]:
    rounds = -(-load.input_tokens // batch.queue_tokens)
    return {
        "batch.queue_tokens": rounds * load.latency_s,
        "limits.concurrency": load.uploads * UPLOAD_S / limits.concurrency,
    }


def _by_limit_s(load: Load, limits: LimitsConfig, processes: int) -> dict[str, float]:
    in_flight_s = load.questions * load.latency_s + load.uploads * UPLOAD_S
    by_limit_s = {
        "limits.requests_per_minute": load.questions / per_second(limits.requests_per_minute),
        "limits.concurrency": in_flight_s / (limits.concurrency * processes),
    }
    if limits.tokens_per_minute:
        by_limit_s["limits.tokens_per_minute"] = load.input_tokens / per_second(limits.tokens_per_minute)
    if limits.requests_per_day:
        by_limit_s["limits.requests_per_day"] = _days_s(load, limits.requests_per_day, max(by_limit_s.values()))
    return by_limit_s


def _days_s(load: Load, per_day: int, all_s: float) -> float:
    """Full days, begun at midnight, and then what the rest takes by the other limits, all by which takes `all_s`."""
    full_days = max(load.questions - 1, 0) // per_day
    rest = load.questions - full_days * per_day
    return full_days * DAY_S + all_s * rest / max(load.questions, 1)


def plan_storage(load: Load, total_s: float) -> FileStorage:
    """Uploads are taken to be spread evenly over the run."""
    total_h = max(total_s, 1.0) / 3600
    bytes_per_hour = load.uploaded_bytes / total_h
    peak_after_h = min(total_h, FILE_LIFE_H)
    peak_bytes = round(bytes_per_hour * peak_after_h)
    return FileStorage(
        uploads=load.uploads,
        uploaded_bytes=load.uploaded_bytes,
        bytes_per_hour=bytes_per_hour,
        peak_bytes=peak_bytes,
        peak_after_h=peak_after_h,
        limit_bytes=STORAGE_BYTES,
        full_after_h=STORAGE_BYTES / bytes_per_hour if peak_bytes > STORAGE_BYTES else None,
    )
