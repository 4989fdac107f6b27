"""The maps of an answer while it is being generated: :class:`ActivationMapStream`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_fast.backends import selection
from tam_fast.backends.contracts import StepBuffers
from tam_fast.maps.device_stream import DeviceContext
from tam_fast.maps.layout import Layout
from tam_fast.maps.scores import (
    ContextScores,
    check_finite,
    check_finite_states,
    check_states,
    is_plain,
    resident_for,
    score,
)
from tam_fast.maps.tokens import check_classes
from tam_fast.operators import ops

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
        On the CPU, like the relevance.
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

    Given the same states it gives the maps that :func:`activation_maps` gives afterwards: on the CPU their bits.

    Parameters
    ----------
    classifier : Tensor (V, C)
        lm_head weight.
    layout : Layout
    prompt_ids : int Tensor, ndarray or list (P,)
        Token ids of the prompt; P = ``layout.answer_start``.
    kernel_size, interference, backend
        As in :func:`activation_maps`.

    Raises
    ------
    TypeError, ValueError
        As :func:`activation_maps`.

    Notes
    -----
    Keeps the prompt's states by reference, one row of states a generated token, and one row of scores at the visual
    positions and the prompt's text for each distinct token. On a GPU the work of a token is three launches, replayed
    from a captured graph, and one copy of the results to the CPU, which is waited for.
    """

    def __init__(
        self,
        classifier: Tensor,
        layout: Layout,
        prompt_ids: Any,
        *,
        kernel_size: int = 3,
        interference: bool = True,
        backend: str | None = None,
    ) -> None:
        if not isinstance(layout, Layout):
            raise TypeError(f"layout: expected a Layout, got {type(layout).__name__}")
        self._classifier = ops._check_matrix(classifier, "classifier", "(V, C)")
        self._kernel_size = ops._check_kernel_size(kernel_size)
        self._interference = interference
        self._backend = backend
        self._device_backend = resident_for(self._classifier, backend) if layout.grids else None
        ids = ops._index_tensor(prompt_ids, "prompt_ids", torch.device("cpu"))
        if ids.numel() != layout.answer_start:
            raise ValueError(f"prompt_ids: expected {layout.answer_start} ids (layout.answer_start), got {ids.numel()}")
        self._layout = layout
        self._positions = layout.visual_positions.numel()
        self._prompt: list[int] = ids[layout.prompt].tolist()
        self._prefill: list[Tensor] = []
        self._prefill_rows = 0
        self._context: _Context | DeviceContext | None = None  # once the prompt's states are complete
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, hidden: Tensor) -> None:
        """Append final hidden states (n, C) of the next n positions: the prompt's, then the answer's.

        Raises
        ------
        TypeError, ValueError
            If the dtype, shape or device does not fit, or a state that will be read is NaN or Inf. Those of the prompt
            are looked at when it is complete, those on a GPU when a token reads them.
        """
        rows = check_states(hidden, self._classifier, "")
        if self._context is not None:
            self._context.extend(rows)
            return
        missing = self._layout.answer_start - self._prefill_rows
        if rows.shape[0] < missing:
            self._prefill.append(rows)
            self._prefill_rows += rows.shape[0]
            return
        chunks = [*self._prefill, rows[:missing]]
        prompt = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
        arguments = (prompt, self._classifier, self._layout, self._prompt, self._interference, self._kernel_size)
        context: _Context | DeviceContext
        if self._device_backend is None:
            context = _Context(*arguments, self._backend)
        else:
            context = DeviceContext(self._device_backend, *arguments)
        context.extend(rows[missing:])
        self._prefill.clear()
        self._prefill_rows += missing
        self._context = context

    def append(self, token_id: int) -> TokenMap:
        """Return the map of the next generated token.

        The map of y_i reads the states of the prompt and of y_1..y_(i-2); they must have been passed to :meth:`extend`.

        Raises
        ------
        ValueError
            If states are missing or the token id is not in the vocabulary, or a score is NaN or Inf.
        """
        token, index, context = int(token_id), self._count, self._context
        have = self._prefill_rows if context is None else self._layout.answer_start - 1 + context.states
        need = self._layout.answer_start + max(index - 1, 0)
        if context is None or have < need:
            raise ValueError(
                f"hidden: expected states of {need} positions before token {index}, got {have}: call extend()"
            )
        found = torch.empty(self._positions, dtype=torch.float32, device="cpu")
        shown = torch.empty(len(self._prompt) + index, dtype=torch.float32, device="cpu")
        scale, flat = context.append(token, (found, shown))
        self._count += 1
        return TokenMap(token, index, found, shown, scale, flat)


class _Context:
    """The context of the next token: states, scores and relevances, in buffers that double when they are full."""

    def __init__(
        self,
        prompt: Tensor,
        classifier: Tensor,
        layout: Layout,
        prompt_tokens: list[int],
        interference: bool,
        kernel_size: int,
        backend: str | None,
    ) -> None:
        self._classifier, self._backend = classifier, backend
        self._sizes, self._interference, self._kernel_size = layout.sizes, interference, kernel_size
        self._start = layout.answer_start - 1
        self._scores = ContextScores(prompt, classifier, layout, "", backend)
        self._plain = is_plain(prompt) and is_plain(classifier)
        # States from the prompt's last position on, which predict the answer's tokens.
        self._states = prompt.new_empty((0, prompt.shape[1]))
        self.states = 0
        classes = list(dict.fromkeys(prompt_tokens))
        check_classes(classes, classifier, "")
        maps, words, _ = self._scores(np.array(classes, dtype=np.int64))
        self._row_of = {token: row for row, token in enumerate(classes)}  # token id -> row of its scores
        self._words = words  # (capacity, n_p), scores of every row at the prompt's text
        self._rows = np.array([self._row_of[token] for token in prompt_tokens], dtype=np.int64)  # (capacity,)
        self._length = len(prompt_tokens)
        whole: dict[str, Any] = {"dtype": torch.int64, "device": "cpu"}
        single: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        self._buffers = StepBuffers(
            token=torch.empty(1, **whole),
            scores=torch.empty(self._scores.states.shape[0], **single),
            maps=torch.from_numpy(maps),
            row=torch.empty(1, **whole),
            relevance=torch.empty(len(classes), **single),
            text=torch.empty(self._length, **single),
            length=torch.empty(1, **whole),
            scale=torch.empty(1, **single),
            flat=torch.empty(1, dtype=torch.bool, device="cpu"),
        )
        self._look()
        self.extend(prompt[-1:])

    def _look(self) -> None:
        """Look at the buffers through numpy, which is quicker to write a little with."""
        b = self._buffers
        self._token, self._row, self._count = b.token.numpy(), b.row.numpy(), b.length.numpy()
        self._scale, self._flat = b.scale.numpy(), b.flat.numpy()
        self._found, self._maps = b.scores.numpy(), b.maps.numpy()
        self._text, self._relevance = b.text.numpy(), b.relevance.numpy()

    def _reserve(self) -> None:
        """Make room for one more token."""
        b, length, classes = self._buffers, self._length, len(self._row_of)
        if length == self._rows.size:
            self._rows = _grown(self._rows, length)
            b.text = torch.from_numpy(_grown(self._text, 0))
            self._look()
        if classes == self._maps.shape[0]:
            self._words = _grown(self._words, classes)
            b.maps = torch.from_numpy(_grown(self._maps, classes))
            b.relevance = torch.from_numpy(_grown(self._relevance, 0))
            self._look()

    def extend(self, rows: Tensor) -> None:
        """Take over states (n, C)."""
        count = rows.shape[0]
        if rows.dtype != self._states.dtype:
            raise TypeError(f"hidden: expected {self._states.dtype} as before, got {rows.dtype}")
        # The sum of one row is soon looked at.
        if count and not (count == 1 and math.isfinite(rows.sum().item())):
            check_finite_states(rows, np.arange(count), "", self._start + self.states, self._backend)
        total = self.states + count
        if total > self._states.shape[0]:
            grown = self._states.new_empty((max(total, 2 * self._states.shape[0], 16), self._states.shape[1]))
            grown[: self.states] = self._states[: self.states]
            self._states = grown
        self._states[self.states : total] = rows
        self.states = total

    def append(self, token: int, out: tuple[Tensor, Tensor]) -> tuple[float, bool]:
        """Make the map (N,) and the relevance (K,) of the next token; return its scale and whether it is flat."""
        self._reserve()
        backend, b = selection.host(self._backend), self._buffers
        length, used, begin = self._length, len(self._row_of), self._words.shape[1]
        index = length - begin
        row = self._row_of.get(token)
        self._token[0] = token
        if row is None:
            check_classes([token], self._classifier, "")
        prompt = self._scores.states if row is None else None
        if self._plain:
            backend.step_scores(b, self._classifier, prompt, self._states, index, begin)
        else:
            if prompt is not None:
                self._found[:] = score(prompt, self._classifier, self._token, self._backend)[0]
            if index:
                states = self._states[:index]
                self._text[begin:length] = score(states, self._classifier, self._token, self._backend)[0]
        if row is None:
            row = used
            maps, words, _ = self._scores.read(self._found[None], self._token)
            self._maps[row], self._words[row] = maps[0], words[0]
        text = self._text[:length]
        text[:begin] = self._words[row]
        check_finite(text[None, begin:], self._start, None, None, self._token, "")
        classes = used if self._interference else 0
        if classes:
            # Two tokens are the same word exactly where they share a row.
            context = self._rows[:length]
            relevance = self._relevance[:classes]
            relevance[:] = 0
            np.add.at(relevance, context, text * (context != row))
        self._row[0], self._count[0] = row, length
        backend.step_maps(b, classes, length, self._sizes, self._kernel_size, out)
        self._row_of[token] = self._rows[length] = row
        self._length += 1
        return float(self._scale[0]), bool(self._flat[0])


def _grown(array: NDArray[Any], used: int) -> NDArray[Any]:
    """Copy the first rows of an array to one of twice its size."""
    grown = np.empty((max(2 * array.shape[0], 16), *array.shape[1:]), dtype=array.dtype)
    grown[:used] = array[:used]
    return grown
