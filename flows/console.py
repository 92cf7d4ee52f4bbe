"""What is printed: sentences on stderr, summaries and lists on stdout. Light to import, for every command needs it."""

import shlex
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pixscribe.config import EMULATOR
from pixscribe.prices import PRICES, PRICES_AS_OF

if TYPE_CHECKING:
    from pixscribe.run import RunSummary

STORAGE_BYTES = 20 * 1024**3
"""What the Files API holds for a project."""


class _Console(Console):
    """rich's, which would end the process when a reader has gone, whatever it is doing."""

    def on_broken_pipe(self) -> None:
        raise


stderr = _Console(stderr=True, highlight=False, soft_wrap=True)
stdout = _Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line on stderr about what is going on."""
    with suppress(OSError):  # whoever listened has gone; the run goes on without
        stderr.print(message, markup=False, emoji=False)


def print_summary(summary: "RunSummary", base_url: str, to: Console) -> None:
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
    rows = [("run", "status", "images", "failed", "objects", "USD", "images/s"), *map(_run_line, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        stdout.print(line.rstrip(), markup=False, emoji=False)


def print_run(run: dict[str, Any]) -> None:
    """Everything known about one run."""
    _print_aligned(dict(_flat(run)), stdout)


def print_files(totals: dict[str, dict[str, Any]]) -> None:
    """How much of the Files API is in use: one line for ours, one for the others'."""
    lines = {
        whose: f"{total['files']} files, {total['size_bytes'] / 1e9:.3f} GB"
        + (f", expiring from {total['first_expires_at']} to {total['last_expires_at']}" if total["files"] else "")
        for whose, total in totals.items()
    }
    used = sum(total["size_bytes"] for total in totals.values()) / STORAGE_BYTES
    _print_aligned({**lines, "in use": f"{100 * used:.1f} % of 20 GB"}, stdout)


def _run_line(run: dict[str, Any]) -> tuple[str, ...]:
    totals = run["totals"]
    counts = (totals["images"], totals["images_failed"] + totals["images_partial"], totals["objects"])
    rate = f"{run['images_per_s']:.1f}" if "images_per_s" in run else ""
    return (run["run"], run["status"], *map(str, counts), f"{totals['cost_usd']:.4f}", rate)


def _describe_cost(summary: "RunSummary", base_url: str) -> str:
    totals = summary.totals
    tokens = f"{totals.input_tokens} input and {totals.output_tokens + totals.thought_tokens} output tokens"
    if summary.model not in PRICES:
        return f"unknown, no price for {summary.model} ({tokens})"
    note = "the emulator charges nothing" if base_url == EMULATOR else f"list prices of {PRICES_AS_OF}"
    return f"{totals.cost_usd:.4f} USD for {tokens} ({note})"


def _opening_line(summary: "RunSummary") -> str:
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
