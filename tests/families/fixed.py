"""Families that bring every image to one size."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest_models import _pil_class, llava_model, llava_processor

from families import Built, family, tools

SIZES = [[(170, 60)], [(57, 61)], [(90, 60), (60, 120)]]
FEW = [[(170, 60)], [(57, 61), (60, 140)]]
# No seam of cells is the picture's edge, over which a resize smears.
PADDED = [[(170, 60)], [(57, 61), (50, 120)]]
SIDE, PATCH = 56, 14


@family("llava")
def _llava() -> Built:
    processor = llava_processor()
    return Built(llava_model(processor), processor, SIZES)


def _siglip(side: int = SIDE, **more: Any) -> dict[str, Any]:
    """A SigLIP tower of 4 x 4 patches."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": PATCH,
        "vision_use_head": False,
        **more,
    }


def _clip(side: int = SIDE) -> dict[str, Any]:
    return {**_siglip(side, num_hidden_layers=3, projection_dim=16), "model_type": "clip_vision_model"}


def _made(name: str, tokenizer: Any, text: str = "llama", **more: Any) -> Any:
    """A model of ``<name>Config`` and ``<name>ForConditionalGeneration``."""
    import transformers

    decoder = {"model_type": text, **tools.text_config(tokenizer), **more.pop("text_more", {})}
    config = getattr(transformers, f"{name}Config")(text_config=decoder, **more)
    return tools.finish(getattr(transformers, f"{name}ForConditionalGeneration")(config), tokenizer)


# -------------------------------------------------------------------------------------------------- LLaVA and its kin


def _llava_like(name: str, tower: dict[str, Any], images: Any, sizes: Any, strategy: str = "default") -> Built:
    import transformers

    tokenizer = tools.tokenizer(named={"image_token": "<image>"}, bos="<s>")
    processor = transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(tower["model_type"] == "clip_vision_model"),
    )
    more: dict[str, Any] = {"vision_feature_layer": -2}
    if name == "VipLlava":
        more = {"vision_feature_layer": [-2, 1], "vision_feature_layers": [-2, 1]}  # by version
    else:
        more["vision_feature_select_strategy"] = strategy
    model = _made(name, tokenizer, vision_config=tower, **more, **tools.ids(tokenizer, image_token_index="<image>"))
    return Built(model, processor, sizes)


@family("llava.siglip")
def _llava_siglip() -> Built:
    # The last 4 of 60 pixels are no patch.
    images = _pil_class("SiglipImageProcessor")(size={"height": 60, "width": 60})
    return _llava_like("Llava", _siglip(60), images, FEW, "full")


@family("llava.full")
def _llava_full() -> Built:
    # The class token stands under the image's id.
    images = _pil_class("CLIPImageProcessor")(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return _llava_like("Llava", _clip(), images, FEW, "full")


@family("llava.pad")
def _llava_pad() -> Built:
    size = {"height": SIDE, "width": SIDE}
    images = _pil_class("LlavaImageProcessor")(size={"shortest_edge": SIDE}, crop_size=size, do_pad=True)
    return _llava_like("Llava", _clip(), images, PADDED)


@family("vipllava")
def _vipllava() -> Built:
    images = _pil_class("CLIPImageProcessor")(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return _llava_like("VipLlava", _clip(), images, FEW)


@family("video_llava")
def _video_llava() -> Built:
    import transformers

    if "kwargs" not in inspect.signature(transformers.VideoLlavaProcessor.__call__).parameters:
        pytest.skip("this version's VideoLlavaProcessor takes no options")
    tokenizer = tools.tokenizer(named={"image_token": "<image>", "video_token": "<video>"}, bos="<s>")
    images = transformers.VideoLlavaImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = tools.without_videos(transformers.VideoLlavaProcessor)(
        image_processor=images,
        video_processor=SimpleNamespace(model_input_names=[]),
        tokenizer=tokenizer,
        patch_size=PATCH,
    )
    marks = tools.ids(tokenizer, image_token_index="<image>", video_token_index="<video>")
    model = _made("VideoLlava", tokenizer, vision_config=_clip(), vision_feature_layer=-2, **marks)
    return Built(model, processor, FEW)


# ------------------------------------------------------------------------------------------------ PaliGemma and Gemma 3


@family("paligemma")
def _paligemma() -> Built:
    import transformers

    tokenizer = tools.tokenizer(named={"image_token": "<image>"}, bos="<bos>")
    images = _pil_class("SiglipImageProcessor")(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = (SIDE // PATCH) ** 2
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    model = _made(
        "PaliGemma",
        tokenizer,
        "gemma",
        vision_config=_siglip(),
        projection_dim=32,
        hidden_size=32,
        tie_word_embeddings=False,
        **tools.ids(tokenizer, image_token_index="<image>"),
    )
    return Built(model, processor, FEW)


GEMMA = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}


def _gemma3(sizes: Any, config: str = "Gemma3", **settings: Any) -> Built:
    """A Gemma 3 of 3 x 3 cells of 2 x 2 patches; the last 2 of 50 pixels are no patch."""
    import transformers

    tokenizer = tools.tokenizer(named=GEMMA, bos="<bos>")
    images = _pil_class("Gemma3ImageProcessor")(size={"height": 50, "width": 50}, **settings)
    processor = transformers.Gemma3Processor(
        images, tokenizer, image_seq_length=9, chat_template=tools.template("<start_of_image>")
    )
    text = {
        "model_type": "gemma3_text",
        **tools.text_config(tokenizer),
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
    }
    marks = tools.ids(tokenizer, **{f"{name}_index": GEMMA[name] for name in ("image_token", "boi_token", "eoi_token")})
    made = getattr(transformers, f"{config}Config")(
        text_config=text, vision_config={**_siglip(50), "patch_size": 8}, mm_tokens_per_image=9, **marks
    )
    model = transformers.AutoModelForImageTextToText.from_config(made)
    return Built(tools.finish(model, tokenizer), processor, sizes)


@family("gemma3")
def _gemma3_whole() -> Built:
    return _gemma3(FEW)


@family("gemma3.pan")
def _gemma3_pan() -> Built:
    settings = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 20}
    return _gemma3([[(41, 121)], [(100, 40), (61, 57)]], **settings)


@family("shieldgemma2")
def _shieldgemma2() -> Built:
    # What AutoModelForImageTextToText makes of its configuration is a Gemma 3, which answers in words.
    return _gemma3(FEW, "ShieldGemma2")


# --------------------------------------------------------------------------------------------- Janus and DeepSeek-VL

JANUS = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}


@family("janus")
def _janus() -> Built:
    import transformers

    tokenizer = tools.tokenizer(named=JANUS, bos="<bos>")
    images = _pil_class("JanusImageProcessor")(size={"height": 84, "width": 84}, min_size=14)
    processor = transformers.JanusProcessor(
        images, tokenizer, num_image_tokens=36, chat_template=tools.template("<image_placeholder>")
    )
    processor.num_image_tokens = 36  # transformers 5.0 has a number of its own
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 84,
        "patch_size": PATCH,
        "mlp_ratio": 2.0,
        "projection_dim": 32,
        "num_image_tokens": 36,
    }
    codes = {
        "embed_dim": 4,
        "num_embeddings": 16,
        "latent_channels": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "projection_dim": 32,
        "image_token_embed_dim": 32,
    }
    model = _made(
        "Janus",
        tokenizer,
        vision_config=vision,
        vq_config=codes,
        **tools.ids(tokenizer, image_token_id=JANUS["image_token"]),
    )
    return Built(model, processor, PADDED)


def _deepseek(name: str, images: Any, flatten: Any = None, **more: Any) -> Built:
    import transformers

    tokenizer = tools.tokenizer(named={"image_token": "<image_placeholder>"}, bos="<bos>")
    processor = getattr(transformers, f"{name}Processor")(
        images, tokenizer, num_image_tokens=36, chat_template=tools.template("<image_placeholder>\n")
    )
    marks = tools.ids(tokenizer, image_token_id="<image_placeholder>")
    return Built(_made(name, tokenizer, vision_config=_siglip(84), **marks, **more), processor, PADDED, flatten=flatten)


@family("deepseek_vl")
def _deepseek_vl() -> Built:
    return _deepseek("DeepseekVL", _pil_class("DeepseekVLImageProcessor")(size={"height": 84, "width": 84}))


def _without_overlap(model: Any) -> None:
    """Leave of convolutions of 3 x 3 the taps that they step over."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            kept = torch.zeros(3, 3)
            kept[1 : 1 + module.stride[0], 1 : 1 + module.stride[1]] = 1
            module.weight.data *= kept


def _sam(side: int, **more: Any) -> dict[str, Any]:
    """A SAM tower of 8-pixel patches."""
    return {
        "hidden_size": 16,
        "output_channels": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 32,
        **more,
    }


@family("deepseek_vl_hybrid")
def _deepseek_vl_hybrid() -> Built:
    large = {"height": 192, "width": 192}
    images = _pil_class("DeepseekVLHybridImageProcessor")(size={"height": 84, "width": 84}, high_res_size=large)
    tower = {"model_type": "sam_vision_model", **_sam(192, mlp_ratio=2.0)}
    built = _deepseek("DeepseekVLHybrid", images, _without_overlap, high_res_vision_config=tower)
    built.model.model.high_res_vision_alpha.data.fill_(1.0)
    return built


# ------------------------------------------------------------------------------------------------------------ GOT-OCR 2


def _got(config: str, processor: Any, tokenizer: Any, sizes: Any) -> Built:
    import transformers

    made = getattr(transformers, f"{config}Config")(
        text_config={"model_type": "qwen2", **tools.text_config(tokenizer)},
        vision_config=_sam(128),
        image_seq_length=16,
        tie_word_embeddings=False,
        **tools.ids(tokenizer, image_token_index="<imgpad>"),
    )
    model = transformers.GotOcr2ForConditionalGeneration(made)
    return Built(tools.finish(model, tokenizer), processor, sizes, flatten=_without_overlap)


def _got_ocr2(sizes: Any, **settings: Any) -> Built:
    import transformers

    if not hasattr(transformers.GotOcr2Processor, "replace_image_token"):
        pytest.skip("this version's GotOcr2Processor takes no text of one's own")
    tokenizer = tools.tokenizer("<img>", "</img>", "<imgpad>")
    images = _pil_class("GotOcr2ImageProcessor")(size={"height": 128, "width": 128}, **settings)
    processor = transformers.GotOcr2Processor(images, tokenizer)
    processor.num_image_tokens = 16
    asked = getattr(sys.modules[type(processor).__module__].GotOcr2ProcessorKwargs, "_defaults", None)
    if asked is not None:  # older versions keep it there
        asked["images_kwargs"]["num_image_tokens"] = 16
    return _got("GotOcr2", processor, tokenizer, sizes)


@family("got_ocr2")
def _got_ocr2_whole() -> Built:
    return _got_ocr2(FEW)


@family("got_ocr2.tiles")
def _got_ocr2_tiles() -> Built:
    return _got_ocr2([[(170, 60)], [(60, 60), (100, 160)]], crop_to_patches=True, max_patches=4)


@family("pp_chart2table")
def _pp_chart2table() -> Built:
    import transformers

    tokenizer = tools.tokenizer("<img>", "</img>", "<imgpad>")
    images = _pil_class("PPChart2TableImageProcessor")(size={"height": 128, "width": 128})
    # Its processor expands nothing: the template writes every placeholder.
    chat = tools.template("<img>" + "<imgpad>" * 16 + "</img>\n")
    return _got("PPChart2Table", transformers.PPChart2TableProcessor(images, tokenizer, chat), tokenizer, FEW)


# ------------------------------------------------------------------------------------------------------------ Chameleon


@family("chameleon")
def _chameleon() -> Built:
    import transformers

    codes = 256
    names = [f"IMGIMG{''.join(chr(65 + int(digit)) for digit in str(code))}Z" for code in range(codes)]
    marks = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    tokenizer = tools.tokenizer("<reserved08706>", *names, named=marks, bos="<s>")
    tokenizer.sep_token = "<reserved08706>"
    images = _pil_class("ChameleonImageProcessor")(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = transformers.ChameleonProcessor(images, tokenizer, image_seq_length=16)
    encoder = {
        "embed_dim": 4,
        "num_embeddings": codes,
        "latent_channels": 4,
        "resolution": 16,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1,
    }
    text = {name: value for name, value in tools.text_config(tokenizer).items() if name != "head_dim"}
    config = transformers.ChameleonConfig(vq_config=encoder, vocabulary_map=tokenizer.get_vocab(), **text)
    # With other weights it answers in placeholders.
    model = tools.finish(transformers.ChameleonForConditionalGeneration(config), tokenizer, 1)
    numbers = tokenizer.convert_tokens_to_ids(names)

    def flatten(model: Any) -> None:
        """Take out what mixes positions; codes and their embeddings along a line, so that a code tells how much."""
        vq = model.model.vqmodel
        for module in list(vq.modules()):
            for name, child in module.named_children():
                if isinstance(child, torch.nn.GroupNorm):
                    setattr(module, name, torch.nn.Identity())
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                weight = torch.zeros_like(module.weight.data)
                if module.stride == (2, 2):  # pads a side at its end alone
                    weight[..., :2, :2] = module.weight.data.mean((-2, -1), keepdim=True)
                else:
                    weight[..., 1, 1] = 3 * module.weight.data[..., 1, 1]
                module.weight.data = weight
        pixels = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            found = vq.quant_conv(vq.encoder(pixels)).mean(1)
        line = torch.linspace(float(found.min()), float(found.max()), codes)[:, None]
        vq.quantize.embedding.weight.data.copy_(line * torch.ones(1, 4))
        embedding = model.get_input_embeddings().weight.data
        embedding[numbers] = torch.linspace(0, 1, codes)[:, None] * torch.ones(1, embedding.shape[1])

    return Built(model, processor, FEW, r"vqmodel.*attn.*proj_out", flatten)
