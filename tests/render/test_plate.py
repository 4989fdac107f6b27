"""Plates: the map on its picture, the text on the same scale, the word framed, what comes later grey."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tam_fast.render import Passage, Phrase, Raster, colormap, overlay, plate

GREY = (90, 120, 150)


def _picture(width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def _has(image: Image.Image, colour: Any) -> int:
    return int((np.asarray(image) == np.asarray(colour, dtype=np.uint8)).all(-1).sum())


def _on_white(level: int, share: float, cmap: str = "jet") -> tuple[int, ...]:
    return tuple(round(255 + (int(c) - 255) * share) for c in colormap(cmap)[level])


def test_the_picture_is_the_overlay() -> None:
    raster = Raster(np.random.default_rng(0).random((4, 6), dtype=np.float32))
    made = plate([(_picture(), [raster])], [Passage("assistant", [Phrase("a cat")])], width=348)
    # 300 pixels between margins of 24.
    expected = np.asarray(overlay(_picture(), [raster], cmap="jet", size=(300, 200)))
    assert (np.asarray(made)[24:224, 24:324] == expected).all()


def test_the_text_has_the_scale_of_the_map() -> None:
    """The ground of a text of some relevance is the colour that the map has on white there."""
    for relevance, level in ((0.0, 0), (0.5, 128), (1.0, 255)):
        made = plate([], [Passage("user", [Phrase("wwwwww", relevance)])])
        assert _has(made, _on_white(level, 0.5)) > 300
        white = Image.new("RGB", (8, 8), "white")
        drawn = overlay(white, [Raster(np.full((1, 1), relevance, dtype=np.float32))], cmap="jet", opacity=0.5)
        if relevance:
            assert np.abs(np.asarray(drawn)[4, 4].astype(int) - _on_white(level, 0.5)).max() <= 1
    inferno = plate([], [Passage("user", [Phrase("wwwwww", 1.0)])], cmap="inferno")
    assert _has(inferno, _on_white(255, 0.85, "inferno")) > 300
    # Nothing at all for the word.
    none = plate([], [Passage("user", [Phrase("wwwwww", 0.0)])], cmap="inferno")
    assert np.array_equal(
        np.asarray(none), np.asarray(plate([], [Passage("user", [Phrase("wwwwww")])], cmap="inferno"))
    )


def test_the_word_is_framed_and_the_rest_is_grey() -> None:
    plain = plate([], [Passage("assistant", [Phrase("a"), Phrase(" cat"), Phrase(" sits")])])
    frame, grey = (200, 16, 46), (168, 168, 176)
    assert _has(plain, frame) == _has(plain, grey) == 0
    phrases = [
        Phrase("a", 0.3),
        Phrase(" c", is_target=True),
        Phrase("at", is_target=True),
        Phrase(" sits", is_later=True),
    ]
    made = plate([], [Passage("assistant", phrases)])
    assert _has(made, grey) > 20
    framed = (np.asarray(made) == frame).all(-1)
    # One frame around both of its pieces: two upright edges, each two pixels wide.
    height = framed.any(1).sum()
    assert (framed.sum(0) == height).sum() == 4
    assert framed.any(0).sum() > 30


def test_candidates_and_note_stand_below() -> None:
    without = plate([], [Passage("assistant", [Phrase("a")])])
    with_them = plate([], [Passage("assistant", [Phrase("a")])], candidates=[(" cat", 0.91), ("\n", 0.05)])
    assert with_them.height > without.height
    noted = plate([], [Passage("assistant", [Phrase("a")])], note="a model")
    assert noted.size == without.size
    assert noted.tobytes() != without.tobytes()


@pytest.mark.parametrize(
    "sizes", [[], [(1, 1)], [(600, 4)], [(4, 600)], [(64, 48), (48, 64), (10, 200)], [(30, 20)] * 9]
)
def test_any_pictures(sizes: list[tuple[int, int]]) -> None:
    for width in (240, 900):
        made = plate([(_picture(*size), []) for size in sizes], [Passage("user", [Phrase("x")])], width=width)
        assert made.width == width
        assert made.height < 3 * width


def test_any_text() -> None:
    texts = [
        "x" * 3000,
        " \u00e9\u00df",
        "\u732b\U0001f600",
        "\n\n",
        "\t",
        "\x07",
        "\ud800",
        "",
        " ",
        "a\nb c\n",
        "\u202e",
    ]
    phrases = [Phrase(text, 0.5, is_target=place % 3 == 1, is_later=place % 3 == 2) for place, text in enumerate(texts)]
    made = plate([(_picture(), [])], [Passage("user", phrases), Passage("assistant", phrases)], width=400)
    assert made.height > 400
    assert plate([], []).mode == "RGB"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 239}, "width: expected at least 240 pixels, got 239"),
        ({"cmap": "nosuch"}, "cmap: expected inferno"),
        ({"opacity": 2.0}, "opacity: expected a number from 0 to 1, got 2.0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plate([(_picture(), [])], [], **options)
    if "opacity" in options:
        with pytest.raises(ValueError, match=message):
            plate([], [], **options)
