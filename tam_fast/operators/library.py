"""All ``torch.library`` schemas, fakes and the autograd policy of the operators, in one place.

Each operator is defined on lists, so that ragged inputs are one call; implementations come from the backend that
:mod:`tam_fast.backends.selection` selects for the tensors' device, or from the one named. The operators are not
differentiable: the Autograd key falls through, and outputs never require grad.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tam_fast.backends import selection

NAMESPACE = "tam_fast"

SCHEMAS = (
    "rank_gaussian_filter(Tensor maps, int kernel_size=3, str? backend=None) -> Tensor",
    "rank_gaussian_filter_batch(Tensor[] maps, int kernel_size=3, str? backend=None) -> Tensor[]",
    "token_scores(Tensor hidden, Tensor classifier, Tensor token_ids, str? backend=None) -> Tensor",
    "token_scores_batch(Tensor[] hidden, Tensor classifier, Tensor[] token_ids, str? backend=None) -> Tensor[]",
    "least_squares_scale(Tensor target, Tensor interference, str? backend=None) -> Tensor",
    "estimated_causal_inference(Tensor activation, Tensor context, Tensor relevance, str? backend=None)"
    " -> (Tensor, Tensor)",
    "estimated_causal_inference_batch(Tensor[] activation, Tensor[] context, Tensor[] relevance, str? backend=None)"
    " -> (Tensor[], Tensor[])",
    # `sizes` holds (height, width) of every grid of every answer in turn, `grids` how many of them each answer has.
    "finish_maps(Tensor[] scores, Tensor[] activation_rows, Tensor[] context_rows, Tensor[] relevance,"
    " Tensor[] text_relevance, Tensor[] text_length, int[] sizes, int[] grids, int kernel_size=3,"
    " bool constant_window_nan=False, str? backend=None) -> (Tensor[], Tensor[], Tensor[], Tensor[])",
)


def _check_token_ids(token_ids: Tensor, vocabulary: int) -> None:
    # Here and not in ops.py: it reads values, which a traced program cannot.
    if token_ids.numel() == 0:
        return
    if token_ids.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # cannot be waited for; kernels score an id that is no row as NaN
    low, high = (int(bound) for bound in torch.aminmax(token_ids))
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"token_ids: expected ids from 0 to {vocabulary - 1} (classifier has {vocabulary} rows), "
            f"got {low if low < 0 else high}"
        )


def _rank_gaussian_filter(maps: Tensor, kernel_size: int = 3, backend: str | None = None) -> Tensor:
    return selection.serving(maps.device, backend).rank_gaussian_filter([maps], kernel_size)[0]


def _rank_gaussian_filter_batch(maps: list[Tensor], kernel_size: int = 3, backend: str | None = None) -> list[Tensor]:
    return selection.serving(maps[0].device, backend).rank_gaussian_filter(maps, kernel_size)


def _token_scores(hidden: Tensor, classifier: Tensor, token_ids: Tensor, backend: str | None = None) -> Tensor:
    return _token_scores_batch([hidden], classifier, [token_ids], backend)[0]


def _token_scores_batch(
    hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor], backend: str | None = None
) -> list[Tensor]:
    for ids in token_ids:
        _check_token_ids(ids, classifier.shape[0])
    return selection.serving(classifier.device, backend).token_scores(hidden, classifier, token_ids)


def _least_squares_scale(target: Tensor, interference: Tensor, backend: str | None = None) -> Tensor:
    return selection.serving(target.device, backend).least_squares_scale(target, interference)


def _estimated_causal_inference(
    activation: Tensor, context: Tensor, relevance: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    causal, scale = _estimated_causal_inference_batch([activation], [context], [relevance], backend)
    return causal[0], scale[0]


def _estimated_causal_inference_batch(
    activation: list[Tensor], context: list[Tensor], relevance: list[Tensor], backend: str | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    return selection.serving(activation[0].device, backend).estimated_causal_inference(activation, context, relevance)


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
    backend: str | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    pairs = list(zip(sizes[0::2], sizes[1::2], strict=True))
    rasters, begin = [], 0
    for count in grids:
        rasters.append(pairs[begin : begin + count])
        begin += count
    return selection.serving(scores[0].device, backend).finish_maps(
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


def _fake_rank_gaussian_filter(maps: Tensor, kernel_size: int = 3, backend: str | None = None) -> Tensor:
    return torch.empty(maps.shape, dtype=maps.dtype, device=maps.device)


def _fake_rank_gaussian_filter_batch(
    maps: list[Tensor], kernel_size: int = 3, backend: str | None = None
) -> list[Tensor]:
    return [_fake_rank_gaussian_filter(item, kernel_size) for item in maps]


def _fake_token_scores(hidden: Tensor, classifier: Tensor, token_ids: Tensor, backend: str | None = None) -> Tensor:
    return hidden.new_empty((token_ids.shape[0], hidden.shape[0]), dtype=torch.float32)


def _fake_token_scores_batch(
    hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor], backend: str | None = None
) -> list[Tensor]:
    return [_fake_token_scores(states, classifier, ids) for states, ids in zip(hidden, token_ids, strict=True)]


def _fake_least_squares_scale(target: Tensor, interference: Tensor, backend: str | None = None) -> Tensor:
    return target.new_empty(target.shape[:-1], dtype=torch.float32)


def _fake_estimated_causal_inference(
    activation: Tensor, context: Tensor, relevance: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    return (
        activation.new_empty(activation.shape, dtype=torch.float32),
        activation.new_empty(activation.shape[:1], dtype=torch.float32),
    )


def _fake_estimated_causal_inference_batch(
    activation: list[Tensor], context: list[Tensor], relevance: list[Tensor], backend: str | None = None
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
    backend: str | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    targets = [rows.shape[0] for rows in activation_rows]
    maps = [s.new_empty((t, s.shape[1]), dtype=torch.float32) for s, t in zip(scores, targets, strict=True)]
    text = [r.new_empty(r.shape, dtype=torch.float32) for r in text_relevance]
    scale = [s.new_empty((t,), dtype=torch.float32) for s, t in zip(scores, targets, strict=True)]
    flat = [s.new_empty((t,), dtype=torch.bool) for s, t in zip(scores, targets, strict=True)]
    return maps, text, scale, flat


_library = torch.library.Library(NAMESPACE, "DEF")
_autograd = torch.library.Library(NAMESPACE, "IMPL", "Autograd")
for _schema in SCHEMAS:
    _name = _schema.partition("(")[0]
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    for _key in ("CPU", "CUDA", "MPS", "XPU"):
        _library.impl(_name, globals()[f"_{_name}"], _key)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", globals()[f"_fake_{_name}"], lib=_library)
    _autograd.impl(_name, torch.library.fallthrough_kernel)
