"""The operators on compiled CUDA kernels: allocate outputs, hand addresses, sizes, strides and the stream to ``_cuda``.

Everything is launched on the current stream of the tensors' device and not waited for; results are on that device.
Arguments are validated by :mod:`tam_fast.operators.ops`. Launches can be captured in a CUDA graph, except where an
operator's arguments are brought into the kernels' form by a copy (``contiguous``, a list of grids of several sizes at
first use).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tam_fast import _cuda
from tam_fast._version import __version__
from tam_fast.backends.arguments import float_rows, grid_table, indices
from tam_fast.backends.contracts import DeviceAnswer, DeviceStep

if _cuda.__version__ != __version__:
    # A checkout beside an older installation, say: addresses passed in another order would be undefined behaviour.
    raise ImportError(
        f"tam_fast._cuda: expected the compiled module of version {__version__}, got {_cuda.__version__}: install again"
    )

_DTYPES = {torch.float32: _cuda.F32, torch.float16: _cuda.F16, torch.bfloat16: _cuda.BF16, torch.float64: _cuda.F64}
_MAPS = {torch.float32: _cuda.F32, torch.uint8: _cuda.U8}
_ABSENT = (0, 0, 0)
_STREAMS = 8  # whose workspaces are kept


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device current for launches, if it is not."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def _matrix(x: Tensor) -> tuple[int, ...]:
    return (x.data_ptr(), _DTYPES[x.dtype], *x.shape, *x.stride())


def _rows(x: Tensor, rows: Tensor | None = None) -> tuple[int, int, int]:
    """Address and row stride of a float32 matrix of unit column stride, and which of its rows."""
    return x.data_ptr(), x.stride(0), 0 if rows is None else rows.data_ptr()


def _grids(sizes: Sequence[tuple[int, int]], device: torch.device) -> tuple[int, int, int, int]:
    if not sizes:
        return 0, 0, 0, 0
    height, width = sizes[0]
    if all(size == sizes[0] for size in sizes):
        return len(sizes), height, width, 0
    return len(sizes), 0, 0, grid_table(sizes, device).data_ptr()


def rank_gaussian_filter(maps: list[Tensor], kernel_size: int, *, constant_window_nan: bool = False) -> list[Tensor]:
    """Rank Gaussian filter of every (..., H, W) tensor; contiguous results of the same dtype. One launch."""
    outputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in maps]
    stacks = [x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:]) for x in maps]
    items = [
        (x.data_ptr(), y.data_ptr(), _DTYPES[x.dtype], *x.shape, *x.stride())
        for x, y in zip(stacks, outputs, strict=True)
    ]
    device = maps[0].device
    with _on(device):
        _cuda.rank_gaussian_filter(items, kernel_size, constant_window_nan, _stream(device))
    return outputs


def token_scores(hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor]) -> list[Tensor]:
    """relu(hidden @ classifier[ids].T).T of every answer: (S, C), (V, C), (T,) int64 -> (T, S) float32. One launch."""
    return _scores(hidden, classifier, token_ids, [None] * len(hidden), 0)


def answer_scores(
    hidden: list[Tensor], classifier: Tensor, classes: list[Tensor], positions: list[Tensor], flag: Tensor
) -> list[Tensor]:
    """Score classes (U,) at positions (P,) of every answer: (U, P) float32. `flag` (1,) int32 tells of NaN and Inf.

    The rows' stride is a multiple of 4.
    """
    return _scores(hidden, classifier, classes, list(positions), flag.data_ptr())


def _scores(
    hidden: list[Tensor], classifier: Tensor, classes: list[Tensor], positions: Sequence[Tensor | None], flag: int
) -> list[Tensor]:
    outputs, items = [], []
    kept = []  # alive until the launch
    for states, ids, where in zip(hidden, classes, positions, strict=True):
        width = states.shape[0] if where is None else where.shape[0]
        # Rows that begin at 16 bytes are read faster by what follows.
        pitch = width if where is None else -(-width // 4) * 4
        scores = torch.empty((ids.shape[0], pitch), dtype=torch.float32, device=states.device)
        ids = ids.contiguous()
        kept.append(ids)
        place = (0, width) if where is None else (where.data_ptr(), width)
        items.append((_matrix(states), place, (ids.data_ptr(), ids.shape[0]), scores.data_ptr(), pitch))
        outputs.append(scores[:, :width])
    device = classifier.device
    with _on(device):
        stream = _stream(device)
        memory = _workspace(device, stream)
        place = (0, 0) if memory is None else (memory.data_ptr(), memory.numel())
        _cuda.token_scores(items, _matrix(classifier), flag, stream, *place)
    return outputs


_workspaces: OrderedDict[tuple[torch.device, int], Tensor] = OrderedDict()


def _workspace(device: torch.device, stream: int) -> Tensor | None:
    """Memory in which blocks that share the channels of a tile meet: one a stream, whose launches follow each other."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return None  # a graph may run beside others, and when this memory is gone
    found = _workspaces.get((device, stream))
    if found is None:
        found = torch.zeros(_cuda.TOKEN_SCORES_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        while len(_workspaces) >= _STREAMS:
            _workspaces.popitem(last=False)
        _workspaces[device, stream] = found
    return found


def least_squares_scale(target: Tensor, interference: Tensor) -> Tensor:
    """<target, interference> / <interference, interference> over the last dimension: (..., N) each -> (...) float32."""
    scale = torch.empty(target.shape[:-1], dtype=torch.float32, device=target.device)
    rows = []
    for x in (target, interference):
        x = x.reshape(scale.numel(), x.shape[-1])
        rows.append(x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous())
    a, e = rows
    item = (
        a.data_ptr(),
        _DTYPES[a.dtype],
        a.stride(0),
        e.data_ptr(),
        _DTYPES[e.dtype],
        e.stride(0),
        *a.shape,
        scale.data_ptr(),
    )
    with _on(target.device):
        _cuda.least_squares_scale([item], _stream(target.device))
    return scale


def estimated_causal_inference(
    activation: list[Tensor], context: list[Tensor], relevance: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Causal maps (T, N) and scales (T,), float32, from (T, N), (K, N), (T, K) of every answer. Two launches."""
    device = activation[0].device
    causal, scales, items, kept = [], [], [], []
    for given in zip(activation, context, relevance, strict=True):
        a, c, r = (float_rows(x) for x in given)
        kept.append((a, c, r))
        (targets, positions), contexts = a.shape, c.shape[0]
        maps = torch.empty((targets, positions), dtype=torch.float32, device=device)
        scale = torch.empty(targets, dtype=torch.float32, device=device)
        items.append(
            (
                _rows(a),
                _rows(c),
                _rows(r),
                _ABSENT,
                (0, 0, 0, 0, 0),
                (targets, contexts, positions),
                _grids([(1, positions)], device),
                maps.data_ptr(),
                (maps.data_ptr(), _cuda.F32, 0, scale.data_ptr(), 0),
            )
        )
        causal.append(maps)
        scales.append(scale)
    with _on(device):
        _cuda.interference(items, _stream(device))
        _cuda.finish_maps(items, 1, False, _cuda.FINISH_CAUSAL, _stream(device))
    return causal, scales


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
    out: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Scores to finished maps in two launches; arguments and results as in ``tam_fast.backends.cpu.finish_maps``."""
    device = scores[0].device
    items, kept, results = [], [], []
    for index, (given, weights, text) in enumerate(zip(scores, relevance, text_relevance, strict=True)):
        rows, r, shown = float_rows(given), float_rows(weights), float_rows(text)
        targets = indices(activation_rows[index], device)
        lengths = indices(text_length[index], device)
        context = None if context_rows is None else indices(context_rows[index], device)
        maps, texts, scale, flat = places = (
            torch.empty((r.shape[0], rows.shape[1]), dtype=torch.float32, device=device),
            torch.empty(shown.shape, dtype=torch.float32, device=device),
            torch.empty(r.shape[0], dtype=torch.float32, device=device),
            torch.empty(r.shape[0], dtype=torch.bool, device=device),
        )
        results.append(places)
        with _on(device):
            work = _work(maps)
        kept.append((rows, r, shown, targets, lengths, context, work))
        items.append(
            (
                _rows(rows, targets),
                _rows(rows, context),
                _rows(r),
                _ABSENT,
                (*_rows(shown), shown.shape[1], lengths.data_ptr()),
                (*r.shape, rows.shape[1]),
                _grids(grids[index], device),
                work.data_ptr(),
                (maps.data_ptr(), _cuda.F32, texts.data_ptr(), scale.data_ptr(), flat.data_ptr()),
            )
        )
    with _on(device):
        _cuda.interference(items, _stream(device))
        _cuda.finish_maps(items, kernel_size, constant_window_nan, _cuda.FINISH_MAPS, _stream(device))
    for index, places in enumerate(out or ()):
        for place, found in zip(places, results[index], strict=True):
            place.copy_(found)
    return [o[0] for o in results], [o[1] for o in results], [o[2] for o in results], [o[3] for o in results]


def _work(maps: Tensor) -> Tensor:
    """Memory (T, N) for the interference: that of float32 maps, until they are made, if a map fits a block's memory."""
    if maps.dtype == torch.float32 and maps.shape[1] <= _cuda.finish_maps_shared_positions():
        return maps
    return torch.empty(maps.shape, dtype=torch.float32, device=maps.device)


def _answer(answer: DeviceAnswer, work: Tensor) -> tuple[Any, ...]:
    scores, positions = answer.scores, answer.maps.shape[1]
    relevance = scores.data_ptr() + 4 * positions, scores.stride(0), answer.target_rows.data_ptr()
    targets, contexts = answer.relevance.shape
    return (
        _rows(scores, answer.target_rows),
        _rows(scores, answer.context_rows),
        relevance,
        (answer.context_names.data_ptr(), answer.target_names.data_ptr(), answer.lengths.data_ptr()),
        (*relevance, contexts, answer.text_lengths.data_ptr()),
        (targets, contexts, positions),
        _grids(answer.sizes, scores.device),
        work.data_ptr(),
        (
            answer.maps.data_ptr(),
            _MAPS[answer.maps.dtype],
            answer.relevance.data_ptr(),
            answer.scale.data_ptr(),
            answer.flat.data_ptr(),
        ),
    )


def answer_maps(answers: list[DeviceAnswer], kernel_size: int, *, constant_window_nan: bool = False) -> None:
    """Finish the maps of some answers from their scores, in two launches; results go to each answer's last four."""
    device = answers[0].scores.device
    with _on(device):
        work = [_work(answer.maps) for answer in answers]
        items = [_answer(answer, place) for answer, place in zip(answers, work, strict=True)]
        _cuda.interference(items, _stream(device))
        _cuda.finish_maps(items, kernel_size, constant_window_nan, _cuda.FINISH_MAPS, _stream(device))


def step_answer(step: DeviceStep, kernel_size: int) -> None:
    """Score one more token of a stream and finish its map, in three launches; see ``DeviceStep``."""
    device = step.scores.device
    target = step.target.data_ptr()
    activation_row, name, length = target, target + 8, target + 16
    places = (step.context_rows.data_ptr(), step.context_names.data_ptr(), activation_row, name, length)
    scoring = (
        _sliced(step.prompt),
        (step.positions.data_ptr(), step.positions.shape[0]),
        _sliced(step.states),
        _sliced(step.classifier),
        step.state.data_ptr(),
        step.n_p,
        (step.scores.data_ptr(), step.scores.stride(0)),
        places,
        step.flag.data_ptr(),
    )
    answer = step.as_answer()
    with _on(device):
        work = _work(step.maps)
        item = _answer(answer, work)
        _cuda.step_scores(scoring, _stream(device))
        _cuda.interference([item], _stream(device))
        _cuda.finish_maps([item], kernel_size, False, _cuda.FINISH_MAPS, _stream(device))


def _sliced(x: Tensor) -> tuple[int, ...]:
    """A matrix of unit column stride."""
    return x.data_ptr(), _DTYPES[x.dtype], *x.shape, x.stride(0)


def info() -> dict[str, Any]:
    """What the kernels were built for."""
    return {"architectures": list(_cuda.architectures()), "emulated": bool(_cuda.emulated)}
