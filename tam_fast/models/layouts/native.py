"""Grids of models that keep an image's own size: Qwen2-VL and its successors."""

from __future__ import annotations

import torch

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput, visual_runs

__all__ = ["hunyuan_grids", "native_grids", "nemotron_grids", "video_llama3_grids"]


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
            zip(shapes, visual_runs(source, kind, cells, f"{kind}_grid_thw / {merge}^2"), strict=True)
        ):
            frames = run.split(height * width)
            grids += [Grid(part, height, width, kind, index, frame) for frame, part in enumerate(frames)]
    return sorted(grids, key=lambda grid: int(grid.positions[0]))


def video_llama3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Video-LLaMA 3."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def nemotron_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Nemotron-H Omni."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def hunyuan_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of HunYuan-VL."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")
