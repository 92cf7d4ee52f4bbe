"""What an evaluation is told of the truth: its file, and the names of its images."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pixscribe.errors import ConfigError
from pixscribe.evaluation.names import match_names
from pixscribe.evaluation.truth import _unpacked, read_truth
from tests.written_truths import coco, true, write_truth


def spoiled(part: str, **keys: Any) -> dict[str, Any]:
    """A truth with one wrong thing in it."""
    content = coco({"a.jpg": [true("car", (0, 0, 9, 9))]})
    content[part][0].update(keys)
    return content


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param([], "should be one JSON object with the keys images, annotations and categories", id="list"),
        pytest.param({"images": []}, "annotations: missing", id="part-missing"),
        pytest.param({"images": [], "annotations": [], "categories": []}, "images: is empty", id="no-images"),
        pytest.param({"images": 3, "annotations": [], "categories": []}, "images: 3: should be a valid array", id="3"),
        pytest.param({"images": [7]}, "images[0]: 7: should be an object with keys and values", id="no-object"),
        pytest.param(spoiled("images", id="one"), 'images[0].id: "one": should be a valid integer', id="image-id"),
        pytest.param(
            spoiled("images", file_name=None), "images[0].file_name: null: should be a valid string", id="name"
        ),
        pytest.param(
            spoiled("images", file_name=""), 'images[0].file_name: "": String should have at least 1', id="''"
        ),
        pytest.param(
            spoiled("images", width=0), "images[0].width: 0: should be greater than or equal to 1", id="width"
        ),
        pytest.param(spoiled("images", height=-480), "images[0].height: -480: should be greater", id="height"),
        pytest.param(spoiled("images", width=10**7), "images[0].width: 10000000: should be less than", id="huge"),
        pytest.param(
            spoiled("images", width=10**6, height=10**6),
            "images[0]: 1000000 x 1000000 px: should be 4000000000 pixels at most",
            id="too-many-pixels",
        ),
        pytest.param(spoiled("categories", name=5), "categories[0].name: 5: should be a valid string", id="category"),
        pytest.param(
            spoiled("annotations", category_id=9), "annotations[0].category_id: 9: is the id of no category", id="cat"
        ),
        pytest.param(spoiled("annotations", image_id=9), "annotations[0].image_id: 9: is the id of no image", id="img"),
        pytest.param(
            spoiled("annotations", bbox=[0, 0, -5, 9]),
            "annotations[0].bbox[2]: -5: should be greater than or equal to 0",
            id="negative-width",
        ),
        pytest.param(
            spoiled("annotations", bbox=[0, float("nan"), 5, 9]),
            "annotations[0].bbox[1]: nan: should be a finite number",
            id="nan",
        ),
        pytest.param(
            spoiled("annotations", bbox=[0, 0, 5, float("inf")]),
            "annotations[0].bbox[3]: inf: should be a finite",
            id="inf",
        ),
        pytest.param(
            spoiled("annotations", bbox=[0, 0, 5]),
            "annotations[0].bbox: a list: should be [x, y, width, height], four numbers in px",
            id="three-numbers",
        ),
        pytest.param(
            spoiled("annotations", bbox={"x": 1}), "annotations[0].bbox: a mapping: should be [x, y, ", id="map"
        ),
        pytest.param(
            spoiled("annotations", bbox=[0, 0, "5", 5]), 'annotations[0].bbox: "5": should be [x, y, ', id="text"
        ),
        pytest.param(
            spoiled("annotations", bbox=[1e300, 0, 5, 5]), "annotations[0].bbox[0]: 1e+300: should be less", id="far"
        ),
        pytest.param(spoiled("annotations", area=-1), "annotations[0].area: -1: should be greater", id="area"),
        pytest.param(spoiled("annotations", iscrowd=2), "annotations[0].iscrowd: 2: should be 0 or 1", id="iscrowd"),
        pytest.param(
            spoiled("annotations", segmentation=[[1, 2, 3, "x"]]),
            'annotations[0].segmentation: "x" in it: should be polygons, [[x1, y1, x2, y2, x3, y3, …], …], or RLE, ',
            id="polygon-text",
        ),
        pytest.param(
            spoiled("annotations", segmentation=[1, 2, 3, 4, 5, 6]),
            "annotations[0].segmentation: 1 in it: should",
            id="flat",
        ),
        pytest.param(
            spoiled("annotations", segmentation=[[1, 2, 3, 4]]),
            "annotations[0].segmentation[0]: 4 numbers: should be x and y of at least three points",
            id="two-points",
        ),
        pytest.param(
            spoiled("annotations", segmentation=[[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]]),
            "annotations[0].segmentation[1]: 7 numbers: should be x and y",
            id="odd",
        ),
        pytest.param(
            spoiled("annotations", segmentation=[[0, 1e6] * 10_000]),
            "annotations[0].segmentation[0]: 20000 numbers from 0 to 1e+06: is too long to be an outline",
            id="scribble",
        ),
        pytest.param(
            spoiled("annotations", segmentation={"size": [1000, 1000]}),
            "annotations[0].segmentation: a mapping in it: should be polygons",
            id="rle-without-counts",
        ),
        pytest.param(
            spoiled("annotations", segmentation={"size": [480, 640], "counts": [480 * 640]}),
            "annotations[0].segmentation.size: [480, 640]: should be [1000, 1000], height and width of the image",
            id="rle-of-another-size",
        ),
        pytest.param(
            spoiled("annotations", segmentation={"size": [1000, 1000], "counts": [10, 20]}),
            "annotations[0].segmentation.counts: 30 pixels in 2 runs: should be 1000 x 1000 pixels in all",
            id="rle-too-short",
        ),
        pytest.param(
            spoiled("annotations", segmentation={"size": [1000, 1000], "counts": [-5, 1_000_005]}),
            "annotations[0].segmentation: -5 in it: should be polygons",
            id="rle-negative",
        ),
        pytest.param(
            spoiled("annotations", segmentation={"size": [1000, 1000], "counts": "hello, world"}),
            'annotations[0].segmentation.counts: "hello, world": is no compressed RLE',
            id="rle-no-text",
        ),
        pytest.param(
            spoiled("annotations", segmentation={"size": [1000, 1000], "counts": "PPPP"}),
            'annotations[0].segmentation.counts: "PPPP": is no compressed RLE',
            id="rle-without-end",
        ),
        pytest.param(
            spoiled("annotations", segmentation={"size": [1000, 1000], "counts": "5@"}),
            "annotations[0].segmentation.counts: -11 pixels in 2 runs: should be 1000 x 1000",
            id="rle-text-negative",
        ),
        pytest.param(
            spoiled("annotations", segmentation={"size": [1000, 1000], "counts": ""}),
            "annotations[0].segmentation.counts: 0 pixels in 0 runs: should be 1000 x 1000",
            id="rle-empty",
        ),
    ],
)
def test_a_truth_of_another_shape_is_one_sentence(tmp_path: Path, content: Any, sentence: str):
    path = write_truth(tmp_path, content)
    with pytest.raises(ConfigError) as refused:
        read_truth(path)
    assert str(refused.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("part", "key", "sentence"),
    [
        ("images", "id", "images[1].id: 1: is that of images[0] too; each needs its own"),
        ("images", "file_name", 'images[1].file_name: "a.jpg": is that of images[0] too; each needs its own'),
        ("categories", "id", "categories[1].id: 1: is that of categories[0] too; each needs its own"),
    ],
)
def test_ids_and_names_are_not_given_twice(tmp_path: Path, part: str, key: str, sentence: str):
    content = coco({"a.jpg": [], "b.jpg": []}, ["car", "truck"])
    content[part][1][key] = content[part][0][key]
    with pytest.raises(ConfigError) as refused:
        read_truth(write_truth(tmp_path, content))
    assert str(refused.value).endswith(sentence)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(b"", "is not JSON: EOF while parsing a value at line 1 column 0", id="empty"),
        pytest.param(b"images: []", "is not JSON: expected value at line 1", id="yaml"),
        pytest.param(b'{"images": ["\xff"]}', "is not UTF-8 text, as JSON is", id="latin-1"),
        pytest.param('{"images": []}'.encode("utf-16"), "is not UTF-8 text, as JSON is", id="utf-16"),
        pytest.param(b"[" * 100_000, "is not JSON: recursion limit exceeded", id="deep"),
        pytest.param(b'{"images": [{"id": ' + b"9" * 5000, "is not JSON: number out of range", id="endless-number"),
        pytest.param(b'{"images": "' + b"x" * 5000 + b'"}', 'images: "xxxxxx', id="long"),
    ],
)
def test_a_file_that_is_no_json_is_one_sentence(tmp_path: Path, data: bytes, sentence: str):
    path = tmp_path / "truth.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        read_truth(path)
    assert str(refused.value).startswith(f"{path}: {sentence}")
    assert len(str(refused.value)) < len(str(path)) + 300


def test_a_mark_at_the_start_and_unknown_keys_change_nothing(tmp_path: Path):
    content = coco({"a.jpg": [true("car", (0, 0, 9, 9), score=0.5)]})
    content["images"][0]["license"] = content["info"] = {"year": "last"}
    path = tmp_path / "truth.json"
    path.write_text("\ufeff" + json.dumps(content))
    assert read_truth(path).objects[1][0].xyxy == (0.0, 0.0, 9.0, 9.0)


def test_a_truth_may_come_from_a_pipe(tmp_path: Path):
    reading, writing = os.pipe()
    os.write(writing, json.dumps(coco({"a.jpg": []})).encode())
    os.close(writing)
    assert read_truth(Path(f"/dev/fd/{reading}")).images[0].file_name == "a.jpg"
    os.close(reading)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 4))
def test_runs_are_unpacked_as_pycocotools_packs_them(pixels: list[bool], stretch: int):
    mask = np.array(pixels, dtype=np.uint8).repeat(stretch**5).reshape(-1, 1)
    packed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    runs = _unpacked(packed)
    assert runs is not None
    values = np.arange(len(runs)) % 2
    assert values.repeat(runs).tolist() == mask.ravel().tolist()


@pytest.mark.parametrize(
    ("truth", "rows", "found"),
    [
        pytest.param("a/x.jpg", ["a/x.jpg", "x.jpg"], "a/x.jpg", id="exactly"),
        pytest.param("images/x.jpg", ["x.jpg", "y.jpg"], "x.jpg", id="folder-in-front"),
        pytest.param("x.jpg", ["deep/in/x.jpg"], "deep/in/x.jpg", id="bare"),
        pytest.param("images/a/x.jpg", ["b/x.jpg", "data/a/x.jpg"], "data/a/x.jpg", id="the-longer-end"),
        pytest.param("images\\a\\x.jpg", ["a/x.jpg"], "a/x.jpg", id="windows"),
        pytest.param("./x.jpg", ["x.jpg"], "x.jpg", id="here"),
        pytest.param("x.jpg", ["a/x.jpg", "b/x.jpg"], None, id="one-of-two"),
        pytest.param("x.jpg", ["xx.jpg"], None, id="part-of-a-name"),
        pytest.param("x.jpg", [], None, id="no-rows"),
        pytest.param("/", ["x.jpg"], None, id="no-name"),
    ],
)
def test_an_image_is_found_by_its_name_or_by_the_end_of_it(truth: str, rows: list[str], found: str | None):
    assert match_names([truth], rows).names == ({} if found is None else {found: truth})


def test_a_name_that_fits_several_images_is_not_guessed_at():
    matches = match_names(["x.jpg", "y.jpg"], ["a/x.jpg", "b/x.jpg"])
    assert (matches.ambiguous, matches.missing, matches.names) == (("x.jpg",), ("y.jpg",), {})


def test_two_names_that_fit_one_image_alike_are_not_guessed_at():
    assert match_names(["a/x.jpg"], ["x.jpg", "x.jpg"]).ambiguous == ("a/x.jpg",)
    assert match_names(["a/x.jpg", "b/x.jpg"], ["x.jpg"]).ambiguous == ("a/x.jpg", "b/x.jpg")


def test_the_name_that_fits_better_has_the_image_and_the_other_has_none():
    matches = match_names(["a/x.jpg", "b/x.jpg"], ["data/a/x.jpg"])
    assert (matches.names, matches.missing, matches.ambiguous) == ({"data/a/x.jpg": "a/x.jpg"}, ("b/x.jpg",), ())


def test_an_image_that_has_its_own_name_is_nobody_elses():
    matches = match_names(["x.jpg", "images/x.jpg"], ["x.jpg"])
    assert (matches.names, matches.missing) == ({"x.jpg": "x.jpg"}, ("images/x.jpg",))


name_parts = st.lists(st.sampled_from(["a", "b", "x.jpg"]), min_size=1, max_size=4).map("/".join)


@given(st.lists(name_parts, unique=True), st.lists(name_parts))
def test_each_name_of_a_truth_is_one_image_or_said_to_be_none(truth: list[str], rows: list[str]):
    matches = match_names(truth, rows)
    assert sorted([*matches.names.values(), *matches.ambiguous, *matches.missing]) == sorted(truth)
    assert set(matches.names) <= set(rows)
    assert all(matches.names[name] == name for name in {*truth} & {*rows} if rows.count(name) == 1)
    assert {name for name in truth if rows.count(name) > 1} <= set(matches.ambiguous)
