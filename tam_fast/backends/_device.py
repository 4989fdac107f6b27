"""What the pipeline hands to a backend that works on a device: one answer, or one streamed token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["DeviceAnswer", "DeviceStep"]


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
