"""The ways of making a whole answer's maps agree with the oracle; timed by ``python -m bench answer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tolerances

import tam_fast
from bench import cases


@pytest.fixture(scope="module")
def answer() -> cases.Answer:
    return cases.random_answer(12, [(6, 5), (4, 7)], 32, 300)


@pytest.mark.parametrize(
    ("way", "tolerance"),
    [
        (lambda a: tam_fast.activation_maps(a.hidden, a.classifier, a.token_ids, a.layout).maps, tolerances.PIPELINE),
        (cases.vectorised_torch, cases.PEER),
        (cases.vectorised_numpy, cases.PEER),
    ],
    ids=["tam_fast", "torch", "numpy"],
)
def test_activation_maps(way: Callable[[cases.Answer], Any], tolerance: float, answer: cases.Answer) -> None:
    assert np.abs(np.asarray(way(answer)) - cases.oracle_answer(answer).maps).max() <= tolerance


def test_published_steps(answer: cases.Answer) -> None:
    maps = cases.published_steps(answer, *cases.published_logits(answer))
    assert np.abs(maps - cases.oracle_answer(answer, "official").maps).max() <= tolerances.OFFICIAL_FLOAT


def test_the_oracle_of_one_map(answer: cases.Answer) -> None:
    expected = cases.oracle_answer(answer).maps
    for target in range(answer.tokens):
        assert np.abs(cases.oracle_map(answer, target) - expected[target]).max() <= 1e-12
