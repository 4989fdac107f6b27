"""Methods of the logit type: final hidden states and classifier rows alone, without a gradient.

Their score is taken at the visual positions themselves, so that the gradient of a logit is the classifier's row
everywhere: in this reading, which is the paper's, Grad-CAM is CAM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tam_fast.maps.answer import activation_maps
from tam_fast.methods.registry import register
from tam_fast.methods.task import Task

__all__ = ["cam", "final_grad_cam_plusplus", "final_layer_cam", "plusplus_alpha", "states_and_rows", "tam"]

_PAPER = "Token Activation Map (ICCV 2025), Tables 2 and 3"


def states_and_rows(task: Task) -> tuple[Tensor, Tensor]:
    """Return final states at the visual positions (N, C) and classifier rows (T, C), float32."""
    hidden = task.hidden()
    return hidden[task.visual.to(hidden.device)].float(), task.classifier_rows().to(hidden.device).float()


@register("tam", kind="logit", needs=["states"], source=f"Eq. 1 to 7 of {_PAPER}", cost="1 forward")
def tam(task: Task) -> Tensor:
    """Token activation maps, as :func:`tam_fast.activation_maps` makes them: in [0, 1], text and image on one scale."""
    if task.targets.numel() != task.token_ids.numel() - task.layout.answer_start:
        raise ValueError("method: expected the answer's tokens alone for 'tam', got the prompt's: see 'cam+eci+rgf'")
    ids, start = task.token_ids, task.layout.answer_start
    # Only the rows that occur; ids are their numbers.
    read = torch.cat([task.layout.prompt, torch.arange(start, ids.numel())])
    kept, numbers = torch.unique(ids[read], return_inverse=True)
    renumbered = torch.zeros_like(ids)
    renumbered[read] = numbers
    hidden = task.hidden()
    rows = task.classifier_rows(kept)
    return activation_maps(hidden.to(rows.device), rows, renumbered, task.layout).maps


@register("cam", kind="logit", needs=["states"], source=f"Zhou et al. 2016; Eq. 1 of {_PAPER}", cost="1 forward")
def cam(task: Task) -> Tensor:
    """Class activation map: relu(F_V . w_t)."""
    states, rows = states_and_rows(task)
    return (rows @ states.T).relu()


def final_grad_cam_plusplus(task: Task) -> Tensor:
    """Grad-CAM++ on the final states: channel weights N relu(g) g^2 / (2 g^2 + g^3 sum_V F + 1e-6), g = w_t."""
    states, rows = states_and_rows(task)
    weights = states.shape[0] * rows.relu() * plusplus_alpha(rows.double(), states.double().sum(dim=0))
    return (weights.to(states) @ states.T).relu()


def plusplus_alpha(gradients: Tensor, total: Tensor) -> Tensor:
    """Grad-CAM++'s g^2 / (2 g^2 + g^3 sum_V a + 1e-6), 0 where g = 0; `total` is sum_V a (C,).

    In float64: the denominator may come near 0, where both are not of one sign.
    """
    square = gradients.square()
    return torch.where(gradients == 0, 0.0, square / (2 * square + square * gradients * total + 1e-6))


def final_layer_cam(task: Task) -> Tensor:
    """Layer-CAM on the final states: relu(sum_c relu(w_tc) F_Vc)."""
    states, rows = states_and_rows(task)
    return (rows.relu() @ states.T).relu()
