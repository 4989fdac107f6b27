"""Tiles that tokens of the prompt tell apart, the whole image last: Idefics 3, SmolVLM, LFM2-VL, Llama 4, Step 3."""

from __future__ import annotations

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput

__all__ = ["idefics3_grids", "lfm2_grids", "llama4_grids", "step3_grids", "unlimited_ocr_grids"]


def idefics3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Idefics 3, SmolVLM."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def lfm2_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of LFM2-VL."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def llama4_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Llama 4."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def step3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Step 3.7."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def unlimited_ocr_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Unlimited-OCR."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")
