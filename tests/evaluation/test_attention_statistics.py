"""Attention to the image: weights of every layer and head are the data's, figures by hand."""

from __future__ import annotations

import numpy as np
import pytest
from asked_scenes import asked
from methods import golden
from scipy import stats

from tam_fast.evaluation.attention_statistics import (
    VisualAttention,
    alignment,
    paraphrase_consistency,
    visual_attention,
)
from tam_fast.methods import attention_rows


@pytest.mark.parametrize("name", golden.NAMES)
def test_weights_are_the_datas(name):
    case = golden.decoder(name)
    found = visual_attention(case.task())
    rows = case.arrays["attentions"][:, :, case.layout.answer_start - 1 :]
    np.testing.assert_allclose(found.rows, rows[..., case.layout.visual_positions.numpy()], atol=1e-5)
    assert found.layers == list(range(len(rows)))


def test_figures_by_hand():
    rows = np.zeros((1, 3, 1, 4), np.float32)
    rows[0, :, 0] = [[0.1, 0.1, 0.1, 0.1], [0.3, 0.0, 0.0, 0.0], [0.2, 0.1, 0.05, 0.0]]
    found = VisualAttention(rows, [0])
    np.testing.assert_allclose(found.mass[0, :, 0], [0.4, 0.3, 0.35], rtol=1e-6)
    share = np.array([4, 2, 1]) / 7
    expected = [1, 0, -(share * np.log(share)).sum() / np.log(4)]
    np.testing.assert_allclose(found.dispersion()[0, :, 0], expected, atol=1e-6)
    assert np.isnan(found.head_consistency()).all()  # one head tells no cell from another
    only = VisualAttention(rows[:, 1:], [0])
    np.testing.assert_allclose(only.head_consistency(), stats.spearmanr(rows[0, 1, 0], rows[0, 2, 0]).statistic)
    assert np.isnan(only.layer_consistency()).all()
    nothing = VisualAttention(np.zeros((1, 1, 1, 4), np.float32), [0])
    assert np.isnan(nothing.dispersion()).all()


def test_consistency_is_the_mean_of_all_pairs():
    rows = np.random.default_rng(0).random((3, 4, 2, 9)).astype(np.float32)
    found = VisualAttention(rows, [0, 1, 2])
    for token in range(2):
        for layer in range(3):
            pairs = [
                stats.spearmanr(rows[layer, one, token], rows[layer, two, token]).statistic
                for one in range(4)
                for two in range(one + 1, 4)
            ]
            assert found.head_consistency()[layer, token] == pytest.approx(np.mean(pairs))
        means = rows[:, :, token].mean(axis=1)
        pairs = [stats.spearmanr(means[one], means[two]).statistic for one, two in ((0, 1), (0, 2), (1, 2))]
        assert found.layer_consistency()[token] == pytest.approx(np.mean(pairs))
    alike = VisualAttention(np.repeat(rows[:, :1], 4, axis=1), [0, 1, 2])
    np.testing.assert_allclose(alike.head_consistency(), 1)


def test_alignment_by_hand():
    maps = np.array([[[0.3, 0.1], [0.0, 0.1]], [[0.0, 0.0], [0.0, 0.0]]])
    mask = np.zeros((4, 4), bool)
    mask[:2, :2] = True
    mask[:2, 2:3] = True  # half of the next cell
    gaze = np.array([[1.0, 0.0], [0.0, 0.0]])
    found = alignment(maps, mask, gaze)
    np.testing.assert_allclose(found.mass, [0.35 / 0.5, np.nan])
    # Inside: 1 of 0.3 and 0.5 of 0.1; outside: 0.5 and 1 of 0.1, 1 of 0.
    assert found.auroc[0] == pytest.approx((2.5 + 0.5 * (1 + 0.5 * 1.5)) / (1.5 * 2.5))
    assert found.nss[0] == pytest.approx((0.3 - 0.125) / maps[0].std())
    assert found.kl[0] == pytest.approx(np.log(1 / 0.6))
    assert alignment(maps, mask).nss is None
    with pytest.raises(ValueError, match=r"^maps: "):
        alignment(-maps, mask)


@pytest.mark.long
def test_the_embedded_models_attention():
    given = asked()
    task = given.task()
    found = visual_attention(task)
    expected = attention_rows(task, task.rows, layer=0, heads=1)[:, task.visual].numpy()
    np.testing.assert_allclose(found.rows[0, 1], expected, atol=1e-6)
    assert ((found.mass > 0) & (found.mass < 1 + 1e-6)).all()
    assert ((found.dispersion() > 0) & (found.dispersion() <= 1)).all()
    same = paraphrase_consistency(given, [given.job.chat.prompt])
    np.testing.assert_allclose(same, 1)
    other = paraphrase_consistency(given, "What is in the image?")
    assert other.shape == (len(given.answer),)
    assert ((other > 0) & (other < 1)).all()
    with pytest.raises(ValueError, match=r"^prompts: "):
        paraphrase_consistency(given, [])
