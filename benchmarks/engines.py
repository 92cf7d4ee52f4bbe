"""The same run in one process, on two Dask workers and on two Ray workers, under one limit of requests per minute.

    python -m benchmarks.engines --images 2000 --rpm 3000

All three talk to an emulator in a process of its own on the same cores, which refuses what is above the limit. The time
of labelling is from the first question to the last; what comes before it, from the manifest on, is the start of the
cluster. On one machine more processes make nothing faster: what is to be seen is that they keep to the limit together,
use it up, and write the same tables.
"""

import argparse
import bisect
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from benchmarks.measure import BIN, emulator, markdown_table, run_measured, save_results, surroundings
from benchmarks.pictures import make_pictures

ENGINES = ("local", "dask", "ray")
SIZE_BYTES = 50_000
PROMPTS = [{"name": "objects", "kind": "detect"}, {"name": "caption", "kind": "caption"}]


@dataclass(frozen=True, slots=True)
class Result:
    """One run."""

    engine: str
    start_s: float
    """From the manifest to the first question."""
    labelling_s: float
    wall_s: float
    """Of the whole command, Prefect's server included."""
    attempts: int
    """Requests for answers, with those that were refused."""
    questions: int
    most_per_minute: int
    """In any 60 seconds."""
    digests: dict[str, str]

    def row(self, limit: float, images: int, reference: "Result") -> Sequence[object]:
        """For the table."""
        return (
            self.engine,
            f"{self.start_s:.1f}",
            f"{self.labelling_s:.1f}",
            f"{images / self.labelling_s:.1f}",
            f"{60 * self.questions / self.labelling_s:.0f} ({60 * self.questions / self.labelling_s / limit:.0%})",
            self.most_per_minute,
            self.attempts - self.questions,
            f"{self.wall_s:.1f}",
            "yes" if self.digests == reference.digests else "NO",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rpm", type=float, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/engines.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "images", count=options.images, size_bytes=SIZE_BYTES)
        results = [run_on(engine, folder, options) for engine in ENGINES]
    print(f"{surroundings()}: {options.images} images of {SIZE_BYTES} bytes, {options.workers} workers\n")
    print(report(results, options.rpm, options.images))
    save_results(options.results, {"options": {k: str(v) for k, v in vars(options).items()}, "runs": numbers(results)})


def run_on(engine: str, folder: Path, options: argparse.Namespace) -> Result:
    """Run once, with an emulator of its own."""
    output = folder / engine
    with emulator("--rpm", str(options.rpm), "--latency", str(options.latency)) as url:
        config = folder / f"{engine}.yaml"
        config.write_text(yaml.safe_dump(config_of(engine, url, folder / "images", output, options)))
        measured = run_measured(
            [str(BIN / "pixscribe"), "run", str(config), "--run-id", "r"],
            environment={"GEMINI_API_KEY": "bench", "PREFECT_HOME": str(folder / "prefect")},
        )
    rows = [row for part in sorted(output.glob("responses/*/*.parquet")) for row in pq.read_table(part).to_pylist()]
    asked = sorted(row["asked_at"] for row in rows)
    began_s = (output / "runs/r/manifest.parquet").stat().st_mtime
    return Result(
        engine,
        start_s=asked[0].timestamp() - began_s,
        labelling_s=(asked[-1] - asked[0]).total_seconds(),
        wall_s=measured.wall_s,
        attempts=sum(row["attempts"] for row in rows),
        questions=len(rows),
        most_per_minute=most_per_minute(asked),
        digests=digests(output),
    )


def config_of(engine: str, url: str, images: Path, output: Path, options: argparse.Namespace) -> dict[str, object]:
    """Small shards, so that all workers have some at any time."""
    workers = {} if engine == "local" else {"workers": options.workers}
    return {
        "name": "engines",
        "source": {"uri": str(images)},
        "model": {"base_url": url},
        "prompts": PROMPTS,
        "limits": {"requests_per_minute": options.rpm},
        "execution": {"engine": engine, "shard_size": 64, **workers},
        "output": {"uri": str(output)},
    }


def most_per_minute(asked: Sequence[datetime]) -> int:
    """The most that fell into any 60 seconds."""
    times_s = [each.timestamp() for each in asked]
    return max(bisect.bisect_left(times_s, time_s + 60) - place for place, time_s in enumerate(times_s))


def digests(output: Path) -> dict[str, str]:
    """Of each part that must not depend on who wrote it."""
    parts = [part for table in ("images", "annotations") for part in output.glob(f"{table}/*/*.parquet")]
    return {str(part.relative_to(output)): hashlib.sha256(part.read_bytes()).hexdigest() for part in parts}


def report(results: Sequence[Result], limit: float, images: int) -> str:
    """The table for README.md."""
    head = (
        *("engine", "start, s", "labelling, s", "images/s", f"requests/min of {limit:g}", "most in any 60 s"),
        *("refused or repeated", "whole command, s", "same tables"),
    )
    return markdown_table(head, [result.row(limit, images, results[0]) for result in results])


def numbers(results: Sequence[Result]) -> list[dict[str, object]]:
    """For the raw results: everything but the digests."""
    return [{name: value for name, value in asdict(result).items() if name != "digests"} for result in results]


if __name__ == "__main__":
    main()
