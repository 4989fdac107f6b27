"""Whether scores of regions foretell what a model does without some of them: the linear datamodeling score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tam_fast.evaluation.ranks import spearman
from tam_fast.maps.layout import Layout
from tam_fast.methods.regions import cells_kept, region_labels
from tam_fast.methods.surrogates import random_masks
from tam_fast.methods.task import Task
from tam_fast.methods.values import Values, check_baseline

__all__ = ["Datamodel", "datamodel", "linear_datamodeling_score", "region_sums"]


def linear_datamodeling_score(scores: Any, masks: Any, values: Any) -> Any:
    """Correlate what scores foretell of masks with what a model does: Spearman of masks . scores with values.

    Parameters
    ----------
    scores : (K,) or (T, K)
        Of each region, for each token or span.
    masks : (M, K)
        How much of each region stays: 0 or 1, or between.
    values : (M,) or (M, T)
        Of each mask, such as log p of a token, or the sum of a span's.

    Returns
    -------
    float or (T,) float64
        From -1 to 1; NaN where the scores, or the values, tell no mask from another.

    Raises
    ------
    ValueError
        If shapes do not fit, or there are fewer than two masks.

    Notes
    -----
    Park et al. 2023 (TRAK), section 2.3, with regions for training examples. Ties have mean ranks; what differs by
    rounding alone (1e-12 of the largest sum) is a tie.
    """
    given = np.asarray(scores, dtype=np.float64)
    kept, told = np.asarray(masks, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if given.ndim not in (1, 2) or kept.ndim != 2 or kept.shape[1] != given.shape[-1]:
        raise ValueError(f"masks: expected (M, K) for scores of shape {given.shape}, got {kept.shape}")
    if kept.shape[0] < 2:
        raise ValueError(f"masks: expected at least two, got {kept.shape[0]}")
    wanted = (kept.shape[0], *given.shape[:-1])
    if told.shape != wanted:
        raise ValueError(f"values: expected {wanted} for these scores and masks, got {told.shape}")
    foretold = given @ kept.T
    size = np.abs(foretold).max(axis=-1, keepdims=True)
    step = np.where(size > 0, size, 1.0) * 1e-12
    return spearman(np.round(foretold / step) * step, told.T)


def region_sums(maps: Any, labels: Any) -> NDArray[np.float64]:
    """Sum maps (T, N) over the cells of each region, labels (N,): (T, K). Cells of a negative label count for none."""
    values, regions = np.asarray(maps, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or regions.shape != values.shape[1:]:
        raise ValueError(f"labels: expected a region for each of the cells of maps {values.shape}, got {regions.shape}")
    known = regions >= 0
    if not known.any():
        raise ValueError("labels: expected a label of 0 or more, got none")
    return np.stack([np.bincount(regions[known], weights=row[known]) for row in values])


@dataclass(frozen=True, eq=False)
class Datamodel:
    """What a model does without some regions, to judge any number of maps by.

    Attributes
    ----------
    labels : (N,) int64
        Regions of the cells.
    masks : (M, K) bool
        Random ones: which regions stay.
    values : (M, T) float64
        log p of each target.
    ablations : (K, T) float64
        What each region's absence alone takes away: log p(all) - log p(all but it).
    """

    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]
    values: NDArray[np.float64]
    ablations: NDArray[np.float64]

    def lds(self, maps: Any, spans: Any = None) -> NDArray[np.float64]:
        """Return the linear datamodeling score of maps: Spearman over the random masks.

        Parameters
        ----------
        maps : (T, N), or (G, N) with `spans`
        spans : G lists of targets, optional
            Whose values, log p, are added: a word's tokens. Each target by itself if None.

        Returns
        -------
        (T,) or (G,) float64
        """
        sums = region_sums(maps, self.labels)
        return np.atleast_1d(linear_datamodeling_score(sums, self.masks, _spans(self.values, spans, len(sums))))

    def single(self, maps: Any, spans: Any = None) -> NDArray[np.float64]:
        """Return Spearman of regions' scores with what each one's absence alone takes away; as :meth:`lds`."""
        sums = region_sums(maps, self.labels)
        return np.atleast_1d(spearman(sums, _spans(self.ablations, spans, len(sums)).T))


def _spans(values: NDArray[np.float64], spans: Any, count: int) -> NDArray[np.float64]:
    groups = [[target] for target in range(values.shape[1])] if spans is None else [list(span) for span in spans]
    if len(groups) != count or not all(groups):
        raise ValueError(f"maps: expected {len(groups)}, one for each token or span, got {count}")
    return np.stack([values[:, group].sum(axis=1) for group in groups], axis=1)


def datamodel(
    model: Any,
    inputs: Mapping[str, Any],
    layout: Layout,
    token_ids: Any,
    *,
    regions: Any = None,
    images: Any = None,
    samples: int = 64,
    probability: float = 0.5,
    seed: int = 0,
    baseline: Any = "mean_embedding",
    normalization: Any = None,
    batch_size: int = 8,
    progress: Callable[[int, int], object] | None = None,
) -> Datamodel:
    """Ask a model about its answer with random regions of the image absent, and with each alone.

    Parameters
    ----------
    model, inputs, layout, token_ids
        As :func:`tam_fast.methods.attribute` takes them.
    regions, images
        See :func:`tam_fast.methods.regions.region_labels`.
    samples : int
        Random masks.
    probability : float
        With which a region stays.
    seed : int
    baseline, normalization, batch_size, progress
        See :class:`tam_fast.methods.values.Values`.

    Returns
    -------
    Datamodel

    Notes
    -----
    Costs at most samples + K + 1 forward passes, for any number of methods.
    """
    if isinstance(samples, bool) or not hasattr(samples, "__index__") or samples < 2:
        raise ValueError(f"samples: expected a number from 2, got {samples!r}")
    if not 0 < probability < 1:
        raise ValueError(f"probability: expected a number between 0 and 1, got {probability!r}")
    check_baseline(model, "datamodel", baseline)
    task = Task(model, inputs, layout, token_ids)
    labels = region_labels(layout, regions, images)
    count = int(labels.max()) + 1
    masks = random_masks(samples, count, seed, probability)
    single = torch.cat([torch.ones((1, count), dtype=torch.bool), ~torch.eye(count, dtype=torch.bool)])
    values = Values(
        task, "datamodel", baseline=baseline, normalization=normalization, batch_size=batch_size, progress=progress
    )
    every = torch.cat([single, masks])
    values.plan(len(every.unique(dim=0)))
    told = values(cells_kept(every, labels)).numpy()
    return Datamodel(labels.numpy(), masks.numpy(), told[count + 1 :], told[0][None] - told[1 : count + 1])
