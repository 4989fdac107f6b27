"""What the objects of a scene lie on, and the finished picture: :func:`render`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tam_fast.demo.scenes.shapes import SUPERSAMPLE, Floats, Scene, alpha_of

__all__ = ["SURFACES", "ground_colour", "render"]

SURFACES: tuple[str, ...] = ("textured", "plain", "soft", "noisy")
"""Kinds of ground: ``textured`` is cloudy, striped and unevenly lit; ``plain`` is one colour; ``soft`` a gradient of
two; ``noisy`` one colour with noise in every pixel. On all but the first, shapes are flat: one colour each."""


def ground_colour(seed: int, which: int = 0) -> NDArray[np.float64]:
    """Colour (3,) in 0..255 of a flat ground, muted; a soft one runs from colour 0 to colour 1."""
    rng = np.random.default_rng([seed, 7, which])
    kind = rng.random()
    if kind < 0.15:
        value = 255.0
    elif kind < 0.25:
        value = 0.0
    else:
        value = float(rng.uniform(20, 250))
    if which:
        first = ground_colour(seed)
        value = float(first.mean() + rng.uniform(-60, 60))
    tint = rng.uniform(-14, 14, 3) if 0.0 < value < 255.0 else np.zeros(3)
    return np.clip(value + tint, 0, 255)


def _textured(seed: int, height: int, width: int) -> Floats:
    """Paint a muted, uneven surface (height, width, 3): clouds, sometimes stripes or a gradient. Values 0..255."""
    rng = np.random.default_rng(seed)
    value = rng.uniform(30, 225)
    base = value + rng.uniform(-12, 12, 3)
    cells = int(rng.integers(3, 9))
    clouds = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    surface = np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC)) * rng.uniform(4, 26)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    kind = rng.random()
    if kind < 0.3:
        surface = surface + down * rng.uniform(-25, 25) + across * rng.uniform(-25, 25)
    elif kind < 0.55:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(4, 24)
        phase = down * np.sin(angle) + across * np.cos(angle)
        surface = surface + np.sin(phase * waves) * rng.uniform(4, 14)
    tint = 1.0 + rng.uniform(-0.12, 0.12, 3)
    return np.asarray(base + surface[..., None] * tint, dtype=np.float32)


def _flat(scene: Scene, height: int, width: int) -> Floats:
    """Paint a flat ground (height, width, 3). Values 0..255."""
    first = ground_colour(scene.background)
    if scene.surface != "soft":
        return np.full((height, width, 3), first, dtype=np.float32)
    angle = np.random.default_rng([scene.background, 8]).uniform(0, 2 * np.pi)
    down = np.linspace(-1, 1, height)[:, None] * np.sin(angle)
    across = np.linspace(-1, 1, width)[None, :] * np.cos(angle)
    share = (0.5 + (down + across) / (2 * np.sqrt(2)))[..., None]
    return np.asarray((1.0 - share) * first + share * ground_colour(scene.background, 1), dtype=np.float32)


def render(scene: Scene, size: int = 160) -> NDArray[np.uint8]:
    """Picture of a scene, (height, width, 3) uint8 RGB, with anti-aliased shapes.

    A textured scene has uneven light and pixel noise, a noisy one pixel noise; the others have neither. `size` is the
    number of pixels along a side: the height and width of a picture whose extent is (1, 1).

    Raises
    ------
    ValueError
        If the scene's surface is none of :data:`SURFACES`.
    """
    if scene.surface not in SURFACES:
        raise ValueError(f"scene: expected a surface among {', '.join(SURFACES)}, got {scene.surface!r}")
    height, width = scene.pixels(size)
    rng = np.random.default_rng(scene.background + 1)
    textured = scene.surface == "textured"
    picture = _textured(scene.background, height, width) if textured else _flat(scene, height, width)
    for item in scene.objects:
        alpha = alpha_of(item, size, SUPERSAMPLE, scene.extent)[..., None]
        picture = picture * (1.0 - alpha) + np.array(item.rgb, dtype=np.float32) * alpha
    if textured:
        lamps = Image.fromarray(rng.uniform(0.9, 1.08, (3, 3)).astype(np.float32))
        light = np.asarray(lamps.resize((width, height), Image.Resampling.BILINEAR))
        noise = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(2.0, 9.0))
        picture = picture * light[..., None] + noise
    elif scene.surface == "noisy":
        noise = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(3.0, 14.0))
        picture = picture + noise
    return np.asarray(np.clip(picture, 0, 255), dtype=np.uint8)
