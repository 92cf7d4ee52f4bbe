"""What a process takes: wall and CPU time, memory over its life, and how busy the machine's cores were meanwhile.

measured = run_measured([sys.executable, "-m", "tests.run_without_prefect", "config.yaml"])
print(markdown_table(["", "s", "CPU s"], [["ours", f"{measured.wall_s:.1f}", f"{measured.cpu_s:.1f}"]]))
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BIN = Path(os.environ.get("PIXSCRIBE_BENCH_BIN", Path(sys.executable).parent))
"""Of the installation that is measured: one from requirements.lock alone has no pandas, which pyarrow would import."""
CORES = os.cpu_count() or 1
MB = 1e6


@dataclass(frozen=True, slots=True)
class Reading:
    """A moment in the life of a process."""

    elapsed_s: float
    rss_bytes: int
    """Of the process alone."""
    tree_rss_bytes: int
    """With all its descendants; pages that they share are counted for each."""
    done: int
    """What `observe` returned, such as the number of images done so far."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One process from its start to its end."""

    wall_s: float
    cpu_s: float
    """User and system time, with every descendant that was waited for."""
    own_cpu_s: float
    """Of the process alone, as of a twentieth of a second before its end."""
    peak_rss_bytes: int
    """The most that the process itself held, as the kernel knows it."""
    peak_tree_rss_bytes: int
    """The most that it and its descendants were seen to hold."""
    machine_busy: float
    """The share of the machine's cores that anybody used meanwhile, 0 to 1, of what neighbours left of them."""
    readings: list[Reading] = field(default_factory=list, repr=False)
    stdout: str = field(default="", repr=False)

    @property
    def cores_busy(self) -> float:
        """The share of all cores that the process and its descendants used, 0 to 1."""
        return self.cpu_s / self.wall_s / CORES

    def numbers(self) -> dict[str, Any]:
        """For the raw results: everything but stdout."""
        return {name: value for name, value in asdict(self).items() if name != "stdout"} | {
            "cores_busy": self.cores_busy
        }


def run_measured(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    every_s: float = 0.5,
    observe: Callable[[], int] = lambda: 0,
    expected_codes: Sequence[int] = (0,),
) -> Measured:
    """Run a command in the project's folder to its end. Exits with its stderr if it ends with another code."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        cores_before, started_s = _core_seconds(), time.monotonic()
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, cwd=ROOT, env={**os.environ, **(environment or {})}
        )
        with _Watch(process.pid, every_s, observe) as watch:
            # not `process.wait`: only here the kernel says what a process and its children took, apart from all others
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.monotonic() - started_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in expected_codes:
            stderr.seek(0)
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{stderr.read()[-3000:]}")
        stdout.seek(0)
        return Measured(
            wall_s=wall_s,
            cpu_s=usage.ru_utime + usage.ru_stime,
            own_cpu_s=watch.own_cpu_s,
            peak_rss_bytes=watch.peak_rss_bytes,
            peak_tree_rss_bytes=max((reading.tree_rss_bytes for reading in watch.readings), default=0),
            machine_busy=_busy_share(cores_before, _core_seconds()),
            readings=watch.readings,
            stdout=stdout.read(),
        )


@contextmanager
def emulator(*arguments: str) -> Iterator[str]:
    """The URL of an emulator that does not look at pixels, in a process of its own."""
    command = [str(BIN / "pixscribe"), "emulate", "--port", "0", "--no-look", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for README.md."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def surroundings() -> str:
    """One line on when, where and with what was measured."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("pillow", "pillow-heif", "pyarrow", "prefect"))
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, {CORES} cores, {packages}"


def save_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write the raw numbers as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"measured": surroundings(), **results}, indent=1) + "\n")
    print(f"raw numbers: {path}", file=sys.stderr)


class _Watch:
    """Looks at a process from a thread, until the context ends."""

    def __init__(self, pid: int, every_s: float, observe: Callable[[], int]) -> None:
        self.readings: list[Reading] = []
        self.peak_rss_bytes = 0
        self.own_cpu_s = 0.0
        self._pid, self._every_s, self._observe = pid, every_s, observe
        self._started_s = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        due_s = 0.0
        # the peak is looked at more often than written down: its last value is gone with the process
        while not self._over.wait(min(0.05, self._every_s)):
            status = process_sizes(self._pid)
            self.peak_rss_bytes = max(self.peak_rss_bytes, status.get("VmHWM", 0))
            self.own_cpu_s = max(self.own_cpu_s, _cpu_s(self._pid))
            elapsed_s = time.monotonic() - self._started_s
            if "VmRSS" in status and elapsed_s >= due_s:
                due_s = elapsed_s + self._every_s
                tree = sum(process_sizes(pid).get("VmRSS", 0) for pid in descendants(self._pid))
                self.readings.append(Reading(elapsed_s, status["VmRSS"], status["VmRSS"] + tree, self._observe()))


def process_sizes(pid: int) -> dict[str, int]:
    """The sizes in /proc/<pid>/status, in bytes; empty when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}


def _cpu_s(pid: int) -> float:
    """User and system time of a process, without its children; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int, ignore: Collection[int] = ()) -> list[int]:
    """All processes below `pid`, without those in `ignore` and what is below them."""
    children = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # the name stands in brackets and may hold anything
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children[parent].append(int(folder.name))
    found, waiting = list[int](), [pid]
    while waiting:
        below = [child for child in children[waiting.pop()] if child not in ignore]
        found += below
        waiting += below
    return found


def _core_seconds() -> tuple[int, int]:
    """(busy, idle) of all cores together, in ticks. What the hypervisor gave to others is neither."""
    user, nice, system, idle, iowait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return user + nice + system + irq + softirq, idle + iowait


def _busy_share(before: tuple[int, int], after: tuple[int, int]) -> float:
    busy, idle = (now - then for then, now in zip(before, after, strict=True))
    return busy / max(1, busy + idle)
