"""Text in pictures: fonts that have its characters, lines that fit, ink that stands out."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, TypeVar

from PIL import ImageFont

__all__ = ["LIGHT", "Colour", "Font", "fitting", "flow", "font_for", "ink_on", "line_height", "shorten", "visible"]

Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"
Colour: TypeAlias = tuple[int, int, int]
Look = TypeVar("Look")

LIGHT: Colour = (236, 236, 238)
"""Light ink, for dark grounds."""

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
# Fonts that are opened at most in search of one with every character.
_SEARCHED = 60


def flow(pieces: Sequence[tuple[str, Look | None]], font: Font, width: float) -> list[list[tuple[str, Look | None]]]:
    """Break text into lines of at most `width` pixels: before a space where there is one, else anywhere.

    Each piece keeps what says how it looks, such as its colour.
    """
    # Pieces of one word (no space between them) stay together.
    groups: list[list[tuple[str, Look | None]]] = []
    for piece, look in pieces:
        for number, part in enumerate(piece.splitlines() or [""]):
            if number or not groups or part[:1].isspace():
                groups.append([])
            if number:
                groups[-1].append(("\n", None))
            # A piece may hold several words: each begins a group.
            for word_number, word in enumerate(_cut_before_spaces(part)):
                if word_number:
                    groups.append([])
                groups[-1].append((word, look))
        if piece.endswith("\n"):
            groups.append([("\n", None)])
    lines: list[list[tuple[str, Look | None]]] = [[]]
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
        for piece, look in group:
            text = piece.lstrip() if not used else piece
            while text:
                count = fitting(text, font, width - used)
                if count == 0 and used:
                    lines.append([])
                    used = 0.0
                    continue
                # On an empty line at least one character, however narrow the line.
                count = max(1, count)
                lines[-1].append((text[:count], look))
                used += font.getlength(text[:count])
                text = text[count:]
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


def visible(token: str) -> str:
    """Make a token readable in one line: no outer spaces, control characters as escapes."""
    stripped = token.strip(" ")
    if not stripped:
        return "(space)" if token else "(empty)"
    return "".join(c if c.isprintable() else _escape(c) for c in stripped)


def fitting(text: str, font: Font, width: float) -> int:
    """Count the characters of text that fit into `width` pixels (by bisection; lines hold at most 400)."""
    low, high = 0, min(len(text), 400)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def shorten(text: str, font: Font, width: float) -> str:
    """Cut text with an ellipsis to at most `width` pixels."""
    if fitting(text, font, width) == len(text):
        return text
    count = fitting(text, font, width - font.getlength("..."))
    return text[:count].rstrip() + "..." if count else ""


def line_height(font: Font) -> int:
    """Measure a line from the tallest accent to the lowest descender, in pixels."""
    return math.ceil(font.getbbox("\u00c5gjy")[3])


def font_for(texts: str, path: str | os.PathLike[str] | None) -> tuple[Callable[[int], Font], Callable[[str], str]]:
    """Choose a font that has the characters of `texts`, and how to write those that even it lacks.

    Pillow's own is taken if it has them all, then common ones of the system, then any that is found there.

    Parameters
    ----------
    texts : str
        All that is to be written.
    path : path, optional
        A font that is taken whatever it has; OSError if it cannot be read.

    Returns
    -------
    font : callable
        Takes a size in pixels.
    clean : callable
        Brings a text to one that the font can write: without accents, or as escapes.
    """

    def own(size: int) -> Font:
        return ImageFont.load_default(size)

    def named(name: str) -> Callable[[int], Font]:
        return lambda size: ImageFont.truetype(name, size)

    characters = {character for character in texts if character.isprintable() and not character.isspace()}
    if path is not None:
        best = named(os.fspath(path))
        missing = _lacking(best, characters)
    else:
        best, missing = own, _lacking(own, characters)
        for name in _SYSTEM_FONTS:
            if not missing:
                break
            with suppress(OSError):
                best, missing = min(
                    (best, missing), (named(name), _lacking(named(name), characters)), key=lambda found: len(found[1])
                )
        found = _found(frozenset(missing), frozenset(characters)) if missing else None
        if found is not None:
            best, missing = named(found[0]), set(found[1])

    replaced = {character: _substitute(character) for character in missing}

    def clean(text: str) -> str:
        return "".join(
            replaced.get(c, c) if c.isprintable() or c == "\n" else _escape(c) for c in text.replace("\t", "    ")
        )

    return lru_cache(maxsize=None)(best), clean


def _lacking(font: Callable[[int], Font], characters: Iterable[str]) -> set[str]:
    """Return the characters that a font lacks; OSError if it cannot be read."""
    made = font(24)
    return {character for character in characters if not _has(made, character)}


@lru_cache(maxsize=64)
def _found(missing: frozenset[str], characters: frozenset[str]) -> tuple[str, frozenset[str]] | None:
    """Search the system's font folders for a font that lacks fewer characters; None if there is none.

    The largest files come first: fonts of thousands of characters are those with CJK.
    """
    best: tuple[str, frozenset[str]] | None = None
    least = len(missing)
    for path in _font_files()[:_SEARCHED]:
        try:
            made = ImageFont.truetype(path, 24)
            # What is missed tells most fonts apart, and is little.
            if all(not _has(made, character) for character in missing):
                continue
            lacking = frozenset(character for character in characters if not _has(made, character))
        except (OSError, ValueError):
            continue
        if len(lacking) < least:
            best, least = (path, lacking), len(lacking)
        if not lacking:
            break
    return best


@lru_cache(maxsize=1)
def _font_files() -> list[str]:
    """List the files in the system's font folders, large ones first."""
    found: dict[str, int] = {}
    for folder in _font_folders():
        for place, _, names in os.walk(folder):
            for name in names:
                if name.lower().endswith((".ttf", ".ttc", ".otf")):
                    path = Path(place) / name
                    with suppress(OSError):
                        found[str(path)] = path.stat().st_size
    return sorted(found, key=lambda path: (-found[path], path))


def _font_folders() -> list[Path]:
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises where there is none
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    data = [os.environ.get("XDG_DATA_HOME") or str(home / ".local/share"), *shared.split(":")]
    return [home / ".fonts", *(Path(folder) / "fonts" for folder in data if folder)]


_PLAIN = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u00df": "ss"}


def _substitute(character: str) -> str:
    """Choose what to draw for a character that no font has: its letter without the accent, else an escape."""
    plain = _PLAIN.get(character) or "".join(
        c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c)
    )
    return plain if plain and plain.isascii() and plain.isprintable() else _escape(character)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def _has(font: Font, character: str) -> bool:
    """Whether a font has a glyph of its own for a character."""
    if ord(character) < 127 or not isinstance(font, ImageFont.FreeTypeFont):
        return ord(character) < 256
    # U+FFFF is no character in any font: what is drawn for it is the box for missing ones.
    missing, glyph = (font.getmask(c) for c in ("\uffff", character))
    return glyph.size != missing.size or bytes(glyph) != bytes(missing)


def ink_on(colour: Colour) -> Colour:
    """Choose black or light text, whichever stands out from the ground."""
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (16, 16, 18) if luminance > 140 else LIGHT
