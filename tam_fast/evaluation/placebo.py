"""Does causal inference do what it is said to: the placebo test and the motivation's statistics (Fig. 1c, supp. F).

**Placebo**: before causal inference, the target's map is replaced by that of a random earlier token. What remains after
taking off the context must be worth nothing: in the paper Obj-IoU falls to 6.2 %.
**Motivation**: the nearer two tokens' maps, the more one's text bears on the other; so the textual relevance can say
what to take off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_fast.evaluation.forced import Forced
from tam_fast.maps.layout import Layout
from tam_fast.methods.attribution import checked_options, raw_maps
from tam_fast.methods.refining import refine, scaled
from tam_fast.methods.registry import method_of
from tam_fast.methods.task import Task

__all__ = [
    "Correlation",
    "InContext",
    "Motivation",
    "Pairs",
    "in_context",
    "motivation",
    "pearson",
    "placebo",
    "token_pairs",
]


@dataclass(frozen=True, eq=False)
class InContext:
    """Raw maps of an answer's tokens and of their context, before causal inference.

    K context tokens: the prompt's words and all tokens of the answer but the last, in order.

    Attributes
    ----------
    maps : (T, N) float32
    context : (K, N) float32
    relevance : (T, K) float32
        How strongly each context token bears on each target, 0 where it does not count: later ones, and those of the
        same token.
    counted : (T, K) bool
    layout : Layout
    """

    maps: Tensor
    context: Tensor
    relevance: Tensor
    counted: Tensor
    layout: Layout


def in_context(asked: Forced, method: str = "cam", **options: Any) -> InContext:
    """Make the raw maps of all tokens and words, and the relevance between them.

    Parameters
    ----------
    asked : Forced
    method : str
        Whose maps; the relevance is TAM's. Negative values become 0.
    **options
        Of the method.
    """
    chosen = method_of(method)
    task = asked.task(with_prompt=True)
    raw = raw_maps(task, chosen, checked_options(chosen, options)).clamp_min(0.0)
    words = task.layout.prompt.numel()
    relevance, counted = _relevance(task, words)
    return InContext(raw[words:], raw[:-1], relevance, counted, task.layout)


def _relevance(task: Task, words: int) -> tuple[Tensor, Tensor]:
    """Score context tokens (K,) for targets (T,): by the states at a word's own place, or that predicted a token."""
    start, ids = task.layout.answer_start, task.targets
    count = ids.numel() - words
    places = torch.cat([task.layout.prompt, start - 1 + torch.arange(count - 1)])
    known = torch.arange(words + count - 1)[None] < words + torch.arange(count)[:, None]
    counted = known & (ids[:-1][None] != ids[words:, None])
    with torch.no_grad():
        states = task.hidden()[places.to(task.device)].float()
        scores = (task.classifier_rows(ids[words:]).float() @ states.T).relu().cpu()
    return scores * counted, counted


# Placebo ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Placebo:
    """Maps as they are and with the placebo.

    Attributes
    ----------
    maps, placebo : (T, N) float32
        In [0, 1], each by its own extremes.
    replaced_by : (T,) int64
        Which context token's map the target had; -1 where there is none to take, and the placebo's map is 0.
    """

    maps: Tensor
    placebo: Tensor
    replaced_by: Tensor


def placebo(
    given: InContext | Forced,
    seed: int = 0,
    *,
    interference: str | None = "eci",
    filter: str | None = "rank_gaussian",
    kernel_size: int = 3,
) -> Placebo:
    """Replace each target's map by that of a random earlier token, before causal inference and filter.

    Parameters
    ----------
    given : InContext or Forced
    seed : int
    interference : None, "eci" or "eci_mean"
    filter, kernel_size
        See :func:`tam_fast.methods.refine`.

    Returns
    -------
    Placebo

    Notes
    -----
    Earlier tokens are those that count as the target's context: words of the prompt and tokens of the answer, but for
    the same token. Context, relevance and all else are the target's own.
    """
    if interference not in (None, "eci", "eci_mean"):
        raise ValueError(f"interference: expected None, 'eci' or 'eci_mean', got {interference!r}")
    found = in_context(given) if isinstance(given, Forced) else given
    generator = np.random.default_rng(seed)
    chosen = []
    for row in found.counted.numpy():
        earlier = np.flatnonzero(row)
        chosen.append(int(generator.choice(earlier)) if earlier.size else -1)
    replaced = torch.tensor(chosen)
    other = torch.where(replaced[:, None] >= 0, found.context[replaced.clamp_min(0)], 0.0)

    def made(maps: Tensor) -> Tensor:
        refined: Tensor = refine(
            maps,
            found.context,
            found.relevance,
            interference=interference,
            filter=filter,
            grids=found.layout.grids,
            kernel_size=kernel_size,
            counted=found.counted,
        )
        return scaled(refined)

    return Placebo(made(found.maps), made(other), replaced)


# Motivation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a target and an earlier token: how far their maps are apart, and how much one bears on the other.

    Attributes
    ----------
    random_distance, random_relevance : (n,) float64
        Each target with a random token of its context.
    related_distance, related_relevance : (n,) float64
        Each target with the token of its context of the highest relevance.
    """

    random_distance: NDArray[np.float64]
    random_relevance: NDArray[np.float64]
    related_distance: NDArray[np.float64]
    related_relevance: NDArray[np.float64]


def token_pairs(given: InContext | Forced, seed: int = 0) -> Pairs:
    """Pair each target with a random token of its context, and with the one that bears most on it.

    The distance is L1: the mean over cells of the difference of two maps, each brought to [0, 1] by its extremes (0 if
    it is constant). The relevance is the target's classifier score at the other token's state, over the largest of its
    scores at context tokens and cells together: the scale on which TAM has text and image. The paper gives neither
    scale. It is of raw maps of CAM. Targets without context, or without any relevance, are left out.
    """
    found = in_context(given) if isinstance(given, Forced) else given
    maps, context = scaled(found.maps).numpy(), scaled(found.context).numpy()
    relevance = found.relevance.double().numpy()
    generator = np.random.default_rng(seed)
    rows: list[tuple[float, float, float, float]] = []
    for target, row in enumerate(found.counted.numpy()):
        earlier = np.flatnonzero(row)
        if not earlier.size or not relevance[target].max() > 0:
            continue
        top = max(float(relevance[target].max()), float(found.maps[target].max()))
        values: list[float] = []
        for other in (int(generator.choice(earlier)), int(earlier[relevance[target, earlier].argmax()])):
            values.append(float(np.abs(maps[target].astype(np.float64) - context[other]).mean()))
            values.append(float(relevance[target, other] / top))
        rows.append((values[0], values[1], values[2], values[3]))
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Pairs(*columns)


@dataclass(frozen=True)
class Correlation:
    """Pearson's r, its two-sided p-value, and the number of pairs."""

    r: float
    p: float
    count: int


@dataclass(frozen=True)
class Motivation:
    """Correlation of distance and relevance, of random pairs and of each token with its most related one."""

    random: Correlation
    related: Correlation


def motivation(pairs: Sequence[Pairs]) -> Motivation:
    """Correlate distance with relevance over the pairs of all images.

    The p-value takes pairs for independent, as the paper does; those of one answer are not.
    """
    if not pairs:
        raise ValueError("pairs: expected at least one image's, got none")
    random, related = (
        pearson(
            np.concatenate([getattr(one, f"{name}_distance") for one in pairs]),
            np.concatenate([getattr(one, f"{name}_relevance") for one in pairs]),
        )
        for name in ("random", "related")
    )
    return Motivation(random, related)


def pearson(first: Any, second: Any) -> Correlation:
    """Correlate two series (n,) by Pearson, with the two-sided p-value of no correlation.

    Returns
    -------
    Correlation
        `r` is NaN where a series is constant, `p` also of fewer than three pairs.

    Notes
    -----
    Without correlation the density of r is proportional to (1 - r^2)^((n - 4) / 2). With r = sin a the p-value is the
    integral of cos(a)^(n - 3) from asin|r| to pi / 2 over that from 0, the former by Gauss-Legendre on parts that grow
    from the scale on which it falls, so that tiny p-values are right, too.
    """
    x, y = (np.asarray(value, dtype=np.float64) for value in (first, second))
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"second: expected {x.shape}, as first, got {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("first, second: expected finite values, got NaN or Inf")
    count = x.size
    if count < 2 or x.min() == x.max() or y.min() == y.max():
        return Correlation(math.nan, math.nan, count)
    x, y = x - x.mean(), y - y.mean()
    r = float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1.0, 1.0))
    return Correlation(r, _p_value(r, count), count)


def _p_value(r: float, count: int) -> float:
    power = count - 3
    if power < 0:
        return math.nan
    begin, end = math.asin(abs(r)), math.pi / 2
    if begin >= end:
        return 0.0
    scale = 1.0 / (power * math.tan(begin) + math.sqrt(power) + 1.0)
    edges = [begin]
    while edges[-1] < end:
        edges.append(min(begin + scale * (2.0 ** len(edges) - 1.0), end))
    points, weights = np.polynomial.legendre.leggauss(24)
    tail = 0.0
    for low, high in pairwise(edges):
        at = (low + high) / 2 + (high - low) / 2 * points
        tail += float((weights * np.cos(at) ** power).sum()) * (high - low) / 2
    whole = math.exp(0.5 * math.log(math.pi) + math.lgamma((power + 1) / 2) - math.lgamma(power / 2 + 1)) / 2
    return min(tail / whole, 1.0)
