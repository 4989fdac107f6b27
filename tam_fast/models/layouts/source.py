"""What the builders of grids read: one prompt as the model takes it, and where its visual tokens are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError

__all__ = [
    "Box",
    "GridBuilder",
    "VisualInput",
    "field_of",
    "marked_id",
    "runs_of",
    "token_id",
    "visual_mask",
    "visual_runs",
]

Box: TypeAlias = tuple[float, float, float, float]
"""Part of a source: x0, y0, x1, y1 as fractions of its width and height."""


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
    image_sizes : sequence of (width, height), or None
        Of the images, in pixels, in their order in the prompt; None if they are not known.
    """

    config: Any
    processor: Any
    input_ids: Tensor
    inputs: Mapping[str, Any]
    image_sizes: Sequence[tuple[int, int]] | None

    @property
    def model_type(self) -> str:
        """The model type, for messages."""
        return str(self.config.model_type)

    @property
    def image_processor(self) -> Any:
        """The processor's part that reads images."""
        return getattr(self.processor, "image_processor", self.processor)

    def sizes(self) -> Sequence[tuple[int, int]]:
        """Return the sizes of the images (width, height).

        Raises
        ------
        ValueError
            If they are not known.
        """
        if self.image_sizes is None:
            raise ValueError(
                f"image_sizes: expected (width, height) of every image in pixels, got None: the inputs of model type "
                f"{self.model_type!r} do not say which part of an image a visual token shows"
            )
        return self.image_sizes

    def rows(self, name: str, width: int) -> list[list[int]]:
        """Read one of the inputs as whole numbers (n, width); [] where it is missing."""
        value = self.inputs.get(name)
        if value is None:
            return []
        found = torch.as_tensor(value)
        if found.ndim == 3 and found.shape[0] == 1:
            found = found[0]
        if found.ndim != 2 or found.shape[1] != width or found.is_floating_point():
            raise ModelNotSupportedError(
                f"processor: expected {name} (n, {width}) of whole numbers for model type {self.model_type!r}, got "
                f"{tuple(found.shape)} of {found.dtype}"
            )
        return [[int(number) for number in row] for row in found.tolist()]

    def refuse(self, expected: str, got: object) -> ModelNotSupportedError:
        """Make the error of inputs that do not fit the layout; to be raised."""
        return ModelNotSupportedError(
            f"model: expected {expected} in the prompt of model type {self.model_type!r}, got {got}: "
            "processor and model do not fit together"
        )


GridBuilder: TypeAlias = Callable[[VisualInput], Sequence[Grid]]

# Names under which configurations keep the id that marks visual positions, by kind.
_NAMES = ("{}_token_id", "{}_token_index", "{}_patch_id", "{}_patch_token_id")


def token_id(config: Any, kind: str) -> int | None:
    """Find the id that marks visual positions of a kind, image or video; older configurations call it an index."""
    for owner in (config, getattr(config, "vision_config", None)):  # Phi-4 keeps it with its tower
        for name in _NAMES:
            value = getattr(owner, name.format(kind), None)
            if isinstance(value, int) and not isinstance(value, bool):
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
    """Split the positions of image (or video) tokens into one run for each item, of the expected lengths.

    Parameters
    ----------
    source : VisualInput
    kind : "image" or "video"
    expected : sequence of int
        How many tokens each item has, in order.
    meaning : str
        Where these numbers come from, for the message.

    Returns
    -------
    list of (n,) int64

    Raises
    ------
    ModelNotSupportedError
        If there are more or fewer.
    """
    token = token_id(source.config, kind)
    found = torch.nonzero(source.input_ids == (-1 if token is None else token)).flatten()
    if found.numel() != sum(expected):
        raise ModelNotSupportedError(
            f"model: expected {' + '.join(map(str, expected)) or '0'} {kind} tokens ({meaning}) in the prompt of model "
            f"type {source.model_type!r}, got {found.numel()} with id {token}: processor and model do not fit together"
        )
    return list(found.split(list(expected)))


def runs_of(source: VisualInput, kind: str = "image") -> list[tuple[int, int]]:
    """List where the runs of neighbouring image (or video) tokens start and end, (start, stop)."""
    token = token_id(source.config, kind)
    places = torch.nonzero(source.input_ids == (-1 if token is None else token)).flatten()
    if not places.numel():
        return []
    cuts = torch.nonzero(places.diff() != 1).flatten() + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in places.tensor_split(cuts.tolist())]


def marked_id(source: VisualInput, token: str | None) -> int | None:
    """Find the id of a marker, such as a row's break, by its string; None if the tokenizer does not have it."""
    tokenizer = source.processor.tokenizer
    if not token:
        return None
    number = tokenizer.convert_tokens_to_ids(token)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if number is None or (number == unknown and token != getattr(tokenizer, "unk_token", None)):
        return None
    return int(number)


def field_of(value: Any, *names: str) -> int | None:
    """Read the first of some entries of a size or a setting, which is a mapping or an object, by version."""
    for name in names:
        found = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if found is not None:
            return int(found)
    return None
