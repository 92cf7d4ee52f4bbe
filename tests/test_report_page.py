"""The pages in a real browser: what a person sees, presses and reads."""

import asyncio
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect, sync_playwright

from pixscribe.config import make_config
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.evaluation import evaluate_run, save_evaluation
from pixscribe.report.page import PAGE_BYTES
from pixscribe.report.run_report import make_report
from tests.conftest import SAMPLES, annotate
from tests.written_runs import Seen, Thing, run_config, write_run
from tests.written_truths import coco, true, write_truth

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
HOSTILE = "<img src=x onerror=document.title='owned'>"
CLOSING = "</script><script>document.title='owned'</script>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

Rows = list[dict[str, Any]]


# --- the runs whose pages are looked at, made before the browser: its driver needs a loop of its own


@dataclass(frozen=True)
class Written:
    """A page on disk, and the tables that it is about."""

    path: Path
    output: Path

    def rows(self, table: str) -> Rows:
        found: Rows = pq.read_table(self.output / table, partitioning=None).to_pylist()
        return found


def run_here(folder: Path, source: Path, prompts: Sequence[dict[str, str]], options: EmulatorOptions) -> Written:
    with Emulator(options) as emulator:
        config = make_config(
            {
                "name": "test",
                "source": {"uri": str(source)},
                "prompts": list(prompts),
                "model": {"base_url": emulator.url},
                "limits": {"requests_per_minute": 100_000},
                "retry": {"max_wait_s": 0.01},
                "output": {"uri": str(folder / "out")},
            }
        )
        asyncio.run(annotate(config, run_id="first"))
    return Written(folder / "out/runs/first/report.html", folder / "out")


@pytest.fixture(scope="module")
def _key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMINI_API_KEY", "test-key-4f1c")
        yield


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, _key: None) -> Written:
    """The samples, asked for boxes, outlines, a caption and a number."""
    prompts = [
        {"name": "objects", "kind": "detect"},
        {"name": "outlines", "kind": "segment"},
        {"name": "story", "kind": "caption"},
        {"name": "number", "kind": "ask", "text": "How many objects are there?"},
    ]
    return run_here(tmp_path_factory.mktemp("samples"), SAMPLES, prompts, EmulatorOptions())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, _key: None) -> Written:
    """2,000 small images, of which some are blocked."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "images").mkdir()
    for number in range(2000):
        pixels = np.full((12, 16, 3), (number % 256, number // 256 * 30, 90), np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number:04d}.png", compress_level=1)
    options = EmulatorOptions(look=False, faults={"blocked": 0.01})
    return run_here(folder, folder / "images", [{"name": "objects", "kind": "detect"}], options)


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Five images: two with words that would like to be markup, one failed, one gone, one that is now another."""
    folder = tmp_path_factory.mktemp("trouble")
    images = [
        seen(folder, HOSTILE, Thing(HOSTILE, (100, 200, 300, 400)), Thing(CLOSING, (500, 500, 900, 900))),
        seen(folder, f"{CLOSING}.png", Thing("cup", (0, 0, 1200, 500))),
        Seen("blocked.png", failed={"objects": "blocked"}, uri=draw(folder / "blocked.png"), content=png(2)),
        seen(folder, "gone.png", Thing("cup", (10, 10, 20, 20))),
        seen(folder, "other.png", Thing("cup", (10, 10, 20, 20))),
    ]
    results = write_run(run_config(folder / "out", {"objects": "detect"}), "first", images)
    (folder / "3.png").unlink()
    (folder / "4.png").write_bytes(png(99))
    path = folder / "out/runs/first/report.html"
    path.write_bytes(make_report(results))
    return Written(path, folder / "out")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Two images beside their truth: in the second one the cup was taken for a bowl, and the cat was missed."""
    folder = tmp_path_factory.mktemp("judged")
    cup, cat = (100.0, 100.0, 500.0, 500.0), (600.0, 600.0, 900.0, 900.0)
    images = [seen(folder, "right.png", Thing("cup", cup)), seen(folder, "wrong.png", Thing("bowl", cup))]
    images = [replace(image, size=(1000, 1000)) for image in images]
    results = write_run(run_config(folder / "out", {"objects": "detect"}), "first", images)
    truth = coco({"right.png": [true("cup", cup)], "wrong.png": [true("cup", cup), true("cat", cat)]})
    save_evaluation(results, evaluate_run(results, write_truth(folder, truth)))
    path = folder / "out/runs/first/report.html"
    path.write_bytes(make_report(results))
    return Written(path, folder / "out")


def png(shade: int) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (100, 100), (shade, 120, 160)).save(file, "PNG")
        return file.getvalue()


def draw(path: Path) -> str:
    path.write_bytes(png(2))
    return path.as_uri()


def seen(folder: Path, name: str, *things: Thing) -> Seen:
    number = len(list(folder.glob("*.png")))
    path = folder / f"{number}.png"
    path.write_bytes(png(number + 10))
    return Seen(name, {"objects": things}, size=(100, 100), content=path.read_bytes(), uri=path.as_uri())


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Two images with names and labels that do not end."""
    folder = tmp_path_factory.mktemp("long")
    images = [
        seen(folder, f"{'a' * 400}.png", Thing("x" * 5000 + "1", (100, 200, 300, 400))),
        seen(folder, "b.png", Thing("x" * 5000 + "2", (100, 200, 300, 400))),
    ]
    results = write_run(run_config(folder / "out", {"objects": "detect"}), "first", images)
    path = folder / "out/runs/first/report.html"
    path.write_bytes(make_report(results))
    return Written(path, folder / "out")


# --- the browser


@dataclass
class Window:
    """A page in the browser, and whatever it complained about or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def cards(self) -> Locator:
        return self.page.locator(".card")

    def count(self) -> str:
        return self.page.locator("#count").inner_text()

    def choose(self, name: str, value: str) -> None:
        self.page.locator(f'select[data-filter="{name}"]').select_option(value)

    def open(self, name: str) -> Locator:
        """The large view of an image."""
        self.page.locator("#find").fill(name)
        self.cards().first.click()
        return self.page.locator("dialog[open]")


Look = Callable[..., Window]


@pytest.fixture(scope="module")
def browser(samples: Written, large: Written, trouble: Written, judged: Written, long: Written) -> Iterator[Browser]:
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """Open a page; at the end of the test nothing may have been complained about or fetched."""
    opened: list[Window] = []

    def look_at(
        written: Written,
        *,
        size: tuple[int, int] = (1280, 900),
        scheme: Literal["light", "dark"] = "light",
        address: str = "",
        may_complain: bool = False,
    ) -> Window:
        width, height = size
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        window = Window(context.new_page())
        window.page.on("console", lambda message: window.complaints.append(said(message)))
        window.page.on("pageerror", lambda error: window.complaints.append(str(error)))
        window.page.on("request", lambda request: note(window, request))
        window.page.set_default_timeout(10_000)
        window.page.goto(written.path.as_uri() + address)
        opened.append(Window(window.page, [] if may_complain else window.complaints, window.requests))
        return window

    yield look_at
    for window in opened:
        window.page.context.close()
        assert window.complaints == []
        assert [url for url in window.requests if not url.startswith(("file:", "data:"))] == []


def said(message: ConsoleMessage) -> str:
    return f"{message.type}: {message.text}"


def note(window: Window, request: Request) -> None:
    window.requests.append(request.url)


def images_with(rows: Rows, **wanted: Any) -> set[str]:
    return {row["file_name"] for row in rows if all(row[name] == value for name, value in wanted.items())}


# --- looking


def test_the_page_says_first_what_came_out(look: Look, samples: Written):
    page = look(samples).page
    assert page.title() == "first · pixscribe run report"
    assert page.locator("h1").inner_text() == "All 26 images were labelled"
    assert page.locator(".card img").count() == 26


def test_every_picture_is_really_shown(look: Look, samples: Written):
    page = look(samples).page
    loaded = page.evaluate(
        """async () => {
          await Promise.all([...document.images].map((image) => image.decode()));
          return [...document.images].map((image) => image.naturalWidth);
        }"""
    )
    assert len(loaded) == 26
    assert min(loaded) > 0


def test_filters_show_what_the_tables_say(look: Look, samples: Written):
    window = look(samples)
    annotations, responses = samples.rows("annotations"), samples.rows("responses")
    label = next(row["label"] for row in annotations if row["prompt"] == "objects")
    window.choose("label", label)
    expected = images_with(annotations, label=label)
    assert window.count() == f"{len(expected)} of 26 images"
    assert {card.get_attribute("title") for card in window.cards().all()} == expected
    window.choose("label", "")
    window.choose("status", "no objects")
    window.choose("prompt", "objects")
    assert window.count() == f"{len(images_with(responses, prompt='objects', annotation_count=0))} of 26 images"
    window.page.locator("#show-all").click()
    expect(window.page.locator("#count")).to_have_text("26 images")


def test_a_name_is_found_as_it_is_typed(look: Look, samples: Written):
    window = look(samples)
    window.page.locator("#find").press_sequentially("SEÑAL")
    assert window.count() == "1 of 26 images"
    assert window.cards().first.get_attribute("title") == "señal über №7.png"
    window.page.locator("#find").fill("no such name")
    assert window.page.locator("#nothing").is_visible()


def test_a_row_of_a_table_leads_to_its_images(look: Look, samples: Written):
    window = look(samples)
    link = window.page.locator("#prompt-objects table button.link").first
    label = link.inner_text()
    link.click()
    window.page.wait_for_function("document.querySelector('#show-all').hidden === false")
    assert (
        window.count() == f"{len(images_with(samples.rows('annotations'), label=label, prompt='objects'))} of 26 images"
    )


def test_boxes_are_drawn_where_the_rows_say(look: Look, samples: Written):
    window = look(samples)
    name = "orientation/exif-6.jpg"
    rows = [row for row in samples.rows("annotations") if row["file_name"] == name and row["xmin"] is not None]
    dialog = window.open(name)
    boxes = dialog.locator(".overlay rect.box").evaluate_all(
        "all => all.map(r => ['x', 'y', 'width', 'height'].map(n => Number(r.getAttribute(n))))"
    )
    drawn = sorted((x, y, x + width, y + height) for x, y, width, height in boxes)
    expected = sorted((row["xmin"], row["ymin"], row["xmax"], row["ymax"]) for row in rows)
    assert len(expected) >= 4
    assert np.abs(np.array(drawn) - np.array(expected)).max() < 0.5
    # and one unit of the drawing is one pixel of the source
    image, overlay = (dialog.locator(f"#frame {tag}").bounding_box() for tag in ("img", "svg"))
    assert image == overlay
    assert dialog.locator(".overlay").get_attribute("viewBox") == f"0 0 {rows[0]['width']} {rows[0]['height']}"
    assert image is not None
    assert image["width"] / image["height"] == pytest.approx(rows[0]["width"] / rows[0]["height"], rel=0.01)


def test_outlines_keep_to_the_polygons_of_the_rows(look: Look, samples: Written):
    name = "large/six objects.png"
    rings = [row["polygons"][0] for row in samples.rows("annotations") if row["file_name"] == name and row["polygons"]]
    paths = (
        look(samples)
        .open(name)
        .locator(".overlay path.ring")
        .evaluate_all("all => all.map(p => p.getBBox()).map(b => [b.x, b.y, b.x + b.width, b.y + b.height])")
    )
    expected = sorted([min(ring[::2]), min(ring[1::2]), max(ring[::2]), max(ring[1::2])] for ring in rings)
    assert np.abs(np.array(sorted(paths)) - np.array(expected)).max() < 1


def test_the_large_view_has_the_models_words_beside_the_picture(look: Look, samples: Written):
    name = "formats/scene.jpg"
    dialog = look(samples).open(name)
    texts = [row["text"] for row in samples.rows("responses") if row["file_name"] == name]
    assert sorted(dialog.locator("pre").all_inner_texts()) == sorted(texts)
    words = dialog.locator("#side").inner_text()
    row = next(row for row in samples.rows("responses") if row["file_name"] == name)
    assert row["request_key"] in words
    assert f"{row['input_tokens']:,} in" in words
    # kinds without a box are there as well
    told = {row["label"] for row in samples.rows("annotations") if row["file_name"] == name and row["xmin"] is None}
    assert len(told) == 2
    assert all(label in words for label in told)


def test_an_object_of_the_list_stands_out_in_the_picture(look: Look, samples: Written):
    dialog = look(samples).open("formats/scene.jpg")
    item = dialog.locator(".objects button").nth(1)
    item.hover()
    place = item.get_attribute("data-item")
    assert dialog.locator(".object.hot").get_attribute("data-object") == place
    dialog.locator("#close").hover()
    assert dialog.locator(".object.hot").count() == 0
    item.focus()
    assert dialog.locator(".object.hot").get_attribute("data-object") == place


def test_an_object_of_the_picture_stands_out_in_the_list(look: Look, samples: Written):
    dialog = look(samples).open("formats/scene.jpg")
    assert dialog.locator(".objects button.hot").count() == 0
    box = dialog.locator(".overlay rect.box").last
    box.hover(position={"x": 3, "y": 3})
    place = dialog.locator(".objects button.hot").get_attribute("data-item")
    assert box.locator("..").get_attribute("data-object") == place
    box.click(position={"x": 3, "y": 3})
    assert dialog.locator(".objects button[aria-pressed=true]").get_attribute("data-item") == place


def test_prompts_can_be_hidden_in_the_large_view(look: Look, samples: Written):
    dialog = look(samples).open("formats/scene.jpg")
    all_of_them = dialog.locator(".overlay .object").count()
    dialog.get_by_label("outlines", exact=True).uncheck()
    assert dialog.locator(".overlay .object").count() == all_of_them / 2


def test_everything_can_be_done_with_the_keyboard(look: Look, samples: Written):
    page = look(samples).page
    page.locator("#order").focus()
    page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.title")
    assert first == page.locator(".card").first.get_attribute("title")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] #view-name").inner_text() == first
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#view-place").inner_text() == "3 of 26"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#view-place").inner_text() == "2 of 26"
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.title") == page.locator(".card").nth(1).get_attribute("title")


def test_an_image_has_an_address(look: Look, samples: Written):
    page = look(samples, address="#image=se%C3%B1al%20%C3%BCber%20%E2%84%967.png").page
    assert page.locator("dialog[open] #view-name").inner_text() == "señal über №7.png"


def test_each_picture_says_what_is_in_it(look: Look, samples: Written):
    window = look(samples)
    alts = window.page.locator(".card img").evaluate_all("all => all.map(i => i.alt)")
    assert all(":" in alt for alt in alts)
    assert any(alt.startswith("nothing.png: ") for alt in alts)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read(look: Look, samples: Written, scheme: Literal["light", "dark"]):
    window = look(samples, scheme=scheme)
    window.page.locator(".card").first.click()
    assert window.page.evaluate(CONTRASTS) == []


CONTRASTS = r"""() => {
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (colour) => colour.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = rgb(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
      if (colour[3] > 0) return null;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasWords = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const box = element.getBoundingClientRect();
    if (!hasWords || !box.width || element.closest("svg, script, :disabled, .tag")) continue;
    const behind = ground(element);
    if (!behind) continue;
    const [high, low] = [light(rgb(getComputedStyle(element).color)), light(behind)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) weak.push([element.className, element.textContent.slice(0, 30), ratio]);
  }
  return weak;
}"""


def test_dark_follows_the_system_and_the_button(look: Look, samples: Written):
    def ground(window: Window) -> str:
        colour: str = window.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    light, dark = look(samples), look(samples, scheme="dark")
    assert ground(light) != ground(dark)
    light.page.locator("#theme").click()
    assert ground(light) == ground(dark)
    light.page.reload()
    assert ground(light) == ground(dark)


def test_a_phone_shows_all_of_it(look: Look, samples: Written):
    window = look(samples, size=(360, 740))
    assert window.page.evaluate("document.documentElement.scrollWidth") == 360
    dialog = window.open("large/tall.jpg")
    box = dialog.locator("#frame img").bounding_box()
    assert box is not None
    assert (box["x"] >= 0, box["x"] + box["width"] <= 360, box["height"] > 200) == (True, True, True)


# --- trouble


def test_hostile_words_are_words(look: Look, trouble: Written):
    window = look(trouble)
    assert window.page.title() == "first · pixscribe run report"
    names = [card.get_attribute("title") for card in window.cards().all()]
    assert {HOSTILE, f"{CLOSING}.png"} < set(names)
    window.choose("label", HOSTILE)
    assert window.count() == "1 of 5 images"
    window.cards().first.click()
    labels = window.page.locator("dialog .objects .label").all_inner_texts()
    assert labels == [HOSTILE, CLOSING]
    assert window.page.title() == "first · pixscribe run report"
    assert window.page.locator("img:not([src^='data:image/'])").count() == 0


def test_markup_that_got_in_would_not_run(look: Look, trouble: Written):
    window = look(trouble, may_complain=True)
    window.page.evaluate(f"document.querySelector('footer').innerHTML = {json.dumps(HOSTILE)}")
    window.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title = 1'}))"
    )
    window.page.wait_for_timeout(100)
    assert window.page.title() == "first · pixscribe run report"
    assert any("Content Security Policy" in complaint for complaint in window.complaints)
    assert [url for url in window.requests if not url.startswith(("file:", "data:"))] == []


def test_failures_are_first_and_say_why(look: Look, trouble: Written):
    window = look(trouble)
    assert window.page.locator("h1").inner_text() == "4 of 5 images labelled; 1 failed: blocked"
    first = window.cards().first
    assert (first.get_attribute("title"), "blocked" in first.inner_text()) == ("blocked.png", True)
    window.choose("error", "blocked")
    assert window.count() == "1 of 5 images"
    first.click()
    words = window.page.locator("#side").inner_text()
    assert "so it was told" in words
    assert "There is no answer." in words


def test_images_that_cannot_be_shown_say_why(look: Look, trouble: Written):
    window = look(trouble)
    reasons = {
        str(card.get_attribute("title")): card.locator(".gone").inner_text()
        for card in window.cards().all()
        if card.locator(".gone").count()
    }
    assert reasons.keys() == {"gone.png", "other.png"}
    assert reasons["gone.png"].startswith("read_error: ")
    assert reasons["other.png"].startswith("changed_during_run: ")


def test_flags_are_filters(look: Look, trouble: Written):
    window = look(trouble)
    window.choose("flag", "clipped")
    assert [card.get_attribute("title") for card in window.cards().all()] == [f"{CLOSING}.png"]


# --- beside the truth


def test_the_worst_image_is_a_press_away_and_shows_the_truth(look: Look, judged: Written):
    window = look(judged)
    window.page.locator("#evaluation").get_by_role("button", name="wrong.png").click()
    dialog = window.page.locator("dialog[open]")
    assert dialog.locator("#view-name").inner_text() == "wrong.png"
    assert dialog.locator(".objects button").all_inner_texts() == [
        "bowl\n100 100 500 500",
        "cup\nanswered as bowl\n100 100 500 500",
        "cat\nmissed\n600 600 900 900",
    ]
    assert dialog.locator(".object.dashed").count() == 2
    dialog.get_by_label("truth", exact=True).uncheck()
    assert dialog.locator(".object").count() == 1


def test_confusions_are_a_table(look: Look, judged: Written):
    matrix = look(judged).page.locator("table.matrix")
    rows = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in matrix.locator("tbody tr").all()
    }
    columns = matrix.locator("thead tr").nth(1).locator("th").all_inner_texts()[1:]
    cells = {
        (truth, column): cell for truth, cells in rows.items() for column, cell in zip(columns, cells, strict=True)
    }
    assert {names: cell for names, cell in cells.items() if cell != "·"} == {
        ("cup", "cup"): "1",
        ("cup", "bowl"): "1",
        ("cat", "(nothing)"): "1",
    }


# --- many


def test_2000_images_are_a_sample_that_says_so(look: Look, large: Written):
    assert large.path.stat().st_size < PAGE_BYTES
    window = look(large)
    about = window.page.locator("#gallery .about").inner_text()
    assert about.startswith("A sample: 240 of 2,000 images. Every kind of failure")
    blocked = images_with(large.rows("images"), status="failed")
    assert (
        window.page.locator("h1").inner_text()
        == f"{2000 - len(blocked):,} of 2,000 images labelled; {len(blocked)} failed: blocked"
    )
    assert window.count() == "240 images"


def test_2000_images_can_be_used_at_once(look: Look, large: Written):
    window = look(large)
    assert window.page.evaluate("document.querySelectorAll('*').length") < 3000
    taken_ms = window.page.evaluate(
        """() => {
          const select = document.querySelector('select[data-filter="error"]');
          const started = performance.now();
          select.value = "blocked";
          select.dispatchEvent(new Event("input", { bubbles: true }));
          return performance.now() - started;
        }"""
    )
    assert taken_ms < 1000
    assert re.fullmatch(r"\d+ of 240 images", window.count())
    window.page.locator("#show-all").click()
    window.page.locator("#more").click()
    assert window.cards().count() == 96


def test_two_labels_that_begin_alike_are_told_apart(look: Look, long: Written):
    window = look(long)
    rows = window.page.locator("#prompt-objects table button.link")
    assert rows.count() == 2
    rows.last.click()
    expect(window.cards()).to_have_count(1)


def test_a_long_label_leaves_its_row_low(look: Look, long: Written):
    row = look(long).page.locator("#prompt-objects tbody tr").first.bounding_box()
    assert row is not None
    assert row["height"] < 100


@pytest.mark.parametrize("size", [(1280, 900), (360, 740)])
def test_a_long_name_leaves_the_large_view_within_the_window(look: Look, long: Written, size: tuple[int, int]):
    view = look(long, size=size).open("aaaa")
    widths = [view.locator(part).evaluate("each => each.getBoundingClientRect().right") for part in ("#close", "#side")]
    assert max(widths) <= size[0]


def test_answers_to_questions_are_no_labels_to_filter_by(look: Look, samples: Written):
    annotations = samples.rows("annotations")
    names = {row["label"] for row in annotations if row["prompt"] in ("objects", "outlines")}
    options = look(samples).page.locator('select[data-filter="label"] option').all()
    assert {option.get_attribute("value") for option in options} - {""} <= names
