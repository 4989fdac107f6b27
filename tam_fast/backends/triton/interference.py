"""Launches of the interference (Eq. 4 and 5): of context maps that are there, or that are made from states.

Each function configures a launch and returns what makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tam_fast.backends.triton import launch, operands
from tam_fast.backends.triton.kernels.interference import (
    interference_few_kernel,
    interference_from_states_kernel,
    interference_kernel,
)
from tam_fast.backends.triton.operands import TYPES, Item, Job, Work
from tam_fast.backends.triton.tuning import Configuration

__all__ = ["interference", "interference_from_states"]

_FEW = 4  # targets that are worked on one by one


def _targets(item: Item) -> tuple[int, ...]:
    relevance, names = item.relevance.arguments(), item.names
    by_name = (0, 0, 0) if names is None else tuple(x.data_ptr() for x in names)
    return (*relevance, *by_name, *item.shape)


def interference(jobs: list[Job], device: torch.device) -> Callable[[], Any]:
    """Prepare one launch for all answers whose context maps can be read."""
    few = max(item.shape[0] for item, _ in jobs) <= _FEW
    name, kernel = ("interference_few", interference_few_kernel) if few else ("interference", interference_kernel)

    def programs(i: int, configuration: Configuration) -> int:
        targets, _, size = jobs[i][0].shape
        rows = targets if few else launch.tiles(targets, configuration.blocks["BLOCK_T"])
        return rows * max(launch.tiles(size, configuration.blocks["BLOCK_N"]), 1)

    def run(configuration: Configuration) -> Any:
        arguments = []
        for item, work in jobs:
            assert item.context is not None
            work.split(configuration.blocks["BLOCK_N"])
            arguments.append(
                (
                    *item.activation.arguments(),
                    *item.context.arguments(),
                    *_targets(item),
                    work.tiles,
                    *work.arguments(),
                )
            )
        return launch.many(kernel, programs, arguments, device, configuration)

    sizes = [max(item.shape[i] for item, _ in jobs) for i in range(3)]
    configuration = launch.configured(name, "float32", sizes, run)
    return lambda: run(configuration)


def interference_from_states(item: Item, work: Work) -> Callable[[], Any]:
    """Prepare the launch for an answer whose context maps are made inside the kernel."""
    states = item.states
    assert states is not None
    hidden, factor, precision, number_format = operands.multiplied(states.hidden, states.classifier)
    aligned = operands.aligned(states.classifier, hidden)
    targets = item.shape[0]

    def run(configuration: Configuration) -> Any:
        work.split(configuration.blocks["BLOCK_N"])
        return launch.one(
            interference_from_states_kernel,
            launch.tiles(targets, configuration.blocks["BLOCK_T"]) * work.tiles,
            configuration,
            *item.activation.arguments(),
            *_targets(item),
            work.tiles,
            *work.arguments(),
            hidden.data_ptr(),
            hidden.shape[0],
            *hidden.stride(),
            states.positions.data_ptr(),
            states.classifier.data_ptr(),
            states.classifier.shape[0],
            *states.classifier.stride(),
            states.classes.data_ptr(),
            states.classifier.shape[1],
            0 if states.flag is None else states.flag.data_ptr(),
            CLASSIFIER=TYPES[states.classifier.dtype],
            HIDDEN=TYPES[hidden.dtype],
            FACTOR=factor,
            PRECISION=precision,
            ALIGNED=aligned,
        )

    number_format += "" if aligned else "-strided"
    sizes = (*item.shape, states.classifier.shape[1])
    configuration = launch.configured("interference_from_states", number_format, sizes, run)
    return lambda: run(configuration)
