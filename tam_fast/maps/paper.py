"""``compat="paper"``: the equations to the letter, in torch operations on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from tam_fast.operators import ops


def finish_paper(
    activation: Tensor,
    context: Tensor,
    relevance: Tensor,
    text: Tensor,
    text_length: Tensor,
    sizes: list[tuple[int, int]],
    kernel_size: int,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. 2 to the letter: subtract, filter (windows anchored top-left), ReLU; then Eq. 3.

    Parameters
    ----------
    activation : Tensor (T, N)
    context : Tensor (K, N)
    relevance : Tensor (T, K), 0 where a context token does not count
    text : Tensor (T, L), of which text_length (T,) are normalised together with the map

    Returns
    -------
    maps (T, N), text (T, L), scale (T,), flat (T,)
    """
    interference = (relevance @ context) / (relevance.sum(-1, keepdim=True) + 1e-8)
    scale = ops.least_squares_scale(activation, interference, backend=backend)
    residual = activation - scale[:, None] * interference
    filtered = []
    begin = 0
    for height, width in sizes:
        raster = residual[:, begin : begin + height * width].reshape(-1, height, width)
        begin += height * width
        # Padding the bottom and the right only makes the centred window of a cell the one that begins at it.
        rows, columns = (_reflect(size, kernel_size - 1, raster.device) for size in (height, width))
        half = kernel_size // 2
        padded = ops.rank_gaussian_filter(raster[:, rows][:, :, columns], kernel_size, backend=backend)
        filtered.append(padded[:, half : half + height, half : half + width].reshape(-1, height * width))
    causal = torch.cat([activation[:, :0], *filtered], dim=1).relu()
    beyond = torch.arange(text.shape[1], device=text.device)[None] >= text_length[:, None]
    low = torch.cat([causal, text.masked_fill(beyond, float("inf"))], dim=1).amin(1)
    high = torch.cat([causal, text.masked_fill(beyond, float("-inf"))], dim=1).amax(1)
    flat = low >= high  # beyond all where there is neither a cell nor a word
    extent = torch.where(flat, torch.ones_like(low), high - low)[:, None]
    maps = ((causal - low[:, None]) / extent).masked_fill(flat[:, None], 0.0)
    shown = ((text - low[:, None]) / extent).masked_fill(beyond | flat[:, None], 0.0)
    return maps, shown, scale, flat


def _reflect(size: int, after: int, device: torch.device) -> Tensor:
    """Indices of an axis padded by reflection at its end: (size + after,)."""
    positions = torch.arange(size + after, device=device)
    if size == 1:
        return torch.zeros_like(positions)
    folded = positions % (2 * (size - 1))
    return torch.where(folded < size, folded, 2 * (size - 1) - folded)
