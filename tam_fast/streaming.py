"""The maps of an answer while it is being generated: :class:`ActivationMapStream`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tam_fast import ops
from tam_fast.layout import Layout
from tam_fast.pipeline import (
    FusedStep,
    check_finite_scores,
    check_finite_states,
    finish,
    relevance_by_class,
    visual_columns,
)

__all__ = ["ActivationMapStream", "TokenMap"]


@dataclass(eq=False)
class TokenMap:
    """The map of one streamed token; fields as in :class:`TokenActivationMaps`.

    Attributes
    ----------
    token_id : int
    index : int
        Place in the answer, from 0.
    map : (N,) float32
    relevance : (k,) float32
        Over the token's own context of k tokens.
    scale : float
    flat : bool
    """

    token_id: int
    index: int
    map: Tensor
    relevance: Tensor
    scale: float
    flat: bool


class ActivationMapStream:
    """The maps of an answer while it is being generated, one token at a time.

    Given the same states it gives the bits that :func:`activation_maps` gives afterwards.

    Parameters
    ----------
    classifier : Tensor (V, C)
        lm_head weight.
    layout : Layout
    prompt_ids : int Tensor, ndarray or list (P,)
        Token ids of the prompt; P = ``layout.answer_start``.
    kernel_size, interference
        As in :func:`activation_maps`.

    Raises
    ------
    TypeError, ValueError
        As :func:`activation_maps`.

    Notes
    -----
    Keeps the prompt's states by reference, one row of states a generated token, and one row of scores (P,) a distinct
    token.
    """

    def __init__(
        self, classifier: Tensor, layout: Layout, prompt_ids: Any, *, kernel_size: int = 3, interference: bool = True
    ) -> None:
        if not isinstance(layout, Layout):
            raise TypeError(f"layout: expected a Layout, got {type(layout).__name__}")
        self._classifier = ops._check_matrix(classifier, "classifier", "(V, C)")
        self._kernel_size = ops._check_kernel_size(kernel_size)
        self._interference = interference
        self._layout = layout
        ids = ops._index_tensor(prompt_ids, "prompt_ids", torch.device("cpu"))
        if ids.numel() != layout.answer_start:
            raise ValueError(f"prompt_ids: expected {layout.answer_start} ids (layout.answer_start), got {ids.numel()}")
        self._tokens: list[int] = ids[layout.prompt].tolist()  # context so far: p_1..p_np, y_1..y_i
        self._prefill: list[Tensor] = []
        self._prefill_rows = 0
        self._answer = _Rows(self._classifier.shape[1], self._classifier)
        self._row_of: dict[int, int] = {}  # token id -> row of the score matrix, in order of first appearance
        self._rows: list[int] = []  # row of every token of the context
        self._scores = _Rows(layout.answer_start, torch.empty(0, dtype=torch.float32))

    def __len__(self) -> int:
        return len(self._tokens) - int(self._layout.prompt.numel())

    def extend(self, hidden: Tensor) -> None:
        """Append final hidden states (n, C) of the next n positions: the prompt's, then the answer's.

        Raises
        ------
        TypeError, ValueError
            If the dtype or shape does not fit, or a state that will be read is NaN or Inf.
        """
        rows = ops._check_matrix(hidden, "hidden", "(n, C)")
        if rows.shape[1] != self._classifier.shape[1]:
            raise ValueError(
                f"hidden: expected C = {self._classifier.shape[1]} channels as in classifier, "
                f"got shape {tuple(rows.shape)}"
            )
        missing = self._layout.answer_start - self._prefill_rows
        prompt, answer = rows[:missing], rows[missing:]
        used = torch.cat(
            [self._layout.visual_positions, self._layout.prompt, torch.tensor([self._layout.answer_start - 1])]
        )
        if prompt.shape[0]:
            check_finite_states(prompt, (used - self._prefill_rows).to(rows.device), "")
            self._prefill.append(prompt)
            self._prefill_rows += prompt.shape[0]
            if self._prefill_rows == self._layout.answer_start:
                self._prefill = [torch.cat(self._prefill)] if len(self._prefill) > 1 else self._prefill
                self._score(self._tokens)
        if answer.shape[0]:
            check_finite_states(answer, torch.arange(answer.shape[0], device=rows.device), "")
            self._answer.append(answer)

    def _score(self, tokens: Sequence[int]) -> None:
        """Give every token a row of scores over the prompt's positions; new ones in one call."""
        new = list(dict.fromkeys(token for token in tokens if token not in self._row_of))
        if new:
            scores = ops.token_scores(self._prefill[0], self._classifier, new).cpu()
            positions = torch.cat([self._layout.visual_positions, self._layout.prompt])
            check_finite_scores(scores, torch.tensor(new), positions, "")
            for token in new:
                self._row_of[token] = len(self._row_of)
            self._scores.append(scores)
        self._rows.extend(self._row_of[token] for token in tokens)

    def append(self, token_id: int) -> TokenMap:
        """Return the map of the next generated token.

        The map of y_i reads the states of the prompt and of y_1..y_(i-2); they must have been passed to :meth:`extend`.

        Raises
        ------
        ValueError
            If states are missing or the token id is not in the vocabulary.
        """
        index, n_p = len(self), int(self._layout.prompt.numel())
        have = self._prefill_rows + len(self._answer)
        need = self._layout.answer_start + max(index - 1, 0)
        if have < need:
            raise ValueError(
                f"hidden: expected states of {need} positions before token {index}, got {have}: call extend()"
            )
        self._score([int(token_id)])
        row = self._rows[-1]
        known = self._scores.view()[row]
        parts = [known[self._layout.prompt]]
        if index:
            parts.append(known[-1:])
        if index > 1:
            answer = self._answer.view()[: index - 1]
            parts.append(ops.token_scores(answer, self._classifier, [int(token_id)])[0].cpu())
        text = torch.cat(parts)[None]  # (1, K)
        context = torch.tensor(self._rows[:-1], dtype=torch.int64)
        used = int(context.max()) + 1 if context.numel() else 0
        # Two tokens are the same word exactly where they share a row.
        relevance = text.masked_fill(context[None] == row, 0.0) if self._interference else torch.zeros_like(text)
        step = FusedStep(
            scores=visual_columns(self._scores.view(), self._layout.visual_positions),
            activation_rows=torch.tensor([row]),
            context_rows=torch.arange(used),
            relevance=relevance_by_class(relevance, context, used),
            text_relevance=text,
            text_length=torch.tensor([n_p + index]),
        )
        maps, shown, scale, flat = finish([step], [self._layout], None, self._kernel_size)[0]
        self._tokens.append(int(token_id))
        return TokenMap(int(token_id), index, maps[0], shown[0], float(scale[0]), bool(flat[0]))


class _Rows:
    """A matrix that grows by rows, (n, width), doubling its storage."""

    def __init__(self, width: int, like: Tensor) -> None:
        self._data = like.new_empty((0, width))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Tensor) -> None:
        total = self._count + rows.shape[0]
        if total > self._data.shape[0] or rows.dtype != self._data.dtype:
            grown = rows.new_empty((max(total, 2 * self._data.shape[0], 16), self._data.shape[1]))
            grown[: self._count] = self._data[: self._count]
            self._data = grown
        self._data[self._count : total] = rows
        self._count = total

    def view(self) -> Tensor:
        return self._data[: self._count]
