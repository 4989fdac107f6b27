"""Families whose rows of cells end in a token of their own."""

from __future__ import annotations

from typing import Any

import standin
from conftest_models import _pil_class

from families import Built, family, tools

# Wide; small and tall; larger than the processor's most; two of different size.
SIZES = [[(170, 60)], [(60, 140)], [(61, 57), (90, 65)], [(420, 260)]]

# --------------------------------------------------------------------------------------- Pixtral, Mistral 3

PIXTRAL = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}[IMG]{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}[/INST]"
    "{% else %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{{ message['content'][0]['text'] }}{% endif %}{{ eos_token }}{% endif %}{% endfor %}"
)


def _pixtral(merge: int, image: int = 160) -> tuple[Any, Any, dict[str, Any]]:
    """A tokenizer, a processor and a vision tower's settings."""
    tokenizer = tools.tokenizer("[INST]", "[/INST]", *PIXTRAL.values(), bos="<s>")
    images = _pil_class("PixtralImageProcessor")(size={"longest_edge": image}, patch_size=8 * merge)
    processor = standin.take("pixtral.processing_pixtral", "PixtralProcessor")(
        image_processor=images, tokenizer=tokenizer, patch_size=8, spatial_merge_size=merge, chat_template=CHAT
    )
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": image,
        "patch_size": 8,
    }
    return tokenizer, processor, vision


@family("mistral3")
def _mistral3() -> Built:
    import transformers

    tokenizer, processor, vision = _pixtral(2)
    config = transformers.Mistral3Config(
        vision_config=vision,
        text_config={"model_type": "mistral", **tools.text_config(tokenizer), "sliding_window": None},
        image_token_index=processor.image_token_id,
        tie_word_embeddings=False,
    )
    return Built(tools.finish(transformers.Mistral3ForConditionalGeneration(config), tokenizer), processor, SIZES)


@family("llava.pixtral")
def _llava_pixtral() -> Built:
    import transformers

    tokenizer, processor, vision = _pixtral(1, image=112)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "mistral", **tools.text_config(tokenizer), "sliding_window": None},
        image_token_index=processor.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=1,
        tie_word_embeddings=False,
    )
    model = tools.finish(transformers.LlavaForConditionalGeneration(config), tokenizer)
    return Built(model, processor, [[(110, 40)], [(60, 83), (37, 41)], [(180, 120)]])


@family("mistral_large4")
def _mistral_large4() -> Built:
    import transformers

    tokenizer, processor, vision = _pixtral(2)
    text = {
        **tools.text_config(tokenizer, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2),
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "head_dim": 8,
        "index_topk": 1024,
        "index_head_dim": 16,
        "index_n_heads": 2,
    }
    config = transformers.MistralLarge4Config(
        vision_config=vision, text_config=text, image_token_index=processor.image_token_id, tie_word_embeddings=False
    )
    model = tools.finish(transformers.MistralLarge4ForConditionalGeneration(config), tokenizer)
    return Built(model, processor, [SIZES[0], SIZES[2]])


# ------------------------------------------------------------------------------------------------ Molmo 2

MOLMO = (
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<frame_start>",
    "<im_end>",
    "<frame_end>",
    "<im_low>",
)


def _molmo2(sizes: Any, side: int, margins: list[int], images: dict[str, Any], **settings: Any) -> Built:
    import transformers

    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = tools.tokenizer(*MOLMO, named=named)
    made = standin.take("molmo2.image_processing_molmo2", "Molmo2ImageProcessor")(
        size={"height": side, "width": side}, overlap_margins=margins, patch_size=8, **images
    )

    class Videos:
        model_input_names = ("pixel_values_videos", "video_token_pooling", "video_grids")
        pooling_size = (3, 3)
        max_fps = 2

    processor = tools.without_videos(transformers.Molmo2Processor)(
        image_processor=made,
        video_processor=Videos(),
        tokenizer=tokenizer,
        chat_template=tools.template("<|image|>", "<|video|>"),
        **settings,
    )
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    tower["head_dim"] = 8
    text = tools.text_config(tokenizer, additional_vocab_size=8)
    config = transformers.Molmo2Config(
        vision_config={**tower, "num_hidden_layers": 2, "image_size": [side, side], "patch_size": 8},
        adapter_config={**tower, "vision_feature_layer": [-1, -2], "text_hidden_size": 32},
        text_config=text,
        image_patch_id=tokenizer.convert_tokens_to_ids("<im_patch>"),
        image_start_token_id=tokenizer.convert_tokens_to_ids("<im_start>"),
        low_res_image_start_token_id=tokenizer.convert_tokens_to_ids("<low_res_im_start>"),
        image_end_token_id=tokenizer.convert_tokens_to_ids("<im_end>"),
        frame_start_token_id=tokenizer.convert_tokens_to_ids("<frame_start>"),
        frame_end_token_id=tokenizer.convert_tokens_to_ids("<frame_end>"),
        tie_word_embeddings=False,
    )
    model = tools.finish(transformers.Molmo2ForConditionalGeneration(config), tokenizer)
    return Built(model, processor, sizes, flatten=_pool_alike)


def _pool_alike(model: Any) -> None:
    """Let every patch of a cell count as much as the others: one that hardly does would shift the cell's centre."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "image_pooling_2d.q_proj" in name:
                weight.zero_()


@family("molmo2")
def _molmo2_odd() -> Built:
    # 7 patches a crop, of which 5 are new: all numbers of patches are odd with one crop, even with two.
    sizes = [[(150, 60)], [(60, 130)], [(33, 29), (90, 70)]]
    return _molmo2(sizes, 56, [1, 1], {"max_crops": 4})


@family("molmo2.pooling")
def _molmo2_pooling() -> Built:
    # Cells of 3 x 2 patches, which pad the first cells as well; rows without ends.
    sizes = [[(150, 60)], [(60, 130), (40, 40)]]
    return _molmo2(sizes, 56, [2, 1], {"max_crops": 6, "pooling_size": [3, 2]}, image_use_col_tokens=False)
