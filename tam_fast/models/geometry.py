"""Where a model's visual tokens lie on its images: :func:`layout_of`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.maps.layout import Layout
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.family import Family
from tam_fast.models.layouts.source import VisualInput, token_id
from tam_fast.models.registry import family_of
from tam_fast.models.timestamps import without_timestamps
from tam_fast.models.turns import users_positions

__all__ = ["layout_of"]


def layout_of(
    model_or_config: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    image_sizes: Sequence[tuple[int, int]] | None = None,
) -> Layout:
    """Say where the visual tokens of a prompt lie on its images, and which tokens the user wrote.

    ::

        inputs = processor(images=[image], text=[text], return_tensors="pt")
        layout = tam_fast.layout_of(model.config, processor, inputs, image_sizes=[image.size])
        layout.grids[0].positions.reshape(layout.grids[0].shape)  # sequence positions as they lie on the image

    Nothing of the model runs; its configuration is enough.

    Parameters
    ----------
    model_or_config : transformers.PreTrainedModel or PreTrainedConfig
    processor : transformers.ProcessorMixin
        With the settings that the inputs were made with.
    inputs : mapping
        What the processor returned for one prompt, as tensors, arrays or lists: ``input_ids`` (1, P) or (P,), and what
        goes with the images.
    image_sizes : sequence of (width, height), optional
        Of the sources in pixels, in their order in the prompt. Models whose inputs do not say which part of an image a
        token shows need them: LLaVA, InternVL, Aya, Cohere 2, Janus, Llama 4, Kimi, GLM-5 and others.

    Returns
    -------
    Layout
        ``grids`` hold the positions that see pixels (cells of padding included) and no others: no row's end, no
        separator, no extra token under the image's id. ``prompt`` holds the text tokens of the last user turn: those
        that the user wrote, none of the chat template, of the processor or of control. ``answer_start`` is P.

    Raises
    ------
    ValueError
        If `image_sizes` are needed and missing, or are not those of the images; or there is more than one prompt.
    TypeError
        If an argument is something else.
    ModelNotSupportedError
        If the model type cannot have a layout, or inputs and processor do not fit together; says why.
    """
    config = getattr(model_or_config, "config", model_or_config)
    family = family_of(model_or_config)
    if not isinstance(inputs, Mapping) and not hasattr(inputs, "keys"):
        raise TypeError(f"inputs: expected what a processor returned, got {type(inputs).__name__}")
    if getattr(processor, "tokenizer", None) is None:
        raise TypeError(f"processor: expected a processor with tokenizer, got {type(processor).__name__}")
    ids = _ids(inputs)
    video = token_id(config, "video")
    if not family.videos and video is not None and bool((ids == video).any()):
        raise ModelNotSupportedError(
            f"inputs: expected no videos, whose layout is not known for model type {config.model_type!r}, got "
            f"{int((ids == video).sum())} tokens of id {video}"
        )
    source = VisualInput(config, processor, ids, _tensors(inputs), check_image_sizes(image_sizes))
    grids = _grids(family, source)
    sizes = source.image_sizes
    count = 1 + max((grid.source for grid in grids if grid.kind != "video"), default=-1)
    if sizes is not None and len(sizes) != count:
        raise ValueError(f"image_sizes: expected (width, height) of {count} images, got {len(sizes)}")
    words = users_positions(config, processor, family, ids)
    return Layout(grids, without_timestamps(processor, family, ids, grids, words), int(ids.numel()))


def _ids(inputs: Mapping[str, Any]) -> Tensor:
    """Read the token ids (P,) of one prompt."""
    if "input_ids" not in inputs:
        raise ValueError(f"inputs: expected input_ids, got {', '.join(sorted(inputs)) or 'nothing'}")
    ids = torch.as_tensor(inputs["input_ids"]).detach().to("cpu")
    if ids.is_floating_point() or ids.ndim not in (1, 2) or (ids.ndim == 2 and ids.shape[0] != 1) or not ids.numel():
        raise ValueError(f"inputs: expected input_ids (1, P) of one prompt, got {tuple(ids.shape)} of {ids.dtype}")
    return ids.flatten().to(torch.int64)


def _tensors(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Make tensors of arrays, and of lists of tensors or arrays of one shape; leave all else as it is."""
    return {name: _tensor(inputs[name]) for name in inputs.keys()}  # noqa: SIM118 (a BatchFeature iterates otherwise)


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value) if value.dtype.kind in "biuf" else value
    if isinstance(value, (list, tuple)) and value:
        parts = [_tensor(part) for part in value]
        if all(isinstance(part, Tensor) and part.shape == parts[0].shape for part in parts):
            return torch.stack(parts)
    return value


def _grids(family: Family, source: VisualInput) -> tuple[Grid, ...]:
    """Build the grids; where it is the images' sizes that do not fit, say so."""
    try:
        return tuple(family.grids(source))
    except ValueError as error:
        if source.image_sizes is None or str(error).startswith("image_sizes:"):
            raise
        try:
            family.grids(replace(source, image_sizes=None))
        except ValueError as other:
            if not str(other).startswith("image_sizes:"):
                raise error from None
        raise ModelNotSupportedError(
            f"image_sizes: expected (width, height) of the images that the inputs were made of, got "
            f"{list(source.image_sizes)}: {error}"
        ) from error


def check_image_sizes(image_sizes: Any) -> list[tuple[int, int]] | None:
    """Check sizes of images, (width, height) each."""
    if image_sizes is None:
        return None
    try:
        given = [tuple(size) for size in image_sizes]
        sizes = [(int(width), int(height)) for width, height in given]
        if given != sizes:
            raise ValueError("parts of pixels")
    except (TypeError, ValueError) as error:
        raise TypeError(f"image_sizes: expected a list of (width, height), got {image_sizes!r}") from error
    for size in sizes:
        if min(size) < 1:
            raise ValueError(f"image_sizes: expected widths and heights of at least 1, got {size}")
    return sizes
