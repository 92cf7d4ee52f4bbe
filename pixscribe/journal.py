"""Answers on disk before their shard is: what was paid for survives whatever happens to the process.

    <output>/runs/<id>/journal/<shard>-<random>.arrow

Each file holds the answers of one shard that came in during half a second at most. They are read when the run, or the
shard, is taken up again, and removed when their shard is committed.
"""

import asyncio
from collections import defaultdict
from contextlib import suppress
from uuid import uuid4

import pyarrow as pa

from pixscribe.asking import Answer
from pixscribe.errors import OutputError, RunError
from pixscribe.storage import Storage, is_bucket
from pixscribe.types import Usage

FLUSH_EVERY_S = 0.5
"""Half of the second that is promised; the writing takes the rest. In a bucket each time costs money."""
FLUSH_FOLDER_EVERY_S = 0.1
"""On a disk it costs a few milliseconds, and what came in since is what a killed run pays for again."""
VERSION = "1"
SCHEMA = pa.schema(
    [
        ("request_key", pa.string()),
        ("status", pa.string()),
        ("text", pa.string()),
        ("error_code", pa.string()),
        ("error", pa.string()),
        ("model", pa.string()),
        ("attempts", pa.int32()),
        ("latency_ms", pa.int64()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("thought_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("asked_at", pa.timestamp("us", tz="UTC")),
    ],
    metadata={b"pixscribe.journal_version": VERSION.encode()},
)


class Journal:
    """The journal of one run. Everything but `answers` belongs on the engine's loop."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        self._folder = f"runs/{run_id}/journal"
        self._pending: dict[str, list[Answer]] = defaultdict(list)
        self._written: dict[str, list[str]] = defaultdict(list)
        self._failure: RunError | None = None
        self._flushing = asyncio.Lock()

    def add(self, shard: str, answer: Answer) -> None:
        """Have a billed answer written within a second. Raises what an earlier write failed with."""
        self._pending[shard].append(answer)  # also after a failure: the last flush may succeed
        if self._failure is not None:
            raise self._failure

    def fail(self, error: RunError) -> None:
        """Let the next `add` raise this."""
        self._failure = self._failure or error

    async def flush_for_ever(self) -> None:
        """Write what has come in, several times a second, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_EVERY_S if is_bucket(self._storage.uri) else FLUSH_FOLDER_EVERY_S)
            try:
                await self.flush()
            except RunError as error:
                self.fail(error)
            except Exception as error:
                # whatever it is: to go on without a journal would lose what is paid for
                self.fail(OutputError(f"the journal cannot be written: {type(error).__name__}: {error}"))

    async def flush(self) -> None:
        """Write what has come in. Raises `OutputError`."""
        async with self._flushing:
            for shard, pending in list(self._pending.items()):
                answers = list(pending)
                if not answers:
                    continue
                key = f"{self._folder}/{shard}-{uuid4().hex[:12]}.arrow"
                await asyncio.to_thread(_write, self._storage, key, answers)
                self._written[shard].append(key)
                # only now: a write that failed, or was cancelled, is tried again
                del pending[: len(answers)]

    async def forget(self, shard: str) -> None:
        """Remove what is journaled of a shard, because its parts are committed."""
        async with self._flushing:
            self._pending.pop(shard, None)
            keys = self._written.pop(shard, [])
            await asyncio.to_thread(_delete, self._storage, keys)

    def answers(self, of_shard: str | None = None) -> dict[str, Answer]:
        """What earlier processes were answered in shards that they did not commit, by request key; not yet parsed.

        `of_shard` names the only shard to look for. Of several answers to one question that with the most attempts is
        the last: its cost holds that of the others. Raises `OutputError` for a file that cannot be read: to go on
        without it would pay a second time.
        """
        found: dict[str, Answer] = {}
        for name in self._names():
            shard, key = name.partition("-")[0], f"{self._folder}/{name}"
            if of_shard not in (None, shard):
                continue
            if key not in self._written[shard]:
                self._written[shard].append(key)
            for answer in read_journal(self._storage, key):
                before = found.get(answer.request_key or "")
                if before is None or answer.attempts >= before.attempts:
                    found[answer.request_key or ""] = answer
        return found

    def drop(self, committed: set[str]) -> None:
        """Remove what a process left of shards that it had committed: it stands in the tables."""
        for name in self._names():
            if name.partition("-")[0] in committed:
                self._storage.delete(f"{self._folder}/{name}")

    def _names(self) -> list[str]:
        return self._storage.list(self._folder)


def _write(storage: Storage, key: str, answers: list[Answer]) -> None:
    columns = {name: [_value(answer, name) for answer in answers] for name in SCHEMA.names}
    table = pa.Table.from_pydict(columns, schema=SCHEMA)
    with storage.create(key) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(table)


def _value(answer: Answer, name: str) -> object:
    value: object = getattr(answer.usage if name.endswith("_tokens") else answer, name)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def read_journal(storage: Storage, key: str) -> list[Answer]:
    """The answers of one file, not yet parsed. Raises `OutputError`, or FileNotFoundError if it is gone."""
    try:
        with storage.open(key) as file, pa.ipc.open_file(file) as reader:
            version = (reader.schema.metadata or {}).get(b"pixscribe.journal_version", b"").decode()
            rows = reader.read_all().to_pylist() if version == VERSION else None
    except FileNotFoundError:
        raise
    except (OutputError, OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{storage.uri_of(key)}: is damaged: {error}; remove it to pay for its answers again"
        ) from error
    if rows is None:
        raise OutputError(f"{storage.uri_of(key)}: is a journal of version {version!r}, this is version {VERSION}")
    return [_answer(row) for row in rows]


def _answer(row: dict[str, object]) -> Answer:
    tokens = {name: row.pop(name) for name in ("input_tokens", "output_tokens", "thought_tokens")}
    return Answer(usage=Usage(**tokens), reused=True, **row)  # type: ignore[arg-type]


def _delete(storage: Storage, keys: list[str]) -> None:
    for key in keys:
        # what stays behind is of a committed shard, and never read again
        with suppress(OutputError):
            storage.delete(key)
