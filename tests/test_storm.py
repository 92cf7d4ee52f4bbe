"""Thousands of images against a service that fails all the time: nothing is lost, nothing is asked once too often."""

from pathlib import Path

import pytest
from PIL import Image

from pixscribe.config import RunConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from tests.conftest import MakeConfig, annotate
from tests.invariants import check_output
from tests.test_end_to_end import digests

DETECT = {"name": "objects", "kind": "detect"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 small images, no two the same."""
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.new("RGB", (64, 48), "white")
    image.paste((200, 30, 30), (10, 10, 40, 30))
    for number in range(2000):
        image.putpixel((0, 0), (number % 256, number // 256, 0))
        image.save(folder / f"{number:04d}.png")
    return folder


async def run(
    make: MakeConfig, source: Path, output: Path, faults: dict[str, float], limit: int
) -> tuple[RunConfig, Emulator]:
    with Emulator(EmulatorOptions(faults=faults)) as emulator:
        config = make(
            source={"uri": str(source), "limit": limit},
            model={"base_url": emulator.url},
            prompts=[DETECT],
            output={"uri": str(output)},
            retry={"max_attempts": 10, "max_wait_s": 0.05},
        )
        summary = await annotate(config, run_id="r")
    assert summary.is_all_ok
    assert summary.totals.objects == limit
    return config, emulator


async def test_ten_percent_of_refusals_cost_just_the_requests_that_were_refused(
    make: MakeConfig, pictures: Path, tmp_path: Path
):
    faults = {"429_interactions": 0.05, "503": 0.05}
    config, emulator = await run(make, pictures, tmp_path / "out", faults, limit=2000)
    questions = emulator.books.questions
    assert len(questions) == 2000 + sum(question.fault is not None for question in questions) <= 2230
    assert len(emulator.books.answered()) == len({question.images for question in emulator.books.answered()}) == 2000
    check_output(config, "r")


async def test_a_storm_of_every_kind_leaves_the_tables_of_a_calm_day(make: MakeConfig, pictures: Path, tmp_path: Path):
    storm = {"429": 0.05, "503": 0.05, "reset": 0.01, "cut": 0.01, "html_200": 0.01, "upload_503": 0.05}
    await run(make, pictures, tmp_path / "calm", {}, limit=300)
    config, emulator = await run(make, pictures, tmp_path / "storm", storm, limit=300)
    assert sum(question.fault is not None for question in emulator.books.questions) > 30
    for table in ("images", "annotations"):
        assert digests(tmp_path / "calm", table) == digests(tmp_path / "storm", table)
    check_output(config, "r")
