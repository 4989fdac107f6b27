"""Layouts of the group `omni`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

import pytest
import torch
from conftest_models import PROMPT, picture
from families import build
from layout_cases import check_answers, check_geometry, families

import tam_fast
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.families import FAMILIES
from tam_fast.models.inputs import prepare_inputs
from tam_fast.models.layouts import VisualInput


@families("omni")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("omni")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


def test_phi4_refuses_what_does_not_fit():
    built = build("phi4_multimodal")
    inputs = prepare_inputs(built.model, built.processor, [picture(60, 64)], PROMPT).inputs
    layout = tam_fast.layout_of(built.model, built.processor, inputs, [(60, 64)])
    # Padded by less than a cell of 4 pixels: it sees a part of the picture, and is kept.
    assert [(grid.kind, grid.shape) for grid in layout.grids] == [("tile", (16, 15)), ("overview", (16, 16))]
    assert layout.grids[1].box == pytest.approx((0, 0, 64 / 60, 1))
    with pytest.raises(ValueError, match="image_sizes"):
        tam_fast.layout_of(built.model, built.processor, inputs)
    with pytest.raises(ModelNotSupportedError, match="image_sizes of 2 images"):
        tam_fast.layout_of(built.model, built.processor, inputs, [(60, 64)] * 2)
    for name in ("image_pixel_values", "image_attention_mask"):
        with pytest.raises(ModelNotSupportedError, match=name):
            tam_fast.layout_of(built.model, built.processor, {**inputs, name: None}, [(60, 64)])
    ids = inputs["input_ids"]
    kept = ids[:, torch.arange(ids.shape[1]) != int(layout.grids[0].positions[0])]
    with pytest.raises(ModelNotSupportedError, match=r"expected 529 image tokens.*got 528"):
        tam_fast.layout_of(built.model, built.processor, {**inputs, "input_ids": kept}, [(60, 64)])


@pytest.mark.parametrize("name", ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"])
def test_frames_of_a_video_with_its_sound_between(name):
    """The tokens of a video's sound may stand between those of its frames."""
    built = build(name)
    video, audio = (built.processor.tokenizer.convert_tokens_to_ids(f"<|{kind}|>") for kind in ("VIDEO", "AUDIO"))
    ids = torch.tensor([1, *[video] * 6, audio, audio, *[video] * 6, 2])
    inputs = {"video_grid_thw": torch.tensor([[2, 4, 6]])}
    first, second = FAMILIES[name].grids(VisualInput(built.model.config, built.processor, ids, inputs, None))
    assert (first.kind, first.shape, first.frame, second.frame) == ("video", (2, 3), 0, 1)
    assert second.positions.tolist() == list(range(9, 15))
