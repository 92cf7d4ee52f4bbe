"""The jobs of a run, as they stand at its output, so that another process can take them up.

    <output>/runs/<id>/batches/<number>.json

It is written before the job is created, with what the job will hold, again with the job's name, and once more when the
job is over and its answers are in the journal: then the requests are left out.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

import orjson

from pixscribe.errors import OutputError
from pixscribe.storage import Storage

VERSION = 1
OVER = "over"
DROPPED = "dropped"
"""Of a job that was never created; it is not written."""


@dataclass(frozen=True, slots=True)
class Requested:
    """One request of a job: which question, for which prompt of the config, in which shard."""

    request_key: str
    prompt: str
    shard: str


@dataclass(slots=True)
class BatchRecord:
    """One job. `name` is the service's, None before the creation was answered; `input_sha256` names its input.

    `state` is `planned`, `created` or `over`; `ended_as` what the service called the end. `lost_answers` were given and
    kept by the service, and are billed by its rules, up to `lost_usd`.
    """

    number: int
    display_name: str
    requests: list[Requested]
    reserved_usd: float
    input_sha256: str = ""
    name: str | None = None
    state: str = "planned"
    ended_as: str | None = None
    request_count: int = 0
    lost_answers: int = 0
    lost_usd: float = 0.0
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())


class BatchStore:
    """The records of one run's jobs. Everything here blocks."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        self._run_id = run_id
        self._folder = f"runs/{run_id}/batches"
        self._last = 0

    def read(self) -> list[BatchRecord]:
        """What earlier processes left. Raises `OutputError` for a file that cannot be read: to go on without it would
        pay a second time."""
        names = [name for name in self._storage.list(self._folder) if name.endswith(".json")]
        records = [self._read(name) for name in names]
        self._last = max((record.number for record in records), default=0)
        return records

    def plan(self, requests: Iterable[Requested], *, reserved_usd: float) -> BatchRecord:
        """A record for the next job, not written yet."""
        self._last += 1
        # the end is of this job alone: another output may hold a run of the same name
        display_name = f"pixscribe-{self._run_id}-{self._last:05d}-{token_hex(4)}"
        requested = list(requests)
        return BatchRecord(self._last, display_name, requested, reserved_usd, request_count=len(requested))

    def write(self, record: BatchRecord) -> None:
        """Write what is known of a job."""
        self._storage.write(self._key(record), orjson.dumps({"version": VERSION, **asdict(record)}))

    def end(self, record: BatchRecord) -> None:
        """The job is over, and nothing of it is needed any more but what it came to."""
        record.state, record.requests = OVER, []
        self.write(record)

    def forget(self, record: BatchRecord) -> None:
        """The job was never created."""
        self._storage.delete(self._key(record))

    def _key(self, record: BatchRecord) -> str:
        return f"{self._folder}/{record.number:05d}.json"

    def _read(self, name: str) -> BatchRecord:
        origin = self._storage.uri_of(f"{self._folder}/{name}")
        try:
            value = orjson.loads(self._storage.read(f"{self._folder}/{name}"))
            if value.pop("version") != VERSION:
                raise OutputError(f"{origin}: is of another version; this is version {VERSION}")
            return _record(value)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(
                f"{origin}: is damaged: {error}; remove it to pay for what its job answers again"
            ) from error


def _record(value: dict[str, Any]) -> BatchRecord:
    requests = [Requested(**each) for each in value.pop("requests")]
    record = BatchRecord(requests=requests, **value)
    # what is added up, compared or sent must be what it seems
    numbers = (record.number, record.request_count, record.lost_answers)
    if not all(type(number) is int for number in numbers):
        raise ValueError("a count is no number")
    if record.name is not None and not re.fullmatch(r"batches/[A-Za-z0-9._-]{1,200}", record.name):
        raise ValueError("its name is none of a job")
    record.lost_usd, record.reserved_usd = float(record.lost_usd), float(record.reserved_usd)
    return record
