"""Grad-CAM of the vision encoder against gradients of the whole model, patches ordered by each family's own rule."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from methods import golden
from tam_fast.methods import available
from tam_fast.methods.vision import vision_blocks
from tam_fast.models import ModelNotSupportedError


def plain(case, block):
    """Grad-CAM of every row of a block's output (T, P), by one backward pass through the whole model a token."""
    seen = []

    def look(_module, _arguments, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    model = copy.deepcopy(case.model)
    names = {id(module): name for name, module in case.model.named_modules()}
    handle = model.get_submodule(names[id(block)]).register_forward_hook(look)
    start = case.layout.answer_start
    logits = model(**case.inputs, use_cache=False).logits[0, start - 1 :]
    handle.remove()
    (output,) = seen
    scores = logits.gather(1, case.token_ids[start:, None])[:, 0]
    return output.detach(), [torch.autograd.grad(score, output, retain_graph=True)[0] for score in scores]


def grad_cam(states, gradients):
    return (states * gradients.mean(dim=0)).sum(dim=1).relu()


def test_clips_last_used_block_is_the_last_but_one():
    case = golden.whole("llava")
    blocks = vision_blocks(case.model)
    assert case.model.config.vision_feature_layer == -2
    assert len(blocks) == 3
    states, gradients = plain(case, blocks[-2])
    # The class token has no cell; it is the first.
    expected = torch.stack([grad_cam(states[0, 1:], gradient[0, 1:]) for gradient in gradients])
    golden.close(case.attribute("vision_grad_cam").maps, expected)


@pytest.mark.parametrize("images", [1, 2])
def test_merged_patches_are_one_cell(images):
    case = golden.whole("qwen2_vl", images=images)
    states, gradients = plain(case, vision_blocks(case.model)[-1])
    each = torch.stack([grad_cam(states, gradient) for gradient in gradients])
    # Four patches that are merged follow each other, cells row by row, images in order.
    golden.close(case.attribute("vision_grad_cam").maps, each.unflatten(1, (-1, 4)).mean(dim=2))


def test_windows_are_undone():
    case = golden.whole("qwen2_5_vl", (300, 150))
    (height, width) = case.layout.sizes[0]
    assert case.model.config.vision_config.window_size == 112  # windows of 4 x 4 cells
    assert width > 4
    order = [
        row * width + column
        for top in range(0, height, 4)
        for left in range(0, width, 4)
        for row in range(top, min(top + 4, height))
        for column in range(left, min(left + 4, width))
    ]
    assert order != sorted(order)
    states, gradients = plain(case, vision_blocks(case.model)[-1])
    each = torch.stack([grad_cam(states, gradient) for gradient in gradients]).unflatten(1, (-1, 4)).mean(dim=2)
    expected = torch.empty_like(each)
    expected[:, order] = each
    golden.close(case.attribute("vision_grad_cam").maps, expected)


def test_pooled_patches_are_one_cell():
    case = golden.whole("gemma3")
    height, width = case.layout.sizes[0]
    states, gradients = plain(case, vision_blocks(case.model)[-1])
    side = round(states.shape[1] ** 0.5)
    each = torch.stack([grad_cam(states[0], gradient[0]) for gradient in gradients])
    expected = torch.nn.functional.adaptive_avg_pool2d(each.view(-1, 1, side, side), (height, width))
    golden.close(case.attribute("vision_grad_cam").maps, expected.flatten(1))


@pytest.mark.parametrize("family", ["internvl.many", "idefics3", "llava_next", "qwen3_vl", "molmo2.pooling"])
def test_tiles_are_mapped(family):
    case = golden.whole(family, (170, 60))
    maps = case.attribute("vision_grad_cam").maps
    assert maps.isfinite().all()
    assert maps.any()


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("got_ocr2", "needs patches that belong to one cell each"),  # convolutions that overlap
        (
            "granite4_vision",
            "needs visual embeddings that depend on a block of the vision encoder, found none",
        ),  # shown to deeper layers alone
        ("emu3", "needs blocks of attention that run in the vision encoder"),  # codes of a table
    ],
)
def test_encoders_that_cannot_be_mapped_are_refused(family, reason):
    with pytest.raises(ModelNotSupportedError, match=f"method: 'vision_grad_cam' {reason}"):
        golden.whole(family).attribute("vision_grad_cam")


def test_models_without_an_encoder_are_refused_before_they_run(monkeypatch):
    case = golden.decoder("b")
    monkeypatch.setattr(case.model, "forward", None)
    with pytest.raises(ModelNotSupportedError, match=r"'vision_grad_cam' needs a vision encoder .* Qwen2ForCausalLM"):
        case.attribute("vision_grad_cam")
    assert "vision encoder" in available(case.model)["vision_grad_cam"]
    assert available(golden.whole("fuyu").model)["vision_grad_cam"]
    assert available(golden.whole("llava").model)["vision_grad_cam"] == ""


def test_inputs_without_pixels_are_refused():
    case = golden.whole("llava")
    embeddings = case.task().call.embeddings
    without = dataclasses.replace(case, inputs={"inputs_embeds": embeddings})
    with pytest.raises(ValueError, match="inputs: expected pixels for method 'vision_grad_cam', got inputs_embeds"):
        without.attribute("vision_grad_cam")
    golden.close(without.attribute("cam").maps, case.attribute("cam").maps)


def test_a_bfloat16_model_is_mapped_too():
    case = golden.whole("qwen2_5_vl", (300, 150))
    exact, found = (one.attribute("vision_grad_cam").maps for one in (case, case.to(torch.bfloat16)))
    for one, other in zip(exact, found, strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.95


def test_frozen_models_are_no_different():
    case = golden.whole("qwen2_vl")
    frozen = dataclasses.replace(case, model=copy.deepcopy(case.model).requires_grad_(False))
    for method in ("vision_grad_cam", "gradient_input"):
        assert torch.equal(frozen.attribute(method).maps, case.attribute(method).maps)
