"""Families that keep an image's own size: ``image_grid_thw`` over a merge size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import standin
from conftest_models import _pil_class, qwen_model, qwen_processor

from families import Built, family, tools

SIZES = [[(170, 60)], [(60, 140)], [(57, 61)], [(90, 60), (60, 120)]]
# Wide; small and tall; and larger than the most that the processors below are to make of it.
FEW = [[(170, 60)], [(57, 61), (60, 140)], [(400, 260)]]
CELL = 28
LEAST, MOST = 4 * CELL * CELL, 24 * CELL * CELL
# Half of a head's 16 channels, over time, height and width.
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}


@family("qwen2_vl")
def _qwen2_vl() -> Built:
    processor = qwen_processor()
    return Built(qwen_model(processor), processor, SIZES)


@family("qwen2_5_vl")
def _qwen2_5_vl() -> Built:
    processor = qwen_processor(name="Qwen2_5_VLProcessor")
    return Built(qwen_model(processor, version="2.5"), processor, SIZES)


def _class(name: str) -> Any:
    """A class of transformers; the first versions of 5 write ERNIE's names in another way."""
    import transformers

    return getattr(transformers, name, None) or getattr(transformers, name.replace("_VLMoe", "_VL_Moe"))


def _images(name: str = "Qwen2VLImageProcessor", module: str = "", **more: Any) -> Any:
    """An image processor of small pictures; `module` names that of a class which has no twin without torchvision."""
    cls = standin.take(module, name) if module else _pil_class(name)
    return cls(size={"shortest_edge": LEAST, "longest_edge": MOST}, **{"patch_size": 14, "merge_size": 2, **more})


def _processor(name: str, images: Any, tokenizer: Any, chat: str) -> Any:
    """A family's own processor, with an object for what it reads of its video processor."""
    cls = tools.without_videos(_class(name))
    videos = SimpleNamespace(model_input_names=[], merge_size=images.merge_size, temporal_patch_size=2, font="")
    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": videos, "chat_template": chat}
    return cls(**parts)


def _ids(tokenizer: Any, named: dict[str, str]) -> dict[str, int]:
    return tools.ids(tokenizer, **{f"{name}_id": token for name, token in named.items()})


def _model(
    model_type: str, name: str, tokenizer: Any, text: dict[str, Any], vision: dict[str, Any], seed: int = 0, **more: Any
) -> Any:
    import transformers

    config = transformers.CONFIG_MAPPING[model_type](
        text_config=tools.text_config(tokenizer, **text), vision_config=vision, tie_word_embeddings=False, **more
    )
    return tools.finish(_class(name)(config), tokenizer, seed)


QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
PADS = {name: QWEN[name] for name in ("image_token", "video_token")}
QWEN_CHAT = tools.template("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")


def _vision(**more: Any) -> dict[str, Any]:
    """A vision tower of Qwen2.5-VL and later."""
    return {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 32,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        **more,
    }


def _tower(**more: Any) -> dict[str, Any]:
    """A vision tower of those that name their sizes as decoders do."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**sizes, "patch_size": 14, **more}


def _qwen3(
    model_type: str,
    name: str,
    processor: str = "Qwen3VLProcessor",
    sizes: Any = FEW,
    vision: dict[str, Any] | None = None,
    **text: Any,
) -> Built:
    tokenizer = tools.tokenizer(named=QWEN)
    vision = _vision(num_position_embeddings=16) if vision is None else vision
    text = {"rope_parameters": MROPE, **text}
    model = _model(model_type, name, tokenizer, text, vision, **_ids(tokenizer, QWEN))
    return Built(model, _processor(processor, _images(), tokenizer, QWEN_CHAT), sizes)


DEEPSTACK = _vision(num_position_embeddings=16, deepstack_visual_indexes=[0, 1])
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# One layer of each kind, in the order of the released models.
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0},
}


@family("qwen3_vl")
def _qwen3_vl() -> Built:
    return _qwen3("qwen3_vl", "Qwen3VLForConditionalGeneration", sizes=[*FEW, [(60, 140)]], vision=DEEPSTACK)


@family("qwen3_vl_moe")
def _qwen3_vl_moe() -> Built:
    return _qwen3("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", vision=DEEPSTACK, **EXPERTS)


@family("qwen3_5")
def _qwen3_5() -> Built:
    return _qwen3("qwen3_5", "Qwen3_5ForConditionalGeneration", **LINEAR)


@family("qwen3_5_moe")
def _qwen3_5_moe() -> Built:
    shared = {"shared_expert_intermediate_size": 16}
    return _qwen3("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", **LINEAR, **EXPERTS, **shared)


@family("cosmos3_omni")
def _cosmos3_omni() -> Built:
    return _qwen3("cosmos3_omni", "Cosmos3OmniForConditionalGeneration", vision=DEEPSTACK)


@family("qwen4_exp")
def _qwen4_exp() -> Built:
    # Layer 1 adds embeddings of n-grams of the ids, which look back over the tokens before.
    more = {
        "layer_types": ["linear_attention", "full_attention"],
        "hc_lowrank": 8,
        "shared_expert_intermediate_size": 16,
        "ple_layer_ids": [1],
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 1024,
        "indexer_compress_ratio": 4,
    }
    return _qwen3("qwen4_exp", "Qwen4ExpForConditionalGeneration", **{**LINEAR, **EXPERTS, **more})


@family("cosmos3_edge")
def _cosmos3_edge() -> Built:
    tokenizer = tools.tokenizer(named=QWEN)
    vision = _tower(num_patches=16, spatial_merge_size=2)
    model = _model(
        "cosmos3_edge",
        "Cosmos3EdgeForConditionalGeneration",
        tokenizer,
        {"rope_parameters": MROPE},
        vision,
        1,  # with other weights it answers in placeholders
        projector_hidden_size=32,
        **_ids(tokenizer, QWEN),
    )
    images = _images("Cosmos3EdgeImageProcessor")
    return Built(model, _processor("Cosmos3EdgeProcessor", images, tokenizer, QWEN_CHAT), FEW)


@family("exaone4_5")
def _exaone4_5() -> Built:
    tokenizer = tools.tokenizer(named=QWEN)
    text = {"model_type": "exaone4", "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    vision = _vision(num_key_value_heads=1, window_size=56, fullatt_block_indexes=[1])
    model = _model("exaone4_5", "Exaone4_5_ForConditionalGeneration", tokenizer, text, vision, **_ids(tokenizer, PADS))
    return Built(model, _processor("Exaone4_5_Processor", _images(), tokenizer, QWEN_CHAT), FEW)


@family("hyperclovax_vision_v2")
def _hyperclovax() -> Built:
    tokenizer = tools.tokenizer(named=QWEN)
    text = {"model_type": "hyperclovax", "attention_multiplier": 0.25}
    vision = _vision(model_type="qwen2_5_vl_vision", window_size=56, fullatt_block_indexes=[1])
    name = "HyperCLOVAXVisionV2ForConditionalGeneration"
    model = _model("hyperclovax_vision_v2", name, tokenizer, text, vision, **_ids(tokenizer, PADS))
    return Built(model, _processor("HyperCLOVAXVisionV2Processor", _images(), tokenizer, QWEN_CHAT), FEW)


@family("lfm3_vl")
def _lfm3_vl() -> Built:
    tokenizer = tools.tokenizer(named=QWEN)
    text = {
        "model_type": "lfm3",
        "num_hidden_layers": 3,
        "layer_types": ["conv", "sliding_attention", "full_attention"],
        "sliding_window": 16,
        "conv_L_cache": 3,
        "tie_word_embeddings": False,
    }
    vision = _tower(num_key_value_heads=1, layer_types=["conv", "full_attention"])
    name = "Lfm3VlForConditionalGeneration"
    ids = _ids(tokenizer, QWEN)
    model = _model("lfm3_vl", name, tokenizer, text, vision, projector_hidden_size=32, **ids)
    # Its vision tower also mixes patches in convolutions.
    mixers = r"vision.*(self_attn|\bconv)\.out_proj\."
    return Built(model, _processor("Lfm3VlProcessor", _images(), tokenizer, QWEN_CHAT), FEW, mixers)


@family("cohere_compass")
def _cohere_compass() -> Built:
    named = {
        "image_token": "<|IMAGE_PAD|>",
        "video_token": "<|VIDEO_PAD|>",
        "vision_start_token": "<|VISION_START|>",
        "vision_end_token": "<|VISION_END|>",
    }
    tokenizer = tools.tokenizer(named=named)
    chat = tools.template("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>", "<|VIDEO_PAD|>")
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        "full_attention": None,
    }
    text = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "rope_parameters": rope}
    ids = _ids(tokenizer, named)
    model = _model("cohere_compass", "CohereCompassForConditionalGeneration", tokenizer, text, DEEPSTACK, **ids)
    images = _images("CohereCompassImageProcessor")
    return Built(model, _processor("CohereCompassProcessor", images, tokenizer, chat), FEW)


ERNIE = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}
ERNIE_CHAT = tools.template(
    "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>", "<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>"
)


@family("ernie4_5_vl_moe")
def _ernie4_5_vl_moe() -> Built:
    tokenizer = tools.tokenizer(named=ERNIE)
    text = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
        "mlp_layer_types": ["dense", "sparse"],
        "moe_intermediate_size": [16, 8],
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
    }
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "patch_size": 14}
    ids = _ids(tokenizer, ERNIE)
    model = _model("ernie4_5_vl_moe", "Ernie4_5_VLMoeForConditionalGeneration", tokenizer, text, vision, **ids)
    images = _images(_class("Ernie4_5_VLMoeProcessor").__name__.replace("Processor", "ImageProcessor"))
    # Its released template counts the images of a chat.
    count = "{% set images.n = images.n + 1 %}Picture {{ images.n }}:<|IMAGE_START|>"
    chat = "{% set images = namespace(n=0) %}" + ERNIE_CHAT.replace("<|IMAGE_START|>", count)
    sizes = [*FEW, [(57, 61), (60, 90), (90, 60)]]
    return Built(model, _processor("Ernie4_5_VLMoeProcessor", images, tokenizer, chat), sizes)


@family("paddleocr_vl")
def _paddleocr_vl() -> Built:
    from transformers import PaddleOCRVLProcessor

    tokenizer = tools.tokenizer(named=ERNIE)
    vision = _tower(image_size=56)
    marks = {"vision_start_token": ERNIE["image_start_token"], "vision_end_token": ERNIE["image_end_token"]}
    ids = _ids(tokenizer, {"image_token": ERNIE["image_token"], "video_token": ERNIE["video_token"], **marks})
    text = {"rope_parameters": MROPE}
    model = _model("paddleocr_vl", "PaddleOCRVLForConditionalGeneration", tokenizer, text, vision, **ids)
    images = _images("PaddleOCRVLImageProcessor", temporal_patch_size=1)
    return Built(model, PaddleOCRVLProcessor(images, tokenizer, chat_template=ERNIE_CHAT), FEW)


@family("minimax_m3_vl")
def _minimax_m3_vl() -> Built:
    tokenizer = tools.tokenizer("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>[")
    text = {
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
        "dense_intermediate_size": 32,
        "shared_intermediate_size": 16,
        "rotary_dim": 8,
        "mlp_layer_types": ["dense", "sparse"],
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_block_size": 16,
    }
    vision = _tower(hidden_size=24, image_size=112)
    ids = tools.ids(tokenizer, image_token_index="]<]image[>[", video_token_index="]<]video[>[")
    name = "MiniMaxM3SparseForConditionalGeneration"
    model = _model("minimax_m3_vl", name, tokenizer, text, vision, projector_hidden_size=32, **ids)
    images = _images("MiniMaxM3VLImageProcessor", "minimax_m3_vl.image_processing_minimax_m3_vl")
    chat = tools.template("]<]image[>[", "]<]video[>[")
    return Built(model, _processor("MiniMaxM3VLProcessor", images, tokenizer, chat), FEW)


@family("muse_glimmer")
def _muse_glimmer() -> Built:
    marks = ("image_start", "image_end", "video", "vid_start", "vid_frame_separator", "vid_end")
    tokenizer = tools.tokenizer("<|patch|>", *(f"<|{mark}|>" for mark in marks))
    text = {
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "output_multiplier": 1.0,
    }
    vision = _tower(pos_emb_height=4, pos_emb_width=4)
    ids = tools.ids(tokenizer, image_token_id="<|patch|>", video_token_id="<|video|>")
    sizes = {"out_hidden_size": 64, "projector_hidden_size": 32}
    model = _model("muse_glimmer", "MuseGlimmerForConditionalGeneration", tokenizer, text, vision, **sizes, **ids)
    cls = standin.take("muse_glimmer.image_processing_muse_glimmer", "MuseGlimmerImageProcessor")
    images = cls(max_image_tokens=24)
    chat = tools.template("<|patch|>", "<|video|>")
    return Built(model, _processor("MuseGlimmerProcessor", images, tokenizer, chat), FEW)


GLM = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>",
    "video_start_token": "<|begin_of_video|>",
    "video_end_token": "<|end_of_video|>",
}


def _glm(model_type: str, name: str, processor: str, images: str, sizes: Any = FEW, **text: Any) -> Built:
    tokenizer = tools.tokenizer(named=GLM)
    ids = _ids(tokenizer, GLM)
    vision = _vision(image_size=56)
    model = _model(model_type, name, tokenizer, {"rope_parameters": MROPE, **text}, vision, **ids)
    chat = tools.template("<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>")
    size = {"shortest_edge": 2 * LEAST, "longest_edge": 2 * MOST}  # of two frames
    return Built(model, _processor(processor, _pil_class(images)(size=size), tokenizer, chat), sizes)


@family("glm4v")
def _glm4v() -> Built:
    sizes = [*FEW, [(60, 140)]]
    return _glm("glm4v", "Glm4vForConditionalGeneration", "Glm4vProcessor", "Glm4vImageProcessor", sizes)


@family("glm4v_moe")
def _glm4v_moe() -> Built:
    more = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    more["rope_parameters"] = {**MROPE, "partial_rotary_factor": 1.0}
    return _glm("glm4v_moe", "Glm4vMoeForConditionalGeneration", "Glm4vProcessor", "Glm4vImageProcessor", **more)


@family("glm46v")
def _glm46v() -> Built:
    return _glm("glm46v", "Glm46VForConditionalGeneration", "Glm46VProcessor", "Glm46VImageProcessor")


@family("glm_ocr")
def _glm_ocr() -> Built:
    return _glm("glm_ocr", "GlmOcrForConditionalGeneration", "Glm46VProcessor", "Glm46VImageProcessor")


@family("glmga")
def _glmga() -> Built:
    return _glm("glmga", "Glm46VForConditionalGeneration", "Glm46VProcessor", "GlmgaImageProcessor")
