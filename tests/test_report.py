import io
import json
import re
import socket
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from flows.cli import main
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import ConfigError, DecodeError, OutputError
from pixscribe.masks import Mask
from pixscribe.report import make_report, write_report
from pixscribe.report.blocks import Code, Column, Columns, Figure, Link, Matrix, Note, Section, Stack, Table
from pixscribe.report.charts import Bin, Series, histogram, over_time
from pixscribe.report.encoding import COLOURS, encode_gallery, escape_json, label_styles
from pixscribe.report.findings import Findings, gather
from pixscribe.report.gallery import Gallery, GalleryAnswer, GalleryImage, GalleryObject, Picture
from pixscribe.report.outlines import _runs, outlines_of, reduced_outline
from pixscribe.report.pace import MAX_STEPS, Pace
from pixscribe.report.page import PAGE_BYTES, Page, render_page
from pixscribe.report.sampling import Sample, Sampler
from pixscribe.report.sections import time_section, verdict
from pixscribe.report.thumbnails import LATE, SourceRules, load_pictures, thumbnail
from pixscribe.report.wording import duration, plural, short_label, usd
from pixscribe.results import RunResults, open_results
from pixscribe.storage import open_storage
from tests.conftest import SAMPLES, MakeConfig, annotate, pixscribe
from tests.written_runs import Seen, Thing, run_config, write_run

CUP, CAT = Thing("cup", (0, 0, 500, 500)), Thing("cat", (0, 0, 100, 100))
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028"


def written(tmp_path: Path, images: Sequence[Seen], *, shard_size: int = 2, is_complete: bool = True) -> RunResults:
    config = run_config(tmp_path / "out", {"objects": "detect", "said": "caption"})
    return write_run(config, "monday", images, shard_size=shard_size, is_complete=is_complete)


def found(name: str, *things: Thing) -> Seen:
    return Seen(name, {"objects": things, "said": f"It is {name}."})


FOUR = (
    found("a", CUP, CUP),
    found("b", CUP, CAT),
    found("c"),
    Seen("d", {"objects": [CUP]}, failed={"said": "blocked"}),
)


# --- what is counted


def test_everything_in_the_tables_is_counted_over_all_parts(tmp_path: Path):
    findings = gather(
        written(tmp_path, (*FOUR, Seen("e", failed={"objects": "blocked", "said": "timeout"}))), Sampler(9)
    )
    assert findings.images == {"ok": 3, "partial": 1, "failed": 1}
    assert findings.prompts["objects"].labels.counts == {"cup": 4, "cat": 1}
    assert findings.prompts["objects"].per_image == {2: 2, 0: 1, 1: 1}
    assert findings.errors == {"blocked": {"objects": 1, "said": 1}, "timeout": {"said": 1}}
    # one image may fail for two reasons
    assert findings.images_by_error == {"blocked": 2, "timeout": 1}
    assert findings.requests == 7
    assert findings.cost_usd == pytest.approx(0.007)


def test_box_sizes_are_the_root_of_their_share_of_the_image(tmp_path: Path):
    # 500 x 500 of 1000 x 1000 px is half as wide as the image, 100 x 100 a tenth
    sizes = gather(written(tmp_path, FOUR), Sampler(9)).prompts["objects"].sizes
    assert {number * 5: int(count) for number, count in enumerate(sizes) if count} == {50: 4, 10: 1}


def test_captions_are_no_labels(tmp_path: Path):
    said = gather(written(tmp_path, FOUR), Sampler(9)).prompts["said"]
    assert (said.labels.counts, said.objects) == ({}, 3)


def test_answers_to_questions_are_no_labels_either_and_choose_no_images(tmp_path: Path):
    config = run_config(tmp_path / "out", {"objects": "detect", "number": {"kind": "ask", "text": "How many?"}})
    images = [Seen(f"{number:02}", {"objects": [CUP], "number": f"There are {number}."}) for number in range(20)]
    images[7] = Seen("07", {"objects": [CAT], "number": "There are 7."})
    sampler = Sampler(4)
    findings = gather(write_run(config, "monday", images), sampler)
    assert (findings.prompts["number"].labels.counts, findings.prompts["number"].objects) == ({}, 20)
    assert 7 in sampler.choose(findings.label_counts()).rows[0]


def test_long_labels_are_cut_and_stay_apart(tmp_path: Path):
    things = [Thing("x" * 60_000 + end, (0, 0, 9, 9)) for end in "12"]
    labels = gather(written(tmp_path, [found("a", *things)]), Sampler(9)).prompts["objects"].labels.counts
    assert list(labels.values()) == [1, 1]
    assert max(map(len, labels)) <= 200
    assert {short_label(label) for label in labels} == set(labels)


def test_labels_beyond_what_is_remembered_are_still_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("pixscribe.report.findings.MAX_LABELS", 2)
    images = [found(f"{number}", Thing(f"label {number}", (0, 0, 9, 9)), CUP) for number in range(9)]
    prompt = gather(written(tmp_path, images, shard_size=1), Sampler(9)).prompts["objects"]
    assert (prompt.objects, prompt.labels.counts["cup"]) == (18, 9)
    assert len(prompt.labels.counts) <= 4


def test_tables_that_do_not_fit_together_are_refused(tmp_path: Path):
    results = written(tmp_path, FOUR)
    out = tmp_path / "out"
    first, second = (out / f"annotations/run=monday/{part}" for part in results.parts)
    first.write_bytes(second.read_bytes())
    with pytest.raises(OutputError, match="the tables are not about the same images"):
        make_report(open_results(f"{out}@monday"))


def test_a_cost_that_is_not_known_is_none(tmp_path: Path):
    results = written(tmp_path, FOUR)
    assert "0.0070 USD" in text_of(make_report(results))
    for part in results.parts:
        path = tmp_path / f"out/responses/run=monday/{part}"
        table = pq.ParquetFile(path).read()
        unknown = pa.nulls(len(table), pa.float64())
        pq.write_table(table.set_column(table.schema.names.index("cost_usd"), "cost_usd", unknown), path)
    words = text_of(make_report(open_results(f"{tmp_path}/out@monday")))
    assert "no price is known for this model" in words
    assert "0.0000 USD" not in words


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        pytest.param({"ok": 26}, "All 26 images were labelled", id="all"),
        pytest.param({"ok": 1}, "The one image was labelled", id="one"),
        pytest.param({}, "No image has been labelled", id="none"),
        pytest.param({"ok": 24, "failed": 2}, "24 of 26 images labelled; 2 failed: 1 blocked, 1 timeout", id="failed"),
        pytest.param({"ok": 1, "partial": 3}, "1 of 4 images labelled in full; 3 in part: truncated", id="partial"),
    ],
)
def test_the_verdict_is_one_sentence(images: dict[str, int], sentence: str):
    findings = Findings(images=Counter(images))
    findings.image_errors = Counter({"blocked": 1, "timeout": 1})
    findings.partial_errors = Counter({"truncated": 3})
    assert verdict(findings) == sentence


def test_the_verdict_names_the_worst_of_many_reasons():
    findings = Findings(images=Counter({"ok": 20, "failed": 6}))
    findings.image_errors = Counter({"timeout": 1, "blocked": 3, "too_large": 1, "read_error": 1})
    assert verdict(findings) == "20 of 26 images labelled; 6 failed: 3 blocked, 3 for other reasons"


@pytest.mark.parametrize(
    ("findings", "sentence"),
    [
        pytest.param(Findings(), "No question was asked.", id="nothing"),
        pytest.param(Findings(reused=3), "No question was asked: all answers came from earlier runs.", id="reused"),
        pytest.param(Findings(requests=3), "No question was answered.", id="in-vain"),
        pytest.param(
            Findings(requests=3, responses=Counter(ok=3)), "It is not known when the answers came.", id="unknown"
        ),
    ],
)
def test_a_run_without_times_says_why(findings: Findings, sentence: str):
    assert time_section(findings).blocks == (Note(sentence),)


def test_answers_of_many_years_in_one_part_take_no_more_memory_than_others():
    tracemalloc.start()
    pace = Pace()
    at(pace, *(day * 86_400.0 for day in range(5000)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 480 steps of 600 classes are 2.3 MB; a step for each answer would be 24 MB
    assert peak_bytes < 8_000_000
    assert pace.overall().answers == 5000


# --- time


def at(pace: Pace, *came_s: float, latency_ms: float = 100) -> None:
    pace.add(np.array(came_s) - latency_ms / 1000, np.full(len(came_s), latency_ms))


def test_answers_are_counted_when_they_came():
    pace = Pace()
    at(pace, 100.0, 100.1, 100.6)
    assert [(step.start_s, step.answers) for step in pace.steps(60)] == [(100.0, 2), (100.25, 0), (100.5, 1)]


def test_steps_get_wider_instead_of_more():
    pace = Pace()
    for second in range(3600):
        at(pace, second)
    assert len(pace.steps(MAX_STEPS)) <= MAX_STEPS
    assert [(step.start_s, step.answers) for step in pace.steps(6)] == [(start, 600) for start in range(0, 3600, 600)]


def test_a_run_that_was_taken_up_weeks_later_is_still_one_chart():
    pace = Pace()
    at(pace, 0.0, 40 * 86_400)
    assert sum(step.answers for step in pace.steps(60)) == 2


def test_latencies_are_told_within_a_few_per_cent():
    pace = Pace()
    pace.add(np.zeros(100), np.array([1000.0] * 94 + [9000.0] * 6))
    overall = pace.overall()
    assert overall.median_ms == pytest.approx(1000, rel=0.02)
    assert overall.p95_ms == pytest.approx(9000, rel=0.02)


def test_what_was_not_asked_has_no_time():
    pace = Pace()
    pace.add(np.array([np.nan, 5.0]), np.array([100.0, np.nan]))
    assert (pace.steps(60), pace.overall().median_ms) == ([], None)


# --- the sample


def sampled(results: RunResults, size: int, wanted: frozenset[str] = frozenset()) -> tuple[list[str], Sample]:
    sampler = Sampler(size, wanted)
    counts = gather(results, sampler).label_counts()
    sample = sampler.choose(counts)
    images = [image for part in results.parts for image in results.read_part(part)]
    sizes = [len(results.read("images", part, ["file_name"])) for part in results.parts]
    starts = np.cumsum([0, *sizes])
    return [images[starts[part] + row].image["file_name"] for part, rows in sample.rows.items() for row in rows], sample


def many(rare: dict[int, Seen]) -> list[Seen]:
    return [rare.get(number, found(f"image {number:04d}", CUP)) for number in range(300)]


RARE = {
    17: found("a rare label", Thing("zebra", (0, 0, 9, 9))),
    118: Seen("blocked", failed={"objects": "blocked", "said": "blocked"}),
    219: Seen("slow", {"said": "x"}, failed={"objects": "timeout"}),
    290: found("clipped", Thing("cup", (900, 900, 1200, 1200))),
    299: found("nothing"),
}


def test_a_small_run_is_shown_whole(tmp_path: Path):
    names, sample = sampled(written(tmp_path, FOUR), 4)
    assert (names, sample.about) == (["a", "b", "c", "d"], "")


def test_a_sample_has_some_of_everything(tmp_path: Path):
    names, sample = sampled(written(tmp_path, many(RARE), shard_size=64), 40)
    assert len(names) == 40
    assert {rare.file_name for rare in RARE.values()} <= set(names)
    assert sample.about.startswith(
        "Every kind of failure, every flag, images without objects, every label, and the rest"
    )


def test_the_rest_of_a_sample_comes_from_the_whole_run(tmp_path: Path):
    names, _ = sampled(written(tmp_path, many({}), shard_size=64), 60)
    thirds = Counter(int(name.split()[1]) // 100 for name in names)
    assert all(thirds[third] >= 10 for third in range(3))


def test_the_same_images_are_chosen_however_the_run_was_cut(tmp_path: Path):
    (tmp_path / "one").mkdir()
    cut, _ = sampled(written(tmp_path / "one", many(RARE), shard_size=7), 40)
    whole, _ = sampled(written(tmp_path / "two", many(RARE), shard_size=300), 40)
    assert sorted(cut) == sorted(whole)


def test_images_that_are_wanted_are_chosen(tmp_path: Path):
    names, _ = sampled(
        written(tmp_path, many({}), shard_size=64), 5, frozenset({"image 0123", "image 0200", "no such image"})
    )
    assert {"image 0123", "image 0200"} < set(names)


def test_more_labels_than_are_remembered_are_called_the_rarest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("pixscribe.report.sampling.MAX_LABELS", 5)
    images = [found(f"{number:03d}", Thing(f"label {number}", (0, 0, 9, 9))) for number in range(60)]
    names, sample = sampled(written(tmp_path, images, shard_size=4), 30)
    assert (len(names), "the rarest labels" in sample.about.lower()) == (30, True)


# --- colours


def test_a_label_has_its_colour_whatever_else_there_is():
    alone, among = label_styles({"cup": 1}), label_styles({"cup": 9, **{f"other {number}": 1 for number in range(50)}})
    assert alone["cup"] == among["cup"]


def test_the_most_frequent_labels_have_different_colours():
    styles = label_styles({f"label {number}": 100 - number for number in range(2 * COLOURS)})
    looks = list(styles.values())
    assert len({style.colour for style in looks[:COLOURS]}) == COLOURS
    assert len(set(looks)) == 2 * COLOURS


# --- the gallery as JSON


def image_of(name: str = "a.jpg", **values: Any) -> GalleryImage:
    return GalleryImage(name, 100, 50, "ok", **values)


def told(gallery: Gallery, limit: int = PAGE_BYTES, text_limit: int = PAGE_BYTES) -> dict[str, Any]:
    encoded = encode_gallery(gallery, limit, text_limit)
    assert len(encoded.data) <= limit
    values: dict[str, Any] = json.loads(encoded.data)
    return values


def test_nothing_in_the_data_can_end_its_script():
    one = GalleryObject("p", 0, HOSTILE, (0, 0, 1, 1), note=HOSTILE, flags=(HOSTILE,))
    answer = GalleryAnswer("p", "detect", "ok", HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    gallery = Gallery([image_of(HOSTILE, objects=[one], answers=[answer], note=HOSTILE, no_picture=HOSTILE)], 1)
    data = encode_gallery(gallery, PAGE_BYTES, PAGE_BYTES).data
    assert not re.search(rb"[<>&]|\xe2\x80[\xa8\xa9]", data)
    [image] = json.loads(data)["images"]
    assert (image["name"], image["answers"][0]["text"], image["gone"]) == (HOSTILE, HOSTILE, HOSTILE)


@given(st.text())
def test_escaping_changes_no_text(text: str):
    assert json.loads(escape_json(json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass"))) == text


def test_a_lone_surrogate_of_somebody_elses_file_is_shown_as_a_question_mark():
    data = told(Gallery([image_of(objects=[GalleryObject("p", 0, "caf\ud800")])], 1))
    assert data["labels"] == [{"name": "caf?", "colour": -1, "dash": 0}]


def test_zero_is_a_place_and_no_gap():
    [image] = told(Gallery([image_of(objects=[GalleryObject("p", 0, "cup", (0, 0, 5, 5))])], 1))["images"]
    assert image["objects"] == [{"p": 0, "i": 0, "l": 0, "b": [0, 0, 5, 5]}]


def test_long_answers_are_cut_and_say_so():
    answers = [GalleryAnswer("p", "ask", "ok", text="x" * 50_000)]
    data = told(Gallery([image_of(f"{number}", answers=answers) for number in range(100)], 100), text_limit=500_000)
    answer = data["images"][0]["answers"][0]
    assert (len(answer["text"]), len(answer["text"]) + answer["cut"]) == (2000, 50_000)


def test_objects_beyond_what_a_page_tells_are_counted():
    objects = [GalleryObject("p", number, "cup", (0, 0, 5, 5)) for number in range(1000)]
    data = told(Gallery([image_of(objects=objects)], 1))
    image = data["images"][0]
    assert len(image["objects"]) + image["more"] == 1000


def test_images_that_do_not_fit_are_left_out_from_the_end():
    images = [image_of(f"{number:05d}" + "x" * 1000) for number in range(100)]
    data = told(Gallery(images, 100), text_limit=50_000)
    names = [image["name"][:5] for image in data["images"]]
    assert 10 < len(names) < 50
    assert names == [f"{number:05d}" for number in range(len(names))]


def test_pictures_that_do_not_fit_leave_a_sentence():
    images = [image_of(f"{number}", picture=Picture(b"x" * 30_000, "image/webp")) for number in range(5)]
    data = told(Gallery(images, 5), limit=100_000)
    assert ["src" in image for image in data["images"]] == [True, True, False, False, False]
    assert data["images"][4]["gone"] == "left out, so that the page stays small"


# --- outlines


def test_an_outline_loses_points_that_nobody_sees():
    square = [*(value for x in range(100) for value in (x, 0)), 100, 0, 100, 100, 0, 100]
    assert reduced_outline(tuple(map(float, square)), 0.5, 400) == [0, 0, 100, 0, 100, 100, 0, 100]


def test_an_outline_keeps_to_its_number_of_points():
    angles = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    circle = np.stack([500 + 400 * np.cos(angles), 500 + 400 * np.sin(angles)], 1)
    reduced = np.array(reduced_outline(tuple(circle.ravel().tolist()), 0.1, 60)).reshape(-1, 2)
    assert 10 <= len(reduced) <= 60
    assert np.abs(np.hypot(*(reduced - 500).T) - 400).max() < 1


def test_a_mask_is_drawn_around():
    # columns 10 to 29 and rows 5 to 9 of 100 x 50 pixels
    rle = Mask(np.ones((5, 20), bool), (10, 5), (100, 50)).to_rle()
    [ring] = outlines_of({"polygons": [], "rle": {"size": list(rle.size), "counts": rle.counts}})
    assert sorted(zip(ring[::2], ring[1::2], strict=True)) == [(10, 5), (10, 10), (30, 5), (30, 10)]


@given(arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_runs_are_read_as_pycocotools_writes_them(mask: npt.NDArray[np.bool_]):
    rows, columns = mask.shape
    rle = Mask(mask, (0, 0), (columns, rows)).to_rle()
    pixels = mask.T.ravel()
    edges = np.flatnonzero(np.diff(pixels)) + 1
    expected = np.diff([*([0] if pixels[0] else []), 0, *edges, pixels.size]).tolist()
    assert _runs(rle.counts) == expected


@pytest.mark.parametrize("counts", ["", "0", "999", "PPPPPPPP", "\U0001f6a6", "ooooooooooooooooooo"])
def test_a_mask_that_says_nonsense_is_not_drawn(counts: str):
    assert outlines_of({"polygons": [], "rle": {"size": [50, 100], "counts": counts}}) == ()


# --- pictures


def photo(side: int = 900) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (side * 2 // 3, side, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        return file.getvalue()


@pytest.mark.parametrize("limit_bytes", [200_000, 40_000, 8_000])
def test_a_thumbnail_fits_into_its_bytes(limit_bytes: int):
    picture = thumbnail(photo(), limit_bytes)
    assert len(picture.data) <= limit_bytes
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.width / image.height == pytest.approx(1.5, rel=0.02)


def test_a_thumbnail_stands_upright():
    path = SAMPLES / "orientation/exif-6.jpg"
    picture = thumbnail(path.read_bytes(), 99_999)
    with Image.open(io.BytesIO(picture.data)) as image, Image.open(path) as stored:
        assert image.size == stored.size[::-1]


def test_a_thumbnail_of_a_broken_image_says_why_there_is_none():
    with pytest.raises(DecodeError, match="cut"):
        thumbnail(photo()[:5000], 99_999)


def row(path: Path, **values: Any) -> dict[str, Any]:
    """Of `images`, about a file as it is now."""
    digest = sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
    return {"file_name": path.name, "uri": path.as_uri(), "image_id": digest, **values}


def test_each_image_without_a_picture_has_a_reason(tmp_path: Path):
    (tmp_path / "good.jpg").write_bytes(photo())
    (tmp_path / "other.jpg").write_bytes(photo())
    (tmp_path / "broken.jpg").write_bytes(photo()[:5000])
    rows = [
        row(tmp_path / "good.jpg"),
        row(tmp_path / "other.jpg", image_id="0" * 64),
        row(tmp_path / "broken.jpg"),
        row(tmp_path / "gone.jpg"),
        row(tmp_path / "good.jpg", uri="s3://"),
        row(tmp_path / "good.jpg", uri="http://127.0.0.1:1/x.jpg"),
    ]
    good, *others = load_pictures(rows, 10**6)
    assert isinstance(good, Picture)
    codes = [str(reason).split(":")[0] for reason in others]
    assert codes == ["changed_during_run", "decode_error", "read_error", "read_error", "read_error"]


def test_what_the_run_did_not_read_is_not_read_for_its_page(tmp_path: Path):
    (tmp_path / "secret").write_bytes(b"root:x:0")
    refused = row(tmp_path / "secret", image_id=None, error_code="read_error", error="leads out of the source")
    assert load_pictures([refused], 10**6) == ["read_error: leads out of the source"]


def test_a_page_that_is_not_wanted_any_more_is_given_up_soon(tmp_path: Path):
    (tmp_path / "good.jpg").write_bytes(photo())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.jpg"
        slow = row(tmp_path / "good.jpg", uri=url)
        asked = iter(range(10_000))
        started_s = time.monotonic()
        pictures = load_pictures(
            [slow], 10**6, SourceRules(allow_private_hosts=True), limit_s=60, is_over=lambda: next(asked) > 4
        )
        assert time.monotonic() - started_s < 5
    assert pictures == [LATE]
    with pytest.raises(OutputError, match="the page was given up, as the run was stopped"):
        write_report(written(tmp_path, FOUR), is_over=lambda: True)
    assert not (tmp_path / "out/runs/monday/report.html").exists()


def test_a_source_that_does_not_answer_is_not_waited_for(tmp_path: Path):
    (tmp_path / "good.jpg").write_bytes(photo())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.jpg"
        slow = row(tmp_path / "good.jpg", uri=url)
        started = len(threading.enumerate())
        pictures = load_pictures(
            [slow, row(tmp_path / "good.jpg")], 10**6, SourceRules(allow_private_hosts=True), limit_s=0.5
        )
        for thread in threading.enumerate()[started:]:
            thread.join(10)
    assert pictures[0] == LATE
    assert isinstance(pictures[1], Picture)


# --- pages


def page_of(*sections: Section) -> str:
    return render_page(Page(HOSTILE, HOSTILE, sections, facts=(HOSTILE,), warning=HOSTILE)).decode()


def test_no_text_of_a_page_is_markup():
    column = Column(HOSTILE)
    table = Table(
        (column, Column("n", "bar")), [(HOSTILE, 1), (Code(HOSTILE), 2), (Link(HOSTILE), 3)], HOSTILE, HOSTILE
    )
    matrix = Matrix(HOSTILE, HOSTILE, [HOSTILE], [HOSTILE], [[1]], HOSTILE, HOSTILE)
    bars = histogram(HOSTILE, [Bin(HOSTILE, 3)], x_title=HOSTILE, y_title=HOSTILE, note=HOSTILE)
    lines = over_time(HOSTILE, [HOSTILE], [Series(HOSTILE, [1.0])], y_title=HOSTILE, note=HOSTILE)
    html = page_of(Section(HOSTILE, (table, matrix, bars, lines), HOSTILE))
    assert "<img" not in html
    assert html.count("<script") == html.count("</script>") == 2
    assert "alert(1)" in html


def test_a_page_may_fetch_and_run_nothing_but_itself():
    html = page_of(Section("A", ()))
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    directives = dict(directive.split(" ", 1) for directive in policy.replace("&#39;", "'").split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data:"
    assert all(source.startswith("'sha256-") for source in directives["script-src"].split())
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)


def test_a_number_that_is_none_is_a_dash():
    table = Table((Column("a"), Column("b", "rate"), Column("c", "share"), Column("d", "number")),
                  [("x", None, 0.25, 12345), ("y", float("nan"), 0.5, 0.125)])  # fmt: skip
    html = page_of(Section("A", (table,)))
    cells = re.findall(r'<td class="\w+">([^<]*)</td>', html)
    assert cells == ["–", "25.0 %", "12,345", "–", "50.0 %", "0.125"]


def test_a_chart_says_its_numbers_as_a_table():
    figure = histogram("Objects", [Bin("0", 2), Bin("1", 7)], x_title="objects", y_title="images")
    assert isinstance(figure, Figure)
    assert figure.table.rows == [("0", 2), ("1", 7)]
    assert 'aria-label="Objects: most at 1, 7 of 9"' in figure.svg


def test_a_line_is_broken_where_nothing_is_known():
    figure = over_time("Latency", ["a", "b", "c", "d"], [Series("median", [1.0, 2.0, None, 3.0])], y_title="ms")
    assert figure.svg.count('<path class="line main"') == 1
    assert figure.svg.count("<circle") == 1


def test_numbers_are_written_for_people():
    assert [duration(each) for each in (1.66, 725, 12_010)] == ["1.7 s", "12 min 5 s", "3 h 20 min"]
    assert [usd(each) for each in (0.13230, 1234.5)] == ["0.1323", "1,234.50"]
    assert [plural(each, "image") for each in (1, 2000)] == ["1 image", "2,000 images"]


# --- the page of a run


def text_of(html: bytes) -> str:
    """What is read, without scripts, styles and tags."""
    bare = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", html.decode())
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare))


async def test_a_real_run_has_its_page(make: MakeConfig):
    config = make()
    summary = await annotate(config, run_id="first")
    page = Path(config.output.uri, "runs/first/report.html").read_bytes()
    words = text_of(page)
    assert "All 26 images were labelled" in words
    assert summary.model in words
    assert f"{summary.totals.objects:,}" in words
    assert "Detect every prominent object in the image." in words
    assert str(Path(config.output.uri, "annotations/run=first")) in words
    assert len(page) < 2_000_000


def test_the_page_of_a_run_is_the_same_each_time(tmp_path: Path):
    results = written(tmp_path, FOUR)
    assert make_report(results) == make_report(open_results(f"{tmp_path}/out@monday"))


def test_an_unfinished_run_is_said_to_be_one(tmp_path: Path):
    results = written(tmp_path, FOUR, is_complete=False)
    assert "This run is not finished: 4 images have rows so far" in text_of(make_report(results))


def test_a_run_without_rows_has_a_page_too(tmp_path: Path):
    results = written(tmp_path, (), is_complete=False)
    assert "No image has been labelled" in text_of(make_report(results))


def test_a_long_prompt_is_told_in_full(tmp_path: Path):
    text = "Look for cups. " * 50
    config = run_config(tmp_path / "out", {"objects": {"kind": "detect", "text": text}})
    assert text.strip() in text_of(make_report(write_run(config, "monday", [Seen("a", {"objects": [CUP]})])))


def test_failures_stand_with_their_reasons(tmp_path: Path):
    words = text_of(make_report(written(tmp_path, FOUR)))
    assert "3 of 4 images labelled in full; 1 in part: blocked" in words
    assert "The service&#39;s policy blocks the image or the answer." in words


def test_the_summary_of_the_run_is_taken_if_it_is_given(tmp_path: Path):
    results = written(tmp_path, FOUR, is_complete=False)
    summary = {"status": "complete", "elapsed_s": 61.2, "images_per_s": 12.5, "model": "m"}
    words = text_of(make_report(results, summary=summary))
    assert "1 min 1 s" in words
    assert "not finished" not in words


@pytest.mark.parametrize(
    "summary",
    [
        pytest.param(b'{"run": [], "status": 7, "totals": "x", "elapsed_s": "<b>", "model": {"a": 1}}', id="types"),
        pytest.param(
            b'{"run": 1, "status": "complete", "totals": {}, "elapsed_s": null, "images_per_s": true}', id="nulls"
        ),
    ],
)
def test_a_strange_account_of_a_run_costs_only_itself(tmp_path: Path, summary: bytes):
    results = written(tmp_path, FOUR)
    (tmp_path / "out/runs/monday/run.json").write_bytes(summary)
    assert "3 of 4 images labelled" in text_of(make_report(open_results(f"{tmp_path}/out@monday")))
    assert results.run_id == "monday"


def test_a_config_of_another_version_costs_only_its_words(tmp_path: Path):
    written(tmp_path, FOUR)
    (tmp_path / "out/runs/monday/config.yaml").write_text("name: [")
    assert "3 of 4 images labelled" in text_of(make_report(open_results(f"{tmp_path}/out@monday")))


def test_an_evaluation_that_cannot_be_read_is_said_to_be_so(tmp_path: Path):
    results = written(tmp_path, FOUR)
    (tmp_path / "out/runs/monday/evaluation.json").write_bytes(b'{"prompts": 7}')
    assert "is no evaluation that this version can read" in text_of(make_report(results))


async def test_an_evaluation_is_part_of_the_page(make: MakeConfig):
    config = make(prompts=[{"name": "objects", "kind": "detect"}])
    await annotate(config, run_id="first")
    run = f"{config.output.uri}@first"
    done = pixscribe("evaluate", run, "--truth", str(SAMPLES.parent / "truth.json"))
    assert done.returncode == 0, done.stderr
    words = text_of(Path(config.output.uri, "runs/first/report.html").read_bytes())
    assert "Evaluation" in words
    assert "26 of its 26 images are in this run" in words
    assert "objects: what was taken for what" in words


@pytest.mark.parametrize("sample", [0, 2001])
def test_a_sample_out_of_range_is_refused(tmp_path: Path, sample: int):
    with pytest.raises(ConfigError, match=rf"--sample {sample}: should be from 1 to 2000"):
        make_report(written(tmp_path, FOUR), sample=sample)


def test_a_page_says_that_it_shows_a_sample(tmp_path: Path):
    words = text_of(make_report(written(tmp_path, FOUR), sample=2))
    assert "A sample: 2 of 4 images." in words


def test_the_command_writes_the_page_beside_the_run_or_elsewhere(tmp_path: Path):
    written(tmp_path, FOUR)
    done = pixscribe("report", f"{tmp_path}/out@monday")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out/runs/monday/report.html\n")
    elsewhere = tmp_path / "pages" / "page.html"
    done = pixscribe("report", f"{tmp_path}/out@monday", "--to", str(elsewhere), "--sample", "3")
    assert (done.returncode, done.stdout) == (0, f"{elsewhere}\n")
    assert "A sample: 3 of 4 images." in text_of(elsewhere.read_bytes())


def test_the_command_says_what_it_cannot_do(tmp_path: Path):
    written(tmp_path, FOUR)
    done = pixscribe("report", f"{tmp_path}/out@monday", "--to", str(tmp_path))
    assert (done.returncode, done.stderr) == (3, f"pixscribe: {tmp_path}: cannot be written: Is a directory\n")


@pytest.mark.usefixtures("bucket")
def test_a_page_lies_in_a_bucket_as_well():
    config = run_config("s3://tables/labels", {"objects": "detect"})
    uri = write_report(write_run(config, "monday", [Seen("a", {"objects": [CUP]})]))
    assert uri == "s3://tables/labels/runs/monday/report.html"
    assert b"The one image was labelled" in open_results("s3://tables/labels@monday").storage.read(
        "runs/monday/report.html"
    )


@pytest.mark.usefixtures("bucket")
def test_the_command_writes_the_page_into_a_bucket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    written(tmp_path, FOUR)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["report", f"{tmp_path}/out@monday", "--to", "s3://tables/pages/page.html"])
    assert (ended.value.code, capsys.readouterr().out) == (0, "s3://tables/pages/page.html\n")
    assert b"3 of 4 images labelled" in open_storage("s3://tables/pages").read("page.html")
    assert not (tmp_path / "s3:").exists()


def test_a_page_goes_nowhere_else(tmp_path: Path):
    written(tmp_path, FOUR)
    done = pixscribe("report", f"{tmp_path}/out@monday", "--to", "https://example.com/page.html")
    assert done.returncode == 2
    assert done.stderr.startswith("pixscribe: --to https://example.com/page.html: should be a file: a path, or a URI")


def test_labels_without_end_leave_a_page_within_its_bytes(tmp_path: Path):
    config = run_config(tmp_path / "out", {"objects": "detect"})
    images = [
        Seen(f"{number}.png", {"objects": [Thing('<&"' * 20_000 + str(number), (0, 0, 9, 9))]}) for number in range(60)
    ]
    page = make_report(write_run(config, "monday", images))
    assert len(page) < 2_000_000
    assert len(images_in(page)) == 60


def test_sections_that_are_too_long_are_cut(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pixscribe.report.page.SECTION_BYTES", 500_000)
    table = Table((Column("n"),), [(f"{number} {'<' * 900}",) for number in range(300)])
    html = page_of(Section("Long", [Columns((Stack([table]),))]))
    # a row has 3,600 bytes for its 900 escaped letters
    assert len(html) < 500_000
    assert "200 rows more would not fit into the page." in html


def test_sections_that_cannot_be_cut_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pixscribe.report.page.SECTION_BYTES", 400_000)
    html = page_of(*(Section(f"Long {number}", [Note("<" * 19_000)]) for number in range(9)))
    assert len(html) < 400_000
    assert "The sections of this page would be longer than a page may be" in html


def test_hostile_rows_leave_no_markup_in_the_page(tmp_path: Path):
    html = make_report(written(tmp_path, [found(HOSTILE, Thing(HOSTILE, (0, 0, 9, 9)))])).decode()
    assert "<img" not in html
    assert html.count("<script") == html.count("</script>") == 3


async def test_masks_are_drawn_as_outlines(make: MakeConfig):
    with Emulator(EmulatorOptions(masks="png")) as emulator:
        config = make(
            source={"uri": str(SAMPLES), "include": ["formats/scene.png"]},
            prompts=[{"name": "outlines", "kind": "segment"}],
            model={"base_url": emulator.url},
        )
        await annotate(config, run_id="first")
    [image] = images_in(make_report(open_results(f"{config.output.uri}@first")))
    assert image["objects"]
    assert all(one["g"] for one in image["objects"])


def images_in(html: bytes) -> list[dict[str, Any]]:
    [data] = re.findall(rb'(?s)id="gallery-data">(.*?)</script>', html)
    images: list[dict[str, Any]] = json.loads(data)["images"]
    return images
