"""Orders and rank correlation, against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tam_fast.evaluation.ranks import average_ranks, falling_order, region_order, revealed, spearman

VALUES = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=12)


def test_the_highest_is_first_and_ties_keep_their_places():
    assert falling_order([0.5, 2.0, 0.5, 3.0]).tolist() == [3, 1, 0, 2]
    assert falling_order(np.array([[0, 255], [7, 0]], np.uint8)).tolist() == [1, 2, 0, 3]
    assert falling_order(np.array([True, False, True])).tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="map: "):
        falling_order([0.0, np.nan])


def test_regions_are_ordered_by_their_means():
    assert region_order([9.0, 1.0, 4.0, 4.0, 100.0], [0, 0, 1, 1, -1]).tolist() == [0, 1]
    assert region_order([1.0, 9.0, 4.0, 8.0], [0, 0, 1, 1]).tolist() == [1, 0]
    assert region_order([1.0, 1.0, 1.0, 2.0], [0, 0, 0, 1]).tolist() == [1, 0]  # not by their sums
    with pytest.raises(ValueError, match="labels: "):
        region_order([1.0, 2.0], [0, 2])
    with pytest.raises(ValueError, match="labels: "):
        region_order([1.0, 2.0], [0, 1, 1])


@pytest.mark.parametrize(("count", "steps"), [(7, None), (7, 3), (117, 8), (5, 64), (1, 1)])
def test_after_each_step_so_many_are_shown(count, steps):
    order = np.random.default_rng(0).permutation(count)
    step = revealed(order, steps)
    number = min(count, steps or count)
    for done in range(number + 1):
        assert set(np.flatnonzero(step <= done)) == set(order[: count * done // number])
    with pytest.raises(ValueError, match="steps: "):
        revealed(order, 0)


@given(VALUES)
def test_ranks_are_scipys(values):
    np.testing.assert_allclose(average_ranks(values), stats.rankdata(values))


@given(st.integers(2, 12).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n)] * 2)))
def test_spearman_is_pearson_of_ranks(pair):
    found = spearman(*pair)
    if len(set(pair[0])) == 1 or len(set(pair[1])) == 1:
        assert np.isnan(found)
    else:
        expected = np.corrcoef(stats.rankdata(pair[0]), stats.rankdata(pair[1]))[0, 1]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_spearman_of_many_rows_and_without_an_order():
    rows = np.random.default_rng(1).random((3, 9))
    found = spearman(rows, rows[0])
    assert found.shape == (3,)
    assert found[0] == pytest.approx(1)
    assert spearman(rows[0], -np.exp(rows[0])) == pytest.approx(-1)
    assert np.isnan(spearman([1.0, np.nan, 2.0], [1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="second: "):
        spearman([1.0], [1.0, 2.0])
