"""From final hidden states to the maps of every generated token: :func:`activation_maps`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from tam_fast.backends import selection
from tam_fast.maps import device_answer
from tam_fast.maps.layout import Layout
from tam_fast.maps.paper import finish_paper
from tam_fast.maps.scores import BLOCK, ContextScores, check_finite, check_states, is_dense, resident_for, score
from tam_fast.maps.tokens import AnswerTokens, Compat
from tam_fast.operators import ops

__all__ = ["Compat", "TokenActivationMaps", "activation_maps"]

_COMPATS = (None, "official", "paper")
Results: TypeAlias = "tuple[Tensor, Tensor, Tensor, Tensor]"  # maps (T, N), relevance (T, K), scale (T,), flat (T,)


@dataclass(eq=False)
class TokenActivationMaps:
    """The maps of one answer.

    Attributes
    ----------
    maps : (T, N) float32, or uint8 if asked for
        One map a generated token, over the grids' positions in order, in [0, 1] (``compat="official"`` can hold NaN),
        as uint8 floor(255 x). On the device of the states, like the next three.
    relevance : (T, K) float32
        Relevance of each context token to each target on the scale of the maps; 0 beyond the target's context.
    scale : (T,) float32
        s of Eq. 5: how much of the interference map was removed.
    flat : (T,) bool
        True where map and relevances were one constant, so that there is nothing to show and the map is 0.
    context_ids : (K,) int64
        Token ids of the context p_1..p_np, y_1..y_(T-1); target t uses the first n_p + t of them. Where only the tokens
        from the `first`-th on are explained, T counts them alone, the context has the others too, and target t uses
        n_p + first + t.
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

    @classmethod
    def of(cls, tokens: AnswerTokens, results: Results) -> TokenActivationMaps:
        """Put the results of one answer beside its tokens."""
        maps, relevance, scale, flat = results
        if tokens.shifted:
            relevance[0] = 0.0  # p_1's own context is empty; the prompt only set the scale
        ids = torch.from_numpy(tokens.ids)
        targets = ids[tokens.prompt_length + tokens.first :]
        return cls(maps, relevance, scale, flat, ids[:-1], targets, tokens.layout)

    def __len__(self) -> int:
        return int(self.maps.shape[0])

    def to(self, device: torch.device | str) -> TokenActivationMaps:
        """Return the maps on a device: themselves if they are there. Token ids and layout stay on the CPU."""
        if self.maps.device == torch.device(device):
            return self
        moved = {name: getattr(self, name).to(device) for name in ("maps", "relevance", "scale", "flat")}
        return replace(self, **moved)

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
        if self.maps.dtype == torch.uint8:
            return self.maps
        return (torch.nan_to_num(self.maps, nan=0.0) * 255).floor().clamp(0, 255).to(torch.uint8)


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
    """One answer on the CPU: its scores, and its relevances in parts."""

    def __init__(
        self, hidden: Tensor, classifier: Tensor, tokens: AnswerTokens, interference: bool, backend: str | None
    ) -> None:
        layout, where = tokens.layout, tokens.where
        self._tokens, self._classifier, self._interference, self._backend = tokens, classifier, interference, backend
        self._states = hidden[tokens.start :]  # the t-th predicts y_t
        # All in one go, unless that would make many scores that nobody reads.
        whole = tokens.classes.size * hidden.shape[0] <= BLOCK
        read = ContextScores(hidden if whole else hidden[: layout.answer_start], classifier, layout, where, backend)
        maps, self._words, after = read(tokens.classes)
        self._after = after if whole else None  # (U, first + T)
        self._scores = torch.from_numpy(maps)
        self.results = empty_results(tokens.target_rows.size, maps.shape[1], tokens.ids.size - 1)

    def parts(self) -> Iterator[Part]:
        """Cut the answer into parts whose relevances are not too large to be made."""
        targets = self._tokens.target_rows.size
        step = max(BLOCK // self._tokens.ids.size, 1)
        for first in range(0, targets, step):
            yield self._part(first, min(first + step, targets))

    def _part(self, begin: int, end: int) -> Part:
        """Gather the relevances of targets begin..end - 1, and sum those whose context maps are the same."""
        tokens, n_p, some = self._tokens, self._words.shape[1], slice(begin, end)
        first, last = tokens.first + begin, tokens.first + end  # counted from the answer's beginning
        maps, relevance, scale, flat = self.results
        rows = tokens.target_rows[some]
        if self._after is not None:
            scores = self._after[rows]
        else:
            classes = tokens.classes[rows]
            scores = score(self._states[:last], self._classifier, classes, self._backend)
            check_finite(scores, tokens.start, self._states[:last], None, classes, tokens.where, self._backend)
        known = n_p + last - 1  # context of the last target
        text = np.empty((last - first, relevance.shape[1]), dtype=np.float32)
        text[:, :n_p] = self._words[rows]
        text[:, n_p:known] = scores[:, : last - 1]
        length = np.arange(n_p + first, n_p + last)
        used = int(tokens.rows[:known].max()) + 1 if self._interference and known else 0
        summed = torch.zeros((last - first, used), dtype=torch.float32, device="cpu")
        if used:
            # The target's own word is no part of its context (Eq. 4).
            counted = tokens.names[:known] != tokens.target_names[some, None]
            counted &= np.arange(known) < length[:, None]
            if tokens.shifted and first == 0:
                counted[0] = False
            counting = torch.from_numpy(text[:, :known] * counted)
            summed.index_add_(1, torch.from_numpy(tokens.rows[:known]), counting)
        return Part(
            self._scores,
            torch.from_numpy(rows),
            summed,
            torch.from_numpy(text),
            torch.from_numpy(length),
            tokens.layout.sizes,
            (maps[some], relevance[some], scale[some], flat[some]),
        )


def check_options(compat: Any, kernel_size: Any) -> int:
    """Refuse what is no definition of the maps or no side of a window; return the latter."""
    if compat not in _COMPATS:
        raise ValueError(f"compat: expected None, 'official' or 'paper', got {compat!r}")
    return ops._check_kernel_size(kernel_size)


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
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
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
    first: Sequence[int] | int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
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
    first: Any = 0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Any:
    """Compute the Token Activation Maps of every generated token (Eq. 1 to 7 of the TAM paper, ICCV 2025).

    Parameters
    ----------
    hidden : Tensor or ndarray (S, C), or a list of them
        Final hidden states, after the final norm, one row for every position but the last generated token's. float32,
        float16, bfloat16 or float64, any device, one device for all.
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
    first : int, or a list of them
        Explain the generated tokens from this one on, counted from 0; those before it are context. Maps
        are what they are without it, to the bit where ``compat`` is not ``"paper"``.
    dtype : torch.float32 or torch.uint8
        Of the maps; uint8 is floor(255 x), NaN as 0.
    backend : "cpu", "cuda", "triton" or "reference", optional
        Who computes this call; by default what :func:`tam_fast.backend_info` says.

    Returns
    -------
    TokenActivationMaps, or a list of them
        On the device of ``hidden``. One call serves all answers of a list.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, dtype or shape, a token id is not in the vocabulary, or a state or score
        that is needed is NaN or Inf (the error names the position).
    RuntimeError
        If ``backend`` cannot be used here.

    Notes
    -----
    Scores accumulate in float32, scales in float64. On the CPU the bits do not depend on the instruction set, the
    number of threads or the other answers of the call. On a GPU the maps repeat bit for bit and are within 2e-6 of the
    CPU's; the call waits for the device once, at its end, to know that all states and scores were finite. Cost and
    memory are linear in S; in the tokens there is a square part, of targets by context.
    """
    if dtype not in (torch.float32, torch.uint8):
        raise ValueError(f"dtype: expected torch.float32 or torch.uint8, got {dtype}")
    kernel_size = check_options(compat, kernel_size)
    many = isinstance(hidden, (list, tuple))
    if not many:
        hidden, token_ids, layout = [hidden], [token_ids], [layout]
        texts = None if texts is None else [texts]
    firsts = first if isinstance(first, (list, tuple)) else [first] * len(hidden)
    for items, name in ((token_ids, "token_ids"), (layout, "layout"), (texts, "texts"), (firsts, "first")):
        if many and items is not None:
            ops._check_length(items, name, hidden, "hidden")
    weight = ops._check_matrix(classifier, "classifier", "(V, C)")

    places = list(zip(hidden, token_ids, layout, texts or [None] * len(hidden), strict=True))
    # A text without images has too little work for a device, and no cells to launch over.
    blank = any(isinstance(place, Layout) and not place.grids for _, _, place, _ in places)
    device_backend = resident_for(weight, backend) if places and not blank else None
    maps: list[TokenActivationMaps] = []
    resolved: list[tuple[Tensor, AnswerTokens]] = []
    answers: list[_Answer] = []
    pending: list[Part] = []
    for index, (states, ids, place, strings) in enumerate(places):
        where = f"[{index}]" if many else ""
        if not isinstance(place, Layout):
            raise TypeError(f"layout{where}: expected a Layout, got {type(place).__name__}")
        rows = check_states(states, weight, where)
        if device_backend is not None and not is_dense(rows):
            raise TypeError(f"hidden{where}: expected a torch.Tensor, got its subclass {type(rows).__name__}")
        tokens = AnswerTokens(rows, weight, ids, place, compat, strings, where, firsts[index])
        resolved.append((rows, tokens))
        if device_backend is not None:
            continue
        answer = _Answer(rows, weight, tokens, interference, backend)
        answers.append(answer)
        for part in answer.parts():
            pending.append(part)
            if sum(part.elements for part in pending) >= BLOCK:
                finish(pending, compat, kernel_size, backend)
                pending.clear()
            del part  # nothing of it is kept while the next is made
    if device_backend is None:
        finish(pending, compat, kernel_size, backend)
        for (_, tokens), answer in zip(resolved, answers, strict=True):
            item = TokenActivationMaps.of(tokens, answer.results)
            if dtype == torch.uint8:
                item.maps = item.uint8()
            maps.append(item.to(weight.device))
    else:
        results, flag = device_answer.run(
            device_backend,
            [rows for rows, _ in resolved],
            weight,
            [tokens for _, tokens in resolved],
            compat=compat,
            kernel_size=kernel_size,
            interference=interference,
            dtype=dtype,
        )
        if flag.item():
            for rows, tokens in resolved:
                refuse_what_is_not_finite(rows, weight, tokens)
        maps = [TokenActivationMaps.of(tokens, result) for (_, tokens), result in zip(resolved, results, strict=True)]
    return maps if many else maps[0]


def refuse_what_is_not_finite(hidden: Tensor, classifier: Tensor, tokens: AnswerTokens) -> None:
    """Find on the CPU what a device found not to be finite, and raise."""
    for _ in _Answer(hidden, classifier, tokens, False, "cpu").parts():
        pass


def finish(parts: Sequence[Part], compat: Compat, kernel_size: int, backend: str | None) -> None:
    """Run the fused operator; results go to each part's ``out``."""
    if compat == "paper":
        for part in parts:
            found = finish_paper(
                part.scores[part.activation_rows],
                part.scores[: part.relevance.shape[1]],
                part.relevance,
                part.text_relevance,
                part.text_length,
                part.sizes,
                kernel_size,
                backend,
            )
            for place, value in zip(part.out, found, strict=True):
                place.copy_(value)
    elif parts:
        selection.serving(selection.CPU, backend).finish_maps(
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
