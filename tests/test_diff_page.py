import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from pixscribe.diff import compare_runs
from pixscribe.diff.page import render_diff
from pixscribe.results import RunResults
from tests.browser import browser, opened
from tests.conftest import pixscribe
from tests.written_runs import Seen, Thing, run_config, write_run

__all__ = ["browser"]

CAT, DOG, CUP = (0, 0, 200, 200), (300, 0, 500, 200), (600, 0, 800, 200)
HOSTILE = "<img src=x onerror=alert(1)>"
PROMPTS = {"objects": "detect", "words": "caption"}


def pictured(folder: Path, name: str, *things: Thing, words: str = "a picture", **options: Any) -> Seen:
    """An image that there really is, 100 x 50 px."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 50), "beige").save(path)
    said: dict[str, Any] = {"objects": things, "words": words}
    return Seen(name, said, size=(100, 50), content=path.read_bytes(), uri=path.absolute().as_uri(), **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResults, RunResults]:
    """One image of each fate."""
    root = tmp_path_factory.mktemp("runs")
    photos, gone = root / "photos", root / "gone"
    before = [
        pictured(photos, "all.png", Thing("cat", CAT), Thing("dog", DOG), Thing("cup", CUP)),
        pictured(photos, "lost.png", Thing("cat", CAT)),
        pictured(photos, "same.png", Thing("cat", CAT)),
        pictured(photos, "words.png", words="a cat"),
        pictured(photos, "moved.png", Thing("cat", CAT)),
    ]
    after = [
        pictured(
            photos, "all.png", Thing("cat", (0, 0, 200, 180)), Thing("wolf", DOG), Thing(HOSTILE, (0, 500, 200, 900))
        ),
        pictured(photos, "lost.png", failed=dict.fromkeys(PROMPTS, "blocked")),
        before[2],
        pictured(photos, "words.png", words=HOSTILE),
        pictured(gone, "moved.png", Thing("dog", CAT)),
    ]
    (gone / "moved.png").unlink()
    config = run_config(root / "out", PROMPTS)
    changed = run_config(root / "out", PROMPTS, model={"name": "gemini-3.5-pro"})
    return write_run(config, "monday", before), write_run(changed, "tuesday", after)


@pytest.fixture(scope="module")
def path(runs: tuple[RunResults, RunResults], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "diff.html"
    path.write_bytes(render_diff(compare_runs(*runs), *runs))
    return path


@pytest.fixture
def page(browser: Browser, path: Path) -> Iterator[Page]:
    with opened(browser, path) as page:
        yield page


def cards(page: Page) -> list[str]:
    return [card.get_attribute("data-name") or "" for card in page.locator("#cards > li").all()]


def states(page: Page) -> list[tuple[str, bool]]:
    """State and dashed or not of each box that is drawn in the large view."""
    drawn = page.locator("#frame .object").evaluate_all("all => all.map(each => each.getAttribute('class').split(' '))")
    found = [(next(name for name in names if name.startswith("state-")), "dashed" in names) for names in drawn]
    return sorted((state.removeprefix("state-"), dashed) for state, dashed in found)


def test_the_page_says_what_changed(page: Page):
    assert page.locator("h1").inner_text() == "4 of 5 images changed"
    assert "monday → tuesday" in page.locator(".verdict").inner_text()
    config = page.locator("#config").inner_text()
    assert "model.name" in config
    assert "gemini-3.5-pro" in config
    images = page.locator("#images").inner_text()
    assert "ok" in images
    assert "failed (blocked)" in images


def test_the_most_changed_images_come_first_and_unchanged_ones_are_left_out(page: Page):
    # 4 objects, then 2 (the box and the caption), then one each, in the order of the runs
    assert cards(page) == ["all.png", "lost.png", "moved.png", "words.png"]
    assert "1 moved, 1 relabelled, 1 new, 1 gone" in page.locator("#cards > li").first.inner_text()


def test_both_runs_are_drawn_and_each_can_be_hidden(page: Page):
    page.locator("#cards > li button").first.click()
    both = [
        ("gone", True),
        ("moved", False),
        ("moved", True),
        ("new", False),
        ("relabelled", False),
        ("relabelled", True),
    ]
    assert states(page) == both
    page.locator("#side .toggle", has_text="before").locator("input").uncheck()
    assert states(page) == [pair for pair in both if not pair[1]]
    page.locator("#side .toggle", has_text="after").locator("input").uncheck()
    page.locator("#side .toggle", has_text="before").locator("input").check()
    assert states(page) == [pair for pair in both if pair[1]]


def test_what_became_of_an_object_stands_beside_it(page: Page):
    page.locator("#cards > li button").first.click()
    side = page.locator("#side").inner_text()
    assert "was dog" in side
    assert "became wolf" in side
    assert "overlap 0.90" in side


@pytest.mark.parametrize(
    ("state", "names"),
    [
        pytest.param("new", ["all.png"], id="new"),
        pytest.param("gone", ["all.png", "lost.png"], id="gone"),
        pytest.param("moved", ["all.png"], id="moved"),
        pytest.param("relabelled", ["all.png", "moved.png", "words.png"], id="relabelled"),
    ],
)
def test_images_can_be_filtered_by_what_changed(page: Page, state: str, names: list[str]):
    page.locator('select[data-filter="state"]').select_option(state)
    assert sorted(cards(page)) == names


def test_a_label_of_the_table_leads_to_its_images(page: Page):
    page.locator("#prompt-objects button.link", has_text="wolf").first.click()
    expect(page.locator("#cards > li")).to_have_count(1)
    assert cards(page) == ["all.png"]


def test_a_hostile_label_and_caption_are_text(page: Page):
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.locator("#prompt-objects").inner_text()
    page.locator('#cards > li[data-name="words.png"] button').click()
    assert HOSTILE in page.locator("#side").inner_text()


def test_a_picture_that_the_second_run_cannot_give_is_that_of_the_first(page: Page):
    assert page.locator('#cards > li[data-name="moved.png"] img').count() == 1
    assert page.locator("#cards .gone").count() == 0


def test_a_colour_of_each_change_is_explained(page: Page):
    assert page.locator("#legend > span").all_inner_texts() == ["new", "gone", "moved", "relabelled", "same"]


def test_boxes_of_an_image_that_changed_its_size_are_drawn_in_the_frame_of_the_second(tmp_path: Path, browser: Browser):
    photos = tmp_path / "photos"
    before = pictured(photos, "a.png", Thing("cat", (0, 0, 500, 500)))
    small, large = before, pictured(photos, "a.png", Thing("cat", (500, 500, 1000, 1000)))
    large = Seen("a.png", large.said, size=(200, 100), content=b"of another size")
    runs = tuple(
        write_run(run_config(tmp_path / "out", PROMPTS), name, [image]) for name, image in (("a", small), ("b", large))
    )
    path = tmp_path / "diff.html"
    path.write_bytes(render_diff(compare_runs(runs[0], runs[1]), runs[0], runs[1]))
    with opened(browser, path) as page:
        page.locator("#cards > li button").first.click()
        boxes = page.locator("#frame .box").evaluate_all(
            "all => all.map(each => each.getAttribute('width') + ' ' + each.getAttribute('x'))"
        )
        assert sorted(boxes) == ["100 0", "100 100"]


def test_the_command_writes_the_page_of_a_run_and_itself(
    runs: tuple[RunResults, RunResults], tmp_path: Path, browser: Browser
):
    run, path = f"{runs[0].storage.uri}@monday", tmp_path / "diff.html"
    done = pixscribe("diff", run, run, "--to", str(path), "--json")
    assert (done.returncode, done.stderr) == (0, f"shown in {path}\n")
    assert json.loads(done.stdout)["is_empty"] is True
    with opened(browser, path, color_scheme="dark") as page:
        assert page.locator("h1").inner_text() == "No difference in 5 images"
        assert page.locator("#gallery").count() == 0


def test_a_page_that_cannot_be_written_is_one_sentence(runs: tuple[RunResults, RunResults], tmp_path: Path):
    run = f"{runs[0].storage.uri}@monday"
    refused = pixscribe("diff", run, run, "--to", str(tmp_path))
    assert refused.returncode == 3
    assert refused.stderr == f"pixscribe: {tmp_path}: cannot be written: Is a directory\n"


def test_a_folder_that_is_missing_is_made(runs: tuple[RunResults, RunResults], tmp_path: Path):
    run = f"{runs[0].storage.uri}@monday"
    assert pixscribe("diff", run, run, "--to", str(tmp_path / "none" / "diff.html")).returncode == 0
    assert b"No difference" in (tmp_path / "none" / "diff.html").read_bytes()
