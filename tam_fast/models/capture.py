"""What is read of a model while it runs: final hidden states, by a hook, and the best candidates of each step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

# By what Inkling divides its final hidden states before its classifier reads them.
_DIVISOR = "logits_mup_width_multiplier"
_KEPT = 1 << 14  # bytes of logits that may wait to be looked at together

__all__ = ["CapturedCandidates", "CapturedStates", "capture", "decoder_of", "states_of"]


class CapturedStates:
    """The final hidden states of one sequence, in the order in which the decoder produced them.

    Attributes
    ----------
    prefill_length : int
        Rows of the first forward pass: the prompt's positions. 0 before it.
    """

    def __init__(self) -> None:
        self.prefill_length = 0
        self._chunks: list[Tensor] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, rows: Tensor, keep: bool = True, prefill: bool = False) -> Tensor:
        """Take the states (n, C) of a forward pass, the prompt's or one more step's; return what is kept of them.

        With `prefill` they are a further chunk of the prompt.

        The prefill's states are kept without a copy where the tensor is the whole of its storage, which is what final
        norms return; rows of decode steps are copied, so that no larger buffer stays alive.

        Raises
        ------
        ValueError
            If the sequence does not grow by one row a step.
        """
        if not self._rows or prefill:
            self.prefill_length += rows.shape[0]
            if rows.untyped_storage().nbytes() != rows.numel() * rows.element_size():
                rows = rows.clone()
        elif rows.shape[0] != 1:
            raise ValueError(
                f"model: expected 1 new state a step after {self._rows}, got {rows.shape[0]}: capture needs a "
                "key-value cache (use_cache=True), a prefill in one piece (prefill_chunk_size=None), no assisted "
                "decoding, and one generate() in a `with` block"
            )
        else:
            rows = rows.clone()
        self._rows += rows.shape[0]
        if keep:
            self._chunks.append(rows)
        return rows

    @property
    def hidden(self) -> Tensor:
        """States (S, C), in the model's dtype and on its device: the prefill's rows, then one a decode step.

        Raises
        ------
        RuntimeError
            If nothing was captured, or the rows were not to be kept (``keep=False``).
        """
        if not self._chunks:
            raise RuntimeError(
                "hidden: expected states of a forward pass that are kept, got none: call the model inside the `with` "
                "block, in the thread that entered it (a model compiled before then does not see the hook)"
            )
        if len(self._chunks) > 1:
            # In place of the chunks, so that nothing is held twice from now on.
            self._chunks = [torch.cat(self._chunks)]
        return self._chunks[0]


class capture:
    """Record the final hidden states of a model while it generates.

    ::

        with capture(model) as states:
            ids = model.generate(**inputs)
        states.hidden  # (S, C)

    A forward hook on ``model.get_decoder()`` reads ``last_hidden_state``: the states after the final norm, which the
    classifier reads. Neither attention weights nor other layers' states are asked for, and how the model attends is not
    touched. Calls from other threads are not recorded.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any model with a decoder; batch of one sequence.

    Raises
    ------
    TypeError
        If `model` has no ``get_decoder()``, or the decoder returns no final hidden states.
    ValueError
        While the model runs, if the batch holds more than one sequence (beam search makes one), or the sequence does
        not grow by one row a step (no key-value cache, chunked prefill, assisted decoding, two calls in one block).

    Notes
    -----
    Whoever calls the decoder in the thread is recorded: for ``generate``'s own steps alone, and proof of them, see
    :mod:`tam_fast.models.recording`. Static caches work. Nothing is synchronised.
    """

    def __init__(self, model: Any) -> None:
        self._decoder = decoder_of(model)
        self._states = CapturedStates()
        self._handle: Any = None
        self._thread = 0

    def __enter__(self) -> CapturedStates:
        if self._handle is not None:
            raise RuntimeError("capture: expected to be entered once, got a second `with` while the first is open")
        self._states = CapturedStates()
        self._thread = threading.get_ident()
        self._handle = self._decoder.register_forward_hook(self._forwarded)
        return self._states

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _forwarded(self, _module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        # Another thread that uses the model meanwhile is none of our business.
        if threading.get_ident() == self._thread:
            self._states.add(states_of(output, self._decoder))


def states_of(output: Any, decoder: torch.nn.Module, graph: bool = False) -> Tensor:
    """Find the final hidden states (n, C) in a decoder's output, as the classifier reads them.

    They are cut from the graph that made them, unless it is asked for.

    Raises
    ------
    TypeError, ValueError
        If there are none, or those of more than one sequence.
    """
    state = getattr(output, "last_hidden_state", None)
    if state is None and isinstance(output, tuple) and output:
        state = output[0]  # return_dict=False
    name = type(decoder).__name__
    if not isinstance(state, Tensor) or state.ndim != 3:
        got = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(output).__name__
        raise TypeError(f"model: expected last_hidden_state (1, n, C) of its decoder {name}, got {got}")
    if state.shape[0] != 1:
        raise ValueError(
            f"model: expected a batch of 1 sequence, got {state.shape[0]} (num_beams, num_return_sequences and "
            "batches of prompts are not supported)"
        )
    state = state.detach()[0] if state.requires_grad and not graph else state[0]
    width = getattr(getattr(decoder, "config", None), _DIVISOR, None)
    return state / width if width else state


def decoder_of(model: Any) -> torch.nn.Module:
    """Find the text decoder of a model, which ends in the final norm.

    Where ``get_decoder()`` gives a whole language model, with its classifier, the decoder is the one inside that.
    """
    find = getattr(model, "get_decoder", None)
    decoder = find() if callable(find) else None
    while isinstance(decoder, torch.nn.Module):
        classifier = getattr(decoder, "get_output_embeddings", None)
        inner = getattr(decoder, "base_model", None)
        if inner is decoder:
            inner = getattr(decoder, "model", None)  # Llama 4's names itself as its base
        if not callable(classifier) or classifier() is None or not isinstance(inner, torch.nn.Module):
            return decoder
        decoder = inner
    raise TypeError(f"model: expected a transformers model with get_decoder(), got {type(model).__name__}")


class CapturedCandidates:
    """The k best tokens of every step and their probabilities.

    Rows of logits are looked at together, as many as make up a few KiB, or when a step is read.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor]] = []
        self._rows: list[Tensor] = []  # logits (1, 1, V) of the steps after those
        self._wanted = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._steps) + len(self._rows)

    def __getitem__(self, step: int) -> list[tuple[int, float]]:
        """(token id, probability) of one step, best first. Waits for the device."""
        with self._lock:
            self._look()
            ids, probabilities = self._steps[step]
        return list(zip(ids.tolist(), probabilities.tolist(), strict=True))

    def append(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Add steps from their logits (n, V): of each row only the best `count` stay; float32 softmax.

        Returns
        -------
        ids, values : (n, count)
            The best tokens and their logits.
        """
        with self._lock:
            self._look()
            values, ids = logits.topk(min(count, logits.shape[-1]), dim=-1)
            self._steps.extend(_probabilities(logits, ids))
        return ids, values

    @staticmethod
    def may_wait(logits: Tensor) -> bool:
        """Whether logits (..., V) of a step are so few that they are better looked at together with others."""
        return 2 * logits.shape[-1] * logits.element_size() <= _KEPT

    @staticmethod
    def is_enough(steps: int, logits: Tensor) -> bool:
        """Whether so many steps of logits (..., V) have waited long enough."""
        return (steps + 1) * logits.shape[-1] * logits.element_size() > _KEPT

    def append_step(self, logits: Tensor, count: int) -> Tensor:
        """Add a step from its logits (1, 1, V), as :meth:`append`, but not necessarily at once; return what is kept."""
        if not self.may_wait(logits):
            self.append(logits[0], count)
            return logits
        kept = logits.clone()
        with self._lock:
            self._rows.append(kept)
            self._wanted = count
            if self.is_enough(len(self._rows), logits):
                self._look()
        return kept

    def _look(self) -> None:
        if self._rows:
            logits = torch.cat(self._rows)[:, 0]
            ids = logits.topk(min(self._wanted, logits.shape[-1]), dim=-1).indices
            self._steps.extend(_probabilities(logits, ids))
            self._rows.clear()


def _probabilities(logits: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair the ids (n, k) of every row (n, V) with their probabilities, row by row."""
    probabilities = logits.softmax(dim=-1, dtype=torch.float32).gather(-1, ids)
    return zip(ids.unbind(), probabilities.unbind(), strict=True)
