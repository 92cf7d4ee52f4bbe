import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pixscribe.emulator import Emulator
from pixscribe.errors import ConfigError
from pixscribe.rerun import find_changed, rerun_config
from pixscribe.results import RunResults, open_results
from tests.conftest import SAMPLES, MakeConfig, annotate
from tests.test_replay import digests


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    shutil.copytree(SAMPLES / "formats", folder)
    (folder / "outside.png").symlink_to(SAMPLES / "nothing.png")
    return folder


async def run_of(config) -> RunResults:
    summary = await annotate(config)
    return open_results(f"{summary.output}@{summary.run}")


async def test_a_rerun_is_about_the_images_of_the_manifest_and_asks_nothing_that_was_answered(
    make: MakeConfig, emulator: Emulator, source: Path
):
    before = await run_of(make(source={"uri": str(source), "exclude": ["*.webp"]}))
    shutil.copy(SAMPLES / "nothing.png", source / "new.png")
    asked = len(emulator.books.questions)
    summary = await annotate(rerun_config(before, {}))
    after = RunResults(before.storage, summary.run)
    assert len(emulator.books.questions) == asked
    for table in ("images", "annotations"):
        assert digests(summary, table).keys() == {"shard-00000.parquet"}
        assert [part[0].to_pylist() for part in after.read_parts({table: ["file_name"]})] == [
            part[0].to_pylist() for part in before.read_parts({table: ["file_name"]})
        ]
    assert [row.image for row in after] == [row.image for row in before]
    assert "outside.png" in {row.image["file_name"] for row in after if row.image["error_code"] == "read_error"}
    assert list(find_changed(before, after)) == []


async def test_a_manifest_of_the_first_versions_is_one_too(make: MakeConfig, source: Path):
    before = await run_of(make(source={"uri": str(source)}))
    path = Path(before.storage.uri, "runs", before.run_id, "manifest.parquet")
    pq.write_table(pq.read_table(path).drop_columns("version"), path)
    after = await run_of(rerun_config(before, {}))
    assert [row.image for row in after] == [row.image for row in before]


async def test_a_rerun_says_which_images_are_unreadable_or_changed(make: MakeConfig, source: Path):
    before = await run_of(make(source={"uri": str(source)}))
    (source / "scene.png").unlink()
    shutil.copy(SAMPLES / "nothing.png", source / "scene.jpg")
    summary = await annotate(rerun_config(before, {}))
    changed = list(find_changed(before, RunResults(before.storage, summary.run)))
    assert changed == [("scene.jpg", "changed"), ("scene.png", "unreadable")]


async def test_only_what_failed_is_done_again(make: MakeConfig, emulator: Emulator, source: Path):
    (source / "outside.png").unlink()
    emulator.script("500", "ok", "500")
    config = make(source={"uri": str(source)}, retry={"max_attempts": 1}, limits={"concurrency": 1})
    before = await run_of(config)
    failed = {row.image["file_name"] for row in before if row.image["status"] != "ok"}
    asked = len(emulator.books.questions)
    after = await run_of(rerun_config(before, {}, only_failed=True))
    assert {row.image["file_name"]: row.image["status"] for row in after} == dict.fromkeys(failed, "ok")
    assert len(emulator.books.questions) - asked == 2
    with pytest.raises(ConfigError, match=r"--failed: every image of run .* is ok"):
        rerun_config(after, {}, only_failed=True)


async def test_a_run_that_was_moved_is_done_again_where_it_lies_now(make: MakeConfig, emulator: Emulator, source: Path):
    before = await run_of(make(source={"uri": str(source)}))
    moved = shutil.move(before.storage.uri, f"{before.storage.uri}-moved")
    asked = len(emulator.books.questions)
    summary = await annotate(rerun_config(open_results(f"{moved}@{before.run_id}"), {}))
    assert (summary.output, len(emulator.books.questions)) == (moved, asked)
    assert not Path(before.storage.uri).exists()


async def test_a_run_that_was_about_no_images_is_not_done_again(make: MakeConfig, source: Path):
    (source / "outside.png").unlink()
    nightly = make(source={"uri": str(source), "only_new": True})
    await run_of(nightly)
    with pytest.raises(ConfigError, match="was about no images, because all of them were known"):
        rerun_config(await run_of(nightly), {})


async def test_a_variation_asks_anew_what_it_changes(make: MakeConfig, emulator: Emulator, source: Path):
    before = await run_of(make(source={"uri": str(source)}, prompts=[{"name": "objects", "kind": "detect"}]))
    asked = len(emulator.books.questions)
    config = rerun_config(before, {"model.name": "gemini-3.6-flash", "source.limit": 3})
    assert (config.model.name, config.prompts) == ("gemini-3.6-flash", before.config.prompts)
    await annotate(config)
    assert len(emulator.books.questions) - asked == 2


async def test_a_wrong_change_is_one_sentence_that_names_its_key(make: MakeConfig, source: Path):
    before = await run_of(make(source={"uri": str(source)}))
    with pytest.raises(ConfigError, match=r"run test-.*: model\.nam: unknown key; did you mean model\.name\?"):
        rerun_config(before, {"model.nam": "x"})
