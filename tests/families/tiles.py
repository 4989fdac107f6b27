"""Families that show tiles in row-major order, then the whole image, laid out by the source's size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import standin
from conftest_models import _pil_class

from families import Built, family, tools

SIDE = 32
# Wide; tall; of one tile; as many tiles as there may be; two of them.
SIZES = [[(100, 40)], [(40, 90)], [(33, 30)], [(120, 90)], [(70, 30), (40, 80)]]
FEW = [[(100, 40)], [(120, 90)], [(33, 30), (40, 80)]]

INTERN = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def _got(side: int = SIDE, **more: Any) -> Any:
    return _pil_class("GotOcr2ImageProcessor")(size={"height": side, "width": side}, **{"max_patches": 6, **more})


def _intern(
    model_type: str, name: str, processor: Any, tokenizer: Any, text: str, sizes: Any, side: int = SIDE
) -> Built:
    import transformers

    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [side, side],
        "patch_size": [8, 8],
    }
    config = transformers.CONFIG_MAPPING[model_type](
        vision_config=vision,
        text_config={"model_type": text, **tools.text_config(tokenizer)},
        image_seq_length=(side // 16) ** 2,
        tie_word_embeddings=False,
        **tools.ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    return Built(tools.finish(getattr(transformers, name)(config), tokenizer), processor, sizes)


@family("internvl")
def _internvl() -> Built:
    return _internvl_of(SIDE, SIZES)


@family("internvl.many")
def _internvl_many() -> Built:
    # At least two tiles, each with 3 pixels of no patch at its end.
    return _internvl_of(35, [[(36, 30)], [(140, 60), (60, 60)]], min_patches=2, max_patches=9)


def _internvl_of(side: int, sizes: Any, **images: Any) -> Built:
    import transformers

    tokenizer = tools.tokenizer(named=INTERN)
    processor = tools.without_videos(transformers.InternVLProcessor)(
        image_processor=_got(side, **images),
        tokenizer=tokenizer,
        video_processor=SimpleNamespace(model_input_names=[]),
        image_seq_length=(side // 16) ** 2,
        chat_template=tools.template("<IMG_CONTEXT>\n", "<video>\n"),
    )
    name = "InternVLForConditionalGeneration"
    return _intern("internvl", name, processor, tokenizer, "qwen2", sizes, side)


@family("qianfan_ocr")
def _qianfan_ocr() -> Built:
    import transformers

    tokenizer = tools.tokenizer("<image>", named=INTERN)
    processor = transformers.QianfanOCRProcessor(
        image_processor=_got(),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=tools.template("<image>\n"),
    )
    name = "QianfanOCRForConditionalGeneration"
    return _intern("qianfan_ocr", name, processor, tokenizer, "qwen3", FEW)


def _siglip(side: int) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 8,
        "vision_use_head": False,
    }


def _cohere2(tokenizer: Any) -> dict[str, Any]:
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    return {"model_type": "cohere2", **tools.text_config(tokenizer, **layers)}


@family("aya_vision")
def _aya_vision() -> Built:
    import transformers

    tiles = [f"TILE_{number}" for number in range(1, 7)]
    marks = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "TILE")
    tokenizer = tools.tokenizer("<image>", *marks, *tiles)
    processor = transformers.AyaVisionProcessor(
        image_processor=_got(),
        tokenizer=tokenizer,
        patch_size=8,
        img_size=SIDE,
        downsample_factor=2,
        chat_template=tools.template("<image>"),
    )
    config = transformers.AyaVisionConfig(
        vision_config=_siglip(SIDE),
        text_config=_cohere2(tokenizer),
        downsample_factor=2,
        tie_word_embeddings=True,
        **tools.ids(tokenizer, image_token_index="<|IMG_PATCH|>"),
    )
    return Built(tools.finish(transformers.AyaVisionForConditionalGeneration(config), tokenizer), processor, FEW)


@family("cohere2_vision")
def _cohere2_vision() -> Built:
    import transformers

    named = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    tokenizer = tools.tokenizer(named=named)
    images = standin.take("cohere2_vision.image_processing_cohere2_vision", "Cohere2VisionImageProcessor")(
        size={"height": SIDE, "width": SIDE}, patch_size=2, max_patches=6
    )
    processor = transformers.Cohere2VisionProcessor(images, tokenizer, chat_template=tools.template("<|IMG_PATCH|>"))
    config = transformers.Cohere2VisionConfig(
        vision_config=_siglip(SIDE),
        text_config=_cohere2(tokenizer),
        downsample_factor=2,
        alignment_intermediate_size=32,
        **tools.ids(tokenizer, image_token_id="<|IMG_PATCH|>"),
    )
    return Built(tools.finish(transformers.Cohere2VisionForConditionalGeneration(config), tokenizer), processor, SIZES)
