"""Grids that keep an image"s proportions, in one run of tokens: Gemma 4, LightOn OCR, Fuyu, Emu 3."""

from __future__ import annotations

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput

__all__ = ["emu3_grids", "fuyu_grids", "gemma4_grids", "lighton_grids"]


def gemma4_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Gemma 4."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def lighton_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of LightOn OCR."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def fuyu_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Fuyu."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def emu3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Emu 3."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")
