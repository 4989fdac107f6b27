"""Families that keep an image's proportions: Gemma 4, LightOnOCR, Fuyu, Emu 3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import standin
import torch
from conftest_models import _pil_class

from families import Built, family, tools

# ------------------------------------------------------------------------------------------------ Gemma 4

GEMMA = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
# 70 cells at most, and about as many whatever the size: strips of 8 pixels a cell.
GEMMA_SIZES = [[(170, 60)], [(60, 140)], [(57, 61), (130, 40)]]


def _gemma4(name: str, images: Any, text: dict[str, Any], vision: dict[str, Any], sizes: Any, **more: Any) -> Built:
    import transformers

    class Videos:
        model_input_names = ("pixel_values_videos", "video_position_ids", "num_frames_per_video")

    tokenizer = tools.tokenizer("<|video|>", named=GEMMA)
    processor = tools.without_videos(getattr(transformers, f"{name}Processor"))(
        feature_extractor=None,
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=Videos(),
        chat_template=tools.template("<|image|>", "<|video|>"),
        image_seq_length=70,
    )
    config = getattr(transformers, f"{name}Config")(
        text_config={
            **tools.text_config(tokenizer),
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 64,
            "per_layer_config": None,
            "num_kv_shared_layers": 0,
            "final_logit_softcapping": 3.0,  # low, so that it shows
            **text,
        },
        vision_config=vision,
        audio_config=None,
        tie_word_embeddings=False,
        **tools.ids(
            tokenizer,
            **{f"{key}_id": token for key, token in GEMMA.items() if key != "eoa_token"},
            video_token_id="<|video|>",
        ),
        **more,
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    return Built(tools.finish(model, tokenizer), processor, sizes)


@family("gemma4")
def _gemma4_plain() -> Built:
    images = _pil_class("Gemma4ImageProcessor")(patch_size=4, max_soft_tokens=70, pooling_kernel_size=2)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 160,
    }
    text = {"vocab_size_per_layer_input": 640, "hidden_size_per_layer_input": 8}
    return _gemma4("Gemma4", images, text, vision, GEMMA_SIZES)


@family("gemma4_unified")
def _gemma4_unified() -> Built:
    images = standin.take("gemma4_unified.image_processing_gemma4_unified", "Gemma4UnifiedImageProcessor")(
        patch_size=4, max_soft_tokens=70, pooling_kernel_size=2
    )
    vision = {
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "model_patch_size": 8,
        "mm_embed_dim": 24,
        "mm_posemb_size": 160,
        "output_proj_dims": 24,
        "num_soft_tokens": 70,
    }
    built = _gemma4("Gemma4Unified", images, {}, vision, GEMMA_SIZES)
    return replace(built, mixers=r"pos_embedding")  # there is no tower in which anything mixes


# ---------------------------------------------------------------------------------------------- LightOnOCR


@family("lighton_ocr")
def _lighton_ocr() -> Built:
    import transformers

    named = {"image_token": "<|image_pad|>", "image_break_token": "<|break|>", "image_end_token": "<|image_end|>"}
    tokenizer = tools.tokenizer(named=named)
    processor = transformers.LightOnOcrProcessor(
        image_processor=_pil_class("PixtralImageProcessor")(size={"longest_edge": 160}, patch_size=16),
        tokenizer=tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=tools.template("<|image_pad|>"),
    )
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 160,
        "patch_size": 8,
    }
    config = transformers.LightOnOcrConfig(
        vision_config=vision,
        text_config={"model_type": "qwen3", **tools.text_config(tokenizer)},
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    model = tools.finish(transformers.LightOnOcrForConditionalGeneration(config), tokenizer)
    # Two images with a token between them that parts the two runs of tokens, as in the template.
    return Built(model, processor, [[(170, 60)], [(60, 140)], [(61, 57), (90, 65)], [(420, 260)]])


# ---------------------------------------------------------------------------------------------------- Fuyu


def _fuyu_tokenizer() -> Any:
    """One that puts a space before every text, which the processor takes away again."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # These two are no special tokens but words, grown letter by letter.
    merges = [(word[:end], word[end]) for word in ("|SPEAKER|", "|NEWLINE|") for end in range(1, len(word))]
    # And the space before a text is part of its first word.
    merges += [("\u0120", chr(letter)) for letter in range(ord("A"), ord("Z") + 1)]
    vocabulary = dict.fromkeys([*alphabet, *(first + last for first, last in merges)])
    raw = Tokenizer(models.BPE({piece: index for index, piece in enumerate(vocabulary)}, merges))
    raw.normalizer = normalizers.Prepend(" ")
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    marks = ["<s>", "|ENDOFTEXT|", *(f"<0x0{code}>" for code in range(5))]
    raw.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    ends = {"bos_token": "<s>", "eos_token": "|ENDOFTEXT|", "pad_token": "|ENDOFTEXT|"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **ends)


@family("fuyu")
def _fuyu() -> Built:
    import transformers

    tokenizer = _fuyu_tokenizer()
    images = standin.take("fuyu.image_processing_fuyu", "FuyuImageProcessor")(
        size={"height": 96, "width": 120}, patch_size={"height": 12, "width": 12}
    )
    processor = transformers.FuyuProcessor(images, tokenizer)  # it has no chat template
    text = {"model_type": "persimmon", **tools.text_config(tokenizer)}
    config = transformers.FuyuConfig(
        patch_size=12,
        num_channels=3,
        text_config={name: value for name, value in text.items() if name not in ("num_key_value_heads", "head_dim")},
        image_token_id=tokenizer.convert_tokens_to_ids("|SPEAKER|"),
        hidden_size=text["hidden_size"],  # which versions before 5.23 read here
    )
    model = tools.finish(transformers.FuyuForCausalLM(config), tokenizer)
    return Built(model, processor, [[(110, 40)], [(50, 91)], [(300, 170)]], mixers=r"vision_embed_tokens.bias")


# --------------------------------------------------------------------------------------------------- Emu 3


class _Through(torch.nn.Module):
    def forward(self, value: Any, *_: Any) -> Any:
        return value


@family("emu3")
def _emu3() -> Built:
    import transformers

    if tools.version() < (5, 17):
        pytest.skip("this version's Emu3ForConditionalGeneration drops pixel_values: its model sees no picture")
    codes = 256
    names = [f"<|visual token {code:06d}|>" for code in range(codes)]
    named = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    tokenizer = tools.tokenizer("<|extra_200|>", *names, named=named, bos="<|extra_203|>")
    images = transformers.models.emu3.image_processing_emu3.Emu3ImageProcessor(
        min_pixels=24 * 24, max_pixels=96 * 64, spatial_factor=8
    )
    processor = transformers.Emu3Processor(images, tokenizer, chat_template=tools.template("<image>"))
    encoder = {
        "codebook_size": codes,
        "base_channels": 32,
        "hidden_size": 32,
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temporal_downsample_factor": 1,
        "attn_resolutions": [3],
    }
    config = transformers.Emu3Config(
        vq_config=encoder,
        text_config={**tools.text_config(tokenizer), "bos_token_id": tokenizer.bos_token_id},
        vocabulary_map=tokenizer.get_vocab(),
    )
    model = tools.finish(transformers.Emu3ForConditionalGeneration(config), tokenizer)
    numbers = tokenizer.convert_tokens_to_ids(names)

    def flatten(model: Any) -> None:
        """Take out what mixes positions; codes and their embeddings along a line, so that a code tells how much."""
        vq = model.model.vqmodel
        for module in list(vq.encoder.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, torch.nn.GroupNorm):
                    setattr(module, name, _Through())
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)) and module.kernel_size[-1] == 3:
                # Those that halve a side pad it at its end alone.
                first = slice(0, 2) if module.stride[-1] == 2 else slice(1, 2)
                kept = torch.zeros(3, 3)
                kept[first, first] = 1
                module.weight.data *= 3 * kept  # as much as before comes through
        line = torch.linspace(-2, 2, codes)[:, None]
        vq.quantize.embedding.weight.data.copy_(line * torch.ones(1, 4))
        embedding = model.get_input_embeddings().weight.data
        embedding[numbers] = line * torch.ones(1, embedding.shape[1])

    sizes = [[(64, 32)], [(30, 71), (45, 40)], [(200, 90)]]
    return Built(model, processor, sizes, r"vqmodel.*attn.*(out_proj|proj_out)", flatten)
