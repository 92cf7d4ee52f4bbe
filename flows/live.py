"""What a person sees while a run goes on: a progress bar on a terminal, one line per shard elsewhere."""

import logging
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.console import say, stderr
from pixscribe.progress import Tally
from pixscribe.run import Session, open_sessions

logger = logging.getLogger("pixscribe")


class ProgressDisplay:
    """Shows the open run of this process; call `update` a few times a second. Works as a context manager."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self._lines_shown = 0
        self._stage_shown = "labelling"
        self._jobs_shown = 0
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
            total, done = tally.images_total or None, tally.images_before + tally.images_done
            live = _live_text(tally, elapsed_s)
            self._bar.update(self._task, description=tally.stage, total=total, completed=done, live=live)
        elif not logger.isEnabledFor(logging.INFO):  # else the log says it
            self._print_new_lines(tally)

    def _greet(self) -> None:
        self.session = next(iter(open_sessions()), None)
        if self.session is None:
            return
        self._started_s = time.monotonic()
        run = self.session.run
        say(f"{'resuming' if run.is_resumed else 'starting'} run {run.id}")

    def _print_new_lines(self, tally: Tally) -> None:
        done = tally.shards_done
        lines = list(tally.last_shards)[-(done - self._lines_shown) :] if done > self._lines_shown else []
        for number, line in enumerate(lines, done - len(lines) + 1):
            say(f"shard {number} of {tally.shards_total}: {line}")
        self._lines_shown = done
        if tally.stage != self._stage_shown:
            say(tally.stage)
            self._stage_shown = tally.stage
        if tally.batch_jobs > self._jobs_shown:
            say(f"waiting for {jobs_text(tally)}")
        self._jobs_shown = tally.batch_jobs


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


def jobs_text(tally: Tally) -> str:
    """What is waited for."""
    jobs = "1 batch job" if tally.batch_jobs == 1 else f"{tally.batch_jobs} batch jobs"
    return f"{tally.batch_requests} questions in {jobs}"


def _live_text(tally: Tally, elapsed_s: float) -> str:
    rate = tally.images_done / elapsed_s if elapsed_s > 0 else 0.0
    retries = f", {tally.retries} retries" if tally.retries else ""
    jobs = f"{jobs_text(tally)}, " if tally.batch_jobs else ""
    return f"{jobs}{rate:.1f} images/s, {tally.images_failed} not ok{retries}, {tally.cost_usd:.4f} USD"
