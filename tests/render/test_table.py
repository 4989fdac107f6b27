"""Tables of maps: every word in its row and column, all on one scale of colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tam_fast.render import Raster, colormap, overlay
from tam_fast.render.table import Entry, table

GREY = (90, 120, 150)


def _entry(value: float, size: tuple[int, int] = (60, 40)) -> Entry:
    raster = Raster(np.full((2, 2), value, dtype=np.float32))
    return Entry(Image.new("RGB", size, GREY), [raster] if value else [], value)


def _areas(made: Image.Image, colour: Any) -> int:
    return int((np.asarray(made) == np.asarray(colour, dtype=np.uint8)).all(-1).sum())


def test_one_scale_for_all_columns() -> None:
    """Equal activations have equal colours, whatever else their column shows."""
    rows = [("cat", [_entry(1.0), _entry(0.2)]), ("dog", [_entry(0.2), _entry(0.0)])]
    made = np.asarray(table(["a", "b"], rows, opacity=1.0))
    cell = 280 * round(280 * 40 / 60)
    assert _areas(made, colormap("inferno")[255]) == pytest.approx(cell, rel=0.01)
    image, faint = Image.new("RGB", (1, 1), GREY), Raster(np.full((1, 1), 0.2, dtype=np.float32))
    assert _areas(made, np.asarray(overlay(image, [faint], opacity=1.0))[0, 0]) == 2 * cell
    # Cells in reading order: bright, faint / faint, plain.
    left, right = made[:, : made.shape[1] // 2], made[:, made.shape[1] // 2 :]
    assert _areas(left, GREY) == 0
    assert _areas(right, GREY) == cell


def test_a_word_that_is_not_said() -> None:
    rows = [("cat", [_entry(0.0), None]), ("dog", [None, _entry(0.0)])]
    made = np.asarray(table(["a", "b"], rows))
    cell = 280 * 187
    assert _areas(made, GREY) == 2 * cell
    missing = _areas(made, (34, 34, 39))
    assert 1.9 * cell < missing < 2 * cell  # but for the words on it


def test_long_tables_are_broken_into_blocks() -> None:
    rows = [(f"w{number}", [_entry(0.0)]) for number in range(12)]
    wide, narrow = table(["a"], rows, width=1600), table(["a"], rows, width=500)
    assert narrow.width <= 500
    assert wide.width <= 1600
    assert wide.height < narrow.height / 2
    assert _areas(wide, GREY) == _areas(narrow, GREY) == 12 * 280 * 187


def test_blocks_are_read_one_after_the_other() -> None:
    """The first four of twelve words stand below each other, on the left."""
    rows = [(f"w{number}", [_entry(float(number < 4))]) for number in range(12)]
    made = np.asarray(table(["a"], rows, width=1600, opacity=1.0))
    bright = (made == colormap("inferno")[255]).all(-1)[:-60]  # without the colour bar
    columns = np.flatnonzero(bright.sum(0) > 400)
    assert columns.size == 280
    assert columns[-1] < made.shape[1] / 3
    assert bright[:, columns].sum() == 4 * 280 * 187


@pytest.mark.parametrize("size", [(1, 1), (600, 4), (4, 600)])
@pytest.mark.parametrize("columns", [1, 7])
def test_any_size(size: tuple[int, int], columns: int) -> None:
    rows = [("\u732b" * 60, [_entry(0.5, size)] * columns), ("\ud800\n", [None] * columns)]
    made = table(["a long title " * 30] * columns, rows, head="what? " * 90, width=160 * columns + 80)
    assert made.width <= 160 * columns + 80
    assert table(["a"], []).height < 200


@pytest.mark.parametrize(
    ("titles", "rows", "options", "message"),
    [
        ([], [], {}, "titles: expected at least one, got none"),
        (["a", "b"], [], {"width": 399}, "width: expected at least 400 for 2 columns, got 399"),
        (["a"], [("cat", [])], {}, "rows: expected 1 entries for 'cat', got 0"),
        (["a"], [], {"cmap": "nosuch"}, "cmap: expected inferno"),
    ],
)
def test_wrong_tables(titles: list[str], rows: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(titles, rows, **options)
