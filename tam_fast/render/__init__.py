"""Pictures of maps. Knows rasters, images and captions, nothing of explanations or models."""

from tam_fast.render.cells import Lattice, cells
from tam_fast.render.colormaps import BUILT_IN, colormap
from tam_fast.render.overlay import Raster, overlay
from tam_fast.render.sheet import Cell, sheet

__all__ = ["BUILT_IN", "Cell", "Lattice", "Raster", "cells", "colormap", "overlay", "sheet"]
