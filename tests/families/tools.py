"""What builders of tiny models share: tokenizers of bytes, weights drawn anew, configurations cut short."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

# A chat whose marks are special tokens; each family's placeholder goes where an image is.
TEMPLATE = (
    "{{% for message in messages %}}<|im_start|>{{{{ message['role'] }}}}\n"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{image}"
    "{{% elif part['type'] == 'video' %}}{video}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}"
    "{{% endif %}}"
    "<|im_end|>\n{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)


def version() -> tuple[int, int]:
    """The version of transformers, major and minor."""
    import transformers

    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


def template(image: str, video: str = "") -> str:
    """A chat template with a family's placeholders."""
    return TEMPLATE.format(image=image, video=video)


def tokenizer(*specials: str, bos: str | None = None, named: dict[str, str] | None = None) -> Any:
    """A byte-level tokenizer without merges: 256 bytes and special tokens.

    `named` gives the tokenizer attributes of these names, such as ``{"image_token": "<image>", "boi_token": "<boi>"}``.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    own = ["<pad>", "<|im_start|>", "<|im_end|>", *([bos] if bos else []), *(named or {}).values(), *specials]
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(own)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        bos_token=bos,
        clean_up_tokenization_spaces=False,
        **({} if named is None else {"extra_special_tokens": named}),
    )


def ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    """Ids of tokens under the names that a configuration has for them."""
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def redraw(model: Any, seed: int = 0, spread: float = 1.0) -> Any:
    """Draw all weights of more than one dimension anew, with std 1 / sqrt(fan-in); evaluation mode, greedy."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                scale = 1.0 if re.search(r"embed_tokens|lm_head", name) else spread * weight[0].numel() ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model.eval()


def finish(model: Any, tokenizer: Any, seed: int = 0) -> Any:
    """Draw a model's weights and give it the ends of its tokenizer."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = None
    model.generation_config.do_sample = False
    return redraw(model, seed)


def text_config(tokenizer: Any, *, hidden: int = 32, layers: int = 2, **more: Any) -> dict[str, Any]:
    """What most decoders' configurations take, tiny."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": hidden // 2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def without_videos(base: Any) -> Any:
    """A processor class that takes any object for its video processor (which needs torchvision) and its ears."""

    def check(self: Any, name: str, argument: Any) -> Any:
        if name in ("video_processor", "feature_extractor"):
            return type(argument)
        return super(cls, self).check_argument_for_proper_class(name, argument)

    cls: Any = type(base.__name__, (base,), {"check_argument_for_proper_class": check, "__module__": base.__module__})
    return cls


def configured(config: Any, values: Iterable[tuple[str, Any]]) -> Any:
    """Set fields of a configuration after it was made: those that it computes, or that depend on the depth."""
    for name, value in values:
        setattr(config, name, value)
    return config
