"""The whole image first, then a canvas of tiles as one raster with newline embeddings: LLaVA-NeXT and its kin."""

from __future__ import annotations

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput

__all__ = ["granite4_grids", "llava_next_grids", "llava_onevision_grids"]


def llava_next_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of LLaVA-NeXT."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def granite4_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Granite 4 Vision."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def llava_onevision_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of LLaVA-OneVision."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")
