"""Which layout a model type has: a table from ``config.model_type`` to :class:`Family`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts import GridBuilder, fixed_grids, native_grids

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True)
class Family:
    """What is particular about a family of models.

    Attributes
    ----------
    title : str
        Its name, for people.
    grids : callable
        Builds the grids of one input, see :mod:`tam_fast.models.layouts`.
    chat_template : str or None
        The documented prompt as a Jinja template, for processors that come without one.
    answer_prefix : str
        What stands between the prompt and the first word of an answer: ``" "`` where the prompt ends in a colon.
    """

    title: str
    grids: GridBuilder
    chat_template: str | None = None
    answer_prefix: str = ""


# "USER: <image>\nQuestion ASSISTANT: Answer</s>", the prompt of LLaVA-1.5's model card; images of a turn come first.
_LLAVA_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{% if content is string %}{% set content = [{'type': 'text', 'text': content}] %}{% endif %}"
    "{% if message['role'] == 'system' %}{% for part in content %}{{ part['text'] }} {% endfor %}"
    "{% elif message['role'] == 'user' %}USER: "
    "{% for part in content if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% else %}ASSISTANT: {% for part in content %}{{ part['text'] }}{% endfor %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

_QWEN_VL = Family("Qwen2-VL", native_grids)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qwen2_vl": _QWEN_VL,
        "qwen2_5_vl": _QWEN_VL,
        "llava": Family("LLaVA-1.5", fixed_grids, _LLAVA_TEMPLATE, " "),
    }
)

_NO_RASTER = "its visual tokens are learnt queries over the whole image and form no raster"
_NO_VISUAL_STREAM = "its decoder has no visual positions (the image is only seen through cross-attention)"
_NOT_AUTOREGRESSIVE = "it does not generate token by token, so that no token is predicted from the ones before it"

# Models whose kind does not allow token activation maps, and why.
IMPOSSIBLE: Mapping[str, str] = MappingProxyType(
    {
        "blip-2": _NO_RASTER,
        "instructblip": _NO_RASTER,
        "instructblipvideo": _NO_RASTER,
        "idefics2": _NO_RASTER,
        "mllama": _NO_VISUAL_STREAM,
        "t5gemma2": _NO_VISUAL_STREAM,
        "florence2": _NO_VISUAL_STREAM,
        "diffusion_gemma": _NOT_AUTOREGRESSIVE,
    }
)

_NATIVE = "a test of its native grid with the model's own grid sizes"
_TIMESTAMPS = "the native grid with video frames divided by timestamps"
_SQUARE = "the fixed grid with this processor's crops"
_TILES = "the order of tiles and overview"
_BREAKS = "rows with break tokens"
_ANYRES = "the base image first, then crops with newline embeddings"

# Models that could be explained once their layout is written: what is missing.
MISSING: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp"), _TIMESTAMPS),
        **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v", "glm5_next", "kimi_k25"), _TIMESTAMPS),
        **dict.fromkeys(("minimax_m3_vl", "ernie4_5_vl_moe", "paddleocr_vl"), _NATIVE),
        **dict.fromkeys(("paligemma", "gemma3", "vipllava"), _SQUARE),
        "gemma4": "the pooled grid that keeps the image's aspect",
        **dict.fromkeys(("mistral3", "molmo2"), _BREAKS),
        **dict.fromkeys(("internvl", "idefics3", "smolvlm", "llama4", "aya_vision"), _TILES),
        **dict.fromkeys(("lfm2_vl", "cohere2_vision"), _TILES),
        **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision", "granite4_vision"), _ANYRES),
        **dict.fromkeys(("minicpmv4_6", "minicpmv4_7"), "slices of unequal size after the overview"),
        "deepseek_ocr2": "local and global views with a separator token",
    }
)


def family_of(model: Any) -> Family:
    """Look up the family of a model by its ``config.model_type``.

    Parameters
    ----------
    model : transformers.PreTrainedModel

    Returns
    -------
    Family

    Raises
    ------
    ModelNotSupportedError
        If the model type has no layout here; says what is missing, or why there can be none.
    TypeError
        If `model` is no transformers model.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model_type, str):
        raise TypeError(f"model: expected a transformers model with config.model_type, got {type(model).__name__}")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    prefix = f"model: token activation maps of model type {model_type!r} ({type(model).__name__})"
    if model_type in IMPOSSIBLE:
        raise ModelNotSupportedError(f"{prefix} are not possible: {IMPOSSIBLE[model_type]}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelNotSupportedError(f"{prefix} are not possible: {_NO_VISUAL_STREAM}")
    missing = MISSING.get(model_type, "a layout that says where its visual tokens are and what raster they form")
    raise ModelNotSupportedError(
        f"{prefix} are not supported yet: missing is {missing}. Supported: {', '.join(sorted(FAMILIES))}"
    )
