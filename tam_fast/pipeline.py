"""From final hidden states to the maps of every generated token: :func:`activation_maps`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, overload

import torch
from torch import Tensor

from tam_fast import ops
from tam_fast.layout import Layout

__all__ = ["Compat", "TokenActivationMaps", "activation_maps"]

Compat: TypeAlias = Literal["official", "paper"] | None
_COMPATS = (None, "official", "paper")
_T = TypeVar("_T")


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


@dataclass
class _Plan:
    """One answer, resolved to rows of its score matrix; M = n_p + T tokens are p_1..p_np, y_1..y_T."""

    layout: Layout
    token_ids: Tensor  # (S + 1,)
    ids: Tensor  # (M,) identity of every token
    classes: Tensor  # (M,) classifier row that explains it
    places: Tensor  # (M,) position that its relevance is read at
    names: list[str] | None  # (M,) texts that replace ids in comparisons
    unique: Tensor = field(init=False)  # (U,) classes in order of first appearance
    rows: Tensor = field(init=False)  # (M,) index of each token's class in `unique`

    def __post_init__(self) -> None:
        unique, self.rows = _first_appearance(self.classes.tolist())
        self.unique = torch.tensor(unique, dtype=torch.int64)

    @property
    def prompt_length(self) -> int:
        return int(self.layout.prompt.numel())

    @property
    def targets(self) -> int:
        return int(self.ids.numel()) - self.prompt_length


def _first_appearance(values: Sequence[_T]) -> tuple[list[_T], Tensor]:
    """Distinct values in order of appearance (U), and where each value is among them (M,) int64.

    Appearance, not magnitude, orders them: a longer answer only appends rows, so that streaming sums in the same order.
    """
    seen: dict[_T, int] = {}
    rows = [seen.setdefault(value, len(seen)) for value in values]
    return list(seen), torch.tensor(rows, dtype=torch.int64)


def _check_token_ids(token_ids: Any, rows: int, layout: Layout, where: str) -> Tensor:
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
    return ids


def check_finite_states(hidden: Tensor, positions: Tensor, where: str) -> None:
    """Refuse NaN and Inf at the positions that are read; (S, C) and (n,)."""
    # Row sums are one cheap pass; only where one is suspicious (or overflowed) are the elements looked at.
    sums = hidden.sum(dim=-1, dtype=torch.float32)
    if bool(torch.isfinite(sums).all()):
        return
    for position in torch.nonzero(~torch.isfinite(sums)).flatten().tolist():
        if bool((positions == position).any()) and not bool(torch.isfinite(hidden[position]).all()):
            raise ValueError(f"hidden{where}: expected finite states, got NaN or Inf at position {position}")


def check_finite_scores(scores: Tensor, classes: Tensor, positions: Tensor, where: str) -> None:
    """Refuse NaN and Inf among the scores (U, S) at the positions that are read (n,)."""
    if bool(torch.isfinite(scores.sum(dim=-1, dtype=torch.float64)).all()):
        return
    for row, column in torch.nonzero(~torch.isfinite(scores[:, positions])).tolist():
        position = int(positions[column])
        raise ValueError(
            f"classifier{where}: expected finite scores, got {float(scores[row, position])} for token id "
            f"{int(classes[row])} at position {position} (a NaN or Inf in its row, or an overflow)"
        )


def _same_token(plan: _Plan) -> Tensor:
    """Where a context token (columns) is the target's own word (rows), which Eq. 4 leaves out: bool (T, M - 1)."""
    numbers = plan.ids if plan.names is None else _first_appearance(plan.names)[1]
    return numbers[plan.prompt_length :, None] == numbers[None, :-1]


def _plan(
    hidden: Tensor, classifier: Tensor, token_ids: Tensor, layout: Layout, compat: Compat, texts: Any, where: str
) -> _Plan:
    answer = token_ids[layout.answer_start :]
    ids = torch.cat([token_ids[layout.prompt], answer])
    places = torch.cat([layout.prompt, layout.answer_start - 1 + torch.arange(answer.numel())])
    classes = ids
    names = None
    if compat == "official":
        classes = ids.clone()
        if layout.prompt.numel():
            classes[0] = _predicted_token(hidden[layout.prompt[0]], classifier)
        classes[layout.prompt.numel()] = token_ids[layout.answer_start - 1]
        names = _check_texts(texts, ids.numel(), where)
    elif texts is not None:
        raise ValueError(f'texts{where}: expected only with compat="official", got it with compat={compat!r}')
    return _Plan(layout, token_ids, ids, classes, places, names)


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


@dataclass
class FusedStep:
    """What the fused operator takes for one answer (see ``finish_maps`` in ``_library``)."""

    scores: Tensor  # (U, N) at the visual positions
    activation_rows: Tensor  # (T,)
    context_rows: Tensor  # (K',) distinct context classes
    relevance: Tensor  # (T, K') summed over the context tokens of one class
    text_relevance: Tensor  # (T, K) raw
    text_length: Tensor  # (T,)


def relevance_by_class(relevance: Tensor, rows: Tensor, classes: int) -> Tensor:
    """Sum (T, K) relevances over context tokens of one class: (T, U). Tokens that share a class share their map."""
    summed = torch.zeros((relevance.shape[0], classes), dtype=torch.float32)
    return summed.index_add_(1, rows, relevance)


def _step(plan: _Plan, scores: Tensor, *, official: bool, interference: bool) -> FusedStep:
    """Gather relevances from the score matrix (U, S) and sum those whose context maps are the same."""
    n_p, targets = plan.prompt_length, plan.targets
    columns = torch.arange(n_p + targets - 1)
    length = n_p + torch.arange(targets)
    target_rows = plan.rows[n_p:].clone()
    if official and n_p:
        # The program shows p_1's map for y_1, on one scale with the whole prompt's relevance to it.
        target_rows[0] = plan.rows[0]
    text = scores[target_rows[:, None], plan.places[None, :-1]]  # (T, K)
    context_length = length.clone()
    if official and n_p:
        context_length[0] = 0
    relevance = text.masked_fill(_same_token(plan), 0.0)
    relevance = relevance.masked_fill(columns[None] >= context_length[:, None], 0.0)
    if not interference:
        relevance = torch.zeros_like(relevance)
    used = int(plan.rows[:-1].max()) + 1 if columns.numel() else 0
    return FusedStep(
        scores=visual_columns(scores, plan.layout.visual_positions),
        activation_rows=target_rows,
        context_rows=torch.arange(used),
        relevance=relevance_by_class(relevance, plan.rows[:-1], used),
        text_relevance=text,
        text_length=length,
    )


def visual_columns(scores: Tensor, positions: Tensor) -> Tensor:
    """Score matrix (U, S) at the visual positions: a view where they are one run, else a copy (U, N)."""
    first, count = int(positions[0]), positions.numel()
    if bool((positions[1:] - positions[:-1] == 1).all()):
        return scores[:, first : first + count]
    return scores.index_select(1, positions)


def _flatten(layouts: Sequence[Layout]) -> tuple[list[int], list[int]]:
    sizes = [side for layout in layouts for shape in layout.sizes for side in shape]
    return sizes, [len(layout.grids) for layout in layouts]


def _finish_paper(step: FusedStep, layout: Layout, kernel_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. 2 to the letter: subtract, filter (windows anchored top-left), ReLU; then Eq. 3."""
    activation = step.scores[step.activation_rows]
    context = step.scores[step.context_rows]
    interference = (step.relevance @ context) / (step.relevance.sum(-1, keepdim=True) + 1e-8)
    scale = ops.least_squares_scale(activation, interference)
    residual = activation - scale[:, None] * interference
    parts = []
    for offset, (height, width) in zip(layout.offsets, layout.sizes, strict=False):
        raster = residual[:, offset : offset + height * width].view(-1, height, width)
        # Padding the bottom and the right only makes the centred window of a cell the one that begins at it.
        rows, columns = _reflect(height, kernel_size - 1), _reflect(width, kernel_size - 1)
        half = kernel_size // 2
        filtered = ops.rank_gaussian_filter(raster[:, rows][:, :, columns], kernel_size)
        parts.append(filtered[:, half : half + height, half : half + width].reshape(-1, height * width))
    causal = torch.cat(parts, dim=1).relu()
    beyond = torch.arange(step.text_relevance.shape[1])[None] >= step.text_length[:, None]
    low = torch.cat([causal, step.text_relevance.masked_fill(beyond, float("inf"))], dim=1).amin(1)
    high = torch.cat([causal, step.text_relevance.masked_fill(beyond, float("-inf"))], dim=1).amax(1)
    flat = low == high
    extent = torch.where(flat, torch.ones_like(low), high - low)[:, None]
    maps = ((causal - low[:, None]) / extent).masked_fill(flat[:, None], 0.0)
    text = ((step.text_relevance - low[:, None]) / extent).masked_fill(beyond | flat[:, None], 0.0)
    return maps, text, scale, flat


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
    threads or the other answers of the call. Cost and memory are linear in the distinct tokens and in S.
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

    plans, steps = [], []
    for index, (states, ids, place) in enumerate(zip(hidden, token_ids, layout, strict=True)):
        where = f"[{index}]" if many else ""
        if not isinstance(place, Layout):
            raise TypeError(f"layout{where}: expected a Layout, got {type(place).__name__}")
        rows = ops._check_matrix(states, f"hidden{where}", "(S, C)")
        token_vector = _check_token_ids(ids, rows.shape[0], place, where)
        plan = _plan(rows, weight, token_vector, place, compat, texts[index] if texts else None, where)
        check_finite_states(rows, torch.cat([place.visual_positions, plan.places]).to(rows.device), where)
        scores = ops.token_scores(rows, weight, plan.unique).cpu()
        check_finite_scores(scores, plan.unique, torch.cat([place.visual_positions, plan.places[:-1]]), where)
        plans.append(plan)
        steps.append(_step(plan, scores, official=compat == "official", interference=interference))

    results = finish(steps, [plan.layout for plan in plans], compat, kernel_size)
    maps = [
        TokenActivationMaps(*result, plan.ids[:-1], plan.ids[plan.prompt_length :], plan.layout)
        for plan, result in zip(plans, results, strict=True)
    ]
    return maps if many else maps[0]


def finish(
    steps: Sequence[FusedStep], layouts: Sequence[Layout], compat: Compat, kernel_size: int
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Run the fused step: maps (T, N), text relevance (T, K), scale (T,) and flat (T,) of every answer."""
    if compat == "paper":
        return [_finish_paper(step, layout, kernel_size) for step, layout in zip(steps, layouts, strict=True)]
    if not steps:
        return []
    sizes, grids = _flatten(layouts)
    official = compat == "official"
    maps, text, scale, flat = torch.ops.tam_fast.finish_maps.default(
        [step.scores for step in steps],
        [step.activation_rows for step in steps],
        [step.context_rows for step in steps],
        [step.relevance for step in steps],
        [step.text_relevance for step in steps],
        [step.text_length for step in steps],
        sizes,
        grids,
        kernel_size,
        official,
    )
    if official:
        # y_1 is shown with p_1's map, whose own context is empty; the prompt only set the scale.
        for layout, relevance in zip(layouts, text, strict=True):
            if layout.prompt.numel():
                relevance[0] = 0.0
    return list(zip(maps, text, scale, flat, strict=True))
