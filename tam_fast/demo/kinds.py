"""What the embedded model can be asked, and what counts as right: :data:`KINDS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tam_fast.demo import scenes as sc
from tam_fast.demo.asking import PATCH, SIZE
from tam_fast.demo.figures import Cover

__all__ = ["KINDS", "Case", "Kind", "judge", "judge_caption"]


@dataclass(frozen=True)
class Case:
    """One question to the model, with all that is known about its answer.

    ``images`` are one or two scenes, or ``film`` the frames of a video; ``first`` is a turn to ask before.
    """

    turn: sc.Turn
    images: tuple[sc.Scene, ...] = ()
    film: tuple[sc.Scene, ...] = ()
    first: sc.Turn | None = None

    @property
    def planes(self) -> list[tuple[sc.Scene, ...]]:
        """Scenes that each plane shows: one of an image, two frames of a video."""
        if self.film:
            return [self.film[i : i + 2] for i in range(0, len(self.film), 2)]
        return [(scene,) for scene in self.images]

    def cover(self, words: Sequence[str]) -> Cover:
        """Return how much of every cell an answer's noun ought to light: see :data:`tam_fast.demo.figures.Cover`.

        With two images, "first", "second" or "both" before a noun says in which of them.
        """
        planes = [_kinds_of_cells(scenes) for scenes in self.planes]

        def covered(shape: str, colour: str, place: int) -> NDArray[np.float32]:
            named = [word.lower() for word in words[:place] if word.lower() in ("first", "second", "both")]
            last = named[-1] if named and len(self.images) == 2 else "both"
            meant = {"first": (0,), "second": (1,)}.get(last, range(len(planes)))
            result: list[NDArray[np.float32]] = []
            for index, (cells, blank) in enumerate(planes):
                fits = [part for (c, s), part in cells if index in meant and s == shape and colour in ("", c)]
                result.append(sum(fits, start=blank))
            whole: NDArray[np.float32] = np.minimum(np.concatenate(result), np.float32(1.0))
            return whole

        return covered


_Cells = tuple[list[tuple[tuple[str, str], NDArray[np.float32]]], NDArray[np.float32]]


def _kinds_of_cells(scenes: Sequence[sc.Scene]) -> _Cells:
    """Each object's kind and share of every cell, averaged over frames; and a plane of zeros."""
    found: list[tuple[tuple[str, str], NDArray[np.float32]]] = []
    rows, columns = scenes[0].pixels(SIZE // PATCH)
    for scene in scenes:
        blocks = sc.masks(scene, SIZE).reshape(len(scene.objects), rows, PATCH, columns, PATCH)
        cells = blocks.mean(axis=(2, 4), dtype=np.float32) / np.float32(len(scenes))
        found += [((item.colour, item.shape), part) for item, part in zip(scene.objects, cells, strict=True)]
    return found, np.zeros((rows, columns), dtype=np.float32)


@dataclass(frozen=True)
class Kind:
    """A kind of question: what must have been learned for it, how a case is drawn (None: not from this scene)."""

    title: str
    needs: str
    draw: Callable[[np.random.Generator], Case | None]


def _scene(rng: np.random.Generator) -> sc.Scene:
    return sc.make_scene(rng) if rng.random() < 0.5 else sc.make_varied(rng)


def _described(scene: sc.Scene) -> Case:
    turn = sc.Turn(sc.DESCRIBE, sc.caption(scene), "caption", tuple(range(len(scene.objects))))
    return Case(turn, (scene,))


def _asked(kind: str) -> Callable[[np.random.Generator], Case | None]:
    def draw(rng: np.random.Generator) -> Case | None:
        scene = _scene(rng)
        turn = sc.ask(scene, kind, rng)
        return None if turn is None else Case(turn, (scene,))

    return draw


def _second(rng: np.random.Generator) -> Case | None:
    scene = _scene(rng)
    first = sc.ask(scene, ("colour", "count", "presence", "shape")[int(rng.integers(4))], rng)
    turn = None if first is None else sc.follow_up(scene, first, rng)
    return None if turn is None else Case(turn, (scene,), first=first)


def _about_pair(kind: str) -> Callable[[np.random.Generator], Case | None]:
    def draw(rng: np.random.Generator) -> Case | None:
        pair = sc.make_pair(rng)
        turn = sc.ask_pair(pair, kind, rng)
        return None if turn is None else Case(turn, pair)

    return draw


def _event(rng: np.random.Generator) -> Case:
    film = sc.make_film(rng)
    turn = sc.Turn("What happens in the video?", sc.what_happens(film), "event", (film.event.index,))
    return Case(turn, film=film.frames)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "captions": Kind("captions of textured scenes", "image", lambda rng: _described(sc.make_scene(rng))),
        "flat": Kind("captions of flat scenes, one to six objects", "image", lambda rng: _described(sc.make_flat(rng))),
        "colour": Kind("questions: colour of", "image", _asked("colour")),
        "shape": Kind("questions: shape of", "image", _asked("shape")),
        "count": Kind("questions: how many", "image", _asked("count")),
        "presence": Kind("yes or no: is there", "image", _asked("presence")),
        "relation": Kind("yes or no: left of, above", "image", _asked("relation")),
        "place": Kind("position: where is", "image", _asked("place")),
        "second": Kind("second turns", "image", _second),
        "which image": Kind("two images: which shows", "pair", _about_pair("which image")),
        "difference": Kind("two images: what is different", "pair", _about_pair("difference")),
        "describe one": Kind("two images: describe one", "pair", _about_pair("describe one")),
        "event": Kind("video: what happens", "film", _event),
    }
)
"""Kinds of questions by name. The order fixes the streams that cases are drawn from: add at the end."""


def judge_caption(scene: sc.Scene, text: str) -> tuple[bool, bool, bool]:
    """(precise, complete, exact) of a caption, as :mod:`tam_fast.demo.evaluate` defines them."""
    there = {(group.colour, group.shape): group.count for group in scene.groups}
    named: Counter[tuple[str, str]] = Counter()
    stated: dict[tuple[str, str], list[int]] = {}
    for count, colour, shape in sc.parse_caption(text):
        named[colour, shape] += 1
        stated.setdefault((colour, shape), []).append(count)
    precise = bool(named) and all(max(stated[kind]) <= there.get(kind, 0) for kind in named)
    complete = all(count in (max(stated.get(kind, [0])), sum(stated.get(kind, [0]))) for kind, count in there.items())
    return precise, complete, precise and complete and set(named.values()) == {1}


def judge(name: str, case: Case, text: str) -> dict[str, float]:
    """Figures of one answer: shares of what is right in it."""
    if name in ("captions", "flat"):
        precise, complete, exact = judge_caption(case.images[0], text)
        figures = {"precision": precise, "coverage": complete, "exact": exact}
        if name == "flat":
            figures["exact, to three objects" if len(case.images[0].objects) <= 3 else "exact, four to six"] = exact
        return {figure: float(value) for figure, value in figures.items()}
    right = text == case.turn.answer
    figures = {"right": right}
    if name in ("presence", "relation"):
        says, truth = text.split(",")[0], case.turn.answer.split(",")[0]
        figures["right yes or no"] = says == truth
        figures[f"right where it is {truth.lower()}"] = says == truth
    if name == "event":
        truth = case.turn.answer
        said, meant = text.rstrip(".").split(), truth.rstrip(".").split()
        figures["right object"] = said[1:3] == meant[1:3]
        figures["right verb"] = [verb for verb in sc.VERBS if verb in said] == [
            verb for verb in sc.VERBS if verb in meant
        ]
    return {figure: float(value) for figure, value in figures.items()}
