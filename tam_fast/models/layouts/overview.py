"""The whole image first, then its tiles, a grid each: Ovis 2, MiniCPM-V, Perception LM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from tam_fast.maps.grid import Grid
from tam_fast.models.layouts.fixed import crop_box
from tam_fast.models.layouts.source import Box, VisualInput, field_of, marked_id, runs_of, visual_runs

__all__ = ["minicpm_grids", "ovis2_grids", "perception_lm_canvas", "perception_lm_grids"]

_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_Run = tuple[int, int]  # start, stop


def ovis2_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Ovis 2: the whole image, stretched to a square, then tiles of the stretched image.

    How many rows and columns of tiles there are is read off the marks between them: the processor's rule may give a
    wide image more rows than columns. Where a tile's patches are not a whole number of cells, or its pixels not of
    patches, the last cells reach over its edge, or stop short of it.

    Parameters
    ----------
    source : VisualInput

    Returns
    -------
    list of Grid
        Of each image one of kind "overview" and one "tile" each; of an image that has no tiles one "image".

    Raises
    ------
    ModelNotSupportedError
        If a run of visual tokens does not have the length of a tile or stands behind another mark, or rows of tiles
        are not equally long.
    """
    vision, settings = source.config.vision_config, source.image_processor
    patch, stride = int(vision.patch_size), int(vision.hidden_stride)
    width, height = field_of(settings.size, "width") or 0, field_of(settings.size, "height") or 0
    left, top, right, bottom = crop_box(settings, (width, height))
    columns = -(-(round((right - left) * width) // patch) // stride)
    rows = -(-(round((bottom - top) * height) // patch) // stride)
    # Of one tile, as fractions of it.
    part = (left, top, left + columns * patch * stride / width, top + rows * patch * stride / height)
    start, first, same, other = (
        marked_id(source, token) for token in ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>")
    )
    wholes: list[_Run] = []
    tiles: list[list[list[_Run]]] = []  # of each image, row by row
    for run in runs_of(source):
        mark = int(source.input_ids[run[0] - 1]) if run[0] else None
        if run[1] - run[0] != rows * columns:
            raise source.refuse(f"{rows} x {columns} visual tokens a tile", run[1] - run[0])
        if mark == start:
            wholes.append(run)
            tiles.append([])
        elif wholes and mark == (other if tiles[-1] else first):
            tiles[-1].append([run])
        elif wholes and mark == same and tiles[-1]:
            tiles[-1][-1].append(run)
        else:
            raise source.refuse("visual tokens behind marks of tiles", f"token {mark}")
    grids: list[Grid] = []
    for index, (whole, table) in enumerate(zip(wholes, tiles, strict=True)):
        grids.append(_grid(whole, rows, columns, "overview" if table else "image", index, part))
        for run, tile in _placed(source, table):
            grids.append(_grid(run, rows, columns, "tile", index, _within(tile, part)))
    return grids


def minicpm_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of MiniCPM-V: the whole image, then slices of it, each with its own height and width.

    Rows of slices end in a line break, in between slices follow each other at once.

    Parameters
    ----------
    source : VisualInput
        With ``target_sizes`` (n, 2), heights and widths in patches of all that was cut out of the images.

    Returns
    -------
    list of Grid
        Of each image one of kind "overview" and one "tile" each; of an image that has no slices one "image".

    Raises
    ------
    ModelNotSupportedError
        If a run of visual tokens is neither a quarter nor a sixteenth of its patches, there are more or fewer than
        ``target_sizes``, or rows of slices are not equally long.
    """
    sizes, runs = source.rows("target_sizes", 2), runs_of(source)
    if len(sizes) != len(runs):
        raise source.refuse(f"{len(sizes)} runs of visual tokens (target_sizes)", len(runs))
    names = ("image_start_token", "image_end_token", "slice_start_token", "slice_end_token")
    start, end, slice_start, slice_end = (marked_id(source, getattr(source.processor, name, None)) for name in names)
    ids = source.input_ids
    wholes: list[_Run] = []
    tiles: list[list[list[_Run]]] = []
    shapes: dict[_Run, tuple[int, int]] = {}
    for run, (height, width) in zip(runs, sizes, strict=True):
        for merged in (4, 2):  # "16x" and "4x"
            if (height // merged) * (width // merged) == run[1] - run[0]:
                shapes[run] = height // merged, width // merged
                break
        else:
            raise source.refuse(f"{height} x {width} patches / 4 or / 16 as visual tokens", run[1] - run[0])
        mark, before = (int(ids[run[0] - back]) if run[0] >= back else None for back in (1, 2))
        if mark == start:
            wholes.append(run)
            tiles.append([])
        elif mark != slice_start or not wholes:
            raise source.refuse("visual tokens behind marks of images and slices", f"token {mark}")
        elif tiles[-1] and before == slice_end:
            tiles[-1][-1].append(run)
        elif bool(tiles[-1]) != (before == end):
            tiles[-1].append([run])
        else:
            raise source.refuse("slices behind their image", f"token {before}")
    grids: list[Grid] = []
    for index, (whole, table) in enumerate(zip(wholes, tiles, strict=True)):
        grids.append(_grid(whole, *shapes[whole], "overview" if table else "image", index, _WHOLE))
        grids += [_grid(run, *shapes[run], "tile", index, tile) for run, tile in _placed(source, table)]
    return grids


def _grid(run: _Run, height: int, width: int, kind: str, index: int, box: Box) -> Grid:
    return Grid(torch.arange(*run), height, width, kind, index, 0, box)


def _placed(source: VisualInput, table: Sequence[Sequence[_Run]]) -> list[tuple[_Run, Box]]:
    """Say which part of the image each of its tiles is."""
    wide, high = len(table[0]) if table else 0, len(table)
    if any(len(row) != wide for row in table):
        raise source.refuse("rows of equally many tiles", [len(row) for row in table])
    return [
        (run, (column / wide, row / high, (column + 1) / wide, (row + 1) / high))
        for row, runs in enumerate(table)
        for column, run in enumerate(runs)
    ]


def _within(outer: Box, part: Box) -> Box:
    """Turn a part of a part of the image into a part of the image."""
    wide, high = outer[2] - outer[0], outer[3] - outer[1]
    return (
        outer[0] + part[0] * wide,
        outer[1] + part[1] * high,
        outer[0] + part[2] * wide,
        outer[1] + part[3] * high,
    )


def perception_lm_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Perception LM: the whole image, stretched to a tile, then tiles of the stretched image.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (n, tiles, 3, side, side), the whole image among the tiles, and the images' sizes.

    Returns
    -------
    list of Grid
        Of each image one of kind "overview" and one "tile" each; of an image that has no tiles one "image".

    Raises
    ------
    ModelNotSupportedError
        If there are not as many tiles as an image of its size has, or not as many visual tokens.
    """
    pixels, settings = source.inputs.get("pixel_values"), source.image_processor
    if not isinstance(pixels, torch.Tensor) or pixels.ndim != 5:
        raise source.refuse("pixel_values (n, tiles, 3, side, side)", getattr(pixels, "shape", None))
    sizes, (count, tiles, _, high, wide) = source.sizes(), pixels.shape
    cell = int(source.processor.patch_size)
    ratio = int(source.processor.pooling_ratio)
    height, width = high // cell // ratio, wide // cell // ratio
    if count != len(sizes):
        raise source.refuse(f"pixel_values of {len(sizes)} images", count)
    runs = visual_runs(source, "image", [height * width] * (count * tiles), f"{height} x {width} a tile")
    grids: list[Grid] = []
    for index, size in enumerate(sizes):
        whole, *others = runs[index * tiles : (index + 1) * tiles]
        grids.append(Grid(whole, height, width, "overview" if others else "image", index))
        if settings.vision_input_type != "thumb+tile":
            columns, rows = 0, 0
        else:
            columns, rows = perception_lm_canvas(size, int(settings.tile_size), int(settings.max_num_tiles))
        if columns * rows != len(others):
            raise source.refuse(f"{columns} x {rows} tiles of an image of {size[0]} x {size[1]}", len(others))
        for number, run in enumerate(others):
            row, column = divmod(number, columns)
            box = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
            grids.append(Grid(run, height, width, "tile", index, 0, box))
    return grids


@lru_cache(maxsize=8)
def _arrangements(limit: int) -> dict[float, list[tuple[int, int]]]:
    """List (columns, rows) of at most so many tiles by their proportion, in the order in which they are tried."""
    found: dict[float, list[tuple[int, int]]] = {}
    for tiles in range(limit, 0, -1):
        for columns in range(1, tiles + 1):
            if tiles % columns == 0:
                found.setdefault(columns / (tiles // columns), []).append((columns, tiles // columns))
    return found


def perception_lm_canvas(size: tuple[int, int], side: int, limit: int) -> tuple[int, int]:
    """Work out into how many columns and rows of tiles Perception LM's processor stretches an image.

    The canvas that the image fits into without shrinking and in which its shorter side becomes longest, the last of
    such; if it fits into none, the one whose proportion is next to the image's and no further from square.

    Parameters
    ----------
    size : (width, height)
    side : int
        Of a tile, in pixels.
    limit : int
        The largest number of tiles.

    Returns
    -------
    (columns, rows)
    """
    if limit <= 1:
        return 1, 1
    width, height = size
    proportion = width / height
    arrangements = _arrangements(limit)
    best: tuple[float, tuple[int, int]] | None = None
    for columns, rows in (canvas for group in arrangements.values() for canvas in group):
        if columns * side < width or rows * side < height:
            continue
        scale = min(columns * side / width, rows * side / height)
        # The shorter side, cut off to whole pixels.
        shorter: float = scale * height
        if proportion > 1:
            shorter = math.floor(scale * width / proportion)
        elif proportion < 1:
            shorter = math.floor(shorter * proportion)
        if best is None or shorter >= best[0]:
            best = shorter, (columns, rows)
    if best is not None:
        return best[1]
    if proportion >= 1:
        nearest = min((ratio for ratio in arrangements if ratio <= proportion), key=lambda r: abs(r - proportion))
        return max(arrangements[nearest], key=lambda canvas: canvas[0])
    nearest = min((r for r in arrangements if r > proportion), key=lambda r: abs(1 / r - 1 / proportion))
    return max(arrangements[nearest], key=lambda canvas: canvas[1])
