"""Final hidden states that an explanation keeps, for maps of tokens that were not said: :class:`KeptStates`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tam_fast.maps.answer import TokenActivationMaps, activation_maps
from tam_fast.maps.layout import Layout
from tam_fast.operators.ops import rank_gaussian_filter

__all__ = ["KeptStates", "Rows", "keep", "one_token"]

_BLOCK = 2048  # states that are brought to float64 at a time


@dataclass(frozen=True, eq=False)
class KeptStates:
    """The states that an answer's maps are made of, without those of positions that no map reads.

    Attributes
    ----------
    hidden : (M, C) Tensor
        Final hidden states of the visual positions, of the prompt's text and of the answer, in order.
    token_ids : (M + 1,) int64
        Their token ids, and that of the last token.
    layout : Layout
        Over these M positions.
    rows : callable
        Gives the classifier's rows (k, C) of token ids (k,) int64; raises KeyError for one that it does not have.
    tokenizer : transformers tokenizer, or None
        Tells the id of a word.
    kernel_size : int
        Of the maps.
    """

    hidden: Tensor
    token_ids: Tensor
    layout: Layout
    rows: Callable[[Tensor], Tensor]
    tokenizer: Any
    kernel_size: int

    def maps(self, step: int, token_ids: Sequence[int]) -> Tensor:
        """Make the maps of some tokens as if each stood at one step of the answer, after what was said before it.

        Parameters
        ----------
        step : int
        token_ids : sequence of k int

        Returns
        -------
        (k, N) float32, on the CPU
        """
        start, hidden = self.layout.answer_start, self.hidden[: self.layout.answer_start + step]
        context = self._context(step)
        wanted = torch.tensor(list(token_ids), dtype=torch.int64)
        known, numbers = torch.unique(torch.cat([context, wanted]), return_inverse=True)
        rows = self.rows(known).to(hidden.device, hidden.dtype)
        ids = torch.zeros(start + step + 1, dtype=torch.int64)
        count = self.layout.prompt.numel()
        ids[self.layout.prompt] = numbers[:count]
        ids[start:-1] = numbers[count : context.numel()]
        sequences = []
        for number in numbers[context.numel() :].tolist():
            sequences.append(ids.clone())
            sequences[-1][-1] = number
        made: list[TokenActivationMaps] = activation_maps(
            [hidden] * len(sequences), rows, sequences, [self.layout] * len(sequences), kernel_size=self.kernel_size
        )
        return torch.stack([found.maps[-1] for found in made]).cpu()

    def _context(self, step: int) -> Tensor:
        """Return the ids of the prompt's text and of what was generated before a step: (K,) int64."""
        start = self.layout.answer_start
        return torch.cat([self.token_ids[self.layout.prompt], self.token_ids[start : start + step]])

    def evidence(self, step: int, token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Make the maps of some tokens at one step without the normalisation of Eq. 3: filtered, but in logits.

        The filter commutes with a factor, but not with an offset; so it is given what Eq. 3 would normalise.

        Parameters
        ----------
        step : int
            Place in what was generated.
        token_ids : sequence of k int

        Returns
        -------
        maps : (k, N) float64
            On the CPU, at least 0.
        highest : (k,) float64
            The largest value in the map before the filter and among the relevances of the context: the maximum of
            Eq. 3.
        """
        start = self.layout.answer_start
        context, wanted = self._context(step), torch.tensor(list(token_ids), dtype=torch.int64)
        known, numbers = torch.unique(torch.cat([context, wanted]), return_inverse=True)
        said, numbers = numbers.split([context.numel(), wanted.numel()])
        rows = self.rows(known).detach().to("cpu", self.hidden.dtype).double()
        # The relevance of a prompt's word is read at it, that of a generated one where it is predicted.
        answer = torch.arange(start - 1, start + step - 1)
        places = torch.cat([self.layout.visual_positions, self.layout.prompt, answer]).split(_BLOCK)
        states = (self.hidden[some.to(self.hidden.device)].to("cpu", torch.float64) for some in places)
        scores = torch.cat([rows @ some.T for some in states], dim=1).clamp_min(0.0)
        cells = self.layout.visual_positions.numel()
        maps, highest = [], []
        for number in numbers.tolist():
            seen, read = scores[number, :cells], scores[number, cells:]
            weights = torch.where(said == number, 0.0, read)  # a word is no reason for itself (Eq. 4)
            explained = weights @ scores[said, :cells] / (weights.sum() + 1e-8)
            power = explained @ explained
            if power > 0:
                seen = (seen - (seen @ explained) / power * explained).clamp_min(0.0)
            highest.append(torch.cat([seen, read, seen.new_zeros(1)]).max())
            maps.append(self._filtered(seen))
        return torch.stack(maps), torch.stack(highest)

    def _filtered(self, vector: Tensor) -> Tensor:
        """Filter a map (N,) grid by grid."""
        parts = vector.split([len(grid) for grid in self.layout.grids])
        rasters = [part.reshape(grid.shape) for part, grid in zip(parts, self.layout.grids, strict=True)]
        found = [rank_gaussian_filter(raster, self.kernel_size).flatten() for raster in rasters]
        return torch.cat([vector[:0], *found])


def keep(
    hidden: Tensor,
    token_ids: Tensor,
    layout: Layout,
    rows: Callable[[Tensor], Tensor],
    tokenizer: Any,
    kernel_size: int,
) -> KeptStates:
    """Keep of states (S, C) and token ids (S + 1,) what maps are made of."""
    start = layout.answer_start
    answer = torch.arange(start - 1, hidden.shape[0])
    positions = torch.unique(torch.cat([layout.visual_positions, layout.prompt, answer]))

    def moved(old: Tensor) -> Tensor:
        return torch.searchsorted(positions, old)

    grids = [replace(grid, positions=moved(grid.positions)) for grid in layout.grids]
    kept = Layout(grids, moved(layout.prompt), int((positions < start).sum()))
    return KeptStates(
        hidden[positions.to(hidden.device)],
        torch.cat([token_ids[positions], token_ids[-1:]]),
        kept,
        rows,
        tokenizer,
        kernel_size,
    )


class Rows:
    """A few rows of a classifier, as an explanation's file holds them.

    Parameters
    ----------
    ids : (k,) int64
        Ascending.
    rows : (k, C) Tensor
    """

    def __init__(self, ids: Tensor, rows: Tensor) -> None:
        self.ids, self.rows = ids, rows

    def __call__(self, wanted: Tensor) -> Tensor:
        """Return the rows of some ids; KeyError if one is not there."""
        places = torch.searchsorted(self.ids, wanted).clamp_max(max(0, self.ids.numel() - 1))
        missing = wanted[self.ids[places] != wanted] if self.ids.numel() else wanted
        if missing.numel():
            raise KeyError(
                f"token: expected one of {self.ids.numel()} tokens whose classifier rows were saved (the answer's, the "
                f"prompt's, candidates), got id {int(missing[0])}: give the lm_head's weight as classifier="
            )
        return self.rows[places]


def one_token(token: int | str, known: Sequence[tuple[str, int]], tokenizer: Any, name: str = "token") -> int:
    """Find the id of a token that is named by its text.

    Parameters
    ----------
    token : int or str
        A text is that of one token; whether it begins with a space is left to `known` and the vocabulary.
    known : sequence of (piece, id)
        Pieces that are looked at first.
    tokenizer : transformers tokenizer, or None
    name : str
        Of the argument, for errors.

    Raises
    ------
    ValueError
        If a text is no token's, or more than one.
    TypeError
        If it is neither a number nor a text.
    """
    if isinstance(token, str):
        if not token:
            raise ValueError(f"{name}: expected a text of one token, got {token!r}")
        for shown in (token, f" {token}"):
            for piece, number in known:
                if piece == shown:
                    return number
        if tokenizer is None:
            names = ", ".join(dict.fromkeys(repr(piece) for piece, _ in known))
            raise ValueError(
                f"{name}: expected a token of the answer or a candidate ({names}), or an id, got {token!r}"
            )
        pieces: list[str] = []
        for shown in dict.fromkeys((f" {token.lstrip()}", token)):
            ids = tokenizer(shown, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                return int(ids[0])
            pieces = [tokenizer.decode([number]) for number in ids]
        raise ValueError(f"{name}: expected a text of one token, got {token!r}, which is {pieces}: name one of them")
    if isinstance(token, bool) or not hasattr(token, "__index__"):
        raise TypeError(f"{name}: expected a token's id or its text, got {type(token).__name__}")
    return int(token.__index__())
