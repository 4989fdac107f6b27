"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal, :class:`Muon`."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalise"]

# Coefficients of the quintic step x -> a x + b x^3 + c x^5 on the singular values.
_STEP = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Pull the singular values of matrices (..., M, N) towards 1 (to about 0.7 to 1.2) by five Newton-Schulz steps.

    In the dtype of the matrices; zero matrices stay zero.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x: Tensor = matrices if wide else matrices.mT
    x = x / x.flatten(-2).norm(dim=-1).clamp(min=1e-7)[..., None, None]
    a, b, c = _STEP
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``, in float32 and with matrices of a shape together.

    Torch's orthogonalises one matrix at a time in bfloat16, which takes ten times as long on processors that do not
    multiply such numbers themselves. Momentum is 0.95, Nesterov's; the rate of a matrix (M, N) is ``lr`` times
    0.2 sqrt(max(M, N)), and its weights decay by ``lr * weight_decay``.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"params: expected matrices, got a tensor of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; closures are not supported."""
        del closure
        for group in self.param_groups:
            together: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    together.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in together.items():
                updates = orthogonalise(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum of a parameter's gradient, whose running mean it updates."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        mean: Tensor = state["momentum_buffer"]
        mean.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(mean, momentum)
