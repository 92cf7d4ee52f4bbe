"""Images per second and CPU per image of `pixscribe run` with the Files API and two prompts, beside what frames it.

    python -m benchmarks --images 2000 --concurrency 256 --latency 0.3

Below it a script with Google's SDK that does the same; above it a bare loop that only sends the four requests of each
image, on the transport of pixscribe; beside it the same run without Prefect, which tells what Prefect takes. All talk
to an emulator in a process of its own on the same cores, in turn, round after round; the best round of each counts, for
neighbours only ever make it slower.

Start-up is what a run of a single image takes, and is reported apart. CPU is user and system time; for pixscribe that
of the process itself, and that of all with Prefect's server.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.measure import BIN, MB, Measured, emulator, markdown_table, run_measured, save_results, surroundings
from benchmarks.pictures import make_pictures

KEY = {"GEMINI_API_KEY": "bench"}


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of one contestant."""

    measured: Measured
    labelling_s: float
    """Without start and end of the process, as the contestant's own clock says."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size-bytes", type=int, default=200_000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=3, help="in turn; the best of each counts")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/throughput.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options)
        make_pictures(bench.images, count=options.images, size_bytes=options.size_bytes)
        passes = bench.run_rounds(options.rounds)
    best = {what: min(found, key=lambda each: each.labelling_s) for what, found in passes.items()}
    print(f"{surroundings()}: {options.images} images of {options.size_bytes} bytes\n")
    print(report(best, options.images))
    numbers = {what: [vars_of(each) for each in found] for what, found in passes.items()}
    save_results(options.results, {"options": {k: str(v) for k, v in vars(options).items()}, "passes": numbers})


class Bench:
    """The contestants, each a method that runs one of them to its end."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.images = folder / "images"
        self._folder = folder
        self._options = options

    def run_rounds(self, rounds: int) -> dict[str, list[Pass]]:
        contestants: dict[str, Callable[[str], Pass]] = {
            "bare loop": self._bare_loop,
            "pixscribe": self._pixscribe,
            "without Prefect": self._without_prefect,
            "one image": self._one_image,
            "SDK script": self._sdk_script,
        }
        passes = defaultdict[str, list[Pass]](list)
        for number in range(rounds):
            for what, run in contestants.items():
                with emulator("--latency", str(self._options.latency)) as url:
                    passes[what].append(run(url))
                print(f"round {number + 1}: {what} {passes[what][-1].labelling_s:.1f} s", file=sys.stderr)
        return passes

    def _sdk_script(self, url: str) -> Pass:
        output = self._folder / "sdk.jsonl"
        # beside us and not beside pixscribe, which needs no SDK
        measured = _python(
            Path(sys.executable).parent, "benchmarks.sdk_script", url, self.images, output, self._options.concurrency
        )
        assert len(output.read_text().splitlines()) == self._options.images
        return Pass(measured, json.loads(measured.stdout)["elapsed_s"])

    def _bare_loop(self, url: str) -> Pass:
        measured = _python(BIN, "benchmarks.bare_loop", url, self.images, self._options.concurrency)
        return Pass(measured, json.loads(measured.stdout)["elapsed_s"])

    def _pixscribe(self, url: str, limit: int | None = None) -> Pass:
        config = self._config(url, limit)
        command = [str(BIN / "pixscribe"), "run", str(config), "--json", "--new"]
        measured = run_measured(command, environment=KEY, every_s=0.1)
        return Pass(measured, self._checked(measured, limit or self._options.images))

    def _one_image(self, url: str) -> Pass:
        return self._pixscribe(url, limit=1)

    def _without_prefect(self, url: str) -> Pass:
        measured = _python(BIN, "benchmarks.library_run", self._config(url, None))
        return Pass(measured, self._checked(measured, self._options.images))

    def _checked(self, measured: Measured, images: int) -> float:
        summary = json.loads(measured.stdout.splitlines()[-1])
        assert summary["totals"]["images_ok"] == images, summary["totals"]
        return float(summary["elapsed_s"])

    def _config(self, url: str, limit: int | None) -> Path:
        # a place of its own each time: what another run was answered would be reused
        place = Path(tempfile.mkdtemp(dir=self._folder)) / "out"
        config = {
            "name": "bench",
            "source": {"uri": str(self.images), "limit": limit},
            "model": {"base_url": url},
            "prompts": [{"name": "objects", "kind": "detect"}, {"name": "outlines", "kind": "segment"}],
            "limits": {"requests_per_minute": 1_000_000, "concurrency": self._options.concurrency},
            "output": {"uri": str(place)},
        }
        path = place.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(config))
        return path


def _python(folder: Path, module: str, *arguments: object) -> Measured:
    return run_measured([str(folder / "python"), "-m", module, *map(str, arguments)], environment=KEY, every_s=0.1)


def report(best: Mapping[str, Pass], images: int) -> str:
    """Two tables: the contestants, and what they say about ours."""
    sdk, bare, ours, library, start = (
        best[what] for what in ("SDK script", "bare loop", "pixscribe", "without Prefect", "one image")
    )
    rows = [
        _row("google-genai script", sdk, sdk, images),
        _row("`pixscribe run`", ours, sdk, images),
        _row("the same without Prefect", library, sdk, images),
        _row("bare loop of the four requests", bare, sdk, images),
    ]
    head = ["", "labelling s", "images/s", "ratio to the script", "whole process s", "CPU ms/image", "peak RSS MB"]
    own_ms, all_ms = (
        1000 * (take(ours.measured) - take(start.measured)) / (images - 1) for take in (_own_cpu_s, _cpu_s)
    )
    said = [
        ("images/s, of the bare loop's", f"{bare.labelling_s / ours.labelling_s:.0%}"),
        ("CPU ms/image of our process, without start-up", f"{own_ms:.1f}"),
        ("the same with Prefect's server", f"{all_ms:.1f}"),
        ("start-up, a run of one image: s", f"{start.measured.wall_s:.1f}"),
        ("start-up: CPU s of our process, of all", f"{start.measured.own_cpu_s:.1f}, {start.measured.cpu_s:.1f}"),
        ("Prefect's share of the labelling", f"{1 - library.labelling_s / ours.labelling_s:+.1%}"),
    ]
    return markdown_table(head, rows) + "\n" + markdown_table(["", ""], said)


def _own_cpu_s(measured: Measured) -> float:
    return measured.own_cpu_s


def _cpu_s(measured: Measured) -> float:
    return measured.cpu_s


def _row(name: str, one: Pass, baseline: Pass, images: int) -> Sequence[str]:
    return (
        name,
        f"{one.labelling_s:.1f}",
        f"{images / one.labelling_s:.0f}",
        f"{baseline.labelling_s / one.labelling_s:.2f}",
        f"{one.measured.wall_s:.1f}",
        f"{1000 * one.measured.cpu_s / images:.1f}",
        f"{one.measured.peak_rss_bytes / MB:.0f}",
    )


def vars_of(one: Pass) -> dict[str, object]:
    numbers = {name: value for name, value in one.measured.numbers().items() if name != "readings"}
    return {"labelling_s": one.labelling_s, **numbers}


if __name__ == "__main__":
    main()
