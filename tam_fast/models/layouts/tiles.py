"""Tiles in row-major order, then the whole image, laid out by the source's size: InternVL, Aya, Cohere 2."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput, marked_id, token_id

__all__ = ["aya_grids", "cohere2_grids", "internvl_grids", "least_enlarged_canvas", "nearest_canvas"]

_Rule: TypeAlias = Callable[[tuple[int, int], tuple[int, int]], tuple[int, int]]


def internvl_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of InternVL and Qianfan-OCR: tiles of the stretched image, then the whole image, in one run.

    An image of one tile is the whole image alone. How tiles lie beside each other follows from the image's size, by
    the processor's rule (:func:`nearest_canvas`). A frame of a video is the whole frame, named in the text before it.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (n, 3, side, side) among the inputs, and the images' sizes.

    Returns
    -------
    list of Grid
        Of each image one of kind "tile" for each tile and one "overview"; of an image of one tile one "image".

    Raises
    ------
    ValueError
        If the images' sizes are missing, or not as many as the images.
    ModelNotSupportedError
        If an image has not as many visual tokens as its tiles have cells.
    """
    ratio = float(source.config.downsample_ratio)
    frames = getattr(source.processor, "video_token", None) is not None
    return _grids(source, "start_image_token", round(1 / ratio), _nearest(source), frames)


def aya_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Aya Vision: those of InternVL, with a name before each tile.

    Parameters
    ----------
    source : VisualInput
        As for :func:`internvl_grids`.

    Returns
    -------
    list of Grid

    Raises
    ------
    ValueError, ModelNotSupportedError
        As :func:`internvl_grids`.
    """
    return _grids(source, "start_of_img_token", int(source.config.downsample_factor), _nearest(source))


def cohere2_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Cohere 2 Vision: those of InternVL, with a line break behind each tile and a rule of its own.

    Parameters
    ----------
    source : VisualInput
        As for :func:`internvl_grids`.

    Returns
    -------
    list of Grid

    Raises
    ------
    ValueError, ModelNotSupportedError
        As :func:`internvl_grids`.
    """
    most = int(_setting(source, "max_patches"))

    def rule(size: tuple[int, int], tile: tuple[int, int]) -> tuple[int, int]:
        return least_enlarged_canvas(size, tile[1], most)

    return _grids(source, "boi_token", int(source.config.downsample_factor), rule)


def _setting(source: VisualInput, name: str) -> Any:
    """Read a setting of the image processor, which the processor may override."""
    options = getattr(source.processor, "images_kwargs", None)
    value = options.get(name) if isinstance(options, Mapping) else None
    return getattr(source.image_processor, name) if value is None else value


def _nearest(source: VisualInput) -> _Rule:
    least, most = int(_setting(source, "min_patches")), int(_setting(source, "max_patches"))
    return lambda size, tile: nearest_canvas(size, tile, least, most)


@lru_cache(maxsize=16)
def _arrangements(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """List (columns, rows) of so many tiles: fewer tiles first, then fewer columns."""
    found = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most // columns + 1)
        if columns * rows >= least
    ]
    return tuple(sorted(found, key=lambda canvas: canvas[0] * canvas[1]))


def nearest_canvas(size: tuple[int, int], tile: tuple[int, int], least: int, most: int) -> tuple[int, int]:
    """Choose the canvas whose proportion is nearest to an image's: InternVL's rule, Aya's and GOT-OCR's.

    Of several of one proportion the last that has less than twice the image's area, or the smallest.

    Parameters
    ----------
    size : (width, height)
    tile : (width, height)
    least, most : int
        Numbers of tiles.

    Returns
    -------
    (columns, rows)
    """
    width, height = size
    proportion, area = width / height, width * height
    best, distance = (1, 1), float("inf")
    for columns, rows in _arrangements(least, most):
        other = abs(proportion - columns / rows)
        if other < distance:
            best, distance = (columns, rows), other
        elif other == distance and area > 0.5 * tile[0] * tile[1] * columns * rows:
            best = (columns, rows)
    return best


def least_enlarged_canvas(size: tuple[int, int], tile: int, most: int) -> tuple[int, int]:
    """Choose the canvas into which an image is enlarged least, else shrunk least: Cohere 2's rule.

    Parameters
    ----------
    size : (width, height)
    tile : int
        A tile's side in pixels.
    most : int
        The largest number of tiles.

    Returns
    -------
    (columns, rows)
    """
    width, height = size
    scales = [
        (min(columns * tile / width, rows * tile / height), (columns, rows)) for columns, rows in _arrangements(1, most)
    ]
    larger = [found for found in scales if found[0] >= 1]
    # The first of equals, which has fewest tiles.
    return min(larger, key=lambda found: found[0])[1] if larger else max(scales, key=lambda found: found[0])[1]


def _grids(source: VisualInput, start: str, shrunk: int, rule: _Rule, frames: bool = False) -> list[Grid]:
    """Build the grids of images that each begin with a mark.

    `start` is the processor's name of the mark; `shrunk` how many patches a side make a cell; `frames` says whether
    frames of videos are images as well.
    """
    cells, tile, part = _tile(source, shrunk)
    pieces = _images(source, start, cells * cells)
    shown: list[tuple[int, int] | None] = [None] * len(pieces)
    # Where there are as many sizes as pieces, the user wrote what names frames.
    if frames and (source.image_sizes is None or len(source.image_sizes) != len(pieces)):
        shown = _frames(source, [start for start, _ in pieces])
    images = shown.count(None)
    sizes = source.sizes() if images or source.image_sizes is not None else []
    if len(sizes) != images:
        raise ValueError(f"image_sizes: expected (width, height) of {images} images, got {len(sizes)}")
    grids: list[Grid] = []
    index = 0
    for (_, parts), video in zip(pieces, shown, strict=True):
        if video is not None:
            grids.append(Grid(parts[0], cells, cells, "video", video[0], video[1], _box(0, 0, 1, 1, part)))
            continue
        columns, rows = rule(sizes[index], tile) if len(parts) > 1 else (0, 0)
        if columns * rows != len(parts) - 1:
            width, height = sizes[index]
            raise source.refuse(
                f"{columns} x {rows} tiles of {cells} x {cells} visual tokens and the whole image, of an image of "
                f"{width} x {height} pixels",
                f"{len(parts)} times as many",
            )
        for number, run in enumerate(parts[:-1]):
            row, column = divmod(number, columns)
            grids.append(Grid(run, cells, cells, "tile", index, 0, _box(column, row, columns, rows, part)))
        kind = "overview" if columns else "image"
        grids.append(Grid(parts[-1], cells, cells, kind, index, 0, _box(0, 0, 1, 1, part)))
        index += 1
    return grids


def _box(column: int, row: int, columns: int, rows: int, part: float) -> tuple[float, float, float, float]:
    """Say which part of the image a tile's cells are; pixels at its end may belong to no patch."""
    return (column / columns, row / rows, (column + part) / columns, (row + part) / rows)


def _tile(source: VisualInput, shrunk: int) -> tuple[int, tuple[int, int], float]:
    """Say how many cells a tile has a side, its size in pixels, and which share of a side they are."""
    pixels, patch = source.inputs.get("pixel_values"), source.config.vision_config.patch_size
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[-1] != pixels.shape[-2]:
        raise source.refuse("pixel_values (n, 3, side, side)", getattr(pixels, "shape", None))
    patch = int(patch[0] if isinstance(patch, (list, tuple)) else patch)
    side = int(pixels.shape[-1])
    patches = side // patch
    if patches % shrunk or not patches:
        raise ModelNotSupportedError(
            f"processor: expected tiles of a multiple of {shrunk} patches of {patch} pixels a side for model type "
            f"{source.model_type!r}, got {side} pixels"
        )
    return patches // shrunk, (side, side), patches * patch / side


def _images(source: VisualInput, start: str, count: int) -> list[tuple[int, tuple[Tensor, ...]]]:
    """Find where each image begins, and its visual tokens tile by tile."""
    mark = getattr(source.processor, start, None)
    number = marked_id(source, mark)
    marks = _places(source, number)
    found = _places(source, token_id(source.config, "image"))
    owners = torch.searchsorted(marks, found) - 1
    if found.numel() and int(owners[0]) < 0:
        raise source.refuse(f"a mark {mark!r} before visual tokens", "none")
    images: list[tuple[int, tuple[Tensor, ...]]] = []
    for owner in owners.unique().tolist():
        run = found[owners == owner]
        if run.numel() % count:
            raise source.refuse(f"a multiple of {count} visual tokens an image", int(run.numel()))
        images.append((int(marks[owner]), run.split(count)))
    return images


def _places(source: VisualInput, number: int | None) -> Tensor:
    return torch.nonzero(source.input_ids == (-1 if number is None else number)).flatten()


_FRAME = re.compile(r"Frame([0-9]+): $")
_WRITTEN = 16  # tokens, more than a frame's name takes


def _frames(source: VisualInput, starts: list[int]) -> list[tuple[int, int] | None]:
    """Say which marks begin a frame of a video, as (video, frame): those behind its name."""
    shown: list[tuple[int, int] | None] = []
    video, before = -1, 0
    for start in starts:
        text = source.processor.tokenizer.decode(source.input_ids[max(0, start - _WRITTEN) : start])
        found = _FRAME.search(str(text))
        frame = int(found[1]) if found else 0
        if frame == 1:
            video += 1
        elif frame != before + 1 or video < 0:
            frame = 0
        shown.append((video, frame - 1) if frame else None)
        before = frame
    return shown
