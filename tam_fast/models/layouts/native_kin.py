"""Grids of models that keep an image's own size, but say it in other ways: Video-LLaMA 3, Nemotron-H, HunYuan-VL."""

from __future__ import annotations

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput

__all__ = ["hunyuan_grids", "nemotron_grids", "video_llama3_grids"]


def video_llama3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Video-LLaMA 3."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def nemotron_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Nemotron-H Omni."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def hunyuan_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of HunYuan-VL."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")
