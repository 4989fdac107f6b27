"""Families that also hear: Phi-4 multimodal, and the thinkers of Qwen Omni."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import standin
import torch
from conftest_models import _pil_class

from families import Built, family, tools

# Two patches of 2 pixels a cell, 16 cells across a tile: its processor counts 16 x 17 tokens for the whole canvas.
TILE, PATCH = 64, 2


def _without_attention(model: Any) -> None:
    """Attention that is switched off need not be computed for a thousand patches a tile."""

    class Nothing(torch.nn.Module):
        def forward(self, hidden_states: Any, **_more: Any) -> Any:
            return torch.zeros_like(hidden_states), None

    for layer in model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers:
        layer.self_attn = Nothing()


QWEN = {
    "image_token": "<|IMAGE|>",
    "video_token": "<|VIDEO|>",
    "audio_token": "<|AUDIO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
VISION = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 32,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}


def _qwen(name: str, vision: dict[str, Any], text: dict[str, Any], ids: dict[str, str]) -> Built:
    """A thinker: ``<name>ThinkerConfig``; the released ones keep the id of ``<|vision_bos|>`` in their files."""
    import transformers

    tokenizer = tools.tokenizer(named=QWEN)
    cell = 28
    images = _pil_class("Qwen2VLImageProcessor")(
        size={"shortest_edge": 4 * cell * cell, "longest_edge": 24 * cell * cell}, patch_size=14, merge_size=2
    )
    processor = tools.without_videos(getattr(transformers, f"{name}Processor"))(
        image_processor=images,
        video_processor=SimpleNamespace(model_input_names=[], merge_size=2, temporal_patch_size=2),
        feature_extractor=transformers.WhisperFeatureExtractor(),
        tokenizer=tokenizer,
        chat_template=tools.template("<|vision_bos|><|IMAGE|><|vision_eos|>", "<|vision_bos|><|VIDEO|><|vision_eos|>"),
    )
    sound = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16, "output_dim": 32}
    config = getattr(transformers, f"{name}ThinkerConfig")(
        vision_config={**VISION, **vision},
        audio_config=sound,
        text_config={
            **tools.text_config(tokenizer),
            # Half of a head's 16 channels, over time, height and width.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
            **text,
        },
        tie_word_embeddings=False,
        **tools.ids(
            tokenizer,
            vision_start_token_id="<|vision_bos|>",
            vision_end_token_id="<|vision_eos|>",
            audio_start_token_id="<|audio_bos|>",
            audio_end_token_id="<|audio_eos|>",
            **ids,
        ),
    )
    model = getattr(transformers, f"{name}ThinkerForConditionalGeneration")(config)
    return Built(tools.finish(model, tokenizer), processor, [[(170, 60)], [(57, 61), (60, 140)], [(400, 260)]])


@family("qwen2_5_omni_thinker")
def _qwen2_5_omni() -> Built:
    ids = {f"{kind}_token_index": QWEN[f"{kind}_token"] for kind in ("image", "video", "audio")}
    return _qwen("Qwen2_5Omni", {"fullatt_block_indexes": [1], "window_size": 56}, {}, ids)


@family("qwen3_omni_moe_thinker")
def _qwen3_omni() -> Built:
    ids = {f"{kind}_token_id": QWEN[f"{kind}_token"] for kind in ("image", "video", "audio")}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    vision = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return _qwen("Qwen3OmniMoe", vision, experts, ids)


@family("phi4_multimodal")
def _phi4() -> Built:
    import transformers

    tokenizer = tools.tokenizer(named={"image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>"})
    images = standin.take("phi4_multimodal.image_processing_phi4_multimodal", "Phi4MultimodalImageProcessor")
    processor = transformers.Phi4MultimodalProcessor(
        image_processor=images(size={"height": TILE, "width": TILE}, patch_size=PATCH, dynamic_hd=4),
        audio_processor=transformers.Phi4MultimodalFeatureExtractor(),
        tokenizer=tokenizer,
        chat_template=tools.template("<|endoftext10|>"),
    )
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    sound = {"num_blocks": 1, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16}
    config = transformers.Phi4MultimodalConfig(
        **tools.text_config(tokenizer),
        vision_config={
            **tower,
            "num_hidden_layers": 2,
            "image_size": TILE,
            "crop_size": TILE,
            "patch_size": PATCH,
            "image_token_id": tokenizer.image_token_id,
        },
        audio_config={**tower, **sound, "nemo_conv_channels": 16, "audio_token_id": tokenizer.audio_token_id},
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        tie_word_embeddings=False,
    )
    model = transformers.Phi4MultimodalForCausalLM(config)
    # Padded below; at the right, with more tiles than there may be; two pictures of one tile each.
    sizes = [[(61, 120)], [(230, 150)], [(60, 64), (50, 33)]]
    mixers = r"img_processor.*self_attn\.out_proj\."
    return Built(tools.finish(model, tokenizer), processor, sizes, mixers, flatten=_without_attention)
