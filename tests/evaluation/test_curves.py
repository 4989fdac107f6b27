"""Insertion and deletion: the data, a slow twin, regions, pixels, and the embedded model end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asked_scenes import asked, scene, small, small_scene
from conftest_models import PROMPT as CHAT
from conftest_models import picture
from families import build
from methods import golden
from PIL import Image

from tam_fast.evaluation.curves import Curves, absent_picture, curves_of, insertion_deletion, trapezoid
from tam_fast.evaluation.forced import forced
from tam_fast.explain.explainer import Explainer
from tam_fast.methods import attribute
from tam_fast.methods.regions import block_labels


def measured(case, maps, **options):
    return insertion_deletion(case.model, case.inputs, case.layout, case.token_ids, maps, **options)


@pytest.mark.parametrize("name", golden.NAMES)
def test_curves_are_the_datas(name):
    case = golden.decoder(name)
    found = measured(case, case["cam"], baseline=case["baseline_embedding"])
    for kind in ("insertion", "deletion"):
        np.testing.assert_allclose(getattr(found, kind), case.arrays[f"{kind}_curve_cam"], atol=1e-6)
        np.testing.assert_allclose(getattr(found, f"{kind}_auc"), case.arrays[f"{kind}_auc_cam"], atol=1e-6)
    cells = found.area.shape[1] - 1
    np.testing.assert_allclose(found.area, np.arange(cells + 1)[None] / cells + np.zeros_like(found.area))


def slow_value(case, kept, target, baseline):
    embeddings = case.inputs["inputs_embeds"].clone()
    for cell, position in enumerate(case.layout.visual_positions.tolist()):
        if not kept[cell]:
            embeddings[0, position] = baseline
    with torch.no_grad():
        logits = case.model(inputs_embeds=embeddings, use_cache=False).logits[0].double()
    row = case.layout.answer_start - 1 + target
    return float(logits[row].softmax(dim=0)[case.token_ids[case.layout.answer_start + target]])


def test_regions_words_and_steps_against_a_slow_twin():
    case = golden.decoder("b")
    regions, tokens = np.arange(18) // 4 - 1, [1, 3]  # four cells belong to no region
    map = torch.rand(18, generator=torch.Generator().manual_seed(0))
    found = measured(
        case, map, tokens=tokens, ranks="region", regions=regions, steps=2, baseline="zero", score="probability"
    )
    zero = torch.zeros(case.inputs["inputs_embeds"].shape[-1])
    order = sorted(range(4), key=lambda region: -map[regions == region].double().mean())
    for step in range(3):
        first = {order[place] for place in range(4 * step // 2)}
        kept = [region < 0 or region in first for region in regions.tolist()]
        left = [region < 0 or region not in first for region in regions.tolist()]
        for values, mask in ((found.insertion, kept), (found.deletion, left)):
            expected = np.mean([slow_value(case, mask, target, zero) for target in tokens])
            assert values[0, step] == pytest.approx(expected, abs=1e-5)
        shown = sum(region in first for region in regions.tolist())
        assert found.area[0, step] == pytest.approx(shown / 14)


def test_ends_do_not_depend_on_the_map_and_a_map_turned_round_swaps_the_curves():
    case = golden.decoder("a")
    map = np.random.default_rng(2).permutation(20).astype(float)
    one, two = (measured(case, sign * map, tokens="all") for sign in (1, -1))
    for found in (one, two):
        np.testing.assert_allclose(found.insertion[:, -1], one.all, atol=1e-9)
        np.testing.assert_allclose(found.deletion[:, -1], one.none, atol=1e-9)
    np.testing.assert_allclose(one.insertion[:, ::-1], two.deletion, atol=1e-9)
    scaled = measured(case, np.exp(map / 9), tokens="all")
    np.testing.assert_array_equal(one.insertion, scaled.insertion)


def test_log_probabilities_and_several_maps_are_what_one_map_each_is():
    case = golden.decoder("a")
    maps, tokens = case["cam"][:2], [[0, 2], [4]]
    together = measured(case, maps, tokens=tokens, score="log_probability", steps=4)
    for index in range(2):
        alone = measured(case, maps[index], tokens=tokens[index], score="log_probability", steps=4)
        np.testing.assert_allclose(together.insertion[index], alone.insertion[0], atol=1e-6)
        np.testing.assert_allclose(together.deletion[index], alone.deletion[0], atol=1e-6)
    own = measured(case, case["cam"], score="log_probability", steps=4)
    np.testing.assert_allclose(
        own.insertion[4],
        measured(case, case["cam"][4], tokens=[4], score="log_probability", steps=4).insertion[0],
        atol=1e-6,
    )
    assert together.tokens == tokens
    array = measured(case, maps, tokens=np.array([[0, 2], [4, 4]]), score="log_probability", steps=4)
    np.testing.assert_array_equal(array.insertion, together.insertion)


def test_areas_and_normalised_curves_by_hand():
    curves = Curves(
        np.array([[0.2, 0.6, 0.6], [0.5, 0.9, 0.5]]),
        np.array([[0.6, 0.3, 0.2], [0.5, 0.1, 0.5]]),
        np.array([[0.0, 0.25, 1.0], [0.0, 0.5, 1.0]]),
        "region",
        "probability",
        [[0], [1]],
    )
    np.testing.assert_allclose(curves.insertion_auc, [0.25 * 0.4 + 0.75 * 0.6, 0.7])
    np.testing.assert_allclose(curves.deletion_auc, [0.25 * 0.45 + 0.75 * 0.25, 0.3])
    np.testing.assert_allclose(curves.effect, [0.4, 0.0])
    np.testing.assert_allclose(curves.best, [0.6, 0.9])
    normal = curves.normalised()
    np.testing.assert_allclose(normal.insertion[0], [0, 1, 1])
    np.testing.assert_allclose(normal.deletion[0], [1, 0.25, 0])
    assert np.isnan(normal.insertion[1]).all()
    np.testing.assert_allclose(curves.at([0.125, 0.5])[0], [[0.4, 0.6], [0.6, 0.9]])
    assert trapezoid([0, 1], [0, 1]) == 0.5


# The embedded model ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_what_matters_beats_its_inverse_on_the_embedded_model():
    given = asked()
    green = len(given.answer) - 2
    seen = attribute(given.model, given.inputs, given.layout, given.token_ids, "shap", regions=4).maps[green]
    blocks = block_labels(given.layout, 4)
    found = curves_of(given, torch.stack([seen, -seen]), tokens=[green], ranks="region", regions=blocks)
    assert found.insertion_auc[0] > found.insertion_auc[1] + 0.2
    assert found.deletion_auc[0] < found.deletion_auc[1] - 0.2
    assert found.effect[0] > 0.5


def test_pixels_are_shown_in_the_maps_order():
    given = small()
    height, width = given.layout.sizes[0]
    map = torch.arange(float(height)).repeat_interleave(width)
    told = []
    found = curves_of(given, map, ranks="pixel", steps=2, progress=lambda *where: told.append(where))
    assert told[-1] == (4, 4)
    pixels = np.asarray(small_scene())
    rows = np.arange(pixels.shape[0])[:, None, None]
    for values, shown in ((found.insertion, rows >= 28), (found.deletion, rows < 28)):
        other = given.with_images(Image.fromarray(np.where(shown, pixels, np.uint8(0))))
        expected = other.log_probabilities().exp().mean()
        assert values[0, 1] == pytest.approx(float(expected), abs=1e-6)
    assert found.all[0] == pytest.approx(float(given.log_probabilities().exp().mean()), abs=1e-6)
    np.testing.assert_allclose(found.area, [[0, 0.5, 1]])


def test_what_stands_where_pixels_are_absent():
    picture = scene()
    for name in ("black", "grey", "mean", "blur"):
        made = absent_picture(picture, name, (20, 20))
        assert made.size == picture.size
        assert made.mode == "RGB"
    assert absent_picture(picture, "black", (2, 2)).getextrema() == ((0, 0),) * 3
    mean = np.asarray(absent_picture(picture, "mean", (2, 2)))[0, 0]
    np.testing.assert_allclose(mean, np.asarray(picture).reshape(-1, 3).mean(axis=0), atol=0.51)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"maps": torch.zeros(3, 19)}, "maps"),
        ({"maps": torch.full((5, 20), torch.nan)}, "maps"),
        ({"maps": torch.zeros(3, 20)}, "tokens"),
        ({"tokens": [[0]]}, "tokens"),
        ({"tokens": [9]}, "tokens"),
        ({"ranks": "pixel"}, "ranks"),
        ({"regions": 4}, "regions"),
        ({"score": "logit"}, "score"),
        ({"steps": 0}, "steps"),
        ({"baseline": "nothing"}, "baseline"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, name):
    case = golden.decoder("a")
    with pytest.raises(ValueError, match=f"^{name}: "):
        measured(case, options.pop("maps", torch.zeros(5, 20)), **options)


def test_a_fixed_answer_is_asked_about_pictures_of_its_size_alone():
    given = small()
    with pytest.raises(ValueError, match=r"^images: "):
        given.with_images(small_scene(84))
    again = given.with_images(small_scene())
    assert again.answer == given.answer
    np.testing.assert_array_equal(again.log_probabilities(), given.log_probabilities())
    other = given.with_prompt("What is in the image?")
    assert (
        other.layout.answer_start != given.layout.answer_start or other.token_ids.tolist() != given.token_ids.tolist()
    )
    assert given.with_answer("The image").answer == given.answer[:2]


@pytest.mark.long
@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "internvl", "qwen3_vl", "gemma3", "llava_next", "idefics3"])
def test_whole_images_have_the_same_value_by_pixels_and_by_cells_in_every_layout(family):
    built = build(family)
    given = forced(Explainer(built.model, built.processor), [picture(90, 60, seed=0)], [20, 7, 33, 20], CHAT)
    maps = torch.rand(1, len(given.task().visual), generator=torch.Generator().manual_seed(0))
    cells, pixels = curves_of(given, maps, ranks="region", regions=4), curves_of(given, maps, ranks="pixel", steps=2)
    np.testing.assert_allclose(cells.all, pixels.all, atol=1e-6)
    whole = Image.new("RGB", (90, 60))
    black = float(given.with_images(whole).log_probabilities().exp().mean())
    assert pixels.none[0] == pytest.approx(black, abs=1e-6)
