"""Gradients of attention weights without the weights: :class:`Graph`.

With O = A V, the gradient of a logit for A is dO V^T, and dO, the gradient for what the attention gave, comes out of a
backward pass through untouched SDPA or FlashAttention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tam_fast.methods.attention_calls import AttentionCall
from tam_fast.methods.task import Task
from tam_fast.methods.weights import Kept, watch
from tam_fast.models.errors import ModelNotSupportedError

__all__ = ["Graph"]


class Graph:
    """One forward pass whose graph every target's backward pass shares.

    The graph begins at the attention of the lowest layer that is asked for: what lies below runs without one. Keys and
    values are cached nowhere, so that all of it is part of the graph.

    Parameters
    ----------
    task : Task
    layers : sequence of int
        Ascending.
    rows : (R,) int64 Tensor on the CPU, optional
        Which queries are kept of every layer; all if not given.
    last : (R,) int64 Tensor on the CPU, optional
        Which are kept of the last of the layers, if others.
    """

    def __init__(
        self, task: Task, layers: Sequence[int], rows: Tensor | None = None, last: Tensor | None = None
    ) -> None:
        self._kept: list[Kept] = []
        self._outputs: list[Tensor] = []

        def take(call: AttentionCall) -> None:
            chosen = last if call.layer == layers[-1] and last is not None else rows
            self._kept.append(Kept(call, chosen, values=True))

        def after(call: AttentionCall, output: Tensor) -> Tensor | None:
            if call.layer not in layers:
                return None
            if not self._outputs:  # watch() has switched gradients off, and puts them back
                output = output.detach().requires_grad_()
                torch.set_grad_enabled(True)
            self._outputs.append(output)
            return output

        hidden = watch(task, layers, take, after)
        with torch.enable_grad():
            self._scores = task.logits(hidden)
        if not self._scores.requires_grad:
            raise ModelNotSupportedError(
                f"model: expected {type(task.decoder).__name__} with gradients, got one without"
            )

    def backward(self, target: int) -> Iterator[tuple[Kept, Tensor]]:
        """Yield, from the last layer down, what is kept and the gradient (S, H, D) of its output, of one target.

        Targets are asked for in order: the graph is freed with the last of them.
        """
        more = target + 1 < self._scores.numel()
        found = torch.autograd.grad(self._scores[target], self._outputs, retain_graph=more, allow_unused=True)
        for kept, gradient in zip(self._kept[::-1], found[::-1], strict=True):
            if gradient is None:
                raise ModelNotSupportedError(
                    f"model: expected a gradient of the logits for the attention of layer {kept.layer}, got none"
                )
            yield kept, gradient[0]
