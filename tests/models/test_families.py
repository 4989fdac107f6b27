"""Families: which model types are supported, and what the others are told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tam_fast.models import ModelNotSupportedError
from tam_fast.models.families import FAMILIES, IMPOSSIBLE
from tam_fast.models.layouts import visual_mask
from tam_fast.models.registry import family_of


def fake(model_type, **config):
    return SimpleNamespace(config=SimpleNamespace(model_type=model_type, **config))


def test_supported_families():
    assert family_of(fake("qwen2_5_vl")) is FAMILIES["qwen2_5_vl"]
    assert family_of(fake("llava")).answer_prefix == " "


@pytest.mark.parametrize("model_type", sorted(IMPOSSIBLE))
def test_impossible_models_get_the_reason(model_type):
    with pytest.raises(ModelNotSupportedError, match=r"not possible: it") as caught:
        family_of(fake(model_type))
    assert isinstance(caught.value, ValueError)
    assert model_type in str(caught.value)
    assert IMPOSSIBLE[model_type] in str(caught.value)


def test_models_without_visual_positions_are_refused():
    with pytest.raises(ModelNotSupportedError, match=r"'llama'.*image_token_id"):
        family_of(fake("llama"))


def test_unknown_models_go_the_generic_way():
    assert family_of(fake("new_vlm", image_token_id=5)).group == "generic"


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="model_type"):
        family_of(object())
    with pytest.raises(ModelNotSupportedError, match="cross-attention"):
        family_of(fake("some_encoder_decoder", is_encoder_decoder=True))
    with pytest.raises(ModelNotSupportedError, match="image_token_id"):
        visual_mask(SimpleNamespace(model_type="x"), torch.tensor([1]))


def test_older_configurations_call_the_token_an_index():
    config = SimpleNamespace(model_type="llava", image_token_index=5)
    assert visual_mask(config, torch.tensor([5, 1])).tolist() == [True, False]
