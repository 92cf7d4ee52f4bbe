"""The words and the schema of each kind of prompt."""

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from pixscribe.errors import ConfigError
from pixscribe.prompts import make_question
from pixscribe.types import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)


def test_a_prompt_without_text_gets_the_default_of_its_kind():
    assert make_question("objects", "detect", None, []).text == "Detect every prominent object in the image."


def test_the_default_text_names_a_closed_vocabulary():
    question = make_question("pets", "detect", None, ["cat", "dog"])
    assert question.text == "Detect every instance of these classes in the image: cat, dog."
    assert question.labels == ("cat", "dog")


def test_the_placeholder_is_replaced_and_other_braces_stay():
    question = make_question("pets", "detect", "Find {labels} in {this} {{}} %s \\n: {labels}", ["cat", "dog"])
    assert question.text == "Find cat, dog in {this} {{}} %s \\n: cat, dog"


def test_a_label_that_is_itself_a_placeholder_is_not_expanded():
    assert make_question("odd", "detect", "Find {labels}.", ["{labels}", "x"]).text == "Find {labels}, x."


def test_a_text_without_placeholder_is_sent_unchanged_and_the_schema_carries_the_labels():
    question = make_question("pets", "detect", "Find the pets.", ["cat", "dog"])
    assert question.text == "Find the pets."
    assert question.schema["properties"]["boxes"]["items"]["properties"]["label"]["enum"] == ["cat", "dog"]


def test_a_placeholder_without_labels_is_refused():
    with pytest.raises(ConfigError, match=r'prompt "pets": text contains \{labels\}'):
        make_question("pets", "detect", "Find {labels}.", [])


def test_ask_has_no_default_text():
    with pytest.raises(ConfigError, match='prompt "colour": kind "ask" has no default text'):
        make_question("colour", "ask", None, ["red", "blue"])


@pytest.mark.parametrize(
    ("kind", "field"),
    [("detect", "boxes"), ("segment", "boxes"), ("caption", "caption"), ("classify", "labels"), ("ask", "answer")],
)
def test_the_schema_asks_for_the_field_of_its_kind(kind: Kind, field: str):
    assert list(make_question("p", kind, "text", []).schema["properties"]) == [field]


def test_a_segment_object_has_a_box_a_polygon_and_a_label():
    item = make_question("p", "segment", None, []).schema["properties"]["boxes"]["items"]
    assert item["required"] == ["box_2d", "mask", "label"]
    assert item["properties"]["mask"]["items"]["items"] == {"type": "integer"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_of_a_schema_requires_every_field_and_no_list_is_bounded(kind: Kind):
    schema = make_question("p", kind, "text", ["a"]).schema
    nodes = list(_nodes(dict(schema)))
    assert all(list(node["properties"]) == node["required"] for node in nodes if node.get("type") == "object")
    assert not any({"minItems", "maxItems"} & node.keys() for node in nodes)


def test_the_schema_tells_the_axis_order_of_boxes_and_of_polygons():
    text = json.dumps(make_question("p", "segment", None, []).schema)
    assert "[ymin, xmin, ymax, xmax], normalized to 0-1000" in text
    assert "[x, y] points, normalized to 0-1000" in text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ask"])
def test_a_default_text_does_not_restate_the_json(kind: Kind):
    text = make_question("p", kind, None, ["cat"]).text
    assert not any(word in text.lower() for word in ("json", "box_2d", "ymin", "mask"))


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from _nodes(child)
