"""Paths: each leads to its value as the text spells it, and to nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tam_fast.explanation.paths import Field, document_of, fields_at, paths_of

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def at(text: str, path: str) -> list[Field]:
    document = document_of(text)
    assert document is not None
    return fields_at(document, path)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=3) | st.lists(VALUES, min_size=1, max_size=3))
def test_every_path_leads_to_its_value(value: Any) -> None:
    text = f"so: {json.dumps(value)}"
    document = document_of(text)
    assert document is not None
    paths = paths_of(document)
    assert len(set(paths)) == len(paths)
    for path in paths:
        (found,) = fields_at(document, path)
        assert found.path == path
        spelt = text[found.start : found.end]
        if isinstance(found.value, str) and found.value:
            assert json.loads(f'"{spelt}"') == found.value
        elif isinstance(found.value, list) and not spelt.startswith("["):
            numbers = re.sub(r"[][]", "", json.dumps(found.value))
            assert re.sub(r"[][]", "", spelt) == numbers
            assert spelt[0] + spelt[-1] == numbers[0] + numbers[-1]
        else:
            assert json.loads(spelt) == found.value


DOG = '{"label": "dog", "box": [1, 2, 30, 4.5], "at": [[1, 2], [3, 4]]}'
TEXT = '{"objects": [' + DOG + ', {"label": "cat"}], "a b": {"*": ""}}'


@pytest.mark.parametrize(
    ("path", "spelt", "values"),
    [
        ("$.objects[0].label", ["dog"], ["dog"]),
        ("objects[-1].label", ["cat"], ["cat"]),
        ("$['objects'][0][\"label\"]", ["dog"], ["dog"]),
        ("$.objects[*].label", ["dog", "cat"], ["dog", "cat"]),
        ("$.*[0].label", ["dog"], ["dog"]),
        ("$.objects[0].box", ["1, 2, 30, 4.5"], [[1, 2, 30, 4.5]]),
        ("$.objects[0].box[3]", ["4.5"], [4.5]),
        ("$.objects[0].at", ["1, 2], [3, 4"], [[[1, 2], [3, 4]]]),
        ("$.objects[0].at[1]", ["3, 4"], [[3, 4]]),
        ("$.objects[1]", ['{"label": "cat"}'], [{"label": "cat"}]),
        ("$['a b']['*']", ['""'], [""]),
        ("$.a b.*", ['""'], [""]),
        ("$", [TEXT], [json.loads(TEXT)]),
        ("$.objects[2]", [], []),
        ("$.objects.label", [], []),
        ("$.objects['0']", [], []),
        ("$[0]", [], []),
    ],
)
def test_paths_of_the_subset(path: str, spelt: list[str], values: list[Any]) -> None:
    found = at(TEXT, path)
    assert [TEXT[field.start : field.end] for field in found] == spelt
    assert [field.value for field in found] == values


@pytest.mark.parametrize(
    "path", ["", "$..label", "$.", "$a", "$[", "$[x]", "$[0", "$.a[?(@.b)]", "$['a]", "a..b", "$*", "$[1:2]"]
)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match=r"^path: expected one such as"):
        at(TEXT, path)
    with pytest.raises(TypeError, match=r"^path: expected a text"):
        at(TEXT, 3)  # type: ignore[arg-type]


def test_of_equal_keys_the_last_counts() -> None:
    (found,) = at('{"a": 1, "a": 2}', "a")
    assert (found.start, found.value) == (14, 2)


@pytest.mark.parametrize(
    ("text", "entries", "spelt"),
    [
        (
            "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>.",
            [{"ref": "a dog", "box": [10, 20, 30, 40]}],
            ["10,20),(30,40"],
        ),
        ("a dog(10,20),(30,40) and (1, 2),(3, 4)", [{"box": [10, 20, 30, 40]}, {"box": [1, 2, 3, 4]}], None),
        ("<ref>cat</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>", None, ["1, 2, 3, 4", "5, 6, 7, 8"]),
        ("<box>12 34 56.5 78</box>", [{"box": [12, 34, 56.5, 78]}], ["12 34 56.5 78"]),
        ("see <box>(10,20),(30", [{"box": [10, 20, 30]}], ["10,20),(30"]),
    ],
)
def test_boxes_in_marks_of_their_own(text: str, entries: Any, spelt: list[str] | None) -> None:
    boxes = at(text, "$[*].box")
    if entries is not None:
        assert at(text, "$")[0].value == entries
    if spelt is not None:
        assert [text[box.start : box.end] for box in boxes] == spelt


def test_json_comes_before_marks_within_it() -> None:
    assert at('{"said": "<box>(1,2),(3,4)</box>"}', "said")[0].value == "<box>(1,2),(3,4)</box>"
    assert document_of("a dog (10, 20) runs") is None
