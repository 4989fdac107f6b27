"""What the pipeline hands to a backend that works on a device, and what such backends do alike with their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["DeviceAnswer", "DeviceStep", "float_rows", "grid_table", "indices"]


@dataclass
class DeviceAnswer:
    """One answer of T target tokens and K context tokens over N visual positions, on one device.

    The results go into the last four tensors. Values of row indices, names and lengths are read on the device.
    """

    scores: Tensor  # (U, N + K) float32, unit column stride
    context_rows: Tensor  # (K,) int64 rows of scores that are the context's maps
    context_names: Tensor  # (K,) int64
    target_rows: Tensor  # (T,) int64
    target_names: Tensor  # (T,) int64, -1: nothing is removed
    lengths: Tensor  # (T,) int64: context tokens that count as relevance
    text_lengths: Tensor  # (T,) int64: relevances that are normalised with the map
    sizes: list[tuple[int, int]]
    maps: Tensor  # (T, N) float32 or uint8, contiguous
    relevance: Tensor  # (T, K) float32, contiguous
    scale: Tensor  # (T,) float32
    flat: Tensor  # (T,) bool


@dataclass
class DeviceStep:
    """One more token of a stream; values that change between tokens are read on the device."""

    prompt: Tensor  # (P, C) states, unit column stride
    positions: Tensor  # (N + n_p,) int64 into prompt: visual, then the prompt's text
    states: Tensor  # (capacity, C) states from the prompt's last position on, which predict the answer
    classifier: Tensor  # (V, C)
    scores: Tensor  # (rows, N + n_p + capacity) float32
    state: Tensor  # (4,) int64: token id, row, length, is_new
    context_rows: Tensor  # (n_p + capacity,) int64
    context_names: Tensor  # (n_p + capacity,) int64
    target: Tensor  # (3,) int64: activation row, name (-1: no interference), length
    sizes: list[tuple[int, int]]
    n_p: int
    flag: Tensor  # (1,) int32
    maps: Tensor  # (1, N)
    relevance: Tensor  # (1, n_p + capacity)
    scale: Tensor  # (1,)
    flat: Tensor  # (1,)

    def as_answer(self) -> DeviceAnswer:
        """Return the token as an answer of one target, whose row, name and length are read when kernels run."""
        row, name, length = self.target[:1], self.target[1:2], self.target[2:]
        return DeviceAnswer(
            scores=self.scores,
            context_rows=self.context_rows,
            context_names=self.context_names,
            target_rows=row,
            target_names=name,
            lengths=length,
            text_lengths=length,
            sizes=self.sizes,
            maps=self.maps,
            relevance=self.relevance,
            scale=self.scale,
            flat=self.flat,
        )


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
