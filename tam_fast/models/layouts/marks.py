"""Tiles of images that tokens of the prompt tell apart: which run of visual tokens is which, and where it lies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import arange

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput

__all__ = ["Picture", "Square", "by_ends", "by_names", "cut", "grids_of", "shape_of", "sizes_of"]

# "<row_1_col_2>" of Idefics 3, "<|img_row_1_col_2|>" of LFM2-VL.
_TILE = re.compile(r"row_(\d+)_col_(\d+)\|?>\s*$")
_NAME = 24  # tokens, more than a tile's name takes where the vocabulary does not have it


@dataclass(frozen=True)
class Picture:
    """One image: which runs of visual tokens are its tiles, row by row, and which is the whole image."""

    rows: Sequence[Sequence[int]]
    whole: int | None


@dataclass(frozen=True)
class Square:
    """A square of pixels as the vision tower cuts it: cells on a side, and how much of the side they cover."""

    cells: int
    covered: float = 1.0


def shape_of(source: VisualInput, name: str, dimensions: int) -> tuple[int, ...]:
    """Read the shape of an input of pixels, square at the end."""
    value = source.inputs.get(name)
    if isinstance(value, (list, tuple)) and value:  # of one picture each, of different numbers of tiles
        value = value[0]
    shape = tuple(getattr(value, "shape", ()))
    if dimensions == 4 and len(shape) == 5:
        shape = (shape[0] * shape[1], *shape[2:])
    if len(shape) != dimensions or shape[-1] != shape[-2] or (dimensions == 5 and shape[0] != 1):
        raise ModelNotSupportedError(
            f"processor: expected {name} of {dimensions} dimensions, height and width the same, for model type "
            f"{source.model_type!r}, got {shape or type(source.inputs.get(name)).__name__}"
        )
    return tuple(int(size) for size in shape)


def cut(source: VisualInput, side: int, patch: int, merge: int) -> Square:
    """Cut a square of pixels into patches, and join those to cells; pixels beyond the last patch are not looked at."""
    patches = side // patch
    if not patches or patches % merge:
        raise source.refuse(f"a multiple of {merge} patches of {patch} pixels", f"{side} pixels")
    return Square(patches // merge, patches * patch / side)


def sizes_of(source: VisualInput, count: int) -> Sequence[tuple[int, int]]:
    """Return the images' sizes (width, height), as many as there are images."""
    sizes = source.sizes()
    if len(sizes) != count:
        raise ValueError(f"image_sizes: expected (width, height) of {count} images, got {len(sizes)}")
    return sizes


def by_names(source: VisualInput, runs: Sequence[tuple[int, int]], last: str, first: str = "") -> list[Picture]:
    """Tell by what is written before each run whether it is a tile, or the whole image.

    `last` stands before the whole image behind tiles, or before it alone; `first` before the whole image alone only.
    """
    pictures: list[Picture] = []
    tiles: list[tuple[int, int]] = []
    opened = 0

    def close(whole: int | None) -> None:
        rows, columns = (1 + max((place[axis] for place in tiles), default=-1) for axis in (0, 1))
        if tiles != [(row, column) for row in range(rows) for column in range(columns)]:
            raise source.refuse(f"{rows} x {columns} tiles, row by row", f"{len(tiles)}")
        places = [[opened + row * columns + column for column in range(columns)] for row in range(rows)]
        pictures.append(Picture(places, whole))
        tiles.clear()

    before = 0
    for index, (start, stop) in enumerate(runs):
        written = source.processor.tokenizer.decode(source.input_ids[max(before, start - _NAME) : start].tolist())
        before = stop
        found = _TILE.search(written)
        if found is not None:
            place = int(found[1]) - 1, int(found[2]) - 1
            if place == (0, 0):
                if tiles:
                    close(None)
                opened = index
            tiles.append(place)
        elif written.rstrip().endswith(last):
            close(index)
        elif first and written.rstrip().endswith(first):
            if tiles:
                close(None)
            close(index)
        else:
            raise source.refuse(f"the name of a tile or {last} before image tokens", repr(written[-40:]))
    if tiles:
        close(None)
    return pictures


def by_ends(source: VisualInput, ends: Sequence[str]) -> list[Picture]:
    """Put tiles together by what each run is: a tile, a row's last one, or the whole image behind them."""
    pictures: list[Picture] = []
    rows: list[list[int]] = [[]]
    for index, end in enumerate(ends):
        if end in ("tile", "row"):
            rows[-1].append(index)
        if end == "row":
            rows.append([])
        elif end == "whole" and not rows[-1] and len({len(row) for row in rows[:-1]}) < 2:
            pictures.append(Picture(rows[:-1], index))
            rows = [[]]
        elif end != "tile":
            break
    else:
        if rows == [[]]:
            return pictures
    raise source.refuse("rows of as many tiles, and a whole image", f"{'-'.join(end or '?' for end in ends)}")


def grids_of(
    source: VisualInput,
    runs: Sequence[tuple[int, int]],
    pictures: Sequence[Picture],
    shapes: Sequence[Square] | Sequence[Sequence[int]],
    canvases: Sequence[tuple[float, float]] | None = None,
    wholes: Sequence[tuple[float, float]] | None = None,
) -> list[Grid]:
    """Lay tiles out on their canvas, which reaches from the image's upper left to some fractions of its size.

    `wholes` says the same of the square that shows the whole image; without it, the image fills it.
    """
    grids: list[Grid] = []

    def add(number: int, kind: str, image: int, x0: float, y0: float, width: float, height: float) -> None:
        shape = shapes[number]
        rows, columns, covered = (
            (shape.cells, shape.cells, shape.covered) if isinstance(shape, Square) else (shape[0], shape[1], 1.0)
        )
        start, stop = runs[number]
        if stop - start != rows * columns:
            raise source.refuse(f"{rows} x {columns} image tokens in run {number}", f"{stop - start}")
        box = (x0, y0, x0 + width * covered, y0 + height * covered)
        grids.append(Grid(arange(start, stop), rows, columns, kind, image, 0, box))

    for image, picture in enumerate(pictures):
        right, below = (1.0, 1.0) if canvases is None else canvases[image]
        tiles = sum(map(len, picture.rows))
        for row, numbers in enumerate(picture.rows):
            for column, number in enumerate(numbers):
                width, height = right / len(numbers), below / len(picture.rows)
                kind = "image" if tiles == 1 and picture.whole is None else "tile"
                add(number, kind, image, column * width, row * height, width, height)
        if picture.whole is not None:
            width, height = (1.0, 1.0) if wholes is None else wholes[image]
            add(picture.whole, "overview" if tiles else "image", image, 0.0, 0.0, width, height)
    return grids
