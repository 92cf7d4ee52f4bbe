import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pillow_heif
import pyarrow.fs as pafs
import pytest
from PIL import ExifTags, Image, ImageDraw

from flows.plan_lines import plan_lines, plan_notes, verdict
from pixscribe.config import BatchConfig, LimitsConfig, RunConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.emulator.vision import BACKGROUND, PALETTE
from pixscribe.errors import BudgetExhausted, ConfigError
from pixscribe.plan import make_plan
from pixscribe.plan.census import take_census
from pixscribe.plan.looking import Seen
from pixscribe.plan.time_and_storage import Load, plan_duration, plan_storage
from pixscribe.prices import Price
from pixscribe.run import list_runs
from pixscribe.types import ImageRef, Usage
from tests.conftest import SAMPLES, MakeConfig, annotate, pixscribe, write_yaml

SIZES = ((160, 120), (240, 180), (240, 320), (480, 360))
MANY = 2400
GIB = 1024**3


def draw(number: int) -> Image.Image:
    """A picture of one to six shapes, in one of four sizes."""
    random = Random(number)
    width, height = SIZES[number % len(SIZES)]
    image = Image.new("RGB", (width, height), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for place in random.sample(range(6), random.randint(1, 6)):
        left, top = width * (place % 3 * 0.32 + 0.05), height * (place // 3 * 0.5 + 0.05)
        shape = random.choice([canvas.rectangle, canvas.ellipse])
        colour = random.choice(list(PALETTE.values()))
        shape((left, top, left + width * random.uniform(0.12, 0.24), top + height * random.uniform(0.2, 0.4)), colour)
    return image


def encode(image: Image.Image, number: int) -> tuple[str, bytes]:
    """Of 20 pictures 12 are JPEG, one of them turned by its tag, 4 PNG, 2 HEIC and 2 WEBP."""
    name = ("jpg",) * 12 + ("png",) * 4 + ("heic",) * 2 + ("webp",) * 2
    extension, target = name[number % 20], io.BytesIO()
    if extension == "heic":
        pillow_heif.from_pillow(image).save(target, quality=80)
    elif number % 20 == 0:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(target, "JPEG", exif=exif)
    else:
        image.save(target, {"jpg": "JPEG"}.get(extension, extension.upper()))
    return extension, target.getvalue()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 images of four types and sizes: 948 of their own, 50 copies, a broken one and a dangling link."""
    folder = tmp_path_factory.mktemp("mixed")
    for number in range(948):
        extension, data = encode(draw(number), number)
        (folder / f"{number * 37 % 1000:04d}.{extension}").write_bytes(data)
    for copy, original in enumerate(sorted(folder.iterdir())[:50]):
        shutil.copy(original, folder / f"copy-{copy}{original.suffix}")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (folder / "link.png").symlink_to(folder / "none.png")
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More small images than are read without --exact: 2,400 JPEG files, of which each has a size of its own."""
    folder = tmp_path_factory.mktemp("many")
    target = io.BytesIO()
    Image.new("RGB", (32, 32), BACKGROUND).save(target, "JPEG")
    for number in range(MANY):
        # bytes after the end of a JPEG are legal and ignored
        (folder / f"{number:05d}.jpg").write_bytes(target.getvalue() + number.to_bytes(2) + b"." * number)
    return folder


@pytest.fixture
def blind() -> Iterator[Emulator]:
    """Answers the same to every image, and fast."""
    with Emulator(EmulatorOptions(look=False)) as running:
        yield running


def near(value: float) -> object:
    return pytest.approx(value, rel=0.1)


async def test_a_plan_foretells_the_bill_of_a_thousand_images_after_a_part_and_a_sample_of_them(
    make: MakeConfig, mixed: Path, emulator: Emulator, tmp_path: Path
):
    output = {"uri": str(tmp_path / "out"), "report": False}
    config = make(source={"uri": str(mixed)}, output=output)
    await annotate(make(source={"uri": str(mixed), "limit": 100}, output=output))
    await annotate(make(source={"uri": str(mixed), "sample": 20}, output=output))
    emulator.books.reset()
    plan = make_plan(config)
    assert not emulator.books.by_endpoint
    await annotate(config)
    asked = emulator.books.answered()
    assert (plan.images.total, plan.images.duplicates, plan.images.is_exact) == (1000, 50, True)
    assert plan.images.unreadable == {"decode_error": 1, "read_error": 1}
    assert (plan.questions.total, plan.questions.duplicate, plan.questions.unreadable) == (2000, 100, 4)
    assert 0 < plan.questions.to_ask == len(asked) < 1800
    assert plan.questions.answered == 2000 - 100 - 4 - len(asked)
    assert plan.storage.uploads == len(emulator.books.uploads)
    assert plan.storage.uploaded_bytes == sum(upload.size_bytes for upload in emulator.books.uploads)
    usage = Usage(sum(each.input_tokens for each in asked), sum(each.output_tokens for each in asked))
    assert plan.tokens.input == near(usage.input_tokens)
    assert plan.tokens.output == near(usage.output_tokens)
    assert plan.usd is not None
    assert plan.usd["standard"] == near(Price(1.5, 9.0).cost_usd(usage))
    assert plan.usd["flex"] == plan.usd["batch"] == plan.usd["standard"] / 2
    assert make_plan(config).questions.to_ask == 0


def test_a_plan_asks_nothing_needs_no_key_and_writes_nothing(
    make: MakeConfig, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("GEMINI_API_KEY")
    before = sorted(tmp_path.rglob("*"))
    plan = make_plan(make())
    assert (plan.questions.to_ask, plan.questions.answered) == (50, 0)
    assert not emulator.books.by_endpoint
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_of_a_bucket_leaves_nothing_there(make: MakeConfig, bucket: pafs.S3FileSystem):
    for name in ("a.png", "b.png"):
        with bucket.open_output_stream(f"images/planned/{name}") as file:
            file.write((SAMPLES / "nothing.png").read_bytes())
    plan = make_plan(make(source={"uri": "s3://images/planned"}, output={"uri": "s3://tables/planned"}))
    assert (plan.images.total, plan.images.duplicates, plan.questions.to_ask) == (2, 1, 2)
    assert bucket.get_file_info(pafs.FileSelector("tables/planned", allow_not_found=True, recursive=True)) == []


def test_tokens_before_any_answer_are_those_of_the_documented_rules(make: MakeConfig):
    config = make(
        source={"uri": str(SAMPLES), "include": ["nothing.png"]},
        model={"resolution": "low", "service_tier": "flex", "thinking_level": "low"},
        prompts=[{"name": "sign", "kind": "ask", "text": "Is it a sign?", "labels": ["yes", "no"]}],
    )
    plan = make_plan(config)
    # 13 characters are 4 tokens, an image of low resolution 280; an answer to a question is taken to have 100 tokens,
    # a little thinking 250
    assert (plan.tokens.input, plan.tokens.output, plan.tokens.output_margin) == (284, 350, None)
    # at 1.50 and 9 USD a million
    assert plan.usd == pytest.approx({"standard": 0.003576, "flex": 0.001788, "batch": 0.001788})
    assert (plan.duration.latency_s, plan.duration.is_latency_measured) == (240.0, False)


def test_a_batch_costs_half(make: MakeConfig):
    config = make(model={"mode": "batch"})
    plan = make_plan(config)
    assert plan.tier == "batch"
    assert verdict(plan, config) == (
        "26 images, 50 of 52 questions to ask, about 0.1775 USD batch (0.3551 standard, 0.1775 flex), "
        "2.0 hours with 3,000,000 input tokens in jobs at a time."
    )


async def test_a_changed_prompt_is_asked_anew_and_takes_no_length_from_the_old_one(make: MakeConfig):
    await annotate(make())
    plan = make_plan(make(prompts=[{"name": "objects", "kind": "detect", "text": "Find signs."}]))
    assert (plan.questions.to_ask, plan.questions.answered) == (25, 0)
    assert plan.prompts["objects"].measured_answers == 0
    renamed = make_plan(make(prompts=[{"name": "things", "kind": "detect"}]))
    assert (renamed.questions.to_ask, renamed.questions.answered) == (0, 25)
    assert renamed.prompts["things"].measured_answers == 25


async def test_the_length_of_answers_is_the_mean_of_those_that_were_paid_for(make: MakeConfig, emulator: Emulator):
    await annotate(make(source={"uri": str(SAMPLES), "limit": 10}))
    detected = [each.output_tokens for each in emulator.books.answered() if each.text.startswith("Detect")]
    plan = make_plan(make())
    prompt = plan.prompts["objects"]
    assert prompt.measured_answers == len(detected)
    assert prompt.output_tokens_each == round(float(np.mean(detected)), 1)
    outlined = [each.output_tokens for each in emulator.books.answered() if each.text.startswith("Segment")]
    margins = (1.96 * np.std(each, ddof=1) / np.sqrt(len(each)) for each in (detected, outlined))
    assert plan.tokens.output_margin == pytest.approx(prompt.to_ask * sum(margins), abs=1)
    assert plan.duration.is_latency_measured
    assert plan.duration.latency_s < 3


async def test_a_latency_is_not_taken_from_another_tier_nor_a_length_from_another_service(
    make: MakeConfig, blind: Emulator
):
    await annotate(make(source={"uri": str(SAMPLES), "limit": 10}))
    flex = make_plan(make(model={"service_tier": "flex"}))
    assert flex.prompts["objects"].measured_answers > 0
    assert (flex.duration.latency_s, flex.duration.is_latency_measured) == (240.0, False)
    assert make_plan(make(model={"base_url": blind.url})).prompts["objects"].measured_answers == 0


async def test_a_large_source_is_judged_by_some_of_its_images(make: MakeConfig, many: Path, blind: Emulator):
    model = {"base_url": blind.url}
    prompts = [{"name": "objects", "kind": "detect"}]
    part = make(source={"uri": str(many), "limit": 600}, model=model, prompts=prompts, execution={"shard_size": 200})
    await annotate(part)
    config = make(source={"uri": str(many)}, model=model, prompts=prompts)
    plan = make_plan(config)
    assert (plan.images.total, plan.images.looked_at, plan.images.is_exact) == (MANY, 200, False)
    assert (plan.images.duplicates, plan.images.duplicates_at_most) == (None, 0)
    # what the tables know is not read again
    assert (plan.images.known, plan.questions.answered, plan.questions.to_ask) == (600, 600, 1800)
    exact = make_plan(config, exact=True)
    assert (exact.images.looked_at, exact.images.is_exact) == (MANY, True)
    assert (exact.questions.answered, exact.questions.to_ask) == (600, 1800)
    assert exact.images.known == 0
    assert exact.storage.uploaded_bytes == sum(path.stat().st_size for path in sorted(many.iterdir())[600:])
    assert plan.storage.uploaded_bytes == pytest.approx(exact.storage.uploaded_bytes, rel=0.05)


async def test_copies_under_other_names_are_found_among_those_that_are_read(
    make: MakeConfig, many: Path, blind: Emulator, tmp_path: Path
):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in many.iterdir():
        (moved / path.name).hardlink_to(path)
    prompts = [{"name": "objects", "kind": "detect"}]
    await annotate(make(source={"uri": str(many), "limit": 600}, model={"base_url": blind.url}, prompts=prompts))
    plan = make_plan(make(source={"uri": str(moved)}, model={"base_url": blind.url}, prompts=prompts))
    # a quarter is answered, and of images that are spread evenly a quarter is found to be
    assert plan.images.known == 0
    assert plan.questions.answered == pytest.approx(600, abs=2 * MANY / 200)
    assert plan.questions.to_ask == MANY - plan.questions.answered


async def test_what_only_new_leaves_out_is_in_no_other_number(make: MakeConfig):
    await annotate(make(source={"uri": str(SAMPLES), "limit": 10}))
    plan = make_plan(make(source={"uri": str(SAMPLES), "only_new": True}))
    assert (plan.images.left_out, plan.images.total) == (10, 16)
    await annotate(make())
    everything = make_plan(make(source={"uri": str(SAMPLES), "only_new": True}))
    assert (everything.images.left_out, everything.images.total, everything.questions.total) == (26, 0, 0)


async def test_the_unfinished_run_that_would_be_taken_up_is_named_with_what_it_cost(make: MakeConfig):
    config = make(limits={"budget_usd": 0.2, "concurrency": 1}, execution={"shard_size": 2, "shards_in_flight": 1})
    with pytest.raises(BudgetExhausted):
        await annotate(config)
    [run] = list_runs(config.output.uri)
    plan = make_plan(config)
    assert (plan.unfinished_run, plan.unfinished_usd) == (run["run"], run["totals"]["cost_usd"])
    assert plan.unfinished_usd > 0


def test_images_in_their_questions_are_not_uploaded(make: MakeConfig):
    plan = make_plan(make(model={"transport": "inline"}))
    assert (plan.storage.uploads, plan.storage.uploaded_bytes, plan.storage.peak_bytes) == (0, 0, 0)


def test_types_are_told_by_names_and_duplicates_bounded_by_sizes():
    names = ["a.JPG", "b.jpeg", "c.png", "d.tif", "notes", "e.png"]
    sizes = [10, 20, 10, None, 10, 30]
    refs = [ImageRef(name, f"file:///{name}", size) for name, size in zip(names, sizes, strict=True)]
    census = take_census([*refs, ImageRef("f.png", "file:///f.png", None, "is a pipe")])
    counted = {name: (each.images, each.size_bytes, each.largest_bytes) for name, each in census.by_type.items()}
    assert counted == {"jpeg": (2, 30, 20), "png": (2, 40, 30), "other": (1, 10, 10), "tiff": (1, 0, 0)}
    assert (census.images, census.unreadable, census.unsized, census.size_bytes) == (7, 1, 1, 80)
    # a.JPG, c.png and notes have one size, so two of them may be copies
    assert census.same_size() == 2


def test_contents_seen_before_are_known_however_many_there_are():
    seen = Seen()
    numbers = [number * 2**40 % (2**64 - 59) for number in range(Seen.PENDING + 10)]
    assert all(seen.add(number) for number in numbers)
    assert not any(seen.add(number) for number in numbers)


LOAD = Load(
    questions=1200, input_tokens=1_200_000, latency_s=3.0, is_latency_measured=False, uploads=600, uploaded_bytes=0
)


@pytest.mark.parametrize(
    ("limits", "limited_by", "total_s"),
    [
        # 60.6 s are a minute to the limiter, which leaves room for jitter
        pytest.param({"requests_per_minute": 120}, "requests_per_minute", 10 * 60.6, id="requests"),
        pytest.param({"tokens_per_minute": 100_000}, "tokens_per_minute", 12 * 60.6, id="tokens"),
        pytest.param({"concurrency": 2}, "concurrency", (1200 * 3 + 600 * 1) / 2, id="in-flight"),
        # two full days of 500, and the 200 of the third at 60 a minute
        pytest.param(
            {"requests_per_day": 500, "requests_per_minute": 60},
            "requests_per_day",
            2 * 86_400 + 200 / 60 * 60.6,
            id="days",
        ),
        pytest.param(
            {"requests_per_day": 1200, "requests_per_minute": 1}, "requests_per_minute", 1200 * 60.6, id="a-day"
        ),
    ],
)
def test_the_slowest_limit_says_how_long_it_takes(limits: dict[str, Any], limited_by: str, total_s: float):
    duration = plan_duration(LOAD, LimitsConfig(**limits))
    assert duration.limited_by == f"limits.{limited_by}"
    assert duration.total_s == pytest.approx(total_s)


def test_a_batch_is_as_fast_as_its_queue_turns_over():
    # 1.2 million tokens are three rounds of half a million; how many questions there are a minute does not matter
    load = replace(LOAD, latency_s=7200.0)
    duration = plan_duration(
        load, LimitsConfig(requests_per_minute=1, requests_per_day=1), batch=BatchConfig(queue_tokens=500_000)
    )
    assert (duration.limited_by, duration.total_s) == ("batch.queue_tokens", 3 * 7200)


def test_worker_processes_have_requests_in_flight_each():
    alone, three = (plan_duration(LOAD, LimitsConfig(concurrency=1), processes) for processes in (1, 3))
    assert three.total_s == pytest.approx(alone.total_s / 3)


@pytest.mark.parametrize(
    ("uploaded_gib", "hours", "peak_gib", "full_after_h"),
    [
        pytest.param(12, 6, 12, None, id="fits"),
        pytest.param(60, 30, 60, 10, id="too-much-at-once"),
        # 4 days at 10 GiB in 48 hours
        pytest.param(20, 96, 10, None, id="expires-in-time"),
        # half a GiB an hour makes 24 in 48 hours, and 20 after 40
        pytest.param(60, 120, 24, 40, id="fills-slowly"),
    ],
)
def test_files_pile_up_for_48_hours(uploaded_gib: int, hours: int, peak_gib: int, full_after_h: float | None):
    load = Load(1, 1, 1.0, is_latency_measured=True, uploads=1, uploaded_bytes=uploaded_gib * GIB)
    storage = plan_storage(load, hours * 3600)
    assert storage.peak_bytes == peak_gib * GIB
    assert storage.full_after_h == (None if full_after_h is None else pytest.approx(full_after_h))


def test_a_source_without_images_is_one_sentence(make: MakeConfig, tmp_path: Path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match=r"holds no image that source\.include"):
        make_plan(make(source={"uri": str(tmp_path / "in")}))


# --- in words


def test_what_should_be_known_before_is_said(make: MakeConfig):
    config = make(
        model={"name": "gemini-9-test"},
        limits={"budget_usd": 5, "requests_per_day": 20, "requests_per_minute": 1000},
    )
    plan = make_plan(config)
    notes = list(plan_notes(plan, config))
    assert "the price of gemini-9-test is not known; say it in prices.models" in notes
    assert "limits.budget_usd cannot be kept without a price, so `pixscribe run` will refuse to begin" in notes
    assert "limits.requests_per_day of 20 ends the run each day; on_daily_quota: wait lets it go on" in notes
    # 50 questions: two days of 20, and 10 more
    assert verdict(plan, config) == (
        "26 images, 50 of 52 questions to ask, at an unknown price, 2.0 days at 20 requests a day."
    )


def test_a_storage_that_fills_up_is_said(make: MakeConfig):
    plan = make_plan(make())
    load = Load(1, 1, 1.0, is_latency_measured=True, uploads=1000, uploaded_bytes=60 * GIB)
    full = replace(plan, storage=plan_storage(load, 30 * 3600))
    assert plan_lines(full)["storage"] == "full after 10 hours; from then on the run deletes what it is done with"
    # 50 answers of 3 s and 25 uploads of 1 s, 64 at a time
    assert plan_lines(plan)["storage"].endswith(" of 20 GB in the Files API after 3 s")


async def test_a_plan_without_anything_to_ask_says_just_that(make: MakeConfig):
    config = make()
    await annotate(config)
    plan = make_plan(config)
    assert verdict(plan, config) == "26 images, 52 questions, none of which is to be asked."
    assert list(plan_lines(plan))[-2:] == ["duplicates", "answered"]


# --- the command


@pytest.fixture
def config_path(make: MakeConfig, tmp_path: Path) -> Path:
    config: RunConfig = make(limits={"requests_per_minute": 20, "budget_usd": 0.3})
    return write_yaml(tmp_path / "config.yaml", config)


def test_the_command_ends_with_one_sentence_that_says_it_all(config_path: Path, emulator: Emulator):
    done = pixscribe("plan", str(config_path), GEMINI_API_KEY="")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    lines = done.stdout.splitlines()
    # 50 images at 1120 tokens, and words of 11 and 18 for 25 of them each, are 56,725 tokens or 0.085 USD;
    # 25 answers of 200 and 25 of 1000 are 30,000 tokens or 0.27 USD; 50 questions take 2.5 minutes at 20 a minute
    assert lines[-1] == (
        "26 images, 50 of 52 questions to ask, about 0.3551 USD (0.1775 flex or batch), "
        "2.5 minutes at 20 requests a minute."
    )
    assert "duplicates  1, which are not asked about again" in lines
    assert any("limits.budget_usd of 0.3000 is less than that" in line for line in lines)
    assert not emulator.books.by_endpoint


def test_the_command_gives_programs_one_object(config_path: Path):
    done = pixscribe("plan", str(config_path), "--json", "--limit", "5", "--set", "model.service_tier=priority")
    plan = json.loads(done.stdout)
    assert (plan["images"]["total"], plan["questions"]["total"]) == (5, 10)
    assert plan["usd"]["priority"] == 2 * plan["usd"]["standard"]


def test_a_sample_is_paid_for_and_kept_for_the_run(config_path: Path, emulator: Emulator, tmp_path: Path):
    arguments = ("plan", str(config_path), "--sample", "3", "--json", "--set", "limits.requests_per_minute=10000")
    plan = json.loads(pixscribe(*arguments, PREFECT_HOME=str(tmp_path / "prefect")).stdout)
    assert len(emulator.books.answered()) == 6
    assert (plan["questions"]["to_ask"], plan["questions"]["answered"]) == (44, 6)
    assert [prompt["measured_answers"] for prompt in plan["prompts"].values()] == [3, 3]
    [run] = list_runs(str(tmp_path / "out"))
    assert (run["status"], run["totals"]["images"]) == ("complete", 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(
            ["--set", "prices.modles={}"], "prices.modles: unknown key; did you mean prices.models?", id="prices"
        ),
        pytest.param(["--sample", "0"], "source.sample: 0: should be greater than or equal to 1", id="sample"),
        pytest.param(["--source", "none"], "source.uri: 'none' does not exist", id="source"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(config_path: Path, arguments: list[str], sentence: str):
    refused = pixscribe("plan", str(config_path), *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert sentence in refused.stderr
    assert refused.stderr.count("\n") == 1
