"""Names of tokens: characters, patterns and paths, each a key like any other; what was not explained is said."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from explanations import make_explanation

from tam_fast.explanation import Explanation, Word

JSON = ["Here:", "\n[", '{"', "bbox", '": ', "[1", "0, ", "2", "0, 3", "0, 40]", ', "label": "', "dog", '"}', "]"]


def test_characters_name_the_tokens_that_show_them() -> None:
    e = make_explanation()  # A red cir|cle
    word = e.characters(3, 8)
    assert (word.text, word.start, word.stop, word.characters) == ("ed ci", 1, 3, (3, 8))
    assert torch.equal(e[word], e[1:3])  # type: ignore[arg-type]
    assert word.strength == float(e.maps.maps[1:3].max())
    assert word.grounding == float(e.grounding.score[1:3].max())
    for start, end in ((3, 3), (-1, 4), (0, len(e.text) + 1), (4, 2)):
        with pytest.raises(ValueError, match=r"^start: expected 0 <= start < end <= 45, characters of the text, got"):
            e.characters(start, end)
    with pytest.raises(TypeError, match=r"^end: expected a whole number, got float"):
        e.characters(0, 2.0)  # type: ignore[arg-type]


def test_regular_expressions() -> None:
    e = make_explanation()
    assert [(word.start, word.stop) for word in e.regex(r"circle")] == [(2, 4), (7, 8)]
    assert [word.text for word in e.regex("CIRCLE", re.IGNORECASE)] == ["circle", "circle"]
    assert [word.text for word in e.regex(re.compile("CIRCLE", re.IGNORECASE))] == ["circle", "circle"]
    assert [word.text for word in e.regex(r"(?P<what>\w+) circle", group="what")] == ["red", "made"]
    assert [word.text for word in e.regex(r"(red)|end", group=1)] == ["red"]
    assert [word.text for word in e.regex(r"x*|red")] != []
    assert torch.equal(e[e.regex("circle")[0]], e["circle"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("dog",), ValueError, r"^pattern: expected a match in 'A red circle, .*', got none of 'dog'"),
        (("x*",), ValueError, r"^pattern: expected a match"),
        (("(",), ValueError, r"^pattern: expected a regular expression, got '\('"),
        ((b"a",), TypeError, r"^pattern: expected a regular expression for texts"),
        ((3,), TypeError, r"^pattern: expected a regular expression"),
        ((re.compile("a"), re.I), ValueError, r"^flags: expected 0 with a compiled pattern"),
        (("a", 0, 1), ValueError, r"^group: expected one of 0, got 1"),
        (("(?P<b>a)", 0, "c"), ValueError, r"^group: expected one of 0, 1, 'b', got 'c'"),
    ],
)
def test_what_does_not_match(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_explanation().regex(*arguments)


def test_fields_of_the_answer() -> None:
    e = make_explanation(JSON)
    (box,) = e.path("$[0].bbox")
    assert (box.text, box.value, box.start, box.stop) == ("10, 20, 30, 40", [10, 20, 30, 40], 5, 10)
    (label,) = e.path("[0].label")
    assert (label.text, label.value, label.start) == ("dog", "dog", 11)
    assert e.paths() == ["$", "$[0]", "$[0].bbox", "$[0].label"]
    assert e.path("$[*].*") == [box, label]
    assert torch.equal(e[box], e[5:10])  # type: ignore[arg-type]
    assert e.overlay(box).size == e.images[0].size
    assert e.peak(label) == e.peak(11)
    assert {box, label} == {box, label}


def test_paths_that_lead_nowhere() -> None:
    e = make_explanation(JSON)
    with pytest.raises(KeyError, match=r"'\$\.box' is not in the answer; its paths are: \$, \$\[0\], \$\[0\]\.bbox, "):
        e.path("$.box")
    with pytest.raises(ValueError, match=r"^path: expected an answer with JSON or boxes, got 'A red circle"):
        make_explanation().path("$.a")
    with pytest.raises(KeyError, match=r"\$\[38\] and 10 more"):
        make_explanation([f"[{', '.join(['null'] * 49)}]"]).path("$.x")


def test_words_of_tokens_that_were_not_explained(film: Explanation) -> None:
    """The comma was not: its token is of the answer, but not of the explanation."""
    assert [word.text for word in film.words] == ["A", "dog", "runs", "and", "a", "cat"]
    assert film.text[5] == ","
    assert film.find("dog, runs") == []
    assert film.find("runs and")[0].start == 2
    with pytest.raises(KeyError, match=r"'dog, runs' is in the answer, but was not explained; explained are: A, dog, "):
        film["dog, runs"]
    with pytest.raises(KeyError, match=r"'bird' is not in the answer; explained are: A"):
        film["bird"]
    with pytest.raises(ValueError, match=r"^start: expected tokens that were explained, got ', '"):
        film.characters(5, 7)
    with pytest.raises(ValueError, match=r"^pattern: expected tokens that were explained, got ','"):
        film.regex(",")
    assert [word.text for word in film.regex(r"\w+|,")] == ["A", "dog", "runs", "and", "a", "cat"]


def test_part_of_a_word_is_a_word_where_the_rest_was_not_explained() -> None:
    whole = make_explanation(["A", " cir", "cle"])
    maps = whole.maps
    fields = {
        **vars(whole),
        "tokens": ["cle"],
        "token_ids": [102],
        "offsets": [(5, 8)],
        "candidates": [[]],
        "steps": [2],
    }
    for name in ("maps", "relevance", "scale", "flat", "target_ids"):
        setattr(maps, name, getattr(maps, name)[2:])
    e = Explanation(**{name: value for name, value in fields.items() if not name.startswith("_")})
    assert [(word.text, word.characters) for word in e.words] == [("cle", (5, 8))]
    assert e["cle"].shape == (4, 6)  # type: ignore[union-attr]


def test_words_compare_without_the_value() -> None:
    assert Word("a", 0, 1, (0, 1), 0.5) == Word("a", 0, 1, (0, 1), 0.5, value=[1])
