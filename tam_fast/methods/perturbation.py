"""Methods that take parts of the image away and look at what becomes of the tokens.

The value of a mask is v(mask) = log p(y_i | what it keeps) of the teacher-forced answer: see
:class:`tam_fast.methods.values.Values`, and :class:`tam_fast.methods.pixels.Pixels` for absent pixels. All are by
regions, see :func:`tam_fast.methods.regions.region_labels`; a cell has the value of its region, undivided.

Captum has LIME and SHAP by sampling as well. It explains one output of a forward function at a time, where here one
forward gives all T tokens of an answer: it would cost T times as much. So they are written anew.

Options of all methods
----------------------
regions, images
    How the cells are divided, see :func:`tam_fast.methods.regions.region_labels`: in 64 blocks, or superpixels of
    `images`. ``explain`` knows the images: there None takes superpixels of them, True insists, False takes blocks.
baseline, normalization
    What stands where a region is absent, ``"mean_embedding"`` by default; see :class:`tam_fast.methods.values.Values`.
    ``explain`` asks the processor for the normalization of pixels.
batch_size, budget, progress
    How many variants are run at once, and in all; who is told. See :class:`tam_fast.methods.values.Values`. Where the
    budget ends early, the maps are made of what is known by then, and a warning says so. ``explain`` takes True for
    `progress` too, which shows a bar.
seed
    Where masks are drawn: the same seed draws the same, on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tam_fast.methods.regions import (
    cell_places,
    cells_kept,
    check_regions,
    checked_masks,
    region_labels,
    soft_masks,
    spread,
)
from tam_fast.methods.registry import register
from tam_fast.methods.search import greedy_places
from tam_fast.methods.surrogates import (
    all_masks,
    lime_coefficients,
    lime_weights,
    random_masks,
    shapley_kernel,
    shapley_masks,
    shapley_regression,
    shapley_values,
)
from tam_fast.methods.task import Task
from tam_fast.methods.values import Values, check_baseline

__all__: list[str] = []

EXACT = 10
"""Of so many regions at most, Shapley values are exact: 2^10 forwards."""

_OPTIONS: dict[str, Any] = {
    "regions": None,
    "images": None,
    "baseline": "mean_embedding",
    "normalization": None,
    "batch_size": 8,
    "budget": None,
    "progress": False,
}


def _count(value: Any, name: str) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value.__index__()) < 1:
        raise ValueError(f"{name}: expected a number from 1, got {value!r}")


def _count_or_none(value: Any, name: str) -> None:
    if value is not None:
        _count(value, name)


def _number(value: Any, name: str, lowest: float, expected: str, open_end: bool = False) -> None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not (lowest < value if open_end else lowest <= value) or value == float("inf"):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def _probability(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value!r}")


def _seed(value: Any, name: str) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not -(2**63) <= int(value.__index__()) < 2**63:
        raise ValueError(f"{name}: expected a whole number of 64 bits, got {value!r}")


def _told(value: Any, name: str) -> None:
    if value is True or not (value in (False, None) or callable(value)):
        raise TypeError(f"{name}: expected a callable (done, total) or False, got {value!r}")


def _flag(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def _regions(value: Any, _name: str) -> None:
    check_regions(value)


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    **dict.fromkeys(("samples", "size", "refresh", "batch_size"), _count),
    **dict.fromkeys(("budget", "steps", "scope"), _count_or_none),
    "probability": _probability,
    "width": partial(_number, lowest=0, expected="a number above 0", open_end=True),
    **dict.fromkeys(("alpha", "weight"), partial(_number, lowest=0, expected="a number from 0")),
    "seed": _seed,
    "regions": _regions,
    "progress": _told,
    "together": _flag,
}


def _needs(method: str, signed: bool) -> dict[str, Any]:
    def check(model: Any, baseline: Any = "mean_embedding", **options: Any) -> None:
        check_baseline(model, method, baseline)
        for name, value in options.items():
            if name in _CHECKS:
                _CHECKS[name](value, name)

    return {"kind": "perturbation", "needs": ["forwards"], "signed": signed, "check": check, **_OPTIONS}


@register(
    "occlusion",
    source="Zeiler & Fergus 2014, occlusion; log p",
    cost="1 + K forwards of K regions",
    **_needs("occlusion", signed=True),
)
def occlusion(task: Task, regions: Any = None, images: Any = None, **how: Any) -> Tensor:
    """Occlusion: v(all) - v(all but the region), signed. Regions that the budget leaves out have 0.

    ``regions="cells"`` takes each cell away by itself.
    """
    labels = region_labels(task.layout, regions, images)
    values = Values(task, "occlusion", **how)
    count = int(labels.max()) + 1
    masks = torch.cat([torch.ones((1, count), dtype=torch.bool), ~torch.eye(count, dtype=torch.bool)])
    values.plan(len(masks))
    known = values(cells_kept(masks, labels))
    values.warn(f"{count + 1 - len(known)} of {count} regions have 0")
    made = torch.zeros((len(task), count), dtype=torch.float64)
    made[:, : len(known) - 1] = (known[0] - known[1:]).T
    return spread(made, labels)


@register(
    "lime",
    source="Ribeiro et al. 2016, LIME for images; kernel and ridge of the package lime",
    cost="samples forwards",
    samples=256,
    masks=None,
    width=0.25,
    alpha=1.0,
    seed=0,
    **_needs("lime", signed=True),
)
def lime(
    task: Task,
    regions: Any = None,
    images: Any = None,
    samples: int = 256,
    masks: Any = None,
    width: float = 0.25,
    alpha: float = 1.0,
    seed: int = 0,
    **how: Any,
) -> Tensor:
    """LIME: coefficients of a ridge regression of v on which regions stay, signed.

    Masks are weighted by sqrt(exp(-d^2 / width^2)), d being the cosine distance to the whole image.

    Parameters
    ----------
    samples : int
        Masks in which each region stays with probability 1/2; the first is the whole image.
    masks : (M, K) array, optional
        Masks in their place: 1 where a region stays.
    width : float
        Of the kernel.
    alpha : float
        Of the ridge; the intercept is free.
    seed : int
    """
    labels = region_labels(task.layout, regions, images)
    count = int(labels.max()) + 1
    if masks is None:
        drawn = random_masks(samples, count, seed)
        drawn[0] = True
    else:
        drawn = checked_masks(masks, labels)
    values = Values(task, "lime", **how)
    values.plan(len(drawn.unique(dim=0)))
    known = values(cells_kept(drawn, labels))
    values.warn(f"the regression is of {len(known)} of {len(drawn)} masks")
    drawn = drawn[: len(known)]
    return spread(lime_coefficients(drawn, known, lime_weights(drawn, width), alpha), labels)


@register(
    "shap",
    source="Shapley 1953; Lundberg & Lee 2017, Kernel SHAP",
    cost="2^K forwards of K <= 10 regions, else samples forwards",
    samples=512,
    masks=None,
    seed=0,
    **_needs("shap", signed=True),
)
def shap(
    task: Task,
    regions: Any = None,
    images: Any = None,
    samples: int = 512,
    masks: Any = None,
    seed: int = 0,
    **how: Any,
) -> Tensor:
    """Shapley values of the regions, signed: exact for at most 10 regions, else by Kernel SHAP.

    Each token's values sum over regions to v(all) - v(none); in Kernel SHAP too, whose regression has both ends fixed.

    Parameters
    ----------
    samples : int
        Masks of Kernel SHAP, the two ends included.
    masks : (M, K) array, optional
        Masks in their place, weighted by the Shapley kernel; the two ends are added.
    seed : int
    """
    labels = region_labels(task.layout, regions, images)
    count = int(labels.max()) + 1
    values = Values(task, "shap", **how)
    if masks is None and count <= EXACT and (values.budget is None or values.budget >= 2**count):
        values.plan(2**count)
        return spread(shapley_values(values(cells_kept(all_masks(count), labels))), labels)
    if masks is None:
        if count <= EXACT:
            samples = 2**count
        if values.budget is not None and values.budget < samples:
            # Fewer masks that are chosen for their number, in place of the first of more.
            samples, values.exhausted = values.budget, True
        drawn, weights = shapley_masks(samples, count, seed)
    else:
        given = checked_masks(masks, labels)
        drawn = torch.cat([torch.zeros_like(given[:1]), torch.ones_like(given[:1]), given])
        weights = shapley_kernel(drawn)
    values.plan(len(drawn.unique(dim=0)))
    known = values(cells_kept(drawn, labels))
    values.warn(f"the regression is of {len(known)} masks")
    if len(known) < 2:
        return torch.zeros((len(task), labels.numel()), dtype=torch.float64)
    drawn, weights = drawn[: len(known)], weights[: len(known)]
    return spread(shapley_regression(drawn, known, weights, known[0], known[1]), labels)


@register(
    "rise",
    source="Petsiuk et al. 2018, RISE, Eq. 6",
    cost="samples forwards",
    samples=512,
    masks=None,
    size=8,
    probability=0.5,
    seed=0,
    **{**_needs("rise", signed=False), "images": False},
)
def rise(
    task: Task,
    regions: Any = None,
    images: Any = False,
    samples: int = 512,
    masks: Any = None,
    size: int = 8,
    probability: float = 0.5,
    seed: int = 0,
    **how: Any,
) -> Tensor:
    """RISE: the expected probability of the token where a cell stays, S(cell) = E[p(y | M) | M(cell) = 1].

    S(cell) = sum_i p(y | M_i) M_i(cell) / sum_i M_i(cell): Eq. 6 of the paper, whose E[M] is here what the masks show
    of the cell, and not the probability that they were drawn with, as in the published program. By that one number the
    map of a token that is likely under most masks is the pattern of the masks themselves. The score is p, as in the
    paper, and not its logarithm: that is never above 0. A cell that no mask shows has 0.

    Parameters
    ----------
    regions, images
        Where given, whole regions stay or go in place of smooth masks; no superpixels are taken unasked, not by
        ``explain`` either.
    samples : int
    masks : (M, N) or (M, K) array, optional
        Masks of cells, or of regions, in their place: how much stays, 0..1.
    size : int
        Smooth masks are drawn on so many squares by so many an image, shifted by up to a square, and interpolated:
        where a mask is between 0 and 1, what is seen is mixed with the baseline.
    probability : float
        With which a square, or a region, stays.
    seed : int
    """
    labels = region_labels(task.layout, regions, images)
    if masks is not None:
        drawn = soft_masks(masks, labels)
    elif regions is None and (images is None or images is False):
        drawn = _smooth_masks(task, samples, size, probability, seed)
    else:
        drawn = cells_kept(random_masks(samples, int(labels.max()) + 1, seed, probability), labels).double()
    values = Values(task, "rise", **how)
    values.plan(len(drawn))
    known = values(drawn).exp()
    values.warn(f"the mean is of {len(known)} of {len(drawn)} masks")
    shown = drawn[: len(known)]
    mass = shown.sum(dim=0)
    return known.T @ shown / torch.where(mass > 0, mass, 1.0)


def _smooth_masks(task: Task, samples: int, size: int, probability: float, seed: int) -> Tensor:
    """Draw masks (M, N) float64 of all cells, alike in all grids that show one image or frame."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.empty((samples, task.layout.visual_positions.numel()), dtype=torch.float64)
    for canvas in task.layout.canvases():
        cells, edges = cell_places(task.layout, canvas)
        squares = (torch.rand((samples, size + 2, size + 2), generator=generator) < probability).double()
        shift = torch.rand((samples, 2), generator=generator, dtype=torch.float64)
        center = (edges[:, :2] + edges[:, 2:]) / 2
        at = center[None] * size + shift[:, None]  # below size + 1
        low = at.floor().long().clamp(0, size)
        part = at - low
        column, row = low.unbind(dim=-1)
        across, down = part.unbind(dim=-1)
        number = torch.arange(samples)[:, None]
        top = torch.lerp(squares[number, row, column], squares[number, row, column + 1], across)
        bottom = torch.lerp(squares[number, row + 1, column], squares[number, row + 1, column + 1], across)
        made[:, cells] = torch.lerp(top, bottom, down)
    return made.clamp(0.0, 1.0)


@register(
    "region_search",
    source="Chen et al. 2025, EAGLE: greedy search for insertion + 1 - deletion",
    cost="at most 2 K forwards a step and token",
    steps=16,
    scope=8,
    refresh=5,
    weight=1.0,
    together=False,
    **_needs("region_search", signed=False),
)
def region_search(
    task: Task,
    regions: Any = None,
    images: Any = None,
    steps: int | None = 16,
    scope: int | None = 8,
    refresh: int = 5,
    weight: float = 1.0,
    together: bool = False,
    **how: Any,
) -> Tensor:
    """Greedy search: regions by the order in which they make p(y | S) + weight (1 - p(y | all but S)) largest.

    The region found first has 1, each after it 1/K less: the order is all that a search tells. It optimises what the
    curves of insertion and deletion measure; compare others with it there by the same regions, not by pixels.

    Parameters
    ----------
    steps : int, optional
        How many regions are searched for; the others follow by their last scores. None: all.
    scope : int, optional
        How many of the most promising regions a step tries; None: all, which is the plain greedy search.
    refresh : int
        Every so many steps all are tried, as in EAGLE's quick form.
    weight : float
        Of what is lost without S.
    together : bool
        One search for all tokens by their mean probability, as EAGLE's of a sentence: they have one map.
    """
    labels = region_labels(task.layout, regions, images)
    values = Values(task, "region_search", **how)
    made = greedy_places(values, labels, steps=steps, scope=scope, refresh=refresh, weight=weight, together=together)
    values.warn("regions that were not scored have 0, the others the order known by then")
    return spread(made, labels)
