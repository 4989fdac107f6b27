"""The embedded model and one fixed answer about its first scene, made once a process."""

from __future__ import annotations

import functools
from typing import Any

from PIL import Image

from tam_fast.demo import load_demo, sample_scenes
from tam_fast.evaluation.forced import Forced, forced
from tam_fast.explain.explainer import Explainer

PROMPT = "Describe this image."
ANSWER = "The image shows a green star"  # the beginning of what the model says of it


@functools.cache
def explainer() -> Explainer:
    return Explainer(*load_demo())


@functools.cache
def scene() -> Image.Image:
    with Image.open(sample_scenes()[0]) as opened:
        return opened.convert("RGB")


@functools.cache
def asked() -> Forced:
    return forced(explainer(), scene(), ANSWER, PROMPT)


def small_scene(side: int = 56) -> Image.Image:
    """Make the scene of few pixels, though of as many cells."""
    return scene().resize((side, side))


def small(answer: Any = ANSWER) -> Forced:
    return forced(explainer(), small_scene(), answer, PROMPT)
