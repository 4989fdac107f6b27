"""Builders of grids: from what a processor made of the images to rasters of sequence positions.

A builder takes :class:`VisualInput` and returns the grids in the order in which they stand in the sequence. It checks
that grid cells and visual tokens are as many; where they are not, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tam_fast.layout import Grid
from tam_fast.models import ModelNotSupportedError

__all__ = ["GridBuilder", "VisualInput", "crop_box", "fixed_grids", "native_grids", "visual_mask"]


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


def _token_id(config: Any, kind: str) -> int | None:
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
    image, video = _token_id(config, "image"), _token_id(config, "video")
    if image is None:
        raise ModelNotSupportedError(
            f"model: expected config.image_token_id, which marks visual positions, got none for {config.model_type!r}"
        )
    mask = input_ids == image
    return mask if video is None else mask | (input_ids == video)


def _positions(source: VisualInput, kind: str, expected: Sequence[int], meaning: str) -> list[Tensor]:
    """Split the positions of image (or video) tokens into one run for each item, of the expected lengths."""
    token = _token_id(source.config, kind)
    found = torch.nonzero(source.input_ids == (-1 if token is None else token)).flatten()
    if found.numel() != sum(expected):
        raise ModelNotSupportedError(
            f"model: expected {' + '.join(map(str, expected)) or '0'} {kind} tokens ({meaning}) in the prompt of model "
            f"type {source.model_type!r}, got {found.numel()} with id {token}: processor and model do not fit together"
        )
    return list(found.split(list(expected)))


def native_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of models that keep an image's own size: ``image_grid_thw`` over ``spatial_merge_size`` squared.

    One grid an image; a video gives one a temporal patch, ``frame`` counting them. The processor scales an image to
    multiples of a cell and crops nothing, so that a grid covers its whole source.

    Parameters
    ----------
    source : VisualInput
        With ``image_grid_thw`` and ``video_grid_thw`` (n, 3) among the inputs, in patches.

    Returns
    -------
    list of Grid

    Raises
    ------
    ModelNotSupportedError
        If the visual tokens of the prompt are not as many as the cells.
    """
    vision = getattr(source.config, "vision_config", None)
    merge = getattr(vision, "spatial_merge_size", None)
    if merge is None:
        raise ModelNotSupportedError(
            f"model: expected config.vision_config.spatial_merge_size, got none for model type {source.model_type!r}"
        )
    grids: list[Grid] = []
    for kind in ("image", "video"):
        sizes = source.inputs.get(f"{kind}_grid_thw")
        shapes = [] if sizes is None else [(t, h // merge, w // merge) for t, h, w in torch.as_tensor(sizes).tolist()]
        cells = [t * h * w for t, h, w in shapes]
        for index, ((_, height, width), run) in enumerate(
            zip(shapes, _positions(source, kind, cells, f"{kind}_grid_thw / {merge}^2"), strict=True)
        ):
            frames = run.split(height * width)
            grids += [Grid(part, height, width, kind, index, frame) for frame, part in enumerate(frames)]
    return sorted(grids, key=lambda grid: int(grid.positions[0]))


# Vision towers whose patches, without the class token, are one row-major raster of the pixels they were given.
_RASTER_TOWERS = ("clip_vision_model", "siglip_vision_model")


def fixed_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of models that bring every image to one size: LLaVA-1.5's 24 x 24.

    The processor scales and crops about the centre; ``box`` says which part of the source is left.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (n, 3, H, W) among the inputs.

    Returns
    -------
    list of Grid
        One an image.

    Raises
    ------
    ModelNotSupportedError
        If the vision tower is of another kind, or the image tokens are not as many as its patches.
    """
    vision = source.config.vision_config
    if vision.model_type not in _RASTER_TOWERS:
        raise ModelNotSupportedError(
            f"model: expected a vision tower of type {' or '.join(_RASTER_TOWERS)} in model type "
            f"{source.model_type!r}, got {vision.model_type!r}: missing is the layout of its tokens"
        )
    pixels = source.inputs.get("pixel_values")
    images = len(source.image_sizes)
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[0] != images:
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ModelNotSupportedError(
            f"processor: expected pixel_values ({images}, 3, H, W) for {images} images, got {got}"
        )
    height, width = (int(side) // int(vision.patch_size) for side in pixels.shape[-2:])
    meaning = f"{height} x {width} patches an image"
    runs = _positions(source, "image", [height * width] * images, meaning)
    boxes = [crop_box(source.processor.image_processor, size) for size in source.image_sizes]
    return [
        Grid(run, height, width, "image", index, 0, box)
        for index, (run, box) in enumerate(zip(runs, boxes, strict=True))
    ]


def _field(size: Any, name: str) -> int | None:
    """Read one entry of a size, which is a dict or an object, by version."""
    value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    return None if value is None else int(value)


def crop_box(image_processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Work out which part of an image is left after a processor's resize and centre crop.

    Parameters
    ----------
    image_processor : transformers image processor
        Its ``do_resize``, ``size``, ``do_center_crop`` and ``crop_size`` are read.
    size : (width, height)
        Of the source, in pixels.

    Returns
    -------
    (x0, y0, x1, y1)
        Fractions of the source's width and height; beyond 0..1 where the crop is larger than the image and pads it.

    Raises
    ------
    ModelNotSupportedError
        If the processor resizes in a way that is not known here.
    """
    width, height = size
    if getattr(image_processor, "do_resize", False):
        target = image_processor.size
        shortest, fixed = _field(target, "shortest_edge"), (_field(target, "width"), _field(target, "height"))
        if shortest is not None and _field(target, "longest_edge") is None:
            short, long = sorted(size)
            # The longer side is cut off to whole pixels, as the processors do.
            other = int(shortest * long / short)
            width, height = (shortest, other) if width <= height else (other, shortest)
        elif fixed[0] is not None and fixed[1] is not None:
            width, height = fixed[0], fixed[1]
        else:
            raise ModelNotSupportedError(
                f"processor: expected a size with shortest_edge, or with height and width, got {target!r}"
            )
    if not getattr(image_processor, "do_center_crop", False):
        return (0.0, 0.0, 1.0, 1.0)
    crop = image_processor.crop_size
    edges: list[tuple[float, float]] = []
    for side, kept in ((width, _field(crop, "width")), (height, _field(crop, "height"))):
        if kept is None:
            raise ModelNotSupportedError(f"processor: expected a crop_size with height and width, got {crop!r}")
        first = (side - kept) // 2
        edges.append((first / side, (first + kept) / side))
    (x0, x1), (y0, y1) = edges
    return (x0, y0, x1, y1)
