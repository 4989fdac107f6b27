"""Which layout a model type has: a table from ``config.model_type`` to :class:`Family`, and what cannot have one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tam_fast.models import templates
from tam_fast.models.family import Family
from tam_fast.models.layouts import (
    anyres,
    fixed,
    marked,
    native,
    native_kin,
    omni,
    overview,
    padded,
    proportions,
    rows,
    tiles,
)

__all__ = ["FAMILIES", "IMPOSSIBLE", "NO_VISUAL_STREAM"]
# "Generate a coco-style caption.\n", the prompt of Fuyu's model card; its processor puts the image before it.
_FUYU_TEMPLATE = (
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{% if content is string %}{% set content = [{'type': 'text', 'text': content}] %}{% endif %}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ '\n' }}"
    "{% endfor %}"
)


# What processors write beside the frames of a video.
_SECONDS = r"<[0-9.]+ seconds>"
_GLM_SECONDS = r"[0-9.]+ seconds"
_CLOCK = r" ?[0-9]+:[0-9]+ "
_PLAIN_SECONDS = r" ?[0-9.]+ "

_NATIVE = "native grid"
_PADDED = "padded native grid"
_FIXED = "fixed grid"
_PROPORTIONS = "proportions kept"
_ROWS = "rows with break tokens"
_ANYRES = "overview, then a canvas of tiles"
_TILES = "tiles, then overview"
_OVERVIEW = "overview, then tiles"

# Their models take all visual tokens of a prompt for images, or all for videos.
_GLM: dict[str, Any] = {"grids": native.glm_grids, "mixed": False}
_NEEDS_TIMM = "its vision tower needs timm"
_PAN_AND_SCAN: dict[str, Any] = {
    "image_options": (
        "do_pan_and_scan",
        "pan_and_scan_min_crop_size",
        "pan_and_scan_max_num_crops",
        "pan_and_scan_min_ratio_to_activate",
    ),
    # What the processor writes around crops.
    "crop_words": (
        "Here is the original image \n\n",
        "\n\n and here are some crops to help you see better \n\n",
        "\n\n \n\n",
    ),
}


def _family(
    model_type: str, title: str, group: str, grids: Any, example: str, videos: bool = False, **more: Any
) -> tuple[str, Family]:
    return model_type, Family(title, group, grids, example, videos, **more)


def _native(
    model_type: str, title: str, example: str, videos: bool = True, grids: Any = native.native_grids, **more: Any
) -> tuple[str, Family]:
    return _family(model_type, title, _NATIVE, grids, example, videos, **more)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    dict(
        [
            _native("qwen2_vl", "Qwen2-VL", "Qwen/Qwen2-VL-7B-Instruct"),
            _native("qwen2_5_vl", "Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct"),
            _native("qwen3_vl", "Qwen3-VL", "Qwen/Qwen3-VL-4B-Instruct", before_frame=_SECONDS),
            _native("qwen3_vl_moe", "Qwen3-VL MoE", "Qwen/Qwen3-VL-30B-A3B-Instruct", before_frame=_SECONDS),
            _native("qwen3_5", "Qwen3.5", "Qwen/Qwen3.5-27B", before_frame=_SECONDS),
            _native("qwen3_5_moe", "Qwen3.5 MoE", "Qwen/Qwen3.5-35B-A3B", before_frame=_SECONDS),
            _native("qwen4_exp", "Qwen4", "Qwen/Qwen4-Exp", before_frame=_SECONDS),
            _native("exaone4_5", "EXAONE 4.5", "LGAI-EXAONE/EXAONE-4.5-33B"),
            _native("hyperclovax_vision_v2", "HyperCLOVA X Vision", "naver-hyperclovax/HyperCLOVAX-SEED-Think-32B"),
            _native("lfm3_vl", "LFM3-VL", "LiquidAI/LFM3-VL-2B", before_frame=_SECONDS),
            _native("ernie4_5_vl_moe", "ERNIE 4.5 VL", "baidu/ERNIE-4.5-VL-28B-A3B-PT"),
            _native("paddleocr_vl", "PaddleOCR-VL", "PaddlePaddle/PaddleOCR-VL", videos=False),
            _native(
                "cohere_compass", "Cohere Compass", "CohereLabs/North-Micro-Vision-Instruct", before_frame=_SECONDS
            ),
            _native("qwen2_5_omni_thinker", "Qwen2.5-Omni", "Qwen/Qwen2.5-Omni-7B"),
            _native("qwen3_omni_moe_thinker", "Qwen3-Omni", "Qwen/Qwen3-Omni-30B-A3B-Instruct"),
            _native("cosmos3_edge", "Cosmos 3 Edge", "nvidia/Cosmos3-Edge", before_frame=_SECONDS),
            _native("cosmos3_omni", "Cosmos 3 Omni", "nvidia/Cosmos3-Nano", before_frame=_SECONDS),
            _native(
                "minimax_m3_vl",
                "MiniMax-M3",
                "MiniMaxAI/MiniMax-M3",
                grids=native.minimax_grids,
                before_frame=r"\]<\][0-9.]+ seconds\[>\[",
            ),
            _native("muse_glimmer", "Muse Glimmer", "meta-models/Muse-Glimmer-30B", before_frame=r"Time: [0-9.]+s"),
            _native(
                "muse_spark", "Muse Spark", "meta-models/Muse-Spark-Open-816B-A42B", before_frame=r"Time: [0-9.]+s"
            ),
            _native("dots3_note", "dots3-note", "dots-studio/dots3-note-prev"),
            _native(
                "glm4v",
                "GLM-4.1V",
                "zai-org/GLM-4.1V-9B-Thinking",
                **_GLM,
                behind_frame=r"[0-9]+",
            ),
            _native("glm4v_moe", "GLM-4.5V", "zai-org/GLM-4.5V", **_GLM, behind_frame=r"[0-9]+"),
            _native("glm46v", "GLM-4.6V", "zai-org/GLM-4.6V", **_GLM, behind_frame=_GLM_SECONDS),
            _native("glm_ocr", "GLM-OCR", "zai-org/GLM-OCR", **_GLM, behind_frame=_GLM_SECONDS),
            _native(
                "glmga",
                "GLM-GA",
                "zai-org/GLM-4.1V-9B-Thinking",
                **_GLM,
                behind_frame=_GLM_SECONDS,
            ),
            _family(
                "video_llama_3",
                "Video-LLaMA 3",
                _NATIVE,
                native_kin.video_llama3_grids,
                "lkhl/VideoLLaMA3-2B-Image-HF",
                True,
                before_frame=r",?Time [0-9.]+s:",
            ),
            _family(
                "nemotron_h_omni",
                "Nemotron-H Omni",
                _NATIVE,
                native_kin.nemotron_grids,
                "nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16",
            ),
            _family("hunyuan_vl", "HunYuan-VL", _NATIVE, native_kin.hunyuan_grids, "tencent/HunyuanOCR"),
            _family("kimi_k25", "Kimi K2.5", _PADDED, padded.kimi_grids, "moonshotai/Kimi-K2.6"),
            _family("glm5_next", "GLM-5", _PADDED, padded.glm5_grids, "zai-org/GLM-5.3-Flash"),
            _family("inkling_mm_model", "Inkling", _PADDED, padded.inkling_mm_grids, "thinkingmachines/Inkling"),
            _family("inkling2", "Inkling 2", _PADDED, padded.inkling_grids, "thinkingmachines/Inkling-2-Small-MXFP8"),
            _family(
                "llava",
                "LLaVA-1.5",
                _FIXED,
                fixed.llava_grids,
                "llava-hf/llava-1.5-7b-hf",
                chat_template=templates.LLAVA,
                answer_prefix=" ",
            ),
            _family(
                "vipllava",
                "VipLLaVA",
                _FIXED,
                fixed.fixed_grids,
                "llava-hf/vip-llava-7b-hf",
                chat_template=templates.VIPLLAVA,
                answer_prefix=" ",
            ),
            _family(
                "video_llava",
                "Video-LLaVA",
                _FIXED,
                fixed.video_llava_grids,
                "LanguageBind/Video-LLaVA-7B-hf",
                chat_template=templates.LLAVA,
                answer_prefix=" ",
            ),
            _family(
                "paligemma",
                "PaliGemma",
                _FIXED,
                fixed.fixed_grids,
                "google/paligemma-3b-pt-224",
                chat_template=templates.PALIGEMMA,
                answer_values={"token_type_ids": 1},  # a prompt attends in both directions, its answer back alone
            ),
            _family("gemma3", "Gemma 3", _FIXED, fixed.gemma3_grids, "google/gemma-3-4b-it", **_PAN_AND_SCAN),
            _family("shieldgemma2", "ShieldGemma 2", _FIXED, fixed.gemma3_grids, "google/shieldgemma-2-4b-it"),
            _family("gemma3n", "Gemma 3n", _FIXED, fixed.square_grids, "google/gemma-3n-E4B-it", unproven=_NEEDS_TIMM),
            _family("fast_vlm", "FastVLM", _FIXED, fixed.square_grids, "KamilaMila/FastVLM-7B", unproven=_NEEDS_TIMM),
            _family("janus", "Janus-Pro", _FIXED, fixed.centred_grids, "deepseek-community/Janus-Pro-1B"),
            _family(
                "deepseek_vl", "DeepSeek-VL", _FIXED, fixed.centred_grids, "deepseek-community/deepseek-vl-1.3b-chat"
            ),
            _family(
                "deepseek_vl_hybrid",
                "DeepSeek-VL hybrid",
                _FIXED,
                fixed.centred_grids,
                "deepseek-community/deepseek-vl-7b-chat",
            ),
            _family(
                "got_ocr2",
                "GOT-OCR 2",
                _FIXED,
                fixed.got_ocr_grids,
                "stepfun-ai/GOT-OCR-2.0-hf",
                chat_template=templates.GOT_OCR,
                image_options=("crop_to_patches", "min_patches", "max_patches"),
            ),
            _family(
                "pp_chart2table",
                "PP-Chart2Table",
                _FIXED,
                fixed.got_ocr_grids,
                "PaddlePaddle/PP-Chart2Table_safetensors",
            ),
            _family(
                "gemma4",
                "Gemma 4",
                _PROPORTIONS,
                proportions.gemma4_grids,
                "google/gemma-4-e2b-it",
                True,
                before_frame=_CLOCK,
            ),
            _family(
                "gemma4_unified",
                "Gemma 4 unified",
                _PROPORTIONS,
                proportions.gemma4_unified_grids,
                "google/gemma-4-12B-it",
                True,
                before_frame=_CLOCK,
            ),
            _family(
                "lighton_ocr", "LightOnOCR", _PROPORTIONS, proportions.lighton_grids, "lightonai/LightOnOCR-1B-1025"
            ),
            _family(
                "fuyu",
                "Fuyu",
                _PROPORTIONS,
                proportions.fuyu_grids,
                "adept/fuyu-8b",
                chat_template=_FUYU_TEMPLATE,
            ),
            _family("emu3", "Emu3", _PROPORTIONS, proportions.emu3_grids, "Emu3-community/Emu3-Chat-hf"),
            _family(
                "chameleon",
                "Chameleon",
                _FIXED,
                fixed.chameleon_grids,
                "facebook/chameleon-7b",
                chat_template=templates.CHAMELEON,
            ),
            _family(
                "mistral3",
                "Mistral 3",
                _ROWS,
                rows.pixtral_grids,
                "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
            ),
            _family(
                "mistral_large4", "Mistral Large 4", _ROWS, rows.pixtral_grids, "mistralai/Mistral-Large-4-1T-A52B"
            ),
            _family(
                "molmo2",
                "Molmo 2",
                _ROWS,
                rows.molmo2_grids,
                "allenai/Molmo2-8B",
                True,
                before_frame=_PLAIN_SECONDS,
            ),
            _family("llava_next", "LLaVA-NeXT", _ANYRES, anyres.llava_next_grids, "llava-hf/llava-v1.6-mistral-7b-hf"),
            _family(
                "llava_next_video",
                "LLaVA-NeXT-Video",
                _ANYRES,
                anyres.llava_next_grids,
                "llava-hf/LLaVA-NeXT-Video-7B-hf",
            ),
            _family(
                "granite4_vision",
                "Granite 4 Vision",
                _ANYRES,
                anyres.granite4_grids,
                "ibm-granite/granite-4.0-vision",
            ),
            _family(
                "llava_onevision",
                "LLaVA-OneVision",
                _ANYRES,
                anyres.llava_onevision_grids,
                "llava-hf/llava-onevision-qwen2-7b-ov-hf",
                True,
            ),
            _family(
                "internvl",
                "InternVL",
                _TILES,
                tiles.internvl_grids,
                "OpenGVLab/InternVL3-1B-hf",
                True,
                before_frame="[\n\u010a]?Frame[0-9]+: ",  # in bytes' spelling U+010A is a line break
            ),
            _family("qianfan_ocr", "Qianfan-OCR", _TILES, tiles.internvl_grids, "baidu/Qianfan-OCR"),
            _family("aya_vision", "Aya Vision", _TILES, tiles.aya_grids, "CohereLabs/aya-vision-8b"),
            _family(
                "cohere2_vision",
                "Cohere 2 Vision",
                _TILES,
                tiles.cohere2_grids,
                "CohereLabs/command-a-vision-07-2025",
            ),
            _family("idefics3", "Idefics 3", _TILES, marked.idefics3_grids, "HuggingFaceM4/Idefics3-8B-Llama3"),
            _family("smolvlm", "SmolVLM", _TILES, marked.idefics3_grids, "HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
            _family(
                "granite_docling",
                "Granite Docling",
                _TILES,
                marked.idefics3_grids,
                "ibm-granite/granite-for-docling-500m",
            ),
            _family("lfm2_vl", "LFM2-VL", _TILES, marked.lfm2_grids, "LiquidAI/LFM2-VL-1.6B"),
            _family("llama4", "Llama 4", _TILES, marked.llama4_grids, "meta-llama/Llama-4-Scout-17B-16E-Instruct"),
            _family("step3p7", "Step 3.7", _TILES, marked.step3_grids, "stepfun-ai/Step-3.7-Flash"),
            _family("unlimited_ocr", "Unlimited-OCR", _TILES, marked.unlimited_ocr_grids, "baidu/Unlimited-OCR"),
            _family(
                "phi4_multimodal",
                "Phi-4 multimodal",
                _TILES,
                omni.phi4_grids,
                "microsoft/Phi-4-multimodal-instruct",
            ),
            _family("ovis2", "Ovis 2", _OVERVIEW, overview.ovis2_grids, "thisisiron/Ovis2-1B-hf"),
            _family("minicpmv4_6", "MiniCPM-V 4.6", _OVERVIEW, overview.minicpm_grids, "openbmb/MiniCPM-V-4.6"),
            _family("minicpmv4_7", "MiniCPM-V 4.7", _OVERVIEW, overview.minicpm_grids, "openbmb/MiniCPM-V-4.7-1B"),
            _family("minicpm_ocr", "MiniCPM-OCR", _OVERVIEW, overview.minicpm_grids, "openbmb/MiniCPM-OCR-1.0"),
            _family(
                "perception_lm",
                "Perception LM",
                _OVERVIEW,
                overview.perception_lm_grids,
                "facebook/Perception-LM-1B",
                unproven="its vision tower needs timm, which needs torchvision",
            ),
        ]
    )
)

_NO_RASTER = "its visual tokens are learnt queries over the whole image and form no raster"
NO_VISUAL_STREAM = "its decoder has no visual positions (the image is only seen through cross-attention)"
_NOT_IN_IDS = "its visual tokens are put in front of its prompt and stand nowhere in its input ids"
_NO_CHAT = "it does not answer in text about an image that stands in its prompt"
_NOT_AUTOREGRESSIVE = "it does not generate token by token, so that no token is predicted from the ones before it"

IMPOSSIBLE: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "aria",
                "blip-2",
                "instructblip",
                "instructblipvideo",
                "idefics2",
                "kosmos-2",
                "kosmos-2.5",
                "deepseek_ocr2",
            ),
            _NO_RASTER,
        ),
        **dict.fromkeys(
            (
                "mllama",
                "idefics",
                "blip",
                "florence2",
                "t5gemma2",
                "pix2struct",
                "udop",
                "pp_formulanet",
                "vision-encoder-decoder",
            ),
            NO_VISUAL_STREAM,
        ),
        **dict.fromkeys(("evolla", "pi0"), _NO_CHAT),
        "git": _NOT_IN_IDS,
        "diffusion_gemma": _NOT_AUTOREGRESSIVE,
    }
)
"""Model types whose kind does not allow token activation maps, and why."""
