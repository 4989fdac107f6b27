"""Filters of maps that the paper's Table 2 compares with the rank Gaussian filter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.operators import ops

__all__ = ["FILTERS", "adaptive_median", "check_grids", "filtered", "gaussian", "median"]

_Maps: TypeAlias = "NDArray[np.float64]"
# OpenCV's kernels where no sigma is given; for 3 it is near a sigma of 0.8, which its formula gives.
_SMALL = {
    1: (1.0,),
    3: (0.25, 0.5, 0.25),
    5: (0.0625, 0.25, 0.375, 0.25, 0.0625),
    7: (0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125),
}
_LARGEST = 7  # windows of the adaptive median


def _windows(maps: _Maps, size: int) -> _Maps:
    """Gather the windows of maps (T, H, W), padded by reflection without the edge: (T, H, W, size^2)."""
    half = size // 2
    rows, columns = (_reflected(length, half) for length in maps.shape[1:])
    padded = maps[:, rows][:, :, columns]
    view = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return view.reshape(*maps.shape, size * size)


def _reflected(length: int, half: int) -> NDArray[np.int64]:
    places = np.arange(-half, length + half)
    if length == 1:
        return np.zeros_like(places)
    folded = np.abs(places) % (2 * (length - 1))
    return np.where(folded < length, folded, 2 * (length - 1) - folded)


def gaussian(maps: _Maps, kernel_size: int = 3) -> _Maps:
    """Gaussian filter with OpenCV's kernel of a size; padded by reflection.

    Parameters
    ----------
    maps : (T, H, W) float64
    kernel_size : int
        To 7 the kernels are OpenCV's fixed ones (1/4, 1/2, 1/4 for 3); beyond, sigma is 0.3 ((k - 1) / 2 - 1) + 0.8.
    """
    sigma = 0.3 * ((kernel_size - 1) * 0.5 - 1) + 0.8
    places = np.arange(kernel_size) - kernel_size // 2
    weights = np.array(_SMALL.get(kernel_size, np.exp(-(places**2) / (2 * sigma**2))))
    kernel = np.outer(weights, weights).ravel()
    made: _Maps = _windows(maps, kernel_size) @ (kernel / kernel.sum())
    return made


def median(maps: _Maps, kernel_size: int = 3) -> _Maps:
    """Median filter, padded by reflection."""
    made: _Maps = np.median(_windows(maps, kernel_size), axis=-1)
    return made


def adaptive_median(maps: _Maps, kernel_size: int = 3, largest: int = _LARGEST) -> _Maps:
    """Adaptive median filter in its textbook form of two stages.

    The window grows from `kernel_size` by 2 while its median is its smallest or largest value. Then the pixel stays
    unless it is one of these itself; at the largest window the median is taken. On a map whose background is 0 the
    median equals the minimum, so that windows there always grow to the largest.
    """
    made: _Maps = maps.copy()
    waiting = np.ones(maps.shape, dtype=bool)
    size = kernel_size
    while True:
        windows = _windows(maps, size)
        low, middle, high = windows.min(-1), np.median(windows, axis=-1), windows.max(-1)
        ready = waiting & (low < middle) & (middle < high)
        extreme = (maps <= low) | (maps >= high)
        made[ready & extreme] = middle[ready & extreme]
        waiting &= ~ready
        if size + 2 > largest:
            made[waiting] = middle[waiting]
            break
        size += 2
    return made


FILTERS: Mapping[str, Callable[[_Maps, int], _Maps] | None] = MappingProxyType(
    {"rank_gaussian": None, "gaussian": gaussian, "median": median, "adaptive_median": adaptive_median}
)
"""Filters by name; the rank Gaussian one is the operator."""


def check_grids(grids: Sequence[Grid | tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Bring grids to (height, width) pairs, and check that they have as many cells as maps.

    Raises
    ------
    TypeError, ValueError
        If they are no grids, or have another number of cells.
    """
    try:
        sizes = [grid.shape if isinstance(grid, Grid) else (int(grid[0]), int(grid[1])) for grid in grids]
    except (TypeError, ValueError, IndexError) as error:
        raise TypeError(f"grids: expected Grids or (height, width) pairs, got {grids!r:.120}") from error
    if any(min(size) < 1 for size in sizes) or sum(height * width for height, width in sizes) != count:
        raise ValueError(f"grids: expected {count} cells, as the maps have, got {sizes}")
    return sizes


def filtered(maps: Tensor, grids: Sequence[Grid | tuple[int, int]], name: str | None, kernel_size: int = 3) -> Tensor:
    """Filter maps, each grid on its own.

    Parameters
    ----------
    maps : (T, N) floating point
    grids : sequence of Grid or (height, width)
    name : str or None
        One of :data:`FILTERS`; None changes nothing.
    kernel_size : int
        Side of the window, odd.

    Returns
    -------
    (T, N) float32
    """
    if name is None:
        return maps.float()
    if name not in FILTERS:
        raise ValueError(f"filter: expected None or one of {', '.join(FILTERS)}, got {name!r}")
    ops._check_kernel_size(kernel_size)
    parts: list[Tensor] = []
    begin = 0
    for height, width in check_grids(grids, maps.shape[1]):
        raster = maps[:, begin : begin + height * width].reshape(-1, height, width)
        begin += height * width
        function = FILTERS[name]
        if function is None:
            made = ops.rank_gaussian_filter(raster.float().contiguous(), kernel_size)
        else:
            made = torch.from_numpy(function(raster.detach().cpu().double().numpy(), kernel_size)).to(maps.device)
        parts.append(made.reshape(maps.shape[0], -1).float())
    return torch.cat(parts, dim=1) if parts else maps.float()
