"""Ordering regions by greedy search, in the manner of EAGLE: which first, so that most is seen with least.

A set S of regions is the better, the likelier the token is with S alone, and the less likely without S.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tam_fast.methods.regions import cells_kept
from tam_fast.methods.values import Values

__all__ = ["greedy_places"]


@dataclass
class _Search:
    """The search for one target, or for several together.

    Attributes
    ----------
    targets : list of int
    found : list of int
        Regions, the best first.
    rest : list of int
        The others that were scored, the most promising first; those that were not, at the end.
    """

    targets: list[int]
    rest: list[int]
    found: list[int] = field(default_factory=list)
    scored: set[int] = field(default_factory=set)
    done: bool = False

    def candidates(self, step: int, scope: int | None, refresh: int) -> list[int]:
        everything = scope is None or step % refresh == 0
        return list(self.rest) if everything else self.rest[:scope]

    def take(self, candidates: list[int], scores: Tensor) -> None:
        """Take the best of the candidates by their scores (n,), and keep the others in their order."""
        order = [candidates[index] for index in scores.argsort(descending=True, stable=True).tolist()]
        self.scored.update(candidates)
        asked = set(candidates)
        self.found.append(order[0])
        self.rest = order[1:] + [region for region in self.rest if region not in asked]
        self.done = not self.rest

    def places(self, count: int) -> Tensor:
        """Return the value of each region (K,): 1 for the first, falling by 1/K; 0 for those never scored."""
        order = self.found + [region for region in self.rest if region in self.scored]
        values = torch.zeros(count, dtype=torch.float64)
        values[order] = 1.0 - torch.arange(len(order), dtype=torch.float64) / count
        return values


def greedy_places(
    values: Values,
    labels: Tensor,
    *,
    steps: int | None,
    scope: int | None,
    refresh: int,
    weight: float,
    together: bool,
) -> Tensor:
    """Order regions for each target.

    Step by step, the region is added to S that makes p(y | S) + weight (1 - p(y | all but S)) largest. Searches of all
    targets go step by step together, so that what two of them ask is run once.

    Parameters
    ----------
    values : Values
    labels : (N,) int64
        Regions of the cells.
    steps : int, optional
        How many regions are searched for; the others follow in the order of their last scores. None: all.
    scope : int, optional
        How many of the most promising regions are tried in a step. None: all.
    refresh : int
        Every so many steps all are tried.
    weight : float
        Of what is lost without S.
    together : bool
        One search for all targets, by their mean.

    Returns
    -------
    (T, K) float64
        1 for the region that is found first, falling by 1/K; 0 for those that were never scored.
    """
    count, targets = int(labels.max()) + 1, len(values.task)
    groups = [list(range(targets))] if together else [[target] for target in range(targets)]
    searches = [_Search(group, list(range(count))) for group in groups]
    for step in range(count if steps is None else min(steps, count)):
        asked = [(search, search.candidates(step, scope, refresh)) for search in searches if not search.done]
        if not asked:
            break
        masks = torch.cat([_masks(search.found, candidates, count) for search, candidates in asked])
        values.plan(len(masks.unique(dim=0)))
        scores = _scored(values, masks, labels, weight)
        start = 0
        for search, candidates in asked:
            stop = start + 2 * len(candidates)
            known = max(min(stop, len(scores)) - start, 0) // 2
            if known:
                pairs = scores[start : start + 2 * known, search.targets].mean(dim=1).view(-1, 2)
                search.take(candidates[:known], pairs.sum(dim=1))
            search.done |= known < len(candidates)  # the budget ended
            start = stop
    made = torch.empty((targets, count), dtype=torch.float64)
    for search in searches:
        made[search.targets] = search.places(count)
    return made


def _masks(found: list[int], candidates: list[int], count: int) -> Tensor:
    """Make the masks (2 n, K) of S with each candidate, and of all but these."""
    alone = torch.zeros((len(candidates), count), dtype=torch.bool)
    alone[:, found] = True
    alone[torch.arange(len(candidates)), candidates] = True
    return torch.stack([alone, ~alone], dim=1).flatten(0, 1)


def _scored(values: Values, masks: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Score masks in pairs: p (T,) with S, weight (1 - p) without; as many rows as the budget lets."""
    likely = values(cells_kept(masks, labels)).exp()
    without = torch.arange(len(likely)) % 2 == 1
    return torch.where(without[:, None], weight * (1.0 - likely), likely)
