"""Inputs, and the peers that a user would otherwise pick: functions of no arguments that do the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import generic_filter
from scipy.optimize import minimize_scalar

import tam_fast
from tam_fast.backends import reference

Array = np.ndarray
SHAPES = ((128, 36, 36), (128, 24, 24), (256, 16, 16), (8, 256, 256))


def maps(shape: tuple[int, int, int]) -> Array:
    """Dense activation-like maps in [0, 1], float32."""
    return np.random.default_rng(7).random(shape, dtype=np.float32)


@dataclass(frozen=True)
class Peer:
    """One way to compute: `run` returns the result; a peer that does less than the filter says what it computes."""

    name: str
    run: Callable[[], Array]
    computes: str = "filter"
    slow: bool = False


def numpy_windows(x: Array, kernel_size: int) -> Array:
    """The filter in whole-array numpy: sorted windows, weights, weighted sum."""
    half, n = kernel_size // 2, kernel_size**2
    padded = np.pad(x, ((0, 0), (half, half), (half, half)), mode="reflect")
    v = np.sort(sliding_window_view(padded, (kernel_size, kernel_size), (1, 2)).reshape(*x.shape, n), axis=-1)
    mean, deviation = v.mean(-1), v.std(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean / deviation) ** 2 / 2
        weights = np.exp(-((np.arange(n) - n // 2) ** 2) * t[..., None])
        return np.where(deviation > 0, (weights * v).sum(-1) / weights.sum(-1), v[..., 0])


def torch_windows(x: torch.Tensor, kernel_size: int) -> Array:
    """The filter in torch: unfold, sort, weights, weighted sum."""
    half, n = kernel_size // 2, kernel_size**2
    padded = torch.nn.functional.pad(x[:, None], (half,) * 4, mode="reflect")
    v = torch.nn.functional.unfold(padded, kernel_size).transpose(1, 2).sort(-1).values
    mean, deviation = v.mean(-1), v.std(-1, correction=0)
    weights = torch.exp(-((torch.arange(n) - n // 2) ** 2) * ((mean / deviation) ** 2 / 2)[..., None])
    return ((weights * v).sum(-1) / weights.sum(-1)).view(x.shape).numpy()


def filter_peers(shape: tuple[int, int, int], kernel_size: int) -> list[Peer]:
    """Every peer of the rank Gaussian filter on maps of one shape."""
    x = maps(shape)
    tensor = torch.from_numpy(x)
    few = tensor[:2, :36, :36]
    median = np.empty_like(x)

    def opencv() -> Array:
        for source, target in zip(x, median, strict=True):
            cv2.medianBlur(source, kernel_size, dst=target)
        return median

    def scipy_callback() -> Array:
        return np.stack(
            [generic_filter(m, reference.filter_window, size=kernel_size, mode="mirror") for m in few.numpy()]
        )

    peers = [
        Peer("tam_fast", lambda: tam_fast.rank_gaussian_filter(tensor, kernel_size).numpy()),
        Peer("numpy sliding_window_view + sort", lambda: numpy_windows(x, kernel_size)),
        Peer("torch unfold + sort", lambda: torch_windows(tensor, kernel_size)),
        Peer(
            "reference loop (numpy)",
            lambda: reference.rank_gaussian_filter([few], kernel_size)[0].numpy(),
            slow=True,
        ),
        Peer("scipy.ndimage.generic_filter", scipy_callback, slow=True),
    ]
    if kernel_size in (3, 5):
        # Other window sizes are not supported for float32.
        peers.insert(1, Peer("cv2.medianBlur (median only)", opencv, computes="median"))
    return peers


def causal_inputs(n_p: int, n_a: int, n: int) -> tuple[Array, Array, Array]:
    """Activation (T, N), context (K, N) and triangular relevance (T, K) of an answer of n_a tokens."""
    generator = np.random.default_rng(3)
    context = generator.random((n_p + n_a - 1, n), dtype=np.float32)
    relevance = np.tril(generator.random((n_a, n_p + n_a - 1), dtype=np.float32), k=n_p - 1)
    return generator.random((n_a, n), dtype=np.float32), context, relevance


def causal_token_by_token(activation: Array, context: Array, relevance: Array) -> tuple[Array, Array]:
    """As the published program goes about it: a weighted stack and a scalar minimiser for every token."""
    causal, scales = [], []
    for a, r in zip(activation, relevance, strict=True):
        used = r > 0
        interference = (np.stack(list(context[used])) * r[used, None]).sum(0) / (r.sum() + 1e-8)
        scale = minimize_scalar(lambda s, a=a, e=interference: ((a - s * e) ** 2).sum()).x
        causal.append(np.maximum(a - scale * interference, 0))
        scales.append(scale)
    return np.stack(causal), np.array(scales)
