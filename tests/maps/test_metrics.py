"""Otsu's threshold and IoU: against their definitions in float64, at the edges, and what is refused."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tam_fast.maps.metrics import iou, iou_ceiling, otsu_threshold

LEVELS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=9))
SHARES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0, width=32))


@st.composite
def _chosen_and_covered(draw, dtype):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=2, max_side=9))
    elements = st.booleans() if dtype is np.bool_ else SHARES
    return draw(hnp.arrays(np.bool_, shape)), draw(hnp.arrays(dtype, shape, elements=elements))


def slow_spread(levels, threshold):
    """Variance between the values up to a threshold and those above it."""
    values = [float(level) for level in levels.ravel()]
    dark = [value for value in values if value <= threshold]
    bright = [value for value in values if value > threshold]
    if not dark or not bright:
        return 0.0
    return len(dark) * len(bright) / len(values) ** 2 * (np.mean(dark) - np.mean(bright)) ** 2


def slow_iou(chosen, covered):
    """Every cell is a unit square of which the mask covers a share."""
    inside = union = 0.0
    for cell, share in zip(chosen.ravel(), covered.ravel(), strict=True):
        inside += float(share) if cell else 0.0
        union += 1.0 if cell else float(share)
    return inside / union if union else 0.0


# Otsu's threshold


@given(LEVELS)
def test_otsu_maximises_the_variance_between_two_classes(levels):
    spreads = [slow_spread(levels, threshold) for threshold in range(256)]
    found = otsu_threshold(levels)
    assert isinstance(found, int)
    assert spreads[found] == pytest.approx(max(spreads), rel=1e-9, abs=1e-12)
    assert found == 0 or found in levels


@pytest.mark.parametrize("values", [(150, 191, 232), (0, 10, 20), (3, 130, 130, 255), (0, 85, 170, 255)])
def test_otsu_is_the_lowest_of_levels_that_are_exactly_as_good(values):
    spreads = {}
    for level in sorted(set(values))[:-1]:
        low, high = ([v for v in values if (v <= level) is below] for below in (True, False))
        apart = Fraction(sum(low), len(low)) - Fraction(sum(high), len(high))
        spreads[level] = len(low) * len(high) * apart**2
    best = min(level for level, spread in spreads.items() if spread == max(spreads.values()))
    for times in (1, 7, 1000):
        assert otsu_threshold(np.array(values * times, dtype=np.uint8)) == best


def test_otsu_splits_two_levels_at_the_lower():
    assert otsu_threshold(np.array([10] * 30 + [200] * 10, dtype=np.uint8)) == 10


@pytest.mark.parametrize("level", [0, 7, 255])
@pytest.mark.parametrize("count", [1, 9, 49])
def test_otsu_of_a_constant_map_is_zero(level, count):
    assert otsu_threshold(np.full(count, level, dtype=np.uint8)) == 0


def test_otsu_takes_any_layout():
    levels = np.random.default_rng(0).integers(0, 256, (14, 12), dtype=np.uint8)
    strided = levels[::-2, 1::3]
    assert otsu_threshold(strided) == otsu_threshold(strided.T) == otsu_threshold(strided.ravel().copy())


# IoU


@pytest.mark.parametrize("dtype", [np.bool_, np.float32, np.float64])
def test_iou_equals_its_definition(dtype):
    @given(_chosen_and_covered(dtype))
    def check(pair):
        found = iou(*pair)
        assert isinstance(found, float)
        assert found == pytest.approx(slow_iou(*pair), rel=1e-5)

    check()


def test_iou_of_whole_cells_counts_them():
    chosen = np.array([[True, True, False], [False, False, False]])
    covered = np.array([[False, True, True], [True, False, False]])
    assert iou(chosen, covered) == iou(covered, chosen) == iou(chosen, covered.astype(np.float32)) == 0.25
    assert iou(covered, covered) == 1.0


def test_iou_of_nothing_is_zero():
    empty = np.zeros((2, 3), dtype=np.float32)
    assert iou(np.zeros((2, 3), dtype=bool), empty) == 0.0
    assert iou(np.ones((2, 3), dtype=bool), empty) == 0.0
    assert iou(np.zeros((2, 3), dtype=bool), empty + 1) == 0.0
    assert iou(np.zeros((0, 3), dtype=bool), empty[:0]) == 0.0


# Its ceiling


@pytest.mark.parametrize("seed", range(5))
def test_ceiling_is_the_best_of_all_choices_of_cells(seed):
    rng = np.random.default_rng(seed)
    covered = rng.random((3, 3)).astype(np.float32) * (rng.random((3, 3)) < 0.7)
    choices = (np.array(choice).reshape(3, 3) for choice in product([False, True], repeat=9))
    best = max(slow_iou(choice, covered) for choice in choices)
    assert iou_ceiling(covered) == pytest.approx(best, abs=1e-12)


def test_ceiling_of_whole_cells_is_one_and_of_nothing_zero():
    assert iou_ceiling(np.array([[False, True], [True, True]])) == 1.0
    assert iou_ceiling(np.zeros((4, 5), dtype=np.float32)) == 0.0


# What is refused


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        (np.zeros(4), TypeError, "levels: expected a uint8 array, got dtype float64"),
        ([1, 2], TypeError, "levels: expected a uint8 array, got list"),
        (np.zeros((0, 3), dtype=np.uint8), ValueError, "levels: expected at least one value, got shape (0, 3)"),
    ],
)
def test_otsu_refuses(levels, error, message):
    with pytest.raises(error, match=re.escape(message)):
        otsu_threshold(levels)


@pytest.mark.parametrize(
    ("chosen", "covered", "error", "message"),
    [
        (np.ones(2), np.ones(2), TypeError, "chosen: expected a bool array, got dtype float64"),
        (np.ones(2, bool), np.ones(2, int), TypeError, "covered: expected an array of bool, float32 or float64, got "),
        (np.ones(2, bool), [0.5, 1.0], TypeError, "covered: expected an array of bool, float32 or float64, got list"),
        (np.ones(2, bool), np.ones(3), ValueError, "covered: expected the shape of chosen, (2,), got (3,)"),
        (np.ones(2, bool), np.array([0.0, np.nan]), ValueError, "covered: expected shares from 0 to 1, got nan"),
        (np.ones(2, bool), np.array([-0.5, 1.0]), ValueError, "covered: expected shares from 0 to 1, got -0.5 to 1.0"),
        (np.ones(2, bool), np.array([0.0, 64.0]), ValueError, "covered: expected shares from 0 to 1, got 0.0 to 64.0"),
    ],
)
def test_iou_refuses(chosen, covered, error, message):
    with pytest.raises(error, match=re.escape(message)):
        iou(chosen, covered)


def test_ceiling_refuses():
    with pytest.raises(ValueError, match="covered: expected at least one cell"):
        iou_ceiling(np.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"covered: expected shares from 0 to 1, got 0\.0 to 2\.0"):
        iou_ceiling(np.array([0.0, 2.0]))


def test_shares_may_exceed_one_by_rounding():
    covered = np.full(3, np.nextafter(np.float32(1), np.float32(2)))
    assert iou(np.ones(3, dtype=bool), covered) == pytest.approx(1.0)
