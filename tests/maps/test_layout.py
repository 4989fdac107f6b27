"""Grid and Layout accept what is sound and refuse the rest by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tam_fast import Grid, Layout


def test_fields_are_normalised_and_private() -> None:
    source = np.arange(3, 9)
    grid = Grid(source, 2, 3, box=(0, 0.1, 1, 0.9))
    source[:] = 0
    assert grid.positions.tolist() == [3, 4, 5, 6, 7, 8]
    assert grid.positions.dtype == torch.int64
    assert grid.box == (0.0, 0.1, 1.0, 0.9)
    assert grid.shape == (2, 3)
    assert len(grid) == 6
    assert (grid.kind, grid.source, grid.frame) == ("image", 0, 0)


def test_layout_joins_grids_in_order() -> None:
    layout = Layout([Grid([4, 5], 1, 2), Grid(range(2), 2, 1, source=1)], [7, 8], 10)
    assert layout.visual_positions.tolist() == [4, 5, 0, 1]
    assert layout.offsets == [0, 2, 4]
    assert layout.sizes == [(1, 2), (2, 1)]
    assert layout.prompt.tolist() == [7, 8]
    assert layout == Layout([Grid([4, 5], 1, 2), Grid([0, 1], 2, 1, source=1)], torch.tensor([7, 8]), 10)
    assert layout != Layout([Grid([4, 5], 1, 2), Grid([0, 1], 2, 1)], [7, 8], 10)


def test_a_prompt_may_be_empty() -> None:
    assert Layout([Grid([0], 1, 1)], [], 1).prompt.dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (([1, 2, 3], 2, 2), ValueError, ["positions", "4", "3"]),
        (([1, 1], 1, 2), ValueError, ["positions", "twice"]),
        (([-1, 1], 1, 2), ValueError, ["positions", "-1"]),
        (([0.5, 1], 1, 2), TypeError, ["positions", "integers", "float64"]),
        (([[1, 2]], 1, 2), ValueError, ["positions", "(1, 2)"]),
        (([], 0, 2), ValueError, ["height", "0"]),
        (([1], 1, 1.0), TypeError, ["width", "float"]),
        (([1], True, 1), TypeError, ["height", "bool"]),
        (([1], 1, 1, "image", -1), ValueError, ["source", "-1"]),
        (([1], 1, 1, "image", 0, 0, (0, 0, 0, 1)), ValueError, ["box", "x0 < x1"]),
    ],
)
def test_grid_errors(arguments: tuple[object, ...], kind: type[Exception], words: list[str]) -> None:
    with pytest.raises(kind) as caught:
        Grid(*arguments)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ((Grid([1], 1, 1), [], 3), TypeError, ["grids", "sequence"]),
        ((["grid"], [], 3), TypeError, ["grids", "str"]),
        (([Grid([3], 1, 1)], [], 3), ValueError, ["grids", "answer_start = 3", "3"]),
        (([Grid([1], 1, 1)], [4], 3), ValueError, ["prompt", "4"]),
        (([Grid([1], 1, 1)], [1], 3), ValueError, ["at most once"]),
        (([Grid([1], 1, 1), Grid([1], 1, 1)], [], 3), ValueError, ["at most once"]),
        (([Grid([1], 1, 1)], [], 0), ValueError, ["answer_start", "0"]),
    ],
)
def test_layout_errors(arguments: tuple[object, ...], kind: type[Exception], words: list[str]) -> None:
    with pytest.raises(kind) as caught:
        Layout(*arguments)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)
