"""Images per second and CPU per image of a whole `pixscribe run`, beside a script with Google's SDK doing the same.

    python -m benchmarks --images 1000 --concurrency 256 --latency 0.3

Both talk to one emulator in a process of its own, on the same cores. Wall time is that of the whole process; for ours
also without Prefect's start, which `run.json` gives. CPU is user + system of the process with all its children.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.pictures import make_pictures

BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Measured:
    """One process, from start to end."""

    wall_s: float
    cpu_s: float
    stdout: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size-bytes", type=int, default=200_000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=2, help="in turn; the best of each counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "images", count=options.images, size_bytes=options.size_bytes)
        print(f"{platform.python_version()}, {os.cpu_count()} cores, {options}", file=sys.stderr)
        sdk, ours = list[Measured](), list[Measured]()
        for _ in range(options.rounds):
            with emulator(options.latency) as url:
                sdk.append(measure_sdk(folder, url, options.concurrency))
            with emulator(options.latency) as url:
                ours.append(measure_pixscribe(folder, url, options.concurrency))
            print(f"{sdk[-1].wall_s:.1f} s and {ours[-1].wall_s:.1f} s", file=sys.stderr)
    report(options.images, best_of(sdk), best_of(ours))


def best_of(rounds: Sequence[Measured]) -> Measured:
    """The round that was disturbed least."""
    return min(rounds, key=lambda measured: measured.wall_s)


def measure_sdk(folder: Path, url: str, concurrency: int) -> Measured:
    output = folder / "sdk.jsonl"
    arguments = [url, str(folder / "images"), str(output), str(concurrency)]
    measured = run_process([sys.executable, "-m", "benchmarks.sdk_script", *arguments])
    assert len(output.read_text().splitlines()) == len(list((folder / "images").iterdir()))
    return measured


def measure_pixscribe(folder: Path, url: str, concurrency: int) -> Measured:
    config = {
        "name": "bench",
        "source": {"uri": str(folder / "images")},
        "model": {"base_url": url},
        "prompts": [{"name": "objects", "kind": "detect"}, {"name": "outlines", "kind": "segment"}],
        "limits": {"requests_per_minute": 1_000_000, "concurrency": concurrency},
        "output": {"uri": str(folder / "out")},
    }
    (folder / "bench.yaml").write_text(yaml.safe_dump(config))
    measured = run_process([str(BIN / "pixscribe"), "run", str(folder / "bench.yaml"), "--json", "--new"])
    summary = json.loads(measured.stdout.splitlines()[-1])
    assert summary["totals"]["images_ok"] == len(list((folder / "images").iterdir()))
    return measured


def report(images: int, sdk: Measured, ours: Measured) -> None:
    labelling_s = json.loads(ours.stdout.splitlines()[-1])["elapsed_s"]
    rows = [
        ("google-genai script", sdk.wall_s, sdk.cpu_s),
        ("pixscribe run, all of it", ours.wall_s, ours.cpu_s),
        ("pixscribe run, labelling only", labelling_s, None),
    ]
    print("| | wall s | images/s | ratio | CPU ms/image |\n|---|---|---|---|---|")
    for name, wall_s, cpu_s in rows:
        cpu = "" if cpu_s is None else f"{1000 * cpu_s / images:.1f}"
        print(f"| {name} | {wall_s:.1f} | {images / wall_s:.1f} | {sdk.wall_s / wall_s:.2f} | {cpu} |")


def run_process(command: Sequence[str]) -> Measured:
    """Run to the end; CPU includes every child that was waited for, so Prefect's server too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started_s = time.monotonic()
    environment = os.environ | {"GEMINI_API_KEY": "bench"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    wall_s = time.monotonic() - started_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(wall_s, cpu_s, done.stdout)


@contextmanager
def emulator(latency_s: float) -> Iterator[str]:
    """An emulator that does not look at pixels, as a process of its own."""
    command = [str(BIN / "pixscribe"), "emulate", "--port", "0", "--latency", str(latency_s), "--no-look"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
