"""Pictures of maps. Knows rasters, images and captions, nothing of explanations or models."""

from tam_fast.render.cells import Lattice, cells
from tam_fast.render.colormaps import BUILT_IN, colormap
from tam_fast.render.film import Shot, film
from tam_fast.render.overlay import Raster, levels_on, overlay
from tam_fast.render.plate import Passage, Phrase, plate
from tam_fast.render.sheet import Cell, sheet
from tam_fast.render.video import encode_video, paces

__all__ = [
    "BUILT_IN",
    "Cell",
    "Lattice",
    "Passage",
    "Phrase",
    "Raster",
    "Shot",
    "cells",
    "colormap",
    "encode_video",
    "film",
    "levels_on",
    "overlay",
    "paces",
    "plate",
    "sheet",
]
