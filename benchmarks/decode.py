"""What turning photographs upright or making them smaller costs, beside a plain Pillow loop on a process per core.

    python -m benchmarks.decode --images 500 --cache /tmp/photographs

Photographs of 12 megapixels in three cases: JPEG with EXIF orientation 6, which has to be decoded, turned and encoded
again; HEIC that is to be made smaller (`image.max_side_px`); and HEIC as it comes, which Gemini takes as it is. Ours
labels them, uploads and one question each included, against an emulator in a process of its own on the same cores. The
loop reads, decodes, turns or reduces, encodes as JPEG with the same settings and hashes, and does no more than that.
"""

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from benchmarks.measure import (
    BIN,
    CORES,
    MB,
    ROOT,
    Measured,
    emulator,
    markdown_table,
    run_measured,
    save_results,
    surroundings,
)

WIDTH_PX, HEIGHT_PX = 4000, 3000
PICTURES = 8
ON_ITS_SIDE = 6


@dataclass(frozen=True, slots=True)
class Case:
    """Photographs of one kind and what is done to them."""

    title: str
    suffix: str
    max_side_px: int | None
    sent: tuple[int, int, str]
    """Width, height and type of what our side has to send."""


CASES = {
    "turned": Case("JPEG on its side", ".jpg", None, (HEIGHT_PX, WIDTH_PX, "image/jpeg")),
    "reduced": Case("HEIC, at most 2048 px", ".heic", 2048, (1536, 2048, "image/jpeg")),
    "untouched": Case("HEIC as it comes", ".heic", None, (HEIGHT_PX, WIDTH_PX, "image/heic")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="of each format")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="that differ in more than their last bytes")
    parser.add_argument("--rounds", type=int, default=1, help="in turn; the best of each counts")
    parser.add_argument("--whole", action="store_true", help="measure the whole command line too, with Prefect's start")
    parser.add_argument("--cache", type=Path, help="keep the pictures here, and take them from here the next time")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/decode.json")
    parser.add_argument("--loop", nargs=2, metavar=("FOLDER", "MAX_SIDE_PX"), help="only the baseline")
    options = parser.parse_args()
    if options.loop:
        print(loop(Path(options.loop[0]), int(options.loop[1])))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix in {case.suffix for case in CASES.values()}:
            make_photographs(folder / suffix[1:], options.cache or folder / "cache", suffix, options)
        results = {name: measure(folder, case, options) for name, case in CASES.items()}
    print(f"{surroundings()}; {options.images} images of {WIDTH_PX}x{HEIGHT_PX} px in each case\n")
    print(report(results, options.images))
    numbers = {case: {name: each.numbers() for name, each in by_name.items()} for case, by_name in results.items()}
    save_results(options.json, {"images": options.images, "results": numbers})


def measure(folder: Path, case: Case, options: argparse.Namespace) -> dict[str, Measured]:
    """Each way to do it, in turn; what took the shortest time of each."""
    rounds = [dict(measure_once(folder, case, options)) for _ in range(options.rounds)]
    return {name: min((each[name] for each in rounds), key=lambda measured: measured.wall_s) for name in rounds[0]}


def measure_once(folder: Path, case: Case, options: argparse.Namespace) -> Iterator[tuple[str, Measured]]:
    source = folder / case.suffix[1:]
    baseline = ["--loop", str(source), str(case.max_side_px or 0)]
    yield f"Pillow on {CORES} processes", run_measured([sys.executable, "-m", "benchmarks.decode", *baseline])
    commands = {"pixscribe, labelling": [str(BIN / "python"), "-m", "benchmarks.library_run"]}
    if options.whole:
        commands["`pixscribe run`, all of it"] = [str(BIN / "pixscribe"), "run", "--json"]
    for name, command in commands.items():
        with labelling_config(folder, source, case) as config:
            measured = run_measured([*command, str(config)], environment={"GEMINI_API_KEY": "bench"})
            assert json.loads(measured.stdout.splitlines()[-1])["totals"]["images_ok"] == options.images
            check_sent(config.parent / "out", case)
        print(
            f"{case.title}, {name}: {measured.wall_s:.1f} s, machine {measured.machine_busy:.0%} busy", file=sys.stderr
        )
        yield name, measured


@contextmanager
def labelling_config(folder: Path, source: Path, case: Case) -> Iterator[Path]:
    """A config of one prompt, with an output of its own, against an emulator that has seen nothing yet."""
    with emulator() as url, tempfile.TemporaryDirectory(dir=folder) as place:
        config = {
            "name": "decode",
            "source": {"uri": str(source)},
            "image": {"max_side_px": case.max_side_px},
            "model": {"base_url": url},
            "prompts": [{"name": "objects", "kind": "detect"}],
            "limits": {"requests_per_minute": 1_000_000},
            "output": {"uri": f"{place}/out"},
        }
        path = Path(place) / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        yield path


def check_sent(output: Path, case: Case) -> None:
    """Every image was turned or reduced, or the two did not do the same work."""
    table = pq.read_table(output / "images", columns=["sent_width", "sent_height", "sent_mime_type"])
    sent = {tuple(row.values()) for row in table.to_pylist()}
    assert sent == {case.sent}, sent


def report(results: dict[str, dict[str, Measured]], images: int) -> str:
    """Ratios to the Pillow loop on the same files."""
    rows = list[list[str]]()
    for case, by_name in results.items():
        baseline = next(iter(by_name.values()))
        for name, each in by_name.items():
            rows.append(
                [
                    f"{CASES[case].title}: {name}",
                    f"{images / each.wall_s:.2f}",
                    f"{baseline.wall_s / each.wall_s:.2f}",
                    f"{1000 * each.cpu_s / images:.0f}",
                    f"{each.cpu_s / baseline.cpu_s:.2f}",
                    f"{each.cores_busy:.0%}",
                    f"{each.machine_busy:.0%}",
                    f"{each.peak_tree_rss_bytes / MB:.0f}",
                ]
            )
    head = ["", "images/s", "ratio", "CPU ms/image", "ratio", "cores busy", "whole machine busy", "peak RSS MB"]
    return markdown_table(head, rows)


def loop(folder: Path, max_side_px: int) -> int:
    """The baseline: turn every image of a folder upright on a process per core. 0 leaves the size as it is."""
    with ProcessPoolExecutor(CORES) as processes:
        paths = sorted(folder.iterdir())
        return sum(1 for _ in processes.map(partial(upright, max_side_px=max_side_px), paths, chunksize=4))


def upright(path: Path, *, max_side_px: int) -> str:
    """The sha256 of the image as a JPEG that stands upright, with our quality."""
    if path.suffix == ".heic":
        pillow_heif.register_heif_opener()
    image = Image.open(io.BytesIO(path.read_bytes()))
    if max_side_px:
        image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    ImageOps.exif_transpose(image).save(target, "JPEG", quality=95, subsampling="4:4:4")
    return sha256(target.getvalue()).hexdigest()


def make_photographs(folder: Path, cache: Path, suffix: str, options: argparse.Namespace) -> None:
    """Write files, no two alike, of a few pictures."""
    folder.mkdir(parents=True)
    originals = [original(cache, suffix, number) for number in range(min(options.pictures, options.images))]
    for number, data in enumerate(islice(cycle(originals), options.images)):
        (folder / f"{number:06d}{suffix}").write_bytes(data + _tail(suffix, number))
    print(f"{suffix}: {sum(map(len, originals)) / len(originals) / MB:.1f} MB a file", file=sys.stderr)


def _tail(suffix: str, number: int) -> bytes:
    """What changes a file and not its picture: a box that readers pass over, or bytes after the end of a JPEG."""
    note = f"{number:012d}".encode()
    return (8 + len(note)).to_bytes(4, "big") + b"free" + note if suffix == ".heic" else note


def original(cache: Path, suffix: str, number: int) -> bytes:
    """One of the pictures as a file: 2 to 4 MB as JPEG, 1 to 2 MB as HEIC, like those of a telephone."""
    path = cache / f"{number}-{WIDTH_PX}x{HEIGHT_PX}{suffix}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        print(f"drawing {path}", file=sys.stderr)
        path.write_bytes(_encoded(draw(number), suffix))
    return path.read_bytes()


def _encoded(image: Image.Image, suffix: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = ON_ITS_SIDE
    target = io.BytesIO()
    if suffix == ".heic":
        # pillow-heif makes a box of the orientation, which turns the picture in every reader
        pillow_heif.from_pillow(image).save(target, quality=45, exif=exif.tobytes())
    else:
        image.save(target, "JPEG", quality=90, exif=exif)
    return target.getvalue()


def draw(seed: int) -> Image.Image:
    """Something like a photograph: slow gradients, soft things with edges, and the noise of a sensor."""
    random: Any = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX].astype(np.float32)
    waves = [np.sin(random.uniform(0, 6) + x / WIDTH_PX * random.uniform(1, 4) + y / HEIGHT_PX) for _ in "rgb"]
    image = Image.fromarray((127 + 90 * np.stack(waves, axis=-1)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for shape in range(300):
        left, top, side = random.integers(0, WIDTH_PX), random.integers(0, HEIGHT_PX), random.integers(20, 800)
        paint = pen.ellipse if shape % 2 else pen.rectangle
        paint((left, top, left + side, top + side // 2), fill=tuple(int(part) for part in random.integers(0, 256, 3)))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), np.float32)
    noise = random.normal(0, 4, (HEIGHT_PX, WIDTH_PX, 1))
    return Image.fromarray((soft + noise).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
