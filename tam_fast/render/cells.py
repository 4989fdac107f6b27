"""The cells of rasters drawn on an image, with their numbers: :func:`cells`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Lattice", "cells"]

_Colour = tuple[int, int, int]
_PAGE: _Colour = (24, 24, 28)
_INK: _Colour = (235, 235, 235)
_WHITE: _Colour = (255, 255, 255)
_BLACK: _Colour = (0, 0, 0)
_BEYOND: _Colour = (70, 70, 76)  # where a raster reaches beyond the picture
# Of neighbouring rasters, so that they can be told apart.
_LINES: Sequence[_Colour] = ((255, 210, 60), (90, 200, 255), (255, 120, 160), (140, 230, 120))
_CELL = 34  # pixels a cell's side has where there is room
_NUMBERED = 13  # at least so many for a number in it
_LONGEST = 3600  # pixels of a panel's longer side
_MARGIN = 16


@dataclass(frozen=True)
class Lattice:
    """One raster on an image.

    Attributes
    ----------
    height, width : int
        Cells down and across.
    box : tuple of 4 floats
        Part of the image: x0, y0, x1, y1 as fractions of its width and height.
    first : int
        The number of its first cell; the others follow row by row.
    name : str
        What it is called in the picture.
    """

    height: int
    width: int
    box: tuple[float, float, float, float]
    first: int
    name: str


def cells(image: Image.Image, panels: Sequence[tuple[str, Sequence[Lattice]]]) -> Image.Image:
    """Draw rasters on an image, each panel on a copy of its own, one below the other.

    Parameters
    ----------
    image : PIL.Image.Image
    panels : sequence of (title, lattices)
        What is drawn together. Rasters that lie upon each other (tiles and an overview) belong in two panels.

    Returns
    -------
    PIL.Image.Image
        RGB. Every cell bears its number where it is large enough, else the first of each row does; what a raster covers
        beyond the picture is grey.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    if not panels or not all(lattices for _, lattices in panels):
        raise ValueError("panels: expected at least one raster in each panel, got none")
    drawn = [_panel(image.convert("RGB"), title, lattices) for title, lattices in panels]
    width = max(picture.width for picture in drawn) + 2 * _MARGIN
    height = sum(picture.height + _MARGIN for picture in drawn) + _MARGIN
    page = Image.new("RGB", (width, height), _PAGE)
    place = _MARGIN
    for picture in drawn:
        page.paste(picture, (_MARGIN, place))
        place += picture.height + _MARGIN
    return page


def _panel(image: Image.Image, title: str, lattices: Sequence[Lattice]) -> Image.Image:
    boxes = [lattice.box for lattice in lattices]
    left, top = (min(0.0, *(box[axis] for box in boxes)) for axis in (0, 1))
    right, bottom = (max(1.0, *(box[2 + axis] for box in boxes)) for axis in (0, 1))
    # The picture's size in pixels at which the smallest cell has its side, as far as the page allows.
    cell = min(
        min((lattice.box[2] - lattice.box[0]) * image.width / lattice.width for lattice in lattices),
        min((lattice.box[3] - lattice.box[1]) * image.height / lattice.height for lattice in lattices),
    )
    longest = max((right - left) * image.width, (bottom - top) * image.height)
    scale = min(max(_CELL / cell, 480 / longest), _LONGEST / longest)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    font = ImageFont.load_default(18)
    head = 28
    width, height = math.ceil((right - left) * size[0]), math.ceil((bottom - top) * size[1])
    page = Image.new("RGB", (max(width + 1, math.ceil(font.getlength(title))), head + height + 1), _PAGE)
    page.paste(_BEYOND, (0, head, width, head + height))
    place = round(-left * size[0]), head + round(-top * size[1])
    page.paste(image.resize(size, Image.Resampling.BICUBIC), place)
    draw = ImageDraw.Draw(page)
    draw.text((0, 0), title, font=font, fill=_INK)
    for index, lattice in enumerate(lattices):
        _draw(draw, lattice, place, size, _LINES[index % len(_LINES)], len(lattices) > 1)
    return page


def _draw(
    draw: ImageDraw.ImageDraw,
    lattice: Lattice,
    place: tuple[int, int],
    size: tuple[int, int],
    colour: _Colour,
    several: bool,
) -> None:
    x0, y0, x1, y1 = lattice.box
    columns = [place[0] + (x0 + (x1 - x0) * k / lattice.width) * size[0] for k in range(lattice.width + 1)]
    rows = [place[1] + (y0 + (y1 - y0) * k / lattice.height) * size[1] for k in range(lattice.height + 1)]
    for x in columns:
        draw.line((x, rows[0], x, rows[-1]), fill=colour)
    for y in rows:
        draw.line((columns[0], y, columns[-1], y), fill=colour)
    if several:
        draw.rectangle((columns[0], rows[0], columns[-1], rows[-1]), outline=colour, width=3)
    wide, high = columns[1] - columns[0], rows[1] - rows[0]
    digits = len(str(lattice.first + lattice.height * lattice.width - 1))
    side = min(high * 0.62, wide * 0.92 / (0.6 * digits))
    every = side >= _NUMBERED * 0.55 and min(wide, high) >= _NUMBERED
    font = ImageFont.load_default(max(8, min(16, int(side)))) if every else ImageFont.load_default(10)
    for row in range(lattice.height):
        for column in range(lattice.width if every else 1):
            number = str(lattice.first + row * lattice.width + column)
            if every:
                x, y, anchor = (columns[column] + columns[column + 1]) / 2, (rows[row] + rows[row + 1]) / 2, "mm"
            elif row % max(1, math.ceil(11 / high)):
                continue
            else:
                x, y, anchor = columns[0] + 2, (rows[row] + rows[row + 1]) / 2, "lm"
            draw.text(
                (x, y), number, font=font, fill=(255, 255, 255), anchor=anchor, stroke_width=1, stroke_fill=_BLACK
            )
    if several:
        label = ImageFont.load_default(13)
        draw.text(
            (columns[0] + 5, rows[0] + 4), lattice.name, font=label, fill=colour, stroke_width=2, stroke_fill=_BLACK
        )
