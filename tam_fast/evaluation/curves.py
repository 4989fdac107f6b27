"""Faithfulness: what becomes of an answer's probability as the image is shown, or taken away, in a map's order.

The answer is fixed and teacher-forced. Insertion starts with nothing and shows the highest part of the map first;
deletion starts with all and takes the highest away first. A faithful map raises the first curve and lowers the second
early.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from tam_fast.evaluation.forced import Forced
from tam_fast.evaluation.localisation import resized
from tam_fast.evaluation.ranks import falling_order, region_order, revealed
from tam_fast.maps.layout import Layout
from tam_fast.methods.regions import region_labels
from tam_fast.methods.task import Task
from tam_fast.methods.values import Values, check_baseline

__all__ = [
    "PIXEL_STEPS",
    "Curves",
    "absent_picture",
    "curves_of",
    "insertion_deletion",
    "shown_pictures",
    "trapezoid",
]

RANKS = ("cell", "region", "pixel")
SCORES = ("probability", "log_probability")

PIXEL_STEPS = 64
"""How many steps curves of pixels have if nothing is said; as EAGLE's."""

Tokens: TypeAlias = "Sequence[int] | Sequence[Sequence[int]] | str | None"
Progress: TypeAlias = "Callable[[int, int], object] | None"


@dataclass(frozen=True, eq=False)
class Curves:
    """Insertion and deletion by M maps.

    Attributes
    ----------
    insertion, deletion : (M, k + 1) float64
        The score of each map's tokens, their mean, at each step; the first before anything is shown or taken away.
    area : (M, k + 1) float64
        The share, 0 to 1, that is shown (insertion) or taken away (deletion): of cells, or of pixels.
    ranks : "cell", "region" or "pixel"
    score : "probability" or "log_probability"
    tokens : list of M lists of int
        Which targets each map's score is of.
    """

    insertion: NDArray[np.float64]
    deletion: NDArray[np.float64]
    area: NDArray[np.float64]
    ranks: str
    score: str
    tokens: list[list[int]]

    @property
    def none(self) -> NDArray[np.float64]:
        """(M,), the score where nothing is shown: v_none."""
        return self.insertion[:, 0]

    @property
    def all(self) -> NDArray[np.float64]:
        """(M,), the score of the whole image: v_all."""
        return self.deletion[:, 0]

    @property
    def effect(self) -> NDArray[np.float64]:
        """(M,), v_all - v_none: what the image does for the tokens; without any, curves say nothing of a map."""
        return self.all - self.none

    @property
    def insertion_auc(self) -> NDArray[np.float64]:
        """(M,), area under the insertion curve by the trapezoid rule: higher is better."""
        return trapezoid(self.insertion, self.area)

    @property
    def deletion_auc(self) -> NDArray[np.float64]:
        """(M,), area under the deletion curve: lower is better."""
        return trapezoid(self.deletion, self.area)

    @property
    def best(self) -> NDArray[np.float64]:
        """(M,), the highest score on the way of insertion (EAGLE's highest confidence), without the empty image."""
        found: NDArray[np.float64] = self.insertion[:, 1:].max(axis=1)
        return found

    def normalised(self) -> Curves:
        """Bring scores to (v - v_none) / (v_all - v_none): 0 without the image, 1 with all of it.

        Scores may lie outside of 0..1 on the way. Curves of tokens on which the image has no effect become NaN; where
        it is against them, a rising score is one that falls.
        """
        effect = self.effect[:, None]
        usable = np.abs(effect) > 1e-12
        scale = np.where(usable, effect, 1.0)
        insertion, deletion = (
            np.where(usable, (values - self.none[:, None]) / scale, np.nan)
            for values in (self.insertion, self.deletion)
        )
        return replace(self, insertion=insertion, deletion=deletion)

    def at(self, areas: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Read both curves at shares of the image (A,), linearly between steps: to average curves of several images.

        Returns
        -------
        insertion, deletion : (M, A) float64
        """
        wanted = np.asarray(areas, dtype=np.float64)
        insertion, deletion = (
            np.stack([np.interp(wanted, area, row) for area, row in zip(self.area, values, strict=True)])
            for values in (self.insertion, self.deletion)
        )
        return insertion, deletion


def trapezoid(values: Any, area: Any) -> NDArray[np.float64]:
    """Integrate curves (..., k + 1) over areas (..., k + 1) by the trapezoid rule: (...)."""
    heights, places = np.asarray(values, dtype=np.float64), np.asarray(area, dtype=np.float64)
    found: NDArray[np.float64] = ((heights[..., 1:] + heights[..., :-1]) / 2 * np.diff(places, axis=-1)).sum(axis=-1)
    return found


def insertion_deletion(
    model: Any,
    inputs: Mapping[str, Any],
    layout: Layout,
    token_ids: Any,
    maps: Any,
    *,
    tokens: Tokens = None,
    ranks: str = "cell",
    regions: Any = None,
    images: Any = None,
    steps: int | None = None,
    score: str = "probability",
    baseline: Any = "mean_embedding",
    normalization: Any = None,
    batch_size: int = 8,
    progress: Progress = None,
) -> Curves:
    """Measure insertion and deletion curves of maps over the visual cells.

    Parameters
    ----------
    model, inputs, layout, token_ids
        As :func:`tam_fast.methods.attribute` takes them: one teacher-forced answer of T tokens.
    maps : (M, N) or (N,) ndarray or Tensor
        Of any method and scale; only their order counts. Ties are by place.
    tokens : optional
        Whose score each map is judged by: a list of M lists of targets, 0..T-1, such as a word's; one list for all
        maps; or ``"all"``. If None, map i is target i's where there are T maps, and one map is that of all tokens.
    ranks : "cell" or "region"
        What is shown or taken away at once: cells one by one, or whole regions, by the mean of the map over each.
        Pixels: :func:`curves_of`. Region searches such as EAGLE's are judged by the curves that they optimise: compare
        with them by regions.
    regions, images
        For ``ranks="region"``: see :func:`tam_fast.methods.regions.region_labels`. Cells of no region always stay.
    steps : int, optional
        In so many steps of (about) as many cells or regions each; one by one if None.
    score : "probability" or "log_probability"
        The mean over a map's tokens.
    baseline, normalization, batch_size
        What stands where a cell is absent; see :class:`tam_fast.methods.values.Values`.
    progress : callable, optional
        ``progress(done, total)``, in passes.

    Returns
    -------
    Curves

    Raises
    ------
    ValueError, TypeError, ModelNotSupportedError
        If arguments do not fit each other, or the model cannot be asked so.

    Notes
    -----
    Costs at most 2 k forward passes a map, and two for the ends; the vision tower runs once, unless `baseline` is of
    pixels. Petsiuk et al. 2018 (RISE), on the answer's tokens.
    """
    check_baseline(model, "insertion_deletion", baseline)
    task = Task(model, inputs, layout, token_ids)
    return _by_cells(
        task,
        maps,
        tokens,
        ranks,
        score,
        regions,
        images,
        steps,
        {"baseline": baseline, "normalization": normalization, "batch_size": batch_size, "progress": progress},
    )


def curves_of(
    asked: Forced,
    maps: Any,
    *,
    tokens: Tokens = None,
    ranks: str = "cell",
    regions: Any = None,
    steps: int | None = None,
    score: str = "probability",
    baseline: Any = None,
    normalization: Any = None,
    batch_size: int = 8,
    progress: Progress = None,
) -> Curves:
    """Measure insertion and deletion curves of maps, by pixels too: as :func:`insertion_deletion`, of a fixed answer.

    Parameters
    ----------
    asked : Forced
        See :func:`tam_fast.evaluation.forced.forced`.
    maps : (M, N) or (N,)
    tokens, steps, score, progress
        As for :func:`insertion_deletion`; `steps` is 64 for pixels if None.
    ranks : "cell", "region" or "pixel"
        ``"pixel"``: maps are joined on the image and brought to its size, and its pixels replaced, which are prepared
        and encoded again at each step. Of one image.
    regions : optional
        For ``ranks="region"``; superpixels of the images if a number or None.
    baseline : optional
        ``"mean_embedding"`` if None; of pixels ``"black"``, ``"grey"``, ``"mean"`` or ``"blur"``, ``"black"`` if None.
    normalization, batch_size
        Not for pixels.

    Returns
    -------
    Curves
    """
    if ranks != "pixel":
        baseline = "mean_embedding" if baseline is None else baseline
        check_baseline(asked.model, "insertion_deletion", baseline)
        how = {"baseline": baseline, "normalization": normalization, "batch_size": batch_size, "progress": progress}
        divided = regions is None or hasattr(regions, "__index__")
        pictures = asked.images if ranks == "region" and divided and not getattr(regions, "ndim", 0) else None
        return _by_cells(asked.task(), maps, tokens, ranks, score, regions, pictures, steps, how)
    if regions is not None or normalization is not None:
        raise ValueError('regions, normalization: expected none with ranks="pixel"')
    return _by_pixels(asked, maps, tokens, score, steps, "black" if baseline is None else baseline, progress)


# By cells --------------------------------------------------------------------------------------------------------


def _by_cells(
    task: Task,
    maps: Any,
    tokens: Tokens,
    ranks: str,
    score: str,
    regions: Any,
    images: Any,
    steps: int | None,
    how: dict[str, Any],
) -> Curves:
    if ranks not in RANKS[:2]:
        raise ValueError(f'ranks: expected "cell" or "region" (pixels: curves_of), got {ranks!r}')
    if ranks == "cell" and regions is not None:
        raise ValueError(f'regions: expected none with ranks="cell", got {regions!r}')
    given, groups = _maps(maps, task.visual.numel()), _groups(tokens, maps, len(task))
    _check_score(score)
    labels = np.asarray(region_labels(task.layout, "cells" if ranks == "cell" else regions, images))
    shown = [_first_shown(row, labels, steps) for row in given]
    count = max(int(steps_of.max()) for steps_of in shown)
    values = Values(task, "insertion_deletion", **how)
    values.plan(2 + sum(2 * (count - 1) for _ in shown))
    insertion, deletion, area = (np.empty((len(given), count + 1)) for _ in range(3))
    for index, (first, group) in enumerate(zip(shown, groups, strict=True)):
        masks = first[None] <= np.arange(count + 1)[:, None]  # (k + 1, N): what is shown after each step
        both = np.concatenate([masks, ~masks | (labels < 0)])
        told = _score(values(torch.from_numpy(both)).numpy()[:, group], score)
        insertion[index], deletion[index] = told[: count + 1], told[count + 1 :]
        area[index] = masks[:, labels >= 0].mean(axis=1)
    return Curves(insertion, deletion, area, ranks, score, groups)


def _first_shown(row: NDArray[np.float64], labels: NDArray[np.int64], steps: int | None) -> NDArray[np.int64]:
    """Say at which step each cell (N,) is shown; cells of no region are from the beginning."""
    step = revealed(region_order(row, labels), steps)
    return np.where(labels >= 0, step[np.maximum(labels, 0)], 0)


def _maps(maps: Any, count: int) -> NDArray[np.float64]:
    try:
        given = np.asarray(maps.detach().cpu() if isinstance(maps, Tensor) else maps, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"maps: expected numbers (M, N), got {type(maps).__name__}") from error
    given = given[None] if given.ndim == 1 else given
    if given.ndim != 2 or given.shape[1] != count or not given.shape[0]:
        raise ValueError(f"maps: expected (M, {count}), a value for each visual cell, got {given.shape}")
    if np.isnan(given).any():
        raise ValueError("maps: expected values that have an order, got NaN")
    return given


def _groups(tokens: Tokens, maps: Any, targets: int) -> list[list[int]]:
    shape = np.shape(maps)
    count = 1 if len(shape) == 1 else int(shape[0])
    if tokens is None and count == targets:
        groups = [[target] for target in range(targets)]
    elif (tokens is None and count == 1) or (isinstance(tokens, str) and tokens == "all"):
        groups = [list(range(targets))] * count
    elif tokens is None or isinstance(tokens, str):
        raise ValueError(
            f'tokens: expected lists of targets or "all" for {count} maps of {targets} tokens, got {tokens!r}'
        )
    else:
        chosen: list[Any] = list(tokens)
        nested = bool(chosen) and np.ndim(chosen[0]) > 0
        groups = [[int(target) for target in group] for group in (chosen if nested else [chosen] * count)]
    if len(groups) != count or not all(groups):
        raise ValueError(f"tokens: expected a list of targets for each of {count} maps, got {tokens!r}")
    for group in groups:
        if not all(0 <= target < targets for target in group):
            raise ValueError(f"tokens: expected targets from 0 to {targets - 1}, got {group}")
    return groups


def _check_score(score: str) -> None:
    if score not in SCORES:
        raise ValueError(f"score: expected one of {', '.join(SCORES)}, got {score!r}")


def _score(told: NDArray[np.float64], score: str) -> NDArray[np.float64]:
    """Take the mean over tokens of log p (m, T): (m,)."""
    found: NDArray[np.float64] = (np.exp(told) if score == "probability" else told).mean(axis=1)
    return found


# By pixels -------------------------------------------------------------------------------------------------------


def _by_pixels(
    asked: Forced,
    maps: Any,
    tokens: Tokens,
    score: str,
    steps: int | None,
    baseline: str,
    progress: Progress,
) -> Curves:
    if len(asked.images) != 1:
        raise ValueError(f'ranks: expected "cell" or "region" for {len(asked.images)} images, got "pixel"')
    _check_score(score)
    task, picture = asked.task(), asked.images[0]
    given, groups = _maps(maps, task.visual.numel()), _groups(tokens, maps, len(task))
    joined = asked.layout.canvas(0).join(torch.from_numpy(given)).numpy()
    number = PIXEL_STEPS if steps is None else steps
    absent = absent_picture(picture, baseline, joined.shape[1:])
    sets, areas = [], []
    for raster in joined:
        step = revealed(falling_order(resized(raster, (picture.height, picture.width))), number)
        sets.append(step.reshape(picture.height, picture.width))
        areas.append((step[None] <= np.arange(step.max() + 1)[:, None]).mean(axis=1))
    count = int(sets[0].max())
    total, done = 2 + 2 * (count - 1) * len(sets), 0
    known: dict[bytes, NDArray[np.float64]] = {}
    rows: list[list[NDArray[np.float64]]] = []
    for step in sets:
        rows.append([])
        for shown in shown_pictures(picture, absent, step):
            key = hashlib.blake2b(shown.tobytes(), digest_size=16).digest()
            if key not in known:
                known[key] = asked.with_images(shown).log_probabilities(task).numpy()
                done += 1
                if progress is not None:
                    progress(done, max(total, done))
            rows[-1].append(known[key])
    told = [_score(np.stack(row)[:, group], score) for row, group in zip(rows, groups, strict=True)]
    half = count + 1
    return Curves(
        np.stack([row[:half] for row in told]),
        np.stack([row[half:] for row in told]),
        np.stack(areas),
        "pixel",
        score,
        groups,
    )


def shown_pictures(picture: Image.Image, absent: Image.Image, step: NDArray[np.int64]) -> Iterator[Image.Image]:
    """Make the pictures of both curves: insertion at steps 0..k, then deletion at 0..k.

    Parameters
    ----------
    picture, absent : (W, H) RGB
        `absent` has what stands where a pixel is absent.
    step : (H, W)
        When each pixel is shown: 1..k.
    """
    whole, other = np.asarray(picture), np.asarray(absent)
    for inserting in (True, False):
        for number in range(int(step.max()) + 1):
            inside = (step <= number) == inserting
            yield Image.fromarray(np.where(inside[:, :, None], whole, other))


def absent_picture(picture: Image.Image, baseline: str, cells: Sequence[int]) -> Image.Image:
    """Make what stands where pixels are absent: ``"black"``, ``"grey"`` (128), ``"mean"`` (by channel) or ``"blur"``.

    Blurred is by a Gaussian whose standard deviation is the larger side of one of (h, w) cells.
    """
    if baseline == "blur":
        side = max(picture.height / cells[0], picture.width / cells[1])
        return picture.filter(ImageFilter.GaussianBlur(side))
    if baseline == "mean":
        mean = np.asarray(picture, dtype=np.float64).reshape(-1, 3).mean(axis=0).round()
        return Image.new("RGB", picture.size, (int(mean[0]), int(mean[1]), int(mean[2])))
    levels = {"black": 0, "grey": 128}
    if baseline not in levels:
        raise ValueError(f'baseline: expected one of black, grey, mean, blur with ranks="pixel", got {baseline!r}')
    return Image.new("RGB", picture.size, (levels[baseline],) * 3)
