"""Random weights and what is left of them, random answers, small changes of the image."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from asked_scenes import asked, explainer, small, small_scene
from methods import golden
from scipy import stats

from tam_fast.evaluation.sanity import (
    CHANGES,
    random_answers,
    randomisation,
    randomised_layers,
    rank_ssim,
    shifted,
    similarity,
    stability,
)
from tam_fast.methods import attribute


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(before, model):
    return all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


# How alike -------------------------------------------------------------------------------------------------------


def test_only_the_order_of_a_map_counts():
    maps = np.random.default_rng(0).random((3, 9, 8))
    found = similarity(maps, np.exp(5 * maps))
    np.testing.assert_allclose(found.spearman, 1)
    np.testing.assert_allclose(found.ssim, 1)
    turned = similarity(maps, -maps)
    np.testing.assert_allclose(turned.spearman, -1)
    assert (turned.ssim < -0.5).all()
    flat = similarity(maps.reshape(3, -1), maps[::-1].reshape(3, -1))
    assert flat.ssim is None
    assert flat.spearman[0] == pytest.approx(stats.spearmanr(maps[0].ravel(), maps[2].ravel()).statistic)
    assert np.isnan(similarity(np.zeros((1, 4)), np.ones((1, 4))).spearman).all()


def test_ssim_of_ranks_against_a_slow_twin():
    one, two = np.random.default_rng(1).random((2, 6, 9)).round(1)
    ranks = [(stats.rankdata(map) - 1).reshape(map.shape) / (map.size - 1) for map in (one, two)]
    found = []
    for row in range(6 - 5 + 1):
        for column in range(9 - 5 + 1):
            a, b = (rank[row : row + 5, column : column + 5] for rank in ranks)
            across = ((a - a.mean()) * (b - b.mean())).mean()
            found.append(
                (2 * a.mean() * b.mean() + 1e-4)
                * (2 * across + 9e-4)
                / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4))
            )
    assert rank_ssim(one, two, window=5) == pytest.approx(np.mean(found))
    assert rank_ssim(one[:2], one[:2], window=5) == pytest.approx(1)


# Random weights --------------------------------------------------------------------------------------------------


def test_weights_come_back_bit_for_bit_also_after_an_exception():
    model = copy.deepcopy(golden.decoder("a").model)
    before = state(model)
    with randomised_layers(model, [1, -1]):
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert {name.split(".")[2] for name in changed} == {"1", "2"}
        for name in changed:
            shuffled = model.state_dict()[name]
            torch.testing.assert_close(
                shuffled.flatten().sort().values, before[name].flatten().sort().values, rtol=0, atol=0
            )
        assert any("mlp" in name for name in changed)
    assert same(before, model)
    with pytest.raises(KeyError), randomised_layers(model, [0]):
        raise KeyError
    assert same(before, model)


def test_a_layers_random_weights_do_not_depend_on_the_others():
    model = copy.deepcopy(golden.decoder("b").model)
    with randomised_layers(model, [0, 1], seed=3):
        both = state(model.model.layers[1])
    with randomised_layers(model, [1], seed=3):
        assert same(both, model.model.layers[1])
    with randomised_layers(model, [1], seed=4):
        assert not same(both, model.model.layers[1])
    same_weights = copy.deepcopy(model)
    same_weights.model.layers[1].load_state_dict(same_weights.model.layers[0].state_dict())
    with randomised_layers(same_weights, [0, 1]):
        assert not same(state(same_weights.model.layers[0]), same_weights.model.layers[1])
    for layers in ([2], [True], ["0"]):
        with pytest.raises(ValueError, match=r"^layers: "), randomised_layers(model, layers):
            pass


@pytest.mark.parametrize(
    ("how", "expected"), [("cascading", [(2,), (2, 1), (2, 1, 0)]), ("independent", [(2,), (1,), (0,)])]
)
def test_maps_change_with_the_weights_from_the_last_layer_down(how, expected):
    case = golden.decoder("a")
    before, told = state(case.model), []
    found = randomisation(
        case.model, lambda: case.attribute("cam").maps.view(5, 4, 5), how, progress=lambda *where: told.append(where)
    )
    assert [step.layers for step in found] == expected
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert all(np.nanmean(step.similarity.spearman) < 0.9 for step in found)
    assert same(before, case.model)
    layers, wanted = found[-1].layers, case.attribute("cam").maps
    with randomised_layers(case.model, layers):
        expected_maps = case.attribute("cam").maps
    np.testing.assert_array_equal(found[-1].similarity.spearman, similarity(wanted, expected_maps).spearman)
    # What never looks at the model stays as it is: the check sees that.
    fixed = torch.rand(5, 20)
    for step in randomisation(case.model, lambda: fixed, how):
        np.testing.assert_allclose(step.similarity.spearman, 1)


def test_the_embedded_models_maps_change_and_the_model_does_not():
    given = asked()
    before = state(given.model)
    found = randomisation(
        given.model,
        lambda: given.layout.canvas(0).join(
            attribute(given.model, given.inputs, given.layout, given.token_ids, "cam").maps
        ),
        layers=[-1, 0],
    )
    assert np.nanmean(found[-1].similarity.spearman) < 0.7
    assert np.nanmean(found[-1].similarity.ssim) < 0.7
    assert same(before, given.model)


# Random answers --------------------------------------------------------------------------------------------------


def test_a_random_answer_has_other_maps_and_what_ignores_the_answer_has_not():
    given = small()
    asked_for = []

    def maps(ids):
        asked_for.append(ids)
        one = given.with_answer(ids)
        return attribute(one.model, one.inputs, one.layout, one.token_ids, "cam").maps

    words = range(300, 340)
    found = random_answers(maps, given.answer, words, count=2, seed=1)
    assert asked_for[0] == given.answer
    assert len(found) == 2
    for ids in asked_for[1:]:
        assert len(ids) == len(given.answer)
        assert set(ids) <= set(words)
        assert all(one != two for one, two in zip(ids, given.answer, strict=True))
    assert asked_for[1] != asked_for[2]
    assert all(np.nanmean(one.spearman) < 0.9 for one in found)
    fixed = torch.rand(len(given.answer), 16)
    for one in random_answers(lambda _ids: fixed, given.answer, words):
        np.testing.assert_allclose(one.spearman, 1)
    drawn = []
    random_answers(lambda ids: drawn.append(ids) or fixed, [301] * 12, [301, 302])
    assert drawn[1] == [302] * 12  # never the answer's own token
    with pytest.raises(ValueError, match=r"^vocabulary: "):
        random_answers(maps, given.answer, [3])


# Small changes ---------------------------------------------------------------------------------------------------


def test_changes_are_small_and_keep_the_size():
    picture = small_scene(100)
    pixels = np.asarray(picture, float)
    for name, change in CHANGES.items():
        other = change(picture, np.random.default_rng(0))
        assert other.size == picture.size
        assert other.mode == "RGB"
        difference = np.abs(np.asarray(other, float) - pixels).mean()
        assert 0 < difference < 30, name
    moved = np.asarray(CHANGES["shift"](picture, np.random.default_rng(0)))
    np.testing.assert_array_equal(moved[2:, 2:], np.asarray(picture)[:-2, :-2])


def test_a_map_is_shifted_bilinearly():
    map = np.array([[0.0, 1.0, 4.0, 4.0]])
    np.testing.assert_allclose(shifted(map, 0, 0.25), [[0, 0, 1, 4]])
    np.testing.assert_allclose(shifted(map, 0, 0.125), [[0, 0.5, 2.5, 4]])
    np.testing.assert_allclose(shifted(map.T, -0.25, 0), [[1], [4], [4], [4]])


def test_what_follows_the_image_is_stable_and_what_is_drawn_anew_is_not():
    picture = small_scene(100)

    def bright(image):
        return np.asarray(image.convert("L"), float)[None]

    found = stability(bright, picture)
    assert set(found) == set(CHANGES)
    assert found["shift"].spearman[0] > 0.99
    assert found["brightness"].spearman[0] > 0.99
    generator = np.random.default_rng(0)
    noise = stability(lambda _image: generator.random((1, 10, 10)), picture)
    assert max(abs(one.spearman[0]) for one in noise.values()) < 0.5
    with pytest.raises(ValueError, match=r"^changes: "):
        stability(bright, picture, {"crop": lambda image, _generator: image.resize((5, 5))})


def test_the_embedded_models_maps_are_stable():
    given = small()

    def maps(image):
        one = given.with_images(image)
        found = attribute(one.model, one.inputs, one.layout, one.token_ids, "cam").maps
        return one.layout.canvas(0).join(found)

    found = stability(maps, small_scene(), {"brightness": CHANGES["brightness"]})
    assert np.nanmean(found["brightness"].spearman) > 0.7
    assert explainer().model is given.model
