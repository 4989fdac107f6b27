"""From final hidden states to the maps of every generated token: :func:`activation_maps`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_fast import _backends, ops
from tam_fast.layout import Layout

__all__ = ["Compat", "TokenActivationMaps", "activation_maps"]

Compat: TypeAlias = Literal["official", "paper"] | None
_COMPATS = (None, "official", "paper")
_T = TypeVar("_T")
# What lies between the kernels is numpy's: torch would wake a pool of threads for it, which spins beside ours.
_Floats: TypeAlias = "NDArray[np.float32]"
_Integers: TypeAlias = "NDArray[np.int64]"
Results: TypeAlias = "tuple[Tensor, Tensor, Tensor, Tensor]"  # maps (T, N), relevance (T, K), scale (T,), flat (T,)

# Elements of a (targets, context) array that is made at a time.
_BLOCK = 1 << 18


@dataclass(eq=False)
class TokenActivationMaps:
    """The maps of one answer.

    Attributes
    ----------
    maps : (T, N) float32
        One map a generated token, over the grids' positions in order, in [0, 1] (``compat="official"`` can hold NaN).
    relevance : (T, K) float32
        Relevance of each context token to each target on the scale of the maps; 0 beyond the target's context.
    scale : (T,) float32
        s of Eq. 5: how much of the interference map was removed.
    flat : (T,) bool
        True where map and relevances were one constant, so that there is nothing to show and the map is 0.
    context_ids : (K,) int64
        Token ids of the context p_1..p_np, y_1..y_(T-1); target t uses the first n_p + t of them.
    target_ids : (T,) int64
        Token ids of the answer.
    layout : Layout
    """

    maps: Tensor
    relevance: Tensor
    scale: Tensor
    flat: Tensor
    context_ids: Tensor
    target_ids: Tensor
    layout: Layout

    def __len__(self) -> int:
        return int(self.maps.shape[0])

    def grid(self, t: int, g: int = 0) -> Tensor:
        """Return the map of target ``t`` on grid ``g``: a (H, W) float32 view.

        Raises
        ------
        IndexError
            If there is no such target or grid.
        """
        if not -len(self) <= t < len(self):
            raise IndexError(f"t: expected a target from 0 to {len(self) - 1}, got {t}")
        grids = self.layout.grids
        if not -len(grids) <= g < len(grids):
            raise IndexError(f"g: expected a grid from 0 to {len(grids) - 1}, got {g}")
        g %= len(grids)
        begin = self.layout.offsets[g]
        return self.maps[t, begin : begin + len(grids[g])].view(grids[g].shape)

    def uint8(self) -> Tensor:
        """Return the maps as (T, N) uint8: floor(255 x), NaN as 0."""
        return (torch.nan_to_num(self.maps, nan=0.0) * 255).floor().clamp(0, 255).to(torch.uint8)


def _first_appearance(values: Sequence[_T]) -> tuple[list[_T], _Integers]:
    """Distinct values in order of appearance (U), and where each value is among them (M,) int64.

    Appearance, not magnitude, orders them: a longer answer only appends rows, so that streaming sums in the same order.
    """
    seen: dict[_T, int] = {}
    rows = [seen.setdefault(value, len(seen)) for value in values]
    return list(seen), np.array(rows, dtype=np.int64)


def _check_token_ids(token_ids: Any, rows: int, layout: Layout, where: str) -> _Integers:
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
    vector: _Integers = ids.numpy()
    return vector


def check_classes(classes: Sequence[int], classifier: Tensor, where: str) -> None:
    """Refuse token ids that are no row of the classifier (V, C)."""
    rows = classifier.shape[0]
    for token_id in classes:
        if not 0 <= token_id < rows:
            raise ValueError(
                f"token_ids{where}: expected ids from 0 to {rows - 1} (classifier has {rows} rows), got {token_id}"
            )


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


def is_plain(tensor: Tensor) -> bool:
    """Whether address and strides say all about a tensor."""
    return tensor.device.type == "cpu" and type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_neg()


def score(hidden: Tensor, classifier: Tensor, token_ids: _Integers) -> _Floats:
    """token_scores of checked arguments, past the dispatcher if that can be: (S, C), (V, C), (T,) -> (T, S)."""
    ids = torch.from_numpy(token_ids)
    if is_plain(hidden) and is_plain(classifier):
        scores = _backends.current().token_scores([hidden], classifier, [ids])[0]
    else:
        scores = torch.ops.tam_fast.token_scores.default(hidden, classifier, ids.to(hidden.device)).cpu()
    array: _Floats = scores.numpy()
    return array


def check_finite_states(hidden: Tensor, positions: _Integers, where: str, first: int = 0) -> None:
    """Refuse NaN and Inf in some rows (n,) of hidden (S, C), whose first row is position `first`."""
    # Sums in our own kernel, which cuts negative ones off, hence both signs. A sum may also overflow.
    signs = torch.ones((2, hidden.shape[1]), dtype=torch.float32, device=hidden.device)
    signs[1] = -1.0
    suspicious = ~np.isfinite(score(signs, hidden, positions)).all(axis=1)
    for position in positions[suspicious].tolist():
        if not bool(torch.isfinite(hidden[position]).all()):
            raise ValueError(f"hidden{where}: expected finite states, got NaN or Inf at position {first + position}")


def check_finite(
    scores: _Floats,
    start: int,
    states: Tensor | None,
    read: Callable[[], _Integers] | None,
    classes: _Integers,
    where: str,
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
        check_finite_states(states, suspicious, where, start)
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

    def __init__(self, states: Tensor, classifier: Tensor, layout: Layout, where: str) -> None:
        self.states = states
        self._classifier, self._where = classifier, where
        self._unchecked: Tensor | None = states
        self._start = layout.answer_start - 1
        self._visual, self._prompt = layout.visual_positions.numpy(), layout.prompt.numpy()
        in_a_row = bool((self._visual[1:] - self._visual[:-1] == 1).all())
        self._run = slice(int(self._visual[0]), int(self._visual[-1]) + 1) if in_a_row else None

    def __call__(self, classes: _Integers) -> tuple[_Floats, _Floats, _Floats]:
        """Score classes (U,): maps (U, N), words of the prompt (U, n_p), and from the prompt's last position on."""
        if self._run is not None:
            return self.read(score(self.states, self._classifier, classes), classes)
        # Not all of it is kept beside what is read of it.
        count = self.states.shape[0]
        step = max(_BLOCK // count, 32)
        widths = (self._visual.size, self._prompt.size, count - self._start)
        whole = [np.empty((classes.size, width), dtype=np.float32) for width in widths]
        for first in range(0, classes.size, step):
            some = classes[first : first + step]
            for to, part in zip(whole, self.read(score(self.states, self._classifier, some), some), strict=True):
                to[first : first + step] = part
        maps, words, after = whole
        return maps, words, after

    def read(self, scores: _Floats, classes: _Integers) -> tuple[_Floats, _Floats, _Floats]:
        """Check scores (U, S) and take apart what :meth:`__call__` returns."""
        check_finite(scores, 0, self._unchecked, self._read, classes, self._where)
        self._unchecked = None
        maps = scores[:, self._visual if self._run is None else self._run]
        return maps, scores[:, self._prompt], scores[:, self._start :]

    def _read(self) -> _Integers:
        return np.concatenate([self._visual, self._prompt, np.arange(self._start, self.states.shape[0])])


@dataclass
class Part:
    """Some target tokens of one answer as the fused operator takes them (see ``finish_maps`` in ``_library``)."""

    scores: Tensor  # (U, N) at the visual positions; the first K' rows are the context maps
    activation_rows: Tensor  # (T,)
    relevance: Tensor  # (T, K') summed over the context tokens of one class
    text_relevance: Tensor  # (T, K) raw
    text_length: Tensor  # (T,)
    sizes: list[tuple[int, int]]
    out: Results

    @property
    def elements(self) -> int:
        """How much it holds and refers to."""
        return self.scores.numel() + self.text_relevance.numel()


def empty_results(targets: int, positions: int, context: int) -> Results:
    """Allocate maps (T, N), text relevance (T, K), scale (T,) and flat (T,)."""
    options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    return (
        torch.empty((targets, positions), **options),
        torch.empty((targets, context), **options),
        torch.empty(targets, **options),
        torch.empty(targets, dtype=torch.bool, device="cpu"),
    )


class _Answer:
    """One answer, resolved to rows of its score matrix; M = n_p + T tokens are p_1..p_np, y_1..y_T."""

    def __init__(
        self,
        hidden: Tensor,
        classifier: Tensor,
        token_ids: _Integers,
        layout: Layout,
        compat: Compat,
        texts: Any,
        interference: bool,
        where: str,
    ) -> None:
        prompt = layout.prompt.numpy()
        ids = np.concatenate([token_ids[prompt], token_ids[layout.answer_start :]])
        self._classifier, self._layout, self._interference, self._where = classifier, layout, interference, where
        self._start = layout.answer_start - 1
        self._states = hidden[self._start :]  # (T, C), the t-th predicts y_t
        self._names = ids  # (M,) equal where tokens are the same word
        classes = ids.tolist()  # (M,) classifier row that explains each token
        if compat == "official":
            if prompt.size:
                classes[0] = _predicted_token(hidden[int(prompt[0])], classifier)
            classes[prompt.size] = int(token_ids[self._start])
            strings = _check_texts(texts, ids.size, where)
            if strings is not None:
                self._names = _first_appearance(strings)[1]
        elif texts is not None:
            raise ValueError(f'texts{where}: expected only with compat="official", got it with compat={compat!r}')
        unique, self._rows = _first_appearance(classes)  # (U,), (M,)
        check_classes(unique, classifier, where)
        self._classes = np.array(unique, dtype=np.int64)
        self._target_rows = self._rows[prompt.size :]  # (T,)
        self._shifted = compat == "official" and prompt.size > 0
        if self._shifted:
            # The program shows p_1's map for y_1, on one scale with the whole prompt's relevance to it.
            self._target_rows = self._target_rows.copy()
            self._target_rows[0] = self._rows[0]
        # All in one go, unless that would make many scores that nobody reads.
        whole = self._classes.size * hidden.shape[0] <= _BLOCK
        read = ContextScores(hidden if whole else hidden[: layout.answer_start], classifier, layout, where)
        maps, self._words, after = read(self._classes)
        self._after = after if whole else None  # (U, T)
        self._scores = torch.from_numpy(maps)
        self._results = empty_results(self._target_rows.size, maps.shape[1], ids.size - 1)
        tokens = torch.from_numpy(ids)
        self._maps = TokenActivationMaps(*self._results, tokens[:-1], tokens[prompt.size :], layout)

    def parts(self) -> Iterator[Part]:
        """Cut the answer into parts whose relevances are not too large to be made."""
        targets = self._target_rows.size
        step = max(_BLOCK // self._rows.size, 1)
        for first in range(0, targets, step):
            yield self._part(first, min(first + step, targets))

    def _part(self, first: int, last: int) -> Part:
        """Gather the relevances of targets first..last - 1, and sum those whose context maps are the same."""
        n_p, some = self._words.shape[1], slice(first, last)
        maps, relevance, scale, flat = self._results
        rows = self._target_rows[some]
        if self._after is not None:
            scores = self._after[rows]
        else:
            classes = self._classes[rows]
            scores = score(self._states[:last], self._classifier, classes)
            check_finite(scores, self._start, self._states[:last], None, classes, self._where)
        known = n_p + last - 1  # context of the last target
        text = np.empty((last - first, relevance.shape[1]), dtype=np.float32)
        text[:, :n_p] = self._words[rows]
        text[:, n_p:known] = scores[:, : last - 1]
        length = np.arange(n_p + first, n_p + last)
        used = int(self._rows[:known].max()) + 1 if self._interference and known else 0
        summed = torch.zeros((last - first, used), dtype=torch.float32, device="cpu")
        if used:
            # The target's own word is no part of its context (Eq. 4).
            counted = self._names[:known] != self._names[n_p + first : n_p + last, None]
            counted &= np.arange(known) < length[:, None]
            if self._shifted and first == 0:
                counted[0] = False
            counting = torch.from_numpy(text[:, :known] * counted)
            summed.index_add_(1, torch.from_numpy(self._rows[:known]), counting)
        return Part(
            self._scores,
            torch.from_numpy(rows),
            summed,
            torch.from_numpy(text),
            torch.from_numpy(length),
            self._layout.sizes,
            (maps[some], relevance[some], scale[some], flat[some]),
        )

    def finish(self) -> TokenActivationMaps:
        """Return the maps, once the parts are finished."""
        if self._shifted:
            self._maps.relevance[0] = 0.0  # p_1's own context is empty; the prompt only set the scale
        return self._maps


def _check_texts(texts: Any, expected: int, where: str) -> list[str] | None:
    if texts is None:
        return None
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"texts{where}: expected a sequence of str, got {type(texts).__name__}")
    if len(texts) != expected:
        # Re-tokenising a decoded text need not give the tokens back; the program then compares the wrong ones.
        warnings.warn(
            f"texts{where}: expected {expected} strings (prompt and answer tokens), got {len(texts)}; comparing ids",
            stacklevel=4,
        )
        return None
    return list(texts)


def _predicted_token(state: Tensor, classifier: Tensor) -> int:
    """Argmax over the vocabulary of F . w at one position (C,), in chunks of classifier rows."""
    best, token = float("-inf"), 0
    for begin in range(0, classifier.shape[0], 16384):
        value, index = (classifier[begin : begin + 16384].float() @ state.float()).max(0)
        if float(value) > best:
            best, token = float(value), begin + int(index)
    return token


def _finish_paper(part: Part, kernel_size: int) -> None:
    """Eq. 2 to the letter: subtract, filter (windows anchored top-left), ReLU; then Eq. 3."""
    activation = part.scores[part.activation_rows]
    context = part.scores[: part.relevance.shape[1]]
    interference = (part.relevance @ context) / (part.relevance.sum(-1, keepdim=True) + 1e-8)
    scale = ops.least_squares_scale(activation, interference)
    residual = activation - scale[:, None] * interference
    filtered = []
    begin = 0
    for height, width in part.sizes:
        raster = residual[:, begin : begin + height * width].view(-1, height, width)
        begin += height * width
        # Padding the bottom and the right only makes the centred window of a cell the one that begins at it.
        rows, columns = _reflect(height, kernel_size - 1), _reflect(width, kernel_size - 1)
        half = kernel_size // 2
        padded = ops.rank_gaussian_filter(raster[:, rows][:, :, columns], kernel_size)
        filtered.append(padded[:, half : half + height, half : half + width].reshape(-1, height * width))
    causal = torch.cat(filtered, dim=1).relu()
    beyond = torch.arange(part.text_relevance.shape[1])[None] >= part.text_length[:, None]
    low = torch.cat([causal, part.text_relevance.masked_fill(beyond, float("inf"))], dim=1).amin(1)
    high = torch.cat([causal, part.text_relevance.masked_fill(beyond, float("-inf"))], dim=1).amax(1)
    flat = low == high
    extent = torch.where(flat, torch.ones_like(low), high - low)[:, None]
    maps = ((causal - low[:, None]) / extent).masked_fill(flat[:, None], 0.0)
    text = ((part.text_relevance - low[:, None]) / extent).masked_fill(beyond | flat[:, None], 0.0)
    for place, value in zip(part.out, (maps, text, scale, flat), strict=True):
        place.copy_(value)


def _reflect(size: int, after: int) -> Tensor:
    """Indices of an axis padded by reflection at its end: (size + after,)."""
    positions = torch.arange(size + after)
    if size == 1:
        return torch.zeros_like(positions)
    folded = positions % (2 * (size - 1))
    return torch.where(folded < size, folded, 2 * (size - 1) - folded)


@overload
def activation_maps(
    hidden: ops.ArrayLike,
    classifier: ops.ArrayLike,
    token_ids: Any,
    layout: Layout,
    *,
    compat: Compat = None,
    kernel_size: int = 3,
    interference: bool = True,
    texts: Sequence[str] | None = None,
) -> TokenActivationMaps: ...
@overload
def activation_maps(
    hidden: Sequence[ops.ArrayLike],
    classifier: ops.ArrayLike,
    token_ids: Sequence[Any],
    layout: Sequence[Layout],
    *,
    compat: Compat = None,
    kernel_size: int = 3,
    interference: bool = True,
    texts: Sequence[Sequence[str]] | None = None,
) -> list[TokenActivationMaps]: ...
def activation_maps(
    hidden: Any,
    classifier: Any,
    token_ids: Any,
    layout: Any,
    *,
    compat: Compat = None,
    kernel_size: int = 3,
    interference: bool = True,
    texts: Any = None,
) -> Any:
    """Compute the Token Activation Maps of every generated token (Eq. 1 to 7 of the TAM paper, ICCV 2025).

    Parameters
    ----------
    hidden : Tensor or ndarray (S, C), or a list of them
        Final hidden states, after the final norm, one row for every position but the last generated token's. float32,
        float16, bfloat16 or float64, any device; results are on the CPU.
    classifier : Tensor or ndarray (V, C)
        lm_head weight, on the device of ``hidden``. Only rows of tokens that occur are read; logits over the vocabulary
        are never made (but for one position under ``compat="official"``).
    token_ids : int Tensor, ndarray or list (S + 1,), or a list of them
        Prompt and answer.
    layout : Layout, or a list of them
        Where the visual cells, the prompt's text and the answer stand.
    compat : None, "official" or "paper"
        None: this library's definition. ``"official"`` reproduces the published program, its quirks included (the map
        of the first generated token is that of the first prompt token; the token it stands for as context is the last
        of the prompt; constant windows are NaN). ``"paper"`` follows Eq. 2 literally: subtract, filter with windows
        anchored top-left and reflected at the bottom and the right, then ReLU and joint normalisation; the weights of
        Eq. 7 are normalised to sum one, for otherwise map and text would not be on one scale.
    kernel_size : int
        Side of the rank Gaussian filter's window, odd, 1 to 15; 1 switches the filter off.
    interference : bool
        False switches the causal inference off: with ``kernel_size=1`` the result is plain CAM, jointly normalised.
    texts : sequence of str, or a list of them, optional
        With ``compat="official"``, strings of the prompt's and the answer's tokens to compare instead of ids.

    Returns
    -------
    TokenActivationMaps, or a list of them
        CPU tensors. One call serves all answers of a list.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, dtype or shape, a token id is not in the vocabulary, or a state or score
        that is needed is NaN or Inf (the error names the position).

    Notes
    -----
    Scores accumulate in float32, scales in float64. The bits do not depend on the instruction set, the number of
    threads or the other answers of the call. Cost and memory are linear in S; in the tokens there is a square part, of
    targets by context.
    """
    if compat not in _COMPATS:
        raise ValueError(f"compat: expected None, 'official' or 'paper', got {compat!r}")
    kernel_size = ops._check_kernel_size(kernel_size)
    many = isinstance(hidden, (list, tuple))
    if not many:
        hidden, token_ids, layout = [hidden], [token_ids], [layout]
        texts = None if texts is None else [texts]
    for items, name in ((token_ids, "token_ids"), (layout, "layout"), (texts, "texts")):
        if many and items is not None:
            ops._check_length(items, name, hidden, "hidden")
    weight = ops._check_matrix(classifier, "classifier", "(V, C)")

    answers: list[_Answer] = []
    pending: list[Part] = []
    for index, (states, ids, place) in enumerate(zip(hidden, token_ids, layout, strict=True)):
        where = f"[{index}]" if many else ""
        if not isinstance(place, Layout):
            raise TypeError(f"layout{where}: expected a Layout, got {type(place).__name__}")
        rows = check_states(states, weight, where)
        vector = _check_token_ids(ids, rows.shape[0], place, where)
        answer = _Answer(rows, weight, vector, place, compat, texts[index] if texts else None, interference, where)
        answers.append(answer)
        for part in answer.parts():
            pending.append(part)
            if sum(part.elements for part in pending) >= _BLOCK:
                finish(pending, compat, kernel_size)
                pending.clear()
            del part  # nothing of it is kept while the next is made
    finish(pending, compat, kernel_size)
    results = [answer.finish() for answer in answers]
    return results if many else results[0]


def finish(parts: Sequence[Part], compat: Compat, kernel_size: int) -> None:
    """Run the fused operator; results go to each part's ``out``."""
    if compat == "paper":
        for part in parts:
            _finish_paper(part, kernel_size)
    elif parts:
        _backends.current().finish_maps(
            [part.scores for part in parts],
            [part.activation_rows for part in parts],
            None,
            [part.relevance for part in parts],
            [part.text_relevance for part in parts],
            [part.text_length for part in parts],
            [part.sizes for part in parts],
            kernel_size,
            constant_window_nan=compat == "official",
            out=[part.out for part in parts],
        )
