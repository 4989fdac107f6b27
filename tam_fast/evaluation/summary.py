"""Scores of many answers as one line of a table: :func:`summary`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tam_fast.evaluation.plausibility import Scores
from tam_fast.evaluation.statistics import bootstrap, interval, resampled

__all__ = ["FIGURES", "Summary", "harmonic_mean", "summary"]

FIGURES = ("obj_iou", "func_iou", "f1_iou", "rouge_l", "meteor", "precision", "recall")
"""What is summed up, in the order in which the published program prints it."""

_POOLED = tuple(name for name in FIGURES if name != "f1_iou")
_TITLES = ("Obj-IoU", "Func-IoU", "F1-IoU", "ROUGE-L", "METEOR", "Precision", "Recall")


@dataclass(frozen=True)
class Summary:
    """What the maps of many answers are worth.

    Attributes
    ----------
    obj_iou, func_iou, precision, recall : float
        Pooled means: over all words of all answers. NaN without any, or if one is NaN (``compat="official"``).
    f1_iou : float
        Harmonic mean of the pooled Obj-IoU and the pooled Func-IoU.
    rouge_l, meteor : float
        Means over answers.
    per_image : dict of str to float
        The same as means over answers of their means: each answer weighs the same, however many words it has.
    intervals : dict of str to (float, float)
        95 % intervals of the pooled means, by a bootstrap over answers.
    counts : dict of str to int
        How many words (of ROUGE-L and METEOR: answers) a figure is of.
    n : int
        How many answers were scored.
    dropped : int
        How many were not: their tokens were not as many as their maps (``compat="official"``).
    """

    obj_iou: float
    func_iou: float
    f1_iou: float
    precision: float
    recall: float
    rouge_l: float
    meteor: float
    per_image: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    counts: Mapping[str, int]
    n: int
    dropped: int

    def __str__(self) -> str:
        """Write the line that the published program prints."""
        pairs = zip(_TITLES, FIGURES, strict=True)
        return ", ".join(f"{title}: {getattr(self, name):.6f}" for title, name in pairs)


def summary(scores: Iterable[Scores], *, resamples: int = 2000, seed: int = 0) -> Summary:
    """Sum up the scores of answers, one an image.

    Parameters
    ----------
    scores : iterable of Scores
    resamples, seed : int
        Of the bootstrap; see :func:`tam_fast.evaluation.statistics.bootstrap`.

    Returns
    -------
    Summary
        NaN for what no answer has.

    Raises
    ------
    TypeError
        If something else than scores is given.
    ValueError
        If `resamples` is below 1.
    """
    found = list(scores)
    for one in found:
        if not isinstance(one, Scores):
            raise TypeError(f"scores: expected a list of Scores, got {type(one).__name__} in it")
    kept = [one for one in found if not one.dropped]
    sums = np.array([[float(np.sum(getattr(one, name))) for name in _POOLED] for one in kept]).reshape(-1, len(_POOLED))
    counts = np.array([[len(getattr(one, name)) for name in _POOLED] for one in kept]).reshape(-1, len(_POOLED))
    draws = resampled(sums, counts, resamples=resamples, seed=seed)
    pooled = _named(bootstrap(sums, counts, resamples=1)[0])
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    per_image = _named([_mean(column[has]) for column, has in zip(means.T, counts.T > 0, strict=True)])
    drawn = dict(zip(_POOLED, draws.T, strict=True))
    drawn["f1_iou"] = np.array([harmonic_mean(*pair) for pair in zip(drawn["obj_iou"], drawn["func_iou"], strict=True)])
    low, high = interval(np.stack([drawn[name] for name in FIGURES], axis=1))
    return Summary(
        **pooled,
        per_image=per_image,
        intervals={name: (float(low[place]), float(high[place])) for place, name in enumerate(FIGURES)},
        counts={name: int(number) for name, number in zip(_POOLED, counts.sum(axis=0), strict=True)},
        n=len(kept),
        dropped=len(found) - len(kept),
    )


def harmonic_mean(one: float, other: float) -> float:
    """Return ``2 a b / (a + b)``; 0 if both are 0."""
    total = one + other
    return float(2.0 * one * other / total) if total else 0.0


def _named(values: Any) -> dict[str, float]:
    found = {name: float(value) for name, value in zip(_POOLED, values, strict=True)}
    return found | {"f1_iou": harmonic_mean(found["obj_iou"], found["func_iou"])}


def _mean(values: Any) -> float:
    return float(np.mean(values)) if values.size else math.nan
