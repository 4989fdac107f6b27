"""The linear datamodeling score: the data, by hand, and of a model."""

from __future__ import annotations

import numpy as np
import pytest
from asked_scenes import small
from methods import golden

from tam_fast.evaluation.datamodels import datamodel, linear_datamodeling_score, region_sums
from tam_fast.methods import attribute


@pytest.mark.parametrize("name", golden.NAMES)
def test_scores_are_the_datas(name):
    case = golden.decoder(name)
    masks, values = case.arrays["region_masks"], case.arrays["region_values"]
    cam = region_sums(case["cam"], case["regions"])
    np.testing.assert_allclose(linear_datamodeling_score(cam, masks, values), case.arrays["lds_cam"], atol=1e-12)
    found = linear_datamodeling_score(case.arrays["shapley"], masks, values)
    np.testing.assert_allclose(found, case.arrays["lds_shapley"], atol=1e-12)
    one = linear_datamodeling_score(cam[1], masks, values[:, 1])
    assert isinstance(one, float)
    assert one == pytest.approx(case.arrays["lds_cam"][1])


def test_by_hand():
    masks = [[1, 0], [0, 1], [1, 1], [0, 0]]
    assert linear_datamodeling_score([2.0, 1.0], masks, [2, 1, 3, 0]) == pytest.approx(1)
    assert linear_datamodeling_score([2.0, 1.0], masks, [-2, -1, -3, 0]) == pytest.approx(-1)
    assert linear_datamodeling_score([2.0, 1.0], masks, [1, 2, 3, 0]) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert np.isnan(linear_datamodeling_score([0.0, 0.0], masks, [1, 2, 3, 4]))


def test_sums_that_differ_by_rounding_are_ties():
    scores, masks = np.array([0.1, 0.2, 0.3, 0.6]), np.array([[1, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    assert len(set(masks @ scores)) == 3
    for values in ([3, 2, 1], [2, 3, 1]):
        assert linear_datamodeling_score(scores, masks, values) == pytest.approx(np.sqrt(3) / 2)


def test_regions_are_summed_without_those_of_no_region():
    found = region_sums([[1.0, 2.0, 4.0, 8.0]], [1, 0, -1, 1])
    np.testing.assert_array_equal(found, [[2.0, 9.0]])
    with pytest.raises(ValueError, match=r"^labels: "):
        region_sums([[1.0, 2.0]], [0, 0, 1])


@pytest.mark.parametrize("name", golden.NAMES)
def test_a_model_is_asked_once_for_all_methods(name):
    case = golden.decoder(name)
    how = {"regions": case["regions"], "baseline": case["baseline_embedding"]}
    found = datamodel(case.model, case.inputs, case.layout, case.token_ids, samples=30, seed=5, **how)
    known = {
        tuple(mask): row for mask, row in zip(case.arrays["region_masks"], case.arrays["region_values"], strict=True)
    }
    expected = np.array([known[tuple(mask.astype(int))] for mask in found.masks])
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    every = known[(1,) * 6]
    for region in range(6):
        without = known[tuple(int(other != region) for other in range(6))]
        np.testing.assert_allclose(found.ablations[region], every - without, atol=1e-5)
    # A region's own effect, spread over its cells, foretells single ablations perfectly.
    sizes = np.bincount(case["regions"])
    maps = (found.ablations / sizes[:, None])[case.arrays["regions"]].T
    np.testing.assert_allclose(found.single(maps), 1)
    spans = found.lds(maps[[0, 1]], spans=[[0, 1], [2]])
    assert spans[1] == pytest.approx(
        linear_datamodeling_score(region_sums(maps[1:2], case["regions"])[0], found.masks, found.values[:, 2])
    )
    total = found.values[:, [0, 1]].sum(axis=1)
    assert spans[0] == pytest.approx(
        linear_datamodeling_score(region_sums(maps[:1], case["regions"])[0], found.masks, total)
    )


@pytest.mark.long
def test_shapley_values_foretell_the_embedded_model_better_than_their_negatives():
    given = small()
    where = given.model, given.inputs, given.layout, given.token_ids
    found = datamodel(*where, regions=4, samples=12)
    maps = attribute(*where, "shap", regions=4).maps
    assert np.nanmean(found.lds(maps)) > 0.3
    np.testing.assert_allclose(found.lds(-maps), -found.lds(maps))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([1.0], [[1, 0]], [1.0]), "masks"),
        (([1.0], [[1]], [1.0]), "masks"),
        (([1.0], [[1], [0]], [1.0]), "values"),
        (([[1.0], [2.0]], [[1], [0]], [[1.0], [2.0], [3.0]]), "values"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        linear_datamodeling_score(*arguments)
