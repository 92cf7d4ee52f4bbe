import re
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.samples.draw import COLORS
from flows.cli import main
from pixscribe.errors import ConfigError, OutputError
from pixscribe.exports import FORMATS, ExportOptions, ExportSummary, export_runs
from pixscribe.exports.categories import number_labels
from pixscribe.exports.folder import MARK, new_folder
from pixscribe.exports.names import MAX_NAME_BYTES, Names, clean_name
from pixscribe.results import RunResults, open_results
from pixscribe.storage import Folder
from tests.conftest import SAMPLES, MakeConfig, annotate, pixscribe
from tests.made_runs import Made, thing, write_run
from tests.pictured_runs import SIZE, pictured

BOX = (10.0, 20.0, 30.0, 40.0)
CAR, SIGN = thing("car", BOX), thing("sign", BOX)
TWO = ({"name": "objects", "kind": "detect"}, {"name": "outlines", "kind": "segment"})


def deaf(sentence: str) -> None:
    """For what a test is not about."""


def silent(sentence: str) -> None:
    raise AssertionError(f"nobody should hear: {sentence}")


def export(*runs: RunResults, to: Path, **options: Any) -> ExportSummary:
    return export_runs(runs, "coco", to, ExportOptions(**options), options.pop("tell", silent))


def coco(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = orjson.loads((folder / "annotations.json").read_bytes())
    return read


def names_in(folder: Path) -> list[str]:
    return [image["file_name"] for image in coco(folder)["images"]]


def labels_in(folder: Path) -> list[str]:
    names = {category["id"]: category["name"] for category in coco(folder)["categories"]}
    return [names[found["category_id"]] for found in coco(folder)["annotations"]]


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- which images ----


def test_an_image_without_objects_is_in_the_data_set(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]}), Made("none.jpg", {"objects": []})])
    summary = export(run, to=tmp_path / "to")
    assert (summary.images, summary.objects, summary.left_out) == (2, 1, {})
    assert names_in(tmp_path / "to") == ["a.jpg", "none.jpg"]


PARTLY = [
    Made("1-ok.jpg", {"objects": [CAR], "outlines": [SIGN]}),
    Made("2-partial.jpg", {"objects": [CAR, CAR], "outlines": None}, failed={"outlines": [SIGN]}),
    Made("3-failed.jpg", {"objects": None, "outlines": None}),
    Made("4-unreadable.jpg", {"objects": None, "outlines": None}, size=None),
]


def test_an_image_that_was_not_answered_would_teach_that_it_is_empty_and_is_left_out(tmp_path: Path):
    run, said = write_run(tmp_path / "out", "a", PARTLY, TWO), list[str]()
    summary = export_runs([run], "coco", tmp_path / "to", tell=said.append)
    assert names_in(tmp_path / "to") == ["1-ok.jpg"]
    assert summary.left_out == {"without an answer to each prompt": 1, "without any answer": 2}
    assert said == [
        "an object may be there once for each of the prompts objects, outlines; --prompt chooses",
        "not exported: 1 image without an answer to each prompt, 2 without any answer",
    ]


def test_a_partial_image_that_is_asked_for_comes_without_the_objects_of_its_failed_answer(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", PARTLY, TWO)
    summary = export_runs([run], "coco", tmp_path / "to", ExportOptions(statuses=frozenset({"partial"})), deaf)
    assert names_in(tmp_path / "to") == ["2-partial.jpg"]
    assert labels_in(tmp_path / "to") == ["car", "car"]
    assert summary.objects_left_out == {"of answers that failed, such as those that were cut off": 1}


def test_an_object_without_a_box_is_counted_where_it_cannot_be_held(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR, thing("sign", None)]})])
    summary = export(run, to=tmp_path / "to")
    assert (summary.objects, summary.objects_left_out) == (1, {"without a box": 1})


def test_the_status_of_an_image_is_that_of_the_selected_prompts(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", PARTLY, TWO)
    summary = export_runs([run], "coco", tmp_path / "to", ExportOptions(prompts=["objects"]), deaf)
    assert names_in(tmp_path / "to") == ["1-ok.jpg", "2-partial.jpg"]
    assert labels_in(tmp_path / "to") == ["car", "car", "car"]
    assert summary.left_out == {"without any answer": 2}


def test_an_image_of_unknown_size_is_never_exported(tmp_path: Path):
    run, said = write_run(tmp_path / "out", "a", PARTLY, TWO), list[str]()
    options = ExportOptions(prompts=["objects"], statuses=frozenset({"failed"}))
    summary = export_runs([run], "coco", tmp_path / "to", options, said.append)
    assert names_in(tmp_path / "to") == ["3-failed.jpg"]
    assert summary.left_out == {"answered in full": 2, "of unknown size, for they could not be read": 1}
    assert said == ["not exported: 2 images answered in full, 1 of unknown size, for they could not be read"]


def test_a_data_set_of_nothing_is_refused(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", PARTLY[2:3], TWO)
    with pytest.raises(ConfigError, match="no image is left to export; left out: 1 image without any answer"):
        export_runs([run], "coco", tmp_path / "to", tell=deaf)
    assert not (tmp_path / "to").exists()


def test_a_run_that_goes_on_gives_what_it_has_and_says_so(tmp_path: Path):
    run, said = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})]), list[str]()
    run.storage.delete("runs/a/run.json")
    assert export_runs([run], "coco", tmp_path / "to", tell=said.append).images == 1
    assert said == ["the run a is not complete: what it has so far is exported"]


def test_tables_that_do_not_belong_together_are_refused(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    other = write_run(tmp_path / "out", "b", [Made("a.jpg", {"objects": []})])
    part = "run=a/shard-00000.parquet"
    run.storage.write(f"annotations/{part}", other.storage.read("annotations/run=b/shard-00000.parquet"))
    with pytest.raises(OutputError, match="the tables are not about the same images"):
        export(run, to=tmp_path / "to")
    assert files_below(tmp_path) == [name for name in files_below(tmp_path) if name.startswith("out")]


def test_whoever_waits_is_told_how_far_it_is(tmp_path: Path):
    images = [Made(f"{number}.jpg", {"objects": []}) for number in range(3)]
    run, told = write_run(tmp_path / "out", "a", images), list[tuple[int, int]]()
    export_runs([run], "coco", tmp_path / "to", progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


# ---- which prompts ----

ALL_KINDS = [
    {"name": "mood", "kind": "classify"},
    {"name": "objects", "kind": "detect"},
    {"name": "words", "kind": "caption"},
]
ASKED = [Made("a.jpg", {"mood": [thing("calm", None)], "objects": [CAR], "words": [thing("A car.", None)]})]


def test_prompts_that_a_format_cannot_hold_are_not_in_it_and_neither_are_their_labels(tmp_path: Path):
    summary = export(write_run(tmp_path / "out", "a", ASKED, ALL_KINDS), to=tmp_path / "to")
    assert (summary.prompts, summary.objects) == (("objects",), 1)
    assert labels_in(tmp_path / "to") == ["car"]
    assert orjson.loads((tmp_path / "out/categories.json").read_bytes()) == {"car": 1}


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (["cars"], r"--prompt cars: the run a has no such prompt; it has mood \(classify\), objects \(detect\), words"),
        (
            ["words"],
            "--prompt words: is a caption prompt in a, and --format coco holds those of kind detect or segment",
        ),
    ],
)
def test_a_prompt_that_cannot_be_exported_is_named_with_what_can(tmp_path: Path, prompts: list[str], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        export(write_run(tmp_path / "out", "a", ASKED, ALL_KINDS), to=tmp_path / "to", prompts=prompts)


def test_a_run_without_any_fitting_prompt_says_what_it_has(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"words": []})], ALL_KINDS[2:])
    with pytest.raises(ConfigError, match=r"holds prompts of kind detect or segment, .* a has words \(caption\)"):
        export(run, to=tmp_path / "to")


def test_an_unknown_format_is_named_with_all_that_are_known(tmp_path: Path):
    with pytest.raises(ConfigError, match=f"--format dota: unknown; allowed: {', '.join(FORMATS)}"):
        export_runs([write_run(tmp_path / "out", "a", ASKED, ALL_KINDS)], "dota", tmp_path / "to")


# ---- several runs ----


def test_of_an_image_in_several_runs_the_last_one_counts_that_answered_it(tmp_path: Path):
    monday = write_run(
        tmp_path / "out",
        "monday",
        [
            Made("both.jpg", {"objects": [CAR]}),
            Made("failed-later.jpg", {"objects": [CAR]}),
            Made("only-monday.jpg", {"objects": [CAR]}),
        ],
    )
    tuesday = write_run(
        tmp_path / "out",
        "tuesday",
        [
            Made("both.jpg", {"objects": [SIGN]}),
            Made("failed-later.jpg", {"objects": None}),
            Made("never.jpg", {"objects": None}),
        ],
    )
    said = list[str]()
    summary = export_runs([monday, tuesday], "coco", tmp_path / "to", tell=said.append)
    assert list(zip(names_in(tmp_path / "to"), labels_in(tmp_path / "to"), strict=True)) == [
        ("failed-later.jpg", "car"),
        ("only-monday.jpg", "car"),
        ("both.jpg", "sign"),
    ]
    assert summary.left_out == {"without any answer": 1}
    export_runs([tuesday, monday], "coco", tmp_path / "turned", tell=said.append)
    assert dict(zip(names_in(tmp_path / "turned"), labels_in(tmp_path / "turned"), strict=True))["both.jpg"] == "car"


def test_a_run_that_is_named_twice_is_there_once(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    assert export(run, open_results(f"{tmp_path}/out@a"), to=tmp_path / "to").images == 1


def test_a_run_is_one_however_its_output_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    (tmp_path / "alias").symlink_to(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    ways = ["out@a", f"{tmp_path}/out@a", "./out/runs/a", f"file://{tmp_path}/out@a", "alias@a"]
    summary = export(*map(open_results, ways), to=tmp_path / "to")
    assert (summary.images, len(summary.runs)) == (1, 1)


def test_runs_are_joined_over_the_prompts_that_all_have_asked(tmp_path: Path):
    first = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    second = write_run(tmp_path / "out", "b", [Made("b.jpg", {"objects": [CAR], "outlines": [SIGN]})], TWO)
    said = list[str]()
    summary = export_runs([first, second], "coco", tmp_path / "to", tell=said.append)
    assert (summary.images, summary.objects, summary.prompts) == (2, 2, ("objects",))
    assert said == ["not exported, for not all of the runs have asked it: outlines"]
    with pytest.raises(
        ConfigError, match=r"--prompt outlines: the run a has no such prompt; it has objects \(detect\)"
    ):
        export(first, second, to=tmp_path / "more", prompts=["outlines"])


def test_images_of_one_name_from_several_sources_keep_names_of_their_own(tmp_path: Path):
    first = write_run(tmp_path / "one", "a", [Made("a.jpg", {"objects": [CAR]}, uri="file:///one/a.jpg")])
    second = write_run(tmp_path / "two", "b", [Made("a.jpg", {"objects": [SIGN]}, uri="file:///two/a.jpg")])
    export(first, second, to=tmp_path / "to")
    mark = sha256(b"file:///two/a.jpg\x000").hexdigest()[:8]
    assert names_in(tmp_path / "to") == ["a.jpg", f"a-{mark}.jpg"]


def test_an_image_that_a_run_lists_under_two_names_is_two_images(tmp_path: Path):
    uri = "file:///photos/a.jpg"
    both = [Made(name, {"objects": [CAR]}, uri=uri) for name in ("first.jpg", "second.jpg")]
    listed = write_run(tmp_path / "out", "monday", both)
    export(listed, to=tmp_path / "one")
    assert names_in(tmp_path / "one") == ["first.jpg", "second.jpg"]
    again = write_run(tmp_path / "out", "tuesday", [Made("second.jpg", {"objects": [SIGN]}, uri=uri)])
    export(listed, again, to=tmp_path / "two")
    found = list(zip(names_in(tmp_path / "two"), labels_in(tmp_path / "two"), strict=True))
    assert found == [("first.jpg", "car"), ("second.jpg", "sign")]


def test_an_image_that_runs_call_by_several_names_is_one(tmp_path: Path):
    uri = "file:///photos/a.jpg"
    first = write_run(tmp_path / "out", "a", [Made("photos/a.jpg", {"objects": [CAR]}, uri=uri)])
    second = write_run(tmp_path / "out", "b", [Made("a.jpg", {"objects": [SIGN]}, uri=uri)])
    export(first, second, to=tmp_path / "to")
    assert (names_in(tmp_path / "to"), labels_in(tmp_path / "to")) == (["a.jpg"], ["sign"])


# ---- categories ----


def test_ids_stay_what_they_are_and_new_labels_are_appended(tmp_path: Path):
    prompts = [{"name": "objects", "kind": "detect", "labels": ["tram", "car"]}]
    first = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [SIGN, CAR, thing("bus", BOX)]})], prompts)
    export(first, to=tmp_path / "one")
    assert orjson.loads((tmp_path / "out/categories.json").read_bytes()) == {"tram": 1, "car": 2, "bus": 3, "sign": 4}
    second = write_run(tmp_path / "out", "b", [Made("b.jpg", {"objects": [thing("ape", BOX), SIGN]})])
    export(second, to=tmp_path / "two")
    assert [(each["id"], each["name"]) for each in coco(tmp_path / "two")["categories"]] == [
        (1, "tram"),
        (2, "car"),
        (3, "bus"),
        (4, "sign"),
        (5, "ape"),
    ]
    assert [found["category_id"] for found in coco(tmp_path / "two")["annotations"]] == [5, 4]


def test_an_object_without_a_name_has_a_category_that_says_so(tmp_path: Path):
    export(write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [thing(None, BOX)]})]), to=tmp_path / "to")
    assert labels_in(tmp_path / "to") == ["unlabelled"]


def test_exports_at_the_same_time_give_each_label_one_id(tmp_path: Path):
    groups = [[f"label {number % 40}" for number in range(start, start + 10)] for start in range(0, 80, 5)]
    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(lambda labels: number_labels(Folder(str(tmp_path)), labels, silent), groups))
    stored = orjson.loads((tmp_path / "categories.json").read_bytes())
    assert sorted(stored.values()) == list(range(1, 41))
    assert all(stored[label] == number for mapping in given for label, number in mapping.items())


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"car": 1',
        b"[1, 2]",
        b'{"car": 0}',
        b'{"car": 2}',
        b'{"car": 1, "bus": 1}',
        b'{"car": 1, "bus": 3}',
        b'{"car": true}',
        b'{"car": 1.0}',
        b'{"car": "1"}',
        b'{"car": null}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_mapping_is_refused_and_not_numbered_anew(tmp_path: Path, damage: bytes):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    run.storage.write("categories.json", damage)
    with pytest.raises(OutputError, match=r"categories.json: .*; mend it, or delete it to number all labels anew"):
        export(run, to=tmp_path / "to")
    assert run.storage.read("categories.json") == damage


def test_an_output_that_takes_no_mapping_is_said_and_the_export_goes_on(tmp_path: Path):
    run, said = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})]), list[str]()
    (tmp_path / "out/.guard").mkdir()  # where the lock for a change would lie
    assert export_runs([run], "coco", tmp_path / "to", tell=said.append).objects == 1
    assert len(said) == 1
    assert said[0].startswith("the ids of new labels are kept for this export only: ")
    assert labels_in(tmp_path / "to") == ["car"]


def test_the_mapping_of_an_output_in_a_bucket_lies_in_the_bucket(bucket: pafs.S3FileSystem, tmp_path: Path):
    first = write_run("s3://tables/made", "a", [Made("a.jpg", {"objects": [SIGN]})])
    export(first, to=tmp_path / "one")
    export(write_run("s3://tables/made", "b", [Made("b.jpg", {"objects": [CAR, SIGN]})]), to=tmp_path / "two")
    with bucket.open_input_file("tables/made/categories.json") as file:
        assert orjson.loads(file.read()) == {"sign": 1, "car": 2}
    assert [found["category_id"] for found in coco(tmp_path / "two")["annotations"]] == [2, 1]


# ---- names ----


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("a/b c/é😀.jpg", "a/b c/é😀.jpg"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("C:\\windows\\x.jpg", "C__windows_x.jpg"),
        ("c:/x.jpg", "c_/x.jpg"),
        ("a//./b/../x.jpg", "a/b/x.jpg"),
        ("a\0b\nc\u2028.jpg", "a_b_c_.jpg"),
        ("name\\xff.jpg", "name_xff.jpg"),
        (" a / b.jpg ", "_a_/_b.jpg_"),
        ("", "image"),
        ("../..", "image"),
        ("a.txt/b.jpg", "a.txt_/b.jpg"),
        ("metadata.parquet/b.jpg", "metadata.parquet_/b.jpg"),
        (".hidden/.x.jpg", "_hidden/_x.jpg"),
    ],
)
def test_a_name_leads_nowhere_else_and_fits_on_one_line(file_name: str, name: str):
    assert clean_name(file_name) == name


@given(st.lists(st.text(max_size=300) | st.sampled_from(["..", ".", "", "x" * 300 + ".jpg"]), max_size=20))
def test_whatever_an_image_is_called_its_name_is_a_path_inside_the_folder(parts: list[str]):
    name = clean_name("/".join(parts))
    assert name.splitlines() == [name]
    assert len(name.encode()) <= MAX_NAME_BYTES + 210
    for part in name.split("/"):
        assert part not in ("", ".", "..")
        assert len(part.encode()) <= 200
    assert clean_name(name) == name


def test_names_differ_where_only_the_suffix_did(tmp_path: Path):
    names = Names(by_stem=True)
    assert [names.take(name, name) for name in ("d/a.jpg", "d/a.png", "a.png", "d/a.png.png")] == [
        "d/a.jpg",
        "d/a.png.png",
        "a.png",
        "d/a.png.png.png",
    ]
    mark = sha256(b"elsewhere\x000").hexdigest()[:8]
    assert names.take("d/a.jpg", "elsewhere") == "d/a.jpg.jpg"
    assert names.take("d/a.jpg", "elsewhere") == f"d/a-{mark}.jpg"


def test_a_converted_picture_keeps_its_name_and_gets_a_suffix_that_is_true():
    names = Names(by_stem=False)
    assert names.take("scene.heic", "1", "JPEG") == "scene.heic.jpg"
    assert names.take("scene.JPG", "2", "JPEG") == "scene.JPG"
    assert names.take("photo?id=7", "3", "PNG") == "photo?id=7.png"
    assert names.take("really.jpg", "4", "PNG") == "really.jpg.png"


# ---- the folder ----


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    for to, sentence in [
        (tmp_path / "out", "is not empty, and holds no earlier export"),
        (tmp_path / "out/runs/a/config.yaml", "is a file; give a folder"),
    ]:
        before = files_below(tmp_path)
        with pytest.raises(ConfigError, match=sentence):
            export(run, to=to, overwrite=True)
        assert files_below(tmp_path) == before


def test_only_an_earlier_export_is_replaced_and_only_if_that_is_asked_for(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    to = tmp_path / "deep/er/to"
    export(run, to=to)
    (to / "left-over").touch()
    with pytest.raises(ConfigError, match="holds an earlier export; --overwrite replaces the folder"):
        export(run, to=to)
    export(run, to=to, overwrite=True)
    assert files_below(to.parent) == ["to", "to/annotations.json", f"to/{MARK}"]


@pytest.mark.parametrize("mode", [None, "copy", "link"])
def test_an_export_that_the_run_is_about_is_not_replaced_by_another_of_it(tmp_path: Path, mode: Any):
    to = tmp_path / "to"
    export(
        write_run(tmp_path / "1/out", "a", [pictured(tmp_path / "in", "a.png", {"objects": []})]),
        to=to,
        pictures="copy",
    )
    (tmp_path / "alias").symlink_to(to / "images")
    for uri in ((to / "images/a.png").as_uri(), (tmp_path / "alias/a.png").as_uri()):
        run = write_run(tmp_path / "2/out", "a", [Made("a.png", {"objects": []}, SIZE, uri)])
        with pytest.raises(ConfigError, match=r"to/images/a.png', which the run is about and --overwrite would delete"):
            export(run, to=to, pictures=mode, overwrite=True)
    assert files_below(to) == ["annotations.json", "images", "images/a.png", MARK]
    assert (to / "images/a.png").read_bytes() == (tmp_path / "in/a.png").read_bytes()


def test_links_in_an_export_that_the_run_is_about_are_kept_too(tmp_path: Path):
    to = tmp_path / "to"
    export(
        write_run(tmp_path / "1/out", "a", [pictured(tmp_path / "in", "a.png", {"objects": []})]),
        to=to,
        pictures="link",
    )
    run = write_run(tmp_path / "2/out", "a", [Made("a.png", {"objects": []}, SIZE, (to / "images/a.png").as_uri())])
    with pytest.raises(ConfigError, match="which the run is about"):
        export(run, to=to, overwrite=True)
    # its own source lies elsewhere
    export(open_results(f"{tmp_path}/1/out@a"), to=to, pictures="link", overwrite=True)
    assert (to / "images/a.png").is_file()


@pytest.mark.parametrize("place", ["out/images/export", "out/runs/a", "out/runs/a/export", "out/annotations/run=a/x"])
def test_a_folder_among_the_tables_is_refused(tmp_path: Path, place: str):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    before = files_below(tmp_path)
    with pytest.raises(ConfigError, match=r"lies in \w+/ of the output .*, which is for its runs alone|is not empty"):
        export(run, to=tmp_path / place)
    assert files_below(tmp_path) == before


def test_an_export_that_holds_the_tables_of_the_run_is_not_replaced(tmp_path: Path):
    export(write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})]), to=tmp_path / "to")
    run = write_run(tmp_path / "to/out", "b", [Made("a.jpg", {"objects": [CAR]})])
    with pytest.raises(ConfigError, match=r"--to .*: holds the output .*/to/out of a run that is exported"):
        export(run, to=tmp_path / "to", overwrite=True)
    assert run.storage.exists("runs/b/run.json")


@pytest.mark.parametrize("mark", [b"", b"[]", b'{"format": "coco"}', b"\xff", b'{"name": "somebody else\'s"}'])
def test_a_file_that_looks_like_our_mark_does_not_give_a_folder_away(tmp_path: Path, mark: bytes):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / MARK).write_bytes(mark)
    with pytest.raises(ConfigError, match="holds no earlier export"):
        export(run, to=tmp_path / "to", overwrite=True)
    assert (tmp_path / "to" / MARK).read_bytes() == mark


def test_an_empty_folder_is_taken(tmp_path: Path):
    (tmp_path / "to").mkdir()
    export(write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})]), to=tmp_path / "to")
    assert names_in(tmp_path / "to") == ["a.jpg"]


def test_the_same_export_has_the_same_bytes(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", PARTLY, TWO)
    for name in ("one", "two"):
        export_runs([run], "coco", tmp_path / name, tell=deaf)
    for name in files_below(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_goes_wrong_leaves_the_earlier_export_and_nothing_else(tmp_path: Path):
    for error in (KeyboardInterrupt, ConfigError):
        with pytest.raises(error):
            _write_half(tmp_path / "to", error)
    assert files_below(tmp_path) == []
    with (
        pytest.raises(OutputError, match="cannot be written: No such file"),
        new_folder(tmp_path / "to", overwrite=True) as folder,
    ):
        (folder / "missing/file").touch()
    assert files_below(tmp_path) == []


def _write_half(to: Path, error: type[BaseException]) -> None:
    with new_folder(to, overwrite=True) as folder:
        (folder / "half").touch()
        raise error


def test_a_place_that_cannot_be_made_is_one_sentence(tmp_path: Path):
    run = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    with pytest.raises(ConfigError, match=r"--to .*/config.yaml/x/to: .*/config.yaml is a file; give a folder"):
        export(run, to=tmp_path / "out/runs/a/config.yaml/x/to")
    with pytest.raises(ConfigError, match="should be a folder of this machine"):
        export(run, to=Path("s3://bucket/to"))
    with pytest.raises(ConfigError, match="File name too long"):
        export(run, to=tmp_path / ("x" * 300))


# ---- pictures ----


def open_sample(sample_run: str) -> RunResults:
    return open_results(sample_run)


def boxes_of(run: RunResults) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """The label and the corners of each object that was asked for by box, by the name of the image."""
    return {
        each.image["file_name"]: [
            (row["label"], tuple(row[edge] for edge in ("xmin", "ymin", "xmax", "ymax")))
            for row in each.annotations
            if row["prompt"] == "objects"
        ]
        for each in run
    }


def test_copied_pictures_stand_upright_and_objects_lie_where_their_boxes_are(sample_run: str, tmp_path: Path):
    run = open_sample(sample_run)
    export(run, to=tmp_path / "to", prompts=["objects"], pictures="copy")
    images = {image["id"]: image for image in coco(tmp_path / "to")["images"]}
    names = {each["id"]: each["name"] for each in coco(tmp_path / "to")["categories"]}
    looked_at = 0
    for found in coco(tmp_path / "to")["annotations"]:
        image = images[found["image_id"]]
        with Image.open(tmp_path / "to/images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert picture.getexif().get(274, 1) == 1
            x, y, width, height = found["bbox"]
            pixel = picture.convert("RGB").getpixel((int(x + width / 2), int(y + height / 2)))
        label = names[found["category_id"]].split()[0]
        assert isinstance(pixel, tuple)
        nearest = min(COLORS, key=lambda name: sum(abs(a - b) for a, b in zip(pixel, COLORS[name], strict=True)))
        assert nearest == label, (image["file_name"], label, pixel)
        looked_at += 1
    assert looked_at == 89
    assert [image["file_name"] for image in images.values()][:3] == [
        "converted/indexed.bmp.png",
        "converted/indexed.gif.png",
        "converted/photo.avif.jpg",
    ]


def test_what_stands_upright_goes_byte_for_byte_or_as_a_link(sample_run: str, tmp_path: Path):
    run = open_sample(sample_run)
    for mode in ("copy", "link"):
        export(run, to=tmp_path / mode, prompts=["objects"], pictures=mode)
    as_it_is = ["formats/scene.jpg", "formats/scene.png", "formats/scene.webp", "señal über №7.png"]
    for name in as_it_is:
        assert (tmp_path / "copy/images" / name).read_bytes() == (SAMPLES / name).read_bytes()
        assert (tmp_path / "link/images" / name).readlink() == SAMPLES / name
    for name in ("orientation/exif-6.jpg", "formats/scene.heic.jpg", "converted/print.jpg"):
        assert not (tmp_path / "link/images" / name).is_symlink()
        assert (tmp_path / "link/images" / name).read_bytes() == (tmp_path / "copy/images" / name).read_bytes()
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    assert files_below(tmp_path / "copy") == files_below(tmp_path / "link")


def test_without_pictures_names_are_those_of_the_source(sample_run: str, tmp_path: Path):
    run = open_sample(sample_run)
    export(run, to=tmp_path / "to", prompts=["objects"])
    assert names_in(tmp_path / "to") == [each.image["file_name"] for each in run]
    assert files_below(tmp_path / "to") == ["annotations.json", MARK]


async def test_a_picture_out_of_an_archive_is_copied_where_a_link_was_asked_for(make: MakeConfig, tmp_path: Path):
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        archive.add(SAMPLES / "formats/scene.png", "scene.png")
    summary = await annotate(make(source={"uri": str(tmp_path / "in.tar")}))
    run = open_results(f"{summary.output}@{summary.run}")
    export(run, to=tmp_path / "to", prompts=["objects"], pictures="link")
    (name,) = names_in(tmp_path / "to")
    assert (tmp_path / "to/images" / name).read_bytes() == (SAMPLES / "formats/scene.png").read_bytes()


@pytest.fixture
def two_pictures(tmp_path: Path) -> RunResults:
    """A run of `changed.png` and `good.png`, the first of which is another picture by now."""
    (tmp_path / "in").mkdir()
    good = (SAMPLES / "formats/scene.png").read_bytes()
    images = []
    for name in ("changed.png", "good.png"):
        path = tmp_path / "in" / name
        path.write_bytes(good)
        digest = sha256(good).hexdigest()
        images.append(Made(name, {"objects": [CAR]}, size=(720, 540), uri=path.as_uri(), sha256=digest))
    (tmp_path / "in/changed.png").write_bytes((SAMPLES / "nothing.png").read_bytes())
    return write_run(tmp_path / "out", "a", images)


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_an_image_whose_picture_has_changed_is_left_out_and_named(two_pictures: RunResults, tmp_path: Path, mode: Any):
    said = list[str]()
    options = ExportOptions(pictures=mode)
    summary = export_runs([two_pictures], "coco", tmp_path / "to", options, said.append)
    assert (summary.images, summary.lost_pictures) == (1, 1)
    assert summary.left_out == {"whose picture is gone or has changed": 1}
    assert said == ["left out: 'changed.png' is another image than the one that was labelled"]
    assert files_below(tmp_path / "to/images") == ["good.png"]
    assert names_in(tmp_path / "to") == ["good.png"]


def test_when_all_pictures_are_gone_there_is_no_data_set(two_pictures: RunResults, tmp_path: Path):
    (tmp_path / "in/good.png").unlink()
    with pytest.raises(ConfigError, match="no image is left to export; left out: 2 images whose picture is gone"):
        export_runs([two_pictures], "coco", tmp_path / "to", ExportOptions(pictures="copy"), deaf)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


# ---- the command ----


def test_the_command_says_what_is_in_it_and_ends_with_1_if_pictures_are_gone(two_pictures: RunResults, tmp_path: Path):
    done = pixscribe("export", f"{tmp_path}/out@a", "--format", "coco", "--to", f"{tmp_path}/to", "--copy-images")
    assert done.returncode == 1, done.stderr
    assert done.stderr == "pixscribe: left out: 'changed.png' is another image than the one that was labelled\n"
    assert done.stdout.splitlines() == [
        "images      1; left out: 1 whose picture is gone or has changed",
        "objects     1",
        "prompts     objects",
        "categories  1",
        f"data set    {tmp_path}/to (coco)",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--format", "coco", "--copy-images", "--link-images"),
            "--copy-images and --link-images: give one of the two",
        ),
        (("--format", "dota"), "--format dota: unknown; allowed: coco, yolo, yolo-seg, voc, cvat"),
        (("--format", "coco", "--prompt", "x"), "--prompt x: the run a has no such prompt; it has objects (detect)"),
        (("--format", "coco", "--status", "good"), "good"),
        (("--format", "coco", "--to", "s3://b/x"), "--to s3://b/x: should be a folder of this machine"),
        (("--format", "coco", "--to", ""), "--to '': should be a folder of this machine, which may not exist yet"),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
):
    write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [CAR]})])
    to = () if "--to" in arguments else ("--to", f"{tmp_path}/to")
    with pytest.raises(SystemExit, match="2"):
        main(["export", f"{tmp_path}/out@a", *to, *arguments])
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert sentence in said.err


def test_an_export_of_no_run_says_how_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--to", f"{tmp_path}/to", "--format", "coco"])
    assert "RUN: should be one run at least, as OUTPUT@RUN_ID or the folder" in capsys.readouterr().err


def test_words_are_not_counted_as_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path / "out", "a", ASKED, ALL_KINDS)
    with pytest.raises(SystemExit, match="0"):
        main(["export", f"{tmp_path}/out@a", "--to", f"{tmp_path}/to", "--format", "huggingface"])
    assert "objects     1\ntexts       2 (captions, answers and classes)\n" in capsys.readouterr().out


def test_the_help_names_every_format(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["export", "--help"])
    words = set(re.split(r"[^a-z-]+", capsys.readouterr().out))
    assert set(FORMATS) <= words


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_export_that_is_terminated_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, code: int):
    images = [Made(f"{index}.jpg", {"objects": [CAR]}, uri=f"file://{tmp_path}/x/{index}") for index in range(1500)]
    write_run(tmp_path / "out", "a", images)
    command = [str(Path(sys.executable).with_name("pixscribe")), "export", f"{tmp_path}/out@a", "--format", "voc"]
    with subprocess.Popen([*command, "--to", f"{tmp_path}/to"], stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob(".pixscribe-*.tmp/Annotations/*.xml")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(number)
        assert process.wait(30) == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
