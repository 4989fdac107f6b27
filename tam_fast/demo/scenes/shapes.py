"""Coloured shapes: what a scene holds, and which pixels each object covers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = [
    "COLOURS",
    "NUMBERS",
    "PLURALS",
    "ROTATION",
    "SHAPES",
    "SUPERSAMPLE",
    "Floats",
    "Group",
    "Object",
    "Scene",
    "alpha_of",
    "coverage",
    "masks",
    "visible_parts",
]

Floats: TypeAlias = "NDArray[np.float32]"

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 42),
    "orange": (243, 134, 28),
    "yellow": (247, 222, 50),
    "green": (48, 158, 62),
    "cyan": (60, 208, 216),
    "blue": (38, 78, 206),
    "purple": (124, 48, 172),
    "pink": (250, 142, 196),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "moon")
PLURALS: dict[str, str] = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six")

ROTATION = {"circle": 0.0, "square": 10.0, "diamond": 10.0, "cross": 10.0}
"""Largest rotation in degrees; 16 for every other shape."""

SUPERSAMPLE = 3
"""Pixels drawn along a side for one pixel of a picture."""


@dataclass(frozen=True)
class Object:
    """One shape: its words, centre and radius in fractions of the side, rotation in degrees, exact colour."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Group:
    """All objects of one kind: ``count`` objects of this colour and shape, with their indices in ``Scene.objects``."""

    colour: str
    shape: str
    indices: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of objects of this kind."""
        return len(self.indices)


@dataclass(frozen=True)
class Scene:
    """Objects in drawing order (later ones cover earlier ones) and what they lie on.

    ``background`` is the seed of the ground, ``surface`` its kind (:data:`tam_fast.demo.scenes.SURFACES`). ``extent``
    is (height, width) in sides: a picture of extent (0.8, 1.2) drawn at 160 pixels a side is 128 high and 192 wide.
    Places and radii are in sides as well, so that objects keep their scale in pictures of any extent.
    """

    objects: tuple[Object, ...]
    background: int
    surface: str = "textured"
    extent: tuple[float, float] = (1.0, 1.0)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Kinds in reading order: from left to right by the leftmost member's centre."""
        kinds: dict[tuple[str, str], list[int]] = {}
        for index in sorted(range(len(self.objects)), key=lambda i: self.objects[i].x):
            kinds.setdefault((self.objects[index].colour, self.objects[index].shape), []).append(index)
        return tuple(Group(colour, shape, tuple(indices)) for (colour, shape), indices in kinds.items())

    def pixels(self, size: int) -> tuple[int, int]:
        """(height, width) in pixels, or in cells, when a side has `size` of them."""
        return round(self.extent[0] * size), round(self.extent[1] * size)


@cache
def _outline(shape: str) -> NDArray[np.float64]:
    """Polygon (n, 2) of a shape of radius 1 around the origin, y downwards."""
    turn = np.linspace(0.0, 2.0 * np.pi, 48, endpoint=False)
    if shape == "circle":
        points = np.stack([np.cos(turn), np.sin(turn)], 1) * 0.95
    elif shape == "square":
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64) * 0.84
    elif shape == "triangle":
        points = np.array([(0.0, -1.0), (1.0, 0.82), (-1.0, 0.82)])
    elif shape == "star":
        spokes = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.5)
        points = np.stack([np.cos(spokes), np.sin(spokes)], 1) * radii[:, None]
    elif shape == "heart":
        x = np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)) / 16
        points = np.stack([x, y - 0.05], 1)
    elif shape == "diamond":
        points = np.array([(0.0, -1.08), (0.76, 0.0), (0.0, 1.08), (-0.76, 0.0)])
    elif shape == "cross":
        a, b = 0.38, 1.0
        quarter = [(a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b)]
        points = np.array(quarter + [(-x, -y) for x, y in quarter])
    elif shape == "moon":
        outer = np.linspace(0.26 * np.pi, 1.74 * np.pi, 30)
        inner = np.linspace(1.60 * np.pi, 0.40 * np.pi, 22)
        arc = np.stack([np.cos(outer), np.sin(outer)], 1)
        tip = arc[0]
        scale = tip[1] / np.sin(0.40 * np.pi)
        bay = np.stack([np.cos(inner), np.sin(inner)], 1) * scale
        bay += tip - bay[-1]
        points = np.concatenate([arc, bay[1:-1]]) + np.array((0.15, 0.0))
    else:
        raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
    return points


def alpha_of(item: Object, size: int, supersample: int, extent: tuple[float, float] = (1.0, 1.0)) -> Floats:
    """Coverage (height, width) float32 in [0, 1] of one object, before anything covers it."""
    side = size * supersample
    height, width = (round(one * size) * supersample for one in extent)
    angle = np.deg2rad(item.angle)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = (_outline(item.shape) @ rotation * item.radius + (item.x, item.y)) * side - 0.5
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255)
    if supersample > 1:
        canvas = canvas.reduce(supersample)
    return np.asarray(canvas, dtype=np.float32) / 255.0


def visible_parts(scene: Scene, size: int, supersample: int) -> Floats:
    """Visible coverage (n, height, width) float32 of every object; the sum over objects is at most 1."""
    shape = scene.pixels(size)
    layers = np.zeros((len(scene.objects), *shape), dtype=np.float32)
    free = np.ones(shape, dtype=np.float32)
    for index in reversed(range(len(scene.objects))):
        alpha = alpha_of(scene.objects[index], size, supersample, scene.extent)
        layers[index] = alpha * free
        free *= 1.0 - alpha
    return layers


def masks(scene: Scene, size: int = 160) -> NDArray[np.bool_]:
    """Visible pixels of every object, (n, height, width) bool, in the order of ``scene.objects``.

    `size` is the number of pixels along a side, as for :func:`tam_fast.demo.scenes.render`.
    """
    return visible_parts(scene, size, SUPERSAMPLE) > 0.5


def coverage(scene: Scene, grid: int) -> Floats:
    """Visible share of every grid cell that each object covers, (n, rows, columns) float32 in [0, 1].

    `grid` is the number of cells along a side: a picture of extent (1, 1) has ``grid`` rows and columns.
    """
    rows, columns = scene.pixels(grid)
    cells = visible_parts(scene, grid * 4, 1)
    return np.asarray(cells.reshape(len(scene.objects), rows, 4, columns, 4).mean(axis=(2, 4), dtype=np.float32))
