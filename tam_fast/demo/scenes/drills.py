"""Telegraphic exercises for the text stage of the training: :func:`drill`.

"The circle is red" asks a model for two steps at once: at "circle" to fetch what that object is like, at "is" to say
it. In "circle red" the noun's own place must say it. Learned first, the other follows; without, it does not come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from tam_fast.demo.scenes.captions import join
from tam_fast.demo.scenes.questions import Turn, absent_kind, place_of
from tam_fast.demo.scenes.shapes import NUMBERS, PLURALS, SHAPES, Scene

__all__ = ["DRILLS", "drill"]

_MOST = 4


def _turn(form: str, asked: list[str], answers: list[str]) -> Turn:
    parts = [f"{name} {answer}" for name, answer in zip(asked, answers, strict=True)]
    return Turn(f"{form} {join(asked)}?", f" {join(parts)}.", "drill")


def _colours(scene: Scene, rng: np.random.Generator) -> Turn | None:
    shapes = [item.shape for item in scene.objects]
    single = [item for item in scene.objects if shapes.count(item.shape) == 1]
    if not single:
        return None
    asked = [single[int(index)] for index in rng.permutation(len(single))[:_MOST]]
    return _turn("What colour", [item.shape for item in asked], [item.colour for item in asked])


def _places(scene: Scene, rng: np.random.Generator) -> Turn | None:
    single = [group for group in scene.groups if group.count == 1]
    if not single:
        return None
    asked = [single[int(index)] for index in rng.permutation(len(single))[:_MOST]]
    where = [place_of(scene, group.indices[0], central=0.0) or "" for group in asked]
    return _turn("Where", [f"{group.colour} {group.shape}" for group in asked], where)


def _counts(scene: Scene, rng: np.random.Generator) -> Turn:
    shapes = [item.shape for item in scene.objects]
    there = list(dict.fromkeys(shapes))
    absent = [shape for shape in SHAPES if shape not in there]
    names = [*there, absent[int(rng.integers(len(absent)))]][-_MOST:]
    asked = [names[int(index)] for index in rng.permutation(len(names))]
    return _turn("How many", [PLURALS[shape] for shape in asked], [NUMBERS[shapes.count(shape)] for shape in asked])


def _presence(scene: Scene, rng: np.random.Generator) -> Turn:
    there = [(group.colour, group.shape) for group in scene.groups]
    drawn = [
        there[int(rng.integers(len(there)))] if rng.random() < 0.5 else absent_kind(scene, rng) for _ in range(_MOST)
    ]
    kinds = list(dict.fromkeys(drawn))
    answers = ["Yes" if kind in there else "No" for kind in kinds]
    return _turn("Is there", [f"{colour} {shape}" for colour, shape in kinds], answers)


DRILLS: Mapping[str, Callable[[Scene, np.random.Generator], Turn | None]] = MappingProxyType(
    {"colours": _colours, "places": _places, "counts": _counts, "presence": _presence}
)
"""Kinds of exercises; None where the scene has nothing to exercise."""


def drill(scene: Scene, rng: np.random.Generator) -> Turn:
    """Draw an exercise: "What colour star and circle?", "star red and circle blue."."""
    kinds = list(DRILLS.values())
    turn = kinds[int(rng.integers(len(kinds)))](scene, rng)
    return _counts(scene, rng) if turn is None else turn
