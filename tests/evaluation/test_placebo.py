"""The placebo test, the motivation's statistics, and Pearson's p-value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asked_scenes import PROMPT, asked, explainer, scene
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from scipy import stats

from tam_fast.evaluation.placebo import InContext, Pairs, in_context, motivation, pearson, placebo, token_pairs
from tam_fast.evaluation.ranks import spearman
from tam_fast.maps.layout import Grid, Layout
from tam_fast.operators.ops import estimated_causal_inference


def tiny():
    generator = torch.Generator().manual_seed(0)
    context = torch.rand(5, 12, generator=generator)
    counted = torch.tensor(
        [[True, True, False, False, False], [True, False, True, False, False], [True] * 5, [False] * 5]
    )
    relevance = torch.rand(4, 5, generator=generator) * counted
    layout = Layout([Grid(range(12), 3, 4)], torch.tensor([12, 13]), 15)
    return InContext(torch.rand(4, 12, generator=generator), context, relevance, counted, layout)


def test_real_maps_are_the_explainers():
    given = asked()
    found = placebo(given)
    e = explainer().explain(scene(), PROMPT, answer=given.answer)
    for real, shown in zip(found.maps, e.maps.maps, strict=True):
        np.testing.assert_allclose(real, (shown - shown.min()) / (shown.max() - shown.min()), atol=2e-3)


def test_the_targets_map_is_a_random_earlier_tokens():
    given = tiny()
    found = placebo(given, seed=1, filter=None)
    for target, other in enumerate(found.replaced_by.tolist()):
        if other < 0:
            assert not given.counted[target].any()
            assert not found.placebo[target].any()
            continue
        assert given.counted[target, other]
        causal, _ = estimated_causal_inference(given.context[other][None], given.context, given.relevance[target][None])
        expected = (causal[0] - causal[0].min()) / (causal[0].max() - causal[0].min())
        torch.testing.assert_close(found.placebo[target], expected)
    assert found.replaced_by.tolist() == placebo(given, seed=1).replaced_by.tolist()
    seen = {placebo(given, seed=seed, filter=None).replaced_by[2].item() for seed in range(40)}
    assert seen == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match=r"^interference: "):
        placebo(given, interference="feature_surgery")


def test_the_placebos_maps_leave_the_objects_of_the_embedded_model():
    given = asked()
    context = in_context(given)
    star = len(given.answer) - 1
    real = placebo(context).maps[star]
    alike = [spearman(real, placebo(context, seed=seed).placebo[star]) for seed in range(8)]
    assert np.nanmean(alike) < 0.6


def test_context_is_the_prompts_words_and_earlier_tokens_but_the_same():
    found = in_context(asked())
    words, count = found.layout.prompt.numel(), len(asked().answer)
    assert found.maps.shape[0] == count
    assert found.context.shape[0] == found.relevance.shape[1] == words + count - 1
    torch.testing.assert_close(found.context[words:], found.maps[:-1])
    for target in range(count):
        assert not found.relevance[target, words + target :].any()
        assert not found.counted[target, words + target :].any()
    assert (found.relevance >= 0).all()
    assert not found.relevance[~found.counted].any()


def test_pairs_by_hand():
    given = tiny()
    found = token_pairs(given, seed=2)
    assert len(found.random_distance) == 3  # one target has no context
    scaled = [(map - map.min()) / (map.max() - map.min()) for map in (*given.maps, *given.context)]
    for row in range(3):
        best = int(given.relevance[row].argmax())
        top = max(given.relevance[row].max(), given.maps[row].max())
        assert found.related_relevance[row] == pytest.approx(float(given.relevance[row, best] / top))
        assert found.related_distance[row] == pytest.approx(
            float((scaled[row] - scaled[4 + best]).abs().mean()), abs=1e-6
        )
        distances = [
            float((scaled[row] - scaled[4 + other]).abs().mean()) for other in range(5) if given.counted[row, other]
        ]
        assert min(abs(found.random_distance[row] - distance) for distance in distances) < 1e-6
    assert len(token_pairs(asked()).random_distance) == len(asked().answer)


def test_motivation_pools_images():
    rng = np.random.default_rng(0)
    pairs = [Pairs(*rng.random((4, 6))) for _ in range(3)]
    found = motivation(pairs)
    for name in ("random", "related"):
        one, two = (
            np.concatenate([getattr(pair, f"{name}_{what}") for pair in pairs]) for what in ("distance", "relevance")
        )
        expected = stats.pearsonr(one, two)
        got = getattr(found, name)
        assert (got.r, got.p, got.count) == pytest.approx((expected.statistic, expected.pvalue, 18))
    with pytest.raises(ValueError, match=r"^pairs: "):
        motivation([])


@settings(max_examples=60)
@drawn(st.integers(3, 400), st.floats(-0.99, 0.99), st.integers(0, 99))
def test_pearson_is_scipys(count, r, seed):
    x, y = np.random.default_rng(seed).standard_normal((2, count))
    y = r * x + np.sqrt(1 - r * r) * y
    found, expected = pearson(x, y), stats.pearsonr(x, y)
    assert found.r == pytest.approx(expected.statistic, abs=1e-12)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-7, abs=1e-300)


def test_pearson_where_there_is_little_to_correlate():
    assert np.isnan(pearson([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).r)
    two = pearson([1.0, 2.0], [3.0, 1.0])
    assert two.r == pytest.approx(-1)
    assert np.isnan(two.p)
    assert pearson([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).p == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match=r"^second: "):
        pearson([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"^first, second: "):
        pearson([1.0, np.nan], [1.0, 2.0])
