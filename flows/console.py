"""What is printed: sentences on stderr, summaries and lists on stdout. Light to import, for every command needs it."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pixscribe.config import EMULATOR, RunConfig
from pixscribe.prices import find_price

if TYPE_CHECKING:
    from pixscribe.diff.result import RunDiff
    from pixscribe.evaluation import Evaluation
    from pixscribe.exports import ExportSummary
    from pixscribe.plan import Plan
    from pixscribe.run import RunSummary

STORAGE_BYTES = 20 * 1024**3
"""What the Files API holds for a project."""
EXAMPLES = 10
"""Names that are listed before it becomes a count."""


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


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr as long as the context lasts, if that is a terminal: call it with what is done and the total."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def show(done: int, total: int) -> None:
            if done % 100 == 0 or done == total:
                bar.update(task, completed=done, total=total)

        yield show


def print_summary(summary: "RunSummary", config: RunConfig, to: Console) -> None:
    """What came out, what it cost, and the line that opens the tables."""
    totals = summary.totals
    lines = {
        "images": f"{totals.images_ok} ok, {totals.images_partial} partial, {totals.images_failed} failed",
        "known": f"{summary.images_skipped} images were answered before and left out" if summary.images_skipped else "",
        "objects": f"{totals.objects} in {totals.responses} responses",
        "errors": ", ".join(f"{count} {code}" for code, count in totals.errors.items()),
        "requests": f"{totals.requests} questions, {totals.uploads} uploads, {totals.reused} answers reused",
        "cost": _describe_cost(summary, config),
        "time": f"{summary.elapsed_s:.1f} s, {summary.images_per_s:.1f} images/s",
        "run": summary.run,
        "tables": ", ".join(summary.tables.values()),
        "report": summary.report or "",
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


def print_plan(plan: "Plan", config: RunConfig) -> None:
    """What a run will be, what to know before, and a sentence that says it all."""
    from flows.plan_lines import plan_lines, plan_notes, verdict

    _print_aligned(plan_lines(plan), stdout)
    for note in plan_notes(plan, config):
        stdout.print(f"- {note}", markup=False, emoji=False)
    stdout.print()
    stdout.print(verdict(plan, config), markup=False, emoji=False)


def print_export(summary: "ExportSummary") -> None:
    """What the data set holds, and what it does not."""
    lines = {
        "images": f"{summary.images}{_left_out(summary.left_out)}",
        "objects": f"{summary.objects}{_left_out(summary.objects_left_out)}",
        "texts": f"{summary.texts} (captions, answers and classes)" if summary.texts else "",
        "prompts": ", ".join(summary.prompts),
        "categories": str(summary.categories) if summary.categories else "",
        "data set": f"{summary.folder} ({summary.format})",
    }
    _print_aligned({name: text for name, text in lines.items() if text}, stdout)


def _left_out(counts: Mapping[str, int]) -> str:
    return "; left out: " + ", ".join(f"{count} {why}" for why, count in counts.items()) if counts else ""


def print_changed(names: Iterable[tuple[str, str]]) -> None:
    """Say on stderr which images are no more what they were: how many, and the first ones."""
    by_fate: dict[str, list[str]] = {}
    for name, fate in names:
        by_fate.setdefault(fate, []).append(name)
    for fate, found in by_fate.items():
        more = f" and {len(found) - EXAMPLES} more" if len(found) > EXAMPLES else ""
        images = "image is" if len(found) == 1 else "images are"
        say(f"{len(found)} {images} {fate}: {', '.join(found[:EXAMPLES])}{more}")


def print_files(totals: dict[str, dict[str, Any]]) -> None:
    """How much of the Files API is in use: one line for ours, one for the others'."""
    lines = {
        whose: f"{total['files']} files, {total['size_bytes'] / 1e9:.3f} GB"
        + (f", expiring from {total['first_expires_at']} to {total['last_expires_at']}" if total["files"] else "")
        for whose, total in totals.items()
    }
    used = sum(total["size_bytes"] for total in totals.values()) / STORAGE_BYTES
    _print_aligned({**lines, "in use": f"{100 * used:.1f} % of 20 GB"}, stdout)


def print_evaluation(evaluation: "Evaluation") -> None:
    """What a comparison with ground truth came to."""
    from flows.evaluation_lines import evaluation_lines

    # lines that go into a file or a pipe are not for wrapping
    for line in evaluation_lines(evaluation, stdout.width if stdout.is_terminal else 10_000):
        stdout.print(line, markup=False, emoji=False, soft_wrap=True)


def print_diff(diff: "RunDiff") -> None:
    """What changed between two runs."""
    from flows.diff_lines import diff_lines

    for line in diff_lines(diff, stdout.width if stdout.is_terminal else 10_000):
        stdout.print(line, markup=False, emoji=False, soft_wrap=True)


def _run_line(run: dict[str, Any]) -> tuple[str, ...]:
    totals = run["totals"]
    counts = (totals["images"], totals["images_failed"] + totals["images_partial"], totals["objects"])
    rate = f"{run['images_per_s']:.1f}" if "images_per_s" in run else ""
    return (run["run"], run["status"], *map(str, counts), f"{totals['cost_usd']:.4f}", rate)


def _describe_cost(summary: "RunSummary", config: RunConfig) -> str:
    totals = summary.totals
    tokens = f"{totals.input_tokens} input and {totals.output_tokens + totals.thought_tokens} output tokens"
    price = find_price(summary.model, config.prices)
    if price is None:
        return f"unknown, no price for {summary.model} ({tokens})"
    note = "the emulator charges nothing" if config.model.base_url == EMULATOR else f"list prices of {price.as_of}"
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
