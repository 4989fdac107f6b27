"""The operators on compiled CPU kernels: allocate outputs, hand addresses, sizes and strides to ``_C``.

Arguments are validated by :mod:`tam_fast.operators.ops`; the bindings refuse what would be unsafe.
"""

from __future__ import annotations

import os
from typing import TypeAlias

import torch
from torch import Tensor

from tam_fast import _C
from tam_fast._version import __version__
from tam_fast.backends.contracts import StepBuffers

if _C.__version__ != __version__:
    # A checkout beside an older installation, say: addresses passed in another order would be undefined behaviour.
    raise ImportError(
        f"tam_fast._C: expected the compiled module of version {__version__}, got {_C.__version__}: install again"
    )

FinishedMaps: TypeAlias = "tuple[Tensor, Tensor, Tensor, Tensor]"

_DTYPES = {torch.float32: _C.F32, torch.float16: _C.F16, torch.bfloat16: _C.BF16, torch.float64: _C.F64}


def _empty(*sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=torch.float32, device="cpu")  # whatever torch's defaults are set to


def _matrix(x: Tensor) -> tuple[int, ...]:
    return (x.data_ptr(), _DTYPES[x.dtype], *x.shape, *x.stride())


def _first(x: Tensor, rows: int, cols: int) -> tuple[int, ...]:
    """The first rows and columns of a matrix, without a view of its own."""
    return (x.data_ptr(), _DTYPES[x.dtype], rows, cols, *x.stride())


def _index(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.shape[0], x.stride(0)


def rank_gaussian_filter(maps: list[Tensor], kernel_size: int, *, constant_window_nan: bool = False) -> list[Tensor]:
    """Rank Gaussian filter of every (..., H, W) tensor; contiguous results of the same dtype."""
    outputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in maps]
    items = [
        (x.data_ptr(), y.data_ptr(), _DTYPES[x.dtype], x.shape, x.stride()) for x, y in zip(maps, outputs, strict=True)
    ]
    _C.rank_gaussian_filter(items, kernel_size, constant_window_nan, torch.get_num_threads())
    return outputs


def token_scores(hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor]) -> list[Tensor]:
    """relu(hidden @ classifier[ids].T).T of every answer: (S, C), (V, C), (T,) int64 -> (T, S) float32."""
    outputs = [_empty(ids.shape[0], x.shape[0]) for x, ids in zip(hidden, token_ids, strict=True)]
    items = [(_matrix(x), _index(ids), y.data_ptr()) for x, ids, y in zip(hidden, token_ids, outputs, strict=True)]
    _C.token_scores(items, _matrix(classifier), torch.get_num_threads())
    return outputs


def least_squares_scale(target: Tensor, interference: Tensor) -> Tensor:
    """<target, interference> / <interference, interference> over the last dimension: (..., N) each -> (...) float32."""
    scale = _empty(*target.shape[:-1])
    item = (
        target.data_ptr(),
        _DTYPES[target.dtype],
        target.stride(),
        interference.data_ptr(),
        _DTYPES[interference.dtype],
        interference.stride(),
        target.shape,
        scale.data_ptr(),
    )
    _C.least_squares_scale([item], torch.get_num_threads())
    return scale


def estimated_causal_inference(
    activation: list[Tensor], context: list[Tensor], relevance: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Causal maps (T, N) and scales (T,), float32, from (T, N), (K, N), (T, K) of every answer."""
    causal = [_empty(*a.shape) for a in activation]
    scale = [_empty(a.shape[0]) for a in activation]
    items = [
        (_matrix(a), _matrix(c), _matrix(r), y.data_ptr(), s.data_ptr())
        for a, c, r, y, s in zip(activation, context, relevance, causal, scale, strict=True)
    ]
    _C.estimated_causal_inference(items, torch.get_num_threads())
    return causal, scale


def finish_maps(
    scores: list[Tensor],
    activation_rows: list[Tensor],
    context_rows: list[Tensor] | None,
    relevance: list[Tensor],
    text_relevance: list[Tensor],
    text_length: list[Tensor],
    grids: list[list[tuple[int, int]]],
    kernel_size: int,
    *,
    constant_window_nan: bool = False,
    out: list[FinishedMaps] | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Scores to finished maps in one pass: interference, scale, residual, joint normalisation, filter.

    For every answer: scores (U, N) at visual positions, activation_rows (T,) and context_rows (K,) int64 into them
    (None: the first K), relevance (T, K) with 0 where a context token does not count, text_relevance (T, L) normalised
    together with the map up to text_length (T,) int64, grids whose sides make up the N positions.

    Returns maps (T, N), text (T, L), scale (T,), all float32, and flat (T,) bool, which marks tokens whose map and text
    held a single value and became 0. `out` has four contiguous tensors an answer for them.
    """
    if out is None:
        targets = [r.shape[0] for r in relevance]
        out = [
            (_empty(t, s.shape[1]), _empty(*x.shape), _empty(t), torch.empty(t, dtype=torch.bool, device="cpu"))
            for t, s, x in zip(targets, scores, text_relevance, strict=True)
        ]
    items = [
        (
            _matrix(scores[i]),
            _index(activation_rows[i]),
            None if context_rows is None else _index(context_rows[i]),
            _matrix(relevance[i]),
            _matrix(text_relevance[i]),
            _index(text_length[i]),
            grids[i],
            maps.data_ptr(),
            text.data_ptr(),
            scale.data_ptr(),
            flat.data_ptr(),
        )
        for i, (maps, text, scale, flat) in enumerate(out)
    ]
    _C.finish_maps(items, kernel_size, constant_window_nan, torch.get_num_threads())
    return [o[0] for o in out], [o[1] for o in out], [o[2] for o in out], [o[3] for o in out]


def step_scores(
    buffers: StepBuffers, classifier: Tensor, prompt: Tensor | None, states: Tensor, count: int, begin: int
) -> None:
    """Score a stream's token over the prompt (S, C), if given, and `count` of the states (capacity, C).

    ``buffers.token`` over the prompt to ``buffers.scores``, over the states to ``buffers.text`` from `begin` on.
    """
    token = (buffers.token.data_ptr(), 1, 1)
    items = []
    if prompt is not None:
        items.append((_matrix(prompt), token, buffers.scores.data_ptr()))
    if count:
        items.append((_first(states, count, states.shape[1]), token, buffers.text.data_ptr() + 4 * begin))
    _C.token_scores(items, _matrix(classifier), torch.get_num_threads())


def step_maps(
    buffers: StepBuffers,
    classes: int,
    length: int,
    sizes: list[tuple[int, int]],
    kernel_size: int,
    out: tuple[Tensor, Tensor],
) -> None:
    """Finish the map (N,) and the text (length,) of a stream's token, in a context of `length` tokens of `classes`."""
    b = buffers
    item = (
        _matrix(b.maps),
        (b.row.data_ptr(), 1, 1),
        None,
        (b.relevance.data_ptr(), _C.F32, 1, classes, classes, 1),
        (b.text.data_ptr(), _C.F32, 1, length, length, 1),
        (b.length.data_ptr(), 1, 1),
        sizes,
        out[0].data_ptr(),
        out[1].data_ptr(),
        b.scale.data_ptr(),
        b.flat.data_ptr(),
    )
    _C.finish_maps([item], kernel_size, False, torch.get_num_threads())


def info() -> dict[str, object]:
    """The instruction set in use and why, and those that this machine has."""
    requested = os.environ.get("TAM_FAST_ISA")
    why = f"TAM_FAST_ISA={requested}" if requested else "the widest that this machine has"
    return {"isa": _C.isa(), "isa_why": why, "available_isas": _C.available_isas()}
