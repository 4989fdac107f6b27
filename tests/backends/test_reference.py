"""The readable backend has two minimisers, as the paper and its program have; both find the closed form."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

from tam_fast.backends import reference


@pytest.mark.parametrize("minimiser", ["scalar", "bfgs"])
@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e6])
def test_minimisers_find_the_closed_form(minimiser: reference.Minimiser, magnitude: float) -> None:
    generator = np.random.default_rng(1)
    for size in (1, 5, 400):
        a, e = generator.random(size) * magnitude, generator.random(size)
        found = reference.minimise_scale(a, e, minimiser)
        assert found == pytest.approx(float(oracle.least_squares_scale(a, e)), rel=1e-6)


def test_no_interference_needs_no_scale() -> None:
    assert reference.minimise_scale(np.ones(4), np.zeros(4)) == 0
    assert reference.minimise_scale(np.zeros(4), np.ones(4), "bfgs") == pytest.approx(0, abs=1e-7)


def test_a_window_by_hand() -> None:
    values = np.array([0, 0, 0, 0, 0, 0, 0, 0, 9.0])
    # Mean 1, variance 8: weights exp(-d^2 / 16), and only the highest rank (d = 4) has a value.
    weights = np.exp(-(np.arange(-4, 5) ** 2) / 16)
    assert reference.filter_window(values) == pytest.approx(9 * weights[-1] / weights.sum(), rel=1e-12)
    assert reference.filter_window(np.full(9, 0.3)) == 0.3
    assert np.isnan(reference.filter_window(np.full(9, 0.3), constant_window_nan=True))
    assert reference.filter_window(-values) == 0
