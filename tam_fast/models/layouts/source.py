"""What the builders of grids read: one prompt as the model takes it, and where its visual tokens are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tam_fast.maps.layout import Grid
from tam_fast.models.errors import ModelNotSupportedError

__all__ = ["GridBuilder", "VisualInput", "token_id", "visual_mask", "visual_runs"]


@dataclass(frozen=True)
class VisualInput:
    """One prompt as the model takes it, and what it was made of.

    Attributes
    ----------
    config : transformers.PreTrainedConfig
    processor : transformers.ProcessorMixin
    input_ids : (P,) int64, CPU
    inputs : mapping of str to Tensor
        All that the processor returned.
    image_sizes : sequence of (width, height)
        Of the images, in pixels, in their order in the prompt.
    """

    config: Any
    processor: Any
    input_ids: Tensor
    inputs: Mapping[str, Any]
    image_sizes: Sequence[tuple[int, int]]

    @property
    def model_type(self) -> str:
        """The model type, for messages."""
        return str(self.config.model_type)


GridBuilder: TypeAlias = Callable[[VisualInput], list[Grid]]


def token_id(config: Any, kind: str) -> int | None:
    """Find the id that marks visual positions; older configurations call it an index."""
    for name in (f"{kind}_token_id", f"{kind}_token_index"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    return None


def visual_mask(config: Any, input_ids: Tensor) -> Tensor:
    """Mark the visual positions of a sequence: the test each model's own forward pass makes.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        With ``image_token_id`` (or ``image_token_index``), and ``video_token_id`` for models of video.
    input_ids : (P,) int64

    Returns
    -------
    (P,) bool

    Raises
    ------
    ModelNotSupportedError
        If the configuration names no image token.
    """
    image, video = token_id(config, "image"), token_id(config, "video")
    if image is None:
        raise ModelNotSupportedError(
            f"model: expected config.image_token_id, which marks visual positions, got none for {config.model_type!r}"
        )
    mask = input_ids == image
    return mask if video is None else mask | (input_ids == video)


def visual_runs(source: VisualInput, kind: str, expected: Sequence[int], meaning: str) -> list[Tensor]:
    """Split the positions of image (or video) tokens into one run for each item, of the expected lengths."""
    token = token_id(source.config, kind)
    found = torch.nonzero(source.input_ids == (-1 if token is None else token)).flatten()
    if found.numel() != sum(expected):
        raise ModelNotSupportedError(
            f"model: expected {' + '.join(map(str, expected)) or '0'} {kind} tokens ({meaning}) in the prompt of model "
            f"type {source.model_type!r}, got {found.numel()} with id {token}: processor and model do not fit together"
        )
    return list(found.split(list(expected)))
