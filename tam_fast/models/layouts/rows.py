"""Grids whose rows end in a token of their own: Pixtral, Mistral 3, Molmo 2."""

from __future__ import annotations

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput

__all__ = ["molmo2_grids", "pixtral_grids"]


def pixtral_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Pixtral, Mistral 3."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def molmo2_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Molmo 2."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")
