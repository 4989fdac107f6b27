"""The score product of whole answers, and of one more token of a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tam_fast.backends.arguments import indices
from tam_fast.backends.contracts import DeviceStep
from tam_fast.backends.triton import launch, operands
from tam_fast.backends.triton.kernels.token_scores import step_scores_kernel, token_scores_kernel
from tam_fast.backends.triton.operands import TYPES
from tam_fast.backends.triton.tuning import Configuration

__all__ = ["answer_scores", "step_scores", "token_scores"]


def token_scores(hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor]) -> list[Tensor]:
    """relu(hidden @ classifier[ids].T).T of every answer: (S, C), (V, C), (T,) int64 -> (T, S) float32."""
    return _scores(hidden, classifier, token_ids, [None] * len(hidden), None)


def answer_scores(
    hidden: list[Tensor], classifier: Tensor, classes: list[Tensor], positions: list[Tensor], flag: Tensor
) -> list[Tensor]:
    """Score classes (U,) at positions (P,) of every answer: (U, P) float32. `flag` (1,) int32 tells of NaN and Inf.

    One launch for each dtype. A class or position that is out of range gives NaN.
    """
    return _scores(hidden, classifier, classes, list(positions), flag)


def _scores(
    hidden: list[Tensor],
    classifier: Tensor,
    classes: list[Tensor],
    positions: Sequence[Tensor | None],
    flag: Tensor | None,
) -> list[Tensor]:
    device = classifier.device
    outputs = []
    kept = []  # alive until the launch
    groups: dict[torch.dtype, list[tuple[Tensor, tuple[int, ...]]]] = {}
    for states, ids, where in zip(hidden, classes, positions, strict=True):
        states = operands.multiplied(states, classifier)[0]
        ids = indices(ids, device)
        where = None if where is None else indices(where, device)
        width = states.shape[0] if where is None else where.shape[0]
        scores = torch.empty((ids.shape[0], width), dtype=torch.float32, device=device)
        kept.append((states, ids, where))
        outputs.append(scores)
        item = (
            states.data_ptr(),
            states.shape[0],
            *states.stride(),
            0 if where is None else where.data_ptr(),
            width,
            ids.data_ptr(),
            ids.shape[0],
            scores.data_ptr(),
            width,
        )
        if scores.numel():
            groups.setdefault(states.dtype, []).append((states, item))
    for dtype, members in groups.items():
        _, factor, precision, number_format = operands.multiplied(members[0][0], classifier)
        aligned = operands.aligned(classifier, *(states for states, _ in members))
        items = [item for _, item in members]

        def programs(i: int, configuration: Configuration, items: list[tuple[int, ...]] = items) -> int:
            blocks = configuration.blocks
            return launch.tiles(items[i][7], blocks["BLOCK_U"]) * launch.tiles(items[i][5], blocks["BLOCK_P"])

        def run(
            configuration: Configuration,
            items: list[tuple[int, ...]] = items,
            programs: Callable[[int, Configuration], int] = programs,
            constants: dict[str, Any] = {  # noqa: B006 (of this turn of the loop)
                "CLASSIFIER": TYPES[classifier.dtype],
                "HIDDEN": TYPES[dtype],
                "FACTOR": factor,
                "PRECISION": precision,
                "ALIGNED": aligned,
            },
        ) -> Any:
            return launch.many(
                token_scores_kernel,
                programs,
                items,
                device,
                configuration,
                classifier.data_ptr(),
                *classifier.shape,
                *classifier.stride(),
                0 if flag is None else flag.data_ptr(),
                **constants,
            )

        number_format += "" if aligned else "-strided"
        sizes = max(item[7] for item in items), sum(item[5] for item in items), classifier.shape[1]
        with launch.on(device):
            run(launch.configured("token_scores", number_format, sizes, run))
    return outputs


def step_scores(step: DeviceStep) -> None:
    """Score one more token of a stream, in one launch; see ``DeviceStep``."""
    positions = step.positions.shape[0]
    aligned = operands.aligned(step.prompt, step.states, step.classifier)

    def run(configuration: Configuration) -> Any:
        block = configuration.blocks["BLOCK_P"]
        return launch.one(
            step_scores_kernel,
            max(launch.tiles(positions, block) + launch.tiles(step.states.shape[0], block), 1),
            configuration,
            step.prompt.data_ptr(),
            step.prompt.shape[0],
            step.prompt.stride(0),
            step.positions.data_ptr(),
            positions,
            step.n_p,
            step.states.data_ptr(),
            step.states.shape[0],
            step.states.stride(0),
            step.classifier.data_ptr(),
            *step.classifier.shape,
            *step.classifier.stride(),
            step.scores.data_ptr(),
            step.scores.shape[0],
            step.scores.stride(0),
            step.state.data_ptr(),
            step.context_rows.data_ptr(),
            step.context_names.data_ptr(),
            step.context_rows.shape[0],
            step.target.data_ptr(),
            step.flag.data_ptr(),
            STATES=TYPES[step.prompt.dtype],
            CLASSIFIER=TYPES[step.classifier.dtype],
            ALIGNED=aligned,
        )

    number_format = operands.format_of(step.prompt.dtype) + ("" if aligned else "-strided")
    with launch.on(step.scores.device):
        run(launch.configured("step_scores", number_format, (positions, step.prompt.shape[1]), run))
