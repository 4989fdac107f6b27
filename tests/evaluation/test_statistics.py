"""Bootstrap over images, paired differences, Holm's correction: against slow twins, by hand, and as properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tam_fast.evaluation import statistics
from tam_fast.evaluation.statistics import bootstrap, holm, interval, paired, resampled


def slow_bootstrap(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """Draw images one by one and add up what their words have."""
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = [int(generator.integers(len(sums))) for _ in sums]
        weight = sum(counts[place] for place in chosen)
        if weight:
            drawn.append(sum(sums[place] for place in chosen) / weight)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(sums.sum() / counts.sum()), float(low), float(high)


def some_images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 6, size=count)
    return np.array([rng.random(number).sum() for number in counts]), counts


def test_bootstrap_is_what_drawing_images_one_by_one_gives():
    sums, counts = some_images(40)
    value, low, high = bootstrap(sums, counts, resamples=4000)
    expected = slow_bootstrap(sums, counts, 2000, 99)
    assert value == pytest.approx(expected[0], rel=1e-12)
    # Two sets of random numbers: ends agree to a fraction of the interval.
    assert (low, high) == pytest.approx(expected[1:], abs=0.06 * (high - low))
    assert low < value < high


def test_a_seed_repeats_its_draws_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch):
    sums, counts = some_images(7)
    before = bootstrap(sums, counts, resamples=300, seed=3)
    assert bootstrap(sums, counts, resamples=300, seed=3) == before
    assert bootstrap(sums, counts, resamples=300, seed=4) != before
    monkeypatch.setattr(statistics, "_BLOCK", 7 * 13)
    assert bootstrap(sums, counts, resamples=300, seed=3) == before


def test_columns_have_the_same_draws_as_alone():
    sums, counts = some_images(20)
    other = sums**2
    together = bootstrap(np.stack([sums, other], axis=1), np.stack([counts, counts], axis=1), resamples=500)
    for column, alone in enumerate((sums, other)):
        expected = bootstrap(alone, counts, resamples=500)
        assert [float(part[column]) for part in together] == pytest.approx(expected, rel=1e-12)


def test_words_of_an_image_are_no_independent_draws():
    """Ten equal words an image say no more than one: the interval does not shrink."""
    values = np.random.default_rng(0).random(30)
    assert bootstrap(10 * values, np.full(30, 10)) == pytest.approx(bootstrap(values), rel=1e-12)


def test_bootstrap_by_hand():
    assert bootstrap([1.0], [2]) == (0.5, 0.5, 0.5)
    # Of two images, draws are both the first, both the second, or one each: 0, 1, 0.5.
    drawn = resampled([0.0, 1.0], resamples=4000)[:, 0]
    assert sorted(set(drawn)) == [0.0, 0.5, 1.0]
    assert np.mean(drawn == 0.5) == pytest.approx(0.5, abs=0.04)
    assert all(math.isnan(part) for part in bootstrap([], []))
    assert all(math.isnan(part) for part in bootstrap([0.0, 0.0], [0, 0]))
    assert math.isnan(bootstrap([0.5, math.nan], [1, 1])[0])


def test_a_value_an_image_and_none_of_some():
    assert bootstrap([0.2, math.nan, 0.4])[0] == pytest.approx(0.3)
    assert bootstrap([0.2, math.nan, 0.4]) == bootstrap([0.2, 0.0, 0.4], [1, 0, 1])


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 5)), min_size=1, max_size=12), st.integers(0, 3))
def test_intervals_lie_within_the_images_means(images: list[tuple[float, int]], seed: int):
    sums = np.array([value * count for value, count in images])
    counts = np.array([count for _, count in images])
    value, low, high = bootstrap(sums, counts, resamples=50, seed=seed)
    if not counts.any():
        assert math.isnan(value)
        return
    means = [one for one, count in images if count]
    assert min(means) - 1e-9 <= low <= high <= max(means) + 1e-9
    assert min(means) - 1e-9 <= value <= max(means) + 1e-9


def test_paired_differences_are_surer_than_two_intervals():
    rng = np.random.default_rng(1)
    hard = rng.random(60)
    first, second = hard + 0.05 + 0.01 * rng.standard_normal(60), hard
    found = paired(first, second)
    assert found.value == pytest.approx(np.mean(first - second), rel=1e-9)
    assert 0.04 < found.low < found.value < found.high < 0.06
    assert found.p == pytest.approx(2 / 2001)
    assert bootstrap(first)[1] < bootstrap(second)[2]  # apart, the two intervals overlap
    assert paired(second, first).value == -found.value


def test_paired_uses_images_that_both_have():
    found = paired(([1.0, 9.0, 2.0], [1, 0, 2]), ([0.5, 0.5, 7.0], [1, 1, 0]))
    assert (found.images, found.value, found.low, found.high) == (1, 0.5, 0.5, 0.5)
    nothing = paired(([1.0], [0]), ([1.0], [1]))
    assert nothing.images == 0
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.p)
    same = paired([0.1, 0.4, 0.7], [0.1, 0.4, 0.7])
    assert (same.value, same.p) == (0.0, 1.0)


def test_paired_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(5)
    below = [paired(rng.standard_normal(40), rng.standard_normal(40), resamples=200).p < 0.1 for _ in range(200)]
    assert 0.04 < np.mean(below) < 0.19


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    with_none = holm([0.01, math.nan, 0.04])
    assert with_none[::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(with_none[1])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_no_smaller_and_keeps_the_order(values: list[float]):
    found = holm(values)
    assert all(before <= after <= 1.0 for before, after in zip(values, found, strict=True))
    # The step-down procedure itself: rejected one after the other at 0.05 while p <= 0.05 / (m - k).
    order, rejected = sorted(range(len(values)), key=lambda place: values[place]), set()
    for step, place in enumerate(order):
        if values[place] * (len(values) - step) > 0.05:
            break
        rejected.add(place)
    assert {place for place, value in enumerate(found) if value <= 0.05} == rejected


def test_interval_leaves_out_draws_without_a_value():
    low, high = interval([[0.0, np.nan], [np.nan, np.nan], [1.0, np.nan]])
    assert (low[0], high[0]) == pytest.approx((0.025, 0.975))
    assert np.isnan([low[1], high[1]]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap([1.0, 2.0], [1]), "counts: expected the shape of sums"),
        (lambda: bootstrap([1.0], [-1]), "counts: expected finite counts of at least 0"),
        (lambda: bootstrap([[[1.0]]]), "sums: expected"),
        (lambda: bootstrap([1.0], resamples=0), "resamples: expected"),
        (lambda: paired([1.0], [1.0, 2.0]), "second: expected the images of first, 1, got 2"),
        (lambda: paired([[1.0]], [1.0]), "first: expected one column"),
        (lambda: holm([0.5, 1.5]), "p_values: expected values from 0 to 1"),
    ],
)
def test_what_is_wrong_is_named(call, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
