"""What every engine's reader gives: :class:`EngineStates`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["EngineStates", "check_ids", "check_states", "whole_ids"]


@dataclass(frozen=True, eq=False)
class EngineStates:
    """Hidden states of one request.

    Attributes
    ----------
    hidden : (S, C) Tensor
        One row a position, of the prompt and of the answer but its last token.
    token_ids : (S,) int64 Tensor
        The token at each of these positions, as far as the engine says; empty where it does not.
    normed : bool
        Whether the rows are final states, which the classifier reads; if not, the decoder's final norm is still to be
        applied (``norm=`` of :func:`tam_fast.explain_states`).
    """

    hidden: Tensor
    token_ids: Tensor
    normed: bool

    def __len__(self) -> int:
        """Return the number of rows, S."""
        return int(self.hidden.shape[0])


def whole_ids(token_ids: Any) -> Tensor:
    """Read the ids of prompt and answer, (S + 1,) int64.

    Raises
    ------
    TypeError, ValueError
        If they are no whole numbers, or no sequence.
    """
    ids = torch.as_tensor(token_ids)
    if ids.ndim != 1 or ids.numel() < 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"token_ids: expected the ids (S + 1,) of prompt and answer, got {ids.dtype} of shape {tuple(ids.shape)}"
        )
    return ids.long().cpu()


def check_states(hidden: Tensor, what: str) -> None:
    """Raise ValueError unless there are floating-point rows (S, C) without NaN or infinities."""
    if hidden.ndim != 2 or not hidden.is_floating_point() or not hidden.numel():
        raise ValueError(f"{what}: expected hidden states (S, C), got {hidden.dtype} of shape {tuple(hidden.shape)}")
    if not bool(torch.isfinite(hidden).all()):
        row = int((~torch.isfinite(hidden)).any(dim=1).nonzero()[0])
        raise ValueError(f"{what}: expected finite hidden states, got NaN or an infinity in row {row}")


def check_ids(found: Sequence[int], expected: Tensor, what: str) -> None:
    """Raise ValueError unless an engine's ids are those of the request, without its last one."""
    mine = expected[:-1].tolist()
    if list(found) == mine:
        return
    place = next((k for k, (a, b) in enumerate(zip(found, mine, strict=False)) if a != b), None)
    if place is None:
        raise ValueError(
            f"{what}: expected the {len(mine)} ids of prompt and answer without the last, got {len(found)}"
        )
    raise ValueError(
        f"{what}: expected token id {mine[place]} at position {place}, got {found[place]}: another request's"
    )
