"""All tokens of an answer in one picture: :func:`sheet`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tam_fast.render.colormaps import colormap
from tam_fast.render.fonts import LIGHT, Colour, Font, flow, font_for, ink_on, line_height, shorten, visible
from tam_fast.render.overlay import Raster, overlay

__all__ = ["Cell", "sheet"]

# A dark page: activation 0 is near the page's own colour in inferno and viridis, and 1 is the brightest thing on it.
_PAGE: Colour = (20, 20, 24)
_FAINT: Colour = (150, 150, 158)
_TRACK: Colour = (52, 52, 58)
_MARGIN = 28
_GAP = 14


@dataclass(frozen=True, eq=False)
class Cell:
    """One token of a sheet.

    Attributes
    ----------
    caption : str
        The token.
    strength : float
        Its visual strength in [0, 1].
    rasters : list of lists of Raster
        Its maps on each of the images.
    """

    caption: str
    strength: float
    rasters: Sequence[Sequence[Raster]]


def sheet(
    images: Sequence[Image.Image],
    cells: Sequence[Cell],
    sentence: Sequence[tuple[str, float | None]],
    *,
    prompt: str = "",
    model: str = "",
    cmap: str = "inferno",
    opacity: float | None = None,
    width: int = 1600,
    columns: int | None = None,
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Draw one picture with every token's overlay.

    Parameters
    ----------
    images : sequence of PIL images
        The sources; each cell shows all of them side by side.
    cells : sequence of Cell
        One a token, in order. None at all gives the head alone.
    sentence : sequence of (str, float or None)
        The answer in pieces, each with its strength, or None for no ground.
    prompt, model : str
        For the head.
    cmap, opacity
        See :func:`tam_fast.render.overlay`.
    width : int
        Pixels, at least 320; the height follows.
    columns : int, optional
        Cells in a row, 1 to ``width // 40``; chosen so that the picture is not far from square if not given.
    font : path, optional
        A TrueType font; see :meth:`tam_fast.Explanation.sheet`.

    Returns
    -------
    PIL.Image.Image
        RGB.

    Raises
    ------
    ValueError
        If there is no image, or the width, the columns, the opacity or the colour map are out of range.
    OSError
        If `font` cannot be read.
    """
    if not images:
        raise ValueError("images: expected at least one, got none")
    if width < 320:
        raise ValueError(f"width: expected at least 320 pixels, got {width}")
    if columns is not None and not 1 <= columns <= width // 40:
        raise ValueError(f"columns: expected 1 to {width // 40} for width {width}, got {columns}")
    captions = [visible(cell.caption) for cell in cells]
    texts = "".join([prompt, model, *captions, *(piece for piece, _ in sentence)])
    make_font, clean = font_for(texts, font)
    table = colormap(cmap)

    def ground(strength: float) -> Colour:
        level = round(255 * min(max(strength, 0.0), 1.0))
        red, green, blue = (round(p + (int(c) - p) * level / 255) for p, c in zip(_PAGE, table[level], strict=True))
        return red, green, blue

    head = _head(
        images,
        [(clean(piece), None if strength is None else ground(strength)) for piece, strength in sentence],
        clean(prompt),
        clean(model),
        make_font,
        np.asarray(table),
        width,
    )
    inner = width - 2 * _MARGIN
    columns = columns or _columns(len(cells), images, inner)
    cell_width = (inner - (columns - 1) * _GAP) // columns
    thumbnails = _thumbnails(images, cell_width)
    picture_height = max(thumbnail.height for thumbnail in thumbnails)
    caption_font = make_font(max(10, min(20, cell_width // 9)))
    line = line_height(caption_font)
    cell_height = picture_height + 6 + 4 + line + _GAP
    rows = math.ceil(len(cells) / columns)
    page = Image.new("RGB", (width, head.height + rows * cell_height + _MARGIN), _PAGE)
    page.paste(head, (0, 0))
    draw = ImageDraw.Draw(page)
    for index, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
        left = _MARGIN + index % columns * (cell_width + _GAP)
        top = head.height + index // columns * cell_height
        x = left + (cell_width - sum(thumbnail.width + 2 for thumbnail in thumbnails) + 2) // 2
        for thumbnail, rasters in zip(thumbnails, cell.rasters, strict=True):
            drawn = overlay(thumbnail, rasters, cmap=cmap, opacity=opacity)
            page.paste(drawn, (x, top + (picture_height - drawn.height) // 2))
            x += drawn.width + 2
        right = left + cell_width - 1
        y = top + picture_height + 4
        draw.rectangle((left, y, right, y + 3), fill=_TRACK)
        if cell.strength > 0:
            extent = round((right - left) * min(cell.strength, 1.0))
            draw.rectangle((left, y, left + extent, y + 3), fill=tuple(int(c) for c in table[_level(cell.strength)]))
        number = f"{cell.strength:.2f}"
        number_width = math.ceil(caption_font.getlength(number))
        draw.text((right - number_width, y + 6), number, font=caption_font, fill=_FAINT)
        room = right - left - number_width - 6
        draw.text((left, y + 6), shorten(clean(caption), caption_font, room), font=caption_font, fill=LIGHT)
    return page


def _level(strength: float) -> int:
    return round(255 * min(max(strength, 0.0), 1.0))


def _head(
    images: Sequence[Image.Image],
    sentence: Sequence[tuple[str, Colour | None]],
    prompt: str,
    model: str,
    make_font: Callable[[int], Font],
    table: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    width: int,
) -> Image.Image:
    """Draw the images, the prompt, the answer and the colour scale, over the whole width."""
    inner = width - 2 * _MARGIN
    room = int(inner * 0.45)
    height = min(300, width // 4)
    # Together no wider than `room`; nothing is enlarged.
    natural = sum(image.width / image.height for image in images) * height
    height = max(8, round(height * min(1.0, room / natural)))
    pictures = [_fit(image, room, height) for image in images]
    text_left = _MARGIN
    strip = Image.new("RGB", (sum(p.width + 6 for p in pictures) - 6, max(p.height for p in pictures)), _PAGE)
    for picture in pictures:
        strip.paste(picture, (text_left - _MARGIN, 0))
        text_left += picture.width + 6
    text_left = _MARGIN + strip.width + _MARGIN
    right = width - _MARGIN

    length = sum(len(piece) for piece, _ in sentence)
    scale = 1.0 if width >= 1000 else 0.8
    body = make_font(round((26 if length < 240 else 21 if length < 900 else 16) * scale))
    small = make_font(round(16 * scale))
    # Drawn on a strip that is tall enough, then cut: the text's height is known when it is laid out.
    lines = flow(sentence, body, right - text_left)
    step = round(line_height(body) * 1.35)
    small_step = round(line_height(small) * 1.4)
    text_height = 2 * small_step + 10 + len(lines) * step + 16 + small_step
    total = _MARGIN + max(strip.height, text_height) + _MARGIN
    head = Image.new("RGB", (width, total), _PAGE)
    head.paste(strip, (_MARGIN, _MARGIN))
    draw = ImageDraw.Draw(head)
    y = _MARGIN
    draw.text((text_left, y), shorten(model, small, right - text_left), font=small, fill=_FAINT)
    y += small_step
    draw.text((text_left, y), shorten(visible(prompt), small, right - text_left), font=small, fill=LIGHT)
    y += small_step + 10
    for line in lines:
        x = float(text_left)
        for piece, colour in line:
            extent = body.getlength(piece)
            if colour is not None:
                space = body.getlength(piece[: len(piece) - len(piece.lstrip())])
                draw.rectangle((x + space, y - 2, x + extent, y + line_height(body) + 3), fill=colour)
            draw.text((x, y), piece, font=body, fill=ink_on(colour or _PAGE))
            x += extent
        y += step
    y += 16
    bar = Image.fromarray(np.ascontiguousarray(np.broadcast_to(table[None], (12, 256, 3))))
    bar_width = max(60, min(256, (right - text_left) // 3))
    low, high = "activation 0 ", " 1"
    draw.text((text_left, y), low, font=small, fill=_FAINT)
    bar_left = text_left + math.ceil(small.getlength(low))
    head.paste(bar.resize((bar_width, 12)), (bar_left, y + max(0, (line_height(small) - 12) // 2 + 1)))
    draw.text((bar_left + bar_width, y), high, font=small, fill=_FAINT)
    return head


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image to fit into width x height, smaller or larger, at least one pixel a side; RGB."""
    factor = min(width / image.width, height / image.height)
    size = max(1, min(width, round(image.width * factor))), max(1, min(height, round(image.height * factor)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _thumbnails(images: Sequence[Image.Image], width: int) -> list[Image.Image]:
    """Scale the images to one height, side by side in `width`; no higher than 1.5 times that."""
    usable = max(len(images) * 4, width - 2 * (len(images) - 1))
    height = usable / sum(image.width / image.height for image in images)
    height = min(height, usable * 1.5)
    return [_fit(image, max(1, round(image.width / image.height * height)), max(1, round(height))) for image in images]


def _columns(count: int, images: Sequence[Image.Image], width: int) -> int:
    """Choose how many cells stand in a row: a nearly square block, cells 120 to 460 pixels wide."""
    aspect = min(1.5, 1.0 / sum(image.width / image.height for image in images)) + 0.15
    most = max(1, (width + _GAP) // (min(120 * len(images), 460) + _GAP))
    columns = min(round(math.sqrt(max(count, 1) * aspect)), most)
    columns = max(1, math.ceil((width + _GAP) / (460 + _GAP)), columns)
    # Of the neighbours, the one that leaves the fewest empty places in the last row.
    return min((columns, columns + 1), key=lambda choice: (-count % choice, choice)) if columns < most else columns
