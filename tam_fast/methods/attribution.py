"""Raw maps of any method: :func:`attribute`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tam_fast.maps.layout import Layout
from tam_fast.methods.registry import METHODS, Method, method_of
from tam_fast.methods.task import Task
from tam_fast.models.errors import ModelNotSupportedError

__all__ = ["AttributionMaps", "attribute", "available", "check_method", "checked_options", "raw_maps"]


@dataclass(eq=False)
class AttributionMaps:
    """What a method says of one answer.

    Attributes
    ----------
    maps : (T, N) float32
        Raw, as the method gives them: not scaled to [0, 1], signed where the method is. Over the grids' positions in
        order, on the CPU.
    method : str
    options : dict
        All of the method's options, defaults included.
    layout : Layout
    """

    maps: Tensor
    method: str
    options: dict[str, Any]
    layout: Layout

    def __len__(self) -> int:
        """Return the number of tokens, T."""
        return int(self.maps.shape[0])

    def grid(self, t: int, g: int = 0) -> Tensor:
        """Return the map of target `t` on grid `g`: a (H, W) float32 view.

        Raises
        ------
        IndexError
            If there is no such target or grid.
        """
        grids = self.layout.grids
        if not -len(self) <= t < len(self):
            raise IndexError(f"t: expected a target from 0 to {len(self) - 1}, got {t}")
        if not -len(grids) <= g < len(grids):
            raise IndexError(f"g: expected a grid from 0 to {len(grids) - 1}, got {g}")
        g %= len(grids)
        begin = self.layout.offsets[g]
        return self.maps[t, begin : begin + len(grids[g])].view(grids[g].shape)


def attribute(
    model: Any, inputs: Mapping[str, Any], layout: Layout, token_ids: Any, method: str = "cam", **options: Any
) -> AttributionMaps:
    """Explain the tokens of a teacher-forced answer by one of the methods.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Of images and text, or a bare text decoder with its classifier; in evaluation mode. Its weights, hooks,
        attention implementation and gradients are left as they were, also after an error.
    inputs : mapping
        For the model's forward over prompt and answer, without the answer's last token: ``input_ids`` (1, S) and what
        goes with the images, or ``inputs_embeds`` (1, S, C) of a text decoder.
    layout : Layout
        See :func:`tam_fast.layout_of`.
    token_ids : int Tensor, ndarray or list (S + 1,)
        Prompt and answer.
    method : str
        A name of :data:`METHODS`.
    **options
        Of the method: see ``METHODS[name].options``.

    Returns
    -------
    AttributionMaps

    Raises
    ------
    ValueError, TypeError
        If the method, one of its options or an argument is not what is expected.
    ModelNotSupportedError
        If the model cannot be explained so, before it is run; names method, module and reason.
    """
    chosen = method_of(method)
    given = checked_options(chosen, options)
    task = Task(model, inputs, layout, token_ids)
    check_method(chosen, task.model, given)
    return AttributionMaps(raw_maps(task, chosen, given), method, given, layout)


def raw_maps(task: Task, method: Method, options: Mapping[str, Any]) -> Tensor:
    """Make the raw maps (T, N) float32, on the CPU, of a task by a method with all of its options."""
    expected = (len(task), task.layout.visual_positions.numel())
    if not expected[1]:
        return torch.zeros(expected)
    needs_graph = "gradients" in method.needs
    with torch.inference_mode(False), torch.set_grad_enabled(needs_graph):
        maps = method.maps(task, **options)
    if tuple(maps.shape) != expected:
        raise ValueError(f"method: expected maps (T, N) = {expected} from {method.name!r}, got {tuple(maps.shape)}")
    return maps.detach().to("cpu", torch.float32)


def checked_options(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the options of a method by their defaults; ValueError names one that it does not have."""
    for name in options:
        if name not in method.options:
            known = ", ".join(method.options) or "none"
            raise ValueError(f"{name}: expected an option of {method.name!r}, which are: {known}")
    return {**method.options, **options}


def check_method(method: Method, model: Any, options: Mapping[str, Any] | None = None) -> None:
    """Raise ModelNotSupportedError if a model cannot be explained by a method; nothing is run."""
    if method.check is not None:
        method.check(model, **({**method.options, **(options or {})}))


def available(model: Any) -> dict[str, str]:
    """Say of every method whether a model can be explained by it.

    Returns
    -------
    dict of str to str
        By name; '' where it can, else the reason.
    """
    return {name: _why_not(method, model) for name, method in METHODS.items()}


def _why_not(method: Method, model: Any) -> str:
    try:
        check_method(method, model)
    except ModelNotSupportedError as error:
        return str(error)
    return ""
