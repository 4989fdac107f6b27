"""Maps of the same words side by side, one row a word and one column each that is compared: :func:`table`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tam_fast.render.colormaps import colormap
from tam_fast.render.fonts import LIGHT, Colour, flow, font_for, line_height, shorten, visible
from tam_fast.render.overlay import Raster, overlay

__all__ = ["Entry", "table"]

_PAGE: Colour = (20, 20, 24)
_FAINT: Colour = (150, 150, 158)
_MISSING: Colour = (34, 34, 39)
_MARGIN = 24
_GAP = 12
_TITLE_LINES = 3
_LEAST_ROWS = 4  # of a block
_ABSENT = "not said"
_WIDEST = 280  # pixels of a picture


@dataclass(frozen=True, eq=False)
class Entry:
    """A word in one of the columns.

    Attributes
    ----------
    image : PIL.Image.Image
    rasters : sequence of Raster
        Its map.
    strength : float
        Its visual strength in [0, 1].
    label : str
        More about it, such as the time of a frame.
    """

    image: Image.Image
    rasters: Sequence[Raster]
    strength: float
    label: str = ""


def table(
    titles: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Entry | None]]],
    *,
    head: str = "",
    cmap: str = "inferno",
    opacity: float | None = None,
    width: int = 1600,
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Draw a table of maps, all on one scale of colours.

    Parameters
    ----------
    titles : sequence of str
        The columns'.
    rows : sequence of (str, sequence of Entry or None)
        A word, and what each column has of it.
    head : str
        A line above.
    cmap, opacity
        See :func:`tam_fast.render.overlay`.
    width : int
        Pixels at most, at least 160 a column; the height follows.
    font : path, optional
        A TrueType font.

    Returns
    -------
    PIL.Image.Image
        RGB.

    Raises
    ------
    ValueError
        If there is no column, a row has not one entry each, or the width, the opacity or the colour map are out of
        range.
    OSError
        If `font` cannot be read.
    """
    if not titles:
        raise ValueError("titles: expected at least one, got none")
    if width < 160 * len(titles) + 80:
        raise ValueError(f"width: expected at least {160 * len(titles) + 80} for {len(titles)} columns, got {width}")
    for word, entries in rows:
        if len(entries) != len(titles):
            raise ValueError(f"rows: expected {len(titles)} entries for {word!r}, got {len(entries)}")
    colours = colormap(cmap)
    labels = [entry.label for _, entries in rows for entry in entries if entry is not None]
    make_font, clean = font_for("".join([head, *titles, *labels, *(word for word, _ in rows)]), font)
    body, small = make_font(18), make_font(14)
    line, small_line = line_height(body), line_height(small)
    words = [clean(visible(word)) for word, _ in rows]
    first = min(220, width // 5, max([60, *(round(body.getlength(word)) + 8 for word in words)]))
    cell = min((width - 2 * _MARGIN - first) // len(titles) - _GAP, _WIDEST)
    images = [entry.image for _, entries in rows for entry in entries if entry is not None]
    high = max((max(1, round(min(image.height / image.width, 1.5) * cell)) for image in images), default=0)
    named = [flow([(clean(title), None)], body, cell)[:_TITLE_LINES] for title in titles]
    title_height = max(len(lines) for lines in named) * round(line * 1.25) + _GAP
    step = high + small_line + 8 + _GAP
    # Long tables are broken into blocks side by side, as far as the width has room for them.
    block = first + len(titles) * (cell + _GAP) - _GAP
    blocks = max(1, min((width - 2 * _MARGIN + 3 * _GAP) // (block + 3 * _GAP), math.ceil(len(rows) / _LEAST_ROWS)))
    deep = math.ceil(len(rows) / blocks)
    top = _MARGIN + (round(small_line * 1.8) if head else 0)
    foot = top + title_height + deep * step
    size = 2 * _MARGIN + blocks * (block + 3 * _GAP) - 3 * _GAP, foot + round(small_line * 1.2) + _MARGIN
    page = Image.new("RGB", size, _PAGE)
    draw = ImageDraw.Draw(page)
    if head:
        draw.text((_MARGIN, _MARGIN), shorten(clean(head), small, size[0] - 2 * _MARGIN), font=small, fill=_FAINT)
    for number in range(blocks):
        left = _MARGIN + number * (block + 3 * _GAP)
        lefts = [left + first + column * (cell + _GAP) for column in range(len(titles))]
        for x, lines in zip(lefts, named, strict=True):
            for place, pieces in enumerate(lines):
                text = "".join(piece for piece, _ in pieces)
                draw.text((x, top + place * round(line * 1.25)), text, font=body, fill=LIGHT)
        for place, (word, (_, entries)) in enumerate(zip(words, rows, strict=True)):
            if place // deep != number:
                continue
            y = top + title_height + place % deep * step
            shown = shorten(word, body, first - 8)
            draw.text((left, y + (high - line) // 2), shown, font=body, fill=LIGHT)
            for x, entry in zip(lefts, entries, strict=True):
                if entry is None:
                    draw.rectangle((x, y, x + cell - 1, y + high - 1), fill=_MISSING)
                    middle = x + (cell - small.getlength(_ABSENT)) / 2, y + (high - small_line) / 2
                    draw.text(middle, _ABSENT, font=small, fill=_FAINT)
                    continue
                factor = min(cell / entry.image.width, high / entry.image.height)
                extent = max(1, round(entry.image.width * factor)), max(1, round(entry.image.height * factor))
                drawn = overlay(entry.image, entry.rasters, cmap=cmap, opacity=opacity, size=extent)
                page.paste(drawn, (x + (cell - drawn.width) // 2, y + (high - drawn.height) // 2))
                told = "   ".join([f"{entry.strength:.2f}", *([clean(entry.label)] if entry.label else [])])
                draw.text((x, y + high + 4), shorten(told, small, cell), font=small, fill=_FAINT)
    y = foot
    bar = Image.fromarray(np.ascontiguousarray(np.broadcast_to(colours[None], (10, 256, 3))))
    low, high_end = "activation 0 ", " 1, in all columns"
    draw.text((_MARGIN, y), low, font=small, fill=_FAINT)
    x = _MARGIN + round(small.getlength(low))
    page.paste(bar, (x, y + max(0, (small_line - 10) // 2 + 1)))
    draw.text((x + 256, y), high_end, font=small, fill=_FAINT)
    return page
