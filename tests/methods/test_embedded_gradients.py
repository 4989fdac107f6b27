"""Gradient CAMs of the embedded model, a trained one, against plain autograd through all of it in float64."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata

import tam_fast
from methods import golden
from tam_fast.demo import scenes
from tam_fast.models.inputs import prepare_inputs

LAYERS = range(3)  # all but the last
VISION = "vision"


@pytest.fixture(scope="module")
def scene():
    """The first sample scene and its caption: a case, and the cells (N,) of what some of its tokens name."""
    model, processor = tam_fast.load_demo()
    path = tam_fast.demo.sample_scenes()[0]
    facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    prompt = prepare_inputs(model, processor, [Image.open(path).convert("RGB")], "Describe this image.")
    ids = processor.tokenizer(facts["caption"]).input_ids
    tail = torch.tensor([ids[:-1]])
    inputs = dict(prompt.inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        more = tail if name == "input_ids" else torch.full_like(tail, int(name == "attention_mask"))
        inputs[name] = torch.cat([inputs[name], more], dim=1)
    case = golden.Case(model, inputs, prompt.layout, torch.cat([prompt.input_ids, torch.tensor(ids)]))
    height, width = prompt.layout.sizes[0]
    drawn = scenes.make_scene(np.random.default_rng(facts["seed"]))
    cover = {}
    for item, mask in zip(drawn.objects, scenes.masks(drawn, facts["size"]), strict=True):
        inside = mask.reshape(height, facts["size"] // height, width, -1).mean(axis=(1, 3)) > 0.5
        cover |= dict.fromkeys((item.colour, item.shape), torch.from_numpy(inside.ravel()))
    words = [processor.tokenizer.decode([token]).strip() for token in ids]
    return case, {index: cover[word] for index, word in enumerate(words) if word in cover}


@pytest.fixture(scope="module")
def plain(scene):
    """Activations (P, C) and gradients (W, P, C) by place, of a float64 copy as it stands: no part of ours."""
    case, cover = scene
    model = copy.deepcopy(case.model).double()
    layers = model.model.language_model.layers
    places = {("layer", index): layers[index] for index in LAYERS}
    places |= {("norm", index): layers[index].post_attention_layernorm for index in LAYERS}
    places[VISION] = model.model.visual.blocks[-1]
    kept = {}
    with ExitStack() as hooks:
        for place, module in places.items():

            def keep(_module, _arguments, output, place=place):
                kept[place] = output[0] if isinstance(output, tuple) else output

            hooks.callback(module.register_forward_hook(keep).remove)
        inputs = {name: value.double() if value.is_floating_point() else value for name, value in case.inputs.items()}
        logits = model(**inputs, use_cache=False).logits[0]
    start = case.layout.answer_start
    scores = [logits[start - 1 + index, case.token_ids[start + index]] for index in cover]
    found = {place: [] for place in places}
    for score in scores:
        gradients = torch.autograd.grad(score, [kept[place] for place in places], retain_graph=True)
        for place, gradient in zip(places, gradients, strict=True):
            found[place].append(gradient.flatten(0, -2))
    made = {place: (kept[place].detach().flatten(0, -2), torch.stack(parts)) for place, parts in found.items()}
    visual = case.layout.visual_positions
    return {place: pair if place == VISION else (pair[0][visual], pair[1][:, visual]) for place, pair in made.items()}


@pytest.mark.parametrize("layer", [*(pytest.param(layer, marks=pytest.mark.long) for layer in LAYERS[:-1]), LAYERS[-1]])
def test_layers_are_those_of_plain_autograd(scene, plain, layer):
    case, cover = scene

    def maps(method):
        return case.attribute(method, layer=layer).maps[list(cover)]

    states, gradients = plain["layer", layer]
    golden.close(maps("grad_cam"), (gradients.mean(dim=1) @ states.T).relu(), 1e-4)
    golden.close(maps("layer_cam"), (gradients.relu() * states).sum(dim=2).relu(), 1e-4)
    states, gradients = plain["norm", layer]
    weighed = (gradients.relu().mean(dim=1) @ states.T).relu()
    golden.close(maps("llava_cam"), weighed / weighed.amax(dim=1, keepdim=True), 1e-4)


def test_the_vision_encoder_is_that_of_plain_autograd(scene, plain):
    case, cover = scene
    states, gradients = plain[VISION]  # one patch a cell, row by row
    golden.close(case.attribute("vision_grad_cam").maps[list(cover)], (gradients.mean(dim=1) @ states.T).relu(), 1e-4)


def auroc(values, inside):
    """How often a cell inside has more than one outside."""
    ranks = rankdata(values.numpy())
    count = int(inside.sum())
    return (ranks[inside.numpy()].sum() - count * (count + 1) / 2) / (count * (len(ranks) - count))


def test_gradients_know_the_object_and_their_mean_does_not(scene, plain):
    """Why these maps are poor here: a mean over all cells forgets where the gradient was."""
    _, cover = scene
    mean = {}
    for place in (("layer", 0), ("layer", 1), ("layer", 2), VISION):
        states, gradients = plain[place]
        sizes, weighed = gradients.norm(dim=2), (gradients.mean(dim=1) @ states.T).relu()
        mean[place] = [
            np.mean([auroc(*pair) for pair in zip(values, cover.values(), strict=True)]) for values in (sizes, weighed)
        ]
    assert all(size > 0.8 for size, _ in mean.values()), mean
    assert all(size > weighed + 0.2 for size, weighed in mean.values()), mean
