"""What kernels are handed: element types, operands of products, rows of matrices, and answers made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import triton.language as tl
from torch import Tensor

from tam_fast.backends.arguments import grid_table
from tam_fast.backends.triton import launch

__all__ = ["TYPES", "ContextStates", "Item", "Job", "Rows", "Work", "aligned", "format_of", "grids", "multiplied"]

TYPES: dict[torch.dtype, Any] = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float64: tl.float64,
    torch.uint8: tl.uint8,
}
"""Triton's element types."""


def format_of(dtype: torch.dtype) -> str:
    """Name a number format as the tables of configurations do."""
    return str(dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------------------------------- products


@dataclass
class ContextStates:
    """Where context maps come from that no score matrix holds: A_k = [hidden[positions] classifier[classes[k]]]+."""

    hidden: Tensor  # (S, C)
    positions: Tensor  # (N,) int64
    classifier: Tensor  # (V, C)
    classes: Tensor  # (K,) int64
    flag: Tensor | None = None  # (1,) int32, becomes 1 if such a map holds NaN or Inf


def multiplied(hidden: Tensor, classifier: Tensor) -> tuple[Tensor, Any, str, str]:
    """States as they are multiplied, the type that both sides are brought to, input precision, and number format."""
    if hidden.dtype != classifier.dtype or hidden.dtype == torch.float64:
        return hidden.to(torch.float32), tl.float32, "ieee", "float32"
    if hidden.dtype == torch.float32:
        precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
        return hidden, tl.float32, precision, "float32" if precision == "ieee" else "tf32"
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    factor = tl.float32 if launch.INTERPRETED and hidden.dtype == torch.bfloat16 else TYPES[hidden.dtype]
    return hidden, factor, "ieee", format_of(hidden.dtype)


def aligned(*operands: Tensor) -> bool:
    """Whether rows can be read in 16 bytes at a time."""
    return all(
        x.data_ptr() % 16 == 0 and x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.shape[1] % 16 == 0 for x in operands
    )


# -------------------------------------------------------------------------------------------------------------- answers


def grids(sizes: Sequence[tuple[int, int]], device: torch.device) -> tuple[int, int, int, int]:
    """Count, height and width of grids; or count and a table."""
    if not sizes:
        return 0, 1, 1, 0
    height, width = sizes[0]
    if all(tuple(size) == (height, width) for size in sizes):
        return len(sizes), height, width, 0
    return len(sizes), 1, 1, grid_table(sizes, device).data_ptr()


@dataclass
class Rows:
    """Some rows of a float32 matrix of unit column stride: those of an int64 index, or in order."""

    matrix: Tensor
    index: Tensor | None = None
    column: int = 0  # where they begin

    def arguments(self) -> tuple[int, int, int]:
        """Address, row stride, and address of the index."""
        address = self.matrix.data_ptr() + 4 * self.column
        return address, self.matrix.stride(0), 0 if self.index is None else self.index.data_ptr()


@dataclass
class Item:
    """One answer as the kernels of maps take it; they read all of its tensors by address."""

    activation: Rows  # (T, N)
    context: Rows | None  # (K, N); None: made from states
    relevance: Rows  # (T, K)
    names: tuple[Tensor, Tensor, Tensor] | None  # context_names (K,), target_names (T,), lengths (T,); None: all count
    text: Rows | None  # (T, L)
    text_size: int
    text_lengths: Tensor | None  # (T,); None: all
    shape: tuple[int, int, int]  # T, K, N
    sizes: Sequence[tuple[int, int]]
    maps: Tensor  # (T, N) float32 or uint8
    text_out: Tensor | None  # (T, L)
    scale: Tensor  # (T,)
    flat: Tensor | None  # (T,)
    states: ContextStates | None = None


class Work:
    """Where the kernels hand an item on: interference (T, N), and the tiles' dot products, then the denominators."""

    def __init__(self, item: Item, device: torch.device) -> None:
        targets, _, size = item.shape
        self.interference = torch.empty((targets, size), dtype=torch.float32, device=device)
        self.tiles = 1
        self._targets, self._device = targets, device
        self.dots = self.interference

    def split(self, positions: int) -> None:
        """Make room for the dot products of tiles of some positions each."""
        self.tiles = max(launch.tiles(self.interference.shape[1], positions), 1)
        self.dots = torch.empty(self._targets * (2 * self.tiles + 1), dtype=torch.float64, device=self._device)

    def arguments(self) -> tuple[int, int]:
        """Addresses of the interference and of the dot products."""
        return self.interference.data_ptr(), self.dots.data_ptr()


Job: TypeAlias = tuple[Item, Work]
