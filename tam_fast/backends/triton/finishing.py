"""Launches from interference to finished maps: scale, residual, joint normalisation, filter (Eq. 2, 3, 5-7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tam_fast.backends.triton import launch
from tam_fast.backends.triton.filters import NETWORKS, filter_items
from tam_fast.backends.triton.kernels.finish_maps import finish_maps_kernel, least_squares_scale_kernel
from tam_fast.backends.triton.operands import TYPES, Item, Job, format_of, grids
from tam_fast.backends.triton.tuning import Configuration

__all__ = ["finish", "least_squares_scale"]

_SEPARATE = 1 << 14  # positions from which on a map is filtered by more than one program


def least_squares_scale(target: Tensor, interference: Tensor) -> Tensor:
    """<target, interference> / <interference, interference> over the last dimension: (..., N) each -> (...) float32."""
    scale = torch.empty(target.shape[:-1], dtype=torch.float32, device=target.device)
    if target.dtype != interference.dtype:
        common = torch.promote_types(torch.promote_types(target.dtype, interference.dtype), torch.float32)
        target, interference = target.to(common), interference.to(common)
    a, e = (x.reshape(scale.numel(), x.shape[-1]) for x in (target, interference))

    def run(configuration: Configuration) -> Any:
        return launch.one(
            least_squares_scale_kernel,
            a.shape[0],
            configuration,
            a.data_ptr(),
            *a.stride(),
            e.data_ptr(),
            *e.stride(),
            a.shape[1],
            scale.data_ptr(),
            ELEMENT=TYPES[a.dtype],
        )

    if scale.numel():
        with launch.on(a.device):
            run(launch.configured("least_squares_scale", format_of(a.dtype), tuple(a.shape), run))
    return scale


def finish(
    jobs: list[Job], device: torch.device, kernel_size: int, constant_nan: bool, causal: bool
) -> Callable[[], None]:
    """Configure the launches that finish some answers, and return what makes them.

    One launch, and another one that filters where maps are large or windows wide. `causal` maps are only residuals.
    """
    largest = max(item.shape[2] for item, _ in jobs)
    separate = not causal and kernel_size > 1 and (kernel_size not in NETWORKS or largest > _SEPARATE)
    window = 1 if separate or causal else kernel_size
    written = torch.float32 if separate else jobs[0][0].maps.dtype

    def launch_all(configuration: Configuration) -> Any:
        arguments = []
        for item, work in jobs:
            targets, _, size = item.shape
            target = work.interference if separate else item.maps
            arguments.append(
                (
                    *item.activation.arguments(),
                    *((0, 0, 0) if item.text is None else item.text.arguments()),
                    item.text_size,
                    0 if item.text_lengths is None else item.text_lengths.data_ptr(),
                    targets,
                    size,
                    work.tiles,
                    *grids(() if causal else item.sizes, device),
                    *work.arguments(),
                    target.data_ptr(),
                    0 if item.text_out is None else item.text_out.data_ptr(),
                    item.scale.data_ptr(),
                    0 if item.flat is None else item.flat.data_ptr(),
                )
            )
        return launch.many(
            finish_maps_kernel,
            lambda i, _: jobs[i][0].shape[0],
            arguments,
            device,
            configuration,
            int(constant_nan),
            OUTPUT=TYPES[written],
            CAUSAL=causal,
            K=window,
            BLOCK_TILES=64,
        )

    name = f"finish_maps.{0 if causal else window}"
    configuration = launch.configured(name, "float32", (largest, max(item.shape[0] for item, _ in jobs)), launch_all)

    def run() -> None:
        launch_all(configuration)
        if separate:
            parts = [part for item, work in jobs for part in _parts(item, work.interference)]
            filter_items(parts, kernel_size, constant_nan, torch.float32, jobs[0][0].maps.dtype, device)

    return run


def _parts(item: Item, normalised: Tensor) -> list[tuple[int, ...]]:
    """Describe the grids of (T, N) normalised maps for :func:`filter_items`."""
    targets, _, size = item.shape
    parts: list[tuple[int, ...]] = []
    offset = 0
    for height, width in item.sizes:
        source = normalised.data_ptr() + 4 * offset
        target = item.maps.data_ptr() + item.maps.element_size() * offset
        parts.append((source, target, targets, height, width, size, width, 1, size))
        offset += height * width
    return parts
