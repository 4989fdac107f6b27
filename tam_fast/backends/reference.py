"""The TAM paper in numpy and scipy: a loop over windows, a minimiser for the scale. Slow, and meant to be read.

Select it with ``TAM_FAST_BACKEND=reference``. Results are computed in float64 and returned in the operators' dtypes.
Equation numbers are those of *Token Activation Map to Visually Explain Multimodal LLMs* (ICCV 2025).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from tam_fast.backends.contracts import StepBuffers

Array = NDArray[np.float64]
Minimiser = Literal["scalar", "bfgs"]


def _array(tensor: Tensor) -> Array:
    return tensor.detach().to(torch.float64).numpy()


def _float32(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def _normalised(scores: Array, rows: Array) -> Array:
    """E = sum_k r_k A_k / (sum_k r_k + 1e-8), the weights' normalisation included (Eq. 4)."""
    used = rows != 0
    # An unused map must not enter even as 0 * NaN.
    weighted = np.einsum("k,kn->n", rows[used], scores[used])
    return np.asarray(weighted / (rows.sum() + 1e-8), dtype=np.float64)


def filter_window(values: Array, *, constant_window_nan: bool = False) -> float:
    """Rank Gaussian filter of one window's values (n,): Eq. 6 and 7."""
    if not np.isfinite(values).all():
        return float("nan")
    largest = np.abs(values).max()
    if largest == 0:
        return 0.0
    unit = 2.0 ** np.floor(np.log2(largest))
    v = np.sort(values / unit)
    mean = v.mean()
    if mean <= 0:
        return 0.0
    if v[0] == v[-1]:
        return float("nan") if constant_window_nan else float(values[0])
    variation = v.std() / mean
    rank = np.arange(v.size) - v.size // 2
    with np.errstate(under="ignore", divide="ignore", over="ignore"):
        # exp(-0^2 / 0) is the limit 1 of the median's own weight when the variation underflows.
        weights = np.where(rank == 0, 1.0, np.exp(-np.divide(rank**2, 2 * variation**2)))
    return float((weights * v).sum() / weights.sum() * unit)


def rank_gaussian_filter(maps: list[Tensor], kernel_size: int, *, constant_window_nan: bool = False) -> list[Tensor]:
    """Filter every map window by window; dtype and shape as given."""
    half = kernel_size // 2
    results = []
    for item in maps:
        values = _array(item)
        *leading, height, width = values.shape
        stack = values.reshape(int(np.prod(leading)), height, width)
        out = np.empty(stack.shape)
        for index, raster in enumerate(stack):
            padded = np.pad(raster, half, mode="reflect")
            for y in range(height):
                for x in range(width):
                    window = padded[y : y + kernel_size, x : x + kernel_size].ravel()
                    out[index, y, x] = filter_window(window, constant_window_nan=constant_window_nan)
        results.append(torch.from_numpy(out.reshape(values.shape)).to(item.dtype))
    return results


def token_scores(hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor]) -> list[Tensor]:
    """relu(F w) for the gathered rows: Eq. 1."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf of the states are the result's
        return [
            _float32(np.maximum(_array(classifier[ids]) @ _array(states).T, 0.0))
            for states, ids in zip(hidden, token_ids, strict=True)
        ]


def minimise_scale(target: Array, interference: Array, minimiser: Minimiser = "scalar") -> float:
    """argmin_s |A - s E|^2 (Eq. 5) by search: ``scalar`` as the published program, ``bfgs`` as the paper says."""
    power = float(interference @ interference)
    if power == 0:
        return 0.0
    if not (np.isfinite(target).all() and np.isfinite(interference).all()):
        return float("nan")
    # In units of the interference's norm the search is well conditioned whatever the maps' magnitude.
    unit_e = interference / np.abs(interference).max()
    unit_a = target / (np.abs(target).max() or 1.0)

    def error(scale: Any) -> float:
        residual = unit_a - np.asarray(scale).item() * unit_e
        return float(residual @ residual)

    if minimiser == "bfgs":
        found = float(minimize(error, x0=np.ones(1), method="BFGS", options={"gtol": 1e-10}).x.item())
    else:
        found = float(minimize_scalar(error, tol=1e-12).x)
    return found * float((np.abs(target).max() or 1.0) / np.abs(interference).max())


def least_squares_scale(target: Tensor, interference: Tensor) -> Tensor:
    """One search a row."""
    a, e = _array(target), _array(interference)
    rows_a, rows_e = a.reshape(-1, a.shape[-1]) if a.size else a, e.reshape(-1, e.shape[-1]) if e.size else e
    if a.size == 0:
        return torch.zeros(target.shape[:-1], dtype=torch.float32)
    found = [minimise_scale(row_a, row_e) for row_a, row_e in zip(rows_a, rows_e, strict=True)]
    return _float32(np.reshape(found, a.shape[:-1]))


def _causal(activation: Array, context: Array, relevance: Array) -> tuple[Array, float]:
    interference = _normalised(context, relevance)
    scale = minimise_scale(activation, interference)
    return np.maximum(activation - scale * interference, 0.0), scale


def estimated_causal_inference(
    activation: list[Tensor], context: list[Tensor], relevance: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Interference, scale and residual, token by token: Eq. 2, 4 and 5."""
    causal, scales = [], []
    for a, c, r in zip(activation, context, relevance, strict=True):
        maps, context_maps, weights = _array(a), _array(c), _array(r)
        pairs = [_causal(row, context_maps, weights[t]) for t, row in enumerate(maps)]
        causal.append(_float32(np.stack([row for row, _ in pairs]) if pairs else np.empty(maps.shape)))
        scales.append(_float32(np.array([scale for _, scale in pairs])))
    return causal, scales


def finish_maps(
    scores: list[Tensor],
    activation_rows: list[Tensor],
    context_rows: list[Tensor] | None,
    relevance: list[Tensor],
    text_relevance: list[Tensor],
    text_length: list[Tensor],
    grids: list[list[tuple[int, int]]],
    kernel_size: int,
    *,
    constant_window_nan: bool = False,
    out: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Causal inference, joint normalisation with the text (Eq. 3) and filter of whole answers."""
    results: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]] = ([], [], [], [])
    for item, sizes in enumerate(grids):
        rows = _array(scores[item])
        context = rows if context_rows is None else rows[context_rows[item].numpy()]
        weights, text = _array(relevance[item]), _array(text_relevance[item])
        context = context[: weights.shape[1]]
        targets = activation_rows[item].tolist()
        maps, shown = np.zeros((len(targets), rows.shape[1])), np.zeros(text.shape)
        scale, flat = np.zeros(len(targets)), np.zeros(len(targets), dtype=bool)
        for t, row in enumerate(targets):
            causal, scale[t] = _causal(rows[row], context, weights[t])
            length = int(text_length[item][t])
            together = np.concatenate([causal, text[t, :length]])
            low, high = together.min(initial=np.inf), together.max(initial=-np.inf)
            flat[t] = low >= high  # with neither a cell nor a word the range is empty
            if flat[t]:
                continue
            shown[t, :length] = (text[t, :length] - low) / (high - low)
            normalised, begin = (causal - low) / (high - low), 0
            for height, width in sizes:
                raster = torch.from_numpy(normalised[begin : begin + height * width].reshape(1, height, width))
                filtered = rank_gaussian_filter([raster], kernel_size, constant_window_nan=constant_window_nan)[0]
                maps[t, begin : begin + height * width] = filtered.numpy().ravel()
                begin += height * width
        for collected, value in zip(results[:3], (maps, shown, scale), strict=True):
            collected.append(_float32(value))
        results[3].append(torch.from_numpy(flat))
    if out is not None:
        for item, places in enumerate(out):
            for place, found in zip(places, results, strict=True):
                place.copy_(found[item])
    return results


def step_scores(
    buffers: StepBuffers, classifier: Tensor, prompt: Tensor | None, states: Tensor, count: int, begin: int
) -> None:
    """Score one more token of a stream: token_scores."""
    if prompt is not None:
        buffers.scores.copy_(token_scores([prompt], classifier, [buffers.token])[0][0])
    if count:
        buffers.text[begin : begin + count] = token_scores([states[:count]], classifier, [buffers.token])[0][0]


def step_maps(
    buffers: StepBuffers,
    classes: int,
    length: int,
    sizes: list[tuple[int, int]],
    kernel_size: int,
    out: tuple[Tensor, Tensor],
) -> None:
    """Finish the map of one more token of a stream: finish_maps."""
    b = buffers
    relevance, text = b.relevance[None, :classes], b.text[None, :length]
    places = [(out[0][None], out[1][None], b.scale, b.flat)]
    finish_maps([b.maps], [b.row], None, [relevance], [text], [b.length], [sizes], kernel_size, out=places)


def info() -> dict[str, Any]:
    """Describe the backend for ``backend_info``."""
    return {"isa": None, "isa_why": "numpy and scipy in float64", "available_isas": []}
