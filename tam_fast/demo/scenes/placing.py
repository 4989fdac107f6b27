"""Scenes drawn at random: which objects, how large, where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tam_fast.demo.scenes.shapes import COLOURS, ROTATION, SHAPES, Object, Scene, alpha_of, visible_parts
from tam_fast.demo.scenes.surfaces import SURFACES, ground_colour

__all__ = ["draw_kinds", "make_closeup", "make_flat", "make_scene", "make_varied", "paint"]

# Colours by these names as other programs draw them, beside those of COLOURS.
_OTHER_PAINTS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (220, 20, 40), (190, 0, 0)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 127, 14)),
    "yellow": ((255, 255, 0), (255, 230, 20), (240, 230, 60)),
    "green": ((0, 128, 0), (0, 200, 0), (44, 160, 44)),
    "cyan": ((0, 255, 255), (0, 200, 220), (23, 190, 207)),
    "blue": ((0, 0, 255), (31, 100, 200), (40, 60, 160)),
    "purple": ((128, 0, 128), (148, 80, 200), (110, 40, 140)),
    "pink": ((255, 170, 190), (255, 105, 180), (240, 130, 190)),
}

# Largest radius by number of objects: more of them must be smaller to find room.
_RADII = {1: 0.3, 2: 0.25, 3: 0.21, 4: 0.18, 5: 0.15, 6: 0.14}
_SMALLEST = 0.1
_TOTALS = (0.14, 0.24, 0.24, 0.18, 0.12, 0.08)


def paint(rng: np.random.Generator, colour: str, flat: bool) -> tuple[int, int, int]:
    """Draw an exact colour that bears the name."""
    options = (COLOURS[colour], *_OTHER_PAINTS[colour]) if flat else (COLOURS[colour],)
    base = options[int(rng.integers(len(options)))] if flat else options[0]
    jitter = rng.integers(-8, 9, 3) if flat else rng.integers(-16, 17, 3)
    red, green, blue = (int(v) for v in np.clip(np.array(base) + jitter, 0, 255))
    return red, green, blue


def _place(rng: np.random.Generator, kinds: Sequence[tuple[str, str]]) -> list[Object] | None:
    """Positions for the given objects, or None when they do not fit: little overlap, clear left-to-right order."""
    placed: list[Object] = []
    for colour, shape in kinds:
        for _ in range(30):
            radius = float(rng.uniform(0.135, 0.2 if len(kinds) < 4 else 0.175))
            x, y = (float(v) for v in rng.uniform(radius + 0.01, 0.99 - radius, 2))
            clear = all(np.hypot(x - o.x, y - o.y) > 0.86 * (radius + o.radius) for o in placed)
            if clear and all(abs(x - o.x) > 0.06 for o in placed):
                break
        else:
            return None
        limit = ROTATION.get(shape, 16.0)
        rgb = paint(rng, colour, flat=False)
        placed.append(Object(colour, shape, x, y, radius, float(rng.uniform(-limit, limit)), rgb))
    return placed


def draw_kinds(rng: np.random.Generator, total: int) -> list[tuple[str, str]] | None:
    """Draw (colour, shape) of every object, in the order of drawing; None where two kinds came out alike.

    One scene in four repeats one kind (for plurals). In one of ten kinds may share a colour, in three of ten a shape.
    """
    names = list(COLOURS)
    repeats = int(rng.integers(2, total + 1)) if total > 1 and rng.random() < 0.25 else 1
    number = total - repeats + 1
    colours = [names[i] for i in rng.choice(len(names), number, replace=bool(rng.random() < 0.1))]
    shapes = [SHAPES[i] for i in rng.choice(len(SHAPES), number, replace=bool(rng.random() < 0.3))]
    kinds = list(zip(colours, shapes, strict=True))
    if len(set(kinds)) < number:
        return None
    everything = kinds + [kinds[0]] * (repeats - 1)
    return [everything[i] for i in rng.permutation(total)]


def _mostly_visible(scene: Scene, share: float) -> bool:
    """Whether at least `share` of every object is visible."""
    if len(scene.objects) == 1:
        return True
    whole = [float(alpha_of(item, 40, 1, scene.extent).sum()) for item in scene.objects]
    seen = visible_parts(scene, 40, 1).sum(axis=(1, 2))
    return all(part >= share * full for part, full in zip(seen, whole, strict=True))


def make_scene(seed: int | np.random.Generator) -> Scene:
    """Draw a textured scene of 1 to 4 objects.

    Three scenes in four hold as many kinds as objects; the rest repeat one kind (for plurals). In one scene
    of ten kinds may share a colour, in three of ten a shape. Every object is 5.4 to 8 cells wide on a 20x20 grid and at
    least three quarters of it are visible.

    Parameters
    ----------
    seed : int or numpy.random.Generator
        The same seed gives the same scene.
    """
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    while True:
        kinds = draw_kinds(rng, int(rng.choice([1, 2, 3, 4], p=[0.15, 0.3, 0.3, 0.25])))
        objects = None if kinds is None else _place(rng, kinds)
        if objects is None:
            continue
        scene = Scene(tuple(objects), int(rng.integers(2**31)))
        if _mostly_visible(scene, 0.75):
            return scene


def _stands_out(rgb: tuple[int, int, int], surface: str, background: int) -> bool:
    """Whether a colour differs from the ground: from a soft one at either end."""
    grounds = [ground_colour(background, which) for which in range(2 if surface == "soft" else 1)]
    return all(np.abs(np.array(rgb) - ground).max() >= 60 for ground in grounds)


def make_closeup(rng: np.random.Generator, surfaces: Sequence[str] = SURFACES[:1]) -> Scene:
    """Draw one object, twice as large as in :func:`make_scene`: the warm-up of the training begins with it."""
    colour, shape = list(COLOURS)[int(rng.integers(len(COLOURS)))], SHAPES[int(rng.integers(len(SHAPES)))]
    radius = float(rng.uniform(0.27, 0.4))
    x, y = (float(v) for v in rng.uniform(radius - 0.02, 1.02 - radius, 2))
    limit = ROTATION.get(shape, 16.0)
    surface = surfaces[int(rng.integers(len(surfaces)))] if len(surfaces) > 1 else surfaces[0]
    while True:
        rgb = paint(rng, colour, flat=surface != "textured")
        item = Object(colour, shape, x, y, radius, float(rng.uniform(-limit, limit)), rgb)
        background = int(rng.integers(2**31))
        if surface == "textured" or _stands_out(rgb, surface, background):
            return Scene((item,), background, surface)


def _scatter(
    rng: np.random.Generator, kinds: Sequence[tuple[str, str]], surface: str, extent: tuple[float, float]
) -> Scene | None:
    """Place objects of 4 to 12 cells, some half in front of others; None when they do not fit."""
    flat = surface != "textured"
    background = int(rng.integers(2**31))
    placed: list[Object] = []
    # In a smaller picture as many objects are a crowd sooner.
    largest = min(_RADII[len(kinds)], 0.3 * min(extent) * (1.0 if len(kinds) == 1 else 0.75))
    for colour, shape in kinds:
        for _ in range(30):
            radius = float(rng.uniform(_SMALLEST, max(largest, _SMALLEST + 0.02)))
            x = float(rng.uniform(radius + 0.01, extent[1] - 0.01 - radius))
            y = float(rng.uniform(radius + 0.01, extent[0] - 0.01 - radius))
            clear = all(np.hypot(x - o.x, y - o.y) > 0.74 * (radius + o.radius) for o in placed)
            if clear and all(abs(x - o.x) > 0.08 for o in placed):
                break
        else:
            return None
        for _ in range(20):
            rgb = paint(rng, colour, flat)
            if not flat or _stands_out(rgb, surface, background):
                break
        else:
            return None
        limit = ROTATION.get(shape, 16.0)
        placed.append(Object(colour, shape, x, y, radius, float(rng.uniform(-limit, limit)), rgb))
    scene = Scene(tuple(placed), background, surface, extent)
    return scene if _mostly_visible(scene, 0.6) else None


def make_varied(
    seed: int | np.random.Generator,
    surfaces: Sequence[str] = SURFACES,
    extent: tuple[float, float] = (1.0, 1.0),
    most: int = 6,
) -> Scene:
    """Draw a scene of 1 to 6 objects on any ground.

    Objects are 4 to 12 cells wide at 20 cells a side (the more of them, the smaller) and at least three fifths of each
    are visible. On flat grounds the colours are those that other programs use as well, and differ from the ground.

    Parameters
    ----------
    seed : int or numpy.random.Generator
        The same seed gives the same scene.
    surfaces : sequence of str
        Which grounds are drawn, each as often.
    extent : (float, float)
        Height and width of the picture, in sides.
    most : int
        Largest number of objects, 1 to 6.
    """
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    shares = np.array(_TOTALS[:most]) / sum(_TOTALS[:most])
    while True:
        surface = surfaces[int(rng.integers(len(surfaces)))]
        kinds = draw_kinds(rng, int(rng.choice(most, p=shares)) + 1)
        scene = None if kinds is None else _scatter(rng, kinds, surface, extent)
        if scene is not None:
            return scene


def make_flat(seed: int | np.random.Generator) -> Scene:
    """Draw a scene of flat shapes on a plain, soft or noisy ground: :func:`make_varied` without texture."""
    return make_varied(seed, SURFACES[1:])
