"""What a run holds in memory must depend on its limits, and neither on the number of its images nor of its threads."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pixscribe.config import RunConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from tests.conftest import ROOT, MakeConfig, write_yaml

RUN_AND_TELL_THE_PEAK = """
import asyncio, sys
from pathlib import Path
from pixscribe.config import load_config
from tests.conftest import annotate
assert asyncio.run(annotate(load_config(Path(sys.argv[1])))).is_all_ok
# not ru_maxrss, which begins with what the parent held when it forked
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) // 1024)
"""


def peak_mb(path: Path, config: RunConfig) -> int:
    command = [sys.executable, "-c", RUN_AND_TELL_THE_PEAK, str(write_yaml(path, config))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def large_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs of 60 megapixels that lie on their side, so that each has to be decoded."""
    folder = tmp_path_factory.mktemp("large")
    lying = Image.Exif()
    lying[0x0112] = 6
    for number in range(6):
        image = Image.new("RGB", (10_000, 6_000), (40 * number, 90, 90))
        image.save(folder / f"{number}.jpg", exif=lying, quality=50)
    return folder


def test_a_large_image_times_the_concurrency_does_not_multiply(make: MakeConfig, large_pictures: Path, tmp_path: Path):
    peaks_mb = []
    with Emulator(EmulatorOptions(look=False)) as emulator:
        for limit in (1, 6):
            config = make(
                source={"uri": str(large_pictures), "limit": limit},
                model={"base_url": emulator.url},
                output={"uri": str(tmp_path / f"out-{limit}")},
            )
            peaks_mb.append(peak_mb(tmp_path / "config.yaml", config))
    one, six = peaks_mb
    assert 400 < one < 1000  # 60 megapixels, four bytes each, twice, and what a process weighs
    assert six < 1.4 * one


def test_ten_times_the_images_take_hardly_more(make: MakeConfig, tmp_path: Path):
    source, peaks_mb = tmp_path / "in", []
    source.mkdir()
    image = Image.new("RGB", (8, 8))
    for number in range(8000):
        image.putpixel((0, 0), (number % 256, number // 256, 0))
        image.save(source / f"{number:05d}.png", compress_level=0)
    with Emulator(EmulatorOptions(look=False)) as emulator:
        for limit in (800, 8000):
            config = make(
                source={"uri": str(source), "limit": limit},
                model={"base_url": emulator.url, "transport": "inline"},
                prompts=[{"name": "objects", "kind": "detect"}],
                limits={"requests_per_minute": 10_000_000},
                output={"uri": str(tmp_path / f"out-{limit}")},
            )
            peaks_mb.append(peak_mb(tmp_path / "config.yaml", config))
    assert peaks_mb[1] < 1.3 * peaks_mb[0], peaks_mb
