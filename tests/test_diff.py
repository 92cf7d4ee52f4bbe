import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.cli import main
from flows.diff_lines import diff_lines
from pixscribe.diff import compare_runs
from pixscribe.diff import result as result_module
from pixscribe.diff.columns import Status
from pixscribe.diff.configs import ConfigChange
from pixscribe.diff.objects import Objects, Pair, State, pair_objects
from pixscribe.diff.pairing import ImageIndex, index_images, pair_images
from pixscribe.diff.result import Counts, LabelCounts, RunDiff, percent
from pixscribe.emulator import Emulator
from pixscribe.errors import ConfigError, OutputError
from pixscribe.objects import BUCKET_SCHEMES
from pixscribe.results import RunResults, open_results
from tests.conftest import SAMPLES, MakeConfig, annotate, pixscribe
from tests.written_runs import Seen, Thing, run_config, write_run

CAT, DOG, CUP = (0, 0, 100, 100), (200, 0, 300, 100), (400, 0, 500, 100)
"""Boxes far from each other."""


def seen(name: str, *things: Thing, **options: Any) -> Seen:
    return Seen(name, {"objects": things}, **options)


def runs_of(
    tmp_path: Path, before: Sequence[Seen], after: Sequence[Seen], prompts: Mapping[str, Any] | None = None
) -> tuple[RunResults, RunResults]:
    config = run_config(tmp_path / "out", prompts or {"objects": "detect"})
    return write_run(config, "monday", before, shard_size=2), write_run(config, "tuesday", after, shard_size=3)


def compare(
    tmp_path: Path, before: Sequence[Seen], after: Sequence[Seen], prompts: Mapping[str, Any] | None = None
) -> RunDiff:
    return compare_runs(*runs_of(tmp_path, before, after, prompts))


@pytest.fixture
def constructed(tmp_path: Path) -> tuple[RunResults, RunResults]:
    """Two runs with one change of each kind; `a.png` is the only image in which nothing changed."""
    prompts: dict[str, Any] = {
        "objects": {"kind": "detect", "text": "Find all."},
        "words": "caption",
        "kinds": "classify",
    }
    before = [
        Seen("a.png", {"objects": [Thing("cat", CAT), Thing("dog", DOG)], "words": "pets", "kinds": [Thing("indoor")]}),
        # 10 of 100 columns further: 9,000 of 11,000 px² are shared, IoU 9/11
        Seen("b.png", {"objects": [Thing("cat", CAT), Thing("cup", CUP)], "words": "a cat"}),
        Seen("c.png", {"objects": [Thing("cat", CAT), Thing("dog", DOG)], "kinds": [Thing("indoor"), Thing("night")]}),
        Seen("d.png", {"objects": [Thing("cat", CAT), Thing("cat", DOG)]}),
        seen("e.png", content=b"one file"),
        seen("f.png", Thing("cup", CUP), size=(1000, 1000)),
        seen("only-before.png", Thing("cat", CAT)),
    ]
    after = [
        before[0],
        Seen("b.png", {"objects": [Thing("cat", (10, 0, 110, 100)), Thing("cup", CUP)], "words": "a dog"}),
        Seen("c.png", {"objects": [Thing("wolf", CAT), Thing("cup", CUP)], "kinds": [Thing("indoor"), Thing("day")]}),
        Seen("d.png", {}, {"objects": "blocked"}),
        seen("e.png", content=b"another file"),
        seen("f.png", Thing("cup", CUP), size=(2000, 1000)),
        seen("only-after.png", Thing("cat", CAT), Thing("cup", CUP)),
    ]
    monday = write_run(run_config(tmp_path / "first", prompts), "monday", before, shard_size=2)
    prompts["objects"] = {"kind": "detect", "text": "Find all, please."}
    config = run_config(tmp_path / "second", prompts, model={"name": "gemini-3.5-pro"})
    return monday, write_run(config, "tuesday", after)


def test_each_change_of_a_constructed_case_is_named(constructed: tuple[RunResults, RunResults]):
    diff = compare_runs(*constructed)
    assert {name: prompt.counts for name, prompt in diff.prompts.items()} == {
        # same: two of a.png, the cup of b.png and of f.png; gone: the dog of c.png and both of d.png
        "objects": Counts(same=4, moved=1, relabelled=1, new=1, gone=3),
        "words": Counts(same=1, relabelled=1),
        "kinds": Counts(same=2, new=1, gone=1),
    }
    assert diff.counts.changed_share == 9 / 16
    assert {change.file_name: change.words() for change in diff.changed} == {
        "b.png": "1 moved, 1 relabelled",
        "c.png": "1 relabelled, 2 new, 2 gone",
        "d.png": "2 gone; ok → partial (blocked)",
        "e.png": "another file",
        "f.png": "1000 x 1000 px → 2000 x 1000 px",
    }
    images = diff.images
    assert (images.compared, images.changed, images.objects_changed) == (6, 5, 3)
    assert (images.status_changed, images.content_changed, images.size_changed) == (1, 1, 1)
    assert dict(diff.statuses) == {(Status("ok", None), Status("partial", "blocked")): 1}
    assert (diff.added.images, diff.added.objects, diff.added.names) == (1, 2, ["only-after.png"])
    assert (diff.removed.images, diff.removed.objects, diff.removed.names) == (1, 1, ["only-before.png"])


def test_labels_are_counted_on_both_sides(constructed: tuple[RunResults, RunResults]):
    objects = compare_runs(*constructed).prompts["objects"]
    assert objects.labels == {
        "cat": LabelCounts(same=1, moved=1, relabelled_from=1, gone=2),
        "dog": LabelCounts(same=1, gone=1),
        "cup": LabelCounts(same=2, new=1),
        "wolf": LabelCounts(relabelled_to=1),
    }
    assert [(label, counts.before, counts.after) for label, counts in objects.labels_by_change()] == [
        ("cat", 5, 2),
        ("cup", 2, 3),
        ("dog", 2, 1),
        ("wolf", 0, 1),
    ]
    assert objects.relabellings == {("cat", "wolf"): 1}
    assert (objects.answers_lost, objects.answers_gained) == (1, 0)


def test_what_the_runs_were_told_differently_is_said_and_what_decides_comes_first(
    constructed: tuple[RunResults, RunResults], tmp_path: Path
):
    assert compare_runs(*constructed).config == (
        ConfigChange("prompts.objects.text", "Find all.", "Find all, please."),
        ConfigChange("model.name", "gemini-3.5-flash", "gemini-3.5-pro"),
        ConfigChange("output.uri", str(tmp_path / "first"), str(tmp_path / "second")),
    )


def test_a_run_differs_in_nothing_from_itself(constructed: tuple[RunResults, RunResults]):
    diff = compare_runs(constructed[0], constructed[0])
    assert diff.is_empty
    assert diff.counts == Counts(same=15)
    assert (diff.images.compared, diff.images.changed, diff.changed, diff.config) == (7, 0, [], ())
    assert "compared  no difference: 7 images, 15 objects" in list(diff_lines(diff, 80))


def test_the_reverse_comparison_swaps_new_and_gone(constructed: tuple[RunResults, RunResults]):
    there, back = compare_runs(*constructed), compare_runs(*reversed(constructed))
    assert back.counts == Counts(
        there.counts.same, there.counts.moved, there.counts.relabelled, there.counts.gone, there.counts.new
    )
    assert (back.added.names, back.removed.names) == (there.removed.names, there.added.names)


def test_the_counts_of_an_image_are_those_of_all_its_prompts(tmp_path: Path):
    before = Seen("a.png", {"objects": [Thing("cat", CAT), Thing("cup", CUP)], "words": "a cat", "kinds": [Thing("x")]})
    after = Seen("a.png", {"objects": [Thing("cat", CAT), Thing("cup", CUP)], "words": "a dog", "kinds": [Thing("x")]})
    diff = compare(tmp_path, [before], [after], {"objects": "detect", "words": "caption", "kinds": "classify"})
    assert diff.changed[0].counts == diff.counts == Counts(same=3, relabelled=1)


# ---- objects

EDGES = st.tuples(st.integers(0, 12), st.integers(1, 12))
BOXES = st.builds(lambda x, y: (x[0], y[0], x[0] + x[1], y[0] + y[1]), EDGES, EDGES)
LISTS = st.lists(st.tuples(st.sampled_from(["cat", "dog", None]), BOXES | st.none()), max_size=8)


def objects(things: Sequence[tuple[str | None, Any]], size: tuple[int, int] = (30, 30)) -> Objects:
    corners = [[None] * 4 if box is None else box for _, box in things]
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    return Objects([label for label, _ in things], boxes, lambda _: ((), None), size)


def count(pairs: Sequence[Pair]) -> Counts:
    counts = Counts()
    for pair in pairs:
        counts.add(pair.state)
    return counts


@given(LISTS, LISTS, st.booleans())
def test_every_object_is_in_one_pair_and_counts_are_the_same_from_both_sides(before, after, is_text):
    pairs = list(pair_objects(objects(before), objects(after), is_text=is_text))
    assert sorted(pair.before for pair in pairs if pair.before is not None) == list(range(len(before)))
    assert sorted(pair.after for pair in pairs if pair.after is not None) == list(range(len(after)))
    there, back = count(pairs), count(list(pair_objects(objects(after), objects(before), is_text=is_text)))
    assert (there.before, there.after) == (len(before), len(after))
    assert (there.same, there.moved, there.relabelled) == (back.same, back.moved, back.relabelled)
    assert (there.new, there.gone) == (back.gone, back.new)


@given(LISTS)
def test_the_order_of_objects_does_not_matter(things):
    pairs = pair_objects(objects(things), objects(things[::-1]), is_text=False)
    assert count(list(pairs)) == Counts(same=len(things))


def test_the_same_label_is_preferred_to_the_better_overlap():
    before = objects([("cat", (0, 0, 10, 10))])
    after = objects([("dog", (0, 0, 10, 10)), ("cat", (0, 0, 10, 7))])
    pairs = list(pair_objects(before, after, is_text=False))
    assert pairs == [Pair("moved", 0, 1, 0.7), Pair("new", None, 0)]


@pytest.mark.parametrize(
    ("columns", "same_iou", "state"),
    [
        pytest.param(1, 0.99, "same", id="one-in-a-hundred"),
        pytest.param(2, 0.99, "moved", id="two-in-a-hundred"),
        pytest.param(2, 0.98, "same", id="two-are-allowed"),
        pytest.param(50, 0.99, "moved", id="half"),
    ],
)
def test_how_much_a_box_may_change_and_be_the_same(columns: int, same_iou: float, state: State):
    before, after = objects([("cat", (0, 0, 100, 100))]), objects([("cat", (0, 0, 100 - columns, 100))])
    (pair,) = pair_objects(before, after, is_text=False, same_iou=same_iou)
    assert pair == Pair(state, 0, 0, (100 - columns) / 100)


def test_less_than_half_is_another_object():
    before, after = objects([("cat", (0, 0, 100, 100))]), objects([("cat", (0, 0, 100, 49))])
    assert [pair.state for pair in pair_objects(before, after, is_text=False)] == ["gone", "new"]


SQUARE = (0, 0, 100, 0, 100, 100, 0, 100)


@pytest.mark.parametrize(
    ("outline", "state"),
    [
        pytest.param(SQUARE, "same", id="equal"),
        pytest.param((*SQUARE, 0, 50), "same", id="a-point-more-on-an-edge"),
        pytest.param((0, 0, 100, 0, 0, 100), "moved", id="half-of-it"),
        pytest.param((), "moved", id="no-outline-any-more"),
    ],
)
def test_an_outline_that_covers_something_else_in_the_same_box_has_moved(tmp_path: Path, outline, state: str):
    before, after = (seen("a.png", Thing("cat", CAT, ring)) for ring in (SQUARE, outline))
    counts = compare(tmp_path, [before], [after], {"objects": "segment"}).counts
    assert counts == Counts(**{state: 1})


def test_an_image_of_another_size_is_compared_as_shares_of_its_sides(tmp_path: Path):
    # the thousandths are the same, the pixels are not
    before = seen("a.png", Thing("cat", CAT, SQUARE))
    after = seen("a.png", Thing("cat", CAT, SQUARE), size=(500, 2000))
    diff = compare(tmp_path, [before], [after], {"objects": "segment"})
    assert diff.counts == Counts(same=1)
    assert diff.changed[0].words() == "1000 x 1000 px → 500 x 2000 px"


def test_a_text_that_is_said_otherwise_is_relabelled_and_classes_are_a_set(tmp_path: Path):
    before = Seen("a.png", {"words": "a cat", "kinds": [Thing("x"), Thing("y")]})
    after = Seen("a.png", {"words": "a dog", "kinds": [Thing("y"), Thing("z")]})
    prompts = compare(tmp_path, [before], [after], {"words": "caption", "kinds": "classify"}).prompts
    assert prompts["words"].counts == Counts(relabelled=1)
    assert prompts["words"].labels == {}
    assert prompts["kinds"].counts == Counts(same=1, new=1, gone=1)


def test_an_answer_that_came_back_brings_new_objects(tmp_path: Path):
    before = Seen("a.png", {}, {"objects": "timeout"})
    diff = compare(tmp_path, [before], [seen("a.png", Thing("cat", CAT))])
    assert diff.counts == Counts(new=1)
    assert diff.prompts["objects"].answers_gained == 1
    assert diff.changed[0].words() == "1 new; failed (timeout) → ok"


def test_another_reason_to_fail_is_another_status(tmp_path: Path):
    failed = [Seen("a.png", {}, {"objects": code}) for code in ("timeout", "read_error")]
    diff = compare(tmp_path, failed[:1], failed[1:])
    assert diff.changed[0].words() == "failed (timeout) → failed (read_error)"
    assert (diff.images.content_changed, diff.images.size_changed) == (0, 0)


# ---- images


def test_the_order_of_images_and_the_cut_into_parts_do_not_matter(tmp_path: Path):
    images = [seen(f"{number}.png", Thing("cat", CAT)) for number in range(20)]
    changed = [seen("7.png", Thing("dog", CAT)), *(image for image in images[::-1] if image.file_name != "7.png")]
    diff = compare(tmp_path, images, changed)
    assert diff.counts == Counts(same=19, relabelled=1)
    assert [change.file_name for change in diff.changed] == ["7.png"]
    assert (diff.added.images, diff.removed.images) == (0, 0)


def test_of_images_with_one_name_those_with_the_same_uri_belong_together(tmp_path: Path):
    first, second = (
        seen("x.png", Thing(label, CAT), uri=f"file:///{label}.png", content=label.encode()) for label in ("cat", "dog")
    )
    diff = compare(tmp_path, [first, second, seen("y.png")], [seen("y.png"), second])
    assert (diff.counts, diff.images.changed) == (Counts(same=1), 0)
    assert (diff.removed.images, diff.removed.objects, diff.added.images) == (1, 1, 0)


def test_of_images_with_one_name_and_other_uris_the_first_is_the_first(tmp_path: Path):
    def three(folder: str) -> list[Seen]:
        return [seen("x.png", Thing(str(n), CAT), uri=f"file:///{folder}/{n}", content=b"%d" % n) for n in range(3)]

    diff = compare(tmp_path, three("here"), three("there"))
    assert (diff.counts, diff.images.compared, diff.images.changed) == (Counts(same=3), 3, 0)


NAMES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=12)


def index_of(images: Sequence[tuple[int, int]]) -> ImageIndex:
    names, exact = ([hash(key) for key in keys] for keys in ([name for name, _ in images], images))
    return ImageIndex(np.array([0, len(images)]), np.array(names, dtype=np.int64), np.array(exact, dtype=np.int64))


@given(NAMES, NAMES)
def test_as_many_images_of_each_name_are_pairs_as_both_runs_have(before, after):
    partners = pair_images(index_of(before), index_of(after)).tolist()
    pairs = [(mine, there) for mine, there in enumerate(partners) if there >= 0]
    assert len({there for _, there in pairs}) == len(pairs)
    assert all(before[mine][0] == after[there][0] for mine, there in pairs)
    names_before, names_after = ([name for name, _ in images] for images in (before, after))
    assert len(pairs) == sum(min(names_before.count(name), names_after.count(name)) for name in set(names_before))
    exact = sum(before[mine] == after[there] for mine, there in pairs)
    assert exact == sum(min(before.count(image), after.count(image)) for image in set(before))


def test_a_prompt_of_one_run_only_is_said_once_and_changes_nothing(tmp_path: Path):
    image = Seen("a.png", {"objects": [Thing("cat", CAT)], "more": [Thing("dog", DOG)]}, {"other": "blocked"})
    before = write_run(
        run_config(tmp_path / "out", {"objects": "detect", "other": "ask"} | _ask("other")), "a", [image]
    )
    after = write_run(run_config(tmp_path / "out", {"more": "detect", "objects": "detect"}), "b", [image])
    diff = compare_runs(before, after)
    assert (list(diff.prompts), diff.prompts_before, diff.prompts_after) == (["objects"], ("other",), ("more",))
    assert (diff.counts, diff.is_empty, diff.config) == (Counts(same=1), True, ())
    lines = list(diff_lines(diff, 100))
    assert "only before  other: not compared" in lines
    assert "only after   more: not compared" in lines


def _ask(name: str) -> dict[str, Any]:
    return {name: {"kind": "ask", "text": "Is there a cat?"}}


def test_runs_without_a_common_prompt_are_compared_by_their_images(tmp_path: Path):
    config = run_config(tmp_path / "out", {"one": "detect"})
    before = write_run(config, "a", [Seen("a.png", {"one": [Thing("cat", CAT)]}), Seen("b.png")])
    after = write_run(run_config(tmp_path / "out", {"two": "detect"}), "b", [Seen("a.png", content=b"else")])
    diff = compare_runs(before, after)
    assert (diff.counts, diff.images.content_changed, diff.removed.images) == (Counts(), 1, 1)
    assert list(diff_lines(diff, 80))[-1] == "  a.png  another file"


def test_a_prompt_that_is_asked_for_is_the_only_one_that_is_compared(constructed: tuple[RunResults, RunResults]):
    diff = compare_runs(*constructed, prompts=["words"])
    assert diff.counts == Counts(same=1, relabelled=1)
    assert diff.images.status_changed == 0
    with pytest.raises(ConfigError, match="--prompt: 'wrods': is asked by neither run; allowed: objects, words, kinds"):
        compare_runs(*constructed, prompts=["wrods"])


def test_a_folder_and_a_bucket_can_be_compared(tmp_path: Path, bucket: pafs.S3FileSystem):
    images = [seen("a.png", Thing("cat", CAT)), seen("b.png")]
    before = write_run(run_config(tmp_path / "out", {"objects": "detect"}), "monday", images)
    config = run_config("s3://tables/diff", {"objects": "detect"})
    after = write_run(config, "tuesday", [seen("a.png", Thing("dog", CAT)), images[1]])
    assert compare_runs(before, after).counts == Counts(relabelled=1)


def test_lists_that_grow_with_the_data_are_cut_and_the_counts_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(result_module, "MAX_LISTED", 2)
    monkeypatch.setattr(result_module, "MAX_LABELS", 2)
    before = [seen(f"{number}.png", Thing(f"label {number}", CAT)) for number in range(4)]
    after = [seen(f"{number}.png", Thing(f"other {number}", DOG)) for number in range(4)]
    told = compare(tmp_path, before, after).to_json()
    assert (told["images"]["changed"], len(told["changed_images"]), told["images_are_cut"]) == (4, 2, True)
    (prompt,) = told["prompts"]
    assert [line["label"] for line in prompt["labels"]] == ["label 0", "other 0"]
    assert (prompt["other_labels"]["new"], prompt["other_labels"]["gone"]) == (3, 3)


def test_tables_of_other_images_are_named(tmp_path: Path):
    results, _ = runs_of(tmp_path, [seen("a.png"), seen("b.png"), seen("c.png")], [seen("a.png")])
    folder = tmp_path / "out/responses/run=monday"
    (folder / "shard-00000.parquet").write_bytes((folder / "shard-00001.parquet").read_bytes())
    with pytest.raises(OutputError, match=r"run monday, shard-00000.parquet: the tables are not about the same images"):
        compare_runs(results, results)


def test_tables_of_another_kind_are_named(tmp_path: Path):
    results, _ = runs_of(tmp_path, [seen("a.png", Thing("cat", CAT))], [seen("a.png")])
    part = tmp_path / "out/annotations/run=monday/shard-00000.parquet"
    pq.write_table(pa.table({"file_name": ["a.png"]}), part)
    with pytest.raises(OutputError, match=r"shard-00000.parquet: the tables have not the columns of a run"):
        compare_runs(results, results)


@pytest.mark.parametrize("totals", [None, [], "1", {"cost_usd": "free"}], ids=str)
def test_an_account_of_another_shape_is_named(tmp_path: Path, totals: object):
    results, _ = runs_of(tmp_path, [seen("a.png")], [])
    results.storage.write("runs/monday/run.json", json.dumps({"run": "", "status": "", "totals": totals}).encode())
    with pytest.raises(OutputError, match=r"@monday: its run\.json is no account of a run"):
        compare_runs(results, results)


def test_a_run_without_rows_is_compared_like_any_other(tmp_path: Path):
    diff = compare(tmp_path, [seen("a.png", Thing("cat", CAT))], [])
    assert (diff.images.compared, diff.removed.images, diff.removed.objects, diff.counts) == (0, 1, 1, Counts())


# ---- the command


async def test_a_changed_answer_of_the_model_is_found(make: MakeConfig, emulator: Emulator):
    source = {"uri": str(SAMPLES), "include": ["formats/scene.png", "nothing.png"]}
    prompts = [{"name": "objects", "kind": "detect"}]
    first = await annotate(make(source=source, prompts=prompts))
    changed = [{**prompts[0], "text": "Detect every object but the stars."}]
    emulator.always("blocked")
    second = await annotate(make(source=source, prompts=changed))
    runs = [f"{summary.output}@{summary.run}" for summary in (first, second)]
    diff = compare_runs(*map(open_results, runs))
    found = first.totals.objects
    assert found > 0
    assert diff.counts == Counts(gone=found)
    assert diff.config[0].key == "prompts.objects.text"
    assert {str(after) for _, after in diff.statuses} == {"failed (blocked)"}


Capture = pytest.CaptureFixture[str]


def name_of(results: RunResults) -> str:
    return f"{results.storage.uri}@{results.run_id}"


def command(capsys: Capture, *arguments: str) -> tuple[object, Any]:
    """The exit code of `pixscribe diff` and what it printed, without the time that a process takes to start."""
    with pytest.raises(SystemExit) as ended:
        main(["diff", *arguments])
    return ended.value.code, capsys.readouterr()


def test_the_command_prints_what_changed_for_people(constructed: tuple[RunResults, RunResults]):
    done = pixscribe("diff", *map(name_of, constructed))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert (
        "images   6 compared, 5 changed: 3 with changed objects, 1 with changed status, 1 with another file, "
        in done.stdout
    )
    assert "objects  14 before, 12 after: 7 same, 1 moved, 2 relabelled, 2 new, 4 gone; 56.2 % changed" in lines
    assert "  all         9      7     4      1           1    1     3   60.0 %" in lines
    assert "  1 cat became wolf" in lines
    assert "  ok → partial (blocked): 1 image" in lines
    assert "    + Find all, please." in lines
    assert "  c.png  1 relabelled, 2 new, 2 gone" in lines


def test_the_command_prints_one_json_object(constructed: tuple[RunResults, RunResults], capsys: Capture):
    told = json.loads(command(capsys, *map(name_of, constructed), "--json")[1].out)
    assert told["objects"] | {"changed_share": 0} == {
        **{"before": 14, "after": 12, "same": 7, "moved": 1, "relabelled": 2, "new": 2, "gone": 4},
        "changed_share": 0,
    }
    assert told["images"]["statuses"] == [
        {
            "before": {"name": "ok", "error_code": None},
            "after": {"name": "partial", "error_code": "blocked"},
            "images": 1,
        }
    ]
    assert told["config"][1] == {"key": "model.name", "before": "gemini-3.5-flash", "after": "gemini-3.5-pro"}
    assert (told["added_images"], told["removed_images"]) == (["only-after.png"], ["only-before.png"])
    # ten for each of 15 and of 14 objects, with those of images that only one run has
    assert [told[side]["totals"]["output_tokens"] for side in ("before", "after")] == [150, 140]


def test_the_json_of_a_run_and_itself_is_all_zeros(constructed: tuple[RunResults, RunResults], capsys: Capture):
    run = name_of(constructed[0])
    told = json.loads(command(capsys, run, run, "--json")[1].out)
    assert told["is_empty"] is True
    assert {name: told["objects"][name] for name in ("moved", "relabelled", "new", "gone", "changed_share")} == {
        **dict.fromkeys(("moved", "relabelled", "new", "gone"), 0),
        "changed_share": 0.0,
    }
    assert (told["config"], told["changed_images"], told["images"]["changed"]) == ([], [], 0)


def test_too_large_a_share_is_exit_code_1_with_a_sentence(constructed: tuple[RunResults, RunResults], capsys: Capture):
    runs = [name_of(results) for results in constructed]
    failed = pixscribe("diff", *runs, "--fail-above", "0.5")
    assert failed.returncode == 1
    assert failed.stderr == (
        "pixscribe: 9 of 16 objects changed, 56.2 % (60.0 % of objects, 50.0 % of words, 50.0 % of kinds), "
        "which is above --fail-above 0.5\n"
    )
    # 9 of 16 is not more than 0.5625
    assert command(capsys, *runs, "--fail-above", "0.5625")[0] == 0
    assert command(capsys, runs[0], runs[0], "--fail-above", "0")[0] == 0


def test_a_lost_answer_without_objects_is_a_change_too(tmp_path: Path, capsys: Capture):
    before = [seen("a.png"), seen("b.png", Thing("cup", CUP)), seen("c.png", Thing("cup", CUP))]
    after = [Seen("a.png", failed={"objects": "blocked"}), before[1], before[2]]
    runs = [name_of(results) for results in runs_of(tmp_path, before, after)]
    code, output = command(capsys, *runs, "--fail-above", "0.3", "--json")
    # the two cups are the same, and the empty answer is the third of what there was
    assert (code, json.loads(output.out)["changed_share"]) == (1, 1 / 3)
    assert output.err == (
        "pixscribe: 1 of 3 objects and 1 lost answer without any changed, 33.3 %, which is above --fail-above 0.3\n"
    )
    assert command(capsys, *runs, "--fail-above", "0.34")[0] == 0


@pytest.mark.parametrize(
    ("after", "prompt", "reason"),
    [
        pytest.param([seen("b.png")], "objects", "the runs have no image in common", id="other-images"),
        pytest.param([], "objects", "the runs have no image in common", id="no-images"),
        pytest.param([seen("a.png")], "things", "the runs have no prompt in common", id="other-prompts"),
    ],
)
def test_what_was_not_compared_is_not_passed(
    tmp_path: Path, capsys: Capture, after: Sequence[Seen], prompt: str, reason: str
):
    monday = write_run(run_config(tmp_path / "out", {"objects": "detect"}), "monday", [seen("a.png")])
    tuesday = write_run(run_config(tmp_path / "out", {prompt: "detect"}), "tuesday", after)
    runs = [name_of(monday), name_of(tuesday)]
    code, output = command(capsys, *runs, "--fail-above", "1")
    sentence = f"pixscribe: nothing was compared, as {reason}: --fail-above 1.0 cannot be judged\n"
    assert (code, output.err) == (1, sentence)
    assert command(capsys, *runs)[0] == 0


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "0.0 %"), (0.0001, "< 0.1 %"), (501 / 10_000, "5.0 %"), (9_999 / 10_000, "> 99.9 %"), (1.0, "100.0 %")],
)
def test_a_share_is_not_rounded_to_nothing_or_all(share: float, words: str):
    assert percent(share) == words


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param(["--fail-above", "5"], "--fail-above 5.0: should be from 0 to 1", id="per-cent"),
        pytest.param(["--fail-above", "-0.1"], "--fail-above -0.1: should be from 0 to 1", id="negative"),
        pytest.param(
            ["--to", "s3://page.html"],
            "--to s3://page.html: should be a file: a path, or a URI of "
            + ", ".join(f"{scheme}://" for scheme in sorted(BUCKET_SCHEMES))
            + " with a bucket and a name",
            id="no-bucket",
        ),
        pytest.param(["--fail-above", "nan"], "--fail-above nan: should be from 0 to 1", id="nan"),
        pytest.param(["--same-iou", "0.4"], "--same-iou 0.4: should be from 0.5 to 1", id="same-iou"),
        pytest.param(["--prompt", "none"], "--prompt: 'none': is asked by neither run", id="prompt"),
    ],
)
def test_an_option_that_means_nothing_is_one_sentence(
    constructed: tuple[RunResults, RunResults], options: list[str], sentence: str, capsys: Capture
):
    code, printed = command(capsys, *map(name_of, constructed), *options)
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith(f"pixscribe: {sentence}")
    assert printed.err.count("\n") == 1


def test_an_unfinished_run_is_compared_as_far_as_it_is(tmp_path: Path, capsys: Capture):
    images = [seen("a.png", Thing("cat", CAT)), seen("b.png", Thing("cat", CAT))]
    config = run_config(tmp_path / "out", {"objects": "detect"})
    whole, part = write_run(config, "whole", images), write_run(config, "part", images[:1], is_complete=False)
    code, printed = command(capsys, name_of(whole), name_of(part))
    assert code == 0
    assert printed.err == f"{name_of(part)} is not finished: compared are the 1 of its images that it has come to\n"
    assert "1 removed with 1 object" in printed.out


def test_hostile_names_and_labels_stay_on_their_lines(tmp_path: Path, capsys: Capture):
    label, name = "\x1b[31mred\n[bold]", "a\n\x1b]0;x\x07.png"
    before = [Seen(name, {"objects": [Thing("cat", CAT)]})]
    after = [Seen(name, {"objects": [Thing(label, CAT)]})]
    code, printed = command(capsys, *map(name_of, runs_of(tmp_path, before, after)))
    assert code == 0
    assert "\x1b" not in printed.out
    assert "  1 cat became \\x1b[31mred\\n[bold]" in printed.out.splitlines()
    assert "  a\\n\\x1b]0;x\\x07.png  1 relabelled" in printed.out.splitlines()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_line_is_longer_than_the_terminal(constructed: tuple[RunResults, RunResults], width: int):
    diff = compare_runs(*constructed)
    assert max(map(len, diff_lines(diff, width))) <= width


def test_the_index_knows_where_each_image_is(tmp_path: Path):
    results, _ = runs_of(tmp_path, [seen(f"{number}.png") for number in range(5)], [])
    assert index_images(results).places(np.array([0, 1, 2, 4])) == [(0, 0), (0, 1), (1, 0), (2, 0)]
