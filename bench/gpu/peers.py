"""What a practised user would write in torch, on any device, and the median filters of other libraries."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tam_fast.backends.contracts import DeviceAnswer, DeviceStep

# Compare-exchanges that sort nine values: the fewest there can be.
_NETWORK = (
    (0, 3), (1, 7), (2, 5), (4, 8), (0, 7), (2, 4), (3, 8), (5, 6), (0, 2), (1, 3), (4, 5), (7, 8), (1, 4),
    (3, 6), (5, 7), (0, 1), (2, 4), (3, 5), (6, 8), (2, 3), (4, 5), (6, 7), (1, 2), (3, 4), (5, 6),
)  # fmt: skip


def blend(v: Tensor, ranks: Tensor) -> Tensor:
    """Eq. 6 and 7 of sorted windows (..., n)."""
    mean, deviation = v.mean(-1), v.std(-1, correction=0)
    weights = torch.exp(-(ranks**2) * ((mean / deviation) ** 2 / 2)[..., None])
    return torch.where(deviation > 0, (weights * v).sum(-1) / weights.sum(-1), v[..., 0])


def unfold_and_sort(x: Tensor, kernel_size: int = 3) -> Tensor:
    """The filter of (B, H, W): unfold, sort, weights, weighted sum; in float32, rounded at the end."""
    half, n = kernel_size // 2, kernel_size**2
    padded = pad(x[:, None].float(), (half,) * 4, mode="reflect")[:, 0]
    windows = padded.unfold(1, kernel_size, 1).unfold(2, kernel_size, 1).reshape(*x.shape, n)
    ranks = torch.arange(n, device=x.device) - n // 2
    return blend(windows.sort(-1).values, ranks).to(x.dtype)


def shifted(x: Tensor) -> list[Tensor]:
    """The nine shifts of (B, H, W) that make the windows."""
    height, width = x.shape[-2:]
    padded = pad(x[:, None], (1,) * 4, mode="reflect")[:, 0]
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]


def stack_and_sort(x: Tensor) -> Tensor:
    """The reference formula for torch.compile: nine shifts, sorted along a new dimension."""
    ranks = torch.arange(9, device=x.device) - 4
    return blend(torch.stack(shifted(x.float()), -1).sort(-1).values, ranks).to(x.dtype)


def network(x: Tensor) -> Tensor:
    """The same by a sorting network of minima and maxima, which a compiler can fuse into one kernel."""
    v = shifted(x.float())
    for low, high in _NETWORK:
        v[low], v[high] = torch.minimum(v[low], v[high]), torch.maximum(v[low], v[high])
    mean = sum(v[1:], v[0]) / 9
    variance = sum(((value - mean) ** 2 for value in v[1:]), (v[0] - mean) ** 2) / 9
    t = mean**2 / (2 * variance)
    weights = [torch.exp(-float((rank - 4) ** 2) * t) for rank in range(9)]
    total = sum(weights[1:], weights[0])
    value = sum((w * x for w, x in zip(weights[1:], v[1:], strict=True)), weights[0] * v[0]) / total
    return torch.where(v[8] > v[0], value, v[0]).to(x.dtype)


def normalised(x: Tensor) -> Tensor:
    """Each map of (B, H, W) on its own scale."""
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    return (x - low) / (high - low)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for the shapes that come."""
    return torch.compile(function, dynamic=False, fullgraph=True)


def kornia_median() -> Callable[[Tensor], Tensor] | None:
    """kornia's 3x3 median of (B, H, W); None if it is not installed."""
    if importlib.util.find_spec("kornia") is None:
        return None
    from kornia.filters import median_blur

    return lambda x: median_blur(x[:, None], (3, 3))[:, 0]


def cupy_median() -> Callable[[Tensor], Any] | None:
    """cupyx.scipy.ndimage's 3x3 median of (B, H, W) on torch's current stream; None if it is not installed."""
    if importlib.util.find_spec("cupy") is None:
        return None
    import cupy
    from cupyx.scipy.ndimage import median_filter

    def run(x: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(x.device)
        with cupy.cuda.ExternalStream(stream.cuda_stream):
            return torch.from_dlpack(median_filter(cupy.from_dlpack(x), size=(1, 3, 3), mode="mirror"))

    return run


def median(x: Tensor) -> Tensor:
    """The exact 3x3 median of (B, H, W), which the libraries' filters are checked with."""
    return torch.stack(shifted(x), -1).median(-1).values


def causal(activation: Tensor, context: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """One product and the closed form."""
    interference = (relevance @ context) / (relevance.sum(-1, keepdim=True) + 1e-8)
    scale = (activation * interference).sum(-1) / (interference * interference).sum(-1)
    return (activation - scale[:, None] * interference).relu(), scale


def maps_of(answer: DeviceAnswer) -> Tensor:
    """From scores (U, N + K) to maps (T, N), as :class:`DeviceAnswer` describes them."""
    positions = answer.maps.shape[1]
    rows = answer.scores[answer.target_rows]
    text = rows[:, positions:]
    later = torch.arange(text.shape[1], device=text.device)[None] >= answer.lengths[:, None]
    hidden = later | (answer.context_names[None] == answer.target_names[:, None])
    context = answer.scores[answer.context_rows, :positions]
    found, _ = causal(rows[:, :positions], context, text.masked_fill(hidden, 0.0))
    low = torch.minimum(found.amin(1), text.masked_fill(later, torch.inf).amin(1))[:, None]
    high = torch.maximum(found.amax(1), text.masked_fill(later, -torch.inf).amax(1))[:, None]
    on_one_scale, parts, begin = (found - low) / (high - low), [], 0
    for height, width in answer.sizes:
        part = on_one_scale[:, begin : begin + height * width]
        parts.append(unfold_and_sort(part.reshape(-1, height, width)).view(part.shape))
        begin += height * width
    return torch.cat(parts, 1)


def scores_of(hidden: Tensor, classifier: Tensor, classes: Tensor, positions: Tensor) -> Tensor:
    """Gather rows, multiply, cut off below: (U, P) float32."""
    return product(classifier[classes], hidden[positions]).relu_()


def product(rows: Tensor, states: Tensor) -> Tensor:
    """(U, C) @ (P, C).T, accumulated and kept in float32."""
    if rows.dtype == torch.float32:
        return torch.mm(rows, states.T)
    if rows.is_cuda:
        return torch.mm(rows, states.T, out_dtype=torch.float32)
    return torch.mm(rows.float(), states.float().T)


def step_of(step: DeviceStep, length: int) -> Tensor:
    """The map (1, N) of one more streamed token after `length` others, by as few torch operations as are practical."""
    visual = step.maps.shape[1]
    token, row = step.state[:1], step.state[1:2]
    states = torch.cat([step.prompt[step.positions], step.states[: length - step.n_p]])
    scores = product(step.classifier[token], states).relu_()[0]
    text = scores[visual:]
    names, rows = step.context_names[:length], step.context_rows[:length]
    relevance = torch.where(names == row, 0.0, text)
    found, _ = causal(scores[None, :visual], step.scores[rows, :visual], relevance[None])
    low, high = torch.minimum(found.amin(), text.amin()), torch.maximum(found.amax(), text.amax())
    on_one_scale, parts, begin = ((found - low) / (high - low))[0], [], 0
    for height, width in step.sizes:
        part = on_one_scale[begin : begin + height * width].view(1, height, width)
        parts.append(unfold_and_sort(part).view(-1))
        begin += height * width
    return torch.cat(parts)[None]


def each(function: Callable[..., Any], inputs: list[Any]) -> list[Callable[[], Any]]:
    """One call an input."""
    return [partial(function, value) for value in inputs]
