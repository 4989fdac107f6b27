"""Grids that keep an image's proportions, in one run of tokens or in rows: Gemma 4, LightOnOCR, Fuyu, Emu 3."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.layouts.rows import resized_grids
from tam_fast.models.layouts.source import VisualInput, field_of, runs_of, visual_runs

__all__ = ["emu3_grids", "fuyu_grids", "gemma4_grids", "gemma4_unified_grids", "lighton_grids"]


def gemma4_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Gemma 4: patches pooled to cells, of images and of the frames of videos.

    An image is stretched to whole cells.

    Parameters
    ----------
    source : VisualInput
        With ``image_position_ids`` (n, patches, 2) among the inputs, or ``video_position_ids`` (frames, patches, 2) and
        ``num_frames_per_video`` (n,): columns and rows of patches, -1 for padding.

    Returns
    -------
    list of Grid
        One an image, one a frame of a video.

    Raises
    ------
    ModelNotSupportedError
        If the patches are no raster of whole cells, or the visual tokens are not as many as the cells.
    """
    return _positioned(source, int(source.config.vision_config.pooling_kernel_size))


def gemma4_unified_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Gemma 4 unified: as :func:`gemma4_grids`, but its patches are cells already."""
    return _positioned(source, 1)


def _positioned(source: VisualInput, pool: int) -> list[Grid]:
    grids: list[Grid] = []
    for kind in ("image", "video"):
        shapes = _shapes(source, f"{kind}_position_ids", pool)
        meaning = f"{kind}_position_ids / {pool}^2"
        runs = visual_runs(source, kind, [rows * columns for rows, columns in shapes], meaning)
        places = [(index, 0) for index in range(len(shapes))]
        if kind == "video" and shapes:
            places = _frames(source, len(shapes))
        for run, shape, (index, frame) in zip(runs, shapes, places, strict=True):
            grids.append(Grid(run, *shape, kind, index, frame))
    return sorted(grids, key=lambda grid: int(grid.positions[0]))


def _shapes(source: VisualInput, name: str, pool: int) -> list[tuple[int, int]]:
    """Read rows and columns of cells from the places (n, patches, 2) of patches."""
    value = source.inputs.get(name)
    if value is None:
        return []
    found = torch.as_tensor(value).cpu()
    if found.ndim == 4:  # videos of as many frames each
        found = found.flatten(0, 1)
    if found.ndim != 3 or found.shape[-1] != 2:
        raise source.refuse(f"{name} (n, patches, 2)", tuple(found.shape))
    last = found.amax(1) + 1
    if not torch.equal((found >= 0).all(2).sum(1), last.prod(1)) or bool((last % pool != 0).any()):
        raise source.refuse(f"{name} that are rasters of cells of {pool} x {pool} patches", "others")
    return [(int(rows) // pool, int(columns) // pool) for columns, rows in last.tolist()]


def _frames(source: VisualInput, count: int) -> list[tuple[int, int]]:
    """Say of which video and which of its frames each of some frames is."""
    told = source.inputs.get("num_frames_per_video")
    if told is None:
        shape = torch.as_tensor(source.inputs["video_position_ids"]).shape
        counts = [int(shape[1])] * int(shape[0]) if len(shape) == 4 else [count]
    else:
        counts = [int(number) for number in torch.as_tensor(told).flatten().tolist()]
    if sum(counts) != count:
        raise source.refuse(f"{count} frames (video_position_ids)", f"num_frames_per_video {counts}")
    return [(index, frame) for index, number in enumerate(counts) for frame in range(number)]


def lighton_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of LightOnOCR: Pixtral's without breaks between the rows.

    Parameters
    ----------
    source : VisualInput
        As for :func:`tam_fast.models.layouts.rows.pixtral_grids`.

    Returns
    -------
    list of Grid
        One an image.

    Raises
    ------
    ModelNotSupportedError
        If the image tokens are not as many as the cells or do not stand in one run, or the processor crops.
    """
    return resized_grids(source, between=0)


def fuyu_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Fuyu: rows of patches, a newline behind each.

    An image is made smaller where it does not fit, and padded to whole patches at the right and below.

    Parameters
    ----------
    source : VisualInput
        With the sizes of the images.

    Returns
    -------
    list of Grid
        One an image.

    Raises
    ------
    ValueError
        If the sizes of the images are not known.
    ModelNotSupportedError
        If the image tokens do not stand in as many rows as the images' sizes give.
    """
    settings = source.image_processor
    patch = field_of(settings.patch_size, "height") or 0, field_of(settings.patch_size, "width") or 0
    most = field_of(settings.size, "height") or 0, field_of(settings.size, "width") or 0
    rows = runs_of(source)
    grids: list[Grid] = []
    first = 0
    for index, (width, height) in enumerate(source.sizes()):
        seen = (height, width)
        if settings.do_resize and (width > most[1] or height > most[0]):
            scale = min(most[0] / height, most[1] / width)
            seen = (int(height * scale), int(width * scale))
        cells = (-(-seen[0] // patch[0]), -(-seen[1] // patch[1]))
        found = rows[first : first + cells[0]]
        first += cells[0]
        # One newline between rows.
        together = all(last + 1 == begin for (_, last), (begin, _) in itertools.pairwise(found))
        if [stop - start for start, stop in found] != [cells[1]] * cells[0] or not together:
            got = [stop - start for start, stop in found]
            raise source.refuse(f"{cells[0]} rows of {cells[1]} image tokens", f"rows of {got}")
        box = (0.0, 0.0, cells[1] * patch[1] / seen[1], cells[0] * patch[0] / seen[0])
        positions = torch.tensor([place for start, stop in found for place in range(start, stop)])
        grids.append(Grid(positions, *cells, "image", index, 0, box))
    if first != len(rows):
        raise source.refuse(f"{first} rows of image tokens", len(rows))
    return grids


def emu3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Emu 3: rows of codes, the last of each of which is an end of line under the image's id.

    An image is stretched to whole codes.

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
        If the image tokens are not as many as the codes and ends of lines.
    """
    vision = source.config.vq_config
    factor = 2 ** (len(vision.channel_multiplier) - 1)
    shapes = [(height // factor, width // factor) for height, width in source.rows("image_sizes", 2)]
    meaning = f"image_sizes / {factor}^2, with ends of lines"
    runs = visual_runs(source, "image", [rows * (columns + 1) for rows, columns in shapes], meaning)
    return [_without_ends(run, shape, index) for index, (run, shape) in enumerate(zip(runs, shapes, strict=True))]


def _without_ends(run: Tensor, shape: Sequence[int], index: int) -> Grid:
    rows, columns = shape
    return Grid(run.view(rows, columns + 1)[:, :-1].reshape(-1), rows, columns, "image", index)
