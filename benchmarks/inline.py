"""One prompt with the image inline, beside the strongest other tools: time, CPU, memory, and what trouble costs.

    python -m benchmarks.inline --images 2000 --rounds 3
    python -m benchmarks.inline --only floor,ours --skip-faults

Each tool runs as a process of its own against a fresh `pixscribe emulate --no-look --latency 0.2` on the same cores, in
turn, round after round. The floor is a script with Google's SDK alone, and figures stand beside the floor's of the same
run. Each of the others has a virtual environment of its own, which is made when it is missing and not measured.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from benchmarks.measure import BIN, MB, ROOT, markdown_table, save_results, surroundings
from benchmarks.pictures import make_pictures
from benchmarks.tree import Tree, run_tree

PEERS = ROOT / "benchmarks" / "peers"
CACHE = Path("~/.cache/pixscribe-bench").expanduser()
FAULTS = "429=0.05,503=0.05"
SIZE_BYTES, SIZE_WH = 195_000, (1024, 768)


# --- the tools


@dataclass(frozen=True, slots=True)
class Tool:
    """How one is run: `python script URL IMAGES STORE CONCURRENCY options`, or `pixscribe` when there is no script."""

    name: str
    title: str
    script: str = ""
    options: tuple[str, ...] = ()
    venv: str = ""
    requirements: tuple[str, ...] = ()


_GENAI = "google-genai==3.4.0"
_CURATOR = ("bespokelabs-curator==0.1.31",)
_DAFT = ("daft==0.7.26", _GENAI, "numpy", "pillow")
TOOLS = (
    Tool("floor", "google-genai 3.4.0, asyncio", "floor.py", (), "floor", (_GENAI, "aiohttp")),
    Tool("ours", "pixscribe run, inline"),
    Tool("daft-tuned", "Daft 0.7.26, into_batches(1)", "with_daft.py", ("batches",), "daft", _DAFT),
    Tool("daft", "Daft 0.7.26", "with_daft.py", (), "daft", _DAFT),
    Tool("curator", "Curator 0.1.31, OpenAI dialect", "with_curator.py", (), "curator", _CURATOR),
    Tool("curator-litellm", "Curator 0.1.31, litellm", "with_curator.py", ("litellm",), "curator", _CURATOR),
    Tool("pixeltable", "Pixeltable 0.7.21", "with_pixeltable.py", (), "pixeltable", ("pixeltable==0.7.21", _GENAI)),
)
_ENVIRONMENT = {
    "GEMINI_API_KEY": "bench",
    "GOOGLE_GENAI_API_VERSION": "v1beta",
    "DO_NOT_TRACK": "1",
    "TELEMETRY_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One process of a tool: what it took, what it says itself, and what the emulator saw of it."""

    tree: Tree
    elapsed_s: float | None
    """By the tool's own clock: without starting Python and its imports. None when it did not come to its end."""
    right: int
    """Images with the right answer in what the tool wrote."""
    books: Mapping[str, Any]
    """The emulator's `/emulator/books`, of everything since it was started."""

    @property
    def has_ended(self) -> bool:
        """Whether the tool came to its end and said so."""
        return self.elapsed_s is not None


@dataclass(frozen=True, slots=True)
class Emulated:
    url: str
    pid: int

    def books(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/emulator/books", timeout=10) as answer:
            books: dict[str, Any] = json.load(answer)
        return books


class Bench:
    """Tools at work in a folder: `images` are read, each tool's `store` is everything that it leaves behind."""

    def __init__(self, folder: Path, cache: Path, concurrency: int, latency_s: float) -> None:
        self.folder, self._cache, self._concurrency, self._latency_s = folder, cache, concurrency, latency_s

    @contextmanager
    def emulator(self, *arguments: str) -> Iterator[Emulated]:
        command = [str(BIN / "pixscribe"), "emulate", "--port", "0", "--no-look", "--latency", str(self._latency_s)]
        with subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        ) as process:
            try:
                assert process.stdout is not None
                yield Emulated(process.stdout.readline().split()[-1], process.pid)
            finally:
                process.terminate()

    def store(self, tool: Tool) -> Path:
        """An empty one, which a database of another user may enter too."""
        store = self.folder / "stores" / tool.name
        shutil.rmtree(store, ignore_errors=True)
        (store / "home").mkdir(parents=True)
        return store

    def run(
        self, tool: Tool, emulated: Emulated, images: Path, store: Path, kill_when: Callable[[], bool] | None = None
    ) -> Outcome:
        command = self._command(tool, emulated.url, images, store)
        environment = {**os.environ, **_ENVIRONMENT, **_places(store, emulated.url)}
        tree = run_tree(command, environment=environment, ignore=[emulated.pid], kill_when=kill_when)
        said = _last_json(tree.stdout)
        if not said and kill_when is None:
            print(f"{tool.name} ended with {tree.code}:\n{tree.stderr[-3000:]}", file=sys.stderr)
        right = said.get("right", 0) if tool.script else _rows_right(said)
        return Outcome(tree, said.get("elapsed_s"), right, emulated.books())

    def _command(self, tool: Tool, url: str, images: Path, store: Path) -> list[str]:
        if tool.script:
            python = self._cache / tool.venv / "bin" / "python"
            arguments = [url, str(images), str(store), str(self._concurrency), *tool.options]
            return [str(python), str(PEERS / tool.script), *arguments]
        config = {
            "name": "bench",
            "source": {"uri": str(images)},
            "model": {"base_url": url, "transport": "inline"},
            "prompts": [{"name": "objects", "kind": "detect"}],
            "limits": {"requests_per_minute": 1_000_000, "concurrency": self._concurrency},
            "output": {"uri": str(store / "out")},
        }
        (store / "bench.yaml").write_text(yaml.safe_dump(config))
        return [str(BIN / "pixscribe"), "run", str(store / "bench.yaml"), "--json"]


def make_venv(tool: Tool, cache: Path) -> str | None:
    """What went wrong, or None: the tool is installed."""
    folder = cache / tool.venv
    if not tool.script or (folder / "complete").exists():
        return None
    print(f"installing {tool.title} into {folder}", file=sys.stderr)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *tool.requirements],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
    (folder / "complete").touch()
    return None


def _places(store: Path, url: str) -> dict[str, str]:
    """Where each tool keeps what it keeps, and where Google's SDK asks when it is not told."""
    return {
        "HOME": str(store / "home"),
        "PREFECT_HOME": str(store / "prefect"),
        "CURATOR_CACHE_DIR": str(store / "curator"),
        "PIXELTABLE_HOME": str(store / "pixeltable"),
        "GOOGLE_GEMINI_BASE_URL": url,
    }


def _last_json(stdout: str) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {}
    return said


def _rows_right(said: Mapping[str, Any]) -> int:
    """Images of our run with two boxes and labels, which is what the emulator answers when it does not look."""
    if not said:
        return 0
    folder = Path(said["tables"]["annotations"]) / f"run={said['run']}"
    labels: dict[str, list[str]] = {}
    for row in pq.read_table(folder, columns=["file_name", "label"]).to_pylist():
        labels.setdefault(row["file_name"], []).append(row["label"])
    return sum(len(both) == 2 and all(both) for both in labels.values())


# --- what is measured


def measure_calm(bench: Bench, tools: Sequence[Tool], images: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """A clean run of each tool in turn, `rounds` times."""
    figures: dict[str, list[dict[str, Any]]] = {tool.name: [] for tool in tools}
    for number in range(rounds):
        for tool in tools:
            with bench.emulator() as emulated:
                outcome = bench.run(tool, emulated, images, bench.store(tool))
            figures[tool.name].append(_calm_figures(outcome, _count(images)))
            say(f"round {number + 1}, {tool.title}: {json.dumps(figures[tool.name][-1])}")
    return figures


def measure_start(bench: Bench, tool: Tool, image: Path) -> dict[str, Any]:
    """A run over one image: what a tool takes before and after its work, however much of that there is."""
    with bench.emulator() as emulated:
        # twice: the first may have Python compile the tool, and the disk read it
        runs = [bench.run(tool, emulated, image, bench.store(tool)) for _ in range(2)]
    outcome = min(runs, key=lambda run: run.tree.cpu_s)
    say(f"start, {tool.title}: {outcome.tree.wall_s:.1f} s, {outcome.tree.cpu_s:.1f} s of CPU")
    return {"wall_s": outcome.tree.wall_s, "cpu_s": outcome.tree.cpu_s, "right": outcome.right}


def _calm_figures(outcome: Outcome, images: int) -> dict[str, Any]:
    tree, books = outcome.tree, outcome.books
    return {
        "code": tree.code,
        "load_average": os.getloadavg()[0],
        "wall_s": tree.wall_s,
        "elapsed_s": outcome.elapsed_s,
        "asking_s": books["asking_s"],
        "images_per_s": images / outcome.elapsed_s if outcome.elapsed_s else None,
        "cpu_ms": 1000 * tree.cpu_s / images,
        "peak_rss_mb": tree.peak_rss_bytes / MB,
        "peak_own_rss_mb": tree.peak_own_rss_bytes / MB,
        "peak_in_flight": books["peak_in_flight"],
        "questions": books["questions"],
        "right": outcome.right,
    }


def measure_trouble(bench: Bench, tool: Tool, images: Path) -> dict[str, Any]:
    """What 10 % of errors, a SIGKILL half-way, and small changes of the folder cost."""
    figures = {**_under_faults(bench, tool, images), **_killed(bench, tool, images), **_changed(bench, tool, images)}
    say(f"trouble, {tool.title}: {json.dumps(figures)}")
    return figures


def _under_faults(bench: Bench, tool: Tool, images: Path) -> dict[str, Any]:
    with bench.emulator("--fault", FAULTS) as emulated:
        outcome = bench.run(tool, emulated, images, bench.store(tool))
    return {
        "faults_lost": _count(images) - outcome.right,
        "faults_questions": outcome.books["questions"],
        "faults_paid": outcome.books["image_answers"],
        "faults_s": outcome.elapsed_s,
        "faults_code": outcome.tree.code,
    }


def _killed(bench: Bench, tool: Tool, images: Path) -> dict[str, Any]:
    store = bench.store(tool)
    with bench.emulator() as emulated:
        half = _count(images) // 2
        bench.run(tool, emulated, images, store, kill_when=lambda: emulated.books()["image_answers"] >= half)
        paid_before = emulated.books()["image_answers"]
        outcome = bench.run(tool, emulated, images, store)
    return {
        "killed_at": paid_before,
        "killed_in_flight": outcome.books["left_by_client"],
        "killed_paid_again": outcome.books["image_answers"] - _count(images) if outcome.has_ended else None,
        "killed_lost": _count(images) - outcome.right,
    }


def _changed(bench: Bench, tool: Tool, images: Path) -> dict[str, Any]:
    """Calls for the same folder again, with one image more, and then with one of its middle fewer."""
    folder, store, calls, lost = bench.folder / "changing", bench.store(tool), list[int | None](), list[int]()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(images, folder)
    with bench.emulator() as emulated:
        for change in (_leave, _leave, _add_one, _take_one):
            change(folder)
            before = emulated.books()["questions"]
            outcome = bench.run(tool, emulated, folder, store)
            calls.append(outcome.books["questions"] - before if outcome.has_ended else None)
            lost.append(_count(folder) - outcome.right)
            if len(calls) == 1:
                disk_bytes = _disk_bytes(store)
    figures = dict(zip(("first_calls", "again_calls", "more_calls", "fewer_calls"), calls, strict=True))
    return {**figures, "changed_lost": lost, "disk_mb": disk_bytes / MB, "input_mb": _disk_bytes(images) / MB}


def _leave(folder: Path) -> None:
    pass


def _add_one(folder: Path) -> None:
    make_pictures(folder, count=1, size_bytes=SIZE_BYTES, wh=SIZE_WH, first=_count(folder))


def _take_one(folder: Path) -> None:
    sorted(folder.glob("*.jpg"))[_count(folder) // 2].unlink()


def _count(folder: Path) -> int:
    return len(list(folder.glob("*.jpg")))


def _disk_bytes(folder: Path) -> int:
    """As the file system counts it: blocks, so that what was only reserved does not count."""
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*"))


# --- the tables


def calm_table(
    tools: Sequence[Tool],
    figures: Mapping[str, Sequence[Mapping[str, Any]]],
    starts: Mapping[str, Mapping[str, float]],
    images: int,
) -> str:
    """Medians over the rounds, each with its ratio to the floor's in brackets."""
    medians = {tool.name: _medians(figures[tool.name]) for tool in tools}
    for name, median in medians.items():
        median["more_cpu_ms"] = (median["cpu_ms"] * images - 1000 * starts[name]["cpu_s"]) / (images - 1)
    floor = medians.get("floor", {})
    columns = (
        ("images/s", "images_per_s", 0),
        ("s in the pipeline", "elapsed_s", 1),
        ("s, whole process", "wall_s", 1),
        ("CPU ms/image", "cpu_ms", 1),
        ("CPU ms/image beyond the first", "more_cpu_ms", 1),
        ("peak RSS MB", "peak_rss_mb", 0),
    )
    rows = [
        [
            tool.title,
            *(_beside(medians[tool.name].get(key), floor.get(key), digits) for _, key, digits in columns),
            f"{medians[tool.name]['peak_in_flight']:.0f}",
            f"{images - medians[tool.name]['right']:.0f}",
        ]
        for tool in tools
    ]
    return markdown_table(["", *(title for title, _, _ in columns), "in flight", "rows lost"], rows)


def trouble_table(tools: Sequence[Tool], figures: Mapping[str, Mapping[str, Any]]) -> str:
    columns = (
        ("lost at 10 % faults", "faults_lost"),
        ("requests for it", "faults_questions"),
        ("paid again after SIGKILL", "killed_paid_again"),
        ("lost after it", "killed_lost"),
        ("calls of an identical rerun", "again_calls"),
        ("one image more", "more_calls"),
        ("one fewer", "fewer_calls"),
    )
    rows = [
        [tool.title, *(_cell(figures[tool.name][key]) for _, key in columns), _disk_cell(figures[tool.name])]
        for tool in tools
    ]
    return markdown_table(["", *(title for title, _ in columns), "MB left (of the input)"], rows)


def _cell(count: int | None) -> str:
    return "did not end" if count is None else str(count)


def _disk_cell(figures: Mapping[str, Any]) -> str:
    return f"{figures['disk_mb']:.1f} ({figures['disk_mb'] / figures['input_mb']:.2f})"


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = [key for key, value in rounds[0].items() if isinstance(value, int | float)]
    return {key: statistics.median(each[key] for each in rounds if each[key] is not None) for key in keys}


def _beside(value: float | None, floor: float | None, digits: int) -> str:
    if value is None:
        return "did not end"
    return f"{value:.{digits}f} ({value / floor:.2f})" if floor else f"{value:.{digits}f}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    options = _options()
    tools = [tool for tool in TOOLS if not options.only or tool.name in options.only.split(",")]
    failures = {tool.name: reason for tool in tools if (reason := make_venv(tool, options.cache)) is not None}
    for name, reason in failures.items():
        say(f"{name} cannot be installed and is left out: {reason}")
    tools = [tool for tool in tools if tool.name not in failures]
    with tempfile.TemporaryDirectory(prefix="pixscribe-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Pixeltable's database is another user's when this one is root
        bench = Bench(folder, options.cache, options.concurrency, options.latency)
        results = _measure(bench, tools, options)
    results |= {"options": {key: str(value) for key, value in vars(options).items()}, "left_out": failures}
    save_results(options.out, results)
    print(f"{surroundings()}\n")
    print(calm_table(tools, results["calm"], results["start"], options.images))
    if results["trouble"]:
        print(trouble_table(tools, results["trouble"]))


def _measure(bench: Bench, tools: Sequence[Tool], options: argparse.Namespace) -> dict[str, Any]:
    for name, count in (("one", 1), ("many", options.images), ("few", options.few)):
        make_pictures(bench.folder / name, count=count, size_bytes=SIZE_BYTES, wh=SIZE_WH)
    start = {tool.name: measure_start(bench, tool, bench.folder / "one") for tool in tools}
    calm = measure_calm(bench, tools, bench.folder / "many", options.rounds)
    trouble = {} if options.skip_faults else {t.name: measure_trouble(bench, t, bench.folder / "few") for t in tools}
    return {"tools": [asdict(tool) for tool in tools], "start": start, "calm": calm, "trouble": trouble}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="of a clean run; at least 2")
    parser.add_argument("--few", type=int, default=400, help="images of the runs with faults, kills and changes")
    parser.add_argument("--rounds", type=int, default=3, help="in turn; the medians count")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--only", default="", help=f"some of {','.join(tool.name for tool in TOOLS)}")
    parser.add_argument("--skip-faults", action="store_true", help="clean runs alone")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the virtual environments are")
    parser.add_argument("--out", type=Path, default=CACHE / "inline.json", help="for the raw numbers")
    options = parser.parse_args()
    unknown = set(filter(None, options.only.split(","))) - {tool.name for tool in TOOLS}
    if unknown:
        parser.error(f"--only {','.join(sorted(unknown))}: allowed are {', '.join(tool.name for tool in TOOLS)}")
    return options


if __name__ == "__main__":
    main()
