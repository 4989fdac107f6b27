"""Tiny random-weight models with processors: built from configs, no files, so that tests run in any clone."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import torch
from PIL import Image

# Words of the small tokenizer; everything else is spelt in bytes.
CORPUS = (
    "Describe this image. What is in the picture? A dog and a cat sit on the red sofa near the window. "
    "You are a helpful assistant. The dog looks at the cat. user assistant system USER ASSISTANT"
)
PROMPT = "What is in the picture?"
# Of several scripts, and long enough for a decoder to forget where it began.
TEXTS = [
    "The dog looks at the cat.",
    " leading and  double spaces\n\n\ttabs",
    "你好，世界 🙂👩‍👩‍👧 ñandú",
    "é" * 200 + " the dog" * 40 + "🙂" * 30,
]
QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def picture(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    """A smooth random image."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def prompt_text(found: Any, processor: Any) -> str:
    """What the tokens at the prompt's positions say."""
    return str(processor.tokenizer.decode(found.input_ids[found.layout.prompt]))


def hooks(model: Any) -> int:
    """Count this library's hooks on a model; transformers leaves some of its own."""
    return sum(
        type(getattr(hook, "__self__", None)).__module__.startswith("tam_fast")
        for module in model.modules()
        for hook in module._forward_hooks.values()
    )


@functools.cache
def byte_tokenizer() -> Any:
    """A byte-level BPE tokenizer with Qwen's special tokens: 256 bytes and some merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    raw.train_from_iterator([CORPUS] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_SPECIALS)})
    return tokenizer


@functools.cache
def piece_tokenizer() -> Any:
    """A tokenizer of pieces with leading spaces and bytes for the rest, as Llama's: ``<image>`` and its own marks."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    trained.train_from_iterator([CORPUS] * 4, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1]) if piece not in specials]
    vocabulary = {piece: index for index, piece in enumerate([*specials, *bytes_, *pieces])}
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<pad>"]})
    tokenizer.pad_token = "<pad>"
    return tokenizer


def _pil_class(name: str) -> Any:
    """Find an image processor that needs no torchvision; the first of transformers 5 are such without saying so."""
    import transformers

    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def qwen_processor(tokenizer: Any = None, *, name: str = "Qwen2VLProcessor", max_pixels: int = 12845056) -> Any:
    """A Qwen2-VL processor without a video part: 14-pixel patches, 2 x 2 merged."""
    from tam_fast.models.processors import image_only_processor_class

    images = _pil_class("Qwen2VLImageProcessor")(
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": 4 * 28 * 28, "longest_edge": max_pixels},
    )
    tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
    return image_only_processor_class(name)(images, tokenizer, chat_template=QWEN_TEMPLATE)


def llava_processor(tokenizer: Any = None, *, size: int = 56, patch: int = 14, strategy: str = "default") -> Any:
    """A LLaVA-1.5 processor: shortest side to `size`, centre crop; no chat template of its own."""
    from transformers import LlavaProcessor

    images = _pil_class("CLIPImageProcessor")(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return LlavaProcessor(
        images,
        piece_tokenizer() if tokenizer is None else tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
    )


def _finish(model: Any, seed: int) -> Any:
    """Give a model random weights large enough for words to differ, and greedy defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                scale = 1.0 if "embed" in name or "lm_head" in name else weight[0].numel() ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model.eval()


def qwen_model(
    processor: Any, *, version: str = "2", seed: int = 0, hidden: int = 32, layers: int = 2, dtype: Any = torch.float32
) -> Any:
    """A random Qwen2-VL (``"2"``) or Qwen2.5-VL (``"2.5"``) for a processor's tokens."""
    import transformers

    tokenizer = processor.tokenizer
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    mrope = [hidden // 4 - 2 * (hidden // 12), hidden // 12, hidden // 12]  # half of a head's channels
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": mrope},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
    if version == "2":
        vision |= {"embed_dim": 16, "hidden_size": hidden, "mlp_ratio": 2}
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
        make = transformers.Qwen2VLForConditionalGeneration
    else:
        vision |= {"hidden_size": 16, "out_hidden_size": hidden, "intermediate_size": 32, "fullatt_block_indexes": [1]}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
        make = transformers.Qwen2_5_VLForConditionalGeneration
    model = make(config).to(dtype)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return _finish(model, seed)


def llava_model(processor: Any, *, seed: int = 0, hidden: int = 32, layers: int = 2, strategy: str = "default") -> Any:
    """A random LLaVA-1.5 for a processor's tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=processor.image_processor.crop_size["height"],
        patch_size=processor.patch_size,
        projection_dim=16,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return _finish(model, seed)
