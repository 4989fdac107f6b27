"""Builders of grids: from what a processor made of the images to rasters of sequence positions.

A builder takes a :class:`VisualInput` and returns the grids in the order in which they stand in the sequence. It checks
that grid cells and visual tokens are as many; where they are not, nothing is guessed. One module a group of layouts.
"""

from tam_fast.models.layouts.fixed import crop_box, fixed_grids
from tam_fast.models.layouts.native import native_grids
from tam_fast.models.layouts.source import GridBuilder, VisualInput, visual_mask

__all__ = ["GridBuilder", "VisualInput", "crop_box", "fixed_grids", "native_grids", "visual_mask"]
