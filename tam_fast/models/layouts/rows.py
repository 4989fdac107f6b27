"""Grids whose rows end in a token of their own: Pixtral, Mistral 3, Molmo 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.layouts.source import Box, VisualInput, visual_runs

__all__ = ["molmo2_grids", "pixtral_grids", "resized_grids"]


def pixtral_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Pixtral, Mistral 3 and Mistral Large 4: rows of cells, a break behind each but the last.

    An image is stretched to whole cells. Where it was not resized (``do_resize=False``), a grid stops short of what is
    less than a cell at its right and lower edge.

    Parameters
    ----------
    source : VisualInput
        With ``image_sizes`` (n, 2) among the inputs, heights and widths in pixels after resizing.

    Returns
    -------
    list of Grid
        One an image.

    Raises
    ------
    ModelNotSupportedError
        If the image tokens are not as many as the cells or do not stand in rows, or the processor crops.
    """
    return resized_grids(source, between=1)


def resized_grids(source: VisualInput, between: int) -> list[Grid]:
    """Build the grids of a Pixtral tower, whose rows stand so many tokens apart: one an image, by ``image_sizes``."""
    if getattr(source.image_processor, "do_center_crop", False):
        raise source.refuse("whole images", "do_center_crop")
    sizes = source.rows("image_sizes", 2)
    cell = int(source.config.vision_config.patch_size) * int(getattr(source.config, "spatial_merge_size", 1))
    shapes = [(height // cell, width // cell) for height, width in sizes]
    runs = visual_runs(source, "image", [rows * columns for rows, columns in shapes], f"image_sizes / {cell}^2")
    grids = []
    for index, (run, (rows, columns), (height, width)) in enumerate(zip(runs, shapes, sizes, strict=True)):
        positions = run.view(rows, columns)
        if not _are_rows(positions) or bool((positions[1:, 0] - positions[:-1, -1] != between + 1).any()):
            raise source.refuse(f"{rows} rows of {columns} image tokens, {between} other between them", "others")
        box = (0.0, 0.0, columns * cell / width, rows * cell / height)
        grids.append(Grid(run, rows, columns, "image", index, 0, box))
    return grids


def _are_rows(positions: Tensor) -> bool:
    """Whether the cells (H, W) of each row are neighbours in the sequence."""
    return not bool((positions.diff(dim=1) != 1).any())


def molmo2_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Molmo 2: the whole image, then its crops, joined to one raster of high resolution.

    Crops overlap, but each patch is used once. A cell pools patches of the vision tower; where they are not a whole
    number of cells, the last ones reach over the image's edge. A frame of a video is one such raster.

    Parameters
    ----------
    source : VisualInput
        With ``image_grids`` (n, 4) and ``image_token_pooling`` (cells, patches a cell), or ``video_grids`` (n, 3) and
        ``video_token_pooling``, among the inputs.

    Returns
    -------
    list of Grid
        Of each image one of kind "overview" and one "tile"; of each frame of a video one "video".

    Raises
    ------
    ModelNotSupportedError
        If the image tokens are not as many as the cells, or do not stand in rows.
    """
    shapes: list[tuple[int, int]] = []
    kinds: list[tuple[str, int, int]] = []  # kind, source, frame
    for index, (height, width, rows, columns) in enumerate(source.rows("image_grids", 4)):
        shapes += [(height, width), (rows, columns)]
        kinds += [("overview", index, 0), ("tile", index, 0)]
    name, part = ("image", source.image_processor) if shapes else ("video", _video_processor(source))
    for index, (frames, rows, columns) in enumerate(source.rows("video_grids", 3)):
        if name == "image":
            raise source.refuse("images or videos", "both")
        shapes += [(rows, columns)] * frames
        kinds += [("video", index, frame) for frame in range(frames)]
    cells = [rows * columns for rows, columns in shapes]
    runs = visual_runs(source, "image", cells, f"{name}_grids")
    pooled = _pooled(source, f"{name}_token_pooling", cells, getattr(part, "pooling_size", None))
    grids = []
    for run, (rows, columns), (kind, index, frame), slots in zip(runs, shapes, kinds, pooled, strict=True):
        if not _are_rows(run.view(rows, columns)):
            raise source.refuse(f"{rows} rows of {columns} image tokens", "others")
        box = _pooled_box(slots.view(rows, columns, *slots.shape[1:]))
        grids.append(Grid(run, rows, columns, kind, index, frame, box))
    return grids


def _video_processor(source: VisualInput) -> Any:
    return getattr(source.processor, "video_processor", None)


def _pooled(source: VisualInput, name: str, cells: Sequence[int], size: Any) -> Sequence[Tensor]:
    """Read which slots of every grid's cells hold a patch: (cells, h, w) bool each."""
    high, wide = (2, 2) if size is None else (int(side) for side in size)
    slots = source.inputs.get(name)
    found = torch.as_tensor([] if slots is None else slots)
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if tuple(found.shape) != (sum(cells), high * wide):
        raise source.refuse(f"{name} ({sum(cells)}, {high} * {wide})", tuple(found.shape))
    slots_of: Sequence[Tensor] = (found >= 0).cpu().view(-1, high, wide).split(list(cells))
    return slots_of


def _pooled_box(slots: Tensor) -> Box:
    """Work out a raster's box from the slots (H, W, h, w) of its cells that hold a patch; the others are padding."""
    edges: list[tuple[float, float]] = []
    for taken in (slots[0].any(1).flatten(), slots[:, 0].any(2).flatten()):
        held = torch.nonzero(taken).flatten()
        first, patches = int(held[0]), int(held.numel())
        edges.append((-first / patches, (taken.numel() - first) / patches))
    (x0, x1), (y0, y1) = edges
    return (x0, y0, x1, y1)
