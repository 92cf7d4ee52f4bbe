"""What has happened so far, in numbers: for the progress bar, for `run.json`, and for anyone who asks."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import orjson


@dataclass(slots=True)
class Tally:
    """Live counters of one process, written by the engine's thread only, read by any."""

    images_total: int = 0
    stage: str = "labelling"
    """What is being done, for people."""
    images_skipped: int = 0
    """Known ones, which are none of the total."""
    images_before: int = 0
    """Of shards that an earlier process committed."""
    images_done: int = 0
    images_failed: int = 0
    """Those that are not ok, partial ones among them."""
    uploads: int = 0
    requests: int = 0
    retries: int = 0
    objects: int = 0
    cost_usd: float = 0.0
    batch_waiting: int = 0
    """Questions that no job has been sent with yet."""
    batch_jobs: int = 0
    batch_requests: int = 0
    """Of jobs that are not over."""
    shards_total: int = 0
    shards_done: int = 0
    last_shards: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    """A line for each of the last ones, in the order of writing."""

    @property
    def percent_done(self) -> float:
        """Of the images that the scan found, 0 before it has."""
        return 100 * (self.images_before + self.images_done) / max(self.images_total, 1)

    def describe(self) -> str:
        """One line for people."""
        done, failed = self.images_before + self.images_done, self.images_failed
        return f"{done} of {self.images_total} images, {failed} not ok, {self.cost_usd:.4f} USD"

    def count_shard(self, totals: "Totals") -> None:
        """One shard more is written."""
        self.shards_done += 1
        self.last_shards.append(totals.describe())

    def count_remote_shard(self, totals: "Totals") -> None:
        """One shard more is written, of which another process has counted the images."""
        self.images_done += totals.images
        self.images_failed += totals.images - totals.images_ok
        self.uploads += totals.uploads
        self.requests += totals.requests
        self.objects += totals.objects
        self.cost_usd += totals.cost_usd
        self.count_shard(totals)

    def count_retry(self) -> None:
        """One attempt more than would have been needed."""
        self.retries += 1


@dataclass(slots=True)
class Totals:
    """What a shard, or a whole run, came to. Sums count what was paid for: a reused answer adds nothing."""

    images: int = 0
    images_ok: int = 0
    images_partial: int = 0
    images_failed: int = 0
    responses: int = 0
    responses_failed: int = 0
    objects: int = 0
    uploads: int = 0
    requests: int = 0
    reused: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    thought_tokens: int = 0
    cost_usd: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    """Responses by `error_code`."""

    @classmethod
    def sum(cls, parts: Iterable["Totals"]) -> Self:
        """Add up shards."""
        total, errors = cls(), Counter[str]()
        for part in parts:
            for each in fields(cls):
                if each.name != "errors":
                    setattr(total, each.name, getattr(total, each.name) + getattr(part, each.name))
            errors.update(part.errors)
        total.errors = dict(sorted(errors.items()))
        return total

    def describe(self) -> str:
        """One line for people."""
        failed = f", {self.images_partial} partial, {self.images_failed} failed" if self.images_ok < self.images else ""
        return f"{self.images} images{failed}, {self.objects} objects, {self.cost_usd:.4f} USD"

    def to_json(self) -> bytes:
        """For the metadata of a part."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes | dict[str, Any]) -> Self:
        """The reverse; keys of newer versions are left out."""
        values = orjson.loads(data) if isinstance(data, bytes) else data
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})
