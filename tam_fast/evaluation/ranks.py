"""Orders: which pixels, cells or regions come first by a map, and how alike two orders are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["average_ranks", "falling_order", "region_order", "revealed", "spearman"]


def falling_order(map: Any) -> NDArray[np.int64]:
    """Order values, the highest first; ties by their place, the first first.

    Parameters
    ----------
    map : (...) ndarray or Tensor
        Of any dtype; unsigned integers too are ordered by value. Flattened.

    Returns
    -------
    (N,) int64

    Raises
    ------
    ValueError
        If a value is NaN, which has no place.
    """
    values = np.asarray(map)
    values = values.astype(np.float64).ravel()
    if np.isnan(values).any():
        raise ValueError("map: expected values that have an order, got NaN")
    return np.argsort(-values, kind="stable")


def region_order(map: Any, labels: Any) -> NDArray[np.int64]:
    """Order regions by the mean of a map over their cells or pixels, the highest first.

    Parameters
    ----------
    map : (...) ndarray or Tensor
    labels : (...) integers of the same shape
        0..K-1; negative ones belong to no region.

    Returns
    -------
    (K,) int64
    """
    values, regions = np.asarray(map, dtype=np.float64).ravel(), np.asarray(labels).ravel()
    if values.shape != regions.shape:
        raise ValueError(f"labels: expected {values.size}, as the map has values, got {regions.size}")
    known = regions >= 0
    sizes = np.bincount(regions[known])
    if not sizes.size or not sizes.all():
        raise ValueError("labels: expected regions 0, 1, .. without a gap, got others")
    return falling_order(np.bincount(regions[known], weights=values[known]) / sizes)


def revealed(order: Any, steps: int | None = None) -> NDArray[np.int64]:
    """Say at which step each of N elements is shown, if they are shown in an order in equal steps.

    After step j of k so many are shown: N j / k, rounded down.

    Parameters
    ----------
    order : (N,) integers
    steps : int, optional
        k; one element a step if not given. Never more than N.

    Returns
    -------
    (N,) int64
        From 1 to k.
    """
    places = np.asarray(order)
    count = places.size
    number = count if steps is None else min(_steps(steps), count)
    edges = np.array([count * step // number for step in range(1, number + 1)])
    made = np.empty(count, dtype=np.int64)
    made[places] = np.searchsorted(edges, np.arange(count), side="right") + 1
    return made


def _steps(steps: Any) -> int:
    if isinstance(steps, bool) or not hasattr(steps, "__index__") or int(steps.__index__()) < 1:
        raise ValueError(f"steps: expected a number from 1, got {steps!r}")
    return int(steps.__index__())


def average_ranks(values: Any) -> NDArray[np.float64]:
    """Rank values along the last axis from 1, the lowest first; ties have the mean of their ranks.

    Parameters
    ----------
    values : (..., N)

    Returns
    -------
    (..., N) float64
    """
    given = np.asarray(values, dtype=np.float64)
    flat = given.reshape(-1, given.shape[-1])
    made = np.empty(flat.shape)
    for row, out in zip(flat, made, strict=True):
        _, place, counts = np.unique(row, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        out[:] = (last - (counts - 1) / 2.0)[place.reshape(row.shape)]
    return made.reshape(given.shape)


def spearman(first: Any, second: Any) -> Any:
    """Correlate ranks along the last axis (Spearman's rho; ties have mean ranks).

    Parameters
    ----------
    first, second : (..., N)
        Of one shape, or such as broadcast.

    Returns
    -------
    float or (...) float64
        From -1 to 1; NaN where one is constant, or has a NaN: there is nothing to correlate.
    """
    one, two = (np.asarray(value, dtype=np.float64) for value in (first, second))
    if one.ndim < 1 or two.ndim < 1 or one.shape[-1] != two.shape[-1]:
        raise ValueError(f"second: expected as many values as first, {one.shape}, got {two.shape}")
    unknown = np.isnan(one).any(axis=-1) | np.isnan(two).any(axis=-1)
    ranks = [average_ranks(value) for value in (one, two)]
    ranks = [rank - rank.mean(axis=-1, keepdims=True) for rank in ranks]
    across = (ranks[0] * ranks[1]).sum(axis=-1)
    spread = np.sqrt((ranks[0] ** 2).sum(axis=-1) * (ranks[1] ** 2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where((spread > 0) & ~unknown, across / spread, np.nan)
    return float(found) if found.ndim == 0 else found
