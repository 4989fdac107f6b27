"""Methods that read attention weights of the row that predicts a token, with or without their gradients.

Attention sinks (the first token) take most of the mass, and rows of one answer differ little: these maps show where a
layer reads from, not why a token was said. Which layers and heads the paper's Table 3 takes is not said; here it is the
mean over heads of the last layer that attends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tam_fast.methods import flow, rollout  # noqa: F401 - they register theirs
from tam_fast.methods.attention_graph import Graph
from tam_fast.methods.registry import register
from tam_fast.methods.task import Task
from tam_fast.methods.weights import attention_rows, checked, checker

__all__ = ["attention", "attention_grad_cam", "attention_rows", "grad_attention"]


@register(
    "attention",
    kind="attention",
    needs=["attention"],
    source="Vaswani et al. 2017: softmax(q_p K^T / sqrt(d)), row of the position that predicts the token",
    cost="1 forward",
    check=checker("attention"),
    layer=None,
    heads="mean",
)
def attention(task: Task, layer: Any = None, heads: Any = "mean") -> Tensor:
    """Attention of the row p_t to each visual position.

    Parameters
    ----------
    task : Task
    layer : None, int or "mean"
        The last layer that attends; one; the mean over all that attend.
    heads : "mean" or int
    """
    rows = attention_rows(task, task.rows, layer, heads)
    return rows[:, task.visual.to(rows.device)]


@register(
    "grad_attention",
    kind="attention",
    needs=["attention", "gradients"],
    source="Chefer et al. 2021 (ICCV), Eq. 5: mean over heads of relu(A * dz/dA), row of the position that predicts",
    cost="1 forward, T backwards from the lowest layer asked for",
    check=checker("grad_attention"),
    layer=None,
    heads="mean",
)
def grad_attention(task: Task, layer: Any = None, heads: Any = "mean") -> Tensor:
    """Attention weighted by its gradient, row p_t: mean_h relu(A * G).

    Parameters
    ----------
    task : Task
    layer : None, int or "mean"
        The last layer that attends; one; the mean over all that attend.
    heads : "mean" or int
    """
    return _rows_with_gradients(task, layer, heads, "grad_attention", lambda seen, slope: (seen * slope).relu().mean(0))


@register(
    "attention_grad_cam",
    kind="attention",
    needs=["attention", "gradients"],
    source="Selvaraju et al. 2017 (Grad-CAM), with heads for channels: relu(mean_h (mean_V G_h) A_h)",
    cost="1 forward, T backwards from the lowest layer asked for",
    check=checker("attention_grad_cam"),
    layer=None,
    heads="mean",
)
def attention_grad_cam(task: Task, layer: Any = None, heads: Any = "mean") -> Tensor:
    """Grad-CAM of attention, row p_t: a head weighs the mean of its gradient over the visual positions.

    Parameters
    ----------
    task : Task
    layer : None, int or "mean"
        The last layer that attends; one; the mean of the maps of all that attend.
    heads : "mean" or int
    """

    def mix(seen: Tensor, slope: Tensor) -> Tensor:
        return (slope.mean(dim=1, keepdim=True) * seen).mean(dim=0).relu()

    return _rows_with_gradients(task, layer, heads, "attention_grad_cam", mix)


def _rows_with_gradients(
    task: Task, layer: Any, heads: Any, method: str, mix: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Mix weights (H, N) and gradients (H, N) of each target's row to maps (T, N); the mean over the layers."""
    asked = checked(task.layers, layer, heads, method)
    graph = Graph(task, asked, task.rows)
    maps = torch.zeros((len(task), task.visual.numel()), device=task.device)
    for target in range(len(task)):
        place = torch.tensor([target])
        for kept, output in graph.backward(target):
            ((_, weights),) = kept.blocks(place, heads)
            gradient = kept.gradients(output, place, weights.shape[-1], heads)
            # A word of the prompt may stand before some visual positions, to which its row has no weights.
            both = pad(torch.stack([weights[:, 0], gradient[:, 0]]), (0, kept.count - weights.shape[-1]))
            seen, slope = both[..., task.visual.to(both.device)]
            maps[target] += mix(seen, slope).to(maps) / len(asked)
    return maps
