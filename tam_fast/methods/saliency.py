"""Gradients at the visual embeddings: gradient x input, integrated gradients, SmoothGrad.

They are taken where the text decoder reads the image, of a token's logit z_i; the vision tower has run by then. What a
model adds to deeper layers beside its embeddings (deepstack) stays as it is, and has no share in the maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tam_fast.methods.gradients import check_sigma, gradients_of, noisy_tasks, scores_of, with_visual
from tam_fast.methods.registry import register
from tam_fast.methods.task import Task
from tam_fast.models.errors import ModelNotSupportedError

__all__ = ["baseline_embeddings", "visual_embeddings"]

_NEEDS: Any = {"kind": "gradient", "needs": ["gradients"]}
_REACH = 9.0  # from zeros, steps are even in the logarithm down to e^-9 of the embeddings; found best of 4 to 14


def visual_embeddings(task: Task, method: str) -> Tensor:
    """Return the decoder's embeddings (N, C) at the visual positions, without a graph.

    Raises
    ------
    ModelNotSupportedError
        If the model does not give its decoder there what it sees; names the method.
    """
    values = task.call.embeddings[0, task.visual.to(task.device)]
    pixels = task.call.pixels
    if pixels or (values.numel() and not bool(values.any())):
        why = f"has them replaced inside it ({pixels[0]})" if pixels else "adds what it sees to deeper layers"
        raise ModelNotSupportedError(
            f"method: {method!r} needs the visual embeddings that the decoder {type(task.decoder).__name__} reads, and "
            f"{type(task.model).__name__} {why}"
        )
    return values


def _gradients(task: Task, values: Tensor, method: str) -> Iterator[Tensor]:
    """Go through the gradient (N, C) of each target's logit at some visual embeddings (N, C)."""
    leaf = values.detach().requires_grad_()
    for (gradient,) in gradients_of(scores_of(task, with_visual(task, leaf)), [leaf], method):
        yield gradient.float()


@register(
    "gradient_input",
    signed=True,
    source="Shrikumar et al. 2016, gradient x input",
    cost="1 forward, T backwards",
    **_NEEDS,
)
def gradient_input(task: Task) -> Tensor:
    """Gradient x input: sum_c x_c dz_i / dx_c, signed."""
    values = visual_embeddings(task, "gradient_input")
    return torch.stack(
        [(gradient * values.float()).sum(dim=1) for gradient in _gradients(task, values, "gradient_input")]
    )


def _check_steps(_model: Any, steps: Any = 32, baseline: Any = "mean") -> None:
    _number(steps, "steps")
    if isinstance(baseline, str) and baseline not in ("zero", "mean"):
        raise ValueError(f'baseline: expected "zero", "mean" or embeddings, got {baseline!r}')


def _check_copies(_model: Any, copies: Any = 16, sigma: Any = 0.1, **_: Any) -> None:
    _number(copies, "copies")
    check_sigma(sigma)


def _number(value: Any, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value.__index__()) < 1:
        raise ValueError(f"{name}: expected a number from 1, got {value!r}")
    return int(value.__index__())


@register(
    "integrated_gradients",
    signed=True,
    source="Sundararajan et al. 2017, Eq. 1",
    cost="steps x (1 forward, T backwards)",
    check=_check_steps,
    steps=32,
    baseline="mean",
    **_NEEDS,
)
def integrated_gradients(task: Task, steps: int = 32, baseline: Any = "mean") -> Tensor:
    """Integrated gradients: sum_c (x - x')_c of the mean gradient on the straight way from x' to x, signed.

    A map sums to z_i(x) - z_i(x'), the more nearly the more `steps` there are.

    Parameters
    ----------
    task : Task
    steps : int
        Points of Gauss-Legendre quadrature. On the way from zeros they are close where the embeddings are small: norms
        of decoders hold their size, so that nearly all changes in the first thousandths.
    baseline : "mean", "zero" or Tensor (C,) or (N, C)
        x': the mean visual embedding of the input, zeros, or other embeddings.
    """
    steps = _number(steps, "steps")
    values = visual_embeddings(task, "integrated_gradients")
    start = baseline_embeddings(values, baseline)
    way = values.float() - start.float()
    total = torch.zeros((len(task), values.shape[0]), device=values.device)
    for place, weight in _points(steps, not bool(start.any())):
        at = (start.float() + place * way).to(values)
        found = [(gradient.to(way) * way).sum(dim=1) for gradient in _gradients(task, at, "integrated_gradients")]
        total += weight * torch.stack(found)
    return total


@cache
def _points(steps: int, from_zero: bool) -> list[tuple[float, float]]:
    """Where to look on the way from 0 to 1, and with what weight.

    From zero in the logarithm of the place: with x = (e^(r u) - 1) / (e^r - 1), dx = r e^(r u) / (e^r - 1) du.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    nodes, weights = (nodes + 1) / 2, weights / 2
    if from_zero:
        end = math.expm1(_REACH)
        weights = weights * _REACH * np.exp(_REACH * nodes) / end
        nodes = np.expm1(_REACH * nodes) / end
    return list(zip(nodes.tolist(), weights.tolist(), strict=True))


def baseline_embeddings(values: Tensor, baseline: Any, option: str = "baseline") -> Tensor:
    """Return what stands for no image (N, C): "zero", "mean" of the visual embeddings `values`, or embeddings given.

    Raises
    ------
    ValueError
        If it is something else, or not (C,) or (N, C).
    """
    if isinstance(baseline, str):
        if baseline == "zero":
            return torch.zeros_like(values)
        if baseline == "mean":
            return values.float().mean(dim=0).to(values).expand_as(values)
        raise ValueError(f'{option}: expected "zero", "mean" or embeddings, got {baseline!r}')
    given = torch.as_tensor(baseline)
    if tuple(given.shape) not in ((values.shape[1],), tuple(values.shape)) or not given.is_floating_point():
        raise ValueError(
            f"{option}: expected embeddings ({values.shape[1]},) or {tuple(values.shape)}, "
            f"got {tuple(given.shape)} of {given.dtype}"
        )
    return given.to(values).expand_as(values)


@register(
    "smooth_grad",
    source="Smilkov et al. 2017; norm over channels as Li et al. 2016",
    cost="copies x (1 forward, T backwards)",
    check=_check_copies,
    copies=16,
    sigma=0.1,
    seed=0,
    noise=None,
    **_NEEDS,
)
def smooth_grad(task: Task, copies: int = 16, sigma: float = 0.1, seed: int = 0, noise: Any = None) -> Tensor:
    """SmoothGrad: Euclidean norm over channels of the mean gradient over noisy copies of the visual embeddings.

    Parameters
    ----------
    task : Task
    copies : int
    sigma : float
        Standard deviation of the noise, as a part of max - min of the visual embeddings.
    seed : int
    noise : (copies, N, C) Tensor, optional
        Noise to be added, in place of drawn noise.
    """
    copies = _number(copies, "copies")
    visual_embeddings(task, "smooth_grad")
    count, total = 0, torch.zeros(())
    visual = task.visual.to(task.device)
    for _, embeddings in noisy_tasks(task, copies, sigma, seed, noise, pixels=False):
        assert embeddings is not None
        total = total.to(task.device) + torch.stack(list(_gradients(task, embeddings[0, visual], "smooth_grad")))
        count += 1
    return (total / count).square().sum(dim=2).sqrt()
