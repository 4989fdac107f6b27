"""The model before training: its configuration, and the weights it begins with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tam_fast.demo.train.plan import PATCH, Plan
from tam_fast.demo.train.words import Words

__all__ = ["initialise", "look_around", "make_config"]


def make_config(plan: Plan, words: Words) -> Any:
    """Make the model's ``Qwen2VLConfig``.

    The base of the rotary angles is 30: with the usual 10,000 or more, a step of one cell turns the slow pairs that
    carry the column by less than a thousandth of a radian, and left and right cannot be told apart.
    """
    from transformers import Qwen2VLConfig

    text = {
        "vocab_size": words.size,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 30.0, "mrope_section": [2, 7, 7]},
        "bos_token_id": None,
        "eos_token_id": words.id("<|im_end|>"),
        "pad_token_id": words.id("<|endoftext|>"),
        "use_cache": True,
        "tie_word_embeddings": True,
        **plan.text_config,
    }
    vision = {
        "depth": 3,
        "embed_dim": 128,
        "num_heads": 4,
        "mlp_ratio": 3,
        "hidden_size": 128,
        "patch_size": PATCH,
        "spatial_merge_size": 1,
        "temporal_patch_size": 2,
        "in_channels": 3,
        **plan.vision_config,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=words.id("<|image_pad|>"),
        video_token_id=words.id("<|video_pad|>"),
        vision_start_token_id=words.id("<|vision_start|>"),
        vision_end_token_id=words.id("<|vision_end|>"),
        tie_word_embeddings=True,
        architectures=["Qwen2VLForConditionalGeneration"],
    )


def initialise(model: nn.Module) -> None:
    """Draw matrices with standard deviation 1 / sqrt(fan_in), half of it where they write to the residual stream."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                std = 1.0 / math.sqrt(parameter[0].numel())
                if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
                    std *= 0.5
                parameter.normal_(0.0, std)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)


# Cells (down, across) that the heads of each vision layer look at first.
_OFFSETS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2)),
    ((-2, -2), (-2, 2), (2, -2), (2, 2)),
)


def look_around(visual: Any, strength: float = 5.0) -> None:
    """Make every head of the vision tower look at one neighbouring cell, like a tap of a convolution, to begin with.

    A constant key, turned by the rotary embedding, meets a constant query turned by the head's offset; both stand in
    the biases of the two fastest pairs of each axis. From plain noise instead, colours are learned in fifty steps but
    shapes not in hundreds: no head attends by place, and a shape is nothing but the places of its cells.
    """
    with torch.no_grad():
        frequencies = visual.rotary_pos_emb.inv_freq
        for block, offsets in zip(visual.blocks, _OFFSETS, strict=False):
            attention = block.attn
            attention.qkv.weight[: 2 * attention.dim] *= 0.5
            bias = attention.qkv.bias.view(3, attention.num_heads, attention.head_dim)
            for head, offset in zip(range(attention.num_heads), offsets, strict=False):
                for axis in (0, 1):
                    for fast in (0, 1):
                        pair = axis * len(frequencies) + fast
                        angle = float(frequencies[fast]) * offset[axis]
                        bias[0, head, pair] = strength * math.cos(angle)
                        bias[0, head, pair + attention.head_dim // 2] = strength * math.sin(angle)
                        bias[1, head, pair] = strength
