"""Families that keep an image's own size and pad it to whole cells."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import standin
from conftest_models import _pil_class

from families import Built, family, tools

KIMI = ("<|media_begin|>", "<|media_content|>", "<|media_pad|>", "<|media_end|>", "<|kimi_k25_video_placeholder|>")


@family("kimi_k25")
def _kimi_k25() -> Built:
    from transformers import Kimi_K25Config, Kimi_K25ForConditionalGeneration, Kimi_K25Processor

    tokenizer = tools.tokenizer(*KIMI)
    text = tools.text_config(
        tokenizer,
        num_attention_heads=2,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    )
    vision = {
        "patch_size": 8,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "pos_emb_height": 4,
        "pos_emb_width": 4,
        "merge_kernel_size": [2, 2],
    }
    marks = {"vision_start_token_id": KIMI[0], "image_token_id": KIMI[2], "vision_end_token_id": KIMI[3]}
    config = Kimi_K25Config(
        text_config={"model_type": "deepseek_v3", **text},
        vision_config=vision,
        projection_hidden_size=16,
        tie_word_embeddings=False,
        **tools.ids(tokenizer, video_token_id=KIMI[4], **marks),
    )
    model = tools.finish(Kimi_K25ForConditionalGeneration(config), tokenizer)
    # At most 24 patches a side and 200 in all.
    images = standin.take("kimi_k25.image_processing_kimi_k25", "Kimi_K25ImageProcessor")(
        patch_size=8, merge_size=2, max_patches=200, size={"max_height": 24, "max_width": 24}
    )
    processor = tools.without_videos(Kimi_K25Processor)(
        images,
        tokenizer,
        _videos(),
        chat_template=tools.template(f"{KIMI[0]}image{KIMI[1]}{KIMI[2]}{KIMI[3]}\n", KIMI[4]),
    )
    return Built(
        model,
        processor,
        # Wide; tall; within a cell, and smaller than one; more patches than allowed; a longer side than allowed.
        [[(90, 40)], [(56, 104)], [(57, 50), (40, 9)], [(190, 100)], [(300, 30), (40, 90)]],
    )


@family("glm5_next")
def _glm5_next() -> Built:
    from transformers import Glm5NextConfig, Glm5NextForConditionalGeneration, Glm5NextProcessor

    named = {
        "image_token": "<|image|>",
        "video_token": "<|video|>",
        "image_start_token": "<|begin_of_image|>",
        "image_end_token": "<|end_of_image|>",
        "video_start_token": "<|begin_of_video|>",
        "video_end_token": "<|end_of_video|>",
    }
    tokenizer = tools.tokenizer(named=named)
    text = tools.text_config(
        tokenizer,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_rope_head_dim=0,
        qk_nope_head_dim=16,
        v_head_dim=16,
        head_dim=0,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        mlp_layer_types=["dense", "sparse"],
        layer_types=["linear_attention", "indexed_attention"],
        indexer_types=["full", "full"],
        index_head_dim=16,
        index_n_heads=2,
        index_topk=512,
        index_kpool=4,
        linear_head_dim=8,
        linear_num_heads=2,
        hc_mult=2,
    )
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 32,
        "intermediate_size": 32,
        "projection_intermediate_size": 32,
        "image_size": 32,
    }
    ids = tools.ids(tokenizer, **{f"{name}_id": token for name, token in named.items()})
    config = Glm5NextConfig(text_config=text, vision_config=vision, **ids)
    model = tools.finish(Glm5NextForConditionalGeneration(config), tokenizer)
    images = _pil_class("Glm5NextImageProcessor")(patch_size=8, merge_size=2, min_image_tokens=6, max_image_tokens=40)
    processor = tools.without_videos(Glm5NextProcessor)(
        images,
        tokenizer,
        _videos(),
        chat_template=tools.template("<|begin_of_image|><|image|><|end_of_image|>", "<|video|>"),
    )
    # Wide; tall; enlarged, and just not; made smaller; a strip made smaller.
    sizes = [[(90, 40)], [(56, 104)], [(20, 17), (60, 27)], [(260, 150)], [(400, 30), (40, 90)]]
    return Built(model, processor, sizes)


@family("inkling2")
def _inkling2() -> Built:
    from transformers import Inkling2Config, Inkling2ForConditionalGeneration, Inkling2Processor

    tokenizer = tools.tokenizer("<|unused_200054|>")
    text = tools.text_config(
        tokenizer,
        unpadded_vocab_size=len(tokenizer) - 3,
        swa_num_attention_heads=2,
        swa_num_key_value_heads=2,
        swa_head_dim=16,
        sliding_window_size=16,
        d_rel=4,
        rel_extent=64,
        layer_types=["hybrid_sliding", "hybrid"],
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_layers_per_attn_res_block=1,
    )
    del text["intermediate_size"]
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "posemb_grid_size": 4,
        "projection_hidden_dim": 32,
        "text_hidden_size": 32,
    }
    image = tools.ids(tokenizer, image_token_id="<|unused_200054|>")
    model = Inkling2ForConditionalGeneration(Inkling2Config(text_config=text, vision_config=vision, **image))
    tools.finish(model, tokenizer)
    images = standin.take("inkling2.image_processing_inkling2", "Inkling2ImageProcessor")(
        size={"height": 16, "width": 16}
    )
    processor = Inkling2Processor(images, tokenizer, chat_template=tools.template("<|unused_200054|>\n"))
    # Wide; tall; one pixel more than cells, and smaller than one; larger.
    sizes = [[(90, 40)], [(56, 104)], [(49, 65), (12, 40)], [(200, 120)], [(64, 48), (40, 70)]]
    return Built(model, processor, sizes)


def _inkling(frac: float | None = None, most: int = 2048) -> Built:
    from transformers import InklingConfig, InklingForConditionalGeneration, InklingProcessor

    tokenizer = tools.tokenizer(
        "<|unused_200054|>", "<|unused_200053|>", "<|content_image|>", "<|content_audio_input|>"
    )
    text = tools.text_config(
        tokenizer,
        swa_num_attention_heads=2,
        swa_num_key_value_heads=2,
        swa_head_dim=16,
        sliding_window_size=16,
        d_rel=4,
        rel_extent=64,
        layer_types=["hybrid_sliding", "hybrid"],
        mlp_layer_types=["dense", "sparse"],
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        logits_mup_width_multiplier=2.0,
    )
    ids = tools.ids(
        tokenizer,
        image_token_id="<|unused_200054|>",
        audio_token_id="<|unused_200053|>",
        image_bos_token_id="<|content_image|>",
        audio_bos_token_id="<|content_audio_input|>",
    )
    config = InklingConfig(
        text_config=text,
        vision_config={"patch_size": 6, "num_hidden_layers": 4},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
        **ids,
    )
    model = tools.finish(InklingForConditionalGeneration(config), tokenizer)
    images = standin.take("inkling.image_processing_inkling", "InklingImageProcessor")(
        size={"height": 6, "width": 6}, rescale_image_frac=frac, rescale_image_max_upscaled_long_edge=most
    )
    processor = tools.without_videos(InklingProcessor)(
        SimpleNamespace(model_input_names=[]),
        images,
        tokenizer,
        chat_template=tools.template("<|content_image|><|unused_200054|>"),
    )
    # Wide; tall; a multiple of the cell, which gets one column more, and smaller than a cell; larger.
    sizes = [[(34, 15)], [(21, 39)], [(24, 18), (5, 15)], [(51, 33)]]
    # Its tower looks at each cell alone: nothing to switch off.
    return Built(model, processor, sizes, mixers="audio_tower")


@family("inkling_mm_model")
def _inkling_mm_model() -> Built:
    return _inkling()


@family("inkling_mm_model.larger")
def _inkling_larger() -> Built:
    return _inkling(1.3, 45)


def _videos() -> Any:
    """In place of a video processor, which needs torchvision."""
    return SimpleNamespace(model_input_names=[], merge_size=2, temporal_patch_size=2)
