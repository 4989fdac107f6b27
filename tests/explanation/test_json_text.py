"""JSON in a text: the same as ``json.loads`` where that reads it, with places, and the beginnings that it refuses."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tam_fast.explanation.json_text import JSONTextError, Node, find_json, scan

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=6)
    | st.sampled_from(["\ud83d\ude00", "\ud83d", "\ude00\ud83d", "😀", '"', "\\", "\u2028", "\x1f"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
)
STYLES = st.builds(
    lambda indent, ascii, separators: {"indent": indent, "ensure_ascii": ascii, "separators": separators},
    st.sampled_from([None, 0, 2, "\t"]),
    st.booleans(),
    st.sampled_from([None, (",", ":"), (" ,\r\n", "\t:  ")]),
)


def read(text: str) -> str | None:
    """What a reader of whole documents makes of a text, as something to compare; None if it is none."""
    try:
        node = scan(text)
    except JSONTextError:
        return None
    return repr(node.value) if not text[node.end :].strip(" \t\n\r") else None


def loaded(text: str) -> str | None:
    try:
        return repr(json.loads(text))
    except ValueError:
        return None


def nodes(node: Node) -> list[Node]:
    return [node, *(below for child in node.children.values() for below in nodes(child))]


@given(VALUES, STYLES)
def test_documents_read_as_json_does(value: Any, style: dict[str, Any]) -> None:
    text = json.dumps(value, **style)
    node = scan(text)
    assert repr(node.value) == repr(json.loads(text))
    for below in nodes(node):
        assert below.is_whole
        assert repr(json.loads(text[below.start : below.end])) == repr(below.value)


@given(VALUES, STYLES, st.data())
def test_changed_documents_are_refused_as_json_does(value: Any, style: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(value, **style)
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 2))
    added = data.draw(
        st.sampled_from([*'"\\{}[],:0-.eEuN \n\x01', "\\u12", "\\x", "01", "1.", "NaN", "-Infinity", "٣"])
    )
    changed = text[:at] + added + text[at + cut :]
    assert read(changed) == loaded(changed)


ODD = r"""
{"a": 1, "a": [2]}|[1.]|[01]|[+1]|[.5]|[-]|[1e]|[1e+5]|[-0, -0.0, 1E400]|{'a': 1}|[1,]|{"a": 1,}|["\u00e"]
["\ud83d\u0041"]|["\ud83d\ude00"]|["\a"]|[tru]|[nan]|[-Infinity]|{"a" 1}|{1: 2}|[1 2]|  |[
"""


@pytest.mark.parametrize(
    "text", [*(text for text in re.split(r"[|\n]", ODD)), '["\t"]', '["\x7f"]', "[\u00a01]", "[\u0661]", "", "9" * 5000]
)
def test_odd_documents(text: str) -> None:
    assert read(text) == loaded(text)


@pytest.mark.long
@settings(max_examples=40)
@given(st.lists(VALUES, max_size=4) | st.dictionaries(st.text(max_size=3), VALUES, max_size=4), STYLES)
def test_every_beginning_of_a_document_is_read(value: Any, style: dict[str, Any]) -> None:
    """All values that are closed by then are there, and no others but what has begun."""
    text = json.dumps(value, **style)
    whole = {(node.start, node.end): repr(node.value) for node in nodes(scan(text))}
    for length in range(1, len(text)):
        node = scan(text[:length], cut=True)
        assert not node.is_whole
        read = {(below.start, below.end): repr(below.value) for below in nodes(node)}
        assert {place: found for place, found in whole.items() if place[1] < length}.items() <= read.items()
        assert {start for start, _ in read} <= {start for start, _ in whole}
        assert max(end for _, end in read) <= length


def test_deep_nesting_is_no_document_and_takes_no_time() -> None:
    with pytest.raises(JSONTextError, match="at most 100 levels"):
        scan("[" * 50_000)
    found = find_json("[" * 100_050)
    assert found is not None
    assert found.end - found.start == 50
    assert scan("[" * 100 + "]" * 100).is_whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Sure! Here it is:\n```json\n[{"a": [1, 2]}]\n```\nIt is {red}, see [1].', [{"a": [1, 2]}]),
        ('as in [1], the answer is {"a": {"b": 2}} {', {"a": {"b": 2}}),
        ('```json\n[{"a": 1}, {"a": "tw', [{"a": 1}, {"a": "tw"}]),
        ('[{"bbox_2d": [10, 20, 30', [{"bbox_2d": [10, 20, 30]}]),
        ('{"a": 1, "b": tr', {"a": 1}),
        ('{"a": 1, "b', {"a": 1}),
        ('{"a": "x\\u00', {"a": "x"}),
        ('{"a": 12.', {"a": 12}),
        ('[{"a": 1},\n```', {"a": 1}),
        ("[]", []),
        ("no brackets", None),
        ("a [dog] and {x}", None),
        ("what is this: [", None),
    ],
)
def test_json_is_found_in_prose(text: str, expected: Any) -> None:
    found = find_json(text)
    assert (None if found is None else found.value) == expected
