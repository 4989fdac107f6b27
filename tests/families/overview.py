"""Families that show the whole image first, then tiles of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import standin
from conftest_models import _pil_class

from families import Built, family, tools

# ------------------------------------------------------------------------------------------------ Ovis 2


def _ovis2(size: int, stride: int, sizes: Any, **images: Any) -> Built:
    import transformers

    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = tools.tokenizer("<image>", "<IMG_ATOM>", *marks)
    patches = size // 8
    settings = {"size": {"height": size, "width": size}, "crop_to_patches": True, "max_patches": 6, **images}
    processor = transformers.Ovis2Processor(
        image_processor=_pil_class("Ovis2ImageProcessor")(**settings),
        tokenizer=tokenizer,
        chat_template=tools.template("<image>\n"),
        image_seq_length=(-(-patches // stride)) ** 2,
    )
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 8,
        "hidden_stride": stride,
        "vocab_size": 64,
    }
    config = transformers.Ovis2Config(
        vision_config=vision,
        text_config={"model_type": "qwen2", **tools.text_config(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=[tokenizer.convert_tokens_to_ids(mark) for mark in marks],
        vocab_size=len(tokenizer),
        hidden_size=32,
        tie_word_embeddings=False,
    )
    model = transformers.Ovis2ForConditionalGeneration(config)
    return Built(tools.finish(model, tokenizer), processor, sizes)


@family("ovis2")
def _ovis2_tiles() -> Built:
    # One of 140 x 90 gets 3 rows and 2 columns.
    return _ovis2(40, 1, [[(140, 90)], [(60, 130)], [(33, 29)], [(70, 40), (40, 90)]])


@family("ovis2.stride")
def _ovis2_stride() -> Built:
    # 4 patches of 8 of 36 pixels, two by two: the last 4 pixels are not looked at.
    return _ovis2(36, 2, [[(150, 60)], [(60, 130), (40, 40)]], use_covering_area_grid=False)


# ------------------------------------------------------------------------------------------------ MiniCPM-V

MINICPM = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
LAYER = 0  # behind which the tower merges patches; one that a tiny tower has


def _minicpm(name: str, images: Any, sizes: Any, mode: str = "16x", **more: Any) -> Built:
    """A model of ``<name>Config`` and ``<name>ForConditionalGeneration``, its tower 8-pixel patches."""
    import transformers

    tokenizer = tools.tokenizer(named=MINICPM)
    settings = {"scale_resolution": 96, "patch_size": 8, "max_slice_nums": 6, "downsample_mode": mode}
    processor = tools.without_videos(getattr(transformers, f"{name}Processor"))(
        image_processor=images(**settings),
        video_processor=SimpleNamespace(slice_mode=True, downsample_mode=mode, model_input_names=[]),
        tokenizer=tokenizer,
        chat_template=tools.template("<|image_pad|>\n", "<|video_pad|>\n"),
    )
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 96,
        "patch_size": 8,
        "insert_layer_id": LAYER,
    }
    linear = {f"linear_{part}": 8 if part.endswith("dim") else 2 for part in LINEAR_PARTS}
    text = {"model_type": "qwen3_5_text", **tools.text_config(tokenizer), **linear}
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision,
        text_config={
            **text,
            "layer_types": ["linear_attention", "full_attention"],
            # Half of a head's 16 channels, over time, height and width.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
                "partial_rotary_factor": 1.0,
            },
        },
        insert_layer_id=LAYER,
        downsample_mode=mode,
        tie_word_embeddings=False,
        **tools.ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
        **tools.ids(tokenizer, **more),
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    return Built(tools.finish(model, tokenizer), processor, sizes)


LINEAR_PARTS = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
SLICED = [[(170, 90)], [(60, 200)], [(50, 41)], [(400, 300)], [(150, 60), (70, 190)]]


@family("minicpmv4_6")
def _minicpmv4_6() -> Built:
    if tools.version() < (5, 23):
        pytest.skip("this version's MiniCPM-V takes pictures and slices of one size only")
    return _minicpm("MiniCPMV4_6", _pil_class("MiniCPMV4_6ImageProcessor"), SLICED)


@family("minicpmv4_6.4x")
def _minicpmv4_6_fine() -> Built:
    return _minicpm("MiniCPMV4_6", _pil_class("MiniCPMV4_6ImageProcessor"), [SLICED[0], SLICED[-1]], "4x")


@family("minicpmv4_7")
def _minicpmv4_7() -> Built:
    marks = {
        "image_start_id": "<image>",
        "image_end_id": "</image>",
        "slice_start_id": "<slice>",
        "slice_end_id": "</slice>",
        "newline_id": "Ċ",
    }
    return _minicpm("MiniCPMV4_7", _pil_class("MiniCPMV4_6ImageProcessor"), SLICED, **marks)


@family("minicpm_ocr")
def _minicpm_ocr() -> Built:
    images = standin.take("minicpm_ocr.image_processing_minicpm_ocr", "MiniCPMOcrImageProcessor")
    return _minicpm("MiniCPMOcr", images, [SLICED[0], SLICED[2], SLICED[-1]], "4x")
