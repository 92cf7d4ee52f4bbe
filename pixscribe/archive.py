"""Answers that this output holds already, found by what was asked: what is there is never paid for again.

They lie in the `responses` of every run, complete or not, and in the journals of runs that were stopped. Of the tables
only an index is kept in memory, 24 bytes for each answer; a text is read when it is wanted.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
READERS = 16
DIGITS = 16
"""Of a request key, those that are in the index."""
REFRESH_EVERY_S = 30.0


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


@dataclass(frozen=True, slots=True)
class _Rows:
    """Of a part's lasting answers: the number of the request key, whether it is a good one, and the row."""

    numbers: NDArray[np.uint64]
    good: NDArray[np.bool_]
    places: NDArray[np.int32]


_NO_ROWS = _Rows(np.empty(0, np.uint64), np.empty(0, np.bool_), np.empty(0, np.int32))


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
        self._refreshed_s = time.monotonic()
        self._adding = threading.Lock()
        self._reading = threading.Lock()

    def open(self, journaled: Mapping[str, Answer], *, only_this_run: bool) -> None:
        """Read what there is; `journaled` is what this run itself was answered in shards that it did not commit."""
        others = [] if only_this_run else [name for name in self._storage.list("runs") if name != self._run_id]
        for name in others:
            self._journaled.update(_journal_of_other(self._storage, name))
        # this run's own count before the others', with what they cost, unless they are of no use
        self.take_up(journaled)
        runs = [f"run={name}" for name in (*others, self._run_id)]
        self.add_parts(key for run in runs for key in self._parts_of(run))

    def take_up(self, journaled: Mapping[str, Answer]) -> None:
        """Use what this run was answered in a shard that it did not commit."""
        self._wasted.update({key: answer for key, answer in journaled.items() if not _is_lasting(answer)})
        self._journaled.update({key: answer for key, answer in journaled.items() if _is_lasting(answer)})

    def refresh(self) -> None:
        """Look for what other processes have committed in this run, unless that was done in the last half minute.

        So an image that several workers come upon is paid for once, except by those that ask about it at the same time
        or within half a minute. An answer that stands in the journal of another shard only is not seen either.
        """
        if time.monotonic() - self._refreshed_s > REFRESH_EVERY_S:
            self._refreshed_s = time.monotonic()
            known = set(self._parts)
            self.add_parts([key for key in self._parts_of(f"run={self._run_id}") if key not in known])

    def add_parts(self, keys: Iterable[str]) -> None:
        """Take up parts of `responses`, in the order of their age."""
        with ThreadPoolExecutor(READERS, "pixscribe-archive") as readers:
            self._take_up(readers.map(self._read_rows, keys))

    def _take_up(self, parts: Iterable[tuple[str, _Rows]]) -> None:
        with self._adding:
            found = [self._segment(key, rows) for key, rows in parts]
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
        # in this thread: each new one would leave memory behind, and there is one part to read
        self._take_up([self._read_rows(part)])

    def _parts_of(self, run: str) -> list[str]:
        names = self._storage.list(f"responses/{run}")
        return [f"responses/{run}/{name}" for name in names if name.endswith(".parquet")]

    def _newest(self, request_key: str) -> _Entry | None:
        number = np.uint64(_number(request_key))
        found = [entry for segment in self._segments if (entry := segment.find(number)) is not None]
        return max(found, default=None)

    def _read_rows(self, key: str) -> tuple[str, _Rows]:
        """The lasting answers of a part; none if it cannot be read."""
        try:
            with self._storage.open(key) as file:
                table = _columns(file, ["request_key", "status", "error_code"])
            return key, _lasting_rows(table)
        except (OSError, KeyError, ValueError, pa.ArrowException, OutputError) as error:
            logger.error("%s: cannot be read, so its answers are not used: %s", self._storage.uri_of(key), error)
            return key, _NO_ROWS

    def _segment(self, key: str, rows: _Rows) -> _Segment:
        part, count = len(self._parts), len(rows.numbers)
        self._parts.append(key)
        return _Segment(
            rows.numbers,
            part + np.where(rows.good, np.int64(BETTER), np.int64(0)),
            np.full(count, part, np.int32),
            rows.places,
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
                    self._tables[part] = _columns(file, COLUMNS)
                if len(self._tables) > PARTS_IN_MEMORY:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(part)
            return self._tables[part]


def asked_since(storage: Storage, since: datetime) -> int:
    """How many requests the runs of this output have sent since then, as far as they have committed them."""
    keys = (
        f"responses/{run}/{name}"
        for run in storage.list("responses")
        for name in storage.list(f"responses/{run}")
        if name.endswith(".parquet")
    )
    with ThreadPoolExecutor(READERS, "pixscribe-archive") as readers:
        return sum(readers.map(lambda key: _asked_in_part(storage, key, since), keys))


def _asked_in_part(storage: Storage, key: str, since: datetime) -> int:
    try:
        with storage.open(key) as file:
            table = _columns(file, ["asked_at", "attempts"])
        late = pc.greater_equal(table["asked_at"], pa.scalar(since, table["asked_at"].type))
        return int(pc.sum(table["attempts"].filter(late)).as_py() or 0)
    except (OSError, KeyError, pa.ArrowException, OutputError) as error:
        logger.error("%s: cannot be read, so its requests are not counted: %s", storage.uri_of(key), error)
        return 0


def _columns(file: BinaryIO, names: list[str]) -> pa.Table:
    """Some columns of a part. `pq.read_table` would open a data set, for three times the time. Raises KeyError."""
    return pq.ParquetFile(file, pre_buffer=True).read(names, use_threads=False).select(names)


def _lasting_rows(table: pa.Table) -> _Rows:
    # lists, not Arrow's functions: those let go of the GIL at each call, for which all the other readers wait
    keys, statuses, codes = (column.to_pylist() for column in table.columns)
    places = [
        place
        for place, (key, status, code) in enumerate(zip(keys, statuses, codes, strict=True))
        if len(key or "") >= DIGITS and (status != "failed" or code in LASTING_CODES)
    ]
    digits = "".join(keys[place][:DIGITS] for place in places)
    return _Rows(
        np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64),
        np.array([statuses[place] != "failed" for place in places], np.bool_),
        np.array(places, np.int32),
    )


def _is_lasting(answer: Answer) -> bool:
    return answer.status != "failed" or answer.error_code in LASTING_CODES


def _number(request_key: str) -> int:
    return int(request_key[:DIGITS], 16)


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
