"""The closed-form scale against the oracle, and against what it minimises."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import tolerances
import torch
from hypothesis import given
from hypothesis import strategies as st

import tam_fast
from tam_fast import _C


def pair(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.random(shape, dtype=np.float32), generator.random(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 16), (2, 5, 33), (4, 1296)])
def test_against_the_oracle(path: str, shape: tuple[int, ...]) -> None:
    a, e = pair(*shape)
    got = tam_fast.least_squares_scale(a, e)
    assert got.shape == shape[:-1]
    assert got.dtype == np.float32
    # The reference searches, and finds the place of a minimum to about the root of float64's epsilon.
    tolerance = 1e-7 if path == "reference" else tolerances.SCALE
    assert np.allclose(got, oracle.least_squares_scale(a, e), rtol=tolerance, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_range(path: str, scale: float) -> None:
    a, e = pair(3, 50)
    for factor_a, factor_e in ((scale, scale), (scale, 1.0)):
        x, y = a * np.float32(factor_a), e * np.float32(factor_e)
        assert np.allclose(tam_fast.least_squares_scale(x, y), oracle.least_squares_scale(x, y), rtol=2e-7, atol=0)


def test_zero_interference_gives_zero(path: str) -> None:
    a, _ = pair(2, 9)
    assert np.array_equal(tam_fast.least_squares_scale(a, np.zeros_like(a)), np.zeros(2))
    assert np.array_equal(tam_fast.least_squares_scale(np.zeros((3, 0), "f4"), np.zeros((3, 0), "f4")), np.zeros(3))


def test_broadcast_strides_and_dtypes(isa: str) -> None:
    a, e = (torch.from_numpy(x) for x in pair(4, 33))
    expected = tam_fast.least_squares_scale(a, e[:1].expand(4, 33).contiguous())
    assert torch.equal(tam_fast.least_squares_scale(a, e[0]), expected)
    assert torch.equal(tam_fast.least_squares_scale(a.t().contiguous().t(), e[:1]), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x, y = a.to(dtype), e.to(dtype)
        got = tam_fast.least_squares_scale(x, y)
        assert got.dtype == torch.float32
        assert np.allclose(got, oracle.least_squares_scale(x.double(), y.double()), rtol=2e-7, atol=0)


def test_bits_are_the_same_everywhere(threads: None) -> None:
    a, e = (torch.from_numpy(x) for x in pair(50, 777))
    results = []
    for name in _C.available_isas():
        _C.set_isa(name)
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                results.append(tam_fast.least_squares_scale(a, e))
            results.append(torch.stack([tam_fast.least_squares_scale(x, y) for x, y in zip(a, e, strict=True)]))
        finally:
            _C.set_isa(None)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(-3, 3))
def test_no_other_scale_is_closer(seed: int, n: int, step: float) -> None:
    a, e = (x.astype(np.float64) for x in pair(n, seed=seed))
    scale = float(tam_fast.least_squares_scale(a.astype("f4"), e.astype("f4")))

    def distance(s: float) -> float:
        return float(((a - s * e) ** 2).sum())

    assert distance(scale) <= distance(scale + step) + 1e-9


def test_nan_propagates(path: str) -> None:
    a, e = pair(2, 8)
    a[1, 3] = np.nan
    got = tam_fast.least_squares_scale(a, e)
    assert np.isnan(got[1])
    assert not np.isnan(got[0])


@pytest.mark.parametrize(
    ("target", "interference", "kind", "words"),
    [
        (torch.zeros(3), torch.zeros(4), ValueError, ["interference", "N = 3", "(4,)"]),
        (torch.zeros(2, 3), torch.zeros(5, 3), ValueError, ["interference", "broadcasts", "(5, 3)"]),
        (torch.zeros(()), torch.zeros(3), ValueError, ["target", "scalar"]),
        (torch.zeros(3, dtype=torch.int32), torch.zeros(3), TypeError, ["target", "int32"]),
        (torch.zeros(3), [0.0], TypeError, ["interference", "list"]),
    ],
)
def test_errors(target: object, interference: object, kind: type[Exception], words: list[str]) -> None:
    with pytest.raises(kind) as caught:
        tam_fast.least_squares_scale(target, interference)
    for word in words:
        assert word in str(caught.value)
