"""Masks of pixels as others keep them: boxes, run lengths and polygons in the manner of COCO."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

__all__ = ["RunLengths", "bounds", "polygons", "run_lengths"]


class RunLengths(TypedDict):
    """A mask as COCO's run lengths, JSON-able.

    ``size`` is [height, width]. ``counts`` are the lengths of runs down the columns, one column after the other, of
    pixels outside and inside by turns, the first one outside (0 if the first pixel is inside); a list, or the text that
    pycocotools makes of it.
    """

    size: list[int]
    counts: list[int] | str


def bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return the smallest box that holds a mask.

    Parameters
    ----------
    mask : (H, W) bool

    Returns
    -------
    (x0, y0, x1, y1) or None
        Edges in pixels: columns x0 to x1 - 1, rows y0 to y1 - 1. None if nothing is inside.

    Raises
    ------
    TypeError, ValueError
        If `mask` is no bool array of two dimensions.
    """
    _check(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def run_lengths(mask: NDArray[np.bool_], compressed: bool = False) -> RunLengths:
    """Return a mask as COCO's run lengths.

    Parameters
    ----------
    mask : (H, W) bool
    compressed : bool
        Write the counts as pycocotools does: each as the difference to the last but one, in digits of five bits, the
        lowest first, the sixth bit telling that more follow, from character 48 on.

    Returns
    -------
    RunLengths

    Raises
    ------
    TypeError, ValueError
        As :func:`bounds`.
    """
    _check(mask)
    values = mask.ravel(order="F")
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    marks = np.concatenate([[0], edges, [values.size]]) if values.size else np.zeros(1, dtype=np.int64)
    counts: list[int] = np.diff(marks).tolist()
    if values.size and values[0]:
        counts.insert(0, 0)
    size = [int(side) for side in mask.shape]
    return {"size": size, "counts": _text(counts) if compressed else counts}


def _text(counts: list[int]) -> str:
    written = bytearray()
    for number, count in enumerate(counts):
        rest = count - counts[number - 2] if number > 2 else count
        while True:
            digit, rest = rest & 0x1F, rest >> 5
            # What is left is the digit's own sign, and need not be written.
            more = rest != (-1 if digit & 0x10 else 0)
            written.append(48 + (digit | (0x20 if more else 0)))
            if not more:
                break
    return written.decode("ascii")


def polygons(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Return the outlines of a mask: one polygon for each part whose pixels share edges.

    Parameters
    ----------
    mask : (H, W) bool

    Returns
    -------
    list of [x0, y0, x1, y1, ...]
        Corners of pixels, clockwise as one sees it (y points down), from the topmost, of these the leftmost one on; the
        last is not the first again. In the order of their first corners, row by row. They run along the edges of
        pixels, so that filling them gives the parts back. Holes are filled: a list of polygons, in COCO, has none.

    Raises
    ------
    TypeError, ValueError
        As :func:`bounds`.
    """
    _check(mask)
    inside = np.pad(mask, 1)
    here = inside[1:-1, 1:-1]
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Each pixel's edges to the outside, walked so that the pixel lies to the right.
    for outside, start, end in (
        (inside[:-2, 1:-1], (0, 0), (1, 0)),  # above: to the right
        (inside[1:-1, 2:], (1, 0), (1, 1)),  # right: down
        (inside[2:, 1:-1], (1, 1), (0, 1)),  # below: to the left
        (inside[1:-1, :-2], (0, 1), (0, 0)),  # left: up
    ):
        rows, columns = np.nonzero(here & ~outside)
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
            following.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    found: list[list[int]] = []
    for first in sorted(following, key=lambda corner: (corner[1], corner[0])):
        while following.get(first):
            corners = _walk(first, following)
            # Around a hole one walks the other way.
            if _area(corners) > 0:
                found.append([coordinate for corner in corners for coordinate in corner])
    return found


def _walk(first: tuple[int, int], following: dict[tuple[int, int], list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Walk from a corner along edges, which are used up, back to it; return the corners where one turns."""
    place, step = first, (0, 0)
    corners: list[tuple[int, int]] = []
    while True:
        ways = following[place]
        # Where two pixels touch at a corner alone one turns right, around one's own: they are two parts.
        right = (place[0] - step[1], place[1] + step[0])
        way = ways.pop(ways.index(right) if len(ways) > 1 and right in ways else 0)
        heading = (way[0] - place[0], way[1] - place[1])
        if heading != step:
            corners.append(place)
        place, step = way, heading
        if place == first:
            return corners


def _area(corners: list[tuple[int, int]]) -> int:
    """Return twice the area, positive if the corners go around it clockwise (y points down)."""
    following = [*corners[1:], corners[0]]
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, following, strict=True))


def _check(mask: Any) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        got = f"dtype {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"mask: expected a bool array, got {got}")
    if mask.ndim != 2:
        raise ValueError(f"mask: expected (H, W), got shape {mask.shape}")
