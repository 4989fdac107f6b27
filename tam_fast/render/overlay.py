"""Activation maps drawn on an image: :func:`overlay`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tam_fast.render.colormaps import colormap

__all__ = ["Raster", "levels_on", "overlay"]

# Opacity grows as this power of the activation: below 1, so that half an activation can be told from the photograph.
_GAMMA = 0.7


@dataclass(frozen=True, eq=False)
class Raster:
    """One grid's map and where it lies on its image.

    Attributes
    ----------
    values : (H, W) float32
        Activations in [0, 1]. NaN is drawn as 0, what is outside as 0 or 1.
    box : tuple of 4 floats
        The part of the image it covers, x0, y0, x1, y1 as fractions of width and height; may reach beyond 0..1.
    """

    values: npt.NDArray[np.float32]
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


def overlay(
    image: Image.Image,
    rasters: Sequence[Raster],
    *,
    cmap: str = "inferno",
    opacity: float | None = None,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """Draw activation maps on an image.

    Each map is enlarged to its box (bicubic; bilinear for ``"jet"``, as the paper's program does); where boxes overlap,
    the larger value counts.

    Parameters
    ----------
    image : PIL.Image.Image
    rasters : sequence of Raster
    cmap : str
        See :func:`tam_fast.render.colormap`. With ``"jet"`` the colours cover every cell at one opacity; with all
        others the opacity grows with the activation, so that what is not active stays as it was.
    opacity : float, optional
        In [0, 1]: at activation 1 (0.85 if not given), with ``"jet"`` at every activation (0.5 if not given).
    size : (int, int), optional
        Width and height of the result; the image's if not given.

    Returns
    -------
    PIL.Image.Image
        RGB. Pixels that no raster covers, and all pixels if every raster is 0, are the image's own.

    Raises
    ------
    ValueError
        If the colour map is unknown, the opacity is outside [0, 1] or a side of `size` is below 1.
    """
    flat_opacity = cmap == "jet"
    table = colormap(cmap)
    if opacity is None:
        opacity = 0.5 if flat_opacity else 0.85
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity: expected a number from 0 to 1, got {opacity}")
    if size is not None and not (len(size) == 2 and min(size) >= 1):
        raise ValueError(f"size: expected (width, height), both at least 1, got {size!r}")
    picture = image.convert("RGB")
    if size is not None and (size[0], size[1]) != picture.size:
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    level, covered = levels_on(picture.size, rasters, smooth=not flat_opacity)
    if not level.any():
        return picture if picture is not image else image.copy()
    colours = Image.fromarray(np.ascontiguousarray(table[level]))
    strength = np.where(covered, np.uint8(255), np.uint8(0)) if flat_opacity else level
    mask = Image.fromarray(strength).point([round(255 * opacity * (x / 255) ** _GAMMA) for x in range(256)])
    picture.paste(colours, (0, 0), mask)
    return picture


def levels_on(
    size: tuple[int, int], rasters: Sequence[Raster], *, smooth: bool = True
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Bring activation maps to the pixels of an image, as :func:`overlay` draws them.

    Parameters
    ----------
    size : (int, int)
        The image's width and height in pixels.
    rasters : sequence of Raster
    smooth : bool
        Enlarge bicubically; else bilinearly.

    Returns
    -------
    levels : (height, width) uint8
        The activation of each pixel in 255ths. 0 where no raster is.
    covered : (height, width) bool
        Which pixels a raster covers.
    """
    resample = Image.Resampling.BICUBIC if smooth else Image.Resampling.BILINEAR
    width, height = size
    levels = np.zeros((height, width), dtype=np.uint8)
    covered = np.zeros((height, width), dtype=np.bool_)
    for raster in rasters:
        placed = _enlarge(raster, size, resample)
        if placed is None:
            continue
        (left, top, right, bottom), values = placed
        part = levels[top:bottom, left:right]
        np.maximum(part, values, out=part)
        covered[top:bottom, left:right] = True
    return levels, covered


def _enlarge(
    raster: Raster, size: tuple[int, int], resample: Image.Resampling
) -> tuple[tuple[int, int, int, int], npt.NDArray[np.uint8]] | None:
    """Enlarge a map to the pixels of its box that lie on the picture; None if there are none.

    Returns the pixels (left, top, right, bottom) and their levels 0..255, (bottom - top, right - left) uint8.
    """
    values = np.nan_to_num(np.asarray(raster.values, dtype=np.float32), nan=0.0).clip(0.0, 1.0)
    spans = []
    for first, last, pixels, cells in (
        (raster.box[0], raster.box[2], size[0], values.shape[1]),
        (raster.box[1], raster.box[3], size[1], values.shape[0]),
    ):
        start, stop = max(0, math.floor(first * pixels + 0.5)), min(pixels, math.floor(last * pixels + 0.5))
        if start >= stop:
            return None
        # Where these pixels' outer edges lie in the map, in cells; rounding may put them a little outside of it.
        edges = [(edge / pixels - first) / (last - first) * cells for edge in (start, stop)]
        spans.append((start, stop, max(0.0, edges[0]), min(float(cells), edges[1])))
    (left, right, x0, x1), (top, bottom, y0, y1) = spans
    placed = Image.fromarray(np.ascontiguousarray(values)).resize(
        (right - left, bottom - top), resample, box=(x0, y0, x1, y1)
    )
    # Bicubic overshoots: cut before the conversion, which would wrap around.
    levels = np.asarray(placed).clip(0.0, 1.0) * 255.0 + 0.5
    return (left, top, right, bottom), levels.astype(np.uint8)
