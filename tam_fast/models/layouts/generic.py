"""Grids of models that nobody has looked at: what the inputs and the processor's own sizes allow to be assumed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.native import native_grids
from tam_fast.models.layouts.source import VisualInput, runs_of, token_id, visual_runs

__all__ = ["generic_grids"]


def generic_grids(source: VisualInput) -> Sequence[Grid]:
    """Build the grids of a model type without a layout of its own, and warn of what was assumed.

    ``image_grid_thw`` with a merge size makes native grids. Else every image must have the same number of tokens, and
    that number must be the processed picture's cells for one whole size of a cell; each image is then one row-major
    raster over all of it.

    Parameters
    ----------
    source : VisualInput

    Returns
    -------
    sequence of Grid

    Raises
    ------
    ModelNotSupportedError
        If the numbers allow no such reading; says which were found.
    """
    vision = getattr(source.config, "vision_config", None)
    if source.inputs.get("image_grid_thw") is not None and getattr(vision, "spatial_merge_size", None):
        grids = native_grids(source)
        _warn(source, "image_grid_thw over spatial_merge_size squared, row-major, over the whole image")
        return grids
    runs = runs_of(source)
    total = sum(stop - start for start, stop in runs)
    images = len(source.image_sizes) if source.image_sizes is not None else len(runs)
    pixels = source.inputs.get("pixel_values")
    shape = None
    if isinstance(pixels, Tensor) and pixels.ndim >= 4:
        shape = int(pixels.shape[-2]), int(pixels.shape[-1])
    if images and total and total % images == 0:
        count = total // images
        cells = _cells(count, shape)
        if cells is not None:
            _warn(source, f"one row-major raster of {cells[0]} x {cells[1]} an image, over the whole image")
            return [
                Grid(run, *cells, "image", index)
                for index, run in enumerate(visual_runs(source, "image", [count] * images, "equal parts"))
            ]
    raise ModelNotSupportedError(
        f"model: token activation maps of model type {source.model_type!r} need a layout: expected visual tokens that "
        f"are a raster of the processed picture{'' if shape is None else f' of {shape[0]} x {shape[1]} pixels'}, got "
        f"{total} tokens of id {token_id(source.config, 'image')} in {len(runs)} runs for {images} images; "
        "tam_fast.models.register() takes a layout"
    )


def _cells(count: int, pixels: tuple[int, int] | None) -> tuple[int, int] | None:
    """Find (height, width) of a raster of so many cells, for one size of a cell."""
    side = math.isqrt(count)
    if pixels is None or pixels[0] == pixels[1]:
        return (side, side) if side * side == count else None
    # Cells as high as wide: height / width is the picture's.
    cell = math.sqrt(pixels[0] * pixels[1] / count)
    height, width = round(pixels[0] / cell), round(pixels[1] / cell)
    whole = height * width == count and abs(pixels[0] / height - pixels[1] / width) < 1e-6
    return (height, width) if whole else None


def _warn(source: VisualInput, what: str) -> None:
    warnings.warn(
        f"model type {source.model_type!r} has no verified layout: assumed is {what}. Check a few maps, or say it by "
        "tam_fast.models.register()",
        stacklevel=2,
    )
