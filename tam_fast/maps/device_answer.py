"""From final hidden states to finished maps on one device: what :func:`tam_fast.activation_maps` does with GPU tensors.

The host resolves tokens to rows and positions, which travel in one copy; then there are the product of scores, the
interference and the fused step of every target token. Nothing is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from tam_fast.backends.contracts import DeviceAnswer, DeviceBackend
from tam_fast.maps.paper import finish_paper
from tam_fast.maps.tokens import AnswerTokens, Compat, Integers

Results: TypeAlias = "tuple[Tensor, Tensor, Tensor, Tensor]"  # maps (T, N), relevance (T, K), scale (T,), flat (T,)


def to_device(arrays: Sequence[Integers], device: torch.device) -> list[Tensor]:
    """Bring int64 vectors to a device in one copy that is not waited for."""
    sizes = [array.size for array in arrays]
    packed = torch.empty(sum(sizes), dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    np.concatenate(arrays, out=packed.numpy())
    return list(packed.to(device, non_blocking=True).split(sizes))


def _indices(tokens: AnswerTokens, interference: bool) -> list[Integers]:
    """Everything about one answer that the kernels look up; see ``DeviceAnswer`` for the last six."""
    n_p, first, known = tokens.prompt_length, tokens.first, tokens.ids.size - 1
    layout = tokens.layout
    # A scores row is the map of a class, then its relevance to every context token.
    answer = tokens.start + np.arange(known - n_p)
    positions = np.concatenate([layout.visual_positions.numpy(), layout.prompt.numpy(), answer])
    names, lengths = tokens.target_names.copy(), n_p + np.arange(first, first + tokens.target_rows.size)
    if not interference:
        names[:] = -1
    if tokens.shifted:
        names[0] = -1  # what is shown for y_1 is p_1's map, and p_1 has no context
    return [
        positions,
        tokens.classes,
        tokens.rows[:known],
        tokens.names[:known],
        tokens.target_rows,
        names,
        lengths,
        lengths.copy(),
    ]


def run(
    backend: DeviceBackend,
    hidden: Sequence[Tensor],
    classifier: Tensor,
    tokens: Sequence[AnswerTokens],
    *,
    compat: Compat,
    kernel_size: int,
    interference: bool,
    dtype: torch.dtype,
) -> tuple[list[Results], Tensor]:
    """Compute the maps of some answers.

    Parameters
    ----------
    hidden : sequence of Tensor (S, C)
        Checked, on the device of `classifier` (V, C).
    dtype : torch.dtype
        Of the maps: float32 or uint8.

    Returns
    -------
    results : list of (maps (T, N), relevance (T, K), scale (T,), flat (T,))
        On the device.
    flag : Tensor (1,) int32
        1 if a state or a score that was read is NaN or Inf, on the device.
    """
    device = classifier.device
    fields = [_indices(item, interference) for item in tokens]
    arrays = [array for answer in fields for array in answer]
    *packed, zero = to_device([*arrays, np.zeros(1, dtype=np.int64)], device)
    flag = zero.view(torch.int32)[:1]
    indices = [packed[begin : begin + len(fields[0])] for begin in range(0, len(packed), len(fields[0]))]
    scores = backend.answer_scores(
        [rows.resolve_neg() for rows in hidden],
        classifier.resolve_neg(),
        [item[1] for item in indices],
        [item[0] for item in indices],
        flag,
    )
    answers = []
    for item, found, index in zip(tokens, scores, indices, strict=True):
        targets, known = item.target_rows.size, item.ids.size - 1
        _, _, context_rows, context_names, target_rows, target_names, lengths, text_lengths = index
        answers.append(
            DeviceAnswer(
                scores=found,
                context_rows=context_rows,
                context_names=context_names,
                target_rows=target_rows,
                target_names=target_names,
                lengths=lengths,
                text_lengths=text_lengths,
                sizes=item.layout.sizes,
                maps=torch.empty((targets, found.shape[1] - known), dtype=dtype, device=device),
                relevance=torch.empty((targets, known), dtype=torch.float32, device=device),
                scale=torch.empty(targets, dtype=torch.float32, device=device),
                flat=torch.empty(targets, dtype=torch.bool, device=device),
            )
        )
    if compat == "paper":
        for answer in answers:
            _finish_paper(answer, kernel_size)
    else:
        backend.answer_maps(answers, kernel_size, constant_window_nan=compat == "official")
    return [(answer.maps, answer.relevance, answer.scale, answer.flat) for answer in answers], flag


def _finish_paper(answer: DeviceAnswer, kernel_size: int) -> None:
    positions = answer.maps.shape[1]
    maps, text = answer.scores[:, :positions], answer.scores[answer.target_rows, positions:]
    beyond = torch.arange(text.shape[1], device=text.device)[None] >= answer.lengths[:, None]
    same = answer.context_names[None] == answer.target_names[:, None]
    relevance = text.masked_fill(beyond | same | (answer.target_names < 0)[:, None], 0.0)
    found = finish_paper(
        maps[answer.target_rows],
        maps[answer.context_rows],
        relevance,
        text,
        answer.text_lengths,
        answer.sizes,
        kernel_size,
    )
    if answer.maps.dtype == torch.uint8:
        found = ((found[0] * 255).floor().to(torch.uint8), *found[1:])
    for place, value in zip((answer.maps, answer.relevance, answer.scale, answer.flat), found, strict=True):
        place.copy_(value)
