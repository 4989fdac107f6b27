"""Families looked up by model type, and those that users add: :func:`family_of`, :func:`register`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.families import FAMILIES, IMPOSSIBLE, NO_VISUAL_STREAM
from tam_fast.models.family import Family
from tam_fast.models.layouts import generic
from tam_fast.models.layouts.source import VisualInput, token_id

__all__ = ["family_of", "register", "registered"]

_registered: dict[str, Family] = {}


def register(
    model_type: str,
    layout: Any,
    *,
    title: str | None = None,
    chat_template: str | None = None,
    answer_prefix: str = "",
    videos: bool = False,
) -> None:
    """Say how a model type lays out its visual tokens, for models of remote code and of one's own.

    ::

        def layout(source):
            side = 16
            runs = visual_runs(source, "image", [side * side] * len(source.sizes()), "16 x 16")
            return [Grid(run, side, side, source=index) for index, run in enumerate(runs)]

        tam_fast.models.register("my_vlm", layout)

    Parameters
    ----------
    model_type : str
        ``config.model_type`` of the models.
    layout : callable
        Takes a :class:`tam_fast.models.layouts.VisualInput` and returns a sequence of :class:`tam_fast.Grid`, in the
        order in which they stand in the sequence.
    title : str, optional
        A name for people; the model type if not given.
    chat_template : str, optional
        A Jinja template, for processors that come without one.
    answer_prefix : str
        What stands between the prompt and the first word of an answer.
    videos : bool
        Whether `layout` knows videos.

    Raises
    ------
    TypeError
        If `model_type` is no string or `layout` cannot be called.
    ValueError
        If the model type has a verified layout already.
    """
    if not isinstance(model_type, str) or not model_type:
        raise TypeError(f"model_type: expected a name, got {model_type!r}")
    if not callable(layout):
        raise TypeError(f"layout: expected a function of a VisualInput, got {type(layout).__name__}")
    if model_type in FAMILIES:
        raise ValueError(f"model_type: expected one without a verified layout, got {model_type!r}")

    @functools.wraps(layout, updated=())
    def grids(source: VisualInput) -> Sequence[Grid]:
        found = layout(source)
        if not isinstance(found, Sequence) or not all(isinstance(grid, Grid) for grid in found):
            raise TypeError(f"layout: expected a sequence of Grid from that of {model_type!r}, got {found!r:.80}")
        return found

    _registered[model_type] = Family(
        title or model_type, "registered", grids, "", videos, chat_template=chat_template, answer_prefix=answer_prefix
    )


def registered() -> Mapping[str, Family]:
    """Return what :func:`register` was given, by model type."""
    return MappingProxyType(_registered)


def family_of(model: Any) -> Family:
    """Look up the family of a model, or of a configuration, by its ``model_type``.

    Parameters
    ----------
    model : transformers.PreTrainedModel or PreTrainedConfig

    Returns
    -------
    Family
        The generic one (which warns when it builds a layout) where the model type is not known.

    Raises
    ------
    ModelNotSupportedError
        If models of this type cannot have token activation maps, or mark no visual positions; says why.
    TypeError
        If `model` is no transformers model or configuration.
    """
    config = getattr(model, "config", model)
    model_type = getattr(config, "model_type", None)
    if not isinstance(model_type, str):
        raise TypeError(f"model: expected a transformers model with config.model_type, got {type(model).__name__}")
    found = _registered.get(model_type) or FAMILIES.get(model_type)
    if found is not None:
        return found
    prefix = f"model: token activation maps of model type {model_type!r} ({type(model).__name__})"
    if model_type in IMPOSSIBLE:
        raise ModelNotSupportedError(f"{prefix} are not possible: {IMPOSSIBLE[model_type]}")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelNotSupportedError(f"{prefix} are not possible: {NO_VISUAL_STREAM}")
    if token_id(config, "image") is None:
        raise ModelNotSupportedError(
            f"{prefix} need to know where the visual tokens are: expected config.image_token_id, got none; is it a "
            "model of images and text?"
        )
    return Family(model_type, "generic", generic.generic_grids)
