import contextlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import supervision as sv
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.cells import cell_len
from supervision.metrics import MeanAveragePrecision

from flows.evaluation_lines import evaluation_lines
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import ConfigError
from pixscribe.evaluation import Evaluation, as_json, evaluate_run
from pixscribe.evaluation.counting import MAX_BOXES, MAX_FOREIGN, MAX_WORST
from pixscribe.evaluation.outcome import Averages, Confusion, LabelScore, PromptEvaluation, Rates, TruthBox
from pixscribe.results import RunResults, open_results
from tests.conftest import ROOT, MakeConfig, annotate, pixscribe
from tests.written_runs import Seen, Thing, run_config, write_run
from tests.written_truths import coco, outline_of, true, write_truth

# pycocotools 2.0.11 decodes in a way that numpy 2 warns about
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DETECT = {"objects": "detect"}


def evaluate(
    folder: Path,
    truth: Mapping[str, Sequence[dict[str, Any]]],
    answers: Mapping[str, Sequence[Thing]],
    **options: Any,
) -> PromptEvaluation:
    """Compare answers to one prompt that asks for boxes."""
    results = detected(folder, answers)
    (prompt,) = evaluate_run(results, write_truth(folder, coco(truth)), **options).prompts
    return prompt


def detected(folder: Path, answers: Mapping[str, Sequence[Thing]], **options: Any) -> RunResults:
    seen = [Seen(name, {"objects": things}) for name, things in answers.items()]
    return write_run(run_config(folder / "out", DETECT), "test", seen, **options)


def nearly(averages: Averages) -> Averages:
    """pycocotools adds a hair to what it divides by: its 1 is 0.9999999999999998."""
    return Averages(*(None if value is None else round(value, 12) for value in asdict(averages).values()))


def row_of(prompt: PromptEvaluation, label: str) -> LabelScore:
    (found,) = (score for score in prompt.labels if score.label == label)
    return found


# -- the number that others get --------------------------------------------------------------------------------------


async def test_the_samples_are_found_as_they_were_drawn(make: MakeConfig):
    summary = await annotate(make())
    evaluation = evaluate_run(open_results(f"{summary.output}@{summary.run}"), ROOT / "data/samples/truth.json")
    boxes, outlines = evaluation.prompts
    assert evaluation.images.both == 26
    assert evaluation.warnings == ()
    assert (boxes.prompt, outlines.prompt) == ("objects", "outlines")
    for averages in (boxes.boxes, outlines.boxes, outlines.masks):
        assert averages is not None
        assert averages.map is not None
        assert averages.map >= 0.95
    assert boxes.masks is None
    assert boxes.micro == outlines.micro == Rates(1.0, 1.0, 1.0)
    assert boxes.worst_images == ()


async def test_rasters_are_compared_as_well_as_polygons(make: MakeConfig):
    with Emulator(EmulatorOptions(masks="png")) as emulator:
        prompts = [{"name": "outlines", "kind": "segment"}]
        summary = await annotate(make(model={"base_url": emulator.url}, prompts=prompts))
    results = open_results(f"{summary.output}@{summary.run}")
    assert all(row["rle"] for image in results for row in image.annotations)
    (outlines,) = evaluate_run(results, ROOT / "data/samples/truth.json").prompts
    assert outlines.masks is not None
    assert outlines.masks.map is not None
    assert outlines.masks.map >= 0.95


@pytest.mark.parametrize(
    ("shift_px", "expected"),
    [
        # beside each other by s, boxes 100 wide share 100 - s of 100 + s
        pytest.param(0, Averages(1.0, 1.0, 1.0), id="1.00"),
        pytest.param(10, Averages(0.7, 1.0, 1.0), id="0.82: seven of the thresholds 0.50 to 0.95"),
        pytest.param(20, Averages(0.4, 1.0, 0.0), id="0.67: four"),
        pytest.param(30, Averages(0.1, 1.0, 0.0), id="0.54: one"),
        pytest.param(40, Averages(0.0, 0.0, 0.0), id="0.43: none"),
    ],
)
def test_boxes_that_are_shifted_pass_the_thresholds_below_their_overlap(
    tmp_path: Path, shift_px: int, expected: Averages
):
    truth = {name: [true("sign", (100, 100, 200, 200))] for name in ("a.jpg", "b.jpg")}
    answers = {name: [Thing("sign", (100 + shift_px, 100, 200 + shift_px, 200))] for name in truth}
    assert nearly(evaluate(tmp_path, truth, answers).boxes) == expected


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResults, Path]:
    """60 images with everything that goes wrong: shifts, misses, wrong labels, inventions, crowds, labels of their own.

    The truth lists its images in another order than the tables do.
    """
    chance = random.Random(7)
    labels = ["car", "truck", "person", "dog"]
    seen, truth = [], {}
    for number in range(60):
        objects, things = [], []
        for _ in range(chance.randint(0, 9)):
            label, x, y = chance.choice(labels), chance.randint(0, 600), chance.randint(0, 600)
            box = (x, y, x + chance.randint(40, 300), y + chance.randint(40, 300))
            is_crowd = chance.random() < 0.1
            objects.append(true(label, box, iscrowd=int(is_crowd), segmentation=[list(outline_of(box))]))
            for _ in range(chance.choice([0, 1, 1, 1, 1, 1, 2])):
                shift_px = chance.randint(0, 25)
                moved = (box[0] + shift_px, box[1], box[2] + shift_px, box[3])
                said = label if chance.random() < 0.8 else chance.choice([*labels, "unicorn"])
                things.append(Thing(said, moved, outline_of(moved)))
        truth[f"{number:03}.jpg"] = objects
        seen.append(Seen(f"{number:03}.jpg", {"objects": things, "outlines": things}))
    folder = tmp_path_factory.mktemp("street")
    shuffled = dict(chance.sample(sorted(truth.items()), len(truth)))
    config = run_config(folder / "out", {"objects": "detect", "outlines": "segment"})
    return write_run(config, "test", seen, shard_size=16), write_truth(folder, coco(shuffled))


def coco_alone(results: RunResults, truth: Path, prompt: str, of: str) -> Averages:
    """Straight from the tables to pycocotools, without our code."""
    with contextlib.redirect_stdout(None):
        sought = COCO(str(truth))
        images = {image["file_name"]: image["id"] for image in sought.dataset["images"]}
        categories = {category["name"]: category["id"] for category in sought.dataset["categories"]}
        table = pd.read_parquet(Path(results.storage.uri) / "annotations" / f"run={results.run_id}")
        answers = [
            {
                "image_id": images[row.file_name],
                "category_id": categories[row.label],
                "score": 1.0 if np.isnan(row.score) else row.score,
                "bbox": [row.xmin, row.ymin, row.xmax - row.xmin, row.ymax - row.ymin],
                **({"segmentation": [list(ring) for ring in row.polygons]} if of == "segm" else {}),
            }
            for row in table[table.prompt == prompt].astype({"score": float}).itertuples()
            if row.label in categories
        ]
        evaluation = COCOeval(sought, sought.loadRes(answers), of)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return Averages(*evaluation.stats[:3])


def test_the_averages_are_exactly_those_of_pycocotools_alone(street: tuple[RunResults, Path]):
    boxes, outlines = evaluate_run(*street).prompts
    assert boxes.boxes == coco_alone(*street, "objects", "bbox")
    assert outlines.boxes == coco_alone(*street, "outlines", "bbox")
    assert outlines.masks == coco_alone(*street, "outlines", "segm")
    # and they are no limiting case in which everybody agrees
    assert boxes.boxes.map is not None
    assert 0.2 < boxes.boxes.map < 0.8
    assert outlines.masks not in (None, outlines.boxes)


def test_supervision_sees_the_same_confusions_and_nearly_the_same_mean(street: tuple[RunResults, Path], tmp_path: Path):
    """Without crowds, which it does not know."""
    results, path = street
    content = json.loads(path.read_text())
    content["annotations"] = [each for each in content["annotations"] if not each["iscrowd"]]
    (ours,) = evaluate_run(results, write_truth(tmp_path, content), prompts=("objects",)).prompts
    labels = [category["name"] for category in content["categories"]] + ["unicorn"]
    sought, found = zip(*_as_supervision(results, content, labels), strict=True)
    matrix = sv.ConfusionMatrix.from_detections(
        predictions=list(found),
        targets=list(sought),
        classes=labels,
        conf_threshold=0.5,
        iou_threshold=0.4999,  # what is just 0.5 is not enough for it
    ).matrix
    theirs = {
        (truth, answered): int(matrix[row, column])
        for row, truth in enumerate([*labels, None])
        for column, answered in enumerate([*labels, None])
        if matrix[row, column]
    }
    assert {(cell.truth, cell.answered): cell.count for cell in ours.confusion} == theirs
    mean = MeanAveragePrecision().update(list(found), list(sought)).compute()
    assert ours.boxes.map == pytest.approx(mean.map50_95, abs=0.01)
    assert ours.boxes.ap50 == pytest.approx(mean.map50, abs=0.01)


def _as_supervision(
    results: RunResults, content: dict[str, Any], labels: Sequence[str]
) -> list[tuple[sv.Detections, sv.Detections]]:
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    pairs = []
    for image in sorted(results, key=lambda image: ids[image.image["file_name"]]):
        own = [each for each in content["annotations"] if each["image_id"] == ids[image.image["file_name"]]]
        rows = [row for row in image.annotations if row["prompt"] == "objects"]
        xyxy = np.array([[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in own)], dtype=float)
        sought = sv.Detections(
            xyxy.reshape(-1, 4), class_id=np.array([each["category_id"] - 1 for each in own], dtype=int)
        )
        answered = np.array([[row["xmin"], row["ymin"], row["xmax"], row["ymax"]] for row in rows], dtype=float)
        found = sv.Detections(
            answered.reshape(-1, 4),
            class_id=np.array([labels.index(row["label"]) for row in rows], dtype=int),
            confidence=np.ones(len(rows)),
        )
        pairs.append((sought, found))
    return pairs


# -- worked by hand --------------------------------------------------------------------------------------------------

CROSSING = {
    "a.jpg": [true("car", (0, 0, 100, 100)), true("car", (200, 0, 300, 100)), true("dog", (400, 0, 500, 100))],
    "b.jpg": [true("car", (0, 0, 100, 100)), true("truck", (200, 0, 300, 100))],
    "c.jpg": [],
}
ANSWERS = {
    # the first car well, the second as a truck, the dog not at all, and a car where nothing is
    "a.jpg": [
        Thing("car", (0, 0, 100, 90)),
        Thing("truck", (200, 0, 300, 100)),
        Thing("car", (700, 700, 800, 800)),
    ],
    # both well
    "b.jpg": [Thing("car", (0, 0, 100, 100)), Thing("truck", (210, 0, 310, 100))],
    # a dog out of nothing
    "c.jpg": [Thing("dog", (0, 0, 100, 100))],
}


def test_three_images_worked_by_hand(tmp_path: Path):
    found = evaluate(tmp_path, CROSSING, ANSWERS)
    car, truck, dog = (row_of(found, label) for label in ("car", "truck", "dog"))
    assert (car.truth, car.answered, car.hits, car.missed, car.wrong) == (3, 3, 2, 1, 1)
    assert (truck.truth, truck.answered, truck.hits, truck.missed, truck.wrong) == (1, 2, 1, 0, 1)
    assert (dog.truth, dog.answered, dog.hits, dog.missed, dog.wrong) == (1, 1, 0, 1, 1)
    assert (car.precision, car.recall, car.f1) == (2 / 3, 2 / 3, 2 / 3)
    assert (truck.precision, truck.recall, truck.f1) == (1 / 2, 1.0, 2 / 3)
    assert (dog.precision, dog.recall, dog.f1) == (0.0, 0.0, 0.0)
    # 3 hits, 5 objects in the truth, 6 answered
    assert found.micro == Rates(3 / 6, 3 / 5, 6 / 11)
    assert asdict(found.macro) == pytest.approx({"precision": 7 / 18, "recall": 5 / 9, "f1": 4 / 9})
    assert found.confusion == (
        Confusion("car", "car", 2),
        Confusion(None, "car", 1),
        Confusion(None, "dog", 1),
        Confusion("car", "truck", 1),
        Confusion("dog", None, 1),
        Confusion("truck", "truck", 1),
    )


def test_the_worst_images_come_first_with_what_is_in_the_truth(tmp_path: Path):
    worst, second = evaluate(tmp_path, CROSSING, ANSWERS).worst_images
    assert (worst.file_name, worst.errors, worst.missed, worst.confused, worst.surplus) == ("a.jpg", 3, 1, 1, 1)
    assert worst.truth_boxes == (
        TruthBox("car", (200.0, 0.0, 300.0, 100.0), "truck"),
        TruthBox("dog", (400.0, 0.0, 500.0, 100.0), None),
        TruthBox("car", (0.0, 0.0, 100.0, 100.0), "car"),
    )
    assert worst.truth_objects == 3
    assert worst.wrong == (1, 2)
    assert (second.file_name, second.errors, second.surplus, second.truth_boxes) == ("c.jpg", 1, 1, ())


def test_what_the_counts_say_adds_up(street: tuple[RunResults, Path]):
    for prompt in evaluate_run(*street).prompts:
        hits = sum(cell.count for cell in prompt.confusion if cell.truth == cell.answered)
        assert hits == sum(label.hits for label in prompt.labels)
        assert sum(cell.count for cell in prompt.confusion if cell.truth is not None) == prompt.truth_objects
        ignored = sum(label.ignored for label in prompt.labels)
        assert ignored > 0
        assert sum(cell.count for cell in prompt.confusion if cell.answered is not None) + ignored == (
            prompt.answered_objects
        )
        for label in prompt.labels:
            assert label.hits + label.missed == label.truth
            assert label.hits + label.wrong + label.ignored == label.answered


def test_an_object_answered_twice_is_one_hit_and_one_too_many(tmp_path: Path):
    box = (0.0, 0.0, 100.0, 100.0)
    found = evaluate(tmp_path, {"a.jpg": [true("cat", box)]}, {"a.jpg": [Thing("cat", box), Thing("cat", box)]})
    assert found.confusion == (Confusion(None, "cat", 1), Confusion("cat", "cat", 1))


def test_the_right_label_wins_over_a_better_box_of_another(tmp_path: Path):
    truth = {"a.jpg": [true("rider", (0, 0, 100, 100))]}
    answers = {"a.jpg": [Thing("person", (0, 0, 100, 100)), Thing("rider", (0, 0, 100, 90))]}
    found = evaluate(tmp_path, truth, answers)
    assert found.confusion == (Confusion(None, "person", 1), Confusion("rider", "rider", 1))


def test_answers_in_a_crowd_count_neither_way(tmp_path: Path):
    """The crowd is no object to be found, and as many people as one likes may be found in it."""
    truth = {"a.jpg": [true("person", (0, 0, 500, 500), iscrowd=1), true("person", (600, 0, 700, 100))]}
    people = [Thing("person", (10, 10, 60, 60)), Thing("person", (100, 100, 180, 180))]
    answers = {"a.jpg": [*people, Thing("person", (600, 0, 700, 100)), Thing("dog", (200, 200, 260, 260))]}
    found = evaluate(tmp_path, truth, answers)
    person = row_of(found, "person")
    assert (person.truth, person.hits, person.ignored, person.wrong) == (1, 1, 2, 0)
    assert nearly(found.boxes) == Averages(1.0, 1.0, 1.0)
    # that somebody sees a dog among the people is an error all the same
    assert row_of(found, "dog").wrong == 1
    assert found.micro == Rates(1 / 2, 1.0, 2 / 3)


def test_a_truth_of_crowds_alone_gives_no_average(tmp_path: Path):
    truth = {"a.jpg": [true("person", (0, 0, 500, 500), iscrowd=1)]}
    found = evaluate(tmp_path, truth, {"a.jpg": [Thing("person", (10, 10, 60, 60))]})
    assert found.boxes == Averages(None, None, None)
    assert found.macro == Rates(None, None, None)


def test_nothing_in_the_truth_and_nothing_answered_is_no_number(tmp_path: Path):
    found = evaluate(tmp_path, {"a.jpg": []}, {"a.jpg": []})
    assert found.boxes == Averages(None, None, None)
    assert found.micro == Rates(None, None, None)
    assert b"NaN" not in orjson.dumps(found)


@pytest.mark.parametrize("area", [0.0, 10000.0, 1e10, 1.1e10, 1e300])
def test_the_area_that_a_truth_claims_changes_no_average(tmp_path: Path, area: float):
    box = (0.0, 0.0, 100.0, 100.0)
    found = evaluate(tmp_path, {"a.jpg": [true("cat", box, area=area)]}, {"a.jpg": []})
    assert found.boxes == Averages(0.0, 0.0, 0.0)


def test_nothing_answered_is_zero(tmp_path: Path):
    found = evaluate(tmp_path, {"a.jpg": [true("car", (0, 0, 9, 9))]}, {"a.jpg": []})
    assert found.boxes == Averages(0.0, 0.0, 0.0)
    assert found.micro == Rates(None, 0.0, 0.0)
    assert found.macro == Rates(0.0, 0.0, 0.0)


# -- scores and order ------------------------------------------------------------------------------------------------


def test_without_scores_every_object_counts_alike_and_it_is_said(tmp_path: Path):
    results = detected(tmp_path, ANSWERS)
    evaluation = evaluate_run(results, write_truth(tmp_path, coco(CROSSING)))
    assert evaluation.prompts[0].scored_objects == 0
    assert evaluation.notes[0].startswith("the model gives no scores, so every object counts alike (score 1)")


def test_scores_are_used_where_there_are_some(tmp_path: Path):
    """The invention comes first in the answer and last by its score."""
    box = (0.0, 0.0, 100.0, 100.0)
    truth = {"a.jpg": [true("cat", box)]}
    results = detected(tmp_path, {"a.jpg": [Thing("cat", (500, 500, 600, 600)), Thing("cat", box)]})
    path = write_truth(tmp_path, coco(truth))
    assert evaluate_run(results, path).prompts[0].boxes.ap50 == pytest.approx(0.5)
    replace_column(results, "annotations", "score", pa.array([0.2, 0.9], pa.float64()))
    evaluation = evaluate_run(results, path)
    assert nearly(evaluation.prompts[0].boxes) == Averages(1.0, 1.0, 1.0)
    assert evaluation.prompts[0].boxes == coco_alone(results, path, "objects", "bbox")
    assert evaluation.notes[0].startswith("2 of 2 objects have a score")


def replace_column(results: RunResults, table: str, column: str, values: pa.Array) -> None:
    """In the one part that the run has."""
    (part,) = (Path(results.storage.uri) / table / f"run={results.run_id}").iterdir()
    content = pq.ParquetFile(part).read()
    place = content.schema.get_field_index(column)
    pq.write_table(content.set_column(place, content.schema.field(place), values), part)


def test_neither_the_cut_into_shards_nor_the_order_of_the_truth_changes_a_byte(tmp_path: Path):
    answers = {name: ANSWERS[name] for name in ("c.jpg", "a.jpg", "b.jpg")}
    one = detected(tmp_path / "one", ANSWERS)
    three = detected(tmp_path / "three", answers, shard_size=1)
    content = coco(CROSSING)
    path = write_truth(tmp_path, content)
    first = evaluate_run(one, path)
    assert replace(evaluate_run(three, path), output=first.output) == first
    content["images"].reverse()
    assert as_json(evaluate_run(one, write_truth(tmp_path, content))) == as_json(first)


def test_ids_that_begin_at_zero_or_are_not_there_change_nothing(tmp_path: Path):
    """pycocotools alone takes the object 0 for missed."""
    results, content = detected(tmp_path, ANSWERS), coco(CROSSING)
    first = evaluate_run(results, write_truth(tmp_path, content))
    for number, each in enumerate(content["annotations"]):
        each["id"] = number
    assert evaluate_run(results, write_truth(tmp_path, content)) == first
    for each in content["annotations"]:
        del each["id"], each["area"], each["iscrowd"]
    assert evaluate_run(results, write_truth(tmp_path, content)) == first


def test_coco_looks_at_a_hundred_objects_of_a_label_and_the_rest_is_said(tmp_path: Path):
    truth = {"a.jpg": [true("bird", (0, 10 * n, 900, 10 * n + 6)) for n in range(99)]}
    answers = {"a.jpg": [Thing("bird", (0, 10 * n, 900, 10 * n + 6)) for n in range(99)] * 2}
    results, path = detected(tmp_path, answers), write_truth(tmp_path, coco(truth))
    evaluation = evaluate_run(results, path)
    assert evaluation.prompts[0].boxes == coco_alone(results, path, "objects", "bbox")
    assert "objects: 98 objects beyond 100 of one label in one image: no part of mAP" in evaluation.notes


# -- answers that are none -------------------------------------------------------------------------------------------


def test_all_that_is_in_an_image_without_an_answer_counts_as_missed(tmp_path: Path):
    box = (0.0, 0.0, 100.0, 100.0)
    seen = [Seen("a.jpg", {"objects": [Thing("cat", box)]}), Seen("b.jpg", failed={"objects": "timeout"})]
    results = write_run(run_config(tmp_path / "out", DETECT), "test", seen)
    path = write_truth(tmp_path, coco({"a.jpg": [true("cat", box)], "b.jpg": [true("cat", box)]}))
    evaluation = evaluate_run(results, path)
    (found,) = evaluation.prompts
    assert (found.images, found.without_answer, found.micro.recall) == (2, 1, 0.5)
    assert "objects: 1 of 2 images without an answer (failed): all that is in them counts as missed" in evaluation.notes
    assert [(image.file_name, image.has_answer) for image in found.worst_images] == [("b.jpg", False)]


def test_objects_that_were_kept_of_a_failed_answer_are_no_answer(tmp_path: Path):
    results = detected(tmp_path, {"a.jpg": [Thing("cat", (0, 0, 100, 100))]})
    path = write_truth(tmp_path, coco({"a.jpg": [true("cat", (0, 0, 100, 100))]}))
    assert evaluate_run(results, path).prompts[0].micro.recall == 1.0
    replace_column(results, "responses", "status", pa.array(["failed"]))
    (found,) = evaluate_run(results, path).prompts
    assert (found.answered_objects, found.without_answer, found.micro.recall) == (0, 1, 0.0)


def test_an_image_that_could_not_be_read_is_missed_and_has_no_size_to_compare(tmp_path: Path):
    seen = [Seen("a.jpg", failed={"objects": "read_error"})]
    results = write_run(run_config(tmp_path / "out", DETECT), "test", seen)
    evaluation = evaluate_run(results, write_truth(tmp_path, coco({"a.jpg": [true("cat", (0, 0, 9, 9))]})))
    assert evaluation.warnings == ()
    assert evaluation.prompts[0].micro.recall == 0.0


def test_each_prompt_is_judged_by_its_own_answers(tmp_path: Path):
    box = (0.0, 0.0, 100.0, 100.0)
    seen = [Seen("a.jpg", {"good": [Thing("cat", box)], "words": "a cat"}, failed={"bad": "timeout"})]
    config = run_config(tmp_path / "out", {"good": "detect", "bad": "segment", "words": "caption"})
    results = write_run(config, "test", seen)
    path = write_truth(tmp_path, coco({"a.jpg": [true("cat", box)]}))
    assert [(each.prompt, each.micro.recall) for each in evaluate_run(results, path).prompts] == [
        ("good", 1.0),
        ("bad", 0.0),
    ]
    assert [each.prompt for each in evaluate_run(results, path, prompts=("bad",)).prompts] == ["bad"]


@pytest.mark.parametrize("name", ["words", "other\nline"])
def test_a_prompt_without_boxes_or_of_another_run_is_refused(tmp_path: Path, name: str):
    config = run_config(tmp_path / "out", {"objects": "detect", "words": "caption"})
    results = write_run(config, "test", [Seen("a.jpg")])
    path = write_truth(tmp_path, coco({"a.jpg": []}))
    with pytest.raises(ConfigError) as refused:
        evaluate_run(results, path, prompts=(name,))
    expected = f"--prompt {json.dumps(name)}: is no prompt with boxes of this run; allowed: objects"
    assert str(refused.value) == expected


def test_a_run_without_boxes_is_refused(tmp_path: Path):
    results = write_run(run_config(tmp_path / "out", {"words": "caption"}), "test", [Seen("a.jpg")])
    with pytest.raises(ConfigError, match="has no prompt of kind detect or segment"):
        evaluate_run(results, write_truth(tmp_path, coco({"a.jpg": []})))


def test_a_run_that_is_not_complete_is_evaluated_and_it_is_said(tmp_path: Path):
    results = detected(tmp_path, ANSWERS, is_complete=False)
    evaluation = evaluate_run(results, write_truth(tmp_path, coco(CROSSING)))
    assert evaluation.images.both == 3
    assert evaluation.warnings == ("the run is not complete: only what it has committed so far is evaluated",)


# -- labels ----------------------------------------------------------------------------------------------------------


def test_case_space_at_the_ends_and_the_spelling_of_accents_do_not_matter(tmp_path: Path):
    box = (0.0, 0.0, 100.0, 100.0)
    truth = {"a.jpg": [true("Señal", box)]}
    for said in ("señal", " SEÑAL\n", "sen\u0303al"):
        found = evaluate(tmp_path / said.strip(), truth, {"a.jpg": [Thing(said, box)]})
        assert found.confusion == (Confusion("Señal", "Señal", 1),)


def test_synonyms_mean_what_the_map_says(tmp_path: Path):
    answers = {"a.jpg": [Thing("Sedan", (0, 0, 100, 100)), Thing("lorry", (200, 0, 300, 100))]}
    truth = {"a.jpg": [true("car", (0, 0, 100, 100)), true("truck", (200, 0, 300, 100))]}
    results, path = detected(tmp_path, answers), write_truth(tmp_path, coco(truth))
    (found,) = evaluate_run(results, path).prompts
    assert (found.micro.recall, found.foreign_labels) == (0.0, 2)
    words = tmp_path / "labels.yaml"
    words.write_text("CAR: [auto, sedan, car]\ntruck: lorry\n")
    (found,) = evaluate_run(results, path, words).prompts
    assert nearly(found.boxes) == Averages(1.0, 1.0, 1.0)
    assert found.confusion == (Confusion("car", "car", 1), Confusion("truck", "truck", 1))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("cat: [kitty]", '"cat": is no label of the truth; those are car, truck', id="unknown"),
        pytest.param("auto: [car]", '"auto": is no label of the truth; those are car, truck', id="turned-round"),
        pytest.param(
            "car: [truck]", '"car": "truck": means "truck" already; a word has one meaning', id="label-of-the-truth"
        ),
        pytest.param(
            "car: [x]\ntruck: [y, X]", '"truck": "X": means "car" already; a word has one meaning', id="two-meanings"
        ),
        pytest.param("car: [yes]", '"car": true: should be text, in quotes', id="yaml-bool"),
        pytest.param("1: [one]", "1: should be text, in quotes", id="yaml-number"),
        pytest.param("car: {a: b}", '"car": a mapping: should be text', id="mapping"),
        pytest.param("car: ['  ']", '"car": "  ": should be text', id="blank"),
        pytest.param("[car]", "should be a mapping of keys to values, with labels of the truth and their", id="list"),
        pytest.param("car: [", "expected the node content", id="no-yaml"),
    ],
)
def test_a_label_map_that_cannot_be_meant_is_one_sentence(tmp_path: Path, text: str, sentence: str):
    results = detected(tmp_path, {"a.jpg": []})
    path = write_truth(tmp_path, coco({"a.jpg": []}, ["car", "truck"]))
    words = tmp_path / "labels.yaml"
    words.write_text(text)
    with pytest.raises(ConfigError) as refused:
        evaluate_run(results, path, words)
    assert str(refused.value).startswith(f"{words}: {sentence}")
    assert "\n" not in str(refused.value)


def test_labels_that_the_truth_does_not_have_are_false_positives_under_their_own_name(tmp_path: Path):
    truth = {"a.jpg": [true("car", (0, 0, 100, 100))]}
    answers = {"a.jpg": [Thing("car", (0, 0, 100, 100)), Thing("bus", (0, 0, 100, 99)), Thing(None, (500, 0, 600, 9))]}
    results, path = detected(tmp_path, answers), write_truth(tmp_path, coco(truth))
    evaluation = evaluate_run(results, path)
    (found,) = evaluation.prompts
    assert [(label.label, label.in_truth, label.wrong, label.recall, label.map is None) for label in found.labels] == [
        ("car", True, 0, 1.0, False),
        ("(no label)", False, 1, None, True),
        ("bus", False, 1, None, True),
    ]
    assert found.micro == Rates(1 / 3, 1.0, 1 / 2)
    assert found.macro == Rates(1.0, 1.0, 1.0)
    assert nearly(found.boxes) == Averages(1.0, 1.0, 1.0)
    assert (
        "objects: 2 objects with 2 labels that the truth does not know: false positives, but no part of mAP"
        in evaluation.notes
    )


def test_categories_of_one_name_are_one_label(tmp_path: Path):
    """As Roboflow exports a project of one class: the project is a category of the same name, without objects."""
    content = coco({"a.jpg": [true("car", (0, 0, 100, 100))]}, ["Car"])
    evaluation = evaluate_run(
        detected(tmp_path, {"a.jpg": [Thing("car", (0, 0, 100, 100))]}), write_truth(tmp_path, content)
    )
    assert [label.label for label in evaluation.prompts[0].labels] == ["Car"]
    assert "labels of the truth that differ in case or outer space only, taken for one: car" in evaluation.notes


def test_a_vocabulary_without_end_does_not_make_an_evaluation_without_end(tmp_path: Path):
    answers = {f"{n}.jpg": [Thing(f"thing {n} {m}", (0, 0, 9, 9)) for m in range(MAX_BOXES + 5)] for n in range(30)}
    truth = {name: [true("car", (500, 0, 600, 100))] * (MAX_BOXES + 5) for name in answers}
    found = evaluate(tmp_path, truth, answers)
    assert found.foreign_labels == 30 * (MAX_BOXES + 5)
    assert len(found.labels) == len(found.confusion) == 1 + MAX_FOREIGN
    assert len(found.worst_images) == MAX_WORST
    assert all(len(image.truth_boxes) == len(image.wrong) == MAX_BOXES for image in found.worst_images)
    assert found.worst_images[0].errors == 2 * (MAX_BOXES + 5)


# -- images ----------------------------------------------------------------------------------------------------------


def test_what_only_one_side_has_is_left_out_and_said(tmp_path: Path):
    box = (0.0, 0.0, 100.0, 100.0)
    cat = [true("cat", box)]
    answers = {name: [Thing("cat", box)] for name in ("sub/a.jpg", "b.jpg", "more.jpg", "l/d.jpg", "r/d.jpg")}
    truth = {"images/a.jpg": cat, "b.jpg": cat, "gone.jpg": cat, "d.jpg": cat}
    evaluation = evaluate_run(detected(tmp_path, answers), write_truth(tmp_path, coco(truth)))
    assert asdict(evaluation.images) == {
        "both": 2,
        "by_end_of_name": 1,
        "ambiguous": 1,
        "truth_only": 1,
        "run_only": 3,
        "other_size": 0,
    }
    assert evaluation.warnings == (
        '1 image matched by the end of the name only, such as "images/a.jpg" with "sub/a.jpg"',
        '1 image of the truth left out, whose names fit several images, such as "d.jpg"',
        '1 image of the truth left out that the run was not about, such as "gone.jpg"',
    )
    assert "3 images of the run not in the truth: left out" in evaluation.notes
    assert evaluation.prompts[0].micro == Rates(1.0, 1.0, 1.0)


def test_rows_that_share_a_name_are_left_out_for_any_of_them_could_be_meant(tmp_path: Path):
    """As lists can have them."""
    box = (0.0, 0.0, 100.0, 100.0)
    seen = [
        Seen("other.jpg", {"objects": [Thing("cat", box)]}),
        Seen("x.jpg", {"objects": []}, uri="https://a.example/x.jpg"),
        Seen("x.jpg", {"objects": [Thing("cat", box)]}, uri="https://b.example/x.jpg"),
    ]
    results = write_run(run_config(tmp_path / "out", DETECT), "test", seen)
    truth = coco({"x.jpg": [true("cat", box)], "other.jpg": [true("cat", box)]})
    evaluation = evaluate_run(results, write_truth(tmp_path, truth))
    images = evaluation.images
    assert (images.both, images.ambiguous, images.run_only, images.truth_only) == (1, 1, 0, 0)
    assert evaluation.warnings == ('1 image of the truth left out, whose names fit several images, such as "x.jpg"',)
    assert evaluation.prompts[0].micro == Rates(1.0, 1.0, 1.0)


def test_a_truth_that_an_export_of_ours_wrote_knows_its_images_by_the_names_they_had(tmp_path: Path):
    box = (0.0, 0.0, 100.0, 100.0)
    truth = coco({"t.tif.png": [true("cat", box)], "s.tif.png": [true("cat", box)], "u.png": [true("cat", box)]})
    for image, source in zip(truth["images"], ("t.tif", "s.tif", ["no", "name"]), strict=True):
        image["source_file_name"] = source
    answers = {name: [Thing("cat", box)] for name in ("t.tif", "s.tif", "s.tif.png", "u.png")}
    answers["s.tif"] = []  # the very name goes first
    evaluation = evaluate_run(detected(tmp_path, answers), write_truth(tmp_path, truth))
    images = evaluation.images
    assert (images.both, images.by_end_of_name, images.truth_only, images.run_only) == (3, 0, 0, 1)
    assert evaluation.prompts[0].micro == Rates(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("truth", "rows", "sentence"),
    [
        pytest.param(
            ["a.jpg"],
            ["b.jpg"],
            'none of its 1 image is in the run: it has such names as "a.jpg", the run has such names as "b.jpg"',
            id="other-names",
        ),
        pytest.param(
            ["a.jpg"],
            [],
            'none of its 1 image is in the run: it has such names as "a.jpg", the run has no images yet',
            id="empty-run",
        ),
        pytest.param(
            ["a.jpg"],
            ["l/a.jpg", "r/a.jpg"],
            'no image of it is exactly one of the run\'s: "a.jpg" could be several',
            id="ambiguous",
        ),
    ],
)
def test_nothing_in_common_is_one_sentence(tmp_path: Path, truth: list[str], rows: list[str], sentence: str):
    results = detected(tmp_path, {name: [] for name in rows})
    path = write_truth(tmp_path, coco({name: [] for name in truth}))
    with pytest.raises(ConfigError) as refused:
        evaluate_run(results, path)
    assert str(refused.value) == f"{path}: {sentence}"


def test_a_truth_made_on_pictures_that_lie_on_their_side_is_found_out(tmp_path: Path):
    seen = [Seen("a.jpg", size=(600, 800)), Seen("b.jpg", size=(600, 800)), Seen("c.jpg", size=(600, 800))]
    results = write_run(run_config(tmp_path / "out", DETECT), "test", seen)
    content = coco({"a.jpg": [], "b.jpg": [], "c.jpg": []})
    for image, size in zip(content["images"], [(800, 600), (600, 800), (300, 400)], strict=True):
        image["width"], image["height"] = size
    evaluation = evaluate_run(results, write_truth(tmp_path, content))
    assert evaluation.images.other_size == 2
    assert evaluation.warnings == (
        '2 of 3 images not as large as the truth says, so that boxes cannot be compared: "a.jpg" is 600x800 px and '
        "800x600 in the truth; 1 the other way round: such a truth was made on pictures that nobody had turned upright "
        "(EXIF)",
    )


def test_a_truth_without_sizes_takes_those_of_the_images(tmp_path: Path, street: tuple[RunResults, Path]):
    results, path = street
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    assert evaluate_run(results, write_truth(tmp_path, content)).prompts == evaluate_run(results, path).prompts


# -- outlines --------------------------------------------------------------------------------------------------------


def outlined(folder: Path, things: Sequence[Thing]) -> RunResults:
    return write_run(run_config(folder / "out", {"outlines": "segment"}), "test", [Seen("a.jpg", {"outlines": things})])


def test_a_mask_is_the_same_in_each_of_its_spellings(tmp_path: Path):
    box = (100.0, 100.0, 300.0, 400.0)
    moved = (110.0, 100.0, 310.0, 400.0)
    results = outlined(tmp_path, [Thing("leaf", moved, outline_of(moved))])
    (packed,) = coco_mask.frPyObjects([list(outline_of(box))], 1000, 1000)
    pixels = coco_mask.decode(packed).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], pixels, [pixels[-1] ^ 1]])))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    spellings = [
        [list(outline_of(box))],
        {"size": [1000, 1000], "counts": packed["counts"].decode()},
        {"size": [1000, 1000], "counts": runs},
    ]
    found = [
        evaluate_run(results, write_truth(tmp_path, coco({"a.jpg": [true("leaf", box, segmentation=spelling)]})))
        .prompts[0]
        .masks
        for spelling in spellings
    ]
    assert found[0] is not None
    assert found[0].map is not None
    assert 0.6 < found[0].map < 1
    assert found[1] == found[2] == found[0]


@pytest.mark.parametrize("segmentation", [None, [], [[]]])
def test_a_truth_of_boxes_alone_compares_no_masks(tmp_path: Path, segmentation: Any):
    box = (100.0, 100.0, 300.0, 400.0)
    results = outlined(tmp_path, [Thing("leaf", box, outline_of(box))])
    (found,) = evaluate_run(
        results, write_truth(tmp_path, coco({"a.jpg": [true("leaf", box, segmentation=segmentation)]}))
    ).prompts
    assert found.masks is None
    assert found.boxes.map is not None


def test_where_only_some_objects_have_outlines_it_is_said_what_the_others_count_as(tmp_path: Path):
    one, other = (0.0, 0.0, 100.0, 100.0), (200.0, 200.0, 300.0, 300.0)
    results = outlined(tmp_path, [Thing("leaf", one, outline_of(one)), Thing("leaf", other)])
    square = [200, 200, 300, 200, 300, 300, 200, 300]
    path = write_truth(tmp_path, coco({"a.jpg": [true("leaf", one), true("leaf", other, segmentation=[square])]}))
    evaluation = evaluate_run(results, path)
    (found,) = evaluation.prompts
    assert nearly(found.boxes) == Averages(1.0, 1.0, 1.0)
    # the pentagon is three quarters of the box that stands for the first mask, and the second was not outlined at all:
    # one of two found, at the thresholds 0.50 to 0.75 (51 of the 101 points of recall)
    assert found.masks is not None
    assert found.masks.ap50 == pytest.approx(51 / 101)
    assert "outlines: 1 object with nothing but a box: no part of mAP of masks" in evaluation.notes
    assert "outlines: 1 object of the truth with nothing but a box: taken for a mask" in evaluation.notes


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_keeps_the_numbers_beside_the_run(tmp_path: Path):
    results, path = detected(tmp_path, ANSWERS), write_truth(tmp_path, coco(CROSSING))
    shown = pixscribe("evaluate", f"{tmp_path}/out@test", "--truth", str(path))
    assert (shown.returncode, "Traceback" in shown.stderr) == (0, False)
    assert "objects (detect): 5 objects in the truth of 3 images, 6 answered" in shown.stdout
    assert ["car", "3", "1", "1", "0.667", "0.667", "0.667"] in [line.split()[:7] for line in shown.stdout.splitlines()]
    assert "1  car answered as truck" in shown.stdout
    kept = tmp_path / "out/runs/test/evaluation.json"
    assert f"written to {kept}" in shown.stderr
    assert kept.read_bytes() == as_json(evaluate_run(results, path))
    page = tmp_path / "out/runs/test/report.html"
    assert f"shown in {page}" in shown.stderr
    assert "mAP" in page.read_text()


def test_as_json_there_is_one_object_on_stdout_and_nothing_else(tmp_path: Path):
    content = coco({**CROSSING, "gone.jpg": []})
    results, path = detected(tmp_path, ANSWERS), write_truth(tmp_path, content)
    shown = pixscribe("evaluate", f"{tmp_path}/out@test", "--truth", str(path), "--json")
    assert shown.returncode == 0
    assert json.loads(shown.stdout) == json.loads(as_json(evaluate_run(results, path)))
    assert shown.stdout.count("\n") == 1
    assert 'warning: 1 image of the truth left out that the run was not about, such as "gone.jpg"' in shown.stderr


def test_a_page_that_cannot_be_written_costs_no_numbers(tmp_path: Path):
    detected(tmp_path, ANSWERS)
    path = write_truth(tmp_path, coco(CROSSING))
    (tmp_path / "out/runs/test/report.html").mkdir()  # permissions would not stop root
    shown = pixscribe("evaluate", f"{tmp_path}/out@test", "--truth", str(path), "--json")
    assert shown.returncode == 0
    assert "pixscribe: the page of the run could not be written: " in shown.stderr
    assert "Traceback" not in shown.stderr
    assert json.loads(shown.stdout)["images"]["both"] == 3


def test_a_run_whose_folder_cannot_be_written_is_evaluated_all_the_same(tmp_path: Path):
    detected(tmp_path, ANSWERS)
    path = write_truth(tmp_path, coco(CROSSING))
    (tmp_path / "out/runs/test/evaluation.json").mkdir()
    shown = pixscribe("evaluate", f"{tmp_path}/out@test", "--truth", str(path))
    assert shown.returncode == 0
    assert "pixscribe: the evaluation is not kept: " in shown.stderr
    assert "Traceback" not in shown.stderr
    assert "objects (detect)" in shown.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param(["--truth", "none.json"], "none.json: cannot be read: No such file or directory", id="no-truth"),
        pytest.param(["--truth", "data"], "--truth data: is a folder; should be a file of COCO instances", id="folder"),
        pytest.param(["--truth", ""], "--truth .: is a folder; should be a file of COCO instances", id="empty"),
        pytest.param([], "parameter --truth requires an argument", id="truth-not-named"),
        pytest.param(["--truth", "README.md"], "README.md: is not JSON", id="no-json"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence_and_exit_code_2(tmp_path: Path, options: list[str], sentence: str):
    detected(tmp_path, ANSWERS)
    refused = pixscribe("evaluate", f"{tmp_path}/out@test", *options)
    assert refused.returncode == 2
    assert sentence in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert refused.stdout == ""


@pytest.fixture
def hostile(tmp_path: Path) -> Evaluation:
    """Names and labels that would break a table, or a terminal."""
    labels = ["\x1b[31mred", "two\nlines", "猫" * 40, "x" * 10_000, "\u202edlrow"]
    boxes = [(100.0 * n, 0.0, 100.0 * n + 90, 90.0) for n in range(len(labels))]
    name = "folder/" * 20 + "\x1b]0;title\x07\n.jpg"
    truth = {name: [true(label, box) for label, box in zip(labels, boxes, strict=True)]}
    answers = {name: [Thing(label, box) for label, box in zip(reversed(labels), boxes, strict=True)]}
    return evaluate_run(detected(tmp_path, answers), write_truth(tmp_path, coco(truth)))


@pytest.mark.parametrize("width", [40, 52, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_in_it_is_obeyed(hostile: Evaluation, width: int):
    # the path of the truth is one word, which is not to be cut
    lines = list(evaluation_lines(replace(hostile, truth=replace(hostile.truth, file="truth.json")), width))
    assert max(map(cell_len, lines)) <= width
    assert all(line.isprintable() for line in lines)
    assert any("\\x1b[31m" in line for line in lines)
    assert any(line.startswith("…") and ".jpg" in line for line in lines)
