"""What backends that work on a device do alike with their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["float_rows", "grid_table", "indices"]


def float_rows(x: Tensor) -> Tensor:
    """Return a matrix as the kernels of maps read it: float32, unit column stride."""
    x = x.to(torch.float32)
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def indices(x: Tensor, device: torch.device) -> Tensor:
    """Return a vector of indices as the kernels read it: int64, contiguous, on the device."""
    return x.to(device=device, dtype=torch.int64).contiguous()


_captured: list[Tensor] = []  # tables that a graph may read as long as the process lives


def grid_table(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return (G, 3) int64 on the device: height, width and offset of grids that are not of one size."""
    table = _grid_table(tuple((int(height), int(width)) for height, width in sizes), device)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if capturing and not any(table is kept for kept in _captured):
        _captured.append(table)
    return table


@lru_cache(maxsize=1024)
def _grid_table(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    table, begin = [], 0
    for height, width in sizes:
        table.append((height, width, begin))
        begin += height * width
    return torch.tensor(table, dtype=torch.int64, device="cpu").to(device)
