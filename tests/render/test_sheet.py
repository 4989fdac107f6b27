"""Sheets: a page for any images, answer and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explanations import make_explanation
from PIL import Image

from tam_fast.render import colormap

GREY = (90, 120, 150)


def _picture(width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def _drawn_rows(sheet: Image.Image) -> int:
    """Last row that is not the page's colour."""
    pixels = np.asarray(sheet)
    return int(np.flatnonzero((pixels != pixels[0, 0]).any(axis=(1, 2)))[-1])


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40, 500])
def test_sheet_of_any_number_of_tokens(count: int) -> None:
    sheet = make_explanation([f" t{i}" for i in range(count)]).sheet(width=1000)
    assert sheet.mode == "RGB"
    assert sheet.width == 1000
    assert _drawn_rows(sheet) < sheet.height - 10
    assert sheet.height < 10_000


@pytest.mark.parametrize(
    "sizes", [[(60, 40)], [(600, 4)], [(4, 600)], [(1, 1)], [(64, 48), (48, 64), (10, 200)], [(30, 20)] * 9]
)
def test_sheet_of_any_images(sizes: list[tuple[int, int]]) -> None:
    images = [_picture(*size) for size in sizes]
    e = make_explanation(shapes=[(2, 2)] * len(sizes), sources=range(len(sizes)), images=images)
    for width in (320, 1600):
        sheet = e.sheet(width=width)
        assert sheet.width == width
        assert sheet.height < 20 * width


def test_sheet_of_any_text() -> None:
    tokens = [
        "x" * 3000,
        " \u00e9\u00fc\u00df",
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
    sheet = make_explanation(tokens, prompt=2).sheet(width=700)
    assert sheet.height > 400
    long_prompt = make_explanation(["a"], model="m" * 9000)
    long_prompt.prompt = "word " * 9000 + "\n"
    assert long_prompt.sheet().width == 1600


def test_sheet_shows_each_token_once() -> None:
    """Cells stand where the columns say, with a bar as long as the strength."""
    maps = torch.zeros(3, 4)
    maps[0], maps[1] = 1.0, 0.5
    e = make_explanation(["a", " b", " c"], ((2, 2),), maps=maps, images=[_picture(100, 100)])
    pixels = np.asarray(e.sheet(width=700, columns=3, cmap="viridis"))
    bright = (pixels == colormap("viridis")[255]).all(-1)
    half = (pixels == colormap("viridis")[128]).all(-1)
    bars = [int(np.diff(np.flatnonzero(mask[row])[[0, -1]])[0]) for mask in (bright, half) for row in _bar_row(mask)]
    assert len(bars) == 2
    assert bars[1] == pytest.approx(bars[0] / 2, abs=2)


def _bar_row(mask: np.ndarray[Any, Any]) -> list[int]:
    """The row with the longest run of a colour, below the head."""
    counts = mask.sum(1)
    counts[: len(counts) // 3] = 0
    return [int(counts.argmax())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 100}, "width: expected at least 320 pixels, got 100"),
        ({"columns": 0}, "columns: expected 1 to 40 for width 1600, got 0"),
        ({"columns": 41}, "columns: expected 1 to 40 for width 1600, got 41"),
        ({"cmap": "nosuch"}, "cmap: expected"),
    ],
)
def test_sheet_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_explanation().sheet(**options)


def test_sheet_font(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="resource"):
        make_explanation().sheet(font=tmp_path / "none.ttf")
    assert make_explanation(["a"]).sheet(columns=1, width=320).width == 320
