"""What a person sees of a run: a progress bar on a terminal, one line per shard elsewhere, and the closing summary."""

import shlex
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pixscribe.config import EMULATOR
from pixscribe.prices import PRICES_AS_OF
from pixscribe.progress import Tally
from pixscribe.run import RunSummary, Session, open_sessions

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line on stderr about what is going on."""
    stderr.print(message, markup=False)


class ProgressDisplay:
    """Shows the open run of this process; call `update` a few times a second. Works as a context manager."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self._lines_shown = 0
        self._started_s = time.monotonic()
        self._bar = _make_bar() if stderr.is_terminal else None
        self._task = self._bar.add_task("starting", total=None, live="") if self._bar else None

    def __enter__(self) -> "ProgressDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        if self._bar:
            self._bar.stop()

    def update(self) -> None:
        """Show what has changed."""
        if self.session is None:
            self._greet()
        if self.session is None:
            return
        tally = self.session.tally
        if self._bar and self._task is not None:
            elapsed_s = time.monotonic() - self._started_s
            total = tally.images_total or None
            self._bar.update(self._task, total=total, completed=tally.images_done, live=_live_text(tally, elapsed_s))
        else:
            self._print_new_lines(tally)

    def _greet(self) -> None:
        self.session = next(iter(open_sessions()), None)
        if self.session is None:
            return
        self._started_s = time.monotonic()
        run = self.session.run
        say(f"{'resuming' if run.is_resumed else 'starting'} run {run.id}")
        if self._bar and self._task is not None:
            self._bar.update(self._task, description="labelling")

    def _print_new_lines(self, tally: Tally) -> None:
        for line in tally.shards_written[self._lines_shown :]:
            self._lines_shown += 1
            say(f"shard {self._lines_shown} of {tally.shards_total}: {line}")


def print_summary(summary: RunSummary, base_url: str, to: Console) -> None:
    """What came out, what it cost, and the line that opens the tables."""
    totals = summary.totals
    lines = {
        "images": f"{totals.images_ok} ok, {totals.images_partial} partial, {totals.images_failed} failed",
        "objects": f"{totals.objects} in {totals.responses} responses",
        "errors": ", ".join(f"{count} {code}" for code, count in totals.errors.items()),
        "requests": f"{totals.requests} questions, {totals.uploads} uploads, {totals.reused} answers reused",
        "cost": _describe_cost(summary, base_url),
        "time": f"{summary.elapsed_s:.1f} s, {summary.images_per_s:.1f} images/s",
        "run": summary.run,
        "tables": ", ".join(summary.tables.values()),
        "open with": _opening_line(summary),
    }
    to.print()
    _print_aligned({name: text for name, text in lines.items() if text}, to)


def print_runs(runs: list[dict[str, Any]]) -> None:
    """One line per run."""
    table = Table("run", "status", "images", "failed", "objects", "USD", "images/s", box=None, pad_edge=False)
    for run in runs:
        totals = run["totals"]
        failed = totals["images_failed"] + totals["images_partial"]
        counts = [totals["images"], failed, totals["objects"]]
        rate = f"{run['images_per_s']:.1f}" if "images_per_s" in run else ""
        table.add_row(run["run"], run["status"], *map(str, counts), f"{totals['cost_usd']:.4f}", rate)
    stdout.print(table)


def print_run(run: dict[str, Any]) -> None:
    """Everything known about one run."""
    _print_aligned(dict(_flat(run)), stdout)


def _make_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[live]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
    )


def _live_text(tally: Tally, elapsed_s: float) -> str:
    rate = tally.images_done / elapsed_s if elapsed_s > 0 else 0.0
    retries = f", {tally.retries} retries" if tally.retries else ""
    return f"{rate:.1f} images/s, {tally.images_failed} failed{retries}, {tally.cost_usd:.4f} USD"


def _describe_cost(summary: RunSummary, base_url: str) -> str:
    totals = summary.totals
    tokens = f"{totals.input_tokens} input and {totals.output_tokens + totals.thought_tokens} output tokens"
    note = "the emulator charges nothing" if base_url == EMULATOR else f"list prices of {PRICES_AS_OF}"
    return f"{totals.cost_usd:.4f} USD for {tokens} ({note})"


def _opening_line(summary: RunSummary) -> str:
    files = f"{summary.tables['annotations']}/run={summary.run}/*.parquet".replace("'", "''")
    sql = f"select prompt, label, count(*) from '{files}' group by all order by all"
    return f"duckdb -c {shlex.quote(sql)}" if any(mark in sql for mark in '"$`\\') else f'duckdb -c "{sql}"'


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_aligned(lines: dict[str, str], to: Console) -> None:
    width = max(map(len, lines))
    for name, text in lines.items():
        # not a rich table, which would break lines that are there to be copied
        to.print(f"{name:{width}}  {text}", markup=False, emoji=False, soft_wrap=True)
