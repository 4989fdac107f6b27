"""Tiles in row-major order, then the whole image, laid out by the source"s size: InternVL, Aya, Cohere 2."""

from __future__ import annotations

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput

__all__ = ["aya_grids", "cohere2_grids", "internvl_grids"]


def internvl_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of InternVL, Qianfan-OCR."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def aya_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Aya Vision."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def cohere2_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Cohere 2 Vision."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")
