"""All ``torch.library`` schemas, fakes and the autograd policy of the operators, in one place.

Each operator is defined on lists, so that ragged inputs are one call; implementations come from the backend that
:mod:`tam_fast._backends` selects. The operators are not differentiable: the Autograd key falls through, and outputs
never require grad.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tam_fast import _backends

NAMESPACE = "tam_fast"

SCHEMAS = (
    "rank_gaussian_filter(Tensor maps, int kernel_size=3) -> Tensor",
    "rank_gaussian_filter_batch(Tensor[] maps, int kernel_size=3) -> Tensor[]",
    "token_scores(Tensor hidden, Tensor classifier, Tensor token_ids) -> Tensor",
    "token_scores_batch(Tensor[] hidden, Tensor classifier, Tensor[] token_ids) -> Tensor[]",
    "least_squares_scale(Tensor target, Tensor interference) -> Tensor",
    "estimated_causal_inference(Tensor activation, Tensor context, Tensor relevance) -> (Tensor, Tensor)",
    "estimated_causal_inference_batch(Tensor[] activation, Tensor[] context, Tensor[] relevance)"
    " -> (Tensor[], Tensor[])",
    # `sizes` holds (height, width) of every grid of every answer in turn, `grids` how many of them each answer has.
    "finish_maps(Tensor[] scores, Tensor[] activation_rows, Tensor[] context_rows, Tensor[] relevance,"
    " Tensor[] text_relevance, Tensor[] text_length, int[] sizes, int[] grids, int kernel_size=3,"
    " bool constant_window_nan=False) -> (Tensor[], Tensor[], Tensor[], Tensor[])",
)

OPERATORS = (
    "rank_gaussian_filter",
    "token_scores",
    "least_squares_scale",
    "estimated_causal_inference",
    "finish_maps",
)


def _check_token_ids(token_ids: Tensor, vocabulary: int) -> None:
    # Here and not in ops.py: it reads values, which a traced program cannot.
    if token_ids.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(token_ids))
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"token_ids: expected ids from 0 to {vocabulary - 1} (classifier has {vocabulary} rows), "
            f"got {low if low < 0 else high}"
        )


def _rank_gaussian_filter(maps: Tensor, kernel_size: int = 3) -> Tensor:
    return _backends.current().rank_gaussian_filter([maps], kernel_size)[0]


def _rank_gaussian_filter_batch(maps: list[Tensor], kernel_size: int = 3) -> list[Tensor]:
    return _backends.current().rank_gaussian_filter(maps, kernel_size)


def _token_scores(hidden: Tensor, classifier: Tensor, token_ids: Tensor) -> Tensor:
    return _token_scores_batch([hidden], classifier, [token_ids])[0]


def _token_scores_batch(hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor]) -> list[Tensor]:
    for ids in token_ids:
        _check_token_ids(ids, classifier.shape[0])
    return _backends.current().token_scores(hidden, classifier, token_ids)


def _least_squares_scale(target: Tensor, interference: Tensor) -> Tensor:
    return _backends.current().least_squares_scale(target, interference)


def _estimated_causal_inference(activation: Tensor, context: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    causal, scale = _backends.current().estimated_causal_inference([activation], [context], [relevance])
    return causal[0], scale[0]


def _estimated_causal_inference_batch(
    activation: list[Tensor], context: list[Tensor], relevance: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    return _backends.current().estimated_causal_inference(activation, context, relevance)


def _finish_maps(
    scores: list[Tensor],
    activation_rows: list[Tensor],
    context_rows: list[Tensor],
    relevance: list[Tensor],
    text_relevance: list[Tensor],
    text_length: list[Tensor],
    sizes: list[int],
    grids: list[int],
    kernel_size: int = 3,
    constant_window_nan: bool = False,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    pairs = list(zip(sizes[0::2], sizes[1::2], strict=True))
    rasters, begin = [], 0
    for count in grids:
        rasters.append(pairs[begin : begin + count])
        begin += count
    return _backends.current().finish_maps(
        scores,
        activation_rows,
        context_rows,
        relevance,
        text_relevance,
        text_length,
        rasters,
        kernel_size,
        constant_window_nan=constant_window_nan,
    )


# Fakes allocate as the backends do: contiguous outputs whatever the strides of the inputs.


def _fake_rank_gaussian_filter(maps: Tensor, kernel_size: int = 3) -> Tensor:
    return torch.empty(maps.shape, dtype=maps.dtype, device=maps.device)


def _fake_rank_gaussian_filter_batch(maps: list[Tensor], kernel_size: int = 3) -> list[Tensor]:
    return [_fake_rank_gaussian_filter(item, kernel_size) for item in maps]


def _fake_token_scores(hidden: Tensor, classifier: Tensor, token_ids: Tensor) -> Tensor:
    return hidden.new_empty((token_ids.shape[0], hidden.shape[0]), dtype=torch.float32)


def _fake_token_scores_batch(hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor]) -> list[Tensor]:
    return [_fake_token_scores(states, classifier, ids) for states, ids in zip(hidden, token_ids, strict=True)]


def _fake_least_squares_scale(target: Tensor, interference: Tensor) -> Tensor:
    return target.new_empty(target.shape[:-1], dtype=torch.float32)


def _fake_estimated_causal_inference(activation: Tensor, context: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    return (
        activation.new_empty(activation.shape, dtype=torch.float32),
        activation.new_empty(activation.shape[:1], dtype=torch.float32),
    )


def _fake_estimated_causal_inference_batch(
    activation: list[Tensor], context: list[Tensor], relevance: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [_fake_estimated_causal_inference(a, c, r) for a, c, r in zip(activation, context, relevance, strict=True)]
    return [causal for causal, _ in pairs], [scale for _, scale in pairs]


def _fake_finish_maps(
    scores: list[Tensor],
    activation_rows: list[Tensor],
    context_rows: list[Tensor],
    relevance: list[Tensor],
    text_relevance: list[Tensor],
    text_length: list[Tensor],
    sizes: list[int],
    grids: list[int],
    kernel_size: int = 3,
    constant_window_nan: bool = False,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    targets = [rows.shape[0] for rows in activation_rows]
    maps = [s.new_empty((t, s.shape[1]), dtype=torch.float32) for s, t in zip(scores, targets, strict=True)]
    text = [r.new_empty(r.shape, dtype=torch.float32) for r in text_relevance]
    scale = [s.new_empty((t,), dtype=torch.float32) for s, t in zip(scores, targets, strict=True)]
    flat = [s.new_empty((t,), dtype=torch.bool) for s, t in zip(scores, targets, strict=True)]
    return maps, text, scale, flat


def _on_the_cpu(implementation: Any) -> Any:
    """Serve tensors of other devices: copy in, compute on the CPU, copy back (reported by ``backend_info``)."""

    def move(value: Any, device: torch.device) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, (list, tuple)):
            return type(value)(move(item, device) for item in value)
        return value

    def serve(*arguments: Any) -> Any:
        first = arguments[0]
        device = (first[0] if isinstance(first, (list, tuple)) else first).device
        if implementation in (_token_scores, _token_scores_batch):
            # Only the rows that occur travel, not the whole classifier.
            hidden, classifier, token_ids = arguments
            every = token_ids if isinstance(token_ids, Tensor) else torch.cat(list(token_ids))
            _check_token_ids(every, classifier.shape[0])
            unique, inverse = torch.unique(every, return_inverse=True)
            rows = classifier.index_select(0, unique)
            if isinstance(token_ids, Tensor):
                arguments = (hidden, rows, inverse)
            else:
                arguments = (hidden, rows, list(inverse.split([ids.numel() for ids in token_ids])))
        return move(implementation(*move(arguments, torch.device("cpu"))), device)

    return serve


_library = torch.library.Library(NAMESPACE, "DEF")
_autograd = torch.library.Library(NAMESPACE, "IMPL", "Autograd")
for _schema in SCHEMAS:
    _name = _schema.partition("(")[0]
    _implementation = globals()[f"_{_name}"]
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _implementation, "CPU")
    for _key in ("CUDA", "MPS", "XPU"):
        _library.impl(_name, _on_the_cpu(_implementation), _key)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", globals()[f"_fake_{_name}"], lib=_library)
    _autograd.impl(_name, torch.library.fallthrough_kernel)
