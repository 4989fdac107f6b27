"""Explanations side by side: words aligned, one scale, one page, one picture."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explanations import make_explanation
from pages import film
from PIL import Image

import tam_fast
from tam_fast import render
from tam_fast.explanation import Comparison, Explanation
from tam_fast.explanation.compare import aligned, compare
from tam_fast.explanation.replacing import is_ours


def say(text: str, **fields: Any) -> Explanation:
    """An explanation of words on one grey image; the same picture whatever is said."""
    tokens = [text.split()[0], *(f" {word}" for word in text.split()[1:])]
    return make_explanation(tokens, images=[Image.new("RGB", (60, 40), "grey")], **fields)


def lines(texts: list[str]) -> list[str]:
    """The rows as text: each column's word, or a dash."""
    columns = [text.split() for text in texts]
    return [
        " ".join("-" if place is None else column[place] for column, place in zip(columns, row.words, strict=True))
        for row in aligned(columns)
    ]


def test_words_are_aligned() -> None:
    assert lines(["a red circle", "a red circle"]) == ["a a", "red red", "circle circle"]
    assert lines(["a red circle", "A circle"]) == ["a A", "red -", "circle circle"]
    assert lines(["a red circle", "a blue circle"]) == ["a a", "red -", "- blue", "circle circle"]
    assert lines(["one two", "three"]) == ["one -", "two -", "- three"]
    # A third one finds what only the second says.
    assert lines(["a circle", "a big circle", "big circle"]) == ["a a -", "- big big", "circle circle circle"]
    assert lines(["", "cat"]) == ["- cat"]
    assert aligned([]) == aligned([[], []]) == []


def test_every_word_is_in_one_row_and_in_order() -> None:
    chance = random.Random(0)
    for _ in range(200):
        columns = [[chance.choice("abcDd") for _ in range(chance.randrange(9))] for _ in range(chance.randrange(1, 5))]
        rows = aligned(columns)
        for number, column in enumerate(columns):
            assert [row.words[number] for row in rows if row.words[number] is not None] == list(range(len(column)))
        for row in rows:
            said = [column[place] for column, place in zip(columns, row.words, strict=True) if place is not None]
            assert said[0] == row.text
            assert len({word.casefold() for word in said}) == 1


def test_the_same_answer_is_aligned_one_to_one() -> None:
    words = "a cat and a dog and a cat and a bird" * 30
    assert [row.words for row in aligned([words.split()] * 3)] == [(n, n, n) for n in range(len(words.split()))]


def test_long_answers_are_aligned_as_short_ones() -> None:
    """Words that occur often count, too: two words more leave all others where they were."""
    words = ("a cat and a dog " * 160).split()
    longer = [*words[:150], "big", *words[150:650], "small", *words[650:]]
    for columns in ([words, longer], [longer, words]):
        rows = aligned(columns)
        assert len(rows) == 802
        assert [row.text for row in rows if None in row.words] == ["big", "small"]


def test_what_a_comparison_holds() -> None:
    one, two = say("a red circle", model="small"), say("a circle", model="large", seed=1)
    compared = tam_fast.compare([one, two])
    assert isinstance(compared, Comparison)
    assert len(compared) == 2
    assert repr(compared) == "Comparison(3 words of small, large)"
    strengths = compared.strengths()
    expected = [[one.words[0].strength, two.words[0].strength], [one.words[1].strength, torch.nan]]
    expected.append([one.words[2].strength, two.words[1].strength])
    torch.testing.assert_close(strengths, torch.tensor(expected), equal_nan=True, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("fields", "titles"),
    [
        ([{"model": "m"}, {"model": "n"}], ["m", "n"]),
        ([{"method": "tam"}, {"method": "cam@answer"}], ["tam", "cam@answer"]),
        ([{"prompt": "What?"}, {"prompt": " Where \n is it?"}], ["What?", "Where is it?"]),
        ([{"model": "m"}, {"model": "n"}, {"model": "n", "method": "cam"}], ["m, tam", "n, tam", "n, cam"]),
        ([{}, {}], ["test (1)", "test (2)"]),
        ([{}], ["test"]),
    ],
)
def test_titles_are_what_differs(fields: list[dict[str, Any]], titles: list[str]) -> None:
    made = []
    for given in fields:
        e = say("a cat", **{name: value for name, value in given.items() if name != "prompt"})
        e.prompt = given.get("prompt", e.prompt)
        made.append(e)
    assert compare(made).titles == titles
    assert compare(made, "xyz"[: len(made)]).titles == list("xyz"[: len(made)])


def test_the_page_has_a_column_each_and_the_rows() -> None:
    compared = compare([say("a red circle"), say("a circle")], ["one", "two"])
    data = compared.page_data(title="both", cmap="viridis")
    assert [column.title for column in data.columns] == ["one", "two"]
    assert [tuple(row) for row in data.rows] == [(0, 0), (1, None), (2, 1)]
    assert [
        [column.units[unit].text for column, unit in zip(data.columns, row, strict=True) if unit is not None]
        for row in data.rows
    ] == [
        ["a", "a"],
        ["red"],
        ["circle", "circle"],
    ]
    assert (data.title, data.cmap, len(data.stills)) == ("both", "viridis", 1)


def test_the_page_is_written(tmp_path: Path) -> None:
    compared = compare([say("a red circle"), say("a circle")], ["one <b>", "two"])
    path = compared.save_html(tmp_path / "a.html", title="both")
    text = path.read_text(encoding="utf-8")
    assert is_ours(path)
    assert "<title>both</title>" in text
    assert "one &lt;b&gt;" in text
    assert "one <b>" not in text
    compared.save_html(path)
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        compared.save_html(path)
    assert path.read_text() == "mine"
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.html"):
        compared.save_html(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="cmap: expected inferno"):
        compared.save_html(tmp_path / "b.html", cmap="nosuch")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.html"]


def test_the_picture_has_a_row_a_word_on_one_scale() -> None:
    maps = torch.zeros(2, 24)
    maps[0] = 1.0
    strong, weak = say("cat dog", maps=maps), say("dog cat", maps=maps.flip(0) * 0.5)
    pixels = np.asarray(compare([strong, weak], ["a", "b"]).sheet(opacity=1.0))
    bright = (pixels == render.colormap("inferno")[255]).all(-1).sum()
    raster = render.Raster(np.full((1, 1), 0.5, dtype=np.float32))
    colour = np.asarray(render.overlay(Image.new("RGB", (1, 1), "grey"), [raster], opacity=1.0))[0, 0]
    half = (pixels == colour).all(-1).sum()
    assert bright >= 280 * 187
    assert half == 280 * 187


def test_chosen_words() -> None:
    compared = compare([say("a red circle"), say("a circle")])
    whole, some = compared.sheet(), compared.sheet(["Circle"])
    assert some.height < whole.height
    with pytest.raises(KeyError, match="'cat' is in no row; the words are: a, red, circle"):
        compared.sheet(["cat"])
    with pytest.raises(TypeError, match="words: expected a sequence of words, got the string 'red'"):
        compared.sheet("red")


def test_videos_and_several_images() -> None:
    compared = compare([film(), film()], ["one", "two"])
    assert compared.sheet().height > 200
    assert compared.page_data().columns[1].panels == compared.page_data().columns[0].panels
    maps = torch.zeros(1, 12)
    maps[0, 7] = 1.0
    images = [Image.new("RGB", (60, 40), colour) for colour in ("navy", "teal")]
    two = make_explanation(["cat"], [(2, 3), (2, 3)], sources=[0, 1], maps=maps, images=images)
    pixels = np.asarray(compare([two, two]).sheet())
    assert (pixels == (0, 128, 128)).all(-1).any()
    assert not (pixels == (0, 0, 128)).all(-1).any()


def test_what_cannot_be_compared(text_only: Explanation) -> None:
    e = say("a cat")
    with pytest.raises(ValueError, match="explanations: expected at least one, got none"):
        compare([])
    with pytest.raises(TypeError, match=r"explanations\[1\]: expected an Explanation, got str"):
        compare([e, "cat"])
    with pytest.raises(ValueError, match="titles: expected one for each of 2 explanations, got 1"):
        compare([e, e], ["a"])
    other = make_explanation(["a"], images=[Image.new("RGB", (60, 40), "black")])
    with pytest.raises(ValueError, match=r"explanations\[2\]: expected the images of explanations\[0\], got others"):
        compare([e, e, other])
    more = make_explanation(["a"], [(2, 2), (2, 2)], sources=[0, 1])
    with pytest.raises(ValueError, match=r"explanations\[1\]: expected 1 images, as explanations\[0\] has, got 2"):
        compare([e, more])
    with pytest.raises(ValueError, match="images: this explanation holds none"):
        compare([text_only, text_only]).sheet()
    assert len(compare([text_only, e]).rows) == 4
