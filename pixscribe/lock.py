"""The right to work on the runs of one config, held by one process of all that see the output.

<output>/runs/.<config digest>.lock says who has it and when that was last confirmed. It is confirmed by a heartbeat,
taken over when the heartbeat stops, and looked at before each commit, so that a process that slept through its takeover
writes nothing any more. Where other processes do the work, they look at the lock of the one that leads, and each shard
has a lock of the same kind, so that two of them never pay for the same.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import orjson

from pixscribe.errors import LockHeld, LockLost, OutputError
from pixscribe.storage import Storage

logger = logging.getLogger(__name__)

LIFE_S = 60.0
"""A heartbeat that is older has stopped."""
BEATS = 4
"""In a life, so that a slow bucket or a full event loop loses nothing."""
LOOK_EVERY_S = 15.0
"""How often a worker looks at the lock of the process that leads the run."""


def _steady_s() -> float:
    """Seconds that go on while the machine sleeps, which `time.monotonic` leaves out on Linux."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, and when it was last heard of. `machine` is the same for all that see each other's pids."""

    token: str
    host: str
    machine: str
    pid: int
    started: str
    heard_at: str

    @classmethod
    def this_process(cls) -> "Owner":
        """A new owner, with a token that no other has."""
        pid = os.getpid()
        return cls(uuid4().hex, socket.gethostname(), _machine(), pid, _started(pid), _now().isoformat())

    def has_ended(self) -> bool:
        """Whether it is known to be no more, which can be told of processes of this machine only."""
        return self.machine == _machine() and _started(self.pid) != self.started

    def is_gone(self, now: datetime) -> bool:
        """Whether the lock may be taken from it: its process has ended, or it has not been heard of for too long."""
        if self.has_ended():
            return True
        return (now - datetime.fromisoformat(self.heard_at)).total_seconds() > LIFE_S


@dataclass(slots=True)
class RunLock:
    """`held` around a run, and `check` before each commit. Thread-safe."""

    storage: Storage
    key: str
    clock: Callable[[], float] = _steady_s
    subject: str = "this config"
    """What it is that only one may work on, for messages."""
    owner: Owner = field(default_factory=Owner.this_process)
    is_lost: bool = False
    """Whether another process has taken over; set by the heartbeat."""
    _content: bytes | None = None
    _confirmed_s: float = 0.0
    _using: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def held(self) -> Iterator["RunLock"]:
        """Hold the lock, with a heartbeat on a thread of its own, which nothing that a run does can slow down.

        Raises `LockHeld` if a living process has it.
        """
        over = threading.Event()
        self.acquire()
        heart = threading.Thread(target=self._beat_until, args=(over,), name="pixscribe-heartbeat", daemon=True)
        heart.start()
        try:
            yield self
        finally:
            over.set()
            heart.join()
            self.release()

    def acquire(self) -> None:
        """Take the lock. Raises `LockHeld` if a living process has it."""
        found = self._read()
        if found is not None:
            other = _owner_in(found)
            if other is not None and not other.is_gone(_now()):
                raise LockHeld(
                    f"{self.storage.uri_of(self.key)}: another process is at work on {self.subject}: "
                    f"pid {other.pid} on {other.host}, heard of at {other.heard_at[:19]}Z"
                )
            whom = f"pid {other.pid} on {other.host}" if other else "an unknown process"
            logger.warning("taking over from %s, which has ended without letting go of the lock", whom)
        if not self._put(found) and not self._put_again():
            raise LockHeld(f"{self.storage.uri_of(self.key)}: another process has just begun to work on {self.subject}")

    def beat(self) -> None:
        """Confirm that this process is alive. Raises `LockLost` if another one has taken over."""
        with self._using:
            if self._content is None or not (self._put(self._content) or self._put_again()):
                self.is_lost = True
                raise LockLost(
                    f"{self.storage.uri_of(self.key)}: another process has taken over this run, "
                    "because nothing was heard of this one; it goes on there"
                )

    def check(self) -> None:
        """Make sure, before something is committed, that the run is still ours. Raises `LockLost`."""
        if self.clock() - self._confirmed_s > 2 * self.pause_s():
            self.beat()

    @staticmethod
    def pause_s() -> float:
        """Seconds from one beat to the next."""
        return LIFE_S / BEATS

    def release(self) -> None:
        """Let go of the lock, if it is still ours."""
        with self._using, suppress(OutputError):
            # whoever is still writing must find out that it is not ours any more
            self._content, self._confirmed_s = None, float("-inf")
            if self._mine() is not None:
                self.storage.delete(self.key)

    def _put(self, old: bytes | None) -> bool:
        asked_s = self.clock()
        content = orjson.dumps(asdict(replace(self.owner, heard_at=_now().isoformat())))
        if not self.storage.swap(self.key, old, content):
            return False
        self._content, self._confirmed_s = content, asked_s
        return True

    def _beat_until(self, over: threading.Event) -> None:
        while not over.wait(self.pause_s()):
            try:
                self.beat()
            except LockLost:
                return  # `check` and `is_lost` tell those whom it concerns
            except OutputError as error:
                logger.warning("the lock could not be confirmed: %s", error)

    def _put_again(self) -> bool:
        """After a swap that failed: only its answer may have got lost."""
        mine = self._mine()
        return mine is not None and self._put(mine)

    def _mine(self) -> bytes | None:
        """What is there, if this owner wrote it."""
        found = self._read()
        owner = _owner_in(found) if found is not None else None
        return found if owner is not None and owner.token == self.owner.token else None

    def _read(self) -> bytes | None:
        try:
            return self.storage.read(self.key)
        except FileNotFoundError:
            return None


@dataclass(slots=True)
class LeadersLock:
    """The lock of the process that leads a run, as a worker sees it that `token` was handed to. Thread-safe.

    How long nothing was heard is told by the worker's own clock, from the first look on: those of two machines differ.
    """

    storage: Storage
    key: str
    token: str
    clock: Callable[[], float] = _steady_s
    is_lost: bool = False
    _seen: bytes = b""
    _heard_s: float = 0.0
    _looked_s: float = float("-inf")
    _using: threading.Lock = field(default_factory=threading.Lock)

    def check(self, max_age_s: float = LOOK_EVERY_S) -> None:
        """Make sure that the run was still led by that process `max_age_s` ago. Raises `LockLost`."""
        with self._using:
            if self.is_lost or self.clock() - self._looked_s > max_age_s:
                self._look()

    def _look(self) -> None:
        self._looked_s = self.clock()
        found = self._read()
        if found is not None and found != self._seen:
            self._seen, self._heard_s = found, self._looked_s
        owner = _owner_in(self._seen)
        is_led = owner is not None and owner.token == self.token and not owner.has_ended()
        if self.is_lost or not is_led or self._looked_s - self._heard_s > LIFE_S:
            self.is_lost = True
            raise LockLost(
                f"{self.storage.uri_of(self.key)}: the process that leads this run has ended or lost it, "
                "so nothing more is sent from here"
            )

    def _read(self) -> bytes | None:
        """None if it cannot be read just now: that is the same as hearing nothing."""
        try:
            return self.storage.read(self.key)
        except FileNotFoundError:
            return b""
        except OutputError as error:
            logger.warning("the lock could not be looked at: %s", error)
            return None


def _owner_in(content: bytes) -> Owner | None:
    """None for what no process of ours wrote, which nobody can be asked about."""
    try:
        owner = Owner(**orjson.loads(content))
        datetime.fromisoformat(owner.heard_at)
    except (TypeError, ValueError):
        return None
    return owner


def _now() -> datetime:
    return datetime.now(UTC)


def _machine() -> str:
    """One boot of one machine, and in it the processes that a container sees."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (no real path)
    return socket.gethostname()


def _started(pid: int) -> str:
    """When a process was started, in the system's own words; empty if there is none, `?` if it cannot be told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return "" if Path("/proc/self").exists() else _is_alive(pid)
    except OSError:
        return "?"
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


def _is_alive(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "?"
