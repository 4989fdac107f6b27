"""Grids of models that keep an image"s own size and pad it to whole cells: Kimi K2.5, GLM-5, Inkling."""

from __future__ import annotations

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput

__all__ = ["inkling_grids", "padded_grids"]


def padded_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Kimi K2.5, GLM-5."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def inkling_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Inkling 2."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")
