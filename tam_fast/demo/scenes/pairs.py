"""Two images in one question: :func:`make_pair`, :func:`ask_pair`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from tam_fast.demo.scenes.captions import kind_phrase, listing
from tam_fast.demo.scenes.placing import make_varied, paint
from tam_fast.demo.scenes.questions import Turn
from tam_fast.demo.scenes.shapes import COLOURS, SHAPES, Scene

__all__ = ["PAIR_EXTENT", "PAIR_QUESTIONS", "ask_pair", "changed", "make_pair", "talk_pair"]

PAIR_EXTENT = (0.8, 0.8)
"""Extent of each image of a pair: 16x16 cells where a single image has 20x20."""

_ORDINALS = ("first", "second")
Pair = tuple[Scene, Scene]


def make_pair(seed: int | np.random.Generator) -> Pair:
    """Draw two scenes: half of the time the second is the first with one object of another kind, else they are apart.

    Each holds one to three objects.
    """
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    first = make_varied(rng, extent=PAIR_EXTENT, most=3)
    if rng.random() < 0.5:
        return first, make_varied(rng, extent=PAIR_EXTENT, most=3)
    index = int(rng.integers(len(first.objects)))
    item = first.objects[index]
    there = {(o.colour, o.shape) for o in first.objects}
    while True:
        colour, shape = item.colour, item.shape
        if rng.random() < 0.5:
            colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        else:
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
        if (colour, shape) not in there:
            break
    rgb = item.rgb if colour == item.colour else paint(rng, colour, flat=False)
    objects = list(first.objects)
    objects[index] = replace(item, colour=colour, shape=shape, rgb=rgb, angle=0.0)
    return first, replace(first, objects=tuple(objects))


def changed(pair: Pair) -> int | None:
    """Index of the one object that differs in kind between two scenes that are otherwise alike; None otherwise."""
    first, second = pair
    if len(first.objects) != len(second.objects):
        return None
    kinds = [
        [(o.colour, o.shape, o.x, o.y) for o in scene.objects if (o.x, o.y) in {(p.x, p.y) for p in other.objects}]
        for scene, other in ((first, second), (second, first))
    ]
    if len(kinds[0]) < len(first.objects):
        return None
    different = [i for i, (a, b) in enumerate(zip(*kinds, strict=True)) if a != b]
    return different[0] if len(different) == 1 else None


def _which(pair: Pair, rng: np.random.Generator) -> Turn:
    kinds = [{(o.colour, o.shape) for o in scene.objects} for scene in pair]
    if rng.random() < 0.2:
        colour, shape = list(COLOURS)[int(rng.integers(len(COLOURS)))], SHAPES[int(rng.integers(len(SHAPES)))]
    else:
        every = sorted(kinds[0] | kinds[1])
        colour, shape = every[int(rng.integers(len(every)))]
    shown = [(colour, shape) in one for one in kinds]
    name = kind_phrase(colour, shape)
    if all(shown):
        answer = f"Both images show {name}."
    elif any(shown):
        answer = f"The {_ORDINALS[shown.index(True)]} image shows {name}."
    else:
        answer = f"No image shows {name}."
    return Turn(f"Which image shows {name}?", answer, "which image")


def _difference(pair: Pair, rng: np.random.Generator) -> Turn | None:
    del rng
    index = changed(pair)
    if index is None:
        return None
    first, second = (kind_phrase(scene.objects[index].colour, scene.objects[index].shape) for scene in pair)
    answer = f"The first image shows {first}, the second image shows {second}."
    return Turn("What is different?", answer, "difference")


def _describe(pair: Pair, rng: np.random.Generator) -> Turn:
    which = int(rng.integers(2))
    name = _ORDINALS[which]
    return Turn(f"Describe the {name} image.", f"The {name} image shows {listing(pair[which])}.", "describe one")


PAIR_QUESTIONS: Mapping[str, Callable[[Pair, np.random.Generator], Turn | None]] = MappingProxyType(
    {"which image": _which, "difference": _difference, "describe one": _describe}
)
"""Kinds of questions about two images."""


def ask_pair(pair: Pair, kind: str, rng: np.random.Generator) -> Turn | None:
    """Ask one question of a kind (:data:`PAIR_QUESTIONS`); None where the pair does not settle it."""
    return PAIR_QUESTIONS[kind](pair, rng)


def talk_pair(pair: Pair, rng: np.random.Generator, turns: int) -> list[Turn]:
    """Draw questions about two images."""
    result: list[Turn] = []
    kinds = list(PAIR_QUESTIONS)
    while len(result) < turns:
        turn = ask_pair(pair, kinds[int(rng.integers(len(kinds)))], rng)
        if turn is not None:
            result.append(turn)
    return result
