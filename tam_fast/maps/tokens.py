"""Which classifier row explains each token of an answer, and which tokens are its context: :class:`AnswerTokens`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_fast.maps.layout import Layout
from tam_fast.maps.official import compared_texts, predicted_token
from tam_fast.operators import ops

__all__ = ["AnswerTokens", "Compat", "Integers", "check_classes"]

Compat: TypeAlias = Literal["official", "paper"] | None
Integers: TypeAlias = "NDArray[np.int64]"
_T = TypeVar("_T")


class AnswerTokens:
    """The tokens of one answer, resolved to rows of its score matrix.

    M = n_p + T tokens are p_1..p_np, y_1..y_T; the first K = M - 1 of them are context, target t uses n_p + t. Targets
    are the tokens from y_(first + 1) on, T' = T - first of them.

    Parameters
    ----------
    hidden : Tensor (S, C)
        Final hidden states; read only under ``compat="official"``, at one position.
    classifier : Tensor (V, C)
    token_ids : int Tensor, ndarray or list (S + 1,)
    layout : Layout
    compat, texts, first
        As in :func:`tam_fast.activation_maps`.
    where : str
        Which answer of a list it is, for errors.

    Attributes
    ----------
    ids : (M,) int64
    names : (M,) int64, equal where two tokens are the same word
    classes : (U,) int64, distinct classifier rows in order of appearance
    rows : (M,) int64, each token's among them
    target_rows : (T',) int64, the row whose map is shown for each target
    prompt_length : int
        n_p, the prompt's text tokens.
    shifted : bool
        The first target shows the map of p_1, on one scale with the whole prompt's relevance to it (``"official"``).
    start : int
        Position whose state predicts y_1.

    Raises
    ------
    TypeError, ValueError
        As :func:`tam_fast.activation_maps`.
    """

    def __init__(
        self,
        hidden: Tensor,
        classifier: Tensor,
        token_ids: Any,
        layout: Layout,
        compat: Compat,
        texts: Any,
        where: str,
        first: int = 0,
    ) -> None:
        everything = _check_token_ids(token_ids, hidden.shape[0], layout, where)
        prompt = layout.prompt.numpy()
        self.layout, self.where = layout, where
        self.first = _check_first(first, everything.size - layout.answer_start, where)
        self.prompt_length = int(prompt.size)
        self.start = layout.answer_start - 1
        self.ids = np.concatenate([everything[prompt], everything[layout.answer_start :]])
        self.names: Integers = self.ids
        classes = self.ids.tolist()  # (M,) classifier row that explains each token
        if compat == "official":
            if prompt.size:
                classes[0] = predicted_token(hidden[int(prompt[0])], classifier)
            classes[prompt.size] = int(everything[self.start])
            strings = compared_texts(texts, self.ids.size, where)
            if strings is not None:
                self.names = _first_appearance(strings)[1]
        elif texts is not None:
            raise ValueError(f'texts{where}: expected only with compat="official", got it with compat={compat!r}')
        unique, self.rows = _first_appearance(classes)
        check_classes(unique, classifier, where)
        self.classes: Integers = np.array(unique, dtype=np.int64)
        self.target_rows = self.rows[prompt.size + self.first :]
        self.shifted = compat == "official" and prompt.size > 0 and not self.first
        if self.shifted:
            self.target_rows = self.target_rows.copy()
            self.target_rows[0] = self.rows[0]

    @property
    def target_names(self) -> Integers:
        """(T',): names of the target tokens."""
        return self.names[self.prompt_length + self.first :]


def _check_first(first: Any, count: int, where: str) -> int:
    """Check which of some generated tokens is the first that is explained."""
    if isinstance(first, bool) or not hasattr(first, "__index__"):
        raise TypeError(f"first{where}: expected a whole number, got {first!r}")
    if not 0 <= first < count:
        raise ValueError(f"first{where}: expected 0 to {count - 1}, one of {count} generated tokens, got {first}")
    return int(first.__index__())


def check_classes(classes: Sequence[int], classifier: Tensor, where: str) -> None:
    """Refuse token ids that are no row of the classifier (V, C)."""
    rows = classifier.shape[0]
    for token_id in classes:
        if not 0 <= token_id < rows:
            raise ValueError(
                f"token_ids{where}: expected ids from 0 to {rows - 1} (classifier has {rows} rows), got {token_id}"
            )


def _first_appearance(values: Sequence[_T]) -> tuple[list[_T], Integers]:
    """Distinct values in order of appearance (U), and where each value is among them (M,) int64.

    Appearance, not magnitude, orders them: a longer answer only appends rows, so that streaming sums in the same order.
    """
    seen: dict[_T, int] = {}
    rows = [seen.setdefault(value, len(seen)) for value in values]
    return list(seen), np.array(rows, dtype=np.int64)


def _check_token_ids(token_ids: Any, rows: int, layout: Layout, where: str) -> Integers:
    ids = ops._index_tensor(token_ids, f"token_ids{where}", torch.device("cpu"))
    if ids.numel() != rows + 1:
        raise ValueError(
            f"token_ids{where}: expected S + 1 = {rows + 1} ids for hidden of S = {rows} rows (the last generated "
            f"token has no row), got {ids.numel()}"
        )
    if layout.answer_start >= ids.numel():
        raise ValueError(
            f"layout{where}: expected answer_start < {ids.numel()}, the number of token ids, got {layout.answer_start}"
        )
    vector: Integers = ids.numpy()
    return vector
