"""Attention carried down through the layers: rollout, and its forms with gradients.

Of the product of all layers' matrices only the rows that predict tokens are wanted: they are carried as (T, S) from the
last layer down, r <- r B_l, and B_l is made in blocks of rows, and dropped. Layers of linear attention have no such
matrix: they count as the identity, with a warning, for what they carry between positions is not seen. Causal rollout
pulls mass to early positions: a bias, not a finding.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tam_fast.methods.attention_calls import AttentionCall
from tam_fast.methods.attention_graph import Graph
from tam_fast.methods.registry import register
from tam_fast.methods.task import Task
from tam_fast.methods.weights import Kept, checked, checker, numbers, watch

__all__ = ["attending", "grad_attention_rollout", "grad_rollout", "rollout"]

Mix: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Makes M (R, E) of a block of weights (H, R, E), and of its places (R,)."""


def attending(task: Task, heads: Any, method: str) -> list[int]:
    """List the layers that attend; warn of those that do not."""
    asked = checked(task.layers, "mean", heads, method)
    others = [index for index in range(len(task.layers)) if index not in asked]
    if others:
        kinds = sorted({type(task.layers[index]).__name__ for index in others})
        warnings.warn(
            f"method: {method!r} takes layers {numbers(others)} of {', '.join(kinds)} as the identity: they have no "
            "attention weights, and what they carry between positions is not seen",
            stacklevel=_users_line(),
        )
    return asked


def _users_line() -> int:
    """Count the frames from who warns up to the first outside the package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("tam_fast."):
        frame, level = frame.f_back, level + 1
    return level


def carried(kept: Kept, shares: Tensor, mix: Mix, heads: Any, normalised: bool) -> Tensor:
    """Carry rows through a layer: r B with B = (M + I) over its rows' sums, or r (M + I) where not `normalised`.

    Parameters
    ----------
    kept : Kept
    shares : (T, R) Tensor
        r, over the positions whose queries are kept.
    mix : callable
        Makes M of a block of weights.
    heads : "mean" or int
    normalised : bool

    Returns
    -------
    (T, S)
    """
    found = shares.new_zeros((shares.shape[0], kept.count))
    places = shares.any(dim=0).nonzero()[:, 0].cpu()
    for part, weights in kept.blocks(places, heads):
        mixed = mix(weights, part).to(found)
        share = shares[:, part.to(shares.device)]
        if normalised:
            share = share / (mixed.sum(dim=1) + 1.0)
        found.index_add_(1, kept.positions[part].to(found.device), share)
        found[:, : mixed.shape[1]] += share @ mixed
    return found


@register(
    "rollout",
    kind="attention",
    needs=["attention"],
    source="Abnar & Zuidema 2020, Eq. 1, rows over their sums as in Chefer et al. 2021",
    cost="1 forward, and the attention weights of all layers but the last once more",
    check=checker("rollout"),
    heads="mean",
)
def rollout(task: Task, heads: Any = "mean") -> Tensor:
    """Attention rollout: B_l = rownorm(mean_h A_l + I), row p_t of B_L ... B_1.

    Keeps queries and keys of all layers but the last, in the model's dtype, and a block of weights.

    Parameters
    ----------
    task : Task
    heads : "mean" or int
    """
    asked = attending(task, heads, "rollout")
    kept: list[Kept] = []

    def take(call: AttentionCall) -> None:
        kept.append(Kept(call, task.rows if call.layer == asked[-1] else None))

    watch(task, asked, take)
    shares = torch.eye(len(task), device=task.device)
    while kept:
        shares = carried(kept.pop(), shares, lambda weights, _: weights.mean(dim=0), heads, normalised=True)
    return shares[:, task.visual.to(shares.device)]


@register(
    "grad_rollout",
    kind="attention",
    needs=["attention", "gradients"],
    source="Gildenblat 2020 (vit-explain) as meant: relu(mean_h A * dz/dA), rows over their sums, layer by layer",
    cost="1 forward; T times a backward and the attention weights of all layers",
    check=checker("grad_rollout"),
    heads="mean",
)
def grad_rollout(task: Task, heads: Any = "mean") -> Tensor:
    """Rollout of attention times gradient: B_l = rownorm((M_l + I) / 2), M_l = relu(mean_h A_l * G_l).

    The published program divides columns by sums of rows, takes the gradient of another layer and drops nine of ten
    entries; none of that is done here.

    Parameters
    ----------
    task : Task
    heads : "mean" or int
    """
    return _with_gradients(task, heads, "grad_rollout", lambda product: product.mean(dim=0).relu(), normalised=True)


@register(
    "grad_attention_rollout",
    kind="attention",
    needs=["attention", "gradients"],
    source="Chefer et al. 2021 (ICCV), Eqs. 5 and 6: R <- R + M R, M = mean_h relu(A * dz/dA)",
    cost="1 forward; T times a backward and the attention weights of all layers",
    check=checker("grad_attention_rollout"),
    heads="mean",
)
def grad_attention_rollout(task: Task, heads: Any = "mean") -> Tensor:
    """Relevance of attention (Chefer 2021): R <- R + M_l R from the identity, M_l = mean_h relu(A_l * G_l), row p_t.

    Parameters
    ----------
    task : Task
    heads : "mean" or int
    """
    return _with_gradients(
        task, heads, "grad_attention_rollout", lambda product: product.relu().mean(dim=0), normalised=False
    )


def _with_gradients(task: Task, heads: Any, method: str, mix: Callable[[Tensor], Tensor], normalised: bool) -> Tensor:
    """Carry each target's row through matrices that `mix` makes of blocks of A * G (H, R, E)."""
    graph = Graph(task, attending(task, heads, method), last=task.rows)
    maps = torch.zeros((len(task), task.visual.numel()), device=task.device)
    for target in range(len(task)):
        shares = torch.zeros((1, len(task)), device=task.device)
        shares[0, target] = 1.0
        for kept, output in graph.backward(target):

            def product(weights: Tensor, places: Tensor, kept: Kept = kept, output: Tensor = output) -> Tensor:
                return mix(weights.mul_(kept.gradients(output, places, weights.shape[-1], heads)))

            shares = carried(kept, shares, product, heads, normalised)
        maps[target] = shares[0, task.visual.to(shares.device)]
    return maps
