"""Steps on rows of a batch in few passes over memory: :func:`normalise`, :func:`turn` and what goes with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["in_pairs", "normalise", "phases", "turn"]


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        scale = x.square().mean(dim=-1, keepdim=True).add_(epsilon).rsqrt_()
        normal = x * scale
        ctx.save_for_backward(normal, scale)
        return normal

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None]:
        normal, scale = ctx.saved_tensors
        along = (above[0] * normal).mean(dim=-1, keepdim=True)
        return torch.addcmul(above[0], normal, along, value=-1.0).mul_(scale), None


def normalise(x: Tensor, epsilon: float) -> Tensor:
    """Divide rows (..., C) by their root mean square: an RMS norm without its weight, which the next matrix holds."""
    normal: Tensor = _Normalise.apply(x, epsilon)  # type: ignore[no-untyped-call]
    return normal


def in_pairs(weight: Tensor, width: int) -> Tensor:
    """Reorder the rows of a projection to heads of `width`: channels i and i + width / 2 come to stand together.

    These are the two that a rotary embedding turns into each other. Products of queries and keys stay what they are if
    both are reordered.
    """
    return weight.view(-1, 2, width // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def phases(angles: Tensor) -> Tensor:
    """Return exp(i angle) (..., 1, D / 2) complex64 of angles (..., D / 2), to :func:`turn` heads of width D."""
    return torch.polar(torch.ones_like(angles), angles)[..., None, :]


def turn(x: Tensor, phase: Tensor) -> Tensor:
    """Rotate heads (..., H, D), in the order of :func:`in_pairs`, by :func:`phases`: a rotary embedding in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * phase).flatten(-2)
