"""Causal inference and filters on the maps of any method: recorded outputs, names, scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from places import ROOT

import tam_fast
from tam_fast.methods import parse, refine
from tam_fast.methods.refining import Recipe, scaled

FOLDER = ROOT.parent / "shared" / "data" / "golden_methods"


@pytest.fixture(scope="module", params=["a", "b"])
def golden(request):
    if not FOLDER.is_dir():
        pytest.skip("the golden data are not beside the project")
    return dict(np.load(FOLDER / f"decoder_{request.param}.npz")), dict(
        np.load(FOLDER / f"methods_decoder_{request.param}.npz")
    )


def pieces(golden):
    """Raw maps of targets and context tokens, and how the context bears on the targets."""
    given, made = golden
    classifier = given.get("weights/lm_head.weight", given["weights/model.embed_tokens.weight"])
    hidden, ids = made["hidden"].astype(np.float64), given["token_ids"]
    start, prompt, visual = int(given["answer_start"]), given["prompt_positions"], given["visual_positions"]
    targets, count = ids[start:], len(ids) - start
    context_ids = np.concatenate([ids[prompt], targets[:-1]])
    places = np.concatenate([prompt, start - 1 + np.arange(count - 1)])
    rows = classifier.astype(np.float64)
    maps = np.maximum(rows[targets] @ hidden[visual].T, 0)
    context = np.maximum(rows[context_ids] @ hidden[visual].T, 0)
    known = np.arange(len(context_ids)) < len(prompt) + np.arange(count)[:, None]
    counted = known & (context_ids != targets[:, None])
    relevance = np.maximum(rows[targets] @ hidden[places].T, 0) * counted
    holding = np.concatenate([prompt, start + np.arange(count - 1)])
    attention = made["attentions"][-1].mean(0)[start - 1 + np.arange(count)][:, holding] * counted
    return maps, context, relevance, counted, attention, [tuple(given["grid"])]


def test_recorded_causal_maps(golden):
    maps, context, relevance, counted, attention, grids = pieces(golden)
    made = golden[1]
    options = {"filter": None, "grids": grids}
    np.testing.assert_allclose(refine(maps, context, relevance, **options), made["eci"], atol=2e-5)
    found = refine(maps, context, relevance, interference="eci_mean", counted=counted, **options)
    np.testing.assert_allclose(found, made["eci_mean"], atol=2e-5)
    found = refine(maps, context, attention, interference="eci_attention", **options)
    np.testing.assert_allclose(found, made["eci_attention"], atol=2e-5)
    np.testing.assert_allclose(refine(maps, interference=None, **options), made["cam"], atol=2e-5)


def test_feature_surgery_takes_off_what_all_share():
    shared = torch.rand(1, 12)
    maps = shared.expand(3, -1) + torch.eye(3, 12)
    found = refine(maps, interference="feature_surgery", filter=None, grids=[(3, 4)])
    assert bool((found.argmax(1) == torch.arange(3)).all())
    assert float(found[:, 3:].max()) < 0.2 * float(found.max())


def test_the_operators_serve_it():
    generator = torch.Generator().manual_seed(0)
    maps, context = torch.rand(3, 12, generator=generator), torch.rand(4, 12, generator=generator)
    relevance = torch.rand(3, 4, generator=generator)
    causal, _ = tam_fast.estimated_causal_inference(maps, context, relevance)
    expected = tam_fast.rank_gaussian_filter(causal.view(3, 3, 4)).view(3, 12)
    assert torch.equal(refine(maps, context, relevance, grids=[(3, 4)]), expected)


@pytest.mark.parametrize(
    "text, refined, recipe",
    [
        ("cam", None, Recipe("cam")),
        ("tam", None, Recipe("cam", "eci", "rank_gaussian")),
        ("cam+eci+rgf", None, Recipe("cam", "eci", "rank_gaussian")),
        ("cam+median", None, Recipe("cam", None, "median")),
        ("cam", "eci_mean+gaussian", Recipe("cam", "eci_mean", "gaussian")),
        ("cam+feature_surgery", None, Recipe("cam", "feature_surgery")),
    ],
)
def test_recipes(text, refined, recipe):
    assert parse(text, refined) == recipe


@pytest.mark.parametrize(
    "text, refined, message",
    [
        ("magic", None, "method: expected one of tam, cam.*got 'magic'"),
        ("cam+magic", None, "method: expected one of eci, .* behind '\\+', got 'magic'"),
        ("cam+rgf+eci", None, "one of each and in this order"),
        ("cam+eci+eci", None, "one of each and in this order"),
        ("tam+eci", None, "expected nothing behind 'tam'"),
        ("cam+eci", "rgf", "refine: expected none with method 'cam\\+eci'"),
        ("cam", "magic", "refine: expected one of"),
    ],
)
def test_recipes_that_are_none(text, refined, message):
    with pytest.raises(ValueError, match=message):
        parse(text, refined)


def test_scales():
    maps = torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0], [3.0, 3.0, 3.0]])
    assert scaled(maps).tolist() == [[0.0, 0.5, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert torch.allclose(scaled(maps, "answer"), maps.clamp_min(0) / 3)
    with pytest.raises(ValueError, match="scale: expected 'map' or 'answer'"):
        scaled(maps, "all")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"interference": "magic"}, "interference: expected None or one of"),
        ({"filter": "magic"}, "filter: expected None or one of"),
        ({}, "context_maps: expected it with interference='eci', got None"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        refine(torch.zeros(2, 12), grids=[(3, 4)], **options)
