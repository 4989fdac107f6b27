"""Autograd rules of layer-wise relevance propagation, for a while: :class:`rules`.

Gradient x input of a network whose derivatives are replaced is relevance. What the modules give stays as it is to the
bit: hooks hand it on with another derivative behind it, and queries, keys and values are replaced where attention is
called. No class, function or configuration of transformers is changed.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tam_fast.methods.attention_calls import AttentionCall, attention_calls
from tam_fast.methods.kinds import Activation, Kinds, Norm
from tam_fast.methods.task import hooked
from tam_fast.models.errors import ModelNotSupportedError

__all__ = ["Rule", "rules"]

Rule: TypeAlias = Literal["attn_lrp", "cp_lrp"]

_entered = threading.local()  # .stack: the rules of this thread, innermost last


class rules:
    """Replace derivatives of a decoder inside a ``with`` block, in the thread that entered it.

    A graph that was built inside keeps its rules afterwards. Where blocks are nested, the innermost holds.

    ======================  ============================  =========================
    of                      ``"attn_lrp"``                ``"cp_lrp"``
    ======================  ============================  =========================
    norm                    1 / rms is constant           the same
    activation f(g)         f(g) / g                      the same; 0 if it gates
    gate * up               halved                        all to up
    queries, keys           times 1/4                     0
    values                  times 1/2                     1
    ======================  ============================  =========================

    The softmax of attention keeps its derivative, as what scales or caps its products; linear modules are plain.

    Parameters
    ----------
    kinds : Kinds
    rule : "attn_lrp" or "cp_lrp"
    """

    def __init__(self, kinds: Kinds, rule: Rule) -> None:
        self._kinds = kinds
        self._attentive = rule == "attn_lrp"
        self._exits = ExitStack()

    def __enter__(self) -> rules:
        kinds = self._kinds
        with ExitStack() as exits:
            exits.enter_context(hooked([norm.module for norm in kinds.norms], self._norm))
            exits.enter_context(hooked([found.module for found in kinds.activations], self._activation))
            if self._attentive:
                exits.enter_context(hooked(kinds.products, self._product, pre=True))
            exits.enter_context(attention_calls(kinds.layers, self._attention))
            self._exits = exits.pop_all()
        _stack().append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _stack().pop()
        self._exits.close()

    @property
    def _holds(self) -> bool:
        return bool(_stack()) and _stack()[-1] is self

    def _norm(self, index: int, module: torch.nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        norm = self._kinds.norms[index]
        return _norm_rule(norm, _first(module, arguments), output) if self._holds else None

    def _activation(self, index: int, module: torch.nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        found = self._kinds.activations[index]
        if not self._holds:
            return None
        if found.gated and not self._attentive:
            return output.detach()
        return _activation_rule(found, _first(module, arguments), output)

    def _product(self, _index: int, module: torch.nn.Module, arguments: Any) -> Any:
        return (scaled(_first(module, arguments), 0.5), *arguments[1:]) if self._holds else None

    def _attention(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor] | None:
        if not self._holds:
            return None
        if not self._attentive:
            return call.query.detach(), call.key.detach(), call.value
        return scaled(call.query, 0.25), scaled(call.key, 0.25), scaled(call.value, 0.5)


def _stack() -> list[rules]:
    if not hasattr(_entered, "stack"):
        _entered.stack = []
    found: list[rules] = _entered.stack
    return found


def _first(module: torch.nn.Module, arguments: Any) -> Tensor:
    if not arguments or not isinstance(arguments[0], Tensor):
        raise ModelNotSupportedError(
            f"method: relevance needs modules that are given their input by place, got {type(module).__name__} by name"
        )
    found: Tensor = arguments[0]
    return found


def scaled(values: Tensor, factor: float) -> Tensor:
    """Return values as they are, whose gradient is multiplied by a factor."""
    found: Tensor = _Scaled.apply(values, factor)  # type: ignore[no-untyped-call]
    return found


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def _norm_rule(norm: Norm, states: Tensor, output: Tensor) -> Tensor:
    with torch.no_grad():
        scale = norm.scale(states)
    found: Tensor = _Normed.apply(states, output.detach(), scale, norm.weight.to(scale.device), norm.centred)  # type: ignore[no-untyped-call]
    return found


class _Normed(torch.autograd.Function):
    """A norm with a constant 1 / rms: dx = w g / rms, less its mean where the norm takes off the mean of x."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, output: Tensor, scale: Tensor, weight: Tensor, centred: bool) -> Tensor:
        ctx.save_for_backward(scale, weight)
        ctx.centred, ctx.dtype = centred, states.dtype
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        scale, weight = ctx.saved_tensors
        found = gradient.float() * weight
        found *= scale
        if ctx.centred:
            found -= found.mean(dim=-1, keepdim=True)
        return found.to(ctx.dtype), None, None, None, None


def _activation_rule(activation: Activation, states: Tensor, output: Tensor) -> Tensor:
    with torch.no_grad():
        if states.dtype in (torch.float32, torch.float64):
            ratio = output / states
        else:
            wide = states.float()
            ratio = (activation.module.forward(wide) / wide).to(states.dtype)
        ratio = torch.where(states == 0, activation.slope, ratio)
    found: Tensor = _Activated.apply(states, output.detach(), ratio)  # type: ignore[no-untyped-call]
    return found


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _states: Tensor, output: Tensor, ratio: Tensor) -> Tensor:
        ctx.save_for_backward(ratio)
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (ratio,) = ctx.saved_tensors
        return gradient * ratio, None, None
