"""The method in float64, one line of mathematics at a time: what every fast path is compared with.

Written from the equations of the TAM paper (ICCV 2025) alone and independent of ``tam_fast.backends.reference``: arrays
of windows instead of a loop over them, a closed form instead of a minimiser. Nothing here is meant to be quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]


def reflect_indices(size: int, before: int, after: int) -> NDArray[np.int64]:
    """Index of the source element for every element of a reflect-padded axis; the edge is not repeated."""
    positions = np.arange(-before, size + after)
    if size == 1:
        return np.zeros_like(positions)
    period = 2 * (size - 1)
    folded = np.mod(positions, period)
    return np.where(folded < size, folded, period - folded)


def rank_gaussian_filter(maps: Any, kernel_size: int = 3, *, official: bool = False, anchor: str = "centre") -> Array:
    """Rank Gaussian filter of (..., H, W): Eq. 6 and 7, weights normalised to sum one."""
    x = np.asarray(maps, dtype=np.float64)
    n = kernel_size**2
    before = kernel_size // 2 if anchor == "centre" else 0
    after = kernel_size - 1 - before
    rows = reflect_indices(x.shape[-2], before, after)
    columns = reflect_indices(x.shape[-1], before, after)
    padded = x[..., rows, :][..., columns]
    windows = sliding_window_view(padded, (kernel_size, kernel_size), axis=(-2, -1)).reshape(*x.shape, n)
    finite = np.isfinite(windows).all(-1)
    v = np.sort(np.where(finite[..., None], windows, 0.0), axis=-1)
    # A power of two a window keeps squares of 1e-200 and 1e200 alike away from the ends of float64.
    exponent = np.frexp(np.abs(v).max(-1, keepdims=True))[1]
    v = np.ldexp(v, -exponent)
    mean = v.mean(-1)
    # Two passes about the mean; the spread decides about constancy, which float64 rounding of the mean would blur.
    spread = v[..., -1] - v[..., 0]
    variance = ((v - mean[..., None]) ** 2).mean(-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        inverse = np.where(spread > 0, mean**2 / (2.0 * variance), np.inf)
        distance = (np.arange(n) - n // 2) ** 2
        exponents = np.where(distance == 0, 0.0, -distance * inverse[..., None])
        weights = np.exp(exponents)
        out = (weights * v).sum(-1) / weights.sum(-1)
    out = np.where(spread == 0, v[..., 0], out)
    out = np.where(mean <= 0, 0.0, out)
    if official:
        out = np.where((spread == 0) & (mean > 0), np.nan, out)
    out = np.ldexp(out, exponent[..., 0])
    return np.where(finite, out, np.nan)


def token_scores(hidden: Any, classifier: Any, token_ids: Any) -> Array:
    """[F w]+ for every token and position, (T, S): Eq. 1."""
    f, w = np.asarray(hidden, np.float64), np.asarray(classifier, np.float64)[np.asarray(token_ids)]
    return np.maximum(w @ f.T, 0.0)


def least_squares_scale(target: Any, interference: Any) -> Array:
    """argmin_s |A - s E|^2 in closed form: Eq. 5."""
    a, e = np.asarray(target, np.float64), np.asarray(interference, np.float64)
    power = (e * e).sum(-1)
    return np.divide((a * e).sum(-1), power, out=np.zeros_like(power), where=power > 0)


def estimated_causal_inference(activation: Any, context: Any, relevance: Any) -> tuple[Array, Array]:
    """Causal maps (T, N) and scales (T,): Eq. 2, 4 and 5."""
    a, c, r = (np.asarray(value, np.float64) for value in (activation, context, relevance))
    interference = (r @ c) / (r.sum(-1, keepdims=True) + 1e-8)
    scale = least_squares_scale(a, interference)
    return np.maximum(a - scale[:, None] * interference, 0.0), scale


@dataclass
class Answer:
    """What the oracle says about one answer; names as in ``TokenActivationMaps``."""

    maps: Array  # (T, N)
    relevance: Array  # (T, K)
    scale: Array  # (T,)
    flat: NDArray[np.bool_]  # (T,)
    unfiltered: Array  # (T, N) after the joint normalisation, before the filter


def _filter_grids(values: Array, sizes: list[tuple[int, int]], kernel_size: int, **options: Any) -> Array:
    out, offset = np.empty_like(values), 0
    for height, width in sizes:
        part = slice(offset, offset + height * width)
        raster = values[part].reshape(height, width)
        out[part] = rank_gaussian_filter(raster, kernel_size, **options).reshape(-1)
        offset += height * width
    return out


def activation_maps(
    hidden: Any,
    classifier: Any,
    token_ids: Any,
    visual: Any,
    sizes: list[tuple[int, int]],
    prompt: Any,
    answer_start: int,
    *,
    compat: str | None = None,
    kernel_size: int = 3,
    interference: bool = True,
) -> Answer:
    """All maps of one answer, token by token, as ``numerics.md`` numbers the steps (1 to 7) and the official quirks."""
    hidden, classifier = np.asarray(hidden, np.float64), np.asarray(classifier, np.float64)
    token_ids, visual, prompt = (np.asarray(value, np.int64) for value in (token_ids, visual, prompt))
    official, paper = compat == "official", compat == "paper"
    n_p, n_t = len(prompt), len(token_ids) - answer_start

    # The context in order: the class whose map explains each token, where its relevance is read, and its identity.
    ids = np.concatenate([token_ids[prompt], token_ids[answer_start:]])
    classes = ids.copy()
    places = np.concatenate([prompt, answer_start - 1 + np.arange(n_t)])
    if official:
        if n_p:
            classes[0] = int(np.argmax(hidden[prompt[0]] @ classifier.T))
        classes[n_p] = token_ids[answer_start - 1]
    scores = token_scores(hidden, classifier, classes)  # (n_p + T, S)

    maps = np.zeros((n_t, len(visual)))
    unfiltered = np.zeros_like(maps)
    relevance = np.zeros((n_t, n_p + n_t - 1))
    scale, flat = np.zeros(n_t), np.zeros(n_t, bool)
    for t in range(n_t):
        k = n_p + t
        if official and t == 0 and n_p:
            # Quirk 3: the map shown for y_1 is that of p_1, whose context is empty.
            row, length = 0, 0
            shown = places[:n_p]
        else:
            row, length, shown = k, k, places[:k]
        activation = scores[row, visual]
        raw = scores[row, places[:length]]
        masked = np.where(ids[:length] == ids[row], 0.0, raw) if length else raw
        causal = activation
        if interference and length:
            residual, s = estimated_causal_inference(activation[None], scores[:length, visual], masked[None])
            scale[t] = s[0]
            if paper:
                weights = masked.sum() + 1e-8
                causal = activation - s[0] * (masked @ scores[:length, visual]) / weights
            else:
                causal = residual[0]
        if paper:
            causal = np.maximum(_filter_grids(causal, sizes, kernel_size, anchor="top-left"), 0.0)
        text = scores[row, shown]
        low, high = min([causal.min(), *text]), max([causal.max(), *text])
        flat[t] = high == low
        if not flat[t]:
            unfiltered[t] = (causal - low) / (high - low)
            if length:
                relevance[t, :length] = (raw - low) / (high - low)
        maps[t] = unfiltered[t] if paper else _filter_grids(unfiltered[t], sizes, kernel_size, official=official)
    return Answer(maps, relevance, scale, flat, unfiltered)
