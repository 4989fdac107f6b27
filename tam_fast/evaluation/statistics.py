"""Intervals and differences over a data set: images are drawn again, words of one image belong together.

A pooled mean is a ratio of sums over images: what an image's words add up to, by how many words it has. A word is no
independent draw, an image is one; so the bootstrap draws images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "bootstrap", "holm", "interval", "paired", "resampled"]

_LEVEL = (2.5, 97.5)
_BLOCK = 1 << 21  # weights of a block of resamples

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How much the first of two differs from the second, on the images that both have.

    Attributes
    ----------
    value : float
        First minus second, each a ratio of sums over these images; NaN if there is none.
    low, high : float
        95 % interval.
    p : float
        Two-sided, of no difference.
    images : int
        How many images both have.
    """

    value: float
    low: float
    high: float
    p: float
    images: int


def bootstrap(sums: Any, counts: Any = None, *, resamples: int = 2000, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return a ratio of sums over images and its 95 % percentile interval by drawing images with replacement.

    ::

        sum_i s_i / sum_i c_i        (B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13)

    Parameters
    ----------
    sums : (I,) or (I, M) of numbers
        Of each image, and for each of M figures: the sum of its values.
    counts : the same shape, optional
        How many values that are, 0 where the image has none; 1 if left out, for one value an image.
    resamples : int
        At least 1.
    seed : int
        The same seed draws the same images, also for different figures.

    Returns
    -------
    (value, low, high)
        Floats; arrays (M,) float64 if `sums` has M columns. NaN where no image has a value, or one is NaN.

    Raises
    ------
    ValueError
        If shapes differ, a count is negative or not finite, or `resamples` is below 1.
    """
    total, number, flat = _columns(sums, counts, "sums", "counts")
    draws = resampled(total, number, resamples=resamples, seed=seed)
    value = _ratio(total.sum(axis=0), number.sum(axis=0))
    low, high = interval(draws)
    return (float(value[0]), float(low[0]), float(high[0])) if flat else (value, low, high)


def resampled(sums: Any, counts: Any = None, *, resamples: int = 2000, seed: int = 0) -> Floats:
    """Return the ratios of sums of each resample, (B, M): see :func:`bootstrap`; NaN where a draw has no value.

    All columns have the same draws, so that functions of several figures (differences, harmonic means) are drawn, too.
    """
    total, number, _ = _columns(sums, counts, "sums", "counts")
    made = np.full((_checked(resamples), total.shape[1]), np.nan)
    for rows, weights in _weights(total.shape[0], resamples, seed):
        made[rows] = _ratio(weights @ total, weights @ number)
    return made


def paired(first: Any, second: Any, *, resamples: int = 2000, seed: int = 0) -> Difference:
    """Compare two methods on the images that both have, which are drawn together.

    Parameters
    ----------
    first, second : (sums, counts), each (I,), or (I,) alone
        Of each image, as in :func:`bootstrap`; one value an image, NaN where there is none, if it has no counts.
        The same images in the same order.
    resamples, seed : int
        As in :func:`bootstrap`.

    Returns
    -------
    Difference
        Its p is twice the share of resamples on the rarer side of 0, both ends counted with one more, at most 1:
        never 0, whatever was drawn.

    Raises
    ------
    ValueError
        If the number of images differs, or an argument is wrong.
    """
    (one, of_one), (two, of_two) = _pair(first, "first"), _pair(second, "second")
    if one.shape != two.shape:
        raise ValueError(f"second: expected the images of first, {one.size}, got {two.size}")
    both = (of_one > 0) & (of_two > 0)
    images = int(both.sum())
    if not images:
        _checked(resamples)
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    sums, counts = np.stack([one, two], axis=1)[both], np.stack([of_one, of_two], axis=1)[both]
    draws = resampled(sums, counts, resamples=resamples, seed=seed)
    whole = _ratio(sums.sum(axis=0), counts.sum(axis=0))
    change = draws[:, 0] - draws[:, 1]
    low, high = interval(change[:, None])
    p = math.nan
    if np.isfinite(change).all():
        side = min(int((change <= 0).sum()), int((change >= 0).sum()))
        p = min(1.0, 2.0 * (side + 1) / (change.size + 1))
    return Difference(float(whole[0] - whole[1]), float(low[0]), float(high[0]), p, images)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of several comparisons so that the chance of any false one stays below the level.

    The k-th smallest of m is multiplied by m - k + 1, and is no smaller than the one before it (S. Holm, "A Simple
    Sequentially Rejective Multiple Test Procedure", 1979).

    Parameters
    ----------
    p_values : sequence of float in [0, 1]
        NaN is no comparison: it stays NaN, and does not count.

    Returns
    -------
    list of float
        In the order of `p_values`, at most 1.

    Raises
    ------
    ValueError
        If a value is not within 0 to 1.
    """
    values = np.asarray(p_values, dtype=np.float64).reshape(-1)
    known = np.flatnonzero(~np.isnan(values))
    if not ((values[known] >= 0) & (values[known] <= 1)).all():
        raise ValueError(f"p_values: expected values from 0 to 1, got {values[known].min()} to {values[known].max()}")
    order = known[np.argsort(values[known], kind="stable")]
    raised = values[order] * (order.size - np.arange(order.size))
    values[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(value) for value in values]


def interval(draws: Any) -> tuple[Floats, Floats]:
    """Return the 2.5th and the 97.5th percentile of draws (B, M), linear between neighbours.

    Draws that have no value (NaN) are left out of a column that has others; all NaN give NaN.
    """
    draws = np.asarray(draws, dtype=np.float64)
    found = np.full((2, draws.shape[1]), np.nan)
    complete = ~np.isnan(draws).any(axis=0)
    found[:, complete] = np.percentile(draws[:, complete], _LEVEL, axis=0)
    for column in np.flatnonzero(~complete):
        known = draws[~np.isnan(draws[:, column]), column]
        if known.size:
            found[:, column] = np.percentile(known, _LEVEL)
    return found[0], found[1]


def _weights(images: int, resamples: int, seed: int) -> Iterator[tuple[slice, Floats]]:
    """Yield blocks of how often each resample draws each image, (b, I)."""
    if not images:
        return
    generator = np.random.default_rng(seed)
    step = max(_BLOCK // images, 1)
    for begin in range(0, resamples, step):
        size = min(step, resamples - begin)
        drawn = generator.integers(images, size=(size, images))
        drawn += np.arange(size)[:, None] * images
        weights = np.bincount(drawn.reshape(-1), minlength=size * images).reshape(size, images)
        yield slice(begin, begin + size), weights.astype(np.float64)


def _ratio(sums: Floats, counts: Floats) -> Floats:
    known = counts > 0
    found: Floats = np.where(known, sums / np.where(known, counts, 1.0), np.nan)
    return found


def _checked(resamples: int) -> int:
    if isinstance(resamples, bool) or not isinstance(resamples, (int, np.integer)) or resamples < 1:
        raise ValueError(f"resamples: expected a whole number of at least 1, got {resamples!r}")
    return int(resamples)


def _columns(sums: Any, counts: Any, name: str, number: str) -> tuple[Floats, Floats, bool]:
    total = np.asarray(sums, dtype=np.float64)
    if total.ndim not in (1, 2):
        raise ValueError(f"{name}: expected (I,) or (I, M), got shape {total.shape}")
    weight = np.ones_like(total) if counts is None else np.asarray(counts, dtype=np.float64)
    if weight.shape != total.shape:
        raise ValueError(f"{number}: expected the shape of {name}, {total.shape}, got {weight.shape}")
    if not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError(f"{number}: expected finite counts of at least 0, got {weight.min()} to {weight.max()}")
    if counts is None:
        weight = np.where(np.isnan(total), 0.0, 1.0)
        total = np.where(np.isnan(total), 0.0, total)
    flat = total.ndim == 1
    return (total[:, None], weight[:, None], True) if flat else (total, weight, False)


def _pair(given: Any, name: str) -> tuple[Floats, Floats]:
    sums, counts = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    total, weight, flat = _columns(sums, counts, name, name)
    if not flat:
        raise ValueError(f"{name}: expected one column of values, got shape {total.shape}")
    return total[:, 0], weight[:, 0]
