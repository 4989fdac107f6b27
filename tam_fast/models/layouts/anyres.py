"""The whole image first, then a canvas of tiles as one raster with newline embeddings: LLaVA-NeXT and its kin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import Box, VisualInput, field_of, visual_runs

__all__ = ["best_canvas", "granite4_grids", "llava_next_grids", "llava_onevision_grids", "uncut"]

_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def llava_next_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of LLaVA-NeXT: the whole image, stretched to a tile, then the canvas of tiles as one raster.

    The image is fitted into the canvas and centred; rows or columns of cells that hold only padding are cut off. What
    is left may hold a little of the padding, so that the raster's box reaches beyond the image. Each of its rows ends
    in a newline, which is no cell.

    Parameters
    ----------
    source : VisualInput
        With ``image_sizes`` (n, 2), heights and widths in pixels, among the inputs; else with the images' sizes.

    Returns
    -------
    list of Grid
        Of each image one of kind "overview" and one of kind "tile"; of an image so thin that no cell of its canvas is
        left one "image".

    Raises
    ------
    ModelNotSupportedError
        If processor and model differ in tiles or canvases, there are more or fewer visual tokens, or there are videos.
    """
    visual_runs(source, "video", [], "no layout of videos")
    return _grids(source, _patches(source))


def granite4_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Granite 4 Vision: those of LLaVA-NeXT, of patches that a window Q-Former has made fewer.

    Parameters
    ----------
    source : VisualInput
        As for :func:`llava_next_grids`.

    Returns
    -------
    list of Grid

    Raises
    ------
    ModelNotSupportedError
        As :func:`llava_next_grids`; and if patches are not a whole number of windows.
    """
    patches, rate = _patches(source), Fraction(source.config.downsample_rate)
    if patches * rate % 1:
        raise ModelNotSupportedError(
            f"model: expected patches a side that are a multiple of {rate.denominator} (config.downsample_rate), got "
            f"{patches}"
        )
    return _grids(source, int(patches * rate))


def llava_onevision_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of LLaVA-OneVision: those of LLaVA-NeXT, where a raster that is too large is shrunk.

    More cells than ``vision_aspect_ratio`` allows are interpolated to fewer, over the same part of the image. Several
    images that were given as one list for one prompt are not tiled: each is one raster and a newline. Frames of a video
    have half as many cells a side, and a newline stands behind the last.

    Parameters
    ----------
    source : VisualInput
        As for :func:`llava_next_grids`; ``batch_num_images`` says how many images were given together.
        ``pixel_values_videos`` (n, frames, 3, side, side) holds the videos.

    Returns
    -------
    list of Grid

    Raises
    ------
    ModelNotSupportedError
        As :func:`llava_next_grids`, but for videos.
    """
    cells = _patches(source)
    digits = str(source.config.vision_aspect_ratio).rpartition("_")[2]
    if not digits.isdecimal():
        raise ModelNotSupportedError(
            f"model: expected config.vision_aspect_ratio as 'anyres_max_9', got {source.config.vision_aspect_ratio!r}"
        )
    together = source.inputs.get("batch_num_images")
    alone = None if together is None else [count == 1 for count in _numbers(together) for _ in range(count)]
    grids = _grids(source, cells, int(digits), alone) + _videos(source)
    return sorted(grids, key=lambda grid: int(grid.positions[0]))


def _numbers(value: Any) -> list[int]:
    return [int(number) for number in torch.as_tensor(value).flatten()]


def _patches(source: VisualInput) -> int:
    """Count the patches on a tile's side."""
    vision = source.config.vision_config
    return int(vision.image_size) // int(vision.patch_size)


def _grids(
    source: VisualInput, cells: int, limit: int | None = None, alone: Sequence[bool] | None = None
) -> list[Grid]:
    """Build the grids of images whose tiles have so many cells a side.

    `limit` is how many tiles' cells a raster may have before it is shrunk; `alone` says which images are tiled.
    """
    sizes = source.rows("image_sizes", 2) or [[height, width] for width, height in source.sizes()]
    alone = [True] * len(sizes) if alone is None else alone
    if len(alone) != len(sizes):
        raise source.refuse(f"batch_num_images of {len(sizes)} images", len(alone))
    _check_tiles(source)
    whole = cells * cells
    rasters: list[tuple[int, int, Box]] = []
    counts: list[int] = []
    for (height, width), tiled in zip(sizes, alone, strict=True):
        rows, columns, box = _raster(source, (height, width), cells, limit) if tiled else (1, 0, _WHOLE)
        rasters.append((rows, columns, box))
        counts.append(whole + rows * (columns + 1))
    runs = visual_runs(source, "image", counts, f"{cells} x {cells} of the whole image, then rows with a newline")
    grids: list[Grid] = []
    for index, (run, (rows, columns, box)) in enumerate(zip(runs, rasters, strict=True)):
        kind = "overview" if rows and columns else "image"
        grids.append(Grid(run[:whole], cells, cells, kind, index, 0, _seen(source)))
        if rows and columns:
            table = run[whole:].reshape(rows, columns + 1)
            grids.append(Grid(table[:, :columns].reshape(-1), rows, columns, "tile", index, 0, box))
    return grids


def _seen(source: VisualInput) -> Box:
    """Say which part of a tile is seen: pixels at its end may belong to no patch."""
    vision = source.config.vision_config
    share = _patches(source) * int(vision.patch_size) / int(vision.image_size)
    return (0.0, 0.0, share, share)


def _check_tiles(source: VisualInput) -> None:
    """Refuse tiles of another size than the model's, and those that are cropped."""
    side = int(source.config.vision_config.image_size)
    pixels, settings = source.inputs.get("pixel_values"), source.image_processor
    if isinstance(pixels, Tensor) and tuple(pixels.shape[-2:]) != (side, side):
        raise source.refuse(f"pixel_values of tiles of {side} x {side} pixels", tuple(pixels.shape))
    size, crop = settings.size, getattr(settings, "crop_size", None)
    resized = field_of(size, "shortest_edge", "height")
    if getattr(settings, "do_center_crop", False) and crop is not None and field_of(crop, "height") != resized:
        raise ModelNotSupportedError(
            f"processor: expected crop_size as large as size, which leaves tiles whole, got {crop!r} and {size!r}"
        )


def _canvas(source: VisualInput, size: tuple[int, int], side: int) -> tuple[int, int]:
    """Choose the canvas (height, width) of an image; processor and model must agree."""
    chosen = [best_canvas(size, owner.image_grid_pinpoints) for owner in (source.image_processor, source.config)]
    if chosen[0] != chosen[1]:
        raise source.refuse(f"the canvas {chosen[1]} of config.image_grid_pinpoints", chosen[0])
    if chosen[0][0] % side or chosen[0][1] % side:
        raise source.refuse(f"canvases of whole tiles of {side} pixels", chosen[0])
    return chosen[0]


def best_canvas(size: tuple[int, int], canvases: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Choose the canvas that keeps most of an image's pixels, and of such the one with least padding.

    Parameters
    ----------
    size : (height, width)
    canvases : sequence of (height, width)

    Returns
    -------
    (height, width)
        The first of the best.
    """
    height, width = size
    best: tuple[int, int, tuple[int, int]] | None = None
    for high, wide in canvases:
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        waste = high * wide - kept
        if kept > 0 and (best is None or (kept, -waste) > best[:2]):
            best = kept, -waste, (int(high), int(wide))
    if best is None:
        raise ModelNotSupportedError(f"processor: expected a canvas that an image of {size} fits into, got {canvases}")
    return best[2]


def uncut(size: tuple[int, int], cells: tuple[int, int]) -> tuple[int, int]:
    """Say how many rows and columns of padding are cut off at each side of a canvas, by the model's rule.

    Parameters
    ----------
    size : (height, width)
        Of the image, in pixels.
    cells : (rows, columns)
        Of the canvas.

    Returns
    -------
    (rows, columns)
    """
    (height, width), (rows, columns) = size, cells
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def _raster(source: VisualInput, size: tuple[int, int], cells: int, limit: int | None) -> tuple[int, int, Box]:
    """Say how many rows and columns of cells are left of an image's canvas, and which part of the image they are."""
    side = int(source.config.vision_config.image_size)
    seen = side * _seen(source)[2]
    canvas = _canvas(source, size, side)
    scales = [full / length for full, length in zip(canvas, size, strict=True)]
    # The side that fills the canvas is exact, the other is rounded up.
    filled = 1 if scales[1] < scales[0] else 0
    fitted = [min(math.ceil(length * scales[filled]), full) for length, full in zip(size, canvas, strict=True)]
    fitted[filled] = canvas[filled]
    tiles = [full // side for full in canvas]
    counts = [count * cells for count in tiles]
    cut = uncut(size, (counts[0], counts[1]))
    edges: list[tuple[float, float]] = []
    for axis in (0, 1):
        # Pixels unseen between tiles move cells by up to half their number: in the middle of a tile by none.
        start, cell = (0.0, seen / cells) if tiles[axis] == 1 else ((seen - side) / 2, side / cells)
        start -= (canvas[axis] - fitted[axis]) // 2
        first, last = (start + place * cell for place in (cut[axis], counts[axis] - cut[axis]))
        edges.append((first / fitted[axis], last / fitted[axis]))
    rows, columns = (count - 2 * less for count, less in zip(counts, cut, strict=True))
    ratio = math.sqrt(rows * columns / (limit * cells**2)) if limit else 1.0
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    (y0, y1), (x0, x1) = edges
    return rows, columns, (x0, y0, x1, y1)


def _videos(source: VisualInput) -> list[Grid]:
    """Build the grids of LLaVA-OneVision's videos, a frame each."""
    pixels = source.inputs.get("pixel_values_videos")
    frames: list[int] = []
    if pixels is not None:
        if not isinstance(pixels, Tensor) or pixels.ndim != 5:
            raise source.refuse("pixel_values_videos (n, frames, 3, side, side)", getattr(pixels, "shape", None))
        frames = [int(pixels.shape[1])] * int(pixels.shape[0])
    cells = -(-_patches(source) // 2)
    counts = [count * cells**2 + 1 for count in frames]
    return [
        Grid(part, cells, cells, "video", index, frame, _seen(source))
        for index, run in enumerate(visual_runs(source, "video", counts, f"{cells} x {cells} a frame and a newline"))
        for frame, part in enumerate(run[:-1].split(cells**2))
    ]
