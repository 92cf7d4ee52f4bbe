import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from pixscribe.config import EMULATOR, RunConfig
from pixscribe.emulator import Emulator
from pixscribe.errors import AuthenticationError, BudgetExhausted, ConfigError, HopelessRun, ModelUnknown
from pixscribe.run import RunSummary, describe_run, list_runs, locate_run
from tests.conftest import SAMPLES, MakeConfig, annotate

TRUTH = json.loads((SAMPLES.parent / "truth.json").read_text())
FILES = sorted(str(path.relative_to(SAMPLES)) for path in SAMPLES.rglob("*") if path.is_file())


def read(config: RunConfig, table: str) -> pd.DataFrame:
    frame: pd.DataFrame = pq.read_table(f"{config.output.uri}/{table}").to_pandas()
    return frame


def digests(folder: Path, table: str) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / table).rglob("*.parquet"))
    }


def copy_samples(folder: Path, *names: str) -> Path:
    for name in names or FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SAMPLES / name, folder / name)
    return folder


def box_iou(first: np.ndarray, second: np.ndarray) -> float:
    width, height = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    intersection = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(intersection / (sum(areas) - intersection))


def polygon_iou(first: Any, second: Any, width: int, height: int) -> float:
    def encode(polygons: Any) -> Any:
        # drawn four times as large, so that pycocotools' rounding to pixels does not count
        scaled = [[4 * float(value) for value in ring] for ring in polygons]
        return coco_mask.merge(coco_mask.frPyObjects(scaled, 4 * height, 4 * width))

    return float(coco_mask.iou([encode(first)], [encode(second)], [0])[0][0])


def best_matches(found: pd.DataFrame, truth: dict[str, Any]) -> list[tuple[float, Any]]:
    """For each true object the row with the best IoU."""
    matches = []
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        box = np.array([x, y, x + width, y + height])
        rows = found[found.label == annotation["label"]]
        ious = [box_iou(box, row[["xmin", "ymin", "xmax", "ymax"]].to_numpy(float)) for _, row in rows.iterrows()]
        best = int(np.argmax(ious)) if ious else None
        matches.append((ious[best], rows.iloc[best]) if best is not None else (0.0, None))
    return matches


def truth_of(file_name: str) -> dict[str, Any]:
    labels = {category["id"]: category["name"] for category in TRUTH["categories"]}
    image = next(image for image in TRUTH["images"] if image["file_name"] == file_name)
    annotations = [
        {**annotation, "label": labels[annotation["category_id"]]}
        for annotation in TRUTH["annotations"]
        if annotation["image_id"] == image["id"]
    ]
    return {**image, "annotations": annotations}


@pytest.mark.parametrize("max_side_px", [None, 256], ids=["full-size", "256px"])
@pytest.mark.parametrize("transport", ["files", "inline"])
async def test_boxes_and_polygons_lie_where_the_objects_are(make: MakeConfig, transport: str, max_side_px: int | None):
    config = make(model={"transport": transport}, image={"max_side_px": max_side_px})
    summary = await annotate(config)
    assert summary.is_all_ok
    annotations = read(config, "annotations")
    assert {image["file_name"] for image in TRUTH["images"]} == set(FILES)
    for name in FILES:
        truth = truth_of(name)
        for prompt in ("objects", "outlines"):
            found = annotations[(annotations.file_name == name) & (annotations.prompt == prompt)]
            assert len(found) == len(truth["annotations"]), name
            for annotation, (iou, row) in zip(truth["annotations"], best_matches(found, truth), strict=True):
                assert iou >= 0.95, (name, prompt, annotation["label"], iou)
                if prompt == "outlines":
                    size = truth["width"], truth["height"]
                    assert polygon_iou(annotation["segmentation"], row.polygons, *size) >= 0.90, (name, row.label)


async def test_png_masks_of_the_other_dialect_lie_where_the_objects_are(make: MakeConfig):
    from pixscribe.emulator import EmulatorOptions

    with Emulator(EmulatorOptions(masks="png")) as emulator:
        config = make(model={"base_url": emulator.url})
        assert (await annotate(config)).is_all_ok
    annotations = read(config, "annotations")
    for name in FILES:
        truth = truth_of(name)
        found = annotations[(annotations.file_name == name) & (annotations.prompt == "outlines")]
        assert len(found) == len(truth["annotations"])
        for annotation, (_, row) in zip(truth["annotations"], best_matches(found, truth), strict=True):
            size = truth["height"], truth["width"]
            true_mask = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], *size))
            given = {"size": list(row.rle["size"]), "counts": row.rle["counts"]}
            assert given["size"] == list(size)
            assert coco_mask.iou([given], [true_mask], [0])[0][0] >= 0.90, (name, row.label)


async def test_every_image_has_one_row_and_the_books_agree(make: MakeConfig, emulator: Emulator):
    config = make()
    summary = await annotate(config)
    images, responses, annotations = (read(config, table) for table in ("images", "responses", "annotations"))
    assert sorted(images.file_name) == FILES
    assert len(responses) == 2 * len(images)
    contents = images.image_id.nunique()
    assert contents < len(images)  # a duplicate is among the samples
    assert len(emulator.books.uploads) == contents == summary.totals.uploads
    assert len(emulator.books.questions) == 2 * contents == responses.attempts.sum() == summary.totals.requests
    assert (~responses.reused).sum() == 2 * contents
    assert len(annotations) == responses.annotation_count.sum() == summary.totals.objects
    assert summary.totals.cost_usd == pytest.approx(responses.cost_usd.sum())


async def test_a_duplicate_has_rows_of_its_own_and_costs_nothing(make: MakeConfig):
    config = make()
    await annotate(config)
    images, responses, annotations = (read(config, table) for table in ("images", "responses", "annotations"))
    [twins] = [group for _, group in images.groupby("image_id") if len(group) > 1]
    rows = responses[responses.file_name.isin(twins.file_name)].groupby("prompt")
    for _, pair in rows:
        assert pair.text.nunique() == 1
        assert sorted(pair.reused) == [False, True]
        assert pair[pair.reused].cost_usd.sum() == 0
    counts = annotations[annotations.file_name.isin(twins.file_name)].groupby("file_name").size()
    assert counts.nunique() == 1


async def test_the_tables_open_in_pandas_and_duckdb_with_the_run_as_a_partition(make: MakeConfig, tmp_path: Path):
    config = make()
    first, second = await annotate(config), await annotate(config, new=True)
    for table in ("images", "responses", "annotations"):
        files = f"{config.output.uri}/{table}/**/*.parquet"
        runs = {row[0] for row in duckdb.execute(f"select distinct run from '{files}'").fetchall()}
        assert runs == {first.run, second.run} == set(read(config, table).run.astype(str))


async def test_the_same_config_gives_the_same_bytes(make: MakeConfig, tmp_path: Path):
    for name in ("one", "two"):
        await annotate(make(output={"uri": str(tmp_path / name)}), run_id="r")
    for table in ("images", "annotations"):
        assert digests(tmp_path / "one", table) == digests(tmp_path / "two", table)


async def test_every_number_can_be_traced_to_the_words_of_the_model(make: MakeConfig):
    config = make()
    await annotate(config)
    responses, annotations = read(config, "responses"), read(config, "annotations")
    texts = responses.set_index(["file_name", "prompt"]).text
    for row in annotations.itertuples():
        said = json.loads(texts[row.file_name, row.prompt])["boxes"][row.index]
        assert said["box_2d"] == list(row.box_2d)
        assert row.xmin == pytest.approx(said["box_2d"][1] / 1000 * row.width)
        assert row.ymax == pytest.approx(said["box_2d"][2] / 1000 * row.height)


async def test_captions_classes_and_answers_are_rows_without_a_box(make: MakeConfig):
    prompts = [
        {"name": "caption", "kind": "caption"},
        {"name": "class", "kind": "classify", "labels": ["red", "blue", "green"]},
        {"name": "question", "kind": "ask", "text": "How many objects are there?"},
    ]
    config = make(prompts=prompts, source={"uri": str(SAMPLES), "limit": 3})
    assert (await annotate(config)).is_all_ok
    annotations = read(config, "annotations")
    assert set(annotations.prompt) == {"caption", "class", "question"}
    assert annotations.xmin.isna().all()
    assert annotations.label.notna().all()
    assert set(annotations[annotations.prompt == "class"].label) <= {"red", "blue", "green"}


async def test_a_closed_vocabulary_is_kept(make: MakeConfig):
    prompts = [{"name": "objects", "kind": "detect", "labels": ["red", "circle"]}]
    config = make(prompts=prompts)
    await annotate(config)
    assert set(read(config, "annotations").label) <= {"red", "circle"}


async def test_bad_files_become_rows_and_good_ones_are_labelled(make: MakeConfig, tmp_path: Path):
    source = copy_samples(tmp_path / "in", FILES[0])
    whole = (SAMPLES / FILES[0]).read_bytes()
    (source / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "empty.jpg").write_bytes(b"")
    (source / "page.jpg").write_bytes(b"<html><body>not found</body></html>")
    (source / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(source / "pipe.jpg")
    config = make(source={"uri": str(source)})
    summary = await annotate(config)
    images = read(config, "images").set_index("file_name")
    assert images.error_code.dropna().to_dict() == {
        "cut.jpg": "decode_error",
        "dangling.jpg": "read_error",
        "empty.jpg": "decode_error",
        "page.jpg": "unsupported_type",
        "pipe.jpg": "read_error",
    }
    assert Counter(images.status) == {"failed": 5, "ok": 1}
    responses = read(config, "responses")
    assert len(responses) == 12
    assert set(responses[responses.status == "failed"].attempts) == {0}
    assert summary.totals.errors == {"decode_error": 4, "read_error": 4, "unsupported_type": 2}


async def test_unreadable_files_and_folders_become_rows(make: MakeConfig):
    if os.geteuid() != 0:
        pytest.skip("needs to change the user")
    with tempfile.TemporaryDirectory() as name:
        folder = copy_samples(Path(name), FILES[0])
        folder.chmod(0o777)
        (folder / "secret.jpg").write_bytes(b"x")
        (folder / "secret.jpg").chmod(0)
        (folder / "closed").mkdir(mode=0)
        config = make(source={"uri": name}, output={"uri": f"{name}-out"})
        Path(f"{name}-out").mkdir(mode=0o777)
        os.chmod(f"{name}-out", 0o777)  # noqa: PTH101
        os.seteuid(65534)
        try:
            await annotate(config)
        finally:
            os.seteuid(0)
        images = read(config, "images").set_index("file_name")
        shutil.rmtree(f"{name}-out")
    assert images.error_code.dropna().to_dict() == {"closed/": "read_error", "secret.jpg": "read_error"}


async def test_an_unfinished_run_is_taken_up_where_it_stopped(make: MakeConfig, emulator: Emulator):
    stopped = make(execution={"shard_size": 8}, limits={"budget_usd": 0.2, "concurrency": 1})
    with pytest.raises(BudgetExhausted, match=r"limits\.budget_usd"):
        await annotate(stopped)
    asked_before = len(emulator.books.questions)
    [run] = list_runs(stopped.output.uri)
    assert run["status"] == "unfinished"
    done_before = run["totals"]["images"]
    assert 0 < done_before < len(FILES)
    summary = await annotate(make(execution={"shard_size": 5}, limits={"budget_usd": 100.0}))
    assert summary.run == run["run"]
    assert len(emulator.books.questions) - asked_before <= 2 * (len(FILES) - done_before)
    assert sorted(read(stopped, "images").file_name) == FILES
    assert describe_run(*locate_run(f"{stopped.output.uri}@{summary.run}"))["status"] == "complete"


async def test_a_finished_run_is_not_taken_up_again(make: MakeConfig):
    config = make(source={"uri": str(SAMPLES), "limit": 2})
    first, second = await annotate(config), await annotate(config)
    assert first.run != second.run


async def test_a_run_can_be_named_once(make: MakeConfig):
    config = make(source={"uri": str(SAMPLES), "limit": 2})
    assert (await annotate(config, run_id="mine")).run == "mine"
    with pytest.raises(ConfigError, match="the run 'mine' exists already"):
        await annotate(config, run_id="mine")
    with pytest.raises(ConfigError, match=r"--run-id: '\.\./x' should be"):
        await annotate(config, run_id="../x")


async def test_a_refused_key_ends_the_run_before_anything_is_written(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch, emulator: Emulator
):
    monkeypatch.setenv("GEMINI_API_KEY", "bad-key-98765")
    config = make()
    with pytest.raises(AuthenticationError) as caught:
        await annotate(config)
    assert "98765" not in str(caught.value)
    assert describe_run(config.output.uri, list_runs(config.output.uri)[0]["run"])["totals"]["images"] == 0


async def test_a_missing_key_is_said_before_anything_happens(make: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GEMINI_API_KEY")
    config = make()
    with pytest.raises(ConfigError, match="GEMINI_API_KEY is not set"):
        await annotate(config)
    assert not Path(config.output.uri).exists()


async def test_the_built_in_emulator_needs_no_key(make: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GEMINI_API_KEY")
    summary = await annotate(make(model={"base_url": EMULATOR}, source={"uri": str(SAMPLES), "limit": 2}))
    assert summary.is_all_ok


async def test_an_unknown_model_ends_the_run(make: MakeConfig, emulator: Emulator):
    config = make(model={"name": "gemni-3"})
    with pytest.raises(ModelUnknown, match=r"model\.name: the service does not know"):
        await annotate(config)
    assert not (Path(config.output.uri) / "images").exists()


async def test_a_budget_for_a_model_without_a_price_is_refused(make: MakeConfig):
    with pytest.raises(ConfigError, match="price of 'gemini-9' is not known"):
        await annotate(make(model={"name": "gemini-9"}, limits={"budget_usd": 1.0}))


async def test_passing_faults_change_nothing_in_the_tables(make: MakeConfig, tmp_path: Path):
    from pixscribe.emulator import EmulatorOptions

    faults = {"429": 0.05, "503": 0.05, "reset": 0.05, "cut": 0.03, "html_200": 0.02, "upload_503": 0.05}
    await annotate(make(output={"uri": str(tmp_path / "calm")}), run_id="r")
    with Emulator(EmulatorOptions(faults=faults, seed=3)) as emulator:
        summary = await annotate(
            make(model={"base_url": emulator.url}, output={"uri": str(tmp_path / "stormy")}), run_id="r"
        )
        assert summary.is_all_ok
        assert summary.totals.requests > 2 * (len(FILES) - 1)
    for table in ("images", "annotations"):
        assert digests(tmp_path / "calm", table) == digests(tmp_path / "stormy", table)


@pytest.mark.parametrize(
    ("fault", "status", "error_code", "attempts"),
    [
        ("blocked", "failed", "blocked", 1),
        ("invalid_image_400", "failed", "request_refused", 1),
        ("empty_text", "failed", "invalid_answer", 2),
        ("incomplete_empty", "failed", "truncated", 2),
        ("fenced", "repaired", None, 1),
        ("swapped_corners", "repaired", None, 1),
        ("empty_list", "ok", None, 1),
    ],
)
async def test_each_kind_of_bad_answer_has_its_row(
    make: MakeConfig, emulator: Emulator, fault: str, status: str, error_code: str | None, attempts: int
):
    config = make(source={"uri": str(SAMPLES), "limit": 1}, prompts=[{"name": "objects", "kind": "detect"}])
    emulator.script(*[fault] * 9)
    await annotate(config)
    [row] = pq.read_table(f"{config.output.uri}/responses").to_pylist()
    assert (row["status"], row["error_code"], row["attempts"]) == (status, error_code, attempts)


async def test_a_cut_answer_keeps_its_complete_objects_and_says_so(make: MakeConfig, emulator: Emulator):
    name = next(name for name in FILES if len(truth_of(name)["annotations"]) >= 4)
    config = make(source={"uri": str(SAMPLES), "include": [name]}, prompts=[{"name": "objects", "kind": "detect"}])
    emulator.script("incomplete", "incomplete")
    await annotate(config)
    [row] = pq.read_table(f"{config.output.uri}/responses").to_pylist()
    annotations = read(config, "annotations")
    assert (row["status"], row["error_code"]) == ("failed", "truncated")
    assert 0 < len(annotations) == row["annotation_count"] < len(truth_of(name)["annotations"])
    assert all("truncated" in flags for flags in annotations["flags"])


async def test_a_file_that_is_gone_from_the_service_is_uploaded_once_more(make: MakeConfig, emulator: Emulator):
    config = make(source={"uri": str(SAMPLES), "limit": 1})
    emulator.script("file_gone_403", "file_gone_403")
    assert (await annotate(config)).is_all_ok
    # both questions found out, and one upload served both
    assert emulator.books.by_endpoint["upload.start"] == 2


@pytest.mark.parametrize(
    "fault", ["upload_409", "upload_processing", "upload_lost_finalize", "upload_500", "upload_reset"]
)
async def test_an_upload_that_goes_wrong_once_ends_well(make: MakeConfig, emulator: Emulator, fault: str):
    config = make(source={"uri": str(SAMPLES), "limit": 1})
    emulator.script(fault)
    assert (await annotate(config)).is_all_ok


@pytest.mark.parametrize("fault", ["upload_failed_state", "upload_wrong_hash", "upload_no_uri"])
async def test_an_upload_that_cannot_be_used_is_a_row(make: MakeConfig, emulator: Emulator, fault: str):
    config = make(source={"uri": str(SAMPLES), "limit": 1})
    emulator.script(fault)
    await annotate(config)
    [row] = pq.read_table(f"{config.output.uri}/images").to_pylist()
    assert (row["status"], row["error_code"]) == ("failed", "upload_failed")
    assert emulator.books.questions == []


async def test_a_key_that_loses_its_rights_ends_the_run(make: MakeConfig, emulator: Emulator):
    emulator.script(*["key_revoked_403"] * 200)
    with pytest.raises(AuthenticationError):
        await annotate(make())


async def test_a_shard_that_fails_in_one_way_stops_the_run_and_is_not_committed(make: MakeConfig, emulator: Emulator):
    config = make()
    emulator.script(*["invalid_image_400"] * 999)
    with pytest.raises(HopelessRun, match=r"'objects' failed with request_refused for all \d+ images"):
        await annotate(config)
    assert not (Path(config.output.uri) / "images").exists()


async def test_auto_sends_small_images_inside_the_question(make: MakeConfig, emulator: Emulator):
    summary: RunSummary = await annotate(make(model={"transport": "auto"}, source={"uri": str(SAMPLES), "limit": 4}))
    assert summary.is_all_ok
    assert emulator.books.uploads == []
