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
