"""Attention weights of a few rows, recomputed from queries and keys: :func:`attention_rows`, :class:`Kept`.

No (H, S, S) is ever made, nor asked of the model: SDPA and FlashAttention run as they are, a watcher keeps queries and
keys, and rows are made of them in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tam_fast.methods.attention_calls import After, AttentionCall, attention_calls, attention_modules, check_attention
from tam_fast.methods.task import Task, layers_of
from tam_fast.models.capture import decoder_of
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.wrappers import uncompiled, unwrap

__all__ = ["Kept", "asked_layers", "attention_rows", "checked", "checker", "numbers", "watch"]

_BLOCK = 1 << 20  # weights of a block of rows: 4 MiB of float32
_FAR = 1e-2  # of an output's norm: how far float32 rows may be from the model's own; TF32 is 1e-3
_FAR_HALF = 0.5  # eager attention rounds products of queries and keys, large in some models, to half precision


class Kept:
    """What is kept of one layer's attention: enough to make any of its rows.

    Parameters
    ----------
    call : AttentionCall
    rows : (R,) int64 Tensor on the CPU, optional
        Positions whose queries are kept; all if not given.
    values : bool
        Whether values are kept too, for :meth:`gradients`.

    Attributes
    ----------
    layer : int
    positions : (R,) int64, CPU
        Where the kept queries stand.
    count : int
        S, the number of positions.

    Raises
    ------
    ModelNotSupportedError
        If the mask is of a kind that only the model's own attention can read.

    Notes
    -----
    Keeps R H D + S H_kv D numbers in the model's dtype, where the weights are H S S. A mask or a bias of positions that
    the model itself makes for each layer is kept as it is.
    """

    def __init__(self, call: AttentionCall, rows: Tensor | None = None, values: bool = False) -> None:
        self.layer = call.layer
        self.count = call.key.shape[2]
        self.positions = torch.arange(self.count) if rows is None else rows
        self._query = _owned(call.query[0], rows, 1)
        self._key = _owned(call.key[0])
        self._value = _owned(call.value[0]) if values else None
        self._scaling, self._softcap, self._sinks = call.scaling, call.softcap, call.sinks
        if call.sinks is not None and call.sinks.ndim == 4 and call.sinks.shape[2] > 1:  # one a query
            self._sinks = _owned(call.sinks[0], rows, 1)[None]
        self._bias = None if call.bias is None else _owned(call.bias[0], rows, 1)
        self._causal, self._window = call.causal, call.window
        self._mask: Tensor | None = None
        self._padding: Tensor | None = None
        mask = call.mask
        if isinstance(mask, Tensor) and mask.ndim == 4:  # says all: which are behind, and which too far away
            self._mask = mask[0, ..., : self.count] if rows is None else _owned(mask[0, ..., : self.count], rows, 1)
            self._causal, self._window = False, None
        elif isinstance(mask, Tensor) and mask.ndim == 2:
            self._padding = ~mask[0].bool()
        elif mask is not None:
            got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ModelNotSupportedError(
                f"model: expected a mask of attention (1, S) or (1, 1, S, S) in layer {call.layer} "
                f"({type(call.module).__name__}), got {got}"
            )

    @property
    def heads(self) -> int:
        """H, the number of heads."""
        return int(self._query.shape[0])

    def blocks(self, places: Tensor | None = None, heads: Any = "mean") -> Iterator[tuple[Tensor, Tensor]]:
        """Make weights of rows, a block at a time, without a graph.

        Parameters
        ----------
        places : int64 Tensor on the CPU, optional
            Which of :attr:`positions`, ascending; all if not given.
        heads : "mean" or int
            All heads, or one.

        Yields
        ------
        places : (R,)
        weights : (H, R, E) float32, or float64 of a model in it
            Of the first E positions; those behind have none. H is 1 for one head. May be written to.
        """
        places = torch.arange(len(self.positions)) if places is None else places
        query, key = self._query, self._key
        choose = slice(None)
        if not isinstance(heads, str):
            if heads >= self.heads:
                raise ValueError(
                    f"heads: expected a head from 0 to {self.heads - 1} in layer {self.layer}, got {heads}"
                )
            choose = slice(heads, heads + 1)
            group = heads // (query.shape[0] // key.shape[0])
            query, key = query[choose], key[group : group + 1]
        key = _wide(key)
        for part in places.split(max(1, _BLOCK // (query.shape[0] * self.count))):
            end = int(self.positions[part].max()) + 1 if self._causal else self.count
            yield part, self._weights(query[:, part], key[:, :end], part, choose)

    @torch.no_grad()
    def _weights(self, query: Tensor, key: Tensor, part: Tensor, choose: slice) -> Tensor:
        scores = _products(_wide(query), key).mul_(self._scaling)
        if self._softcap is not None:
            scores.div_(self._softcap).tanh_().mul_(self._softcap)
        end = scores.shape[-1]
        if self._bias is not None:
            scores += self._bias[choose, part, :end]
        lowest = torch.finfo(scores.dtype).min
        if self._mask is not None:
            mask = self._mask[choose if self._mask.shape[0] > 1 else slice(None)][:, part, :end].to(scores.device)
            scores = scores.masked_fill_(~mask, lowest) if mask.dtype == torch.bool else scores.add_(mask)
        if self._causal or self._window is not None:
            distance = self.positions[part].to(scores.device)[:, None] - torch.arange(end, device=scores.device)
            hidden = distance < 0 if self._causal else torch.zeros_like(distance, dtype=torch.bool)
            if self._window is not None:
                hidden |= distance.abs() >= self._window
            scores.masked_fill_(hidden, lowest)
        if self._padding is not None:
            scores.masked_fill_(self._padding[:end].to(scores.device), lowest)
        if self._sinks is None:
            return scores.softmax(dim=-1)
        sinks = self._sinks.detach().to(scores)
        sinks = sinks.reshape(-1, 1, 1) if sinks.ndim < 4 or sinks.shape[2] == 1 else sinks[0, :, part]
        sinks = sinks[choose].expand(-1, scores.shape[1], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]

    def gradients(self, output: Tensor, places: Tensor, end: int, heads: Any = "mean") -> Tensor:
        """Make the gradient of rows of weights, G = dO V^T.

        Parameters
        ----------
        output : (S, H, D) Tensor
            Gradient of what the attention gave, by head.
        places : (R,) int64, CPU
        end : int
            E, of how many positions.
        heads : "mean" or int

        Returns
        -------
        (H, R, E)
        """
        assert self._value is not None
        given = _wide(output[self.positions[places]].transpose(0, 1))
        value = self._value
        if not isinstance(heads, str):
            group = heads // (given.shape[0] // value.shape[0])
            given, value = given[heads : heads + 1], value[group : group + 1]
        return _products(given, _wide(value[:, :end]))

    def outputs(self, places: Tensor) -> Tensor:
        """Make what the attention gives at rows, A V: (H, R, D)."""
        assert self._value is not None
        value = _wide(self._value)
        made = []
        for _, weights in self.blocks(places):
            heads, count, end = weights.shape
            made.append((weights.reshape(value.shape[0], -1, end) @ value[:, :end]).view(heads, count, -1))
        return torch.cat(made, dim=1)


def _owned(tensor: Tensor, rows: Tensor | None = None, dim: int = 0) -> Tensor:
    """Detach what is kept, without the rest of a larger storage."""
    found = tensor.detach()
    if rows is not None:
        return found.index_select(dim, rows.to(found.device))
    whole = found.untyped_storage().nbytes() == found.numel() * found.element_size()
    return found if whole else found.clone()


def _wide(tensor: Tensor) -> Tensor:
    """Half precision as float32: products of queries and keys lose too much in it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _products(rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply (H, R, D) by (H_kv, E, D) of grouped heads: (H, R, E)."""
    heads, count, size = rows.shape
    grouped = rows.reshape(columns.shape[0], -1, size) @ columns.transpose(1, 2)
    return grouped.view(heads, count, -1)


# Passes --------------------------------------------------------------------------------------------------------------


def watch(
    task: Task, layers: Sequence[int], take: Callable[[AttentionCall], None], after: After | None = None
) -> Tensor:
    """Run the decoder and show the attention of some layers to `take`, in order; final states (S, C).

    No graph is built unless `after` switches gradients on. Two rows of each layer are made and compared with what its
    attention gave: models have ways of their own.

    Raises
    ------
    ModelNotSupportedError
        If one of the layers does not attend once, or does not give softmax(q K^T) V.
    """
    seen: list[int] = []

    def look(call: AttentionCall) -> None:
        if call.layer in layers:
            seen.append(call.layer)
            take(call)

    def proved(call: AttentionCall, output: Tensor) -> Tensor | None:
        if call.layer in layers:
            _prove(call, output)
        return None if after is None else after(call, output)

    call = task.call
    with torch.no_grad(), uncompiled(task.model), attention_calls(task.layers, look, proved):
        hidden = call()
    if seen != sorted(layers):
        raise ModelNotSupportedError(
            f"model: expected attention once in layers {numbers(layers)} of {type(task.decoder).__name__}, got "
            f"{numbers(seen) or 'none'}"
        )
    return hidden


def _prove(call: AttentionCall, output: Tensor) -> None:
    count = call.key.shape[2]
    shape = (1, call.query.shape[2], call.query.shape[1])
    if count != shape[1] or output.ndim != 4 or output.shape[:3] != shape:
        raise ModelNotSupportedError(
            f"model: expected attention (1, S, H, D) of as many queries as keys in layer {call.layer} "
            f"({type(call.module).__name__}), got {tuple(output.shape)} of {shape[1]} queries and {count} keys"
        )
    rows = torch.tensor(sorted({count // 2, count - 1}))
    made = Kept(call, rows, values=True).outputs(torch.arange(len(rows))).transpose(0, 1)
    given = output.detach()[0, rows.to(output.device)].to(made)
    far = float((made - given).norm() / given.norm().clamp_min(1e-30))
    if not far <= (_FAR if output.dtype in (torch.float32, torch.float64) else _FAR_HALF):
        raise ModelNotSupportedError(
            f"model: expected attention softmax(q K^T) V in layer {call.layer} ({type(call.module).__name__}), got "
            f"outputs that differ from it by {far:.1e} of their norm"
        )


def attention_rows(task: Task, rows: Any, layer: Any = None, heads: Any = "mean") -> Tensor:
    """Return how much some positions attend to each position in a layer.

    Parameters
    ----------
    task : Task
    rows : int Tensor, ndarray or list (R,)
        Positions that attend; ``task.rows`` are those that predict the targets.
    layer : None, int or "mean"
        A layer's number; the last that attends if None; the mean over all that attend.
    heads : "mean" or int

    Returns
    -------
    (R, S) float32
        On the decoder's device; as eager attention's weights to 1e-5, whatever the model attends with.

    Raises
    ------
    ValueError, TypeError
        If rows, layer or heads are not what is expected.
    ModelNotSupportedError
        If the layer has no attention.
    """
    asked = checked(task.layers, layer, heads, "attention")
    wanted = torch.as_tensor(rows).detach().to("cpu")
    if wanted.ndim != 1 or wanted.is_floating_point() or wanted.dtype == torch.bool:
        raise TypeError(f"rows: expected positions (R,), got {tuple(wanted.shape)} {wanted.dtype}")
    if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < task.positions:
        raise ValueError(f"rows: expected positions from 0 to {task.positions - 1}, got {wanted.tolist()}")
    wanted = wanted.long()
    found = torch.zeros((wanted.numel(), task.positions), device=task.device)

    def take(call: AttentionCall) -> None:
        for places, weights in Kept(call, wanted).blocks(heads=heads):
            found[places, : weights.shape[-1]] += weights.mean(dim=0).to(found) / len(asked)

    watch(task, asked, take)
    return found


# Options -------------------------------------------------------------------------------------------------------------


def asked_layers(layers: Sequence[torch.nn.Module], layer: Any, method: str) -> list[int]:
    """Check ``layer=``: None (the last that attends), a layer's number, or "mean" (all that attend)."""
    attending = check_attention(layers, method)
    if layer is None:
        return attending[-1:]
    if isinstance(layer, str) and layer == "mean":
        return attending
    if isinstance(layer, bool) or not hasattr(layer, "__index__"):
        raise TypeError(f'layer: expected None, a layer\'s number or "mean", got {layer!r}')
    count = len(layers)
    if not -count <= layer < count:
        raise ValueError(f"layer: expected a layer from 0 to {count - 1}, got {layer}")
    index = int(layer.__index__()) % count
    if index not in attending:
        raise ModelNotSupportedError(
            f"method: {method!r} needs attention in layer {index}, got {type(layers[index]).__name__} without: layers "
            f"{numbers(attending)} have it"
        )
    return [index]


def check_heads(layers: Sequence[torch.nn.Module], asked: Sequence[int], heads: Any) -> None:
    """Check ``heads=``: "mean" or the number of a head that all of the layers have."""
    if isinstance(heads, str) and heads == "mean":
        return
    if isinstance(heads, (bool, str)) or not hasattr(heads, "__index__"):
        raise TypeError(f'heads: expected "mean" or a head\'s number, got {heads!r}')
    modules = attention_modules(layers)
    for index in asked:
        count = getattr(getattr(modules[index], "config", None), "num_attention_heads", None)
        if heads < 0 or (count is not None and heads >= count):
            raise ValueError(f"heads: expected a head from 0{'' if count is None else f' to {count - 1}'}, got {heads}")


def checked(layers: Sequence[torch.nn.Module], layer: Any, heads: Any, method: str) -> list[int]:
    """Check ``layer=`` and ``heads=``; return the layers that are asked for."""
    asked = asked_layers(layers, layer, method)
    check_heads(layers, asked, heads)
    return asked


def checker(method: str) -> Callable[..., None]:
    """Make the check of a method of attention: layers attend in a known way, options are right."""

    def check(model: Any, layer: Any = "mean", heads: Any = "mean") -> None:
        checked(layers_of(decoder_of(unwrap(model))), layer, heads, method)

    return check


def numbers(layers: Sequence[int]) -> str:
    """Write the numbers of layers in a sentence."""
    return ", ".join(map(str, layers))
