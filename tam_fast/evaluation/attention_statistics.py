"""What a decoder's attention to the image is like: dispersion, consistency, alignment.

Rows are those of the positions that predict the answer's tokens, at the visual positions, of every layer and head: made
in one forward pass with the attention left as it is; see :mod:`tam_fast.methods.weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from tam_fast.evaluation.forced import Forced
from tam_fast.evaluation.localisation import auroc, cell_shares, kl, nss
from tam_fast.evaluation.ranks import spearman
from tam_fast.methods.attention_calls import AttentionCall
from tam_fast.methods.task import Task
from tam_fast.methods.weights import Kept, checked, watch

__all__ = ["Alignment", "VisualAttention", "alignment", "paraphrase_consistency", "visual_attention"]


@dataclass(frozen=True, eq=False)
class VisualAttention:
    """Attention of T rows to N visual positions.

    Attributes
    ----------
    rows : (L, H, T, N) float32
        Weights, of all layers that attend; what goes elsewhere is missing, so that they sum to less than 1.
    layers : list of L int
    """

    rows: NDArray[np.float32]
    layers: list[int]

    @property
    def mass(self) -> NDArray[np.float64]:
        """(L, H, T), the share of a row's attention that goes to the image."""
        found: NDArray[np.float64] = self.rows.sum(axis=-1, dtype=np.float64)
        return found

    def shares(self) -> NDArray[np.float64]:
        """Divide rows by their mass (L, H, T, N); NaN where nothing goes to the image."""
        mass = self.mass[..., None]
        return np.where(mass > 0, self.rows / np.where(mass > 0, mass, 1.0), np.nan)

    def dispersion(self) -> NDArray[np.float64]:
        """Return entropy / log N of the shares (L, H, T): 0 of one cell, 1 of all alike; NaN where there are none."""
        shares = self.shares()
        count = shares.shape[-1]
        if count < 2:
            raise ValueError(f"rows: expected at least two visual positions, got {count}")
        logs = np.log(np.where(shares > 0, shares, 1.0))
        found: NDArray[np.float64] = -(shares * logs).sum(axis=-1) / np.log(count)
        return found

    def head_consistency(self) -> NDArray[np.float64]:
        """Return the mean Spearman of all pairs of heads in each layer (L, T); NaN where there is one head."""
        return np.stack([_pairs(layer) for layer in self.rows])

    def layer_consistency(self) -> NDArray[np.float64]:
        """Return the mean Spearman of all pairs of layers, each the mean of its heads (T,)."""
        return _pairs(self.rows.mean(axis=1))


def _pairs(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Mean Spearman (T,) of all pairs of rows (n, T, N)."""
    count = len(rows)
    found = [spearman(rows[one], rows[two]) for one in range(count) for two in range(one)]
    if not found:
        return np.full(rows.shape[1], np.nan)
    mean: NDArray[np.float64] = np.mean(found, axis=0)
    return mean


def visual_attention(task: Task) -> VisualAttention:
    """Read the attention of a task's rows to its visual positions, by layer and head, in one forward pass.

    Keeps L H T N float32.

    Raises
    ------
    ModelNotSupportedError
        If no layer attends in a known way. Layers of other kinds are left out.
    ValueError
        If layers have different numbers of heads.
    """
    asked = checked(task.layers, "mean", "mean", "attention")
    found: list[NDArray[np.float32]] = []
    visual = task.visual

    def take(call: AttentionCall) -> None:
        blocks = [
            pad(weights, (0, task.positions - weights.shape[-1]))[:, :, visual.to(weights.device)].float().cpu()
            for _, weights in Kept(call, task.rows).blocks()
        ]
        found.append(torch.cat(blocks, dim=1).numpy())

    watch(task, asked, take)
    heads = {layer.shape[0] for layer in found}
    if len(heads) > 1:
        raise ValueError(f"task: expected layers of as many heads each, got {sorted(heads)}")
    return VisualAttention(np.stack(found), asked)


def paraphrase_consistency(asked: Forced, prompts: Any) -> NDArray[np.float64]:
    """Return the mean Spearman (T,) of a token's attention under pairs of prompts that ask the same.

    Parameters
    ----------
    asked : Forced
        The answer, fixed; its own prompt counts too.
    prompts : list of str

    Returns
    -------
    (T,) float64
        Of the mean over heads and layers.
    """
    wordings = [prompts] if isinstance(prompts, str) else list(prompts)
    if not wordings:
        raise ValueError("prompts: expected at least one other, got none")
    every = [asked, *(asked.with_prompt(text) for text in wordings)]
    return _pairs(np.stack([visual_attention(one.task()).rows.mean(axis=(0, 1)) for one in every]))


@dataclass(frozen=True, eq=False)
class Alignment:
    """How attention, or any map, lies on an object.

    Attributes
    ----------
    mass, auroc : (T,) float64
        The share inside of what goes to the image; AUROC of cells.
    nss, kl : (T,) float64 or None
        Against gaze, where there is some.
    """

    mass: NDArray[np.float64]
    auroc: NDArray[np.float64]
    nss: NDArray[np.float64] | None = None
    kl: NDArray[np.float64] | None = None


def alignment(maps: Any, mask: Any, gaze: Any = None) -> Alignment:
    """Measure where attention lies.

    Parameters
    ----------
    maps : (T, h, w)
        Not negative; ``layout.canvas(0).join(rows)`` of the rows of one layer and head, or of their mean.
    mask : (H, W) bool
        The object; a cell counts by the share of it that the mask covers.
    gaze : (H, W), optional
        Fixations or a density of gaze on the same image.

    Returns
    -------
    Alignment
        `mass` is NaN where a map is 0 everywhere, `auroc` where the mask is everywhere or nowhere.
    """
    rasters = np.asarray(maps, dtype=np.float64)
    if rasters.ndim != 3 or not rasters.size or not rasters.min() >= 0:
        raise ValueError(f"maps: expected (T, h, w) from 0, got shape {rasters.shape}")
    inside = (rasters * cell_shares(mask, rasters.shape[1:])).sum(axis=(1, 2))
    total = rasters.sum(axis=(1, 2))
    mass = np.where(total > 0, inside / np.where(total > 0, total, 1.0), np.nan)
    curves = np.array([auroc(raster, mask) for raster in rasters])
    if gaze is None:
        return Alignment(mass, curves)
    return Alignment(
        mass,
        curves,
        np.array([nss(raster, gaze) for raster in rasters]),
        np.array([kl(raster, gaze) for raster in rasters]),
    )
