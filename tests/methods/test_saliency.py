"""Gradients at the visual embeddings: the data, an independent gradient, and what integrated gradients sum to."""

from __future__ import annotations

import pytest
import torch

from methods import golden
from tam_fast.models import ModelNotSupportedError


def logits_of(case, embeddings):
    """z_i (T,) by the model's own forward."""
    start = case.layout.answer_start
    logits = case.model(inputs_embeds=embeddings, use_cache=False).logits[0, start - 1 :]
    return logits.gather(1, case.token_ids[start:, None])[:, 0]


def with_visual(case, values):
    embeddings = case.inputs["inputs_embeds"].clone()
    embeddings[0, case.layout.visual_positions] = values
    return embeddings


def gradients(case, values):
    """dz_i / dx (T, N, C) at some visual embeddings, one by one."""
    leaf = values.clone().requires_grad_()
    scores = logits_of(case, with_visual(case, leaf))
    return torch.stack([torch.autograd.grad(score, leaf, retain_graph=True)[0] for score in scores])


def visual(case):
    return case.inputs["inputs_embeds"][0, case.layout.visual_positions]


def test_gradient_input_is_plain_autograd(decoder):
    found = decoder.attribute("gradient_input").maps
    golden.close(found, decoder["gradient_input"][:, decoder.layout.visual_positions], 1e-4)
    assert (found < 0).any()


@pytest.mark.parametrize("name", ["mean", "zero", "given"])
def test_integrated_gradients_are_complete(name):
    case = golden.decoder("b")
    values = visual(case)
    ends = {"mean": values.mean(dim=0), "zero": torch.zeros(32), "given": values.flip(0)}
    with torch.no_grad():
        expected = logits_of(case, with_visual(case, values)) - logits_of(case, with_visual(case, ends[name]))
    baseline = ends[name] if name == "given" else name
    errors = []
    for steps in (16, 64) if name == "zero" else (6, 32):
        found = case.attribute("integrated_gradients", steps=steps, baseline=baseline)
        errors.append(float((found.maps.sum(dim=1) - expected).abs().max()))
    assert errors[1] < 0.1 * errors[0]
    assert errors[1] < 2e-3 * float(expected.abs().max())


def test_integrated_gradients_from_the_image_itself_are_zero():
    case = golden.decoder("b")
    assert not case.attribute("integrated_gradients", steps=2, baseline=visual(case)).maps.any()


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3"])
def test_integrated_gradients_of_a_whole_model_are_complete(family):
    case = golden.whole(family)
    task = case.task()
    embeddings = task.call.embeddings.clone()
    with torch.no_grad():
        full = task.logits(task.call())
        embeddings[0, task.visual] = embeddings[0, task.visual].mean(dim=0)
        expected = full - task.logits(task.call(embeddings))
    found = case.attribute("integrated_gradients").maps.sum(dim=1)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-3 * float(expected.abs().max()))


def test_smooth_grad_is_the_norm_of_the_mean_gradient():
    case = golden.decoder("b")
    noise = case["llava_cam_noise"][:2]
    expected = sum(gradients(case, visual(case) + part) for part in noise) / 2
    golden.close(case.attribute("smooth_grad", noise=noise).maps, expected.norm(dim=2))
    plain = gradients(case, visual(case)).norm(dim=2)
    golden.close(case.attribute("smooth_grad", copies=2, sigma=0.0).maps, plain)
    one, same, other = (case.attribute("smooth_grad", copies=2, seed=seed).maps for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_noise_is_a_part_of_the_range():
    from tam_fast.methods.gradients import noisy_tasks

    task = golden.decoder("b").task()
    values = task.call.embeddings[0, task.visual]
    for _, embeddings in noisy_tasks(task, 2, 0.2, 0, pixels=False):
        difference = embeddings[0] - task.call.embeddings[0]
        spread = float(difference[task.visual].std() / (values.max() - values.min()))
        assert spread == pytest.approx(0.2, rel=0.1)
        others = torch.ones(len(difference), dtype=torch.bool)
        others[task.visual] = False
        assert not difference[others].any()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("integrated_gradients", {"steps": 0}, "steps: expected a number from 1, got 0"),
        ("integrated_gradients", {"baseline": "black"}, 'baseline: expected "zero", "mean" or embeddings'),
        ("integrated_gradients", {"baseline": torch.zeros(3)}, r"baseline: expected embeddings \(32,\) or \(18, 32\)"),
        ("smooth_grad", {"copies": 0}, "copies: expected a number from 1, got 0"),
    ],
)
def test_options_are_checked(method, options, message):
    with pytest.raises(ValueError, match=message):
        golden.decoder("b").attribute(method, **options)


@pytest.mark.parametrize("method", ["gradient_input", "integrated_gradients", "smooth_grad"])
def test_models_that_show_the_image_elsewhere_are_refused(method):
    with pytest.raises(ModelNotSupportedError, match=f"'{method}' needs the visual embeddings.* to deeper layers"):
        golden.whole("granite4_vision").attribute(method)


@pytest.mark.parametrize("name", ["chameleon", pytest.param("phi4_multimodal", marks=pytest.mark.long)])
def test_decoders_that_read_pixels_are_given_what_they_made_of_them(name):
    case = golden.whole(name)
    seen = []
    handle = case.task().head.module.register_forward_pre_hook(lambda module, given: seen.append(given[0][0]))
    with torch.no_grad():
        case.model(**case.inputs, use_cache=False)
    handle.remove()
    rows = case.task().rows
    golden.close(case.task().hidden()[rows], seen[0][rows])
    assert case.attribute("gradient_input").maps.any()


def test_what_a_model_adds_to_deeper_layers_stays():
    case = golden.whole("qwen3_vl")
    maps = case.attribute("gradient_input").maps
    assert maps.any()
    assert maps.isfinite().all()


def test_bfloat16_models_have_nearly_the_same_maps():
    case = golden.decoder("a")
    half = case.to(torch.bfloat16)
    for method, options in (("gradient_input", {}), ("integrated_gradients", {"steps": 4})):
        exact, found = (one.attribute(method, **options).maps for one in (case, half))
        for one, other in zip(exact, found, strict=True):
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.99
