"""Scores of classifier rows at the positions of a sequence, and the refusal of states that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_fast.backends import selection
from tam_fast.backends.contracts import DeviceBackend
from tam_fast.maps.layout import Layout
from tam_fast.maps.tokens import Integers
from tam_fast.operators import ops

__all__ = [
    "BLOCK",
    "ContextScores",
    "check_finite",
    "check_finite_states",
    "check_states",
    "is_dense",
    "is_plain",
    "resident_for",
    "score",
]

# What lies between the kernels is numpy's: torch would wake a pool of threads for it, which spins beside ours.
Floats: TypeAlias = "NDArray[np.float32]"

BLOCK = 1 << 18
"""Elements of a (targets, context) array that is made at a time."""


def check_states(hidden: Any, classifier: Tensor, where: str) -> Tensor:
    """Check type, shape and device of final hidden states (S, C)."""
    rows = ops._check_matrix(hidden, f"hidden{where}", "(S, C)")
    if rows.shape[1] != classifier.shape[1]:
        raise ValueError(
            f"hidden{where}: expected C = {classifier.shape[1]} channels as in classifier, "
            f"got shape {tuple(rows.shape)}"
        )
    ops._check_device(rows, f"hidden{where}", classifier, "classifier")
    return rows.detach() if rows.requires_grad else rows


def resident_for(classifier: Tensor, backend: str | None) -> DeviceBackend | None:
    """Return the backend that keeps the tensors of an answer on the classifier's device, None if they come to the CPU.

    Raises
    ------
    TypeError
        If such a backend was asked for, and the classifier is a subclass of Tensor, whose values it cannot read.
    """
    found = selection.resident(classifier.device, backend)
    if found is None or is_dense(classifier):
        return found
    if asked := selection.asked(backend):
        name, asker = asked
        raise TypeError(
            f"classifier: expected a torch.Tensor, which {name} can read ({asker}), got its subclass "
            f"{type(classifier).__name__}"
        )
    return None


def is_plain(tensor: Tensor) -> bool:
    """Whether address and strides say all about a tensor."""
    return tensor.device.type == "cpu" and is_dense(tensor) and not tensor.is_neg()


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is torch's own, and no subclass that keeps its values elsewhere."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def score(hidden: Tensor, classifier: Tensor, token_ids: Integers, backend: str | None = None) -> Floats:
    """token_scores of checked arguments, past the dispatcher if that can be: (S, C), (V, C), (T,) -> (T, S)."""
    ids = torch.from_numpy(token_ids)
    if is_plain(hidden) and is_plain(classifier):
        scores = selection.serving(selection.CPU, backend).token_scores([hidden], classifier, [ids])[0]
    else:
        scores = torch.ops.tam_fast.token_scores.default(hidden, classifier, ids.to(hidden.device), backend).cpu()
    array: Floats = scores.numpy()
    return array


def check_finite_states(
    hidden: Tensor, positions: Integers, where: str, first: int = 0, backend: str | None = None
) -> None:
    """Refuse NaN and Inf in some rows (n,) of hidden (S, C), whose first row is position `first`."""
    # Sums in our own kernel, which cuts negative ones off, hence both signs. A sum may also overflow.
    signs = torch.ones((2, hidden.shape[1]), dtype=torch.float32, device=hidden.device)
    signs[1] = -1.0
    suspicious = ~np.isfinite(score(signs, hidden, positions, backend)).all(axis=1)
    for position in positions[suspicious].tolist():
        if not bool(torch.isfinite(hidden[position]).all()):
            raise ValueError(f"hidden{where}: expected finite states, got NaN or Inf at position {first + position}")


def check_finite(
    scores: Floats,
    start: int,
    states: Tensor | None,
    read: Callable[[], Integers] | None,
    classes: Integers,
    where: str,
    backend: str | None = None,
) -> None:
    """Refuse NaN and Inf in scores (U, S) and states (S, C) of the positions from `start` on.

    Without `states` only scores are looked at. `read` tells which columns count, if not all do.
    """
    if states is None:
        if math.isfinite(scores.max(initial=0.0)):
            return
        fine = np.isfinite(scores).all(axis=0)
    else:
        # NaN in a state makes all of its scores NaN; Inf makes each of them NaN, Inf or, cut off below, 0. So one
        # finite score above 0 shows that a state is finite, and few states need to be read.
        largest = scores.max(axis=0, initial=0.0)
        fine = (largest > 0) & (largest < np.inf)
        if fine.all():
            return
    suspicious = np.flatnonzero(~fine)
    if read is not None:
        suspicious = suspicious[np.isin(suspicious, read())]
    if states is not None and suspicious.size:
        check_finite_states(states, suspicious, where, start, backend)
    for row, number in np.argwhere(~np.isfinite(scores[:, suspicious])).tolist():
        column = int(suspicious[number])
        raise ValueError(
            f"classifier{where}: expected finite scores, got {float(scores[row, column])} for token id "
            f"{int(classes[row])} at position {start + column} (a NaN or Inf in its row, or an overflow)"
        )


class ContextScores:
    """Scores of classes at the prompt's positions, and at those after them whose states are given too.

    Attributes
    ----------
    states : (S, C) Tensor
        Final hidden states of the prompt, or of prompt and answer.
    """

    def __init__(
        self, states: Tensor, classifier: Tensor, layout: Layout, where: str, backend: str | None = None
    ) -> None:
        self.states = states
        self._classifier, self._where, self._backend = classifier, where, backend
        self._unchecked: Tensor | None = states
        self._start = layout.answer_start - 1
        self._visual, self._prompt = layout.visual_positions.numpy(), layout.prompt.numpy()
        in_a_row = bool((self._visual[1:] - self._visual[:-1] == 1).all())
        first = int(self._visual[0]) if self._visual.size else 0
        self._run = slice(first, first + self._visual.size) if in_a_row else None

    def __call__(self, classes: Integers) -> tuple[Floats, Floats, Floats]:
        """Score classes (U,): maps (U, N), words of the prompt (U, n_p), and from the prompt's last position on."""
        if self._run is not None:
            return self.read(score(self.states, self._classifier, classes, self._backend), classes)
        # Not all of it is kept beside what is read of it.
        count = self.states.shape[0]
        step = max(BLOCK // count, 32)
        widths = (self._visual.size, self._prompt.size, count - self._start)
        whole = [np.empty((classes.size, width), dtype=np.float32) for width in widths]
        for first in range(0, classes.size, step):
            some = classes[first : first + step]
            found = self.read(score(self.states, self._classifier, some, self._backend), some)
            for to, part in zip(whole, found, strict=True):
                to[first : first + step] = part
        maps, words, after = whole
        return maps, words, after

    def read(self, scores: Floats, classes: Integers) -> tuple[Floats, Floats, Floats]:
        """Check scores (U, S) and take apart what :meth:`__call__` returns."""
        check_finite(scores, 0, self._unchecked, self._read, classes, self._where, self._backend)
        self._unchecked = None
        maps = scores[:, self._visual if self._run is None else self._run]
        return maps, scores[:, self._prompt], scores[:, self._start :]

    def _read(self) -> Integers:
        return np.concatenate([self._visual, self._prompt, np.arange(self._start, self.states.shape[0])])
