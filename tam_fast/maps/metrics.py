"""Figures of maps against masks: Otsu's threshold and intersection over union."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["iou", "iou_ceiling", "otsu_of_counts", "otsu_threshold"]

Mask: TypeAlias = "NDArray[np.bool_] | NDArray[np.float32] | NDArray[np.float64]"
_MASK_DTYPES = (np.bool_, np.float32, np.float64)

# Shares that were summed in float32 may exceed 1 by their rounding.
_ROUNDING = 1e-4


def otsu_threshold(levels: NDArray[np.uint8]) -> int:
    """Return Otsu's threshold of 8-bit values: the level that tells bright cells from dark ones best.

    A level t splits the values into those ``<= t`` and those ``> t``. With w(t) the share of the former, m(t) their sum
    divided by the number of all values, and m the mean of all, the variance between the two classes is

        (m w(t) - m(t))^2 / (w(t) (1 - w(t)))

    (Eq. 18 of N. Otsu, "A threshold selection method from gray-level histograms", 1979); t maximises it.

    Parameters
    ----------
    levels : uint8 ndarray, any shape, at least one value
        A map is binarised by its 256 levels, ``numpy.floor(255 * map)``.

    Returns
    -------
    int
        The lowest such level, which is one of the values; those ``> t`` are the bright ones. Levels that are exactly as
        good are told by whole numbers (OpenCV's rounding picks any of them). 0 if all values are equal: all of them
        are bright then, or none if they are 0.

    Raises
    ------
    TypeError
        If `levels` is no array of uint8.
    ValueError
        If it is empty.

    Notes
    -----
    Sums are float64.
    """
    if not isinstance(levels, np.ndarray) or levels.dtype != np.uint8:
        raise TypeError(f"levels: expected a uint8 array, got {_described(levels)}")
    if levels.size == 0:
        raise ValueError(f"levels: expected at least one value, got shape {levels.shape}")
    return otsu_of_counts(np.bincount(levels.ravel(), minlength=256))


def otsu_of_counts(counts: NDArray[np.int64]) -> int:
    """Return :func:`otsu_threshold` of values that are counted already.

    Parameters
    ----------
    counts : (256,) int64 ndarray
        How many values there are of each level; at least one in all.
    """
    shares = counts / counts.sum()
    weight = np.cumsum(shares)
    mass = np.cumsum(shares * np.arange(256))
    spread = weight * (1.0 - weight)
    between = np.divide((mass[-1] * weight - mass) ** 2, spread, out=np.zeros(256), where=spread > 1e-12)
    if not between.any():
        return 0
    # Between two values nothing changes: the lower is meant.
    near = np.flatnonzero((between >= between.max() * (1.0 - 1e-9)) & (counts > 0))
    if len(near) == 1:
        return int(near[0])
    # Levels as good as each other, or nearly: whole numbers tell, where rounding would pick one of them.
    number = counts.astype(np.int64).cumsum().tolist()
    total = (counts.astype(np.int64) * np.arange(256)).cumsum().tolist()

    def exact(level: int) -> Fraction:
        below = number[level]
        return Fraction((total[-1] * below - total[level] * number[-1]) ** 2, below * (number[-1] - below))

    return int(max(near.tolist(), key=lambda level: (exact(level), -level)))


def iou(chosen: NDArray[np.bool_], covered: Mask) -> float:
    """Return the intersection over union of chosen cells with a mask.

    A mask of pixels lies over cells: of cell i it covers the share c_i. Every cell stands for its square of pixels, so
    that the chosen cells S have the IoU ::

        sum_{i in S} c_i / (|S| + sum_{i not in S} c_i)

    For a mask of whole cells this is the usual count.

    Parameters
    ----------
    chosen : bool ndarray, any shape
        The binarised map, e.g. ``levels > otsu_threshold(levels)``.
    covered : bool, float32 or float64 ndarray, the same shape
        The mask: true or false, or every cell's covered share from 0 to 1.

    Returns
    -------
    float
        From 0 to 1; 0 if nothing is chosen and the mask is empty.

    Raises
    ------
    TypeError
        If `chosen` is no array of bool, or `covered` none of bool, float32 or float64.
    ValueError
        If their shapes differ, or a share is NaN or not within 0 to 1.

    Notes
    -----
    Shares are summed in their own dtype.
    """
    if not isinstance(chosen, np.ndarray) or chosen.dtype != np.bool_:
        raise TypeError(f"chosen: expected a bool array, got {_described(chosen)}")
    _check_covered(covered)
    if chosen.shape != covered.shape:
        raise ValueError(f"covered: expected the shape of chosen, {chosen.shape}, got {covered.shape}")
    inside = float(covered[chosen].sum())
    union = float(chosen.sum()) + float(covered[~chosen].sum())
    return inside / union if union > 0 else 0.0


def iou_ceiling(covered: Mask) -> float:
    """Return the best :func:`iou` that any choice of whole cells reaches: the limit that a grid sets.

    For every number of cells, those with the largest covered shares are the best choice.

    Parameters
    ----------
    covered : bool, float32 or float64 ndarray, any shape, at least one cell
        As in :func:`iou`.

    Returns
    -------
    float
        From 0 to 1; 1 for a mask of whole cells, 0 for an empty one.

    Raises
    ------
    TypeError
        If `covered` is no array of bool, float32 or float64.
    ValueError
        If it is empty, or a share is NaN or not within 0 to 1.

    Notes
    -----
    Sums are float64.
    """
    _check_covered(covered)
    if covered.size == 0:
        raise ValueError(f"covered: expected at least one cell, got shape {covered.shape}")
    shares = np.sort(covered.ravel())[::-1].astype(np.float64)
    inside = np.cumsum(shares)
    return float((inside / (np.arange(1, shares.size + 1) + shares.sum() - inside)).max())


def _check_covered(covered: Any) -> None:
    if not isinstance(covered, np.ndarray) or covered.dtype not in _MASK_DTYPES:
        raise TypeError(f"covered: expected an array of bool, float32 or float64, got {_described(covered)}")
    if covered.size and not (covered.min() >= 0 and covered.max() <= 1 + _ROUNDING):
        raise ValueError(f"covered: expected shares from 0 to 1, got {covered.min()} to {covered.max()}")


def _described(value: Any) -> str:
    return f"dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
