"""A host backend for tensors of other devices: copy in, compute on the CPU, copy back (``backend_info`` says so)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from tam_fast.backends.contracts import Backend


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(_move(item, device) for item in value)
    return value


def _device(value: Any) -> torch.device:
    while isinstance(value, (list, tuple)):
        value = value[0]
    device: torch.device = value.device
    return device


def _through(operator: Callable[..., Any]) -> Callable[..., Any]:
    def serve(*arguments: Any, out: Any = None, **options: Any) -> Any:
        results = _move(operator(*_move(arguments, torch.device("cpu")), **options), _device(arguments))
        for item, places in enumerate(out or ()):
            for place, found in zip(places, results, strict=True):
                place.copy_(found[item])
        return results

    return serve


def copying(backend: Backend) -> Backend:
    """Return the operators of a host backend for tensors of any device; results are on the device of the arguments."""
    score = _through(backend.token_scores)

    def token_scores(hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor]) -> list[Tensor]:
        # Only the rows that occur travel, not the whole classifier.
        unique, inverse = torch.unique(torch.cat(token_ids), return_inverse=True)
        rows = list(inverse.split([ids.numel() for ids in token_ids]))
        return cast("list[Tensor]", score(hidden, classifier.index_select(0, unique), rows))

    served = SimpleNamespace(
        rank_gaussian_filter=_through(backend.rank_gaussian_filter),
        token_scores=token_scores,
        least_squares_scale=_through(backend.least_squares_scale),
        estimated_causal_inference=_through(backend.estimated_causal_inference),
        finish_maps=_through(backend.finish_maps),
        info=backend.info,
    )
    return cast("Backend", served)
