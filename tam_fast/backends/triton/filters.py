"""The rank Gaussian filter: which of its kernels filters what, and one launch for all maps of a dtype."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tam_fast.backends.triton import launch
from tam_fast.backends.triton.kernels.rank_gaussian_filter import (
    rank_gaussian_filter_kernel,
    rank_gaussian_filter_ranked_kernel,
)
from tam_fast.backends.triton.operands import TYPES, format_of
from tam_fast.backends.triton.tuning import Configuration

__all__ = ["NETWORKS", "filter_items", "rank_gaussian_filter"]

NETWORKS = (1, 3, 5, 7)
"""Windows that a network sorts; 1 needs none."""


def rank_gaussian_filter(maps: list[Tensor], kernel_size: int, *, constant_window_nan: bool = False) -> list[Tensor]:
    """Rank Gaussian filter of every (..., H, W) tensor; contiguous results of the same dtype. One launch a dtype."""
    outputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in maps]
    groups: dict[torch.dtype, list[tuple[int, ...]]] = {}
    kept = []  # alive until the launch
    for x, y in zip(maps, outputs, strict=True):
        stack = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
        kept.append(stack)
        item = (stack.data_ptr(), y.data_ptr(), *stack.shape, *stack.stride(), stack.shape[1] * stack.shape[2])
        groups.setdefault(x.dtype, []).append(item)
    for dtype, items in groups.items():
        device = maps[0].device
        with launch.on(device):
            filter_items(items, kernel_size, constant_window_nan, dtype, dtype, device)
    return outputs


def filter_items(
    items: list[tuple[int, ...]],
    kernel_size: int,
    constant_nan: bool,
    read: torch.dtype,
    written: torch.dtype,
    device: torch.device,
) -> None:
    """Items: source, target, count, height, width, strides of map, row and column, and of the target's maps.

    What is written as uint8 is in [0, 1] or NaN.
    """
    pixels = sum(item[2] * item[3] * item[4] for item in items)
    if kernel_size in NETWORKS and read != torch.float64:

        def programs(i: int, configuration: Configuration) -> int:
            count, height, width = items[i][2:5]
            strips = count * launch.tiles(height, configuration.blocks["ROWS"])
            return launch.tiles(strips * width, configuration.blocks["LANES"])

        def run(configuration: Configuration) -> Any:
            return launch.many(
                rank_gaussian_filter_kernel,
                programs,
                items,
                device,
                configuration,
                int(constant_nan),
                INPUT=TYPES[read],
                OUTPUT=TYPES[written],
                K=kernel_size,
                PLAIN=read == torch.float16 or written == torch.uint8,
            )

        name = f"rank_gaussian_filter.{kernel_size}"
    else:
        slots = max(1 << (kernel_size**2 - 1).bit_length(), 64)

        def programs(i: int, configuration: Configuration) -> int:
            count, height, width = items[i][2:5]
            return count * launch.tiles(height * width, configuration.blocks["PIXELS"])

        def run(configuration: Configuration) -> Any:
            return launch.many(
                rank_gaussian_filter_ranked_kernel,
                programs,
                items,
                device,
                configuration,
                int(constant_nan),
                kernel_size,
                INPUT=TYPES[read],
                OUTPUT=TYPES[written],
                WIDE=read == torch.float64,
                SLOTS=slots,
            )

        name = f"rank_gaussian_filter_ranked.{kernel_size}"
    if pixels:
        run(launch.configured(name, format_of(read), (pixels, max(item[3] for item in items)), run))
