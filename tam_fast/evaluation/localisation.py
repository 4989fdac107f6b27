"""Whether a map lies where its object is: pointing game, energy, AUROC, soft IoU, and NSS and KL against gaze.

All take a map (h, w) over the whole image and a mask or gaze map (H, W) of the same image; where their sizes differ,
the map is brought to the mask's: see :func:`resized`. Nothing here reads a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["auroc", "cell_shares", "energy_in_mask", "kl", "nss", "pointing_game", "resized", "soft_iou"]


# Sizes -----------------------------------------------------------------------------------------------------------


def resized(map: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """Bring a map (h, w) to a size (H, W), axis by axis.

    Where an axis grows, values are interpolated linearly between the centres of cells, and are constant beyond the
    outermost (as OpenCV's INTER_LINEAR and torch's bilinear without aligned corners); where it shrinks, each value is
    the mean of what it covers.

    Parameters
    ----------
    map : (h, w) ndarray, Tensor or list
    size : (H, W)

    Returns
    -------
    (H, W) float64
        A copy. NaN spreads to all that it is mixed into; along the whole of an axis that shrinks.
    """
    values = _raster(map, "map")
    height, width = size
    if min(height, width) < 1:
        raise ValueError(f"size: expected (H, W) from 1, got {size}")
    if values.shape == (height, width):
        copied: NDArray[np.float64] = values.copy()
        return copied
    found: NDArray[np.float64] = _along(_along(values, height).T, width).T
    return found


def _along(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Resize the first axis; growing by two rows each, so that NaN and Inf go no further than they are mixed."""
    length = values.shape[0]
    if count == length:
        return values
    found: NDArray[np.float64]
    if count < length:
        found = _areas(length, count) @ values
        return found
    at = np.clip((np.arange(count) + 0.5) * (length / count) - 0.5, 0, length - 1)
    low = np.floor(at).astype(np.int64)
    high, part = np.minimum(low + 1, length - 1), (at - low)[:, None]
    with np.errstate(invalid="ignore"):
        mixed = values[low] * (1 - part) + values[high] * part
    found = np.where(part > 0, mixed, values[low])  # an exact hit is its value alone, whatever stands beside it
    return found


@lru_cache(maxsize=256)
def _areas(length: int, count: int) -> NDArray[np.float64]:
    """Weights (count, length) of the mean of what each of `count` equal parts covers of `length` values."""
    edges = np.arange(count + 1) * (length / count)
    cells = np.arange(length)
    low, high = np.maximum(edges[:-1, None], cells), np.minimum(edges[1:, None], cells + 1)
    found: NDArray[np.float64] = np.maximum(high - low, 0.0) * (count / length)
    return found


def _sums(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Sum a map (h, w), brought to the size of a mask (H, W), inside the mask and everywhere; without making it.

    Resizing is linear: with R and C the weights of rows and columns, the sum inside is that of map * R^T M C.
    """
    rows, columns = (_weights_along(*sides) for sides in zip(values.shape, mask.shape, strict=True))
    total = float(rows.sum(axis=0) @ values @ columns.sum(axis=0))
    if not mask.any():
        return 0.0, total
    filled = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    down, across = (slice(int(found[0]), int(found[-1]) + 1) for found in filled)
    seen = rows[down].T @ mask[down, across].astype(np.float64) @ columns[across]
    return float((values * seen).sum()), total


@lru_cache(maxsize=256)
def _weights_along(length: int, count: int) -> NDArray[np.float64]:
    """Weights (count, length) with which :func:`resized` mixes an axis."""
    return _along(np.eye(length), count)


def cell_shares(mask: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return how much of each of (h, w) cells a mask (H, W) covers: 0 to 1.

    A mask that is coarser than the cells covers them by its own cells' squares.
    """
    inside = _mask(mask).astype(np.float64)
    if inside.shape == tuple(size):
        return inside
    for axis, count in enumerate(size):
        inside = np.moveaxis(_areas(inside.shape[axis], count) @ np.moveaxis(inside, axis, 0), 0, axis)
    return np.clip(inside, 0.0, 1.0)


# Metrics ---------------------------------------------------------------------------------------------------------


def pointing_game(
    map: Any,
    target: Any,
    tolerance: float = 0,
    *,
    size: tuple[int, int] | None = None,
    compat: str | None = None,
) -> bool | float:
    """Say whether the brightest point of a map lies on its object.

    Parameters
    ----------
    map : (h, w)
    target : (H, W) mask, (x0, y0, x1, y1) or a list of such boxes
        A pixel belongs to a box if its centre lies inside; boxes are in pixels of `size`.
    tolerance : float
        How many pixels beside the object still hit; 15 in Zhang et al. 2016.
    size : (H, W), optional
        Of the image that boxes are in; the map's own if not given. Not with a mask.
    compat : None or "official"
        ``"official"``: as EAGLE's program. The object is hit if its maximum equals the map's, so that ties and maps
        without any value hit; a map with a NaN misses. It knows no tolerance.

    Returns
    -------
    bool or float
        True or False where all of the brightest points agree; else the share of them that hit, which is what a fair
        choice among them would give. A constant map points nowhere: False.

    Raises
    ------
    ValueError, TypeError
        If the map has NaN or Inf (but with ``compat="official"``), the target is empty, or an argument is of another
        kind.

    Notes
    -----
    Zhang et al. 2016, "Top-down neural attention by excitation backprop". The map is brought to the target's size first
    (:func:`resized`), in float64 by us, in its own dtype by OpenCV with ``compat="official"``.
    """
    if compat not in (None, "official"):
        raise ValueError(f'compat: expected None or "official", got {compat!r}')
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number of pixels from 0, got {tolerance!r}")
    raster = np.asarray(map)
    inside = _target(target, raster.shape, size)
    if compat == "official":
        if tolerance:
            raise ValueError(f'tolerance: expected 0 with compat="official", got {tolerance!r}')
        return _official_hit(raster, inside)
    if not inside.any():
        raise ValueError("target: expected some pixels of an object, got none")
    found = _finite(resized(map, inside.shape))
    highest = found.max()
    if found.min() == highest:
        return False
    rows, columns = np.nonzero(found == highest)
    hits = [_near(inside, int(row), int(column), float(tolerance)) for row, column in zip(rows, columns, strict=True)]
    share = sum(hits) / len(hits)
    return bool(share) if share in (0.0, 1.0) else share


def _near(inside: NDArray[np.bool_], row: int, column: int, tolerance: float) -> bool:
    reach = int(tolerance)
    top, left = max(row - reach, 0), max(column - reach, 0)
    part = inside[top : row + reach + 1, left : column + reach + 1]
    rows, columns = np.nonzero(part)
    return bool((((rows + top - row) ** 2 + (columns + left - column) ** 2) <= tolerance**2).any())


def _official_hit(raster: NDArray[Any], inside: NDArray[np.bool_]) -> bool:
    from tam_fast.evaluation.eagle import resized_by_opencv

    found = resized_by_opencv(raster, inside.shape)
    return bool(inside.any()) and bool(found[inside].max() == found.max())


def energy_in_mask(map: Any, mask: Any) -> float:
    """Return the share of a map's positive values that lies inside a mask, 0 to 1; 0 where the map has none.

    Wang et al. 2020 (Score-CAM), the energy-based pointing game. Negative values count as 0, before the map is resized.
    """
    inside, total = _sums(np.maximum(_finite(_raster(map, "map")), 0.0), _mask(mask))
    return min(inside / total, 1.0) if total > 0 else 0.0


def auroc(map: Any, mask: Any) -> float:
    """Return how surely a cell inside has a higher value than one outside: area under the ROC curve of cells.

    Each cell counts as inside by the share that the mask covers of it, and as outside by the rest, which is the AUROC
    of pixels that have their cell's value; ties count half.

    Returns
    -------
    float
        0 to 1, 0.5 of a constant map; NaN where the mask is everywhere or nowhere.
    """
    values = _finite(_raster(map, "map")).ravel()
    shares = cell_shares(mask, np.shape(map)).ravel()
    order = np.argsort(values, kind="stable")
    ordered, positive = values[order], shares[order]
    _, starts = np.unique(ordered, return_index=True)
    inside, outside = np.add.reduceat(positive, starts), np.add.reduceat(1.0 - positive, starts)
    below = np.cumsum(outside) - outside
    total = float(inside.sum()) * float(outside.sum())
    if not (inside.sum() > 0 and outside.sum() > 0):
        return float("nan")
    return float((inside * (below + 0.5 * outside)).sum()) / total


def soft_iou(map: Any, mask: Any) -> float:
    """Return the intersection over union of a map in [0, 1] and a mask, without a threshold: sum min / sum max.

    Raises
    ------
    ValueError
        If the map has values outside of [0, 1]: scale it, and say how.
    """
    object_, values = _mask(mask), _finite(_raster(map, "map"))
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"map: expected values from 0 to 1, got {values.min():g} to {values.max():g}")
    inside, total = _sums(values, object_)
    union = float(object_.sum()) + max(total - inside, 0.0)  # where the mask is, the larger of both is 1
    return min(inside / union, 1.0) if union > 0 else 0.0


def nss(map: Any, gaze: Any) -> float:
    """Return the mean of the standardised map at fixations: normalized scanpath saliency (Peters et al. 2005).

    Parameters
    ----------
    map : (h, w)
    gaze : (H, W)
        How often each pixel was fixated; a mask counts as once.

    Returns
    -------
    float
        0 of a constant map; in units of the map's population standard deviation.
    """
    weights = _weights(gaze)
    found = _finite(resized(map, weights.shape))
    spread = float(found.std())
    if found.min() == found.max() or not spread > 0:
        return 0.0
    return float(((found - found.mean()) / spread * weights).sum() / weights.sum())


def kl(map: Any, gaze: Any, epsilon: float = float(np.finfo(np.float64).eps)) -> float:
    """Return the divergence of a map from a gaze map, both as distributions: sum g log(epsilon + g / (m + epsilon)).

    As the MIT saliency benchmark has it (Bylinskii et al. 2018); in nats, 0 at best. Negative values of the map count
    as 0; a map without values is uniform: it says nothing.
    """
    weights = _weights(gaze)
    found = np.maximum(_finite(resized(map, weights.shape)), 0.0)
    total = float(found.sum())
    shown = found / total if total > 0 else np.full(found.shape, 1.0 / found.size)
    wanted = weights / weights.sum()
    return float((wanted * np.log(epsilon + wanted / (shown + epsilon))).sum())


# Arguments -------------------------------------------------------------------------------------------------------


def _raster(value: Any, name: str) -> NDArray[np.float64]:
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers (h, w), got {type(value).__name__}") from error
    if found.ndim != 2 or not found.size:
        raise ValueError(f"{name}: expected (h, w), got shape {found.shape}")
    return found


def _finite(found: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(found).all():
        raise ValueError("map: expected finite values, got NaN or Inf")
    return found


def _mask(mask: Any) -> NDArray[np.bool_]:
    found = np.asarray(mask)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"mask: expected (H, W), got shape {found.shape}")
    if found.dtype != np.bool_ and not ((found == 0) | (found == found.max())).all():
        raise ValueError(
            f"mask: expected one object, True or False, got {len(np.unique(found))} values: compare labels with one"
        )
    inside: NDArray[np.bool_] = found != 0
    return inside


def _weights(gaze: Any) -> NDArray[np.float64]:
    found = _raster(gaze, "gaze")
    if not (np.isfinite(found).all() and found.min() >= 0 and found.sum() > 0):
        raise ValueError("gaze: expected values from 0, and some above it, got others")
    return found


def _target(target: Any, shape: Sequence[int], size: tuple[int, int] | None) -> NDArray[np.bool_]:
    given = np.asarray(target)
    one = given.ndim == 1 and given.shape == (4,)
    boxes = given.ndim == 2 and given.shape[1] == 4 and isinstance(target, (list, tuple)) and given.dtype != np.bool_
    if not one and not boxes:
        if size is not None:
            raise ValueError(f"size: expected none with a mask, got {size}")
        return _mask(target)
    height, width = size or tuple(shape)
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    inside = np.zeros((height, width), dtype=np.bool_)
    for x0, y0, x1, y1 in given.reshape(-1, 4).astype(np.float64):
        inside |= (columns >= x0) & (columns <= x1) & (rows >= y0) & (rows <= y1)
    return inside
