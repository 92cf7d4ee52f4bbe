"""COCO as FiftyOne's importer reads it."""

from typing import Any

import pytest
from PIL import Image

from pixscribe.exports import ExportOptions, export_runs
from pixscribe.results import open_results
from tests.foreign import ask
from tests.pictured_runs import (
    BOX,
    HARD_LABELS,
    HARD_NAMES,
    SIZE,
    around,
    colour_in,
    hard_run,
    no_matter,
    objects_of,
    xyxy,
)


@pytest.fixture(scope="module")
def loaded(sample_run: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What FiftyOne makes of the samples and of what is hard to read, asked at once: it takes seconds to start."""
    folder = tmp_path_factory.mktemp("fiftyone")
    options = ExportOptions(prompts=["outlines"])
    export_runs([open_results(sample_run)], "fiftyone", folder / "samples", options, no_matter)
    export_runs([hard_run(folder)], "fiftyone", folder / "hard", ExportOptions(), no_matter)
    samples, hard = ask("fiftyone", folder / "samples", folder / "hard")
    return {"samples": samples, "hard": hard}


def test_fiftyone_gives_back_every_box_and_outline_on_its_upright_picture(sample_run: str, loaded: dict[str, Any]):
    by_path = {sample["path"]: sample for sample in loaded["samples"]["samples"]}
    count = 0
    for image, objects in objects_of(open_results(sample_run), "outlines"):
        (path,) = (path for path in by_path if f"/samples/data/{image['file_name']}" in path)
        sample, size = by_path[path], (image["width"], image["height"])
        with Image.open(path) as picture:
            assert (tuple(sample["size"]), picture.size) == (size, size)
            found = sample.get("detections", [])
            assert [each["label"] for each in found] == [row["label"] for row in objects]
            for each, mask, row in zip(found, sample.get("segmentations", []), objects, strict=True):
                edges = around([share * side for share, side in zip(each["box"], size * 2, strict=True)])
                assert edges == pytest.approx(xyxy(row), abs=0.5)
                assert row["label"].startswith(colour_in(picture, edges))
                assert mask["mask_px"] == pytest.approx(row["area"], rel=0.05)
                count += 1
    assert (len(by_path), count) == (26, 89)


def test_no_name_and_no_label_is_too_hard(loaded: dict[str, Any]):
    nothing, *others = loaded["hard"]["samples"]
    assert "detections" not in nothing
    assert loaded["hard"]["classes"] == sorted(HARD_LABELS)
    for sample, name in zip(others, sorted(HARD_NAMES), strict=True):
        label = HARD_LABELS[HARD_NAMES.index(name)]
        assert [(each["label"], each["prompt"]) for each in sample["detections"]] == [
            (label, "objects"),
            (label, "outlines"),
        ]
        with Image.open(sample["path"]) as picture:
            assert (picture.size, colour_in(picture, BOX)) == (SIZE, "red")
