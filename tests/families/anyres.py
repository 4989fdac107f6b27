"""Families that show the whole image first, then a canvas of tiles as one raster with newline embeddings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from conftest_models import _pil_class

from families import Built, family, tools

SIDE = 32
# Heights and widths of canvases: strips of up to three tiles, and squares.
CANVASES = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
CHAT = tools.template("<image>\n", "<video>\n")
# Wide, with padding above and below; tall; smaller than a tile; larger than all canvases; a line beside another.
SIZES = [[(90, 36)], [(30, 75)], [(25, 23)], [(180, 150)], [(12, 150), (40, 64)]]


def _images(name: str, side: int, canvases: Any) -> Any:
    return _pil_class(name)(
        size={"shortest_edge": side} if name.startswith("LlavaNext") else {"height": side, "width": side},
        image_grid_pinpoints=canvases,
        **({"crop_size": {"height": side, "width": side}} if name.startswith("LlavaNext") else {}),
    )


def _vision(side: int, patch: int, hidden: int = 16) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": patch,
        "projection_dim": 16,
    }


@family("llava_next")
def _llava_next() -> Built:
    import transformers

    tokenizer = tools.tokenizer(named={"image_token": "<image>"})
    return _next(tokenizer, transformers.LlavaNextProcessor, "llava_next", "LlavaNextForConditionalGeneration")


@family("llava_next_video")
def _llava_next_video() -> Built:
    import transformers

    tokenizer = tools.tokenizer(named={"image_token": "<image>", "video_token": "<video>"})
    processor = tools.without_videos(transformers.LlavaNextVideoProcessor)
    name = "LlavaNextVideoForConditionalGeneration"
    videos = {"video_processor": SimpleNamespace(model_input_names=[])}
    return _next(tokenizer, processor, "llava_next_video", name, SIZES[::2], **videos)


def _next(tokenizer: Any, cls: Any, model_type: str, name: str, sizes: Any = SIZES, **parts: Any) -> Built:
    import transformers

    processor = cls(
        image_processor=_images("LlavaNextImageProcessor", SIDE, CANVASES),
        tokenizer=tokenizer,
        chat_template=CHAT,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **parts,
    )
    ids = {"image_token_index": "<image>", **({"video_token_index": "<video>"} if parts else {})}
    config = transformers.CONFIG_MAPPING[model_type](
        vision_config={"model_type": "clip_vision_model", **_vision(SIDE, 8)},
        text_config={"model_type": "llama", **tools.text_config(tokenizer)},
        image_grid_pinpoints=CANVASES,
        **tools.ids(tokenizer, **ids),
    )
    return Built(tools.finish(getattr(transformers, name)(config), tokenizer), processor, sizes)


@family("granite4_vision")
def _granite4_vision() -> Built:
    import transformers

    tokenizer = tools.tokenizer(named={"image_token": "<image>"})
    canvases = [[2 * high, 2 * wide] for high, wide in CANVASES]
    processor = transformers.Granite4VisionProcessor(
        image_processor=_images("LlavaNextImageProcessor", 64, canvases),
        tokenizer=tokenizer,
        chat_template=CHAT,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        downsample_rate="2/4",
    )
    config = transformers.Granite4VisionConfig(
        vision_config={"model_type": "clip_vision_model", **_vision(64, 8, 64)},
        text_config={**tools.text_config(tokenizer, layers=6)},
        image_grid_pinpoints=canvases,
        downsample_rate="2/4",
        deepstack_layer_map=[[-2, 0]],
        spatial_target_layers=[1, 2, 3, 4],
        spatial_vision_layer=-1,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    config.qformer_config.intermediate_size = 32
    model = tools.finish(transformers.Granite4VisionForConditionalGeneration(config), tokenizer)
    sizes = [[(180, 72)], [(60, 150)], [(50, 46)], [(180, 40), (80, 128)]]
    # The windows of the Q-Former are cells, or several: their attention mixes cells too.
    mixers = r"vision_tower.*attn\.out_proj\.|qformer.*attention\.output\.dense\."
    return Built(model, processor, sizes, mixers, observe=_added)


def _added(given: dict[str, Any]) -> torch.Tensor:
    """What is added to the states of visual positions before some of the layers, side by side."""
    mask = given["vision_mask"][0, :, 0]
    found = torch.cat([*given["deepstack_features"].values()], 1)
    states = torch.zeros(mask.numel(), found.shape[1], dtype=found.dtype)
    states[mask] = found
    return states


@family("llava_onevision")
def _llava_onevision() -> Built:
    return _onevision(SIDE, 8, "anyres_max_4", SIZES)


@family("llava_onevision.shrunk")
def _llava_onevision_shrunk() -> Built:
    # Tiles end in 2 pixels of no patch, as those of 384 pixels with patches of 14 do; and more than 2 are too many.
    return _onevision(34, 8, "anyres_max_2", [[(150, 60)], [(70, 140)], [(180, 150)], [(60, 20), (40, 64)]])


def _onevision(side: int, patch: int, ratio: str, sizes: Any) -> Built:
    import transformers

    tokenizer = tools.tokenizer(named={"image_token": "<image>", "video_token": "<video>"})
    canvases = [[high * side, wide * side] for high in (1, 2, 3, 4) for wide in (1, 2, 3, 4)]
    cells = side // patch
    processor = tools.without_videos(transformers.LlavaOnevisionProcessor)(
        image_processor=_images("LlavaOnevisionImageProcessor", side, canvases),
        tokenizer=tokenizer,
        video_processor=SimpleNamespace(model_input_names=[]),
        chat_template=CHAT,
        num_image_tokens=cells * cells,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=ratio,
    )
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **_vision(side, patch)},
        text_config={"model_type": "qwen2", **tools.text_config(tokenizer)},
        image_grid_pinpoints=canvases,
        vision_aspect_ratio=ratio,
        **tools.ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    model = tools.finish(transformers.LlavaOnevisionForConditionalGeneration(config), tokenizer)
    return Built(model, processor, sizes)
