"""A command with everything that it starts, servers that outlive it among them: its time, CPU and memory.

done = run_tree([python, "script.py"], environment=environment, ignore=[emulator_pid])
print(done.wall_s, done.cpu_s, done.peak_rss_bytes)
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.measure import descendants, process_sizes

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_EVERY_S = 0.1
_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Tree:
    """One command from its start until nothing of it runs any more."""

    code: int
    """What the command itself ended with; -9 when it was killed."""
    wall_s: float
    """Until the command itself ended."""
    cpu_s: float
    """User and system time of all its processes, those that it left running included."""
    peak_rss_bytes: int
    """The most that all its processes were seen to hold together; shared pages count for each."""
    peak_own_rss_bytes: int
    """The most that the command's own process held."""
    stdout: str = field(default="", repr=False)
    stderr: str = field(default="", repr=False)


def run_tree(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    ignore: Collection[int] = (),
    kill_when: Callable[[], bool] | None = None,
    timeout_s: float = 1800,
) -> Tree:
    """Run a command to its end, or until `kill_when` says so (asked ten times a second), then kill all of it.

    `ignore` are children of this process that are no part of it. After `timeout_s` it is killed too.
    """
    _adopt_orphans()
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        started_s = time.monotonic()
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment, start_new_session=True)
        with _Watch(process.pid, ignore, kill_when, started_s + timeout_s) as watch:
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.monotonic() - started_s
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu_s = usage.ru_utime + usage.ru_stime + _end_orphans(ignore)
        stdout.seek(0)
        stderr.seek(0)
        return Tree(
            code=process.returncode,
            wall_s=wall_s,
            cpu_s=cpu_s,
            peak_rss_bytes=watch.peak_rss_bytes,
            peak_own_rss_bytes=watch.peak_own_rss_bytes,
            stdout=stdout.read(),
            stderr=stderr.read(),
        )


class _Watch:
    """Looks at the tree from a thread, until the context ends."""

    def __init__(
        self, pid: int, ignore: Collection[int], kill_when: Callable[[], bool] | None, deadline_s: float
    ) -> None:
        self.peak_rss_bytes = self.peak_own_rss_bytes = 0
        self._pid, self._ignore, self._kill_when, self._deadline_s = pid, ignore, kill_when, deadline_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            tree = descendants(os.getpid(), self._ignore)
            sizes = {pid: process_sizes(pid) for pid in tree}
            self.peak_rss_bytes = max(self.peak_rss_bytes, sum(each.get("VmRSS", 0) for each in sizes.values()))
            self.peak_own_rss_bytes = max(self.peak_own_rss_bytes, sizes.get(self._pid, {}).get("VmHWM", 0))
            if time.monotonic() > self._deadline_s or (self._kill_when is not None and self._kill_when()):
                # as when a machine goes down: all at once, and nobody says goodbye
                for pid in tree:
                    _signal(pid, signal.SIGKILL)
                return


def _adopt_orphans() -> None:
    """What loses its parent becomes a child of this process instead of one of init, so that it can be counted."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def _end_orphans(ignore: Collection[int]) -> float:
    """End what is left of a tree; the CPU seconds of all that had ended or was ended here."""
    cpu_s, deadline_s = 0.0, time.monotonic() + _GRACE_S
    while left := descendants(os.getpid(), ignore):
        for pid in left:
            _signal(pid, signal.SIGTERM if time.monotonic() < deadline_s else signal.SIGKILL)
        for pid in left:
            cpu_s += _reaped_cpu_s(pid)
        time.sleep(0.05)
    return cpu_s


def _reaped_cpu_s(pid: int) -> float:
    try:
        reaped, _, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:  # not ours yet: its parent lives
        return 0.0
    return usage.ru_utime + usage.ru_stime if reaped else 0.0


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
