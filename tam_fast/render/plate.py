"""One word in the look of the paper: the image under its map, and the text that speaks for it: :func:`plate`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tam_fast.render.colormaps import colormap
from tam_fast.render.fonts import Colour, Font, flow, font_for, line_height, shorten, visible
from tam_fast.render.overlay import Raster, overlay

__all__ = ["Passage", "Phrase", "plate"]

_PAGE: Colour = (255, 255, 255)
_INK: Colour = (20, 20, 24)
_FAINT: Colour = (116, 116, 124)
_LATER: Colour = (168, 168, 176)
_FRAME: Colour = (200, 16, 46)  # around the explained word
_MARGIN = 24
_GAP = 8
_TALLEST = 1.25  # of the pictures' strip, in widths
_GAMMA = 0.7  # as in overlays


@dataclass(frozen=True)
class Phrase:
    """A stretch of a plate's text.

    Attributes
    ----------
    text : str
    relevance : float, optional
        How strongly it speaks for the word, in [0, 1]; None if it cannot.
    is_target : bool
        Whether it is the word itself, or a part of it.
    is_later : bool
        Whether the word was said before it.
    """

    text: str
    relevance: float | None = None
    is_target: bool = False
    is_later: bool = False


@dataclass(frozen=True)
class Passage:
    """What one side of a conversation says.

    Attributes
    ----------
    role : str
    phrases : sequence of Phrase
    """

    role: str
    phrases: Sequence[Phrase]


def plate(
    pictures: Sequence[tuple[Image.Image, Sequence[Raster]]],
    passages: Sequence[Passage],
    *,
    candidates: Sequence[tuple[str, float]] = (),
    note: str = "",
    cmap: str = "jet",
    opacity: float | None = None,
    width: int = 900,
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Draw the map of a word on its pictures, and below them the text, coloured on the same scale.

    Parameters
    ----------
    pictures : sequence of (PIL image, sequence of Raster)
        Side by side. None at all gives the text alone.
    passages : sequence of Passage
        The word itself is framed, what was said after it is grey.
    candidates : sequence of (str, float)
        The likeliest tokens in the word's place, with their probabilities.
    note : str
        Stands beside the colour bar.
    cmap, opacity
        As for :func:`tam_fast.render.overlay`; the grounds of the text have the same.
    width : int
        Pixels, at least 240; the height follows.
    font : path, optional
        A TrueType font.

    Returns
    -------
    PIL.Image.Image
        RGB.

    Raises
    ------
    ValueError
        If the width, the opacity or the colour map are out of range.
    OSError
        If `font` cannot be read.
    """
    if width < 240:
        raise ValueError(f"width: expected at least 240 pixels, got {width}")
    table = colormap(cmap)
    inner = width - 2 * _MARGIN
    strip = _strip([(image, rasters) for image, rasters in pictures], inner, cmap, opacity)
    shown = [f"{visible(text)}  {probability:.2f}" for text, probability in candidates]
    texts = "".join([note, *shown, *(p.role + "".join(phrase.text for phrase in p.phrases) for p in passages)])
    make_font, clean = font_for(texts, font)
    body, small = make_font(max(15, min(24, width // 38))), make_font(max(12, min(16, width // 56)))
    ground = _grounds(table, cmap, opacity)

    blocks: list[tuple[str, list[list[tuple[str, Phrase | None]]]]] = []
    for passage in passages:
        pieces = [(clean(phrase.text), phrase) for phrase in passage.phrases]
        blocks.append((clean(passage.role), flow(pieces, body, inner)))
    named = len(blocks) > 1
    step, small_step = round(line_height(body) * 1.5), round(line_height(small) * 1.45)
    height = _MARGIN + (0 if strip is None else strip.height + _MARGIN)
    height += sum((small_step if named else 0) + len(lines) * step + _GAP for _, lines in blocks)
    height += _GAP + (small_step if shown else 0) + small_step + _MARGIN
    page = Image.new("RGB", (width, height), _PAGE)
    draw = ImageDraw.Draw(page)
    y = _MARGIN
    if strip is not None:
        page.paste(strip, (_MARGIN + (inner - strip.width) // 2, y))
        y += strip.height + _MARGIN
    for role, lines in blocks:
        if named:
            draw.text((_MARGIN, y), role, font=small, fill=_FAINT)
            y += small_step
        for line in lines:
            _write(draw, line, (_MARGIN, y), body, ground)
            y += step
        y += _GAP
    y += _GAP
    if shown:
        line_of = clean("likeliest here:  " + "    ".join(shown))
        draw.text((_MARGIN, y), shorten(line_of, small, inner), font=small, fill=_INK)
        y += small_step
    _bar(page, draw, (_MARGIN, y), small, table, clean(note))
    return page


def _strip(
    pictures: Sequence[tuple[Image.Image, Sequence[Raster]]], width: int, cmap: str, opacity: float | None
) -> Image.Image | None:
    """Draw the pictures at one height, side by side."""
    if not pictures:
        return None
    usable = max(len(pictures), width - _GAP * (len(pictures) - 1))
    height = usable / sum(image.width / image.height for image, _ in pictures)
    height = max(1, round(min(height, width * _TALLEST)))
    drawn = []
    for image, rasters in pictures:
        size = max(1, round(image.width / image.height * height)), height
        drawn.append(overlay(image, rasters, cmap=cmap, opacity=opacity, size=size))
    strip = Image.new("RGB", (sum(d.width for d in drawn) + _GAP * (len(drawn) - 1), height), _PAGE)
    x = 0
    for picture in drawn:
        strip.paste(picture, (x, 0))
        x += picture.width + _GAP
    return strip


def _grounds(
    table: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], cmap: str, opacity: float | None
) -> Callable[[float], Colour]:
    """Return what colours the ground of a text of some relevance: on the page as an overlay does on a white image."""
    if opacity is None:
        opacity = 0.5 if cmap == "jet" else 0.85
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity: expected a number from 0 to 1, got {opacity}")

    def ground(relevance: float) -> Colour:
        level = round(255 * min(max(relevance, 0.0), 1.0))
        share = opacity if cmap == "jet" else opacity * (level / 255) ** _GAMMA
        red, green, blue = (round(p + (int(c) - p) * share) for p, c in zip(_PAGE, table[level], strict=True))
        return red, green, blue

    return ground


def _write(
    draw: ImageDraw.ImageDraw,
    line: Sequence[tuple[str, Phrase | None]],
    place: tuple[int, int],
    font: Font,
    ground: Callable[[float], Colour],
) -> None:
    """Write one line: grounds first, then ink, then the frame around the word."""
    x, y = float(place[0]), place[1]
    below = y + line_height(font) + 4
    frames: list[list[float]] = []
    inks: list[tuple[float, str, Colour]] = []
    for text, phrase in line:
        extent = font.getlength(text)
        bare = text.lstrip()
        left = x + font.getlength(text[: len(text) - len(bare)])
        right = x + font.getlength(text.rstrip()) if bare else x + extent
        colour = _INK
        if phrase is not None and phrase.is_later:
            colour = _LATER
        elif phrase is not None and phrase.is_target:
            if frames and left - frames[-1][1] < 12:
                frames[-1][1] = right
            else:
                frames.append([left, right])
        elif phrase is not None and phrase.relevance is not None and bare:
            fill = ground(phrase.relevance)
            draw.rectangle((left - 1, y - 2, right, below), fill=fill)
            colour = _ink_on(fill)
        inks.append((x, text, colour))
        x += extent
    for left, right in frames:
        draw.rectangle((left - 3, y - 3, max(right, left + 4) + 1, below + 1), outline=_FRAME, width=2)
    for x, text, colour in inks:
        draw.text((x, y), text, font=font, fill=colour)


def _ink_on(ground: Colour) -> Colour:
    luminance = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2]
    return _INK if luminance > 110 else _PAGE


def _bar(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    font: Font,
    table: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    note: str,
) -> None:
    """Draw the colour bar with its numbers, and a note behind it."""
    x, y = place
    width = min(200, (page.width - 2 * _MARGIN) // 3)
    bar = Image.fromarray(np.ascontiguousarray(np.broadcast_to(table[None], (10, 256, 3))))
    draw.text((x, y), "0", font=font, fill=_FAINT)
    x += round(font.getlength("0 "))
    page.paste(bar.resize((width, 10)), (x, y + max(0, (line_height(font) - 10) // 2 + 1)))
    x += width + 4
    draw.text((x, y), "1", font=font, fill=_FAINT)
    x += round(font.getlength("1    "))
    draw.text((x, y), shorten(note, font, page.width - _MARGIN - x), font=font, fill=_FAINT)
