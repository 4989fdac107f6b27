"""Several prompts in one call of a model: whose may be joined, how, and what the model did for each of them.

Whether a model does for each row of a padded batch what it does for that prompt alone depends on how it finds
positions, on what its layers do with padding, and on whether it deals its images out to the rows by their placeholders.
For the model types of :data:`JOINED` this was tried; for all others :func:`why_apart` has a reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tam_fast.models.capture import states_of
from tam_fast.models.family import Family
from tam_fast.models.heads import Head
from tam_fast.models.recording import Recording, Watch

__all__ = ["JOINED", "WITH_VIDEOS", "Side", "fits", "join", "last_positions", "record_rows", "why_apart"]

Side: TypeAlias = Literal["left", "right"]
"""Where the padding of a batch is."""

# Of each model type here it was tried, with prompts of different lengths, with numbers and sizes of images that differ
# and with none: a batch gives the states of one by one, left-padded while it generates and right-padded in one pass.
JOINED = frozenset(
    """
    aya_vision chameleon cohere2_vision cohere_compass cosmos3_edge cosmos3_omni deepseek_vl deepseek_vl_hybrid emu3
    ernie4_5_vl_moe exaone4_5 fuyu gemma3 gemma4 gemma4_unified glm46v glm4v glm4v_moe glm_ocr glmga got_ocr2
    granite4_vision granite_docling hyperclovax_vision_v2 idefics3 inkling2 inkling_mm_model internvl janus kimi_k25
    lfm2_vl lfm3_vl lighton_ocr llama4 llava llava_next llava_next_video llava_onevision mistral3 muse_glimmer
    muse_spark nemotron_h_omni ovis2 paddleocr_vl paligemma phi4_multimodal pp_chart2table qianfan_ocr
    qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe
    shieldgemma2 smolvlm step3p7 video_llama_3 video_llava vipllava
    """.split()  # noqa: SIM905
)
"""Model types whose prompts are run together.

Not among them: sparse attention (``indexed_attention``, MiniMax's), which chooses blocks or positions by where they
stand in the padded sequence; Hunyuan-VL and Molmo 2, whose states differ; MiniCPM's processors, whose images are one
long row; Unlimited-OCR, whose cache has one prompt length for all.
"""

# And with videos beside images. Those of GLM stand in the prompt as images do, and are told apart for the whole batch.
WITH_VIDEOS = frozenset(
    """
    cohere_compass cosmos3_omni exaone4_5 gemma4 hyperclovax_vision_v2 internvl lfm3_vl llava_onevision qwen2_5_vl
    qwen2_vl qwen3_5 qwen3_5_moe qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe video_llama_3
    """.split()  # noqa: SIM905
)
"""Those of them whose prompts with videos are, too."""

# A first dimension of 1, images in the second: prompts have one number of images, and each has some.
_STACKED = frozenset({"granite_docling", "idefics3", "smolvlm"})
# Kinds of layers, and ways to attend, that were among them.
_LAYERS = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "linear_attention", "conv", "hybrid", "hybrid_sliding"}
    | {"moe", "mlp"}
)
_ATTENTION = frozenset({"eager", "sdpa"})


def why_apart(model: Any, videos: bool = False) -> str:
    """Say why prompts of a model are not run together, '' if they are.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    videos : bool
        Whether they have videos.
    """
    config = model.config
    text = config.get_text_config(decoder=True)
    if config.model_type not in (WITH_VIDEOS if videos else JOINED):
        return f"batches of {config.model_type} {'with videos ' if videos else ''}were not proven"
    for kind in sorted(set(getattr(text, "layer_types", None) or ()) - _LAYERS):
        return f"batches were not proven with layers of kind {kind!r}"
    found = getattr(text, "_attn_implementation", None) or getattr(config, "_attn_implementation", None)
    if found is not None and found not in _ATTENTION:
        return f"batches were not proven with attention {found!r}"
    return ""


def _is_per_position(name: str, value: Any, shape: torch.Size) -> bool:
    """Whether an input has a value for each position of the sequence."""
    names = name.endswith(("attention_mask", "token_type_ids")) and not name.startswith(("pixel", "image", "video"))
    return (name == "input_ids" or names) and isinstance(value, Tensor) and value.shape == shape


def fits(one: Mapping[str, Any], other: Mapping[str, Any], model_type: str) -> bool:
    """Whether the inputs of two prompts can be joined.

    Parameters
    ----------
    one, other : mapping
        What the processor returned for each.
    model_type : str

    Returns
    -------
    bool
        True where what both have is a tensor, of one dtype and of the same shape but for the first dimension (of
        Idefics and its kin in that too), and what only one has goes with images.
    """
    shapes = one["input_ids"].shape, other["input_ids"].shape
    for name in one.keys() | other.keys():
        values = one.get(name), other.get(name)
        if name == "attention_mask" and any(value is None for value in values):
            continue  # all is attended to
        flat = [_is_per_position(name, value, shape) for value, shape in zip(values, shapes, strict=True)]
        if all(flat):
            continue
        there = [value for value in values if value is not None]
        if any(flat) or not all(isinstance(value, Tensor) and value.ndim for value in there):
            return False
        if model_type in _STACKED and (len(there) < 2 or there[0].shape != there[1].shape or there[0].shape[0] != 1):
            return False
        if len(there) == 2 and (there[0].shape[1:] != there[1].shape[1:] or there[0].dtype != there[1].dtype):
            return False
    return True


def join(rows: Sequence[Mapping[str, Any]], fill: Sequence[int], family: Family, side: Side) -> dict[str, Any]:
    """Join the inputs of some prompts that fit each other.

    Parameters
    ----------
    rows : sequence of mapping
        Inputs of one prompt each, ``input_ids`` (1, P_b) and others, on one device.
    fill : sequence of int
        The token id that each row is padded with. A token of the prompt itself leaves penalties as they are, which
        count the ids that there were.
    family : Family
        Says what text is in ``token_type_ids`` and the like.
    side : "left" or "right"

    Returns
    -------
    dict of str to object
        Ids and all that has a value for each position (B, P), padding not attended to; of all else the rows', one
        behind the other in the first dimension.
    """
    shapes = [row["input_ids"].shape for row in rows]
    width = max(shape[1] for shape in shapes)
    masks = [row.get("attention_mask") for row in rows]
    rows = [
        {**row, "attention_mask": torch.ones_like(row["input_ids"]) if mask is None else mask}
        for row, mask in zip(rows, masks, strict=True)
    ]
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        if _is_per_position(name, values[0], shapes[0]):
            text = 0 if name.endswith("attention_mask") else family.answer_values.get(name, 0)
            padded = []
            for value, shape, token_id in zip(values, shapes, fill, strict=True):
                extra = width - shape[1]
                at = token_id if name == "input_ids" else text
                pads = (extra, 0) if side == "left" else (0, extra)
                padded.append(torch.nn.functional.pad(value, pads, value=at))
            values = padded
        joined[name] = torch.cat(values)
    return joined


@contextlib.contextmanager
def last_positions(module: torch.nn.Module, lengths: Sequence[int]) -> Iterator[None]:
    """Let an lm_head see no more of each row than its last position, inside a ``with`` block.

    Parameters
    ----------
    module : torch.nn.Module
    lengths : sequence of int
        Positions of each row, padding behind them not counted.
    """

    def choose(_module: Any, args: tuple[Any, ...]) -> Any:
        if not args or not isinstance(args[0], Tensor) or args[0].ndim != 3 or args[0].shape[0] != len(lengths):
            return None
        states = args[0]
        places = torch.tensor(lengths, device=states.device) - 1
        return (states[torch.arange(len(lengths), device=states.device), places][:, None], *args[1:])

    handle = module.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


class record_rows(Watch):
    """Record what a model does for each row of a batch, inside a ``with`` block, in the thread that entered it.

    Every row has a :class:`Recording` of its own, which sees what it would if the row were alone: its states without
    the padding's, its logits, the tokens it was fed. So whatever is proven for one prompt is proven for each of them.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    head : Head
    count : int
        Candidates a step.
    lengths : sequence of int
        Positions of each row's prompt.
    side : "left" or "right"
        Where the padding is. With ``"right"`` there is one call only.

    Raises
    ------
    TypeError
        If `model` has no ``get_decoder()``.
    """

    def __init__(self, model: Any, head: Head, count: int, lengths: Sequence[int], side: Side = "left") -> None:
        super().__init__(model, head)
        self._lengths, self._side = list(lengths), side
        self._rows = [Recording(count, prompt_length=length) for length in lengths]
        self._seen = 0  # positions, with the padding

    def __enter__(self) -> list[Recording]:
        self._watch()
        return self._rows

    def _decoded(self, module: Any, _inputs: Any, output: Any) -> None:
        if not self._is_own():
            return
        states = getattr(output, "last_hidden_state", None)
        states = output[0] if states is None and isinstance(output, tuple) and output else states
        try:
            if isinstance(states, Tensor) and states.ndim == 3:
                flat = states_of((states.reshape(1, -1, states.shape[-1]),), module)
                self._states = flat.view(*states.shape[:2], -1)
            else:
                states_of(output, module)  # says what is wrong
        except (TypeError, ValueError) as error:
            self._fail(str(error).removeprefix("model: "))

    def _take(self, states: Tensor | None, scored: Tensor | None, logits: Any) -> None:
        count = len(self._rows)
        if states is None or states.shape[0] != count:
            got = "the decoder was not seen" if states is None else f"there are states of {states.shape[0]} rows"
            self._fail(f"in a call of {type(self._model).__name__} {got}")
            return
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[0] != count:
            self._fail(f"in a call of {type(self._model).__name__} there are no logits ({count}, n, V)")
            return
        logits = logits.detach()[:, -1]
        scored = logits if scored is None or scored.shape[0] != count else scored
        fed = self._fed if isinstance(self._fed, Tensor) and self._fed.shape[0] == count else None
        width = max(self._lengths)
        for b, (row, length) in enumerate(zip(self._rows, self._lengths, strict=True)):
            if self._side == "right":
                some = states[b, :length]
            else:
                some = states[b, max(0, width - length - self._seen) :]
            if len(some):
                row.take(some, scored[b], logits[b], None if fed is None else fed[b : b + 1], keep=True)
        self._seen += states.shape[1]

    def _fail(self, why: str) -> None:
        for row in self._rows:
            row.trouble = row.trouble or why
