"""Occlusion, LIME, Shapley values, RISE and region search: the data, and what their equations promise."""

from __future__ import annotations

import warnings

import pytest
import torch

from methods import golden
from tam_fast.methods import METHODS, available, perturbation
from tam_fast.methods.regions import cells_kept, region_labels
from tam_fast.methods.surrogates import all_masks, lime_weights, random_masks, shapley_kernel, shapley_masks
from tam_fast.methods.values import Values

NAMES = ("occlusion", "lime", "shap", "rise", "region_search")
QUICK = {"lime": {"samples": 20}, "shap": {"samples": 40}, "rise": {"samples": 10}, "region_search": {"steps": 2}}


def by_region(maps, labels):
    """The value of each region (T, K), which all of its cells must have."""
    found = torch.stack([maps[:, labels == label][:, 0] for label in labels.unique()], dim=1)
    assert torch.equal(found[:, labels], maps)
    return found


def values_of(case, masks, labels, **options):
    """v of masks of regions (M, T), by forwards of the whole model."""
    embeddings = case.task().call.embeddings
    baseline = options.get("baseline", embeddings[0, case.layout.visual_positions].mean(dim=0))
    start, found = case.layout.answer_start, []
    for part in cells_kept(masks, labels).split(128):
        variants = embeddings.repeat(len(part), 1, 1)
        for variant, kept in zip(variants, part, strict=True):
            variant[case.layout.visual_positions[~kept]] = baseline
        with torch.no_grad():
            logits = case.model(inputs_embeds=variants, use_cache=False).logits[:, start - 1 :]
        ids = case.token_ids[start:, None].expand(len(part), -1, 1)
        found.append(logits.double().log_softmax(dim=2).gather(2, ids)[:, :, 0])
    return torch.cat(found)


# The data --------------------------------------------------------------------------------------------------------


def test_occlusion_is_the_datas(decoder):
    found = decoder.attribute("occlusion", baseline=decoder["baseline_embedding"])
    golden.close(found.maps, decoder["occlusion"])


def test_values_are_the_datas(decoder):
    values = Values(decoder.task(), "lime", baseline=decoder["baseline_embedding"])
    found = values(cells_kept(decoder["region_masks"].bool(), decoder["regions"]))
    torch.testing.assert_close(found, decoder["region_values"], rtol=0, atol=1e-5)
    assert values.run == 64


@pytest.mark.parametrize("options", [{}, {"masks": "region_masks"}])
def test_shapley_values_are_the_datas(decoder, options):
    given = {name: decoder[value] for name, value in options.items()}
    baseline, labels = decoder["baseline_embedding"], decoder["regions"]
    maps = decoder.attribute("shap", baseline=baseline, regions=labels, **given).maps
    golden.close(by_region(maps, labels), decoder["shapley"])


def test_lime_is_the_datas(decoder):
    masks, labels = decoder["lime_masks"], decoder["regions"]
    torch.testing.assert_close(lime_weights(masks), decoder["lime_weights"], rtol=0, atol=1e-12)
    maps = decoder.attribute("lime", baseline=decoder["baseline_embedding"], regions=labels, masks=masks).maps
    golden.close(by_region(maps, labels), decoder["lime"])


# Equations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "samples"), [(4, 512), (perturbation.EXACT, 512), (14, 30), (14, 300)])
def test_shapley_values_sum_to_what_the_image_does(count, samples):
    case = golden.decoder("a")
    labels = region_labels(case.layout, torch.arange(20) % count)
    maps = case.attribute("shap", regions=labels, samples=samples).maps
    ends = values_of(case, torch.tensor([[False] * count, [True] * count]), labels)
    torch.testing.assert_close(by_region(maps, labels).sum(dim=1).double(), ends[1] - ends[0], rtol=0, atol=1e-5)


def test_kernel_shap_nears_the_exact_values(monkeypatch):
    case, labels = golden.decoder("a"), torch.arange(20) % 8
    exact = by_region(case.attribute("shap", regions=labels).maps, labels)
    values, masks = values_of(case, all_masks(8), labels), all_masks(8)
    expected = torch.zeros(5, 8, dtype=torch.float64)
    for region in range(8):  # the mean over orders, written as a sum over sizes
        for size in range(8):
            rows = (~masks[:, region] & (masks.sum(dim=1) == size)).nonzero()[:, 0]
            expected[:, region] += (values[rows + 2 ** (7 - region)] - values[rows]).mean(dim=0) / 8
    golden.close(exact, expected)
    monkeypatch.setattr(perturbation, "EXACT", 0)
    golden.close(by_region(case.attribute("shap", regions=labels, samples=256).maps, labels), expected)
    found = by_region(case.attribute("shap", regions=labels, samples=150).maps, labels)
    assert 1e-6 < (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_regions_alike_have_equal_values():
    case = golden.decoder("b")
    embeddings = case.inputs["inputs_embeds"].clone()
    visual = case.layout.visual_positions
    baseline = embeddings[0, visual].mean(dim=0)
    embeddings[0, visual[6:]] = baseline  # what is absent anyway
    maps = golden.Case(case.model, {"inputs_embeds": embeddings}, case.layout, case.token_ids).attribute(
        "shap", regions=torch.arange(18) // 3, baseline=baseline
    )
    assert maps.maps[:, :6].abs().min() > 1e-3
    assert maps.maps[:, 6:].abs().max() < 1e-6


def test_rise_is_the_expected_probability():
    case = golden.decoder("b")
    labels = torch.arange(18) // 3
    masks = random_masks(40, 6, seed=3, probability=0.3)
    likely = values_of(case, masks, labels).exp()
    kept = cells_kept(masks, labels).double()
    drawn = case.attribute("rise", regions=labels, samples=40, probability=0.3, seed=3).maps
    golden.close(drawn, torch.stack([likely[row].mean(dim=0) for row in kept.T.bool()], dim=1))
    given = case.attribute("rise", regions=labels, masks=masks).maps
    golden.close(given, drawn)


def test_rise_does_not_show_its_masks():
    """A token as likely under any mask has an even map, however often the masks show each cell."""
    case = golden.decoder("b")
    embeddings = case.inputs["inputs_embeds"].clone()
    visual = case.layout.visual_positions
    embeddings[0, visual] = embeddings[0, visual].mean(dim=0)  # what is absent anyway
    same = golden.Case(case.model, {"inputs_embeds": embeddings}, case.layout, case.token_ids)
    found = same.attribute("rise", samples=5).maps
    golden.close(found, found.mean(dim=1, keepdim=True).expand_as(found))
    masks = torch.zeros(3, 18)
    masks[:, 4:] = 1.0
    unseen = case.attribute("rise", masks=masks).maps
    assert not unseen[:, :4].any(), "cells that no mask shows"
    assert bool((unseen[:, 4:] > 0).all())


def test_rise_mixes_where_masks_are_between():
    case = golden.decoder("b")
    masks = torch.rand(3, 18, generator=torch.Generator().manual_seed(0))
    embeddings = case.inputs["inputs_embeds"]
    visual, start = case.layout.visual_positions, case.layout.answer_start
    values = embeddings[0, visual]
    expected = torch.zeros(4, 18)
    for mask in masks:
        variant = embeddings.clone()
        variant[0, visual] = mask[:, None] * values + (1 - mask[:, None]) * values.mean(dim=0)
        with torch.no_grad():
            logits = case.model(inputs_embeds=variant).logits[0, start - 1 :]
        likely = logits.softmax(dim=1).gather(1, case.token_ids[start:, None])
        expected += likely * mask / masks.sum(dim=0)
    golden.close(case.attribute("rise", masks=masks).maps, expected)


def test_smooth_masks_are_alike_in_all_views_of_an_image():
    from tam_fast.methods.perturbation import _smooth_masks

    task = golden.whole("idefics3").task()
    masks = _smooth_masks(task, 200, 4, 0.3, 0)
    assert abs(float(masks.mean()) - 0.3) < 0.02
    canvas = task.layout.canvas(0)
    overview = task.layout.grids[-1]
    assert overview.kind == "overview"
    tiles = [index for index, grid in enumerate(task.layout.grids) if grid.kind == "tile"]
    offsets = task.layout.offsets
    fine = masks[:, : offsets[len(tiles)]]
    # A cell of the overview is where its tiles' cells are: they rise and fall together.
    boxes = torch.tensor([task.layout.grids[index].box for index in tiles])
    assert canvas.frame is None
    first = masks[:, offsets[len(tiles)]]
    near = (boxes[:, 0] < 0.5) & (boxes[:, 1] < 0.5)
    inside = fine.view(200, len(tiles), -1)[:, near].flatten(1).mean(dim=1)
    outside = fine.view(200, len(tiles), -1)[:, ~near & (boxes[:, 0] >= 0.5)].flatten(1).mean(dim=1)
    related = torch.corrcoef(torch.stack([first, inside, outside]))
    assert related[0, 1] > 0.6
    assert related[0, 1] > related[0, 2] + 0.3


@pytest.mark.parametrize("together", [False, True])
def test_region_search_is_greedy(together):
    case, labels = golden.decoder("a"), torch.arange(20) % 6
    likely = values_of(case, all_masks(6), labels).exp()
    row = 2 ** torch.arange(5, -1, -1)
    found = by_region(
        case.attribute("region_search", regions=labels, steps=None, scope=None, together=together).maps, labels
    )
    for target in range(5):
        chosen = torch.zeros(6, dtype=torch.long)
        order = []
        for _ in range(6):
            scores = {}
            for region in set(range(6)) - set(order):
                mask = chosen.clone()
                mask[region] = 1
                pair = likely[(mask * row).sum()], likely[((1 - mask) * row).sum()]
                score = pair[0] + 1 - pair[1]
                scores[region] = float(score.mean() if together else score[target])
            order.append(max(scores, key=scores.get))
            chosen[order[-1]] = 1
        assert found[target].argsort(descending=True).tolist() == order
        assert sorted(found[target].tolist()) == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])


def test_a_narrow_search_asks_less_and_finds_the_same_first():
    case, asked = golden.decoder("b"), []
    wide = case.attribute("region_search", steps=None, scope=None, progress=lambda done, _: asked.append(done)).maps
    whole = asked[-1]
    narrow = case.attribute("region_search", steps=6, scope=3, progress=lambda done, _: asked.append(done)).maps
    assert asked[-1] < whole / 2
    assert torch.equal(narrow.argmax(dim=1), wide.argmax(dim=1))


def test_shapley_masks_are_weighted_by_the_kernel():
    masks, weights = shapley_masks(2**12, 12, seed=0)
    assert len(masks.unique(dim=0)) == len(masks) == 2**12
    torch.testing.assert_close(weights, shapley_kernel(masks))
    masks, weights = shapley_masks(400, 12, seed=0)
    assert len(masks) == 400
    assert weights.sum() == pytest.approx(float(shapley_kernel(all_masks(12)).sum()))
    assert torch.equal(shapley_masks(400, 12, seed=0)[0], masks)
    assert torch.equal(masks[:2].sum(dim=1), torch.tensor([0, 12]))


# Options ---------------------------------------------------------------------------------------------------------


def test_they_say_what_they_are():
    for name in NAMES:
        method = METHODS[name]
        assert (method.kind, method.needs) == ("perturbation", {"forwards"})
        assert {"regions", "baseline", "batch_size", "budget", "progress"} <= set(method.options)
        assert available(golden.decoder("a").model)[name] == ""
    assert [METHODS[name].signed for name in NAMES] == [True, True, True, False, False]


@pytest.mark.parametrize("name", NAMES)
def test_seeds_repeat_and_batches_change_nothing(name):
    case = golden.decoder("b")
    options = {"regions": 12, **QUICK.get(name, {})}
    one, other = (case.attribute(name, batch_size=size, **options).maps for size in (1, 7))
    golden.close(one, other)
    assert torch.equal(case.attribute(name, batch_size=7, **options).maps, other)
    assert bool((one < 0).any()) == METHODS[name].signed
    if "seed" in METHODS[name].options:
        assert not torch.allclose(case.attribute(name, seed=5, **options).maps, other, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_ends_early_with_what_is_known(name):
    case, told = golden.decoder("b"), []
    with pytest.warns(UserWarning, match=f"budget: '{name}' ended after 9 forwards"):
        found = case.attribute(name, budget=9, progress=lambda done, total: told.append((done, total)))
    assert found.maps.isfinite().all()
    assert found.maps.any()
    assert told[-1] == (9, 9)
    if name == "occlusion":
        golden.close(found.maps[:, :8], case.attribute(name).maps[:, :8])
        assert not found.maps[:, 8:].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.attribute(name, budget=100_000, **QUICK.get(name, {}))
    with pytest.warns(UserWarning, match="budget"):
        assert case.attribute(name, budget=1).maps.isfinite().all()


def test_progress_is_told_what_was_planned():
    told = []
    golden.decoder("b").attribute("occlusion", progress=lambda *said: told.append(said), batch_size=8)
    assert told == [(8, 19), (16, 19), (19, 19)]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("occlusion", {"baseline": "gray"}, "baseline: expected one of mean_embedding, zero, grey, .*, got 'gray'"),
        ("occlusion", {"baseline": torch.zeros(3)}, r"baseline: expected embeddings \(32,\) or \(18, 32\), got \(3,\)"),
        ("occlusion", {"normalization": (0, 1)}, "normalization: expected None with baseline='mean_embedding'"),
        ("occlusion", {"batch_size": 0}, "batch_size: expected a number from 1, got 0"),
        ("occlusion", {"budget": 0}, "budget: expected a number from 1, got 0"),
        ("occlusion", {"masks": 3}, "masks: expected an option of 'occlusion'"),
        ("lime", {"samples": True}, "samples: expected a number from 1, got True"),
        ("lime", {"width": 0}, "width: expected a number above 0"),
        ("lime", {"alpha": -1}, "alpha: expected a number from 0"),
        ("lime", {"masks": torch.ones(3, 5)}, r"masks: expected \(M, K\) = \(M, 18\), a value for each region"),
        ("shap", {"masks": torch.full((3, 18), 0.5)}, r"masks: expected 0 \(absent\) and 1 \(stays\)"),
        ("rise", {"masks": torch.ones(3, 5)}, r"masks: expected \(M, 18\) of regions or \(M, 18\) of cells"),
        ("rise", {"masks": torch.full((3, 18), 2.0)}, "masks: expected values from 0"),
        ("rise", {"probability": 1}, "probability: expected a number between 0 and 1, got 1"),
        ("rise", {"size": 0}, "size: expected a number from 1"),
        ("region_search", {"steps": 0}, "steps: expected a number from 1"),
        ("region_search", {"refresh": None}, "refresh: expected a number from 1"),
        ("region_search", {"weight": -1}, "weight: expected a number from 0"),
        ("region_search", {"scope": True}, "scope: expected a number from 1, got True"),
        ("lime", {"alpha": float("inf")}, "alpha: expected a number from 0, got inf"),
        ("lime", {"width": float("nan")}, "width: expected a number above 0, got nan"),
        ("lime", {"seed": 0.5}, "seed: expected a whole number of 64 bits, got 0.5"),
        ("shap", {"regions": 0}, "regions: expected at least 1, got 0"),
        ("shap", {"regions": "cell"}, "regions: expected a number, labels or \"cells\", got 'cell'"),
    ],
)
def test_options_are_checked(method, options, message):
    case = golden.decoder("b")
    with pytest.raises(ValueError, match=message):
        case.attribute(method, **options)
    if not set(options) & {"baseline", "normalization", "masks"}:  # of these more must be known
        with pytest.raises(ValueError, match=message):
            METHODS[method].check(case.model, **{**METHODS[method].options, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"progress": True}, r"progress: expected a callable \(done, total\) or False, got True"),
        ({"regions": object()}, "regions: expected a number or labels"),
        ({"images": True}, "images: expected pictures, got True"),
        ({"baseline": object()}, "baseline: expected a name or an embedding, got object"),
    ],
)
def test_types_are_checked(options, message):
    with pytest.raises(TypeError, match=message):
        golden.decoder("b").attribute("occlusion", **options)
