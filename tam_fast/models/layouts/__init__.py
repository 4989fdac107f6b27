"""Builders of grids: from what a processor made of the images to rasters of sequence positions.

A builder takes a :class:`VisualInput` and returns the grids in the order in which they stand in the sequence. It checks
that grid cells and visual tokens are as many; where they are not, nothing is guessed. One module a group of layouts.

Tiles of one image are a grid each, because each was looked at on its own, and the rank Gaussian filter must not run
across their seams; :meth:`tam_fast.Layout.canvas` joins them. Where a model lays tiles out as one raster of rows
itself, that raster is one grid.
"""

from tam_fast.models.layouts.source import Box, GridBuilder, VisualInput, visual_mask

__all__ = ["Box", "GridBuilder", "VisualInput", "visual_mask"]
