"""Cells drawn on an image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tam_fast.render import Lattice, cells

WHOLE = (0.0, 0.0, 1.0, 1.0)


def test_lines_stand_where_the_cells_meet() -> None:
    image = Image.new("RGB", (120, 60), (0, 0, 200))
    drawn = np.asarray(cells(image, [("", [Lattice(2, 4, WHOLE, 0, "image 1")])]))
    line = (drawn == (255, 210, 60)).all(-1)
    columns = np.flatnonzero(line.sum(0) > 0.9 * line.sum(0).max())
    rows = np.flatnonzero(line.sum(1) > 0.9 * line.sum(1).max())
    assert len(columns) == 5
    assert len(rows) == 3
    assert np.ptp(np.diff(columns)) <= 1
    assert np.ptp(np.diff(rows)) <= 1
    assert np.diff(columns)[0] == pytest.approx(np.diff(rows)[0], abs=1)


def test_what_lies_beyond_the_image_is_grey_and_panels_stand_below_each_other() -> None:
    image = Image.new("RGB", (60, 60), (0, 200, 0))
    tiles = [Lattice(2, 2, (0.0, 0.0, 0.75, 1.5), 0, "tile 1"), Lattice(2, 2, (0.75, 0.0, 1.5, 1.5), 4, "tile 2")]
    two = cells(image, [("tiles", tiles), ("overview", [Lattice(1, 1, WHOLE, 8, "overview 1")])])
    one = cells(image, [("tiles", tiles)])
    assert two.height > one.height
    pixels = np.asarray(one)
    green = (pixels == (0, 200, 0)).all(-1)
    grey = (pixels == (70, 70, 76)).all(-1)
    assert np.flatnonzero(green.any(0)).max() < np.flatnonzero(grey.any(0)).max()
    assert np.flatnonzero(green.any(1)).max() < np.flatnonzero(grey.any(1)).max()
    assert np.flatnonzero(green.any(0)).min() == np.flatnonzero(grey.any(0)).min()


def test_many_cells_stay_within_a_page() -> None:
    drawn = cells(Image.new("RGB", (400, 300)), [("", [Lattice(300, 400, WHOLE, 0, "")])])
    assert max(drawn.size) < 4000


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="panels: expected at least one raster"):
        cells(Image.new("RGB", (4, 4)), [("", [])])
