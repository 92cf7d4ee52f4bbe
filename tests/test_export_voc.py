"""Pascal VOC as supervision and datumaro read it."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import supervision as sv

from pixscribe.exports import ExportOptions, export_runs
from pixscribe.exports.pictures import PictureMode
from pixscribe.results import RunResults, open_results
from tests.datumaro import needs_datumaro, read_with_datumaro
from tests.made_runs import Made, thing, write_run


def export(run: RunResults, to: Path, pictures: PictureMode | None = None) -> None:
    export_runs([run], "voc", to, ExportOptions(prompts=["objects"], pictures=pictures), lambda sentence: None)


def expected_boxes(run: RunResults) -> dict[str, list[tuple[str, list[float]]]]:
    return {
        each.image["file_name"]: [
            (row["label"], [row[edge] for edge in ("xmin", "ymin", "xmax", "ymax")])
            for row in each.annotations
            if row["prompt"] == "objects"
        ]
        for each in run
    }


def names_in_set(folder: Path) -> list[str]:
    return (folder / "ImageSets/Main/trainval.txt").read_text(encoding="utf-8").splitlines()


def test_supervision_gives_back_the_boxes_of_every_sample(sample_run: str, tmp_path: Path):
    run = open_results(sample_run)
    export(run, tmp_path / "to", "copy")
    by_stem = dict(zip(names_in_set(tmp_path / "to"), expected_boxes(run).values(), strict=True))
    seen = 0
    for images in {path.parent for path in (tmp_path / "to/JPEGImages").rglob("*.*")}:
        folder = images.relative_to(tmp_path / "to/JPEGImages")
        loaded = sv.DetectionDataset.from_pascal_voc(str(images), str(tmp_path / "to/Annotations" / folder))
        for path, _, found in loaded:
            objects = by_stem[str(folder / Path(path).stem)]
            names = [] if found.class_id is None else [loaded.classes[number] for number in found.class_id]
            assert names == [label for label, _ in objects]
            corners = np.reshape([box for _, box in objects], (-1, 4))
            np.testing.assert_allclose(found.xyxy, corners, rtol=0, atol=0.5)
            seen += 1
    assert seen == len(by_stem) == 26


@needs_datumaro
def test_datumaro_gives_back_the_boxes_of_every_sample(sample_run: str, tmp_path: Path):
    run = open_results(sample_run)
    export(run, tmp_path / "to", "copy")
    read = read_with_datumaro(tmp_path / "to", "voc_detection", coordinate_mode="voc-one-based")
    by_stem = dict(zip(names_in_set(tmp_path / "to"), expected_boxes(run).values(), strict=True))
    assert {item["id"] for item in read} == set(by_stem)
    for item in read:
        assert [shape["label"] for shape in item["shapes"]] == [label for label, _ in by_stem[item["id"]]]
        corners = np.reshape([shape["xyxy"] for shape in item["shapes"]], (-1, 4))
        np.testing.assert_allclose(corners, np.reshape([box for _, box in by_stem[item["id"]]], (-1, 4)), atol=0.5)


def test_pixels_are_counted_from_one_and_the_last_belongs_to_the_object(tmp_path: Path):
    # the first two pixels of the first row, and a box between the pixels
    things = [thing("car", (0, 0, 2, 1)), thing("car", (10.5, 20.25, 30, 40.125))]
    export(write_run(tmp_path / "out", "a", [Made("d/a.jpg", {"objects": things})]), tmp_path / "to")
    root = ElementTree.parse(tmp_path / "to/Annotations/d/a.xml").getroot()
    found = [
        [each.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")] for each in root.iter("object")
    ]
    assert found == [["1", "1", "2", "1"], ["11.5", "21.25", "30", "40.125"]]
    assert [root.findtext(f"size/{name}") for name in ("width", "height", "depth")] == ["640", "480", "3"]
    assert root.findtext("filename") == "d/a.jpg"


def test_a_box_under_a_pixel_is_not_the_wrong_way_round(tmp_path: Path):
    # of 640 x 480 px: within a pixel, and at the far corner
    things = [thing("car", (10.25, 20.5, 10.75, 20.75)), thing("car", (639.5, 479.75, 640, 480))]
    export(write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": things})]), tmp_path / "to")
    root = ElementTree.parse(tmp_path / "to/Annotations/a.xml").getroot()
    found = [[edge.text for edge in each] for each in root.iter("bndbox")]
    assert found == [["11.25", "21.5", "11.25", "21.5"], ["640", "480", "640", "480"]]


def test_an_image_without_objects_has_its_file_and_stands_in_the_list(tmp_path: Path):
    export(write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": []})]), tmp_path / "to")
    root = ElementTree.parse(tmp_path / "to/Annotations/a.xml").getroot()
    assert root.findall("object") == []
    assert names_in_set(tmp_path / "to") == ["a"]


@pytest.mark.parametrize(
    ("label", "written"),
    [
        ("<img src=x onerror='alert(1)'>&amp;", None),
        ("a\0b\x1b[31m", "a\ufffdb\ufffd[31m"),
        ("two\nlines", None),
        ("]]>", None),
        ("\ufffe😀", "\ufffd😀"),
    ],
)
def test_labels_of_any_kind_leave_the_file_well_formed(tmp_path: Path, label: str, written: str | None):
    made = write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": [thing(label, (0, 0, 1, 1))]})])
    export(made, tmp_path / "to")
    root = ElementTree.parse(tmp_path / "to/Annotations/a.xml").getroot()
    assert root.findtext("object/name") == (label if written is None else written)


def test_labels_that_xml_would_make_one_are_told_apart_by_their_ids(tmp_path: Path):
    labels = ["a\0b", "a\ufffdb", "l\rm", "l\nm", "a\ufffdb (2)"]
    made = write_run(
        tmp_path / "out", "a", [Made("a.jpg", {"objects": [thing(each, (0, 0, 1, 1)) for each in labels]})]
    )
    export(made, tmp_path / "to")
    ids = json.loads((tmp_path / "out/categories.json").read_bytes())
    assert ids == {"a\0b": 1, "a\ufffdb": 2, "a\ufffdb (2)": 3, "l\nm": 4, "l\rm": 5}
    root = ElementTree.parse(tmp_path / "to/Annotations/a.xml").getroot()
    found = [each.findtext("name") for each in root.iter("object")]
    assert found == ["a\ufffdb", "a\ufffdb (2)", "l\nm (5)", "l\nm", "a\ufffdb (2) (3)"]
    listed = (tmp_path / "to/labelmap.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert listed == ["a\ufffdb:::", "a\ufffdb (2):::", "a\ufffdb (2) (3):::"]


def test_the_list_of_labels_has_those_that_it_can_say(tmp_path: Path):
    labels = ["car", "a: b", "# 1", " x", "", "two\nlines", "tram"]
    things = [thing(label, (0, 0, 1, 1)) for label in labels]
    export(write_run(tmp_path / "out", "a", [Made("a.jpg", {"objects": things})]), tmp_path / "to")
    assert (tmp_path / "to/labelmap.txt").read_text().splitlines()[1:] == ["car:::", "tram:::"]


def test_names_with_line_breaks_and_edges_of_space_keep_one_line_each(tmp_path: Path):
    images = [Made(name, {"objects": []}) for name in (" a.jpg", "a\nb.jpg", "a\u2028b.jpg")]
    export(write_run(tmp_path / "out", "a", images), tmp_path / "to")
    names = names_in_set(tmp_path / "to")
    assert names[:2] == ["_a", "a_b"]
    assert len(names) == len(set(names)) == 3
    assert all((tmp_path / "to/Annotations" / f"{name.strip()}.xml").is_file() for name in names)
