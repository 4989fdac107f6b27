"""Gradient CAMs and LLaVA-CAM against what published programs gave, and the facts about the last layer."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from methods import golden
from tam_fast.methods.gradients import gradients_of, scores_of
from tam_fast.methods.task import hooked
from tam_fast.models import ModelNotSupportedError

CAMS = ("grad_cam", "grad_cam_plusplus", "layer_cam")

# Grad-CAM++ divides by 2 g^2 + g^3 sum a, which comes near 0: float32 states give 1e-5 there, a float64 copy 6e-6.
NEAR = {"grad_cam": 1e-5, "grad_cam_plusplus": 2e-5, "layer_cam": 1e-5}


def inner(case):
    return len(case.task().layers) - 1


@pytest.mark.parametrize("method", CAMS)
def test_every_inner_layer_is_the_published_one(decoder, method):
    for layer in range(inner(decoder)):
        golden.close(decoder.attribute(method, layer=layer).maps, decoder[method][:, layer], NEAR[method])
        exact = decoder.to(torch.float64).attribute(method, layer=layer).maps
        golden.close(exact, decoder[method][:, layer])
    last = decoder.attribute(method, layer=inner(decoder) - 1)
    assert torch.equal(decoder.attribute(method, layer=-2).maps, last.maps)
    assert last.options == {"layer": inner(decoder) - 1}


@pytest.mark.parametrize("method", CAMS)
def test_without_a_layer_it_is_the_final_reading(decoder, method):
    golden.close(decoder.attribute(method).maps, decoder[f"{method}_final"])


@pytest.mark.parametrize("method", CAMS)
def test_the_mean_is_of_scaled_maps_and_scaled_again(decoder, method):
    mean = decoder[f"{method}_scaled"].double().mean(dim=1)  # the last layer's are zeros
    shifted = mean - mean.amin(dim=1, keepdim=True)
    expected = shifted / (1e-7 + shifted.amax(dim=1, keepdim=True))
    golden.close(decoder.attribute(method, layer="mean").maps, expected, 2e-5)


def test_the_last_layer_has_no_gradient_at_the_image(decoder):
    task, seen = decoder.task(), []

    def look(_index, _module, _arguments, output):
        seen.append(output.requires_grad_())

    with hooked([task.layers[-1], task.decoder.norm], look):
        scores = scores_of(task)
    for row, gradients in zip(task.rows.tolist(), gradients_of(scores, seen, "cam"), strict=True):
        for gradient in gradients:
            assert not gradient[0, task.visual].any()
            assert gradient[0, row].any()


@pytest.mark.parametrize("method", [*CAMS, "llava_cam"])
def test_the_last_layers_maps_are_zero(decoder, method):
    last = inner(decoder)
    for layer in (last, -1):
        with pytest.warns(UserWarning, match=rf"layer: {layer} is the last: .* is 0 at every visual position"):
            assert not decoder.attribute(method, layer=layer).maps.any()
    with pytest.raises(ValueError, match=rf"layer: expected a layer from 0 to {last}, got {last + 1}"):
        decoder.attribute(method, layer=last + 1)
    with pytest.raises((ValueError, TypeError), match="layer: expected"):
        decoder.attribute(method, layer="first")
    with pytest.raises(TypeError, match=r"layer: expected a layer's number, got 0\.5"):
        decoder.attribute(method, layer=0.5)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        *((method, {"layer": 3}, "layer: expected a layer from 0 to 2, got 3") for method in [*CAMS, "llava_cam"]),
        *((method, {"layer": "first"}, "layer: expected") for method in [*CAMS, "llava_cam"]),
        ("llava_cam", {"smooth": 0}, "smooth: expected False, True or a number of copies from 1, got 0"),
        ("llava_cam", {"sigma": -1}, "sigma: expected a finite number from 0, got -1"),
        ("smooth_grad", {"sigma": None}, "sigma: expected a finite number from 0, got None"),
        ("smooth_grad", {"copies": 0}, "copies: expected a number from 1, got 0"),
        ("integrated_gradients", {"steps": True}, "steps: expected a number from 1, got True"),
        ("integrated_gradients", {"baseline": "grey"}, 'baseline: expected "zero", "mean" or embeddings'),
        ("feature_surgery", {"cls": "first"}, 'cls: expected "token" or "mean", got \'first\''),
    ],
)
def test_wrong_options_are_refused_before_the_forward(method, options, message, monkeypatch):
    case = golden.decoder("a")
    monkeypatch.setattr(type(case.model), "forward", None)
    monkeypatch.setattr(type(case.model.model), "forward", None)
    with pytest.raises(ValueError, match=message):
        case.attribute(method, **options)


@pytest.mark.parametrize("method", [*CAMS, "llava_cam"])
def test_all_targets_share_one_forward(method):
    case, ran = golden.decoder("b"), []
    with hooked([case.task().decoder], lambda *_: ran.append(1)):
        case.attribute(method, layer=0)
    assert sum(ran) == 1


def test_a_decoder_of_one_layer_has_no_inner_layer():
    case = golden.decoder("b")
    model = copy.deepcopy(case.model)
    del model.model.layers[1]
    model.config.num_hidden_layers = 1
    shallow = dataclasses.replace(case, model=model)
    assert shallow.attribute("layer_cam").maps.any()
    for method, options in (("grad_cam", {"layer": 0}), ("layer_cam", {"layer": "mean"}), ("llava_cam", {})):
        with pytest.raises(ModelNotSupportedError, match="the decoder Qwen2Model has one layer"):
            shallow.attribute(method, **options)


def test_llava_cam_is_the_published_one(decoder):
    for layer in range(inner(decoder)):
        golden.close(decoder.attribute("llava_cam", layer=layer).maps, decoder["llava_cam"][:, layer])
    golden.close(decoder.attribute("llava_cam").maps, decoder["llava_cam"][:, inner(decoder) - 1])
    layer = int(decoder["llava_cam_smooth_layer"])
    smooth = decoder.attribute("llava_cam", layer=layer, noise=decoder["llava_cam_noise"])
    golden.close(smooth.maps, decoder["llava_cam_smooth"])


@pytest.mark.parametrize("family", ["llava", None])
def test_noise_is_drawn_by_a_seed(family):
    case = golden.whole(family) if family else golden.decoder("b")
    plain, still = case.attribute("llava_cam").maps, case.attribute("llava_cam", smooth=2, sigma=0).maps
    torch.testing.assert_close(still, plain)
    one, same, other = (case.attribute("llava_cam", smooth=3, seed=seed).maps for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.allclose(one, plain, atol=1e-3)


def test_noise_falls_on_the_pixels_of_a_model_that_takes_them():
    case, seen = golden.whole("llava"), []
    handle = case.model.model.vision_tower.register_forward_pre_hook(
        lambda _module, arguments, options: seen.append([*arguments, *options.values()][0]), with_kwargs=True
    )
    try:
        case.attribute("llava_cam", smooth=2)
    finally:
        handle.remove()
    pixels = case.inputs["pixel_values"]
    assert len(seen) == 2
    for noisy in seen:
        spread = float((noisy - pixels).std() / (pixels.max() - pixels.min()))
        assert spread == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth": 0}, "smooth: expected False, True or a number of copies from 1, got 0"),
        ({"smooth": 2, "sigma": -1.0}, "sigma: expected a finite number from 0, got -1.0"),
        ({"noise": torch.zeros(2, 3, 4)}, r"noise: expected \(copies, N, C\) = \(copies, 18, 32\), got \(2, 3, 4\)"),
        ({"layer": "mean"}, "layer: expected a layer's number, got 'mean'"),
    ],
)
def test_options_of_llava_cam_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        golden.decoder("b").attribute("llava_cam", **options)


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "qwen3_5", "glm5_next"])
def test_whole_models_have_gradient_cams(family):
    case = golden.whole(family)
    for method in CAMS:
        maps = case.attribute(method, layer=0).maps
        assert maps.isfinite().all()
        assert maps.any()
        assert (maps >= 0).all()
        mean = case.attribute(method, layer="mean").maps
        assert mean.amin() == 0
        assert mean.amax() == pytest.approx(1.0, abs=1e-3)


def test_a_layer_cam_of_a_whole_model_is_the_models_own_gradient():
    case = golden.whole("qwen2_vl")
    layout, seen = case.layout, []
    handle = case.task().layers[0].register_forward_hook(lambda _module, _arguments, output: seen.append(output))
    logits = case.model(**case.inputs, use_cache=False).logits[0]
    handle.remove()
    expected = []
    for row, target in enumerate(case.token_ids[layout.answer_start :].tolist(), layout.answer_start - 1):
        (gradient,) = torch.autograd.grad(logits[row, target], seen, retain_graph=True)
        expected.append((gradient.relu() * seen[0])[0, layout.visual_positions].sum(dim=1).relu().detach())
    golden.close(case.attribute("layer_cam", layer=0).maps, torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["grad_cam", "layer_cam", "llava_cam"])
def test_half_precision_models_have_nearly_the_same_maps(method, dtype):
    case = golden.decoder("a")
    exact, found = (one.attribute(method, layer=0).maps for one in (case, case.to(dtype)))
    assert found.dtype == torch.float32
    for one, other in zip(exact, found, strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.995


def test_decoders_without_a_norm_before_the_mlp_are_refused_by_llava_cam():
    from tam_fast.methods import available

    case = golden.whole("cohere2_vision")
    with pytest.raises(ModelNotSupportedError, match=r"'llava_cam' reads the norm .* Cohere2DecoderLayer, has none"):
        case.attribute("llava_cam")
    reasons = available(case.model)
    assert reasons["llava_cam"].startswith("method: 'llava_cam'")
    assert reasons["grad_cam"] == ""


def test_a_decoder_without_a_graph_is_refused():
    with torch.no_grad():
        scores = scores_of(golden.decoder("b").task())
    with pytest.raises(ModelNotSupportedError, match="'layer_cam' needs gradients, and none flow"):
        next(gradients_of(scores, [], "layer_cam"))
