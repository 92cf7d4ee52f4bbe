"""How cost grows with the number of images, and what it costs to go on with, repeat and look at what is done.

    python -m benchmarks.growth --images 1000 10000 100000

Images of 30 pixels against an emulator that answers at once, so that nothing but pixscribe itself is measured: its
command line, with Prefect and its server. What that takes at the start and the end is measured with one image, shown,
and taken off the cost per image. Then a run of 1,000 small shards is repeated, taken up again, listed and shown.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from matplotlib import pyplot

from benchmarks.measure import (
    BIN,
    MB,
    ROOT,
    Measured,
    Reading,
    emulator,
    markdown_table,
    run_measured,
    save_results,
    surroundings,
)
from benchmarks.pictures import make_pictures

SIZE_BYTES = 1000
WIDTH_PX, HEIGHT_PX = 30, 20
FLAT_AFTER = 10_000
SMALL_SHARD = 20
LEFT_OPEN = 10
KEY = {"GEMINI_API_KEY": "bench"}


@dataclass(frozen=True, slots=True)
class Way:
    """How images travel, and how much is asked about each."""

    title: str
    transport: str
    prompts: tuple[str, ...]


WAYS = {
    "inline": Way("inline, one prompt", "inline", ("detect",)),
    "files": Way("Files API, two prompts", "files", ("detect", "segment")),
}


@dataclass(frozen=True, slots=True)
class Labelled:
    """One `pixscribe run`: how many images, what the process took, and the seconds of its summary."""

    images: int
    measured: Measured
    labelling_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 10_000, 100_000], help="inline, one prompt")
    parser.add_argument("--files-images", type=int, nargs="*", default=[1000, 10_000], help="Files API, two prompts")
    parser.add_argument("--shards", type=int, default=1000, help=f"of {SMALL_SHARD} images, to go on with; 0: none")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/growth.json")
    parser.add_argument("--svg", type=Path, default=ROOT / "benchmarks/results/growth.svg")
    options = parser.parse_args()
    counts = {"inline": options.images, "files": options.files_images}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        most = max(*options.images, *options.files_images, options.shards * SMALL_SHARD, 1)
        make_pictures(folder / "in", count=most, size_bytes=SIZE_BYTES, wh=(WIDTH_PX, HEIGHT_PX))
        grown = {way: grow(folder, WAYS[way], counts[way]) for way in WAYS if counts[way]}
        again = dict(go_on(folder, options.shards)) if options.shards else {}
    print(f"{surroundings()}\n\n{report_growth(grown)}")
    draw_growth(options.svg.with_name("cost.svg"), grown)
    if options.images:
        largest = grown["inline"][-1]
        print(report_memory(largest))
        draw(options.svg, largest)
    if again:
        print(report_again(again, options.shards))
    save_results(
        options.json,
        {way: [{"images": one.images, **one.measured.numbers()} for one in runs] for way, runs in grown.items()}
        | {name: measured.numbers() for name, measured in again.items()},
    )


def grow(folder: Path, way: Way, counts: list[int]) -> list[Labelled]:
    """A run of one image, and one of each size, each into an output of its own."""
    return [label(folder, way, images) for images in (1, *counts)]


def label(folder: Path, way: Way, images: int) -> Labelled:
    output = folder / f"{way.transport}-{images}"
    with emulator() as url:
        config = write_config(folder, url, output, images=images, way=way)
        measured = run_pixscribe("run", config, "--json", observe=Committed(output))
    summary = summary_of(measured, images)
    print(f"{way.title}: {images} images, {measured.wall_s:.1f} s", file=sys.stderr)
    return Labelled(images, measured, summary["elapsed_s"])


def go_on(folder: Path, shards: int) -> Iterator[tuple[str, Measured]]:
    """What is done with an output of many small shards."""
    images, output, way = shards * SMALL_SHARD, folder / "small", WAYS["inline"]
    with emulator() as url:
        config = write_config(folder, url, output, images=images, way=way, shard_size=SMALL_SHARD)
        first = run_pixscribe("run", config, "--json", "--run-id", "first")
        summary_of(first, images)
        yield "the first run", first
        again = run_pixscribe("run", config, "--json", "--run-id", "again")
        assert summary_of(again, images)["totals"]["requests"] == 0
        yield "the same again, every answer reused", again
        shutil.rmtree(output / "runs/again")
        for table in ("images", "responses", "annotations"):
            shutil.rmtree(output / table / "run=again")
        left = leave_unfinished(output, "first")
        resumed = run_pixscribe("run", config, "--json", "--run-id", "first")
        assert summary_of(resumed, images)["totals"]["images"] == images
        yield f"taken up again with {left} of its shards left", resumed
        yield "`pixscribe show` of it", run_pixscribe("show", f"{output}@first")
        leave_unfinished(output, "first")
        yield "`pixscribe show` of it, unfinished", run_pixscribe("show", f"{output}@first")
        yield "`pixscribe runs`", run_pixscribe("runs", str(output))
        few = write_config(folder, url, folder / "few", images=LEFT_OPEN * SMALL_SHARD, way=way, shard_size=SMALL_SHARD)
        yield f"a run of {left} shards only", run_pixscribe("run", few, "--json", "--run-id", "few")
        yield "`pixscribe show` of that", run_pixscribe("show", f"{folder / 'few'}@few")


def leave_unfinished(output: Path, run_id: str) -> int:
    """As if the run had been killed before its last shards: their parts and the mark of completion are gone."""
    (output / "runs" / run_id / "run.json").unlink(missing_ok=True)
    for table in ("images", "responses", "annotations"):
        for part in sorted((output / table / f"run={run_id}").iterdir())[-LEFT_OPEN:]:
            part.unlink()
    return LEFT_OPEN


def write_config(folder: Path, url: str, output: Path, *, images: int, way: Way, shard_size: int = 256) -> Path:
    config = {
        "name": "growth",
        "source": {"uri": str(folder / "in"), "limit": images},
        "model": {"base_url": url, "transport": way.transport},
        "prompts": [{"name": kind, "kind": kind} for kind in way.prompts],
        "limits": {"requests_per_minute": 10_000_000},
        "execution": {"shard_size": shard_size},
        "output": {"uri": str(output)},
    }
    path = folder / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run_pixscribe(*arguments: object, observe: Callable[[], int] = lambda: 0) -> Measured:
    return run_measured([str(BIN / "pixscribe"), *map(str, arguments)], environment=KEY, observe=observe)


def summary_of(measured: Measured, images: int) -> Any:
    summary = json.loads(measured.stdout.splitlines()[-1])
    assert summary["totals"]["images_ok"] == images, summary
    return summary


class Committed:
    """Counts the images whose rows are written; each part is opened once."""

    def __init__(self, output: Path) -> None:
        self._folder = output / "images"
        self._rows: dict[Path, int] = {}

    def __call__(self) -> int:
        for part in self._folder.glob("*/*.parquet"):
            if part not in self._rows:
                self._rows[part] = pq.read_metadata(part).num_rows
        return sum(self._rows.values())


def report_growth(grown: dict[str, list[Labelled]]) -> str:
    """Ratios to the run of 10,000 images of the same way, if there is one; and the run of one image as it is.

    What the start takes differs by some tenths of a second from run to run, and so does the CPU of 1,000 images by some
    tenths of a millisecond each.
    """
    rows = list[list[str]]()
    for way, (one, *runs) in grown.items():
        rows.append([f"{WAYS[way].title}: start and end", "1", f"{one.measured.wall_s:.1f}", *[""] * 4, *_memory(one)])
        base = next((run for run in runs if run.images >= FLAT_AFTER), runs[0])
        rows += [
            [
                WAYS[way].title,
                f"{run.images:,}",
                f"{run.measured.wall_s:.1f}",
                f"{run.images / run.labelling_s:.0f}",
                f"{run.images / run.labelling_s / (base.images / base.labelling_s):.2f}",
                f"{_cpu_ms(run, one):.2f}",
                f"{_cpu_ms(run, one) / _cpu_ms(base, one):.2f}",
                *_memory(run),
                f"{run.measured.peak_rss_bytes / base.measured.peak_rss_bytes:.2f}",
            ]
            for run in runs
        ]
    head = ["", "images", "wall s", "images/s", "ratio", "CPU ms/image", "ratio"]
    return markdown_table([*head, "peak RSS MB", "with Prefect's server", "ratio"], _filled(rows))


def _cpu_ms(run: Labelled, one: Labelled) -> float:
    """Of one image, without what a run of a single one takes."""
    return 1000 * (run.measured.cpu_s - one.measured.cpu_s) / max(1, run.images - 1)


def _memory(run: Labelled) -> list[str]:
    return [f"{size / MB:.0f}" for size in (run.measured.peak_rss_bytes, run.measured.peak_tree_rss_bytes)]


def _filled(rows: list[list[str]]) -> list[list[str]]:
    longest = max(map(len, rows))
    return [row + [""] * (longest - len(row)) for row in rows]


def report_memory(run: Labelled) -> str:
    """How much memory grows with each image once the run is under way."""
    after = min(FLAT_AFTER, run.images // 2)
    # what it lets go of at its end is no part of how it grows
    late = [reading for reading in run.measured.readings if after <= reading.done < run.images]
    if len(late) < 3:
        return "Too few readings to say how memory grows.\n"
    growth = slope([reading.done for reading in late], [reading.rss_bytes for reading in late])
    first, last = late[0], late[-1]
    return (
        f"From image {first.done:,} to image {last.done:,}: {growth:+.0f} bytes of RSS an image (least squares over "
        f"{len(late)} readings), {first.rss_bytes / MB:.0f} MB at first and {last.rss_bytes / MB:.0f} MB at last.\n"
    )


def slope(x: list[int], y: list[int]) -> float:
    return float(np.polyfit(x, y, 1)[0])


def report_again(again: dict[str, Measured], shards: int) -> str:
    """Ratios to the first run for what labels, and to the same of a small output for what looks."""
    whole, small = again["the first run"], again["`pixscribe show` of that"]
    rows = [
        [
            name,
            f"{each.wall_s:.1f}",
            f"{each.wall_s / (small if 'pixscribe' in name else whole).wall_s:.2f}",
            f"{each.cpu_s:.1f}",
            f"{each.peak_rss_bytes / MB:.0f}",
        ]
        for name, each in again.items()
    ]
    return markdown_table([f"{shards:,} shards of {SMALL_SHARD} images", "s", "ratio", "CPU s", "peak RSS MB"], rows)


def draw_growth(path: Path, grown: dict[str, list[Labelled]]) -> None:
    """Images/s, and CPU without the start, by the number of images."""
    _set_style()
    figure, (pace, cpu) = pyplot.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    for way, color in zip(grown, ("#0b6e99", "#c2571a"), strict=False):
        one, *runs = grown[way]
        counts = [run.images for run in runs]
        pace.plot(counts, [run.images / run.labelling_s for run in runs], "o-", label=WAYS[way].title, color=color)
        cpu.plot(counts, [_cpu_ms(run, one) for run in runs], "o-", color=color)
    for axes, label in ((pace, "images/s"), (cpu, "CPU (ms/image)")):
        axes.set(xscale="log", xlabel="images in the run", ylabel=label, ylim=(0, None))
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.7)
    pace.legend(frameon=False)
    _save(figure, path)


def draw(path: Path, run: Labelled) -> None:
    """Memory and progress over time, one above the other."""
    readings = run.measured.readings
    _set_style()
    figure, (memory, progress) = pyplot.subplots(
        2, sharex=True, figsize=(7, 4.6), height_ratios=(3, 2), layout="constrained"
    )
    _plot(memory, readings, lambda reading: reading.tree_rss_bytes / MB, "with Prefect's server", "#9aa5b1")
    _plot(memory, readings, lambda reading: reading.rss_bytes / MB, "pixscribe", "#0b6e99")
    memory.set(ylabel="resident memory (MB)", ylim=(0, None), title=f"One run of {run.images:,} images")
    memory.legend(frameon=False, loc="lower right")
    _plot(progress, readings, lambda reading: reading.done / 1000, "images", "#c2571a")
    progress.set(xlabel="time since the start (s)", ylabel="images written (thousand)", ylim=(0, None), xlim=(0, None))
    if (ten := next((reading for reading in readings if reading.done >= FLAT_AFTER), None)) is not None:
        for axes in (memory, progress):
            axes.axvline(ten.elapsed_s, color="#555555", linewidth=0.8, linestyle=":")
        memory.annotate(f" {FLAT_AFTER:,} images", (ten.elapsed_s, 0), xytext=(2, 4), textcoords="offset points")
    _save(figure, path)


def _set_style() -> None:
    pyplot.switch_backend("svg")
    pyplot.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.fonttype": "none",
            "svg.hashsalt": "growth",
        }
    )


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(f"plot: {path}", file=sys.stderr)


def _plot(axes: Any, readings: list[Reading], value: Callable[[Reading], float], label: str, color: str) -> None:
    axes.plot([each.elapsed_s for each in readings], [value(each) for each in readings], label=label, color=color)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.7)


if __name__ == "__main__":
    main()
