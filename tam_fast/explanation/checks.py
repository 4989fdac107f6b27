"""What the numbers of an explanation can be: checked before they are written, and again when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch

from tam_fast.explanation.words import Candidate
from tam_fast.maps.answer import TokenActivationMaps

__all__ = ["Values", "check_nan", "check_values", "count_nan"]

_ROUNDING = 1e-5  # how far beyond [0, 1] a share may be rounded
_LARGEST = 2**63 - 1  # of ids and positions, which are int64


class Values(Protocol):
    """What is checked of an explanation."""

    token_ids: list[int]
    text: str
    offsets: list[tuple[int, int]]
    maps: TokenActivationMaps
    candidates: list[list[Candidate]]


def check_values(explanation: Values) -> None:
    """Check ranges, and ids and offsets against each other.

    Raises
    ------
    ValueError
        If something is as no explanation has it; begins with the field's name.
    """
    maps = explanation.maps
    # NaN is neither below nor above: it is counted elsewhere.
    _within("maps", maps.maps, "values in [0, 1]", (maps.maps >= -_ROUNDING) & (maps.maps <= 1 + _ROUNDING), nan=True)
    _within(
        "relevance",
        maps.relevance,
        "finite values >= 0",
        (maps.relevance >= -_ROUNDING) & torch.isfinite(maps.relevance),
    )
    _within("scale", maps.scale, "finite values", torch.isfinite(maps.scale))
    shown = (torch.nan_to_num(maps.maps, nan=0.0) > 0).any(dim=1) & maps.flat
    _within("flat", maps.maps.amax(dim=1), "maps of zeros where it is true", ~shown)
    _within("context_ids", maps.context_ids, "ids >= 0", maps.context_ids >= 0)
    _within("target_ids", maps.target_ids, "ids >= 0", maps.target_ids >= 0)
    _check_ids(explanation.token_ids, maps.target_ids.tolist())
    _check_offsets(explanation.offsets)
    for step, candidates in enumerate(explanation.candidates):
        for candidate in candidates:
            probability = candidate.probability
            if not -_ROUNDING <= probability <= 1 + _ROUNDING:
                raise ValueError(f"candidates: probability: expected 0 to 1, got {probability} for token {step}")
            if not 0 <= candidate.token_id <= _LARGEST:
                expected = "at least 0" if candidate.token_id < 0 else f"at most {_LARGEST}"
                got = str(candidate.token_id)[:60]
                raise ValueError(f"candidates: token_id: expected {expected}, got {got} for token {step}")
    if maps.layout.answer_start > _LARGEST:
        raise ValueError(f"answer_start: expected a position, got {str(maps.layout.answer_start)[:60]}")


def _within(name: str, values: torch.Tensor, expected: str, good: torch.Tensor, nan: bool = False) -> None:
    """Refuse values of which one is not good; with `nan` NaN is."""
    bad = ~(good | torch.isnan(values)) if nan else ~good
    if bool(bad.any()):
        place = tuple(int(index) for index in bad.nonzero()[0])
        raise ValueError(f"{name}: expected {expected}, got {values[place].item():g} at {list(place)}")


def _check_ids(token_ids: Sequence[int], target_ids: Sequence[int]) -> None:
    for token, (token_id, target_id) in enumerate(zip(token_ids, target_ids, strict=True)):
        if token_id != target_id:
            raise ValueError(
                f"token_ids: expected the target_ids of the maps, got {token_id} where they have {target_id} "
                f"(token {token})"
            )


def _check_offsets(offsets: Sequence[tuple[int, int]]) -> None:
    """Refuse characters that stand before those of the token before; tokens may share some, and some have none."""
    shown = [offset for offset in offsets if offset[0] < offset[1]]
    for before, after in pairwise(shown):
        if after[0] < before[0] and after[1] < before[1]:
            raise ValueError(f"offsets: expected them in the order of the text, got {after} after {before}")


def count_nan(maps: torch.Tensor) -> int:
    """Count the cells that are NaN; only ``compat="official"`` has such."""
    return int(torch.isnan(maps).sum())


def check_nan(maps: torch.Tensor, told: Any) -> None:
    """Check the number of NaN cells against what was noted when they were written.

    Parameters
    ----------
    maps : (T, N) float32
    told : int, optional
        None in a file of an earlier version: then any number but all will do.

    Raises
    ------
    ValueError
        If there are others.
    """
    got = count_nan(maps)
    if told is None:
        if got and got == maps.numel():
            raise ValueError(f"maps: expected numbers, got NaN in all of {got} cells")
    elif isinstance(told, bool) or not isinstance(told, int):
        raise ValueError(f"nan_cells: expected int, got {type(told).__name__}")
    elif got != told:
        raise ValueError(f"maps: expected NaN in {told} cells (nan_cells), got it in {got}")
