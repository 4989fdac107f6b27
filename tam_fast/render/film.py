"""A video with the map of a word: its frames one by one, and below them where one is: :func:`film`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tam_fast.render.colormaps import colormap
from tam_fast.render.fonts import LIGHT, Colour, font_for, line_height, shorten, visible
from tam_fast.render.overlay import Raster, overlay

__all__ = ["Shot", "film"]

_PAGE: Colour = (20, 20, 24)
_FAINT: Colour = (170, 170, 178)
_SMALLEST = 240  # pixels of a frame's width, for the words below it
_LONGEST = 1920  # pixels of a frame's longer side
_BAND = 8  # pixels of the strip of strengths


@dataclass(frozen=True, eq=False)
class Shot:
    """One frame of a film.

    Attributes
    ----------
    image : PIL.Image.Image
    rasters : sequence of Raster
        The map at its time.
    label : str
        Its time.
    """

    image: Image.Image
    rasters: Sequence[Raster]
    label: str


def film(
    shots: Sequence[Shot],
    caption: str,
    *,
    cmap: str = "inferno",
    opacity: float | None = None,
    font: str | os.PathLike[str] | None = None,
    highest: int = 720,
) -> Iterator[Image.Image]:
    """Draw the frames of a film.

    Parameters
    ----------
    shots : sequence of Shot
        At least one, with images of one size.
    caption : str
        The word.
    cmap, opacity
        See :func:`tam_fast.render.overlay`.
    font : path, optional
        A TrueType font.
    highest : int
        Pixels at most of a frame's shorter side.

    Returns
    -------
    iterator of PIL images
        RGB, of one size with even sides: the frame, the word with the frame's strength and time, and a strip with the
        strengths of all frames on which a mark moves.

    Raises
    ------
    ValueError
        If there is no shot, or the opacity or the colour map are out of range.
    OSError
        If `font` cannot be read.
    """
    if not shots:
        raise ValueError("shots: expected at least one, got none")
    table = colormap(cmap)
    word = visible(caption)
    make_font, clean = font_for("".join([word, *(shot.label for shot in shots)]), font)
    strengths = [_strength(shot.rasters) for shot in shots]
    width, height = shots[0].image.size
    # Small ones are enlarged; very long ones are made smaller, and stand in the middle of the room that words need.
    factor = max(min(1.0, highest / min(width, height)), _SMALLEST / width)
    factor = min(factor, _LONGEST / max(width, height))
    width, height = (max(2, round(side * factor) // 2 * 2) for side in (width, height))
    wide = max(_SMALLEST, width)
    inset = (wide - width) // 2
    small = make_font(max(13, min(22, wide // 24)))
    line = line_height(small)
    foot = (6 + line + 6 + _BAND + 3) // 2 * 2 + 2
    strip = _strip(strengths, table, wide)

    def drawn(number: int, shot: Shot) -> Image.Image:
        page = Image.new("RGB", (wide, height + foot), _PAGE)
        page.paste(overlay(shot.image, shot.rasters, cmap=cmap, opacity=opacity, size=(width, height)), (inset, 0))
        draw = ImageDraw.Draw(page)
        told = f"{strengths[number]:.2f}   {clean(shot.label)}"
        extent = small.getlength(told)
        draw.text((wide - 8 - extent, height + 6), told, font=small, fill=_FAINT)
        draw.text((8, height + 6), shorten(clean(word), small, wide - extent - 28), font=small, fill=LIGHT)
        top = height + 6 + line + 6
        page.paste(strip, (0, top))
        left, right = (round(wide * edge / len(shots)) for edge in (number, number + 1))
        draw.rectangle((left, top - 2, max(left, right - 1), top + _BAND), outline=(255, 255, 255))
        return page

    # Not a generator itself, so that what is wrong is said at once.
    overlay(shots[0].image, [], cmap=cmap, opacity=opacity, size=(1, 1))
    return (drawn(number, shot) for number, shot in enumerate(shots))


def _strength(rasters: Sequence[Raster]) -> float:
    """Return the largest activation of a shot, in [0, 1]."""
    highest = max((float(np.nan_to_num(raster.values, nan=0.0).max()) for raster in rasters), default=0.0)
    return min(max(highest, 0.0), 1.0)


def _strip(
    strengths: Sequence[float], table: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], width: int
) -> Image.Image:
    """Colour the strengths of all shots over time."""
    levels = np.round(255 * np.asarray(strengths)).astype(np.intp)
    places = np.arange(width) * len(strengths) // width
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(table[levels[places]][None], (_BAND, width, 3))))
