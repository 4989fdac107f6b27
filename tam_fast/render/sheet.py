"""All tokens of an answer in one picture: :func:`sheet`."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tam_fast.render.colormaps import colormap
from tam_fast.render.overlay import Raster, overlay

__all__ = ["Cell", "sheet"]

_Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"
_Colour: TypeAlias = tuple[int, int, int]

# A dark page: activation 0 is near the page's own colour in inferno and viridis, and 1 is the brightest thing on it.
_PAGE: _Colour = (20, 20, 24)
_INK: _Colour = (236, 236, 238)
_FAINT: _Colour = (150, 150, 158)
_TRACK: _Colour = (52, 52, 58)
_MARGIN = 28
_GAP = 14

# Tried in turn where Pillow's own font lacks a character; Pillow finds them by name in the system's font folders.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",
    "wqy-zenhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
)


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
    captions = [_visible(cell.caption) for cell in cells]
    texts = "".join([prompt, model, *captions, *(piece for piece, _ in sentence)])
    make_font, clean = _font_for(texts, font)
    table = colormap(cmap)

    def ground(strength: float) -> _Colour:
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
    line = _line_height(caption_font)
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
        draw.text((left, y + 6), _shorten(clean(caption), caption_font, room), font=caption_font, fill=_INK)
    return page


def _level(strength: float) -> int:
    return round(255 * min(max(strength, 0.0), 1.0))


def _head(
    images: Sequence[Image.Image],
    sentence: Sequence[tuple[str, _Colour | None]],
    prompt: str,
    model: str,
    make_font: Callable[[int], _Font],
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
    lines = _flow(sentence, body, right - text_left)
    step = round(_line_height(body) * 1.35)
    small_step = round(_line_height(small) * 1.4)
    text_height = 2 * small_step + 10 + len(lines) * step + 16 + small_step
    total = _MARGIN + max(strip.height, text_height) + _MARGIN
    head = Image.new("RGB", (width, total), _PAGE)
    head.paste(strip, (_MARGIN, _MARGIN))
    draw = ImageDraw.Draw(head)
    y = _MARGIN
    draw.text((text_left, y), _shorten(model, small, right - text_left), font=small, fill=_FAINT)
    y += small_step
    draw.text((text_left, y), _shorten(_visible(prompt), small, right - text_left), font=small, fill=_INK)
    y += small_step + 10
    for line in lines:
        x = float(text_left)
        for piece, colour in line:
            extent = body.getlength(piece)
            if colour is not None:
                space = body.getlength(piece[: len(piece) - len(piece.lstrip())])
                draw.rectangle((x + space, y - 2, x + extent, y + _line_height(body) + 3), fill=colour)
            draw.text((x, y), piece, font=body, fill=_ink_on(colour or _PAGE))
            x += extent
        y += step
    y += 16
    bar = Image.fromarray(np.ascontiguousarray(np.broadcast_to(table[None], (12, 256, 3))))
    bar_width = max(60, min(256, (right - text_left) // 3))
    low, high = "activation 0 ", " 1"
    draw.text((text_left, y), low, font=small, fill=_FAINT)
    bar_left = text_left + math.ceil(small.getlength(low))
    head.paste(bar.resize((bar_width, 12)), (bar_left, y + max(0, (_line_height(small) - 12) // 2 + 1)))
    draw.text((bar_left + bar_width, y), high, font=small, fill=_FAINT)
    return head


def _ink_on(colour: _Colour) -> _Colour:
    """Choose black or light text, whichever stands out from the ground."""
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (16, 16, 18) if luminance > 140 else _INK


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


def _flow(
    pieces: Sequence[tuple[str, _Colour | None]], font: _Font, width: int
) -> list[list[tuple[str, _Colour | None]]]:
    """Break coloured text into lines of at most `width` pixels: before a space where there is one, else anywhere."""
    # Pieces of one word (no space between them) stay together.
    groups: list[list[tuple[str, _Colour | None]]] = []
    for piece, colour in pieces:
        for number, part in enumerate(piece.splitlines() or [""]):
            if number or not groups or part[:1].isspace():
                groups.append([])
            if number:
                groups[-1].append(("\n", None))
            # A piece may hold several words: each begins a group.
            for word_number, word in enumerate(_cut_before_spaces(part)):
                if word_number:
                    groups.append([])
                groups[-1].append((word, colour))
        if piece.endswith("\n"):
            groups.append([("\n", None)])
    lines: list[list[tuple[str, _Colour | None]]] = [[]]
    used = 0.0
    for group in groups:
        if group and group[0][0] == "\n":
            lines.append([])
            used = 0.0
            group = group[1:]
        extent = sum(font.getlength(piece) for piece, _ in group)
        if used and used + extent > width:
            lines.append([])
            used = 0.0
        for piece, colour in group:
            text = piece.lstrip() if not used else piece
            while text:
                fitting = _fitting(text, font, width - used)
                if fitting == 0 and used:
                    lines.append([])
                    used = 0.0
                    continue
                # On an empty line at least one character, however narrow the line.
                fitting = max(1, fitting)
                lines[-1].append((text[:fitting], colour))
                used += font.getlength(text[:fitting])
                text = text[fitting:]
                if text:
                    lines.append([])
                    used = 0.0
    return lines


def _cut_before_spaces(text: str) -> list[str]:
    """Cut text before each run of spaces but a leading one: "a b" -> ["a", " b"]."""
    words: list[str] = []
    start = 0
    for place in range(1, len(text)):
        if text[place].isspace() and not text[place - 1].isspace():
            words.append(text[start:place])
            start = place
    return [*words, text[start:]]


def _visible(token: str) -> str:
    """Make a token readable in one line: no outer spaces, control characters as escapes."""
    stripped = token.strip(" ")
    if not stripped:
        return "(space)" if token else "(empty)"
    return "".join(c if c.isprintable() else _escape(c) for c in stripped)


def _fitting(text: str, font: _Font, width: float) -> int:
    """Count the characters of text that fit into `width` pixels (by bisection; lines hold at most 400)."""
    low, high = 0, min(len(text), 400)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _shorten(text: str, font: _Font, width: float) -> str:
    """Cut text with an ellipsis to at most `width` pixels."""
    if _fitting(text, font, width) == len(text):
        return text
    count = _fitting(text, font, width - font.getlength("..."))
    return text[:count].rstrip() + "..." if count else ""


def _line_height(font: _Font) -> int:
    """Measure a line from the tallest accent to the lowest descender, in pixels."""
    return math.ceil(font.getbbox("\u00c5gjy")[3])


def _font_for(texts: str, path: str | os.PathLike[str] | None) -> tuple[Callable[[int], _Font], Callable[[str], str]]:
    """Choose a font that has the characters of `texts`, and how to write those that even it lacks (as escapes)."""

    def own(size: int) -> _Font:
        return ImageFont.load_default(size)

    def named(name: str) -> Callable[[int], _Font]:
        return lambda size: ImageFont.truetype(name, size)

    characters = {character for character in texts if character.isprintable() and not character.isspace()}
    choices: list[Callable[[int], _Font]] = []
    if path is not None:
        choices.append(named(os.fspath(path)))
    else:
        choices.append(own)
        if not all(ord(character) < 127 for character in characters):
            choices.extend(named(name) for name in _SYSTEM_FONTS)
    best, missing = choices[0], characters
    for number, choice in enumerate(choices):
        try:
            lacking = {character for character in characters if not _has(choice(24), character)}
        except OSError:
            if path is not None:
                raise
            continue
        if number == 0 or len(lacking) < len(missing):
            best, missing = choice, lacking
        if not missing:
            break

    replaced = {character: _substitute(character) for character in missing}

    def clean(text: str) -> str:
        return "".join(
            replaced.get(c, c) if c.isprintable() or c == "\n" else _escape(c) for c in text.replace("\t", "    ")
        )

    return lru_cache(maxsize=None)(best), clean


_PLAIN = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u00df": "ss"}


def _substitute(character: str) -> str:
    """Choose what to draw for a character that no font has: its letter without the accent, else an escape."""
    plain = _PLAIN.get(character) or "".join(
        c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c)
    )
    return plain if plain and plain.isascii() and plain.isprintable() else _escape(character)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def _has(font: _Font, character: str) -> bool:
    """Whether a font has a glyph of its own for a character."""
    if ord(character) < 127 or not isinstance(font, ImageFont.FreeTypeFont):
        return ord(character) < 256
    # U+FFFF is no character in any font: what is drawn for it is the box for missing ones.
    missing, glyph = (font.getmask(c) for c in ("\uffff", character))
    return glyph.size != missing.size or bytes(glyph) != bytes(missing)
