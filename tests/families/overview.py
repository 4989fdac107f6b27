"""Families that show the whole image first, then tiles of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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
