"""Families that keep an image's own size, and say it in ways of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import standin
from conftest_models import _pil_class

from families import Built, family, tools

CELL = 16
SIZE = {"shortest_edge": 6 * CELL**2, "longest_edge": 40 * CELL**2}
# Wide; tall; enlarged, and about square; made smaller.
SIZES = [[(90, 40)], [(56, 104)], [(20, 28), (57, 61)], [(260, 150)]]
HUNYUAN = {"image_token": "<|image|>", "image_start_token": "<|im_begin|>", "image_end_token": "<|im_close|>"}


@family("hunyuan_vl")
def _hunyuan_vl() -> Built:
    from transformers import HunYuanVLConfig, HunYuanVLForConditionalGeneration, HunYuanVLProcessor

    tokenizer = tools.tokenizer(named=HUNYUAN)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2, 2]}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 8,
        "max_image_size": 32,
        "out_hidden_size": 32,
    }
    ids = tools.ids(tokenizer, image_token_id="<|image|>", im_start_id="<|im_begin|>", im_end_id="<|im_close|>")
    config = HunYuanVLConfig(
        text_config=tools.text_config(tokenizer, rope_parameters=rope, tie_word_embeddings=False),
        vision_config=vision,
        tie_word_embeddings=False,
        **ids,
    )
    model = tools.finish(HunYuanVLForConditionalGeneration(config), tokenizer)
    images = _pil_class("HunYuanVLImageProcessor")(patch_size=8, merge_size=2, size=SIZE)
    chat = tools.template("<|im_begin|><|image|><|im_close|>")
    return Built(model, HunYuanVLProcessor(images, tokenizer, chat_template=chat), SIZES)


def _video_llama_3(merge: int) -> Built:
    from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration, VideoLlama3Processor

    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = tools.tokenizer("<|vision_start|>", "<|vision_end|>", named=named)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": CELL // merge,
    }
    config = VideoLlama3Config(
        text_config={"model_type": "qwen2", **tools.text_config(tokenizer)},
        vision_config=vision,
        tie_word_embeddings=False,
        **tools.ids(tokenizer, **{f"{name}_id": token for name, token in named.items()}),
    )
    model = tools.finish(VideoLlama3ForConditionalGeneration(config), tokenizer)
    images = _pil_class("VideoLlama3ImageProcessor")(patch_size=CELL // merge, merge_size=merge, size=SIZE)
    videos: Any = SimpleNamespace(model_input_names=[], merge_size=2)
    chat = tools.template("<|image_pad|>\n", "<|vision_start|><|video_pad|><|vision_end|>")
    return Built(
        model, tools.without_videos(VideoLlama3Processor)(images, tokenizer, videos, chat_template=chat), SIZES
    )


@family("video_llama_3")
def _video_llama_3_images() -> Built:
    return _video_llama_3(1)


@family("video_llama_3.merged")
def _video_llama_3_merged() -> Built:
    return _video_llama_3(2)


@family("nemotron_h_omni")
def _nemotron_h_omni() -> Built:
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText
    from transformers.models.nemotron_h_omni.processing_nemotron_h_omni import NemotronH_Omni_Reasoning_V3Processor

    tokenizer = tools.tokenizer("<image>", "<img>", "</img>", "<video>", "<so_embedding>")
    text = {
        **tools.text_config(tokenizer),
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mlp_hidden_act": "silu",
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "chunk_size": 16,
        "n_routed_experts": 4,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
    }
    del text["num_hidden_layers"]
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2.0,
        "patch_size": 8,
        "image_size": 32,
        "max_img_size": 64,
        "video_temporal_patch_size": 2,
    }
    config = CONFIG_MAPPING["nemotron_h_omni"](
        text_config={"model_type": "nemotron_h", **text},
        vision_config={"model_type": "radio", **vision},
        projector_hidden_size=32,
        vision_hidden_size=16,
        **tools.ids(tokenizer, image_token_id="<image>", video_token_id="<video>", audio_token_id="<so_embedding>"),
    )
    model = tools.finish(AutoModelForImageTextToText.from_config(config), tokenizer)
    images = standin.take(
        "nemotron_h_omni.image_processing_nemotron_h_omni", "NemotronH_Omni_Reasoning_V3ImageProcessor"
    )(patch_size=8, min_num_patches=24, max_num_patches=160)
    processor = tools.without_videos(NemotronH_Omni_Reasoning_V3Processor)(
        images,
        SimpleNamespace(model_input_names=[]),
        tokenizer,
        None,
        chat_template=tools.template("<image>\n", "<video>"),
    )
    return Built(model, processor, SIZES)


@family("muse_spark")
def _muse_spark() -> Built:
    from transformers import MuseSparkConfig, MuseSparkForConditionalGeneration, MuseSparkProcessor

    marks = ("image_start", "image_end", "video", "vid_start", "vid_frame_separator", "vid_end", "audio")
    more = ("soft_audio_start", "soft_audio_end")
    tokenizer = tools.tokenizer("<|patch|>", *(f"<|{mark}|>" for mark in (*marks, *more)))
    text = tools.text_config(
        tokenizer,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse"],
        moe_intermediate_size=16,
        moe_hidden_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        output_multiplier=1.0,
    )
    vision = {
        "patch_size": 8,
        "pos_emb_height": 4,
        "pos_emb_width": 4,
        "max_position_embeddings": 16,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
    }
    hearing = {"patch_sizes": [4, 4], "hidden_sizes": [8, 8], "depths": [1, 1], "num_hidden_layers": 2}
    ids = tools.ids(tokenizer, image_token_id="<|patch|>", video_token_id="<|video|>", audio_token_id="<|audio|>")
    config = MuseSparkConfig(
        text_config=text,
        vision_config=vision,
        audio_config={**hearing, "out_hidden_size": 32},
        out_hidden_size=64,
        projector_hidden_size=32,
        **ids,
    )
    model = tools.finish(MuseSparkForConditionalGeneration(config), tokenizer)
    images = standin.take("muse_glimmer.image_processing_muse_glimmer", "MuseGlimmerImageProcessor")
    processor = tools.without_videos(MuseSparkProcessor)(
        images(patch_size=8, max_image_tokens=40),
        SimpleNamespace(model_input_names=[]),
        tokenizer,
        SimpleNamespace(model_input_names=[]),
        chat_template=tools.template("<|patch|>", "<|video|>"),
    )
    return Built(model, processor, SIZES)


@family("dots3_note")
def _dots3_note() -> Built:
    from transformers import Dots3NoteConfig, Dots3NoteForConditionalGeneration, Dots3NoteProcessor

    tokenizer = tools.tokenizer("<|img|>", "<|imgpad|>", "<|endofimg|>", "<|video_pad|>", "<|audio_comp_pad|>")
    heads = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    text = tools.text_config(
        tokenizer,
        **heads,
        qk_rope_head_dim=8,
        layer_types=["sliding_attention", "indexed_attention"],
        mlp_layer_types=["dense", "sparse"],
        sliding_window=16,
        moe_intermediate_size=16,
        shared_experts_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        index_topk=1024,
        index_head_dim=16,
        index_n_heads=2,
        swa_num_attention_heads=2,
        swa_num_key_value_heads=2,
        swa_head_dim=16,
        swa_qk_rope_head_dim=8,
        **{f"swa_{name}": value for name, value in heads.items()},
    )
    vision = {
        "hidden_size": 16,
        "adapter_in_dim": 16,
        "adapter_out_dim": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "mlp_layer_types": ["dense", "dense"],
    }
    hearing = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "downsample_hidden_size": 8,
        "adapter_input_size": 16,
        "adapter_out_dim": 32,
    }
    ids = tools.ids(
        tokenizer, image_token_id="<|imgpad|>", video_token_id="<|video_pad|>", audio_token_id="<|audio_comp_pad|>"
    )
    config = Dots3NoteConfig(text_config=text, vision_config=vision, audio_config=hearing, **ids)
    model = tools.finish(Dots3NoteForConditionalGeneration(config), tokenizer)
    images = _pil_class("Qwen2VLImageProcessor")(patch_size=8, merge_size=2, temporal_patch_size=1, size=SIZE)
    processor = tools.without_videos(Dots3NoteProcessor)(
        images,
        tokenizer,
        SimpleNamespace(model_input_names=[], merge_size=2),
        SimpleNamespace(model_input_names=[]),
        chat_template=tools.template("<|img|><|imgpad|><|endofimg|>", "<|video_pad|>"),
    )
    return Built(model, processor, SIZES)
