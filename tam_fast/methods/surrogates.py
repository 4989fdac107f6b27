"""Simple models of the value of masks: LIME's ridge regression and Shapley values, over regions.

All take masks (M, K) and values (M, T), float64, so that masks scored elsewhere can be used too.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

__all__ = [
    "all_masks",
    "lime_coefficients",
    "lime_weights",
    "random_masks",
    "shapley_kernel",
    "shapley_masks",
    "shapley_regression",
    "shapley_values",
]


def all_masks(count: int) -> Tensor:
    """List all 2^K masks (2^K, K) bool; row i has the bits of i, the last region's the lowest."""
    rows = torch.arange(2**count)[:, None] >> torch.arange(count - 1, -1, -1)
    return (rows & 1).bool()


def shapley_values(values: Tensor) -> Tensor:
    """Shapley values (T, K) from the values (2^K, T) of :func:`all_masks`, exact.

    phi_k = sum over sets S without k of |S|! (K - |S| - 1)! / K! (v(S + k) - v(S)).
    """
    count = values.shape[0].bit_length() - 1
    masks = all_masks(count)
    sizes = masks.sum(dim=1)
    share = torch.tensor(
        [math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count) for size in range(count)],
        dtype=torch.float64,
    )
    found = []
    for region in range(count):
        without = (~masks[:, region]).nonzero()[:, 0]
        gains = values[without + 2 ** (count - 1 - region)] - values[without]
        found.append((share[sizes[without]][:, None] * gains).sum(dim=0))
    return torch.stack(found, dim=1)


def random_masks(samples: int, count: int, seed: int, probability: float = 0.5) -> Tensor:
    """Draw masks (M, K) bool in which each region stays with a probability, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((samples, count), generator=generator) < probability


# LIME --------------------------------------------------------------------------------------------


def lime_weights(masks: Tensor, width: float = 0.25) -> Tensor:
    """Weigh masks (M, K) by how near they are to the whole image: (M,) float64.

    sqrt(exp(-d^2 / width^2)), d the cosine distance to the mask of ones (1 for the empty one), as in the package lime.
    """
    kept = masks.double().sum(dim=1)
    distance = 1 - (kept / masks.shape[1]).sqrt()
    return torch.exp(-(distance**2) / width**2).sqrt()


def lime_coefficients(masks: Tensor, values: Tensor, weights: Tensor, alpha: float = 1.0) -> Tensor:
    """Ridge regression of values (M, T) on masks (M, K), weighted (M,), with an intercept that is free: (T, K)."""
    x, w = masks.double(), weights[:, None]
    x = x - (w * x).sum(dim=0) / w.sum()
    y = values - (w * values).sum(dim=0) / w.sum()
    ridge = alpha * torch.eye(x.shape[1], dtype=torch.float64)
    # Least squares of the stacked system: no inverse where alpha is 0 and masks are few.
    stacked = torch.cat([w.sqrt() * x, ridge.sqrt()])
    wanted = torch.cat([w.sqrt() * y, torch.zeros((x.shape[1], y.shape[1]), dtype=torch.float64)])
    found: Tensor = torch.linalg.lstsq(stacked, wanted, driver="gelsd").solution
    return found.T


# Kernel SHAP -------------------------------------------------------------------------------------


def shapley_kernel(masks: Tensor) -> Tensor:
    """Weigh masks (M, K) by the Shapley kernel: (K - 1) / (C(K, s) s (K - s)); 0 for the two ends, which are exact."""
    count = masks.shape[1]
    table = [0.0] * (count + 1)
    for size in range(1, count):
        table[size] = (count - 1) / (math.comb(count, size) * size * (count - size))
    return torch.tensor(table, dtype=torch.float64)[masks.long().sum(dim=1)]


def shapley_masks(samples: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose masks for Kernel SHAP: (M, K) bool and their weights (M,) float64.

    The empty mask and the full one first. Then, as in the package shap, all masks of 1 and K - 1 regions, of 2 and
    K - 2, and so on while `samples` last; the rest is drawn from the other sizes by their weight, each with its
    complement, the same on every machine.
    """
    found = [torch.zeros(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)]
    weights = [0.0, 0.0]
    left = samples - 2
    size = 1
    sizes = {number: (count - 1) / (number * (count - number)) for number in range(1, count)}
    while size <= count // 2:
        pair = {size, count - size}
        needed = math.comb(count, size) * len(pair)
        if needed > left:
            break
        for number in sorted(pair):
            each = sizes.pop(number) / math.comb(count, number)
            for chosen in combinations(range(count), number):
                mask = torch.zeros(count, dtype=torch.bool)
                mask[list(chosen)] = True
                found.append(mask)
                weights.append(each)
        left -= needed
        size += 1
    if sizes and left > 0:
        generator = torch.Generator().manual_seed(seed)
        known = list(sizes)
        share = torch.tensor([sizes[number] for number in known], dtype=torch.float64)
        drawn = torch.multinomial(share, (left + 1) // 2, replacement=True, generator=generator)
        for index in drawn.tolist():
            mask = torch.zeros(count, dtype=torch.bool)
            mask[torch.randperm(count, generator=generator)[: known[index]]] = True
            found += [mask, ~mask]
        found = found[: len(weights) + left]  # the last may be without its complement
        weights += [float(share.sum()) / left] * left
    return torch.stack(found), torch.tensor(weights, dtype=torch.float64)


def shapley_regression(masks: Tensor, values: Tensor, weights: Tensor, none: Tensor, full: Tensor) -> Tensor:
    """Kernel SHAP: weighted least squares with both ends fixed, v(none) (T,) and v(all) (T,): (T, K).

    A row sums to v(all) - v(none) whatever the masks. Of several solutions, where masks are few, the one whose values
    differ least.
    """
    count = masks.shape[1]
    even = (full - none) / count
    # What is left sums to 0 over regions: coordinates in a basis of that plane.
    plane = torch.linalg.svd(torch.ones((1, count), dtype=torch.float64), full_matrices=True).Vh[1:]
    used = weights > 0
    x, scale = masks[used].double(), weights[used].sqrt()[:, None]
    if not used.any():
        return even[:, None].expand(-1, count).clone()
    y = values[used] - none - x.sum(dim=1, keepdim=True) * even
    solved = torch.linalg.lstsq(scale * (x @ plane.T), scale * y, driver="gelsd").solution
    found: Tensor = plane.T @ solved
    return even[:, None] + found.T
