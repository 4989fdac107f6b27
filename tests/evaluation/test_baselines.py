"""Random, centre-prior and uniform maps of any layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tam_fast.evaluation.baselines import BASELINES, baseline_maps, centre_maps, random_maps
from tam_fast.maps.layout import Grid, Layout


def layout(*grids):
    found, place = [], 0
    for height, width, box in grids:
        found.append(Grid(range(place, place + height * width), height, width, box=box))
        place += height * width
    return Layout(found, torch.tensor([place]), place + 2)


WHOLE = (0.0, 0.0, 1.0, 1.0)
TILES = layout((2, 2, (0.0, 0.0, 0.5, 1.0)), (2, 2, (0.5, 0.0, 1.0, 1.0)), (1, 1, WHOLE))


@pytest.mark.parametrize("name", BASELINES)
def test_all_are_maps_in_0_to_1(name):
    maps = baseline_maps(name, TILES, 3, seed=4)
    assert maps.shape == (3, 9)
    assert maps.dtype == torch.float32
    assert 0 <= maps.min() <= maps.max() <= 1
    assert baseline_maps(name, TILES, 0).shape == (0, 9)
    torch.testing.assert_close(maps, baseline_maps(name, TILES, 3, seed=4), rtol=0, atol=0)


def test_random_maps_are_uniform_and_each_its_own():
    maps = random_maps(layout((50, 40, WHOLE)), 4, seed=1).numpy()
    assert abs(maps.mean() - 0.5) < 0.01
    assert abs(maps.var() - 1 / 12) < 0.003
    assert np.abs(np.corrcoef(maps) - np.eye(4)).max() < 0.1
    assert not np.array_equal(maps, random_maps(layout((50, 40, WHOLE)), 4, seed=2).numpy())


def test_the_centre_is_brightest_by_place_in_the_image():
    maps = centre_maps(layout((3, 5, WHOLE)), 1)[0].view(3, 5).numpy()
    y, x = np.mgrid[:3, :5]
    expected = np.exp(-(((y + 0.5) / 3 - 0.5) ** 2 + ((x + 0.5) / 5 - 0.5) ** 2) / (2 * 0.25**2))
    np.testing.assert_allclose(maps, expected, rtol=1e-6)
    assert maps[1, 2] == 1
    tiles = centre_maps(TILES, 1)[0]
    assert tiles[1] == tiles[4] > tiles[0] == tiles[5]  # beside the seam, and at the edges
    assert tiles[8] == 1  # the overview's only cell


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match=r"^name: .*random, centre, uniform.*'noise'"):
        baseline_maps("noise", TILES, 1)
    with pytest.raises(ValueError, match=r"^spread: "):
        centre_maps(TILES, 1, spread=0)
