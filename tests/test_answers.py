"""Every deviation that pixscribe.answers has a rule for, and what the rule makes of it."""

import base64
import io
import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixscribe.answers import MAX_BRACKETS, MAX_OBJECTS, MAX_TEXT_BYTES, PARSER_VERSION, parse_answer
from pixscribe.errors import AnswerError
from pixscribe.types import Kind, ModelObject, ParsedAnswer

CAT = {"box_2d": [100, 200, 300, 400], "label": "cat"}
DOG = {"box_2d": [500, 600, 700, 800], "label": "dog"}
TRIANGLE = (10.0, 20.0, 30.0, 20.0, 30.0, 60.0)


def detect(*items: Any, labels: tuple[str, ...] = ()) -> ParsedAnswer:
    return parse_answer(json.dumps({"boxes": list(items)}), "detect", labels)


def only(parsed: ParsedAnswer) -> ModelObject:
    assert len(parsed.objects) == 1
    return parsed.objects[0]


def segment_with_mask(mask: Any) -> ModelObject:
    return only(parse_answer(json.dumps({"boxes": [CAT | {"mask": mask}]}), "segment"))


def names(parsed: ParsedAnswer) -> list[str | None]:
    return [found.label for found in parsed.objects]


def code_of(text: str, kind: Kind = "detect") -> str:
    with pytest.raises(AnswerError) as caught:
        parse_answer(text, kind)
    return caught.value.code


def png(mode: str = "L", file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4), 255).save(buffer, file_format)
    return buffer.getvalue()


# ---- a good answer ----


def test_a_good_answer_needs_no_repair():
    parsed = detect(CAT, DOG)
    assert parsed == ParsedAnswer(
        objects=(
            ModelObject("cat", (100.0, 200.0, 300.0, 400.0), (100.0, 200.0, 300.0, 400.0)),
            ModelObject("dog", (500.0, 600.0, 700.0, 800.0), (500.0, 600.0, 700.0, 800.0)),
        )
    )


def test_a_good_segment_answer_gives_polygons_x_first():
    found = segment_with_mask([[10, 20], [30, 20], [30, 60]])
    assert (found.polygons, found.mask_png, found.flags) == ((TRIANGLE,), None, ())


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("caption", '{"caption": "A red car."}', ["A red car."]),
        ("ask", '{"answer": "three"}', ["three"]),
        ("classify", '{"labels": ["indoor", "night"]}', ["indoor", "night"]),
    ],
)
def test_answers_in_words_become_labels(kind: Kind, text: str, words: list[str]):
    parsed = parse_answer(text, kind)
    assert parsed == ParsedAnswer(objects=tuple(ModelObject(word) for word in words))


def test_an_empty_list_is_a_success_without_objects():
    assert parse_answer('{"boxes": []}', "detect") == ParsedAnswer(objects=())
    assert parse_answer("[]", "segment").objects == ()
    assert parse_answer('{"labels": []}', "classify").objects == ()


def test_the_parser_has_a_version():
    assert PARSER_VERSION


# ---- the answer as a whole ----


@pytest.mark.parametrize("text", ["", " \n\t "])
@pytest.mark.parametrize("kind", ["detect", "caption"])
def test_an_empty_text_is_a_failure(text: str, kind: Kind):
    assert code_of(text, kind) == "invalid_answer"


@pytest.mark.parametrize(
    ("text", "repairs"),
    [
        pytest.param("```json\n{}\n```", ("fenced",), id="fence"),
        pytest.param("```\n{}\n```", ("fenced",), id="fence-without-language"),
        pytest.param("Here you are: {} Enjoy!", ("surrounded",), id="prose"),
        pytest.param("I looked [twice] at it. {}", ("surrounded",), id="prose-with-brackets"),
        pytest.param("Found:\n```json\n{}\n```\nDone.", ("fenced", "surrounded"), id="fence-in-prose"),
        pytest.param("{}}]", ("surrounded",), id="trailing-brackets"),
        pytest.param("\ufeff{}", ("lenient_json",), id="byte-order-mark"),
    ],
)
def test_what_surrounds_the_json_is_ignored(text: str, repairs: tuple[str, ...]):
    parsed = parse_answer(text.replace("{}", json.dumps({"boxes": [CAT]})), "detect")
    assert (names(parsed), parsed.repairs, parsed.truncated) == (["cat"], repairs, False)


@pytest.mark.parametrize(
    ("value", "repairs"),
    [
        ([CAT], ("bare_list",)),
        (CAT, ("bare_object",)),
        ({"objects": [CAT]}, ("wrapper",)),
        ({"items": [CAT], "count": 1}, ("wrapper",)),
        ({"signs": [CAT], "image": "street"}, ("wrapper",)),
        ({"result": {"boxes": [CAT]}}, ("wrapper",)),
        ([{"boxes": [CAT]}], ("bare_list", "wrapper")),
        ([[CAT]], ("bare_list", "wrapper")),
        ({"boxes": [CAT], "note": "one"}, ()),
        (json.dumps({"boxes": [CAT]}), ("double_encoded",)),
    ],
)
def test_another_shape_is_unwrapped(value: Any, repairs: tuple[str, ...]):
    parsed = parse_answer(json.dumps(value), "detect")
    assert (names(parsed), parsed.repairs) == (["cat"], repairs)


def test_a_second_list_beside_the_objects_is_mentioned():
    parsed = parse_answer(json.dumps({"boxes": [CAT], "objects": [DOG]}), "detect")
    assert (names(parsed), parsed.dropped) == (["cat"], ("list 'objects' beside 'boxes'",))


@pytest.mark.parametrize(
    "text", ["null", "3", "true", '"no cats"', "[1, 2, 3, 4]", '{"boxes": null}', '{"error": "no"}']
)
def test_json_of_another_shape_is_refused(text: str):
    assert code_of(text) == "invalid_answer"


def test_an_empty_list_beside_other_things_is_not_taken_for_none():
    assert code_of('{"error": "too dark", "details": []}') == "invalid_answer"


def test_words_instead_of_json_are_refused_where_boxes_were_asked_for():
    assert code_of("I am sorry, I cannot help with that.") == "invalid_json"


def test_two_blocks_are_joined_and_their_repeats_collapse():
    text = f"{json.dumps([CAT])}\n\n{json.dumps([CAT, DOG])}"
    parsed = parse_answer(text, "detect")
    assert names(parsed) == ["cat", "dog"]
    assert parsed.repairs == ("bare_list", "several_blocks", "repeated")


def test_one_object_per_line_is_a_list():
    parsed = parse_answer(f"{json.dumps(CAT)}\n{json.dumps(DOG)}", "detect")
    assert (names(parsed), parsed.repairs) == (["cat", "dog"], ("bare_object",))


def test_a_cut_block_after_a_complete_one_is_ignored():
    parsed = parse_answer(json.dumps({"boxes": [CAT]}) + '\n{"boxes": [{"box_2d": [1, 2', "detect")
    assert (names(parsed), parsed.repairs[-1], parsed.truncated) == (["cat"], "trailing_fragment", False)


def test_nan_and_infinity_are_read_and_their_boxes_dropped():
    parsed = parse_answer(
        '{"boxes": [{"box_2d": [NaN, 2, 3, 4], "label": "a"}, {"box_2d": [1, 2, Infinity, 4], "label": "b"},'
        ' {"box_2d": [1, 2, 3, 4], "label": "c"}]}',
        "detect",
    )
    assert (names(parsed), parsed.repairs) == (["c"], ("lenient_json",))
    assert parsed.dropped == ("object 0: nan is no number", "object 1: inf is no number")


def test_control_characters_inside_strings_are_read():
    parsed = parse_answer('{"boxes": [{"box_2d": [1, 2, 3, 4], "label": "a\n\tb"}]}', "detect")
    assert (names(parsed), parsed.repairs) == (["a\n\tb"], ("lenient_json",))


def test_a_missing_comma_costs_only_its_object():
    parsed = parse_answer(
        '[{"box_2d": [1, 2, 3, 4], "label": "a"}, {"box_2d": [5 6], "label": "b"}, ' + json.dumps(CAT) + "]", "detect"
    )
    assert (names(parsed), parsed.repairs, parsed.truncated) == (["a", "cat"], ("bare_object", "broken_json"), False)
    assert parsed.dropped == ("the JSON breaks at character 55; what is there is lost",)


# ---- cut answers ----

WHOLE = json.dumps({"boxes": [CAT | {"mask": [[1, 2], [3, 4], [5, 9]]}, DOG | {"mask": [[{"x": 1, "y": 2}]]}]})


@pytest.mark.parametrize("length", range(1, len(WHOLE)))
def test_wherever_the_answer_is_cut_the_complete_objects_are_kept(length: int):
    text = WHOLE[:length]
    first_end, second_end = WHOLE.index(', {"box_2d": [500'), len(WHOLE) - len("]}")
    complete = (length >= first_end) + (length >= second_end)
    if not complete:
        assert code_of(text, "segment") == "truncated"
        return
    parsed = parse_answer(text, "segment")
    assert names(parsed) == ["cat", "dog"][:complete]
    assert parsed.truncated


@pytest.mark.parametrize(
    "tail",
    [
        "",
        ',{"box_2d":[5',
        ',{"box_2d":[],"tags":[],"la',
        ',{"label":"do',
        ',{"label":"\\u12',
        ',{"label":"\\',
        ",nu",
        ",-",
    ],
)
def test_every_kind_of_cut_is_told_from_broken_json(tail: str):
    parsed = parse_answer(f"[{json.dumps(CAT)}{tail}", "detect")
    assert (names(parsed), parsed.truncated) == (["cat"], True)


def test_a_cut_inside_a_fence_is_a_cut():
    parsed = parse_answer(f'```json\n[{json.dumps(CAT)}, {{"box_2d": [1, 2\n```', "detect")
    assert (names(parsed), parsed.truncated, parsed.repairs) == (["cat"], True, ("bare_object", "fenced"))


def test_an_endless_mask_keeps_the_objects_before_it():
    parsed = parse_answer(
        f'{{"boxes": [{json.dumps(CAT)}, {{"box_2d": [1, 2, 3, 4], "mask": "{"iVBO" * 50_000}', "segment"
    )
    assert (names(parsed), parsed.truncated) == (["cat"], True)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"boxes": [', "detect"),
        ('{"boxes": [], "no', "detect"),
        ('{"boxes": [{"box_2d": [1, 2, 3, 4], "tags": [], "mask": [{"x": 1, "y": 2}], "l', "segment"),
        ('{"caption": "A red c', "caption"),
        ('```json\n{"caption": "A red c', "caption"),
        ('{"answer": {"text": "x"}, "y', "ask"),
        ('{"labels": ["cat", "do', "classify"),
    ],
)
def test_an_answer_cut_before_anything_is_complete_is_truncated(text: str, kind: Kind):
    assert code_of(text, kind) == "truncated"


# ---- loops and limits ----


def test_a_repetition_loop_collapses_to_one_flagged_object():
    parsed = detect(CAT, *[DOG] * 400)
    assert [(found.label, found.flags) for found in parsed.objects] == [("cat", ()), ("dog", ("repeated",))]
    assert parsed.repairs == ("repeated",)


def test_a_loop_of_two_objects_collapses_too():
    assert names(detect(*[CAT, DOG] * 200)) == ["cat", "dog"]


def test_objects_that_differ_in_one_number_are_not_repeats():
    assert len(detect(CAT, CAT | {"box_2d": [100, 200, 300, 401]}).objects) == 2


def test_objects_beyond_the_limit_are_left_out_and_said_to_be():
    parsed = detect(*({"box_2d": [0, 0, 1, n], "label": "x"} for n in range(2, MAX_OBJECTS + 12)))
    assert len(parsed.objects) == MAX_OBJECTS
    assert (parsed.repairs, parsed.dropped) == (("object_limit",), ("objects after the first 1000 are not read",))


def test_a_text_of_more_than_4_mib_is_refused():
    assert code_of("é" * (MAX_TEXT_BYTES // 2 + 1), "caption") == "invalid_answer"


SPACED = MAX_TEXT_BYTES // MAX_BRACKETS + 2
"""So far apart brackets may be in a text of the greatest length without being too many."""

HOSTILE = {
    "open-lists": "[",
    "open-objects": '{"a":',
    "empty-lists": "[],",
    "empty-objects": "{},",
    "bad-lists": "[x",
    "bad-objects": "{x",
    "lists-of-one": "[1,[",
    "open-strings": '["',
    "escaped-quotes": '["\\"',
    "objects": '{"label":1}',
    "spaced-lists": "[],".ljust(SPACED),
    "spaced-objects": "{},".ljust(SPACED),
    "spaced-open-objects": '{"a":'.ljust(SPACED),
    "spaced-bad-lists": "[x".ljust(SPACED),
    "spaced-bad-objects": "{x".ljust(SPACED),
    "spaced-points": "[100.00001, 200.00001],".ljust(SPACED),
    "spaced-boxes": '{"label": "cat", "box_2d": [1, 2, 3, 4]}, '.ljust(2 * SPACED),
    "points": "[1,2],",
    "prose": "word ",
    "new-lines": "\n",
    "digits": "1",
    "fences": "```json\n",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("start", ["", "x", "[", '[{"label":"a"},', '{"boxes":['])
def test_the_time_for_a_hostile_text_grows_with_its_length_and_not_with_its_square(start: str, unit: str):
    quarter_s, whole_s = (parse_seconds(start, unit, size) for size in (MAX_TEXT_BYTES // 16, MAX_TEXT_BYTES // 4))
    # four times the time if linear, sixteen if quadratic; below a fifth of a second a busy machine says little
    assert whole_s < 10 * max(quarter_s, 0.2)


def parse_seconds(start: str, unit: str, size_bytes: int) -> float:
    """CPU seconds for `start` and then nothing but `unit`."""
    text = start + unit * ((size_bytes - len(start)) // len(unit))
    began_s = time.process_time()
    with suppress(AnswerError):
        assert len(parse_answer(text, "detect").objects) <= 1
    return time.process_time() - began_s


def test_a_text_of_endless_brackets_is_refused():
    assert code_of("[" * (MAX_BRACKETS + 1)) == "invalid_answer"
    assert code_of("[" * MAX_BRACKETS) == "invalid_json"


def test_lists_nested_in_wide_lists_do_not_take_quadratic_time():
    text = ("[" + "1," * 2_000) * 900
    began_s = time.process_time()
    assert code_of(text) == "truncated"
    assert time.process_time() - began_s < 1.0


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet='[]{}",:0123456789.-\\ \nabox_2dlabelmasknul`', max_size=200),
    kind=st.sampled_from(["detect", "segment", "caption", "classify", "ask"]),
)
def test_whatever_the_text_the_answer_is_objects_or_an_answer_error(text: str, kind: Kind):
    with suppress(AnswerError):
        parsed = parse_answer(text, kind)
        assert all(found.label or found.box or found.polygons for found in parsed.objects)


# ---- boxes ----


def test_swapped_corners_are_put_in_order():
    found = only(detect({"box_2d": [300, 200, 100, 400], "label": "cat"}))
    assert found.box == (100.0, 200.0, 300.0, 400.0)
    assert (found.box_2d, found.flags) == ((300.0, 200.0, 100.0, 400.0), ("corners_swapped",))


def test_numbers_out_of_range_are_kept_for_geometry_to_clip():
    assert only(detect({"box_2d": [-50, 0, 1200.5, 1000], "label": "cat"})).box == (-50.0, 0.0, 1200.5, 1000.0)


def test_numerals_are_converted_and_flagged():
    found = only(detect({"box_2d": ["100", 200, " 300.5 ", "400"], "label": "cat"}))
    assert (found.box, found.flags) == ((100.0, 200.0, 300.5, 400.0), ("numbers_from_text",))


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([100, 200, 100, 400], "box_2d [100.0, 200.0, 100.0, 400.0] has no area"),
        ([100, 200, 300], "box_2d has 3 numbers, not 4"),
        ([1, 2, 3, 4, 5], "box_2d has 5 numbers, not 4"),
        ([], "box_2d has 0 numbers, not 4"),
        ([1, 2, True, 4], "True is no number"),
        ([1, 2, None, 4], "None is no number"),
        ([1, 2, "wide", 4], "'wide' is no number"),
        ([1, 2, "nan", 4], "'nan' is no number"),
        ([1, 2, "1_000", 4], "'1_000' is no number"),
        ([1, 2, [3], 4], "[3] is no number"),
        ([1, 2, 10**400, 4], "is no number"),
        ("1 2 3 4", "box_2d is '1 2 3 4', not a list of numbers"),
        ({"ymin": 1}, "box_2d is {'ymin': 1}, not a list of numbers"),
        (None, "no box_2d"),
    ],
)
def test_an_unusable_box_is_dropped_with_its_reason(box: Any, reason: str):
    parsed = detect({"box_2d": box, "label": "bad"}, CAT)
    assert names(parsed) == ["cat"]
    assert len(parsed.dropped) == 1
    assert parsed.dropped[0].startswith("object 0: ")
    assert reason in parsed.dropped[0]


@pytest.mark.parametrize("key", ["box2d", "BOX_2D", "box-2d", "box_2D"])
def test_another_spelling_of_box_2d_is_taken(key: str):
    found = only(detect({key: [100, 200, 300, 400], "label": "cat"}))
    assert (found.box, found.flags) == ((100.0, 200.0, 300.0, 400.0), ("renamed_key",))


@pytest.mark.parametrize("key", ["bbox", "box", "bounding_box"])
def test_a_box_whose_axis_order_is_not_known_is_dropped(key: str):
    parsed = detect({key: [100, 200, 300, 400], "label": "which way?"}, CAT)
    assert (names(parsed), parsed.dropped) == (["cat"], (f"object 0: the order of the axes in '{key}' is not known",))


def test_an_item_that_is_no_object_is_dropped():
    assert detect(CAT, 7, "dog").dropped == ("object 1: no object but 7", "object 2: no object but 'dog'")


def test_objects_of_which_none_is_usable_are_a_failure_that_says_why():
    with pytest.raises(AnswerError, match="none of 1 objects is usable: object 0: box_2d has 3 numbers") as caught:
        detect({"box_2d": [1, 2, 3], "label": "cat"})
    assert caught.value.code == "invalid_answer"


def test_an_answer_all_within_0_and_1_is_multiplied_by_1000():
    parsed = detect({"box_2d": [0, 0.25, 0.5, 1], "label": "a"}, {"box_2d": [0, 0, 1, 1], "label": "b"})
    assert [found.box for found in parsed.objects] == [(0.0, 250.0, 500.0, 1000.0), (0.0, 0.0, 1000.0, 1000.0)]
    assert [found.flags for found in parsed.objects] == [("scale_0_1",), ("scale_0_1",)]
    assert parsed.objects[0].box_2d == (0.0, 0.25, 0.5, 1.0)


def test_one_box_beyond_1_keeps_the_whole_answer_in_0_to_1000():
    parsed = detect({"box_2d": [0, 0.25, 0.5, 1], "label": "a"}, CAT)
    assert parsed.objects[0].box == (0.0, 0.25, 0.5, 1.0)


def test_a_box_of_integers_0_and_1_stays_in_0_to_1000():
    assert only(detect({"box_2d": [0, 0, 1, 1], "label": "speck"})).box == (0.0, 0.0, 1.0, 1.0)


def test_polygons_in_0_to_1_are_judged_apart_from_the_boxes():
    found = segment_with_mask([[0.1, 0.2], [0.5, 0.2], [0.5, 1]])
    assert found.box == (100.0, 200.0, 300.0, 400.0)
    assert found.polygons == ((100.0, 200.0, 500.0, 200.0, 500.0, 1000.0),)
    assert found.flags == ("scale_0_1",)


# ---- polygons and masks ----


@pytest.mark.parametrize(
    ("mask", "flags"),
    [
        pytest.param([10, 20, 30, 20, 30, 60], ("polygon_flat",), id="flat"),
        pytest.param([{"x": 10, "y": 20}, {"x": 30, "y": 20}, {"y": 60, "x": 30}], ("polygon_named",), id="named"),
        pytest.param("10,20 30,20 30,60", ("polygon_text",), id="text"),
        pytest.param("[[10, 20], [30, 20], [30, 60]]", ("polygon_text",), id="json-in-text"),
        pytest.param("[10,20],[30,20],[30,60]", ("polygon_text",), id="points-in-text"),
        pytest.param(["10,20", "30 20", "(30, 60)"], ("polygon_text",), id="list-of-texts"),
        pytest.param([["10", "20"], [30, "20"], [30, 60]], ("numbers_from_text",), id="numerals"),
        pytest.param([[[10, 20], [30, 20], [30, 60]]], ("polygon_rings",), id="nested"),
        pytest.param([[10, 20, 30, 20, 30, 60]], ("polygon_rings", "polygon_flat"), id="nested-flat"),
    ],
)
def test_a_polygon_is_read_in_every_form(mask: Any, flags: tuple[str, ...]):
    found = segment_with_mask(mask)
    assert (found.polygons, found.flags) == ((TRIANGLE,), flags)


def test_several_rings_are_several_polygons():
    found = segment_with_mask([[[10, 20], [30, 20], [30, 60]], [[1, 1], [2, 1], [2, 2], [1, 2]], [[5, 5], [6, 6]]])
    assert found.polygons == (TRIANGLE, (1.0, 1.0, 2.0, 1.0, 2.0, 2.0, 1.0, 2.0))
    assert found.flags == ("polygon_rings", "polygon_too_short")


@pytest.mark.parametrize(
    ("mask", "flag"),
    [
        pytest.param(None, "no_mask", id="null"),
        pytest.param([], "no_mask", id="empty-list"),
        pytest.param("", "no_mask", id="empty-text"),
        pytest.param([[10, 20], [30, 20]], "polygon_too_short", id="two-points"),
        pytest.param([10, 20, 30, 20, 30, 60, 7], "mask_unusable", id="odd"),
        pytest.param("1 2 3 4 5", "mask_unusable", id="odd-text"),
        pytest.param([[10, 20], [30, None], [30, 60]], "mask_unusable", id="null-coordinate"),
        pytest.param([[10, 20, 5], [30, 20, 5], [30, 60, 5]], "mask_unusable", id="three-coordinates"),
        pytest.param([[10, 20], [True, 20], [30, 60]], "mask_unusable", id="bool"),
        pytest.param([[]], "mask_unusable", id="empty-point"),
        pytest.param({"size": [2, 2]}, "mask_unusable", id="object"),
        pytest.param(5, "mask_unusable", id="number"),
        pytest.param("<start_of_mask><seg_35><seg_7>", "mask_tokens", id="tokens"),
        pytest.param("<seg_35><seg_7>", "mask_tokens", id="tokens-without-start"),
        pytest.param("data:image/png;base64,iVBO", "mask_not_png", id="cut-png"),
        pytest.param("data:image/png;base64,iVB", "mask_unreadable", id="broken-base64"),
        pytest.param("the left half", "mask_unreadable", id="words"),
        pytest.param("die Hälfte", "mask_unreadable", id="words-not-ascii"),
    ],
)
def test_a_mask_that_cannot_be_used_leaves_the_box(mask: Any, flag: str):
    found = segment_with_mask(mask)
    assert found.box == (100.0, 200.0, 300.0, 400.0)
    assert (found.polygons, found.mask_png, found.flags) == ((), None, (flag,))


def test_a_png_mask_is_taken_with_and_without_its_prefix():
    encoded = base64.b64encode(png()).decode()
    whole, bare = segment_with_mask(f"data:image/png;base64,{encoded}"), segment_with_mask(encoded)
    assert (whole.mask_png, whole.flags) == (png(), ())
    assert (bare.mask_png, bare.flags) == (png(), ("mask_no_prefix",))


def test_line_breaks_inside_base64_do_no_harm():
    assert segment_with_mask("data:image/png;base64," + base64.encodebytes(png()).decode()).mask_png == png()


@pytest.mark.parametrize("prefix", ["data:image/jpeg;base64,", "data:image/png;base64,", ""])
def test_a_jpeg_is_no_mask(prefix: str):
    found = segment_with_mask(prefix + base64.b64encode(png(file_format="JPEG")).decode())
    assert (found.mask_png, found.flags) == (None, ("mask_not_png",))


def test_a_good_polygon_saves_an_object_without_a_usable_box():
    found = only(
        parse_answer('{"boxes": [{"box_2d": [1, 2, 3], "mask": [10,20,30,20,30,60], "label": "a"}]}', "segment")
    )
    assert (found.box, found.box_2d, found.polygons) == (None, (1.0, 2.0, 3.0), (TRIANGLE,))
    assert found.flags == ("polygon_flat", "box_unusable")


def test_a_png_without_a_usable_box_has_no_place_and_is_dropped():
    item = {"box_2d": [1, 2, 3], "mask": base64.b64encode(png()).decode(), "label": "a"}
    assert code_of(json.dumps({"boxes": [item]}), "segment") == "invalid_answer"


# ---- labels ----


@pytest.mark.parametrize("label", ["x" * 10_000, "a\x00b", "two\nlines", "<b>&amp;</b>", "🐈\u200d⬛", " padded "])
def test_a_label_is_stored_exactly(label: str):
    found = only(detect(CAT | {"label": label}))
    assert (found.label, found.flags) == (label, ())


@pytest.mark.parametrize("label", [None, "", "  ", [], {"en": "cat"}])
def test_a_label_that_is_none_is_null_and_flagged(label: Any):
    found = only(detect(CAT | {"label": label}))
    assert (found.label, found.flags) == (None, ("no_label",))


def test_a_missing_label_is_null_and_flagged():
    found = only(detect({"box_2d": [1, 2, 3, 4]}))
    assert (found.label, found.flags) == (None, ("no_label",))


@pytest.mark.parametrize("key", ["name", "class"])
def test_a_label_under_another_name_is_taken(key: str):
    found = only(detect({"box_2d": [1, 2, 3, 4], key: "cat"}))
    assert (found.label, found.flags) == ("cat", ("renamed_key",))


@pytest.mark.parametrize(("label", "text"), [(7, "7"), (2.5, "2.5"), (True, "true")])
def test_a_label_that_is_a_number_becomes_its_json_text(label: Any, text: str):
    found = only(detect(CAT | {"label": label}))
    assert (found.label, found.flags) == (text, ("label_not_text",))


def test_a_lone_surrogate_is_replaced_so_that_parquet_can_hold_it():
    found = only(parse_answer('{"boxes": [{"box_2d": [1, 2, 3, 4], "label": "a\\ud800b"}]}', "detect"))
    assert (found.label, found.flags) == ("a\ufffdb", ("label_not_unicode",))
    assert only(parse_answer("caf\ud800", "caption")).label == "caf\ufffd"


@pytest.mark.parametrize(
    ("label", "stored", "flags"),
    [
        ("Stop sign", "Stop sign", ()),
        (" stop  SIGN", "Stop sign", ("label_normalized",)),
        ("yield", "yield", ("unknown_label",)),
        ("", None, ("no_label",)),
    ],
)
def test_a_label_is_matched_against_the_vocabulary(label: str, stored: str | None, flags: tuple[str, ...]):
    found = only(detect(CAT | {"label": label}, labels=("Stop sign", "Traffic light")))
    assert (found.label, found.flags) == (stored, flags)


# ---- words ----


@pytest.mark.parametrize(
    ("text", "kind", "words", "repairs"),
    [
        ("A red car.\n", "caption", "A red car.", ("plain_text",)),
        ('"A red car."', "caption", "A red car.", ("plain_text",)),
        ("The sign says {STOP} [twice]", "caption", "The sign says {STOP} [twice]", ("plain_text",)),
        ("42", "ask", "42", ("plain_text",)),
        ('{"description": "A red car."}', "caption", "A red car.", ("wrapper",)),
        ('{"reply": "three"}', "ask", "three", ("wrapper",)),
        ('["three"]', "ask", "three", ("bare_list",)),
        ('```json\n{"answer": "three"}\n```', "ask", "three", ("fenced",)),
        ('Sure: {"answer": "three"}', "ask", "three", ("surrounded",)),
        ('{"answer": "three"} {"answer": "four"}', "ask", "three", ("several_blocks",)),
    ],
)
def test_words_are_found_where_the_model_put_them(text: str, kind: Kind, words: str, repairs: tuple[str, ...]):
    parsed = parse_answer(text, kind)
    assert (names(parsed), parsed.repairs) == ([words], repairs)


def test_an_answer_that_is_a_number_becomes_text():
    assert only(parse_answer('{"answer": 3}', "ask")) == ModelObject("3", flags=("label_not_text",))


@pytest.mark.parametrize("text", ['{"caption": ""}', '{"caption": null}', "null", '{"a": "b", "c": "d"}', "{}"])
def test_a_caption_without_words_is_a_failure(text: str):
    assert code_of(text, "caption") == "invalid_answer"


@pytest.mark.parametrize(
    ("text", "repairs"),
    [
        ('["cat", "dog"]', ("bare_list",)),
        ('{"classes": ["cat", "dog"]}', ("wrapper",)),
        ('[{"label": "cat"}, {"label": "dog"}]', ("bare_list",)),
        ('{"labels": ["cat", "dog", "dog", "cat"]}', ("repeated",)),
        ('Labels: ["cat", "dog"]', ("bare_list", "surrounded")),
    ],
)
def test_classes_are_found_where_the_model_put_them(text: str, repairs: tuple[str, ...]):
    parsed = parse_answer(text, "classify")
    assert (names(parsed), parsed.repairs) == (["cat", "dog"], repairs)


def test_one_class_alone_is_taken():
    assert names(parse_answer('{"label": "cat"}', "classify")) == ["cat"]
    assert names(parse_answer('"cat"', "classify")) == ["cat"]


def test_classes_are_matched_against_the_vocabulary():
    parsed = parse_answer('{"labels": ["CAT", "bird", ""]}', "classify", ["cat"])
    assert [(found.label, found.flags) for found in parsed.objects] == [
        ("cat", ("label_normalized",)),
        ("bird", ("unknown_label",)),
    ]
    assert parsed.dropped == ("object 2: '' holds no words",)


def test_half_a_json_string_is_not_taken_for_plain_words():
    assert code_of('"A red c', "caption") == "invalid_json"


def test_plain_words_are_no_classes():
    assert code_of("It looks like a cat.", "classify") == "invalid_json"


# ---- cost ----


def test_a_good_answer_costs_microseconds_a_box():
    text = json.dumps({"boxes": [{"box_2d": [n, n, n + 10, n + 10], "label": "cat"} for n in range(20)]})
    began_s = time.process_time()
    for _ in range(100):
        parse_answer(text, "detect")
    # 10 to 30 us a box on a slow core; the bound leaves room for one that is busy with other things
    assert (time.process_time() - began_s) / (100 * 20) < 0.000_1
