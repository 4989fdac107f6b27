"""Measurements of every kernel, for answers of about some size."""

from __future__ import annotations

from typing import Any

import torch

from tam_fast.backends.contracts import DeviceAnswer, DeviceStep
from tam_fast.backends.triton import launch
from tam_fast.backends.triton.answers import answer_maps, step_answer
from tam_fast.backends.triton.filters import rank_gaussian_filter
from tam_fast.backends.triton.scores import answer_scores

__all__ = ["tune"]


def tune(
    targets: int = 256,
    prompt: int = 256,
    grid: tuple[int, int] = (36, 36),
    channels: int = 2048,
    dtype: torch.dtype = torch.bfloat16,
    kernel_size: int = 3,
    device: str | torch.device = "cuda",
) -> dict[str, Any]:
    """Measure configurations for answers of about some size, and keep the best ones in the user's cache.

    Parameters
    ----------
    targets, prompt, grid, channels, dtype, kernel_size
        Tokens of the answer and of the prompt's text, sides of the map, C, dtype of states and classifier, window.

    Returns
    -------
    dict
        The configurations in use, as in :func:`tam_fast.backends.triton.info`.

    Raises
    ------
    RuntimeError
        If the device cannot be served, or the kernels are interpreted.
    """
    if launch.INTERPRETED:
        raise RuntimeError("tune: interpreted kernels have no configurations worth measuring (TRITON_INTERPRET=1)")
    place = torch.device(device)
    size, known = grid[0] * grid[1], prompt + targets - 1
    with launch.on(place), launch.measuring():
        generator = torch.Generator(place).manual_seed(0)
        hidden = torch.randn(size + known + 1, channels, generator=generator, device=place).to(dtype)
        classifier = torch.randn(prompt + targets, channels, generator=generator, device=place).to(dtype)
        every = torch.arange(prompt + targets, device=place)
        lengths = prompt + torch.arange(targets, device=place)
        flag = torch.zeros(1, dtype=torch.int32, device=place)
        scores = answer_scores([hidden], classifier, [every], [torch.arange(size + known, device=place)], flag)[0]
        for count in (targets, 1):
            rows = every[prompt : prompt + count]
            places = (
                torch.empty((count, size), device=place),
                torch.empty((count, known), device=place),
                torch.empty(count, device=place),
                torch.empty(count, dtype=torch.bool, device=place),
            )
            some = lengths[:count]
            answer_maps(
                [DeviceAnswer(scores, every[:known], every[:known], rows, rows, some, some, [grid], *places)],
                kernel_size,
            )
        rank_gaussian_filter([scores[:, :size].reshape(-1, *grid)], kernel_size)
        n_p = prompt
        step_answer(
            DeviceStep(
                prompt=hidden[: size + prompt],
                positions=torch.arange(size + n_p, device=place),
                states=hidden[size + prompt - 1 :],
                classifier=classifier,
                scores=torch.zeros((prompt + targets, size + n_p + targets), device=place),
                state=torch.tensor([0, 0, n_p + targets - 1, 1], device=place),
                context_rows=torch.zeros(n_p + targets, dtype=torch.int64, device=place),
                context_names=torch.zeros(n_p + targets, dtype=torch.int64, device=place),
                target=torch.zeros(3, dtype=torch.int64, device=place),
                sizes=[grid],
                n_p=n_p,
                flag=flag,
                maps=torch.empty((1, size), device=place),
                relevance=torch.empty((1, n_p + targets), device=place),
                scale=torch.empty(1, device=place),
                flat=torch.empty(1, dtype=torch.bool, device=place),
            ),
            kernel_size,
        )
        return launch.tuner().info()
