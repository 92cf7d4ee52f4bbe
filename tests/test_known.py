"""`source.only_new`: what an output answers already is left out, and no image is opened to find out."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pixscribe.config import EMULATOR, RunConfig
from pixscribe.emulator import Emulator
from pixscribe.run import RunSummary
from tests.conftest import SAMPLES, MakeConfig, annotate

MakeNightly = Callable[..., RunConfig]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five pictures."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(1, 6):
        shutil.copy(SAMPLES / f"orientation/exif-{number}.jpg", folder / f"{number}.jpg")
    return folder


@pytest.fixture
def nightly(make: MakeConfig, source: Path) -> MakeNightly:
    def make_one(**sections):
        return make(
            source={"uri": str(source), "only_new": True, **sections.pop("source", {})},
            prompts=sections.pop("prompts", [{"name": "objects", "kind": "detect"}]),
            **sections,
        )

    return make_one


def names(summary: RunSummary) -> list[str]:
    folder = Path(summary.output, "images", f"run={summary.run}")
    return pq.read_table(folder)["file_name"].to_pylist() if folder.exists() else []


async def test_a_night_without_anything_new_is_a_complete_run_of_no_images(nightly: MakeNightly, emulator: Emulator):
    first = await annotate(nightly())
    asked = len(emulator.books.questions)
    second = await annotate(nightly())
    assert (first.totals.images, first.images_skipped) == (5, 0)
    assert (second.status, second.totals.images, second.images_skipped) == ("complete", 0, 5)
    assert second.is_all_ok
    assert names(second) == []
    assert len(emulator.books.questions) == asked


async def test_only_what_is_new_or_changed_or_renamed_is_looked_at_and_a_renamed_one_costs_nothing(
    nightly: MakeNightly, emulator: Emulator, source: Path
):
    await annotate(nightly())
    asked = len(emulator.books.questions)
    shutil.copy(SAMPLES / "formats/scene.webp", source / "new.webp")
    first, second, *_ = sorted(source.glob("[0-9]*"))
    first.rename(source / "renamed.jpg")
    shutil.copy(SAMPLES / "nothing.png", second)
    night = await annotate(nightly())
    assert names(night) == sorted(["new.webp", "renamed.jpg", second.name])
    assert (len(emulator.books.questions) - asked, night.totals.reused, night.images_skipped) == (2, 1, 3)


async def test_all_nights_together_have_each_image_once(nightly: MakeNightly, source: Path):
    await annotate(nightly())
    shutil.copy(SAMPLES / "formats/scene.webp", source / "new.webp")
    await annotate(nightly())
    last = await annotate(nightly())
    found = pq.read_table(f"{last.output}/images")["file_name"].to_pylist()
    assert sorted(found) == sorted(path.name for path in source.iterdir())


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({"prompts": [{"name": "objects", "kind": "detect", "text": "Detect all cups."}]}, id="words"),
        pytest.param({"prompts": [{"name": "objects", "kind": "detect", "labels": ["cup"]}]}, id="labels"),
        pytest.param({"model": {"name": "gemini-3.6-flash"}}, id="model"),
        pytest.param({"model": {"seed": 8}}, id="seed"),
        pytest.param({"image": {"max_side_px": 64}}, id="size"),
    ],
)
async def test_another_question_is_asked_about_every_image(nightly: MakeNightly, emulator: Emulator, sections):
    await annotate(nightly())
    asked = len(emulator.books.questions)
    night = await annotate(nightly(**sections))
    assert (night.totals.images, len(emulator.books.questions) - asked) == (5, 5)


async def test_one_prompt_more_asks_that_one_only(nightly: MakeNightly, emulator: Emulator):
    await annotate(nightly())
    asked = len(emulator.books.questions)
    prompts = [{"name": "objects", "kind": "detect"}, {"name": "text", "kind": "caption"}]
    night = await annotate(nightly(prompts=prompts))
    assert (night.totals.images, len(emulator.books.questions) - asked) == (5, 5)


async def test_limits_and_tier_change_nothing_about_what_is_known(nightly: MakeNightly):
    await annotate(nightly())
    night = await annotate(nightly(model={"service_tier": "flex"}, limits={"concurrency": 2}))
    assert night.images_skipped == 5


async def test_a_failure_that_can_pass_is_taken_up_again_and_one_that_cannot_is_not(
    nightly: MakeNightly, emulator: Emulator, source: Path
):
    (source / "broken.jpg").write_bytes(b"this is text and no picture")
    emulator.script("500", "blocked")
    first = await annotate(nightly(retry={"max_attempts": 1}, limits={"concurrency": 1}))
    assert first.totals.errors == {"blocked": 1, "server_error": 1, "unsupported_type": 1}
    asked = len(emulator.books.questions)
    second = await annotate(nightly())
    assert (second.totals.images_ok, second.images_skipped) == (1, 5)
    assert len(emulator.books.questions) - asked == 1


async def test_the_limit_counts_new_images(nightly: MakeNightly, source: Path):
    every = sorted(path.name for path in source.iterdir())
    nights = [await annotate(nightly(source={"limit": 2})) for _ in range(3)]
    assert [names(night) for night in nights] == [every[:2], every[2:4], every[4:]]


async def test_a_file_that_was_only_touched_is_read_again_and_costs_nothing(
    nightly: MakeNightly, emulator: Emulator, source: Path
):
    await annotate(nightly())
    asked = len(emulator.books.questions)
    touched = min(source.iterdir())
    os.utime(touched, (1, 1))
    night = await annotate(nightly())
    assert (names(night), len(emulator.books.questions)) == ([touched.name], asked)


async def test_an_image_whose_list_tells_no_version_is_opened_to_see_whether_it_changed(
    nightly: MakeNightly, emulator: Emulator, source: Path, bucket: pafs.S3FileSystem
):
    def put(name: str) -> None:
        with bucket.open_output_stream("images/a.jpg") as file:
            file.write((source / name).read_bytes())

    (source.parent / "list.txt").write_text("s3://images/a.jpg\n")
    listed = nightly(source={"uri": str(source.parent / "list.txt")})
    put("1.jpg")
    await annotate(listed)
    asked = len(emulator.books.questions)
    assert (await annotate(listed)).totals.reused == 1
    put("2.jpg")
    await annotate(listed)
    assert len(emulator.books.questions) - asked == 1


async def test_what_the_built_in_emulator_made_up_is_no_answer_of_the_model(nightly: MakeNightly, emulator: Emulator):
    await annotate(nightly(model={"base_url": EMULATOR}))
    night = await annotate(nightly())
    assert (night.totals.images, night.totals.reused, len(emulator.books.questions)) == (5, 0, 5)


async def test_a_run_that_cannot_be_read_knows_nothing_and_is_named(
    nightly: MakeNightly, source: Path, caplog: pytest.LogCaptureFixture
):
    first = await annotate(nightly())
    Path(first.output, "runs", first.run, "manifest.parquet").write_bytes(b"damaged")
    night = await annotate(nightly())
    assert (night.totals.images, night.totals.reused) == (5, 5)
    assert f"run {first.run} of" in caplog.text
