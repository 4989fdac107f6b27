"""Pooled and per-image means, F1-IoU and intervals of many answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tam_fast.evaluation import Scores, bootstrap, summary
from tam_fast.evaluation.summary import FIGURES, harmonic_mean


def scores(count: int, seed: int = 0) -> list[Scores]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        number = int(rng.integers(0, 4))
        lists = {name: rng.random(number).tolist() for name in ("obj_iou", "precision", "recall")}
        made.append(Scores(**lists, func_iou=rng.random(2).tolist(), rouge_l=[float(rng.random())]))
    return made


def test_by_hand():
    found = summary(
        [Scores(obj_iou=[0.2, 0.4], func_iou=[0.9]), Scores(obj_iou=[0.9]), Scores(), Scores(dropped="why")],
        resamples=50,
    )
    assert found.obj_iou == pytest.approx(0.5)
    assert found.per_image["obj_iou"] == pytest.approx(0.6)
    assert found.f1_iou == pytest.approx(2 * 0.5 * 0.9 / 1.4)
    assert found.per_image["f1_iou"] == pytest.approx(2 * 0.6 * 0.9 / 1.5)
    assert (found.counts["obj_iou"], found.counts["func_iou"], found.counts["meteor"]) == (3, 1, 0)
    assert (found.n, found.dropped) == (3, 1)
    assert math.isnan(found.meteor)
    assert str(found).startswith("Obj-IoU: 0.500000, Func-IoU: 0.900000, F1-IoU: 0.642857, ROUGE-L: nan")


def test_pooled_means_are_numpy_s_over_all_words():
    some = scores(50)
    found = summary(some)
    for name in ("obj_iou", "func_iou", "precision", "recall", "rouge_l"):
        assert getattr(found, name) == pytest.approx(
            np.mean([value for one in some for value in getattr(one, name)]), rel=1e-12
        )


def test_intervals_are_the_bootstrap_s_and_hold_the_value():
    some = scores(60)
    found = summary(some, resamples=500, seed=3)
    for name in ("obj_iou", "func_iou", "recall"):
        lists = [getattr(one, name) for one in some]
        expected = bootstrap([sum(one) for one in lists], [len(one) for one in lists], resamples=500, seed=3)
        assert found.intervals[name] == pytest.approx(expected[1:], rel=1e-9)
    for name in FIGURES:
        low, high = found.intervals[name]
        assert math.isnan(low) if name == "meteor" else low < getattr(found, name) < high
    again, other = (summary(some, resamples=500, seed=seed).intervals["f1_iou"] for seed in (3, 4))
    assert again == found.intervals["f1_iou"] != other
    # F1 is drawn with its two parts, not made of their ends.
    assert found.intervals["f1_iou"] != tuple(
        harmonic_mean(*pair) for pair in zip(found.intervals["obj_iou"], found.intervals["func_iou"], strict=True)
    )


@given(st.lists(st.lists(st.floats(0, 1), max_size=4), max_size=6))
def test_bounds(lists: list[list[float]]):
    found = summary([Scores(obj_iou=one, func_iou=one[:1]) for one in lists], resamples=20)
    values = [value for one in lists for value in one]
    if not values:
        assert math.isnan(found.obj_iou)
        assert math.isnan(found.f1_iou)
        return
    assert min(values) - 1e-12 <= found.obj_iou <= max(values) + 1e-12
    assert min(found.obj_iou, found.func_iou) - 1e-12 <= found.f1_iou <= max(found.obj_iou, found.func_iou) + 1e-12


def test_nothing_at_all():
    found = summary([])
    assert all(math.isnan(getattr(found, name)) for name in FIGURES)
    assert (found.n, found.dropped, found.counts["obj_iou"]) == (0, 0, 0)
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_what_is_wrong_is_named():
    with pytest.raises(TypeError, match=r"^scores: expected a list of Scores, got dict in it"):
        summary([{}])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"^resamples: expected"):
        summary([Scores()], resamples=0)
