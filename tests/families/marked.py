"""Families whose tiles are told apart by tokens of the prompt."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import standin
import torch
from conftest_models import _pil_class

from families import Built, family, tools


def _vision(**more: Any) -> dict[str, Any]:
    """A vision tower of 8-pixel patches."""
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        **more,
    }


def _names(form: str, side: int = 4) -> list[str]:
    return [form.format(row, column) for row, column in itertools.product(range(1, side + 1), repeat=2)]


# ------------------------------------------------------------------------------------------------ Idefics 3 and kin

IDEFICS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")


def _idefics(name: str, sizes: Any, tile: int = 32, **images: Any) -> Built:
    """A model of ``<name>Config``, tiles of 2 x 2 cells of 2 x 2 patches."""
    import transformers

    # Names of further rows and columns are spelt in bytes.
    tokenizer = tools.tokenizer(*IDEFICS, *_names("<row_{}_col_{}>", 3))
    cls = getattr(transformers, f"{name}Processor")
    more: dict[str, Any] = {}
    if name == "SmolVLM":
        from transformers.models.smolvlm import processing_smolvlm

        processing_smolvlm.num2words = processing_smolvlm.num2words or str
        cls = tools.without_videos(cls)
        more["video_processor"] = SimpleNamespace(num_frames=4, fps=1, model_input_names=[])
    settings = {"size": {"longest_edge": 4 * tile}, "max_image_size": {"longest_edge": tile}, **images}
    processor = cls(
        image_processor=_pil_class(f"{name}ImageProcessor")(**settings),
        tokenizer=tokenizer,
        image_seq_len=(tile // 8 // 2) ** 2,
        chat_template=tools.template("<image>"),
        **more,
    )
    config = getattr(transformers, f"{name}Config")(
        vision_config=_vision(image_size=tile),
        text_config={"model_type": "llama", **tools.text_config(tokenizer)},
        scale_factor=2,
        tie_word_embeddings=False,
        **tools.ids(tokenizer, image_token_id="<image>"),
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    return Built(tools.finish(model, tokenizer), processor, sizes)


@family("idefics3")
def _idefics3() -> Built:
    return _idefics("Idefics3", [[(170, 60)], [(60, 140)], [(29, 31)], [(90, 40), (30, 60)]])


@family("idefics3.whole")
def _idefics3_whole() -> Built:
    # The last 4 of 36 pixels are not looked at.
    return _idefics("Idefics3", [[(170, 60)], [(60, 140), (50, 50)]], 36, do_image_splitting=False)


@family("idefics3.rest")
def _idefics3_rest() -> Built:
    return _idefics("Idefics3", [[(170, 60)], [(60, 140), (50, 50)]], 36, size={"longest_edge": 72})


@family("smolvlm")
def _smolvlm() -> Built:
    return _idefics("SmolVLM", [[(170, 60)], [(29, 31)], [(90, 40), (30, 60)]])


@family("granite_docling")
def _granite_docling() -> Built:
    return _docling([[(170, 60)], [(57, 61)], [(60, 140)], [(57, 61), (90, 60), (60, 50)]])


@family("granite_docling.fine")
def _granite_docling_fine() -> Built:
    return _docling([[(170, 60)], [(57, 61), (60, 130)]], fine_route=True)


def _docling(sizes: Any, **images: Any) -> Built:
    import transformers

    tokenizer = tools.tokenizer(*IDEFICS, *_names("<row_{}_col_{}>"))
    processor = transformers.GraniteDoclingProcessor(
        image_processor=_pil_class("GraniteDoclingImageProcessor")(
            size={"height": 64, "width": 64}, max_patches=6, **images
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=tools.template("<image>"),
    )
    config = transformers.GraniteDoclingConfig(
        vision_config=_vision(image_size=64, scale_factor=4, out_hidden_size=32, deepstack_visual_indexes=[0]),
        text_config=tools.text_config(tokenizer),
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        **tools.ids(tokenizer, image_token_id="<image>"),
    )
    model = transformers.GraniteDoclingForConditionalGeneration(config)
    return Built(tools.finish(model, tokenizer), processor, sizes)


# ------------------------------------------------------------------------------------------------ LFM2-VL

LFM2 = ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")


def _lfm2(sizes: Any, **images: Any) -> Built:
    """A model of 32-pixel tiles of 2 x 2 cells."""
    import transformers

    tokenizer = tools.tokenizer("<image>", *LFM2, *_names("<|img_row_{}_col_{}|>"))
    cls = standin.take("lfm2_vl.image_processing_lfm2_vl", "Lfm2VlImageProcessor")
    settings = {
        "tile_size": 32,
        "encoder_patch_size": 8,
        "min_image_tokens": 4,
        "max_image_tokens": 12,
        "max_tiles": 6,
    }
    processor = transformers.Lfm2VlProcessor(
        image_processor=cls(**settings, **images), tokenizer=tokenizer, chat_template=tools.template("<image>")
    )
    text = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    config = transformers.Lfm2VlConfig(
        vision_config={"model_type": "siglip2_vision_model", **_vision(num_patches=16, vision_use_head=False)},
        text_config={"model_type": "lfm2", **tools.text_config(tokenizer, **text, tie_word_embeddings=False)},
        projector_hidden_size=32,
        tie_word_embeddings=False,
        **tools.ids(tokenizer, image_token_id="<image>"),
    )
    return Built(tools.finish(transformers.Lfm2VlForConditionalGeneration(config), tokenizer), processor, sizes)


@family("lfm2_vl")
def _lfm2_vl() -> Built:
    return _lfm2([[(170, 90)], [(60, 140)], [(57, 41)], [(20, 30), (240, 150), (50, 70)]])


@family("lfm2_vl.alone")
def _lfm2_vl_alone() -> Built:
    return _lfm2([[(170, 90)], [(60, 240), (57, 41)]], use_thumbnail=False)


# ------------------------------------------------------------------------------------------------ Llama 4

LLAMA4 = (
    "<|image|>",
    "<|patch|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)


def _llama4(sizes: Any, side: int = 48, **images: Any) -> Built:
    """A model of tiles of 3 x 3 cells of 2 x 2 patches."""
    import transformers

    tokenizer = tools.tokenizer(*LLAMA4)
    cls = standin.take("llama4.image_processing_llama4", "Llama4ImageProcessor")
    processor = transformers.Llama4Processor(
        image_processor=cls(size={"height": side, "width": side}, max_patches=6, **images),
        tokenizer=tokenizer,
        patch_size=8,
        chat_template=tools.template("<|image|>"),
    )
    text = {"num_local_experts": 2, "intermediate_size_mlp": 48, "moe_layers": [1], "attention_chunk_size": 4096}
    config = transformers.Llama4Config(
        vision_config=_vision(
            image_size=side, vision_output_dim=16, projector_input_dim=16, projector_output_dim=16, intermediate_size=64
        ),
        text_config=tools.text_config(tokenizer, **text),
        tie_word_embeddings=False,
        **tools.ids(
            tokenizer, image_token_index="<|patch|>", boi_token_index="<|image_start|>", eoi_token_index="<|image_end|>"
        ),
    )
    return Built(tools.finish(transformers.Llama4ForConditionalGeneration(config), tokenizer), processor, sizes)


@family("llama4")
def _llama4_tiles() -> Built:
    # Wide; tall, with tiles that see nothing; one tile; larger than all tiles.
    return _llama4([[(130, 60)], [(50, 100)], [(30, 20)], [(299, 300)], [(60, 50), (20, 29)]])


@family("llama4.largest")
def _llama4_largest() -> Built:
    # The last 4 of 36 pixels are not looked at.
    return _llama4([[(90, 40)], [(30, 20), (50, 90)]], 36, resize_to_max_canvas=True)


# ------------------------------------------------------------------------------------------------ Step 3.7

STEP3 = ("<im_patch>", "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")


def _keep_stepped_taps(model: Any) -> None:
    """Leave of each convolution of three taps those that it steps over, so that windows do not overlap."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                first = 1  # the one before is the neighbour's
                last = first + module.stride[0]
                kept = module.weight[..., first:last, first:last].clone()
                module.weight.zero_()
                module.weight[..., first:last, first:last] = kept


@family("step3p7")
def _step3p7() -> Built:
    import transformers

    tokenizer = tools.tokenizer(*STEP3)
    cls = standin.take("step3p7.image_processing_step3p7", "Step3p7ImageProcessor")
    images = cls(size={"height": 96, "width": 96}, patch_size=64, max_image_size=400)
    images.vision_patch_size = 8
    processor = transformers.Step3p7Processor(images, tokenizer, chat_template=tools.template("<im_patch>"))
    text = {
        "layer_types": ["full_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse"],
        "sliding_window": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "share_expert_dim": 16,
        "per_layer_config": None,
    }
    config = transformers.Step3p7Config(
        vision_config=_vision(image_size=96, mlp_ratio=2.0, max_position_embeddings=144),
        text_config=tools.text_config(tokenizer, **text),
        **tools.ids(tokenizer, image_token_id="<im_patch>"),
    )
    model = tools.finish(transformers.Step3p7ForConditionalGeneration(config), tokenizer)
    # Tiles in rows; one row; none; larger than the limit, of which little is left; a strip, padded to a square.
    sizes = [[(180, 120)], [(90, 50)], [(50, 61)], [(500, 380)], [(28, 150)], [(70, 100), (60, 61)]]
    return Built(model, processor, sizes, flatten=_keep_stepped_taps)


# ------------------------------------------------------------------------------------------------ Unlimited-OCR


def _unlimited(sizes: Any, **images: Any) -> Built:
    import transformers

    tokenizer = tools.tokenizer(named={"image_token": "<image>"})
    cls = standin.take("unlimited_ocr.image_processing_unlimited_ocr", "UnlimitedOcrImageProcessor")
    settings = {"size": {"height": 96, "width": 96}, "tile_size": 64, "max_patches": 6}
    processor = transformers.UnlimitedOcrProcessor(
        cls(**settings, **images), tokenizer, chat_template=tools.template("<image>\n"), patch_size=8
    )
    sam = {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 96,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [1],
        "mlp_dim": 32,
        "downsample_channels": [16, 16],
    }
    text = {
        "sliding_window": 4,
        "mlp_layer_types": ["dense", "sparse"],
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }
    config = transformers.UnlimitedOcrConfig(
        vision_config={
            "sam_config": sam,
            "encoder_config": _vision(image_size=24),
        },
        text_config=tools.text_config(tokenizer, **text),
        tie_word_embeddings=False,
        **tools.ids(tokenizer, image_token_id="<image>"),
    )
    model = tools.finish(transformers.UnlimitedOcrForConditionalGeneration(config), tokenizer)
    return Built(model, processor, sizes, flatten=_keep_stepped_taps)


@family("unlimited_ocr")
def _unlimited_ocr() -> Built:
    return _unlimited([[(170, 50)], [(40, 140)], [(50, 61)], [(100, 30), (40, 58), (80, 130)]])


@family("unlimited_ocr.whole")
def _unlimited_ocr_whole() -> Built:
    return _unlimited([[(170, 90)], [(60, 140), (40, 58)]], crop_to_patches=False, maximum_pad_value=96)
