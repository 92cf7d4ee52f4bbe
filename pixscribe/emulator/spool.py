"""Texts that may be too long for memory: the JSON Lines that go into a batch, and those that come out of it."""

import tempfile
import threading
import weakref
from collections.abc import Iterator

_IN_MEMORY_BYTES = 1024 * 1024
_PIECE_BYTES = 256 * 1024


class Spool:
    """Bytes in memory while they are few, and from then on in a temporary file without a name.

    It may be read by several threads at once, and goes with the last who holds it.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 (closed by the finalizer)
        self._lock = threading.Lock()
        weakref.finalize(self, self._file.close)

    def write(self, data: bytes, at: int | None = None) -> None:
        """Without `at` behind what is there. What came after `at` counts no more."""
        at = self.size_bytes if at is None else at
        with self._lock:
            self._file.seek(at)
            self._file.write(data)
            self.size_bytes = at + len(data)

    def cut(self, size_bytes: int) -> None:
        """Forget what is beyond."""
        self.size_bytes = min(self.size_bytes, size_bytes)

    def read(self, start: int, stop: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(max(0, min(stop, self.size_bytes) - start))

    def pieces(self, stop: int) -> Iterator[bytes]:
        """What is before `stop`, a quarter of a megabyte at a time."""
        for start in range(0, min(stop, self.size_bytes), _PIECE_BYTES):
            yield self.read(start, min(stop, start + _PIECE_BYTES))

    def lines(self, longest_bytes: int) -> Iterator[bytes]:
        """Each with its newline. Of one that is longer than `longest_bytes` one byte more comes, and the rest after."""
        start = 0
        while start < self.size_bytes:
            with self._lock:
                self._file.seek(start)
                line = self._file.readline(min(longest_bytes + 1, self.size_bytes - start))
            start += len(line)
            yield line
