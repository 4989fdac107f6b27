"""Causal inference of a whole answer beside the published way: a stack and a scalar minimiser for every token."""

from __future__ import annotations

import cases
import numpy as np
import oracle
import pytest

import tam_fast

WAYS = {
    "tam_fast": tam_fast.estimated_causal_inference,
    "numpy stack + scipy minimize_scalar": cases.causal_token_by_token,
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("size", [(150, 100, 576), (300, 256, 1296)], ids=str)
def test_estimated_causal_inference(benchmark, name: str, size: tuple[int, int, int]) -> None:
    inputs = cases.causal_inputs(*size)
    causal, scale = WAYS[name](*inputs)
    expected = oracle.estimated_causal_inference(*inputs)
    assert np.abs(causal - expected[0]).max() <= 1e-5
    assert np.allclose(scale, expected[1], rtol=1e-4)
    benchmark.group = f"estimated_causal_inference (n_p, n_a, N) = {size}"
    benchmark.extra_info.update(name=name, pixels=causal.size)
    rounds = 20 if name == "tam_fast" else 3
    benchmark.pedantic(WAYS[name], args=inputs, rounds=rounds, iterations=1, warmup_rounds=1)
