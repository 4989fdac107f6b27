"""Filters of Table 2 against recorded outputs of OpenCV, SciPy and independent writings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT

from tam_fast.methods.filters import adaptive_median, filtered, gaussian, median

GOLDEN: Path = ROOT.parent / "shared" / "data" / "golden_methods" / "filters.npz"
CASES = range(6)


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("the golden data are not beside the project")
    return dict(np.load(GOLDEN))


@pytest.mark.parametrize("case", CASES)
def test_recorded_outputs(golden, case):
    maps = golden[f"map{case}_input"].astype(np.float64)[None]
    for name, made in (
        ("gaussian_cv2_3", gaussian(maps)),
        ("median_reflect", median(maps)),
        ("adaptive_median_5", adaptive_median(maps, largest=5)),
        ("adaptive_median_7", adaptive_median(maps, largest=7)),
    ):
        np.testing.assert_allclose(made[0], golden[f"map{case}_{name}"], atol=1e-6, err_msg=name)


def test_each_grid_is_filtered_on_its_own():
    maps = torch.rand(3, 6 + 20, generator=torch.Generator().manual_seed(0))
    for name in ("rank_gaussian", "gaussian", "median", "adaptive_median"):
        whole = filtered(maps, [(2, 3), (4, 5)], name)
        assert torch.equal(whole[:, :6], filtered(maps[:, :6], [(2, 3)], name))
        assert torch.equal(whole[:, 6:], filtered(maps[:, 6:], [(4, 5)], name))
    assert torch.equal(filtered(maps, [(2, 13)], None), maps)


@pytest.mark.parametrize(
    "grids, name, error, message",
    [
        ([(2, 3)], "median", ValueError, "grids: expected 26 cells"),
        ([3], "median", TypeError, "grids: expected Grids"),
        ([(2, 13)], "mean", ValueError, "filter: expected None or one of rank_gaussian, .*got 'mean'"),
    ],
)
def test_what_is_refused(grids, name, error, message):
    with pytest.raises(error, match=message):
        filtered(torch.zeros(1, 26), grids, name)
