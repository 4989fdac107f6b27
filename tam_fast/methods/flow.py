"""Attention flow: how much can pass from a token's row, down the layers, to each position. For test sizes only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tam_fast.methods.attention_calls import AttentionCall
from tam_fast.methods.registry import register
from tam_fast.methods.rollout import attending
from tam_fast.methods.task import Task
from tam_fast.methods.weights import Kept, checker, watch

__all__ = ["LARGEST", "MaximumFlow", "attention_flow"]

LARGEST = 1 << 16
"""Edges (half of layers times positions squared) above which :func:`attention_flow` refuses: T N flows pass them.

A flow over as many takes about 0.04 s."""

_NOTHING = 1e-12  # of capacities of at most 1


class MaximumFlow:
    """Largest flows between nodes of one graph, by Dinic's blocking flows.

    Parameters
    ----------
    nodes : int
    """

    def __init__(self, nodes: int) -> None:
        self._edges: list[list[int]] = [[] for _ in range(nodes)]
        self._ends: list[int] = []  # an edge and its reverse are neighbours: e and e ^ 1
        self._capacities: list[float] = []

    def add(self, begin: int, end: int, capacity: float) -> None:
        """Add an edge."""
        for node, other, amount in ((begin, end, capacity), (end, begin, 0.0)):
            self._edges[node].append(len(self._ends))
            self._ends.append(other)
            self._capacities.append(amount)

    def between(self, source: int, sink: int) -> float:
        """Return the largest flow from one node to another, to about 1e-12 an edge."""
        left = self._capacities.copy()
        total = 0.0
        while (levels := self._levels(source, sink, left)) is not None:
            total += self._blocking(source, sink, left, levels)
        return total

    def _levels(self, source: int, sink: int, left: list[float]) -> list[int] | None:
        """Steps from the source over edges that can take more; None if the sink is out of reach."""
        levels = [-1] * len(self._edges)
        levels[source] = 0
        front = [source]
        while front and levels[sink] < 0:
            behind = []
            for node in front:
                for edge in self._edges[node]:
                    other = self._ends[edge]
                    if left[edge] > _NOTHING and levels[other] < 0:
                        levels[other] = levels[node] + 1
                        behind.append(other)
            front = behind
        return levels if levels[sink] >= 0 else None

    def _blocking(self, source: int, sink: int, left: list[float], levels: list[int]) -> float:
        """Send all that shortest paths can take; `left` is what edges can take afterwards."""
        tried = [0] * len(self._edges)
        path: list[int] = []
        total, node = 0.0, source
        while True:
            if node == sink:
                amount = min(left[edge] for edge in path)
                total += amount
                full = len(path)
                for place in range(len(path) - 1, -1, -1):
                    left[path[place]] -= amount
                    left[path[place] ^ 1] += amount
                    if left[path[place]] <= _NOTHING:
                        full = place
                node = self._ends[path[full] ^ 1]
                del path[full:]
                continue
            edges = self._edges[node]
            while tried[node] < len(edges):
                edge = edges[tried[node]]
                if left[edge] > _NOTHING and levels[self._ends[edge]] == levels[node] + 1:
                    break
                tried[node] += 1
            else:
                if node == source:
                    return total
                node = self._ends[path.pop() ^ 1]
                tried[node] += 1
                continue
            path.append(edge)
            node = self._ends[edge]


@register(
    "attention_flow",
    kind="attention",
    needs=["attention"],
    source="Abnar & Zuidema 2020, section 3: maximum flow with attention weights as capacities",
    cost=f"1 forward, T N maximum flows: test sizes only (L S^2 / 2 <= {LARGEST:,})",
    check=checker("attention_flow"),
    heads="mean",
)
def attention_flow(task: Task, heads: Any = "mean") -> Tensor:
    """Maximum flow from (L, p_t) to (0, j), with B_l = rownorm(mean_h A_l + I) as capacities.

    Parameters
    ----------
    task : Task
    heads : "mean" or int

    Raises
    ------
    ValueError
        If the graph has more than :data:`LARGEST` edges.
    """
    asked = attending(task, heads, "attention_flow")
    count = task.positions
    if (edges := len(asked) * count * (count + 1) // 2) > LARGEST:
        raise ValueError(
            f"method: 'attention_flow' expected at most {LARGEST:,} edges (half of layers times positions squared), "
            f"got {edges:,} of {len(asked)} layers and {count} positions: it is for test sizes, see 'rollout'"
        )
    flow = MaximumFlow((len(asked) + 1) * count)

    def take(call: AttentionCall) -> None:
        level = asked.index(call.layer)
        for places, weights in Kept(call).blocks(heads=heads):
            shares = pad(weights.mean(dim=0), (0, count - weights.shape[-1]))
            shares[torch.arange(len(places)), places] += 1.0
            shares /= shares.sum(dim=1, keepdim=True)
            for begin, row in zip(places.tolist(), shares.tolist(), strict=True):
                for end, capacity in enumerate(row):
                    if capacity > 0.0:
                        flow.add((level + 1) * count + begin, level * count + end, capacity)

    watch(task, asked, take)
    top = len(asked) * count
    return torch.tensor(
        [[flow.between(top + row, visual) for visual in task.visual.tolist()] for row in task.rows.tolist()]
    ).reshape(len(task), -1)
