"""Causal inference and a filter on raw maps of any method ("+ ours", Table 3), and what Table 2 puts in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.methods.filters import FILTERS, check_grids, filtered
from tam_fast.methods.registry import METHODS
from tam_fast.methods.surgery import without_shared
from tam_fast.operators import ops

__all__ = ["INTERFERENCES", "Recipe", "check_scale", "parse", "refine", "scaled"]

INTERFERENCES = ("eci", "eci_mean", "eci_attention", "feature_surgery")
"""What can be taken off a map: what context tokens explain, by textual relevance, by a plain mean, or by attention; or
what all classes share."""

_SHORT = {"rgf": "rank_gaussian", "eci_attn_weights": "eci_attention"}


@dataclass(frozen=True)
class Recipe:
    """A method and what is done to its maps.

    Attributes
    ----------
    method : str
    interference, filter : str or None
    """

    method: str
    interference: str | None = None
    filter: str | None = None

    def __str__(self) -> str:
        return "+".join(part for part in (self.method, self.interference, self.filter) if part)


def parse(text: str, refine: str | None = None) -> Recipe:
    """Read ``METHOD[+INTERFERENCE][+FILTER]``.

    ``rgf`` is short for ``rank_gaussian``; ``tam`` is ``cam+eci+rank_gaussian``.

    Parameters
    ----------
    text : str
    refine : str, optional
        ``[INTERFERENCE][+FILTER]`` on its own, for a method that is named without.

    Raises
    ------
    ValueError, TypeError
        If a part is unknown, or there are two of one kind.
    """
    if not isinstance(text, str):
        raise TypeError(f"method: expected a name, got {type(text).__name__}")
    method, *parts = text.split("+")
    if refine is not None:
        if not isinstance(refine, str):
            raise TypeError(f"refine: expected a text such as 'eci+rgf', got {type(refine).__name__}")
        if parts:
            raise ValueError(f"refine: expected none with method {text!r}, which says it, got {refine!r}")
        parts = refine.split("+")
    name = "method" if refine is None else "refine"
    chosen: dict[str, str] = {}
    for part in (_SHORT.get(part, part) for part in parts):
        kind = "interference" if part in INTERFERENCES else "filter" if part in FILTERS else ""
        if not kind:
            raise ValueError(
                f"{name}: expected one of {', '.join((*INTERFERENCES, *FILTERS, 'rgf'))} behind '+', got {part!r}"
            )
        if kind in chosen or (kind == "interference" and chosen):
            raise ValueError(
                f"{name}: expected METHOD[+INTERFERENCE][+FILTER], one of each and in this order, got {text!r}"
            )
        chosen[kind] = part
    if method == "tam":
        if chosen:
            raise ValueError(f"{name}: expected nothing behind 'tam', which is cam+eci+rgf, got {text!r}")
        return Recipe("cam", "eci", "rank_gaussian")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    return Recipe(method, chosen.get("interference"), chosen.get("filter"))


def refine(
    maps: Any,
    context_maps: Any = None,
    relevance: Any = None,
    *,
    interference: str | None = "eci",
    filter: str | None = "rank_gaussian",
    grids: Sequence[Grid | tuple[int, int]],
    kernel_size: int = 3,
    counted: Any = None,
) -> Any:
    """Take off maps what context tokens explain, and filter them.

    Parameters
    ----------
    maps : Tensor or ndarray (T, N)
        Raw maps of any method.
    context_maps : Tensor or ndarray (K, N), optional
        Raw maps of the context tokens by the same method; not needed without interference, nor by
        ``"feature_surgery"``.
    relevance : Tensor or ndarray (T, K), optional
        How strongly each context token bears on each target; 0 where it does not count. For ``"eci_attention"``
        attention to the position that holds the token.
    interference : None, "eci", "eci_mean", "eci_attention" or "feature_surgery"
        ``"eci"`` and ``"eci_attention"``: :func:`tam_fast.estimated_causal_inference` with `relevance`.
        ``"eci_mean"``: with 1 for each context token that counts. ``"feature_surgery"``: what the maps of all targets
        have in common is taken off instead (CLIP Surgery): q_t A_t - mean_t'(q_t' A_t'), q = softmax_t(2 mean_V A_t)
        over its mean, clipped at 0; the mean over the visual positions stands for the class token that a decoder does
        not have.
    filter : None, "rank_gaussian", "gaussian", "median" or "adaptive_median"
    grids : sequence of Grid or (height, width)
        Whose cells the maps are over, in order.
    kernel_size : int
        Side of the filter's window, odd.
    counted : (T, K) bool, optional
        Which context tokens count for ``"eci_mean"``; where `relevance` is not 0 if not given.

    Returns
    -------
    (T, N) float32
        As `maps`: a Tensor, or an ndarray. Not scaled.

    Raises
    ------
    ValueError, TypeError
        If a name is unknown, or shapes do not fit.
    """
    as_numpy = not isinstance(maps, Tensor)
    target = ops._float_tensor(maps, "maps")
    if target.ndim != 2:
        raise ValueError(f"maps: expected (T, N), got {tuple(target.shape)}")
    check_grids(grids, target.shape[1])
    if interference is not None and interference not in INTERFERENCES:
        raise ValueError(f"interference: expected None or one of {', '.join(INTERFERENCES)}, got {interference!r}")
    if filter is not None and filter not in FILTERS:
        raise ValueError(f"filter: expected None or one of {', '.join(FILTERS)}, got {filter!r}")
    made = target.float()
    if interference == "feature_surgery":
        made = without_shared(made, made.mean(dim=1)).relu()
    elif interference is not None:
        if context_maps is None or relevance is None:
            missing = "context_maps" if context_maps is None else "relevance"
            raise ValueError(f"{missing}: expected it with interference={interference!r}, got None")
        context = ops._float_tensor(context_maps, "context_maps").float().to(made.device)
        weights = ops._float_tensor(relevance, "relevance").float().to(made.device)
        if interference == "eci_mean":
            chosen = weights != 0 if counted is None else torch.as_tensor(counted).to(made.device, torch.bool)
            if chosen.shape != weights.shape:
                raise ValueError(f"counted: expected {tuple(weights.shape)}, as relevance, got {tuple(chosen.shape)}")
            weights = chosen.float()
        made, _ = ops.estimated_causal_inference(made, context, weights)
    made = filtered(made, grids, filter, kernel_size)
    return made.cpu().numpy() if as_numpy else made


def check_scale(scale: Any) -> None:
    """Raise ValueError unless `scale` is ``"map"`` or ``"answer"``."""
    if scale not in ("map", "answer"):
        raise ValueError(f"scale: expected 'map' or 'answer', got {scale!r}")


def scaled(maps: Tensor, scale: str = "map") -> Tensor:
    """Scale raw maps (T, N) to [0, 1]; negative values count as 0.

    Parameters
    ----------
    maps : (T, N) float32
    scale : "map" or "answer"
        By each map's own smallest and largest value, or by those of all maps of the answer. Figures such as Func-IoU
        depend on it: tables name it.

    Returns
    -------
    (T, N) float32
        A constant map is 0.
    """
    check_scale(scale)
    shown = maps.clamp_min(0.0)
    if not shown.numel():
        return shown
    low, high = (shown.amin(dim=1, keepdim=True), shown.amax(dim=1, keepdim=True))
    if scale == "answer":
        low, high = low.amin().expand_as(low), high.amax().expand_as(high)
    extent = high - low
    return torch.where(extent > 0, (shown - low) / torch.where(extent > 0, extent, 1.0), 0.0)
