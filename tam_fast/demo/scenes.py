"""Generated scenes of coloured shapes: pictures, masks, captions, questions, and a symbolic grid for the text stage.

Everything follows from a :class:`numpy.random.Generator` (or a seed), so a scene is reproduced exactly by its seed. All
geometry is in fractions of the picture's side; a scene can be rendered at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = [
    "COLOURS",
    "DESCRIBE",
    "NUMBERS",
    "PLURALS",
    "SHAPES",
    "Group",
    "Object",
    "Scene",
    "caption",
    "conversation",
    "coverage",
    "make_closeup",
    "make_scene",
    "masks",
    "parse_caption",
    "render",
    "scene_words",
    "separate_caption",
]

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
NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four")
DESCRIBE = "Describe this image."

_ROTATION = {"circle": 0.0, "square": 10.0, "diamond": 10.0, "cross": 10.0}
_SUPERSAMPLE = 3


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
    """Objects in drawing order (later ones cover earlier ones) and the seed of the background."""

    objects: tuple[Object, ...]
    background: int

    @property
    def groups(self) -> tuple[Group, ...]:
        """Kinds in reading order: from left to right by the leftmost member's centre."""
        kinds: dict[tuple[str, str], list[int]] = {}
        for index in sorted(range(len(self.objects)), key=lambda i: self.objects[i].x):
            kinds.setdefault((self.objects[index].colour, self.objects[index].shape), []).append(index)
        return tuple(Group(colour, shape, tuple(indices)) for (colour, shape), indices in kinds.items())


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


def _alpha(item: Object, size: int, supersample: int) -> NDArray[np.float32]:
    """Coverage (size, size) float32 in [0, 1] of one object, before anything covers it."""
    side = size * supersample
    angle = np.deg2rad(item.angle)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = (_outline(item.shape) @ rotation * item.radius + (item.x, item.y)) * side - 0.5
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255)
    if supersample > 1:
        canvas = canvas.reduce(supersample)
    return np.asarray(canvas, dtype=np.float32) / 255.0


def _visible(scene: Scene, size: int, supersample: int) -> NDArray[np.float32]:
    """Visible coverage (n, size, size) float32 of every object; the sum over objects is at most 1."""
    layers = np.zeros((len(scene.objects), size, size), dtype=np.float32)
    free = np.ones((size, size), dtype=np.float32)
    for index in reversed(range(len(scene.objects))):
        alpha = _alpha(scene.objects[index], size, supersample)
        layers[index] = alpha * free
        free *= 1.0 - alpha
    return layers


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
        limit = _ROTATION.get(shape, 16.0)
        jitter = rng.integers(-16, 17, 3)
        red, green, blue = (int(v) for v in np.clip(np.array(COLOURS[colour]) + jitter, 0, 255))
        placed.append(Object(colour, shape, x, y, radius, float(rng.uniform(-limit, limit)), (red, green, blue)))
    return placed


def make_scene(seed: int | np.random.Generator) -> Scene:
    """Draw a scene of 1 to 4 objects.

    Three scenes in four hold as many kinds as objects; the rest repeat one kind (for plurals). In one scene
    of ten kinds may share a colour, in three of ten a shape. Every object is 5.4 to 8 cells wide on a 20x20 grid and at
    least three quarters of it are visible.

    Parameters
    ----------
    seed : int or numpy.random.Generator
        The same seed gives the same scene.
    """
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    names = list(COLOURS)
    while True:
        total = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.3, 0.3, 0.25]))
        repeats = int(rng.integers(2, total + 1)) if total > 1 and rng.random() < 0.25 else 1
        number = total - repeats + 1
        colours = [names[i] for i in rng.choice(len(names), number, replace=bool(rng.random() < 0.1))]
        shapes = [SHAPES[i] for i in rng.choice(len(SHAPES), number, replace=bool(rng.random() < 0.3))]
        kinds = list(zip(colours, shapes, strict=True))
        if len(set(kinds)) < number:
            continue
        everything = kinds + [kinds[0]] * (repeats - 1)
        order = rng.permutation(total)
        objects = _place(rng, [everything[i] for i in order])
        if objects is None:
            continue
        scene = Scene(tuple(objects), int(rng.integers(2**31)))
        if total == 1:
            return scene
        whole = [float(_alpha(item, 40, 1).sum()) for item in objects]
        seen = _visible(scene, 40, 1).sum(axis=(1, 2))
        if all(part >= 0.75 * full for part, full in zip(seen, whole, strict=True)):
            return scene


def make_closeup(rng: np.random.Generator) -> Scene:
    """Draw one object, twice as large as in :func:`make_scene`: the warm-up of the training begins with it."""
    colour, shape = list(COLOURS)[int(rng.integers(len(COLOURS)))], SHAPES[int(rng.integers(len(SHAPES)))]
    radius = float(rng.uniform(0.27, 0.4))
    x, y = (float(v) for v in rng.uniform(radius - 0.02, 1.02 - radius, 2))
    limit = _ROTATION.get(shape, 16.0)
    red, green, blue = (int(v) for v in np.clip(np.array(COLOURS[colour]) + rng.integers(-16, 17, 3), 0, 255))
    item = Object(colour, shape, x, y, radius, float(rng.uniform(-limit, limit)), (red, green, blue))
    return Scene((item,), int(rng.integers(2**31)))


def _background(seed: int, size: int) -> NDArray[np.float32]:
    """Paint a muted, uneven surface (size, size, 3): cloudy patches, sometimes stripes or a gradient. Values 0..255."""
    rng = np.random.default_rng(seed)
    value = rng.uniform(30, 225)
    base = value + rng.uniform(-12, 12, 3)
    cells = int(rng.integers(3, 9))
    clouds = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    surface = np.asarray(clouds.resize((size, size), Image.Resampling.BICUBIC)) * rng.uniform(4, 26)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    kind = rng.random()
    if kind < 0.3:
        surface = surface + ramp[:, None] * rng.uniform(-25, 25) + ramp[None, :] * rng.uniform(-25, 25)
    elif kind < 0.55:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(4, 24)
        phase = ramp[:, None] * np.sin(angle) + ramp[None, :] * np.cos(angle)
        surface = surface + np.sin(phase * waves) * rng.uniform(4, 14)
    tint = 1.0 + rng.uniform(-0.12, 0.12, 3)
    return (base + surface[..., None] * tint).astype(np.float32)


def render(scene: Scene, size: int = 160) -> NDArray[np.uint8]:
    """Picture of a scene, (size, size, 3) uint8 RGB: anti-aliased shapes, uneven light, pixel noise."""
    rng = np.random.default_rng(scene.background + 1)
    picture = _background(scene.background, size)
    for item in scene.objects:
        alpha = _alpha(item, size, _SUPERSAMPLE)[..., None]
        picture = picture * (1.0 - alpha) + np.array(item.rgb, dtype=np.float32) * alpha
    lamps = Image.fromarray(rng.uniform(0.9, 1.08, (3, 3)).astype(np.float32))
    light = np.asarray(lamps.resize((size, size), Image.Resampling.BILINEAR))
    noise = rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(rng.uniform(2.0, 9.0))
    picture = picture * light[..., None] + noise
    return np.asarray(np.clip(picture, 0, 255), dtype=np.uint8)


def masks(scene: Scene, size: int = 160) -> NDArray[np.bool_]:
    """Visible pixels of every object, (n, size, size) bool, in the order of ``scene.objects``."""
    return _visible(scene, size, _SUPERSAMPLE) > 0.5


def coverage(scene: Scene, grid: int) -> NDArray[np.float32]:
    """Visible share of every grid cell that each object covers, (n, grid, grid) float32 in [0, 1]."""
    cells = _visible(scene, grid * 4, 1)
    return np.asarray(cells.reshape(len(scene.objects), grid, 4, grid, 4).mean(axis=(2, 4), dtype=np.float32))


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _phrase(group: Group) -> str:
    if group.count == 1:
        return f"{'an' if group.colour == 'orange' else 'a'} {group.colour} {group.shape}"
    return f"{NUMBERS[group.count]} {group.colour} {PLURALS[group.shape]}"


def caption(scene: Scene) -> str:
    """List of all kinds from left to right: "The image shows a red circle, two blue stars and a pink moon."."""
    return f"The image shows {_join([_phrase(group) for group in scene.groups])}."


def separate_caption(scene: Scene) -> str | None:
    """List all kinds with noun and adjective apart: "The circle is red and the stars are blue.".

    None where two kinds share their shape.
    """
    groups = scene.groups
    if len({group.shape for group in groups}) < len(groups):
        return None
    parts = [
        f"the {group.shape} is {group.colour}" if group.count == 1 else f"the {PLURALS[group.shape]} are {group.colour}"
        for group in groups
    ]
    text = _join(parts)
    return text[0].upper() + text[1:] + "."


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _question(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """One question on a scene and its answer."""
    groups, total = scene.groups, len(scene.objects)
    kind = int(rng.integers(6))
    if kind == 0:
        amount = "is one object" if total == 1 else f"are {NUMBERS[total]} objects"
        return "How many objects are there?", f"There {amount} in the image."
    group = groups[int(rng.integers(len(groups)))]
    if kind == 1:
        same = [g for g in groups if g.shape == group.shape]
        colours = _join([g.colour for g in same])
        if sum(g.count for g in same) == 1:
            return f"What colour is the {group.shape}?", f"The {group.shape} is {colours}."
        plural = PLURALS[group.shape]
        return f"What colour are the {plural}?", f"The {plural} are {colours}."
    if kind == 2:
        same = [g for g in groups if g.colour == group.colour]
        if sum(g.count for g in same) == 1:
            article = "an orange" if group.colour == "orange" else f"a {group.colour}"
            return f"What is the {group.colour} object?", f"It is {article} {group.shape}."
        kind = 4
    if kind == 3:
        if rng.random() < 0.5:
            group = Group(_pick(rng, list(COLOURS)), _pick(rng, SHAPES), (0,))
        match = next((g for g in groups if (g.colour, g.shape) == (group.colour, group.shape)), None)
        article = "an orange" if group.colour == "orange" else f"a {group.colour}"
        question = f"Is there {article} {group.shape}?"
        if match is None:
            return question, f"No, there is no {group.colour} {group.shape}."
        return question, f"Yes, there {'is' if match.count == 1 else 'are'} {_phrase(match)}."
    if kind == 4:
        shape = group.shape if rng.random() < 0.7 else _pick(rng, SHAPES)
        count = sum(g.count for g in groups if g.shape == shape)
        question = f"How many {PLURALS[shape]} are there?"
        if count == 0:
            return question, f"There are no {PLURALS[shape]}."
        return question, f"There is one {shape}." if count == 1 else f"There are {NUMBERS[count]} {PLURALS[shape]}."
    noun = group.shape if group.count == 1 else PLURALS[group.shape]
    separate = separate_caption(scene)
    if separate is None:
        same = [g for g in groups if g.shape == group.shape]
        count = sum(g.count for g in same)
        noun = group.shape if count == 1 else PLURALS[group.shape]
        return f"How many {PLURALS[group.shape]} are there?", (
            f"There is one {noun}." if count == 1 else f"There are {NUMBERS[count]} {noun}."
        )
    return "What colour is each object?", separate


def conversation(scene: Scene, rng: np.random.Generator, turns: int) -> list[tuple[str, str]]:
    """Questions and answers on one scene: the first turn usually a full caption, the others drawn at random."""
    result: list[tuple[str, str]] = []
    start = rng.random()
    separate = separate_caption(scene)
    if start < 0.6:
        result.append((_pick(rng, (DESCRIBE, DESCRIBE, "What is in the image?", "List the objects.")), caption(scene)))
    elif start < 0.8 and separate is not None:
        result.append(("What colour is each object?", separate))
    while len(result) < turns:
        result.append(_question(scene, rng))
    return result[:turns]


def parse_caption(text: str) -> list[tuple[int, str, str]]:
    """Named objects of a list caption: (count, colour, shape) for every colour-noun pair, repeats included.

    A noun without a colour before it is returned with an empty colour, and a count that is missing counts as 1.
    """
    nouns = {**{shape: shape for shape in SHAPES}, **{plural: shape for shape, plural in PLURALS.items()}}
    named: list[tuple[int, str, str]] = []
    count, colour = 1, ""
    for word in text.replace(",", " ").replace(".", " ").lower().split():
        if word in ("a", "an"):
            count = 1
        elif word in NUMBERS:
            count = NUMBERS.index(word)
        elif word in COLOURS:
            colour = word
        elif word in nouns:
            named.append((count, colour, nouns[word]))
            count, colour = 1, ""
    return named


def scene_words() -> list[str]:
    """Return every word of the captions, questions and answers above and of the chat layout, without punctuation."""
    words = set(COLOURS) | set(SHAPES) | set(PLURALS.values()) | set(NUMBERS)
    other = (
        "The the There there This this Describe What List How Is It Yes No image is are a an and in no each colour "
        "color colours object objects many of it shows picture scene nothing You you helpful assistant system user "
        "see do can which Which has where on"
    )
    words.update(other.split(" "))
    return sorted(words)
