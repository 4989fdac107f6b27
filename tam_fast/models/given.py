"""A prompt that was prepared elsewhere: :func:`given_inputs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tam_fast.models.geometry import layout_of
from tam_fast.models.inputs import PromptInputs, taken
from tam_fast.models.prompts import RenderedPrompt
from tam_fast.models.registry import family_of

__all__ = ["given_inputs"]


def given_inputs(
    model: Any, processor: Any, inputs: Mapping[str, Any], image_sizes: Sequence[tuple[int, int]] | None = None
) -> PromptInputs:
    """Take what a processor returned for one prompt.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    processor : transformers.ProcessorMixin
    inputs : mapping
        ``input_ids`` (1, P) or (P,), unpadded, and what goes with the images.
    image_sizes : sequence of (width, height), optional
        See :func:`tam_fast.layout_of`.

    Returns
    -------
    PromptInputs
        Its words are those of the last turn of a user, told from the ids alone.

    Raises
    ------
    ValueError, TypeError, ModelNotSupportedError
        As :func:`tam_fast.layout_of`; if the prompt is padded.
    """
    layout = layout_of(model, processor, inputs, image_sizes)
    ids = torch.as_tensor(inputs["input_ids"]).detach().to("cpu", torch.int64).flatten()
    mask = inputs["attention_mask"] if "attention_mask" in inputs else None  # noqa: SIM401 (a BatchFeature has no get)
    if mask is not None and not bool(torch.as_tensor(mask).bool().all()):
        raise ValueError(
            f"inputs: expected one prompt without padding, got an attention_mask with "
            f"{int((torch.as_tensor(mask) == 0).sum())} zeros"
        )
    found = {name: _batched(name, inputs[name], ids.numel()) for name in inputs.keys()}  # noqa: SIM118
    end = int(layout.prompt.max()) + 1 if layout.prompt.numel() else 0
    tail = processor.tokenizer.decode(ids[end:].tolist(), skip_special_tokens=False)
    return PromptInputs(
        family_of(model),
        {**taken(model, found), "input_ids": ids[None]},
        ids,
        RenderedPrompt(tail, (), False),
        (),
        layout,
    )


def _batched(name: str, value: Any, positions: int) -> Any:
    """Make a tensor (1, P) of what has a value for each position; leave all else as it is."""
    if name.endswith(("attention_mask", "token_type_ids")):
        made = torch.as_tensor(value)
        return made[None] if made.ndim == 1 and made.numel() == positions else made
    return value
