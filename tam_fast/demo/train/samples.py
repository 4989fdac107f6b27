"""What is asked about what: :class:`Sample`, drawn by kind for training and validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from tam_fast.demo import scenes as sc
from tam_fast.demo.train.plan import GRID, Plan

__all__ = ["Sample", "Shape", "captioned", "draw"]


@dataclass(frozen=True)
class Shape:
    """Visual slots of a batch: ``planes`` rasters of height x width cells, one video or so many images."""

    height: int
    width: int
    planes: int = 1
    video: bool = False

    @property
    def cells(self) -> int:
        """Cells of one plane."""
        return self.height * self.width

    @property
    def slots(self) -> int:
        """Visual tokens in all."""
        return self.planes * self.cells


@dataclass(frozen=True)
class Sample:
    """What is seen and what is said about it.

    ``planes`` holds the scenes that each plane shows: one for an image, two consecutive frames for a plane of a video.
    ``talks`` are conversations on it, each by itself, of (question, answer) in turn.
    """

    planes: tuple[tuple[sc.Scene, ...], ...]
    talks: tuple[tuple[tuple[str, str], ...], ...]
    video: bool = False

    def shape(self, grid: int) -> Shape:
        """Slots at `grid` cells along a side."""
        height, width = self.planes[0][0].pixels(grid)
        return Shape(height, width, len(self.planes), self.video)


# Most pictures are square; the others teach that a row may be shorter or longer. 5 cells a side divide all of them.
_EXTENTS: tuple[tuple[float, float], ...] = ((1.0, 1.0), (0.8, 1.2), (1.2, 0.8), (0.8, 0.8))
_EXTENT_SHARES = (0.76, 0.08, 0.08, 0.08)


def _said(turns: Sequence[sc.Turn]) -> tuple[tuple[str, str], ...]:
    return tuple((turn.question, turn.answer) for turn in turns)


def _images(rng: np.random.Generator, plan: Plan, count: int, pictures: bool, drills: int) -> list[Sample]:
    extent = _EXTENTS[int(rng.choice(len(_EXTENTS), p=_EXTENT_SHARES))]
    scenes = [
        sc.make_scene(rng)
        if extent == (1.0, 1.0) and rng.random() < plan.textured
        else sc.make_varied(rng, extent=extent)
        for _ in range(count)
    ]
    return [Sample(((scene,),), _talks(scene, rng, plan.talks, not pictures, drills)) for scene in scenes]


def _talks(
    scene: sc.Scene, rng: np.random.Generator, count: int, places: bool, drills: int
) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Draw talks on one image: mostly a description, by itself or with a question after it, else two questions each."""
    talks: list[tuple[tuple[str, str], ...]] = []
    for index in range(count - drills):
        described = index == 0 and rng.random() < 0.75
        turns = 1 if described and rng.random() < 0.6 else 2
        talks.append(_said(sc.talk(scene, rng, turns, described=float(described), places=places)))
    return tuple(talks) + tuple(_said((sc.drill(scene, rng),)) for _ in range(drills))


def _pairs(rng: np.random.Generator, plan: Plan, count: int, pictures: bool, drills: int) -> list[Sample]:
    del pictures, drills
    pairs = [sc.make_pair(rng) for _ in range(count)]
    return [
        Sample(((pair[0],), (pair[1],)), tuple(_said((turn,)) for turn in sc.talk_pair(pair, rng, plan.talks)))
        for pair in pairs
    ]


def film_planes(film: sc.Film) -> tuple[tuple[sc.Scene, ...], ...]:
    """Consecutive frames two by two: what one temporal cell shows."""
    return tuple((film.frames[i], film.frames[i + 1]) for i in range(0, len(film.frames), 2))


def _films(rng: np.random.Generator, plan: Plan, count: int, pictures: bool, drills: int) -> list[Sample]:
    del pictures, drills
    frames = sc.FRAMES[int(rng.integers(len(sc.FRAMES)))]
    films = [sc.make_film(rng, frames) for _ in range(count)]
    return [
        Sample(film_planes(film), tuple(_said((turn,)) for turn in sc.talk_film(film, rng, plan.talks)), video=True)
        for film in films
    ]


_DRAW: Mapping[str, Callable[[np.random.Generator, Plan, int, bool, int], list[Sample]]] = MappingProxyType(
    {"image": _images, "pair": _pairs, "film": _films}
)


def draw(rng: np.random.Generator, plan: Plan, count: int, *, pictures: bool, drills: int = 0) -> list[Sample]:
    """Draw `count` samples of one kind and one shape; the kind by the plan's shares.

    What is said with `pictures` of single images never says where anything is: that is learned from language alone.
    `drills` of the talks on one image are exercises (:func:`tam_fast.demo.scenes.drill`), for the text stage.
    """
    kinds, shares = list(plan.kinds), np.array(list(plan.kinds.values()))
    kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
    return _DRAW[kind](rng, plan, count, pictures, drills)


def captioned(rng: np.random.Generator, plan: Plan, count: int, grid: int = GRID) -> list[Sample]:
    """Draw single images with a caption each: for the warm-up. On coarse grids one object fills most of the picture.

    A close-up on 10 cells has the scale of a scene on 20 at a quarter of the price.
    """
    if grid < GRID:
        scenes = [sc.make_closeup(rng, sc.SURFACES) for _ in range(count)]
    else:
        scenes = [sc.make_scene(rng) if rng.random() < plan.textured else sc.make_varied(rng) for _ in range(count)]
    return [Sample(((scene,),), (((sc.DESCRIBE, sc.caption(scene)),),)) for scene in scenes]
