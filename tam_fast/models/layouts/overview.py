"""The whole image first, then its tiles: Ovis 2, MiniCPM-V."""

from __future__ import annotations

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput

__all__ = ["minicpm_grids", "ovis2_grids", "perception_lm_grids"]


def ovis2_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Ovis 2."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def minicpm_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of MiniCPM-V."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def perception_lm_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Perception LM."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")
