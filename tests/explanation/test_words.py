"""Words: how an answer splits into them, and how they are found again."""

from __future__ import annotations

import pytest
from explanations import make_explanation
from hypothesis import given
from hypothesis import strategies as st


def test_words_join_pieces_and_leave_punctuation_out() -> None:
    e = make_explanation()
    assert [word.text for word in e.words] == ["A", "red", "circle", "a", "well-made", "circle", "and", "the", "end"]
    circle = e.words[2]
    assert (circle.start, circle.stop) == (2, 4)
    assert e.text[slice(*circle.characters)] == "circle"
    assert circle.strength == float(e.maps.maps[2:4].max())
    # The comma's token also holds the article: both words of one token have its map.
    assert (e.words[3].start, e.words[3].stop) == (4, 5)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["Don", "'t", " stop"], ["Don't", "stop"]),
        (["3", ".", "14", " or", " 1,000", "."], ["3.14", "or", "1,000"]),
        (["'quoted'", " -", " x"], ["quoted", "x"]),
        (["\u4e00\u53ea", "\u9ed1\u732b", "\u3002", "OK"], ["\u4e00\u53ea", "\u9ed1\u732b", "OK"]),
        (["cafe\u0301", " x"], ["cafe\u0301", "x"]),
        (["\u0939\u093f\u0928\u094d\u0926\u0940"], ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
        (["", " ", "\n", "..."], []),
        ([], []),
    ],
)
def test_words_of_other_texts(tokens: list[str], words: list[str]) -> None:
    assert [word.text for word in make_explanation(tokens).words] == words


def test_find_prefers_whole_words() -> None:
    e = make_explanation()
    assert [word.text for word in e.find("CIRCLE")] == ["circle", "circle"]
    assert [(word.start, word.stop) for word in e.find("circle")] == [(2, 4), (7, 8)]
    assert [word.text for word in e.find("a")] == ["A", "a"]
    assert [word.text for word in e.find("circ")] == ["circ", "circ"]
    assert [(word.start, word.stop) for word in e.find("red  circle")] == [(1, 4)]
    assert e.find("dog") == [] == e.find(" ")
    assert "circle" in e
    assert "dog" not in e
    assert 3 not in e


def test_find_composes_accents_and_takes_patterns_literally() -> None:
    assert [word.text for word in make_explanation([" cafe\u0301"]).find("caf\u00e9")] == ["cafe\u0301"]
    assert make_explanation(["a.c", " abc"]).find("a.c")[0].start == 0
    assert make_explanation(["abc"]).find("a.c") == []
    with pytest.raises(TypeError, match=r"word: expected a string, got int"):
        make_explanation().find(3)  # type: ignore[arg-type]


def test_pieces_of_one_character_share_it() -> None:
    e = make_explanation(["a ", "", "\u732b"], offsets=[(0, 2), (2, 3), (2, 3)])
    assert (e.words[1].start, e.words[1].stop) == (1, 3)


@given(st.lists(st.text(max_size=6), max_size=12))
def test_every_word_is_found_again(tokens: list[str]) -> None:
    e = make_explanation(tokens, shapes=((1, 2),), images=[])
    for word in e.words:
        assert e.text[slice(*word.characters)] == word.text
        assert 0 <= word.start < word.stop <= len(e)
        assert any(found.text.casefold() == word.text.casefold() for found in e.find(word.text))
        assert e.vector(word).shape == (2,)
