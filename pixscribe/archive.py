"""Answers that this output holds already, found by what was asked: what is there is never paid for again.

They lie in the `responses` of every run, complete or not, and in the journals of runs that were stopped. Of the tables
only an index is kept in memory, 24 bytes for each answer; a text is read when it is wanted.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixscribe.asking import Answer
from pixscribe.errors import OutputError
from pixscribe.journal import read_journal
from pixscribe.storage import Storage
from pixscribe.types import Usage

logger = logging.getLogger(__name__)

LASTING_CODES = frozenset(("blocked", "request_refused"))
"""Failures that asking again does not change."""
COLUMNS = ["request_key", "status", "error_code", "error", "text", "model", "parser_version"]
BETTER = 1 << 40
"""Above the number of any part: an answer ranks before a lasting failure, however old."""
PARTS_IN_MEMORY = 8
READERS = 8


@dataclass(frozen=True, slots=True)
class _Segment:
    """A part of the index, sorted by key: the first 64 bits of a request key, and where its answer stands."""

    keys: NDArray[np.uint64]
    ranks: NDArray[np.int64]
    parts: NDArray[np.int32]
    rows: NDArray[np.int32]

    @classmethod
    def merged(cls, segments: Sequence["_Segment"]) -> "_Segment":
        """One segment of several. Of the answers to one question the best, and of those the newest, comes last."""
        keys, ranks, parts, rows = (
            np.concatenate([getattr(segment, name) for segment in segments])
            for name in ("keys", "ranks", "parts", "rows")
        )
        order = np.lexsort((ranks, keys))
        return cls(keys[order], ranks[order], parts[order], rows[order])

    def find(self, number: np.uint64) -> "_Entry | None":
        place = int(self.keys.searchsorted(number, side="right")) - 1
        if place < 0 or self.keys[place] != number:
            return None
        return _Entry(int(self.ranks[place]), int(self.parts[place]), int(self.rows[place]))


@dataclass(frozen=True, slots=True, order=True)
class _Entry:
    rank: int
    part: int
    row: int


class Archive:
    """The answers of one output, for one run. `find` blocks and may be called from any thread."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        self._run_id = run_id
        self._segments: list[_Segment] = []
        self._parts: list[str] = []
        self._journaled: dict[str, Answer] = {}
        self._wasted: dict[str, Answer] = {}
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._adding = threading.Lock()
        self._reading = threading.Lock()

    def open(self, journaled: Mapping[str, Answer], *, only_this_run: bool) -> None:
        """Read what there is; `journaled` is what this run itself was answered in shards that it did not commit."""
        others = [] if only_this_run else [name for name in self._storage.list("runs") if name != self._run_id]
        for name in others:
            self._journaled.update(_journal_of_other(self._storage, name))
        # this run's own count before the others', with what they cost, unless they are of no use
        self._wasted = {key: answer for key, answer in journaled.items() if not _is_lasting(answer)}
        self._journaled.update({key: answer for key, answer in journaled.items() if _is_lasting(answer)})
        runs = [f"run={name}" for name in (*others, self._run_id)]
        self.add_parts(key for run in runs for key in self._parts_of(run))

    def add_parts(self, keys: Iterable[str]) -> None:
        """Take up parts of `responses`, in the order of their age."""
        with self._adding, ThreadPoolExecutor(READERS, "pixscribe-archive") as readers:
            found = [self._segment(key, rows) for key, rows in readers.map(self._read_rows, keys)]
            segments = [*self._segments, *([_Segment.merged(found)] if found else [])]
            # as many answers are merged again each time as are new, whatever their number has grown to
            while len(segments) > 1 and len(segments[-2].keys) <= 2 * len(segments[-1].keys):
                segments[-2:] = [_Segment.merged(segments[-2:])]
            self._segments = segments

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing from before."""
        return not self._journaled and not any(len(segment.keys) for segment in self._segments)

    def has(self, request_key: str) -> bool:
        """Whether `find` may have something: quick, and seldom wrong."""
        return request_key in self._journaled or self._newest(request_key) is not None

    def is_unsettled(self, request_key: str) -> bool:
        """Whether an answer stands in a journal only, so that its cost is still to be written down."""
        return request_key in self._journaled

    def wasted(self, request_key: str) -> Answer | None:
        """What this run was answered to that question to no use before it was stopped; it stays to be paid for."""
        return self._wasted.get(request_key)

    def find(self, request_key: str) -> Answer | None:
        """The answer, not parsed yet; None if there is none, or only one that is worth another try."""
        if (journaled := self._journaled.get(request_key)) is not None:
            return journaled
        entry = self._newest(request_key)
        return self._read_answer(entry, request_key) if entry else None

    def settle(self, part: str, request_keys: Iterable[str]) -> None:
        """A shard was committed: its answers are found in its part from now on, where they cost nothing any more."""
        for request_key in request_keys:
            self._journaled.pop(request_key, None)
            self._wasted.pop(request_key, None)
        self.add_parts([part])

    def _parts_of(self, run: str) -> list[str]:
        names = self._storage.list(f"responses/{run}")
        return [f"responses/{run}/{name}" for name in names if name.endswith(".parquet")]

    def _newest(self, request_key: str) -> _Entry | None:
        number = np.uint64(_number(request_key))
        found = [entry for segment in self._segments if (entry := segment.find(number)) is not None]
        return max(found, default=None)

    def _read_rows(self, key: str) -> tuple[str, list[tuple[int, int, int]]]:
        """Of a part's lasting answers: number, whether it is a good one, and row."""
        try:
            with self._storage.open(key) as file:
                table = pq.read_table(file, columns=["request_key", "status", "error_code"])
        except (OSError, KeyError, pa.ArrowException, OutputError) as error:
            logger.error("%s: cannot be read, so its answers are not used: %s", self._storage.uri_of(key), error)
            return key, []
        return key, [
            (_number(row["request_key"]), row["status"] != "failed", place)
            for place, row in enumerate(table.to_pylist())
            if row["request_key"] and (row["status"] != "failed" or row["error_code"] in LASTING_CODES)
        ]

    def _segment(self, key: str, rows: list[tuple[int, int, int]]) -> _Segment:
        part = len(self._parts)
        self._parts.append(key)
        return _Segment(
            np.array([number for number, _, _ in rows], np.uint64),
            np.array([part + (BETTER if is_good else 0) for _, is_good, _ in rows], np.int64),
            np.full(len(rows), part, np.int32),
            np.array([place for _, _, place in rows], np.int32),
        )

    def _read_answer(self, entry: _Entry, request_key: str) -> Answer | None:
        try:
            values = self._table(entry.part).slice(entry.row, 1).to_pylist()[0]
        except (OSError, IndexError, KeyError, pa.ArrowException, OutputError) as error:
            logger.error("%s: cannot be read any more: %s", self._storage.uri_of(self._parts[entry.part]), error)
            return None
        # sixteen digits of the key are in the index, the other forty-eight only here
        return Answer(reused=True, **values) if values["request_key"] == request_key else None

    def _table(self, part: int) -> pa.Table:
        with self._reading:
            if part not in self._tables:
                with self._storage.open(self._parts[part]) as file:
                    self._tables[part] = pq.read_table(file, columns=COLUMNS)
                if len(self._tables) > PARTS_IN_MEMORY:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(part)
            return self._tables[part]


def asked_since(storage: Storage, since: datetime) -> int:
    """How many requests the runs of this output have sent since then, as far as they have committed them."""
    count = 0
    for run in storage.list("responses"):
        for name in storage.list(f"responses/{run}"):
            if name.endswith(".parquet"):
                count += _asked_in_part(storage, f"responses/{run}/{name}", since)
    return count


def _asked_in_part(storage: Storage, key: str, since: datetime) -> int:
    try:
        with storage.open(key) as file:
            rows = pq.read_table(file, columns=["asked_at", "attempts"]).to_pylist()
    except (OSError, KeyError, pa.ArrowException, OutputError) as error:
        logger.error("%s: cannot be read, so its requests are not counted: %s", storage.uri_of(key), error)
        return 0
    return sum(row["attempts"] for row in rows if row["asked_at"] and row["asked_at"] >= since)


def _is_lasting(answer: Answer) -> bool:
    return answer.status != "failed" or answer.error_code in LASTING_CODES


def _number(request_key: str) -> int:
    return int(request_key[:16], 16)


def _journal_of_other(storage: Storage, run_id: str) -> Iterator[tuple[str, Answer]]:
    """What another run was answered before it was stopped, which is none of this run's cost."""
    folder = f"runs/{run_id}/journal"
    for name in storage.list(folder):
        try:
            answers = read_journal(storage, f"{folder}/{name}")
        except FileNotFoundError:
            continue  # its process has just committed the shard
        except OutputError as error:
            logger.error("answers of another run are not used: %s", error)
            continue
        for answer in answers:
            if answer.request_key and _is_lasting(answer):
                yield (
                    answer.request_key,
                    replace(answer, attempts=0, latency_ms=None, usage=Usage(), cost_usd=0.0, asked_at=None),
                )
