"""Which cells are taken away together: blocks, superpixels, or labels that are given.

All grids that show one image are divided alike, by place in the image: a region that is absent from the tiles is absent
from the overview too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_fast.maps.canvas import Canvas
from tam_fast.maps.layout import Layout
from tam_fast.models.images import load_images

__all__ = ["REGIONS", "block_labels", "cell_places", "check_regions", "region_labels", "slic"]

REGIONS = 64
"""How many regions there are if nothing is said; as EAGLE has them."""

_SIDE = 256  # superpixels are found on a picture of at most this many pixels a side
_SAMPLES = 5  # places a cell and axis at which its superpixel is read


def region_labels(layout: Layout, regions: Any = None, images: Any = None) -> Tensor:
    """Say to which region each visual cell belongs.

    Parameters
    ----------
    layout : Layout
    regions : None, int, "cells" or (N,) integers
        How many, 64 if None: superpixels where `images` are given, else blocks, 8 x 8 on a square grid. There may be
        fewer. ``"cells"``: each cell by itself. Labels of the cells of all grids in order: they are numbered anew in
        their order, 0, 1, ..; cells of a negative label belong to none, and stay.
    images : image or list of images, optional
        The sources of the grids, in order; None and False: blocks. Frames of videos are divided in blocks.

    Returns
    -------
    (N,) int64
        0..K-1, and -1.

    Raises
    ------
    ValueError, TypeError
        If they are something else.
    """
    count = layout.visual_positions.numel()
    wanted = check_regions(regions)
    if images is True:
        raise TypeError("images: expected pictures, got True: only explain knows which they are")
    if wanted is None:
        return torch.arange(count) if isinstance(regions, str) else _given(regions, count)
    if images is None or images is False:
        return _renumbered(block_labels(layout, wanted))
    return _renumbered(_superpixel_labels(layout, wanted, images))


def check_regions(regions: Any) -> int | None:
    """Check what can be known of ``regions=`` before there is a layout; return how many, None of cells and labels."""
    if isinstance(regions, str):
        if regions != "cells":
            raise ValueError(f'regions: expected a number, labels or "cells", got {regions!r}')
        return None
    if regions is None:
        return REGIONS
    one = hasattr(regions, "__index__") and not getattr(regions, "ndim", 0)
    if not one or isinstance(regions, (bool, np.bool_)):
        return None
    wanted = int(regions.__index__())
    if wanted < 1:
        raise ValueError(f"regions: expected at least 1, got {wanted}")
    return wanted


def _given(regions: Any, count: int) -> Tensor:
    try:
        labels = torch.as_tensor(np.asarray(regions) if isinstance(regions, (list, tuple)) else regions)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"regions: expected a number or labels (N,), got {type(regions).__name__}") from error
    if tuple(labels.shape) != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"regions: expected {count} integers, got {tuple(labels.shape)} of {labels.dtype}")
    if not bool((labels >= 0).any()):
        raise ValueError("regions: expected a label of 0 or more, got none")
    return _renumbered(labels.detach().to("cpu", torch.int64))


def _renumbered(labels: Tensor) -> Tensor:
    """Number labels 0, 1, .. in their order; negative ones become -1."""
    found = labels[labels >= 0].unique()
    return torch.where(labels >= 0, torch.searchsorted(found, labels), -1)


def cell_places(layout: Layout, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """Return which cells (n,) a canvas has, and their edges (n, 4) in it: x0, y0, x1, y1 as fractions of the canvas."""
    numbers, edges = [], []
    left, top, right, bottom = canvas.box
    for index in canvas.grids:
        grid = layout.grids[index]
        across = (torch.linspace(grid.box[0], grid.box[2], grid.width + 1).double() - left) / (right - left)
        down = (torch.linspace(grid.box[1], grid.box[3], grid.height + 1).double() - top) / (bottom - top)
        y0, x0 = torch.meshgrid(down[:-1], across[:-1], indexing="ij")
        y1, x1 = torch.meshgrid(down[1:], across[1:], indexing="ij")
        edges.append(torch.stack([x0, y0, x1, y1], dim=-1).flatten(0, 1))
        numbers.append(torch.arange(len(grid)) + layout.offsets[index])
    return torch.cat(numbers), torch.cat(edges)


def block_labels(layout: Layout, count: int) -> Tensor:
    """Divide each image, and each frame of a video, in blocks of cells: about `count` in all; (N,) int64.

    Images share the number evenly; if there are more than `count`, some that follow each other are one region.
    """
    canvases = layout.canvases()
    labels = torch.zeros(layout.visual_positions.numel(), dtype=torch.int64)
    start = 0
    for canvas, share in zip(canvases, _shares(len(canvases), count), strict=True):
        cells, edges = cell_places(layout, canvas)
        rows, columns = _divided(canvas.height, canvas.width, share)
        center = (edges[:, :2] + edges[:, 2:]) / 2
        column = (center[:, 0] * columns).long().clamp(0, columns - 1)
        row = (center[:, 1] * rows).long().clamp(0, rows - 1)
        labels[cells] = start + row * columns + column
        start += rows * columns
    if len(canvases) > count:
        labels = labels * count // len(canvases)
    return labels


def _shares(canvases: int, count: int) -> list[int]:
    """Divide a number among canvases as evenly as can be, at least 1 each."""
    least, more = divmod(count, max(canvases, 1))
    return [max(least + (index < more), 1) for index in range(canvases)]


def _divided(height: int, width: int, count: int) -> tuple[int, int]:
    """Choose rows and columns of at most `count` blocks: as many as can be, of them the most square."""
    if height * width <= count:
        return height, width
    best, found = (-1.0, 0.0), (1, 1)
    for rows in range(1, min(height, count) + 1):
        columns = min(width, count // rows)
        slant = abs(np.log((height / rows) / (width / columns)))
        # A block more or less is worth little beside blocks that are squares.
        score = (rows * columns / count - slant, -slant)
        if score > best:
            best, found = score, (rows, columns)
    return found


# Superpixels -------------------------------------------------------------------------------------


def _superpixel_labels(layout: Layout, count: int, images: Any) -> Tensor:
    """Give each cell the superpixel that most of it lies in; frames of videos are divided in blocks."""
    pictures = load_images(images)
    canvases = layout.canvases()
    sources = {canvas.source for canvas in canvases if canvas.frame is None}
    if len(pictures) != len(sources):
        raise ValueError(f"images: expected {len(sources)}, the sources of the layout's grids, got {len(pictures)}")
    labels = block_labels(layout, count)
    start = int(labels.max()) + 1
    for canvas, share in zip(canvases, _shares(len(canvases), count), strict=True):
        if canvas.frame is not None:
            continue
        picture = pictures[sorted(sources).index(canvas.source)]
        scale = min(1.0, _SIDE / max(picture.size))
        small = picture.resize([max(1, round(side * scale)) for side in picture.size])
        segments = slic(np.asarray(small), share)
        cells, edges = cell_places(layout, canvas)
        labels[cells] = start + torch.from_numpy(_most_of(segments, edges.numpy(), canvas))
        start += int(segments.max()) + 1
    return labels


def _most_of(segments: NDArray[np.int64], edges: NDArray[np.float64], canvas: Canvas) -> NDArray[np.int64]:
    """Find the segment (n,) that most of each cell lies in; of cells beyond the picture, the nearest."""
    height, width = segments.shape
    left, top, right, bottom = canvas.box
    steps = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    x = left + (right - left) * (edges[:, 0:1] + (edges[:, 2:3] - edges[:, 0:1]) * steps)
    y = top + (bottom - top) * (edges[:, 1:2] + (edges[:, 3:4] - edges[:, 1:2]) * steps)
    columns = np.clip((x * width).astype(np.int64), 0, width - 1)
    rows = np.clip((y * height).astype(np.int64), 0, height - 1)
    read = segments[rows[:, :, None], columns[:, None, :]].reshape(len(edges), -1)
    return np.array([np.bincount(row).argmax() for row in read], dtype=np.int64)


def slic(image: NDArray[Any], count: int, compactness: float = 10.0, rounds: int = 10) -> NDArray[np.int64]:
    """Divide a picture in superpixels: k-means of colour and place, each center looking at its surroundings alone.

    Parameters
    ----------
    image : (H, W, 3) uint8
        sRGB.
    count : int
        How many, about.
    compactness : float
        How much place counts against colour; in units of CIELAB.
    rounds : int

    Returns
    -------
    (H, W) int64
        Numbers from 0. A superpixel may be in several pieces.

    Notes
    -----
    SLIC, Achanta et al. 2012, Eqs. 1 to 3, without the step that joins pieces.
    """
    height, width = image.shape[:2]
    lab = _lab(image)
    side = max(np.sqrt(height * width / count), 1.0)
    rows, columns = _divided(height, width, count)
    y = (np.arange(rows) + 0.5) * height / rows - 0.5
    x = (np.arange(columns) + 0.5) * width / columns - 0.5
    places = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    weight = compactness / side
    features = np.concatenate([lab, np.moveaxis(np.mgrid[:height, :width], 0, -1) * weight], axis=-1)
    nearest = places.round().astype(np.int64)
    centers = np.concatenate([lab[nearest[:, 0], nearest[:, 1]], places * weight], axis=1)
    reach = int(np.ceil(2 * max(side, height / rows, width / columns)))
    labels = np.zeros((height, width), dtype=np.int64)
    for _ in range(rounds):
        distance = np.full((height, width), np.inf)
        for number, center in enumerate(centers):
            at_y, at_x = (round(float(value)) for value in center[3:] / weight)
            part = (
                slice(max(at_y - reach, 0), max(at_y + reach + 1, 1)),
                slice(max(at_x - reach, 0), max(at_x + reach + 1, 1)),
            )
            found = np.square(features[part] - center).sum(axis=-1)
            nearer = found < distance[part]
            distance[part][nearer] = found[nearer]
            labels[part][nearer] = number
        flat = labels.ravel()
        sizes = np.bincount(flat, minlength=len(centers))
        sums = np.stack(
            [np.bincount(flat, weights=features[..., part].ravel(), minlength=len(centers)) for part in range(5)],
            axis=1,
        )
        centers = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centers)
    return labels


def _lab(image: NDArray[Any]) -> NDArray[np.float64]:
    """Convert sRGB of 8 bits (H, W, 3) to CIELAB under D65."""
    rgb = image.astype(np.float64) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ (to_xyz / np.array([[0.95047], [1.0], [1.08883]])).T
    curve = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(curve, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def spread(values: Tensor, labels: Tensor) -> Tensor:
    """Give each cell the value of its region: (T, K) and labels (N,) to (T, N); cells of no region get 0."""
    found = values[:, labels.clamp_min(0)]
    return torch.where(labels >= 0, found, 0.0)


def cells_kept(masks: Tensor, labels: Tensor) -> Tensor:
    """Say which cells stay where regions do: masks (M, K) and labels (N,) to (M, N); cells of no region stay."""
    kept = masks[:, labels.clamp_min(0)]
    return torch.where(labels >= 0, kept, torch.ones((), dtype=masks.dtype))


def checked_masks(masks: Any, labels: Tensor) -> Tensor:
    """Check masks (M, K) of regions that stay: 1 or True stays, 0 or False is absent; bool."""
    count = int(labels.max()) + 1
    given = _tensor(masks, "masks")
    if given.ndim != 2 or given.shape[1] != count or not given.shape[0]:
        raise ValueError(f"masks: expected (M, K) = (M, {count}), a value for each region, got {tuple(given.shape)}")
    if not bool(((given == 0) | (given == 1)).all()):
        raise ValueError("masks: expected 0 (absent) and 1 (stays), got other values")
    return given.to(torch.bool)


def _tensor(value: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(np.asarray(value) if isinstance(value, Sequence) else value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}") from error


def soft_masks(masks: Any, labels: Tensor) -> Tensor:
    """Check masks of cells (M, N), or of regions (M, K), whose values say how much stays: 0..1; (M, N) float64."""
    given = _tensor(masks, "masks")
    count, cells = int(labels.max()) + 1, labels.numel()
    if given.ndim != 2 or not given.shape[0] or given.shape[1] not in (count, cells):
        wanted = f"(M, {count}) of regions or (M, {cells}) of cells"
        raise ValueError(f"masks: expected {wanted}, got {tuple(given.shape)}")
    given = given.to(torch.float64)
    if not bool(((given >= 0) & (given <= 1)).all()):
        raise ValueError("masks: expected values from 0 (absent) to 1 (stays), got others")
    return given if given.shape[1] == cells else cells_kept(given, labels)
