"""The embedded model's scenes as a data set, ``demo://scenes?n=300&seed=7``: :class:`Scenes`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from tam_fast.demo import scenes as sc
from tam_fast.evaluation.data.item import Item
from tam_fast.evaluation.data.prompts import prompt_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KINDS", "SIDE", "Counterfactual", "Hallucinated", "Scenes", "tags"]

SIDE = 160
"""Pixels along a side of a picture: 20 x 20 cells of the embedded model."""

_LABELS = {shape: number for number, shape in enumerate(sc.SHAPES, start=1)}
CATEGORIES: Mapping[str, int] = MappingProxyType(
    {name: label for shape, label in _LABELS.items() for name in (shape, sc.PLURALS[shape])}
)
"""Labels of the masks: a shape's, by its name and its plural."""


def _varied(rng: np.random.Generator) -> sc.Scene:
    return sc.make_scene(rng) if rng.random() < 0.5 else sc.make_varied(rng)


_DRAWN: Mapping[str, Callable[[np.random.Generator], sc.Scene]] = MappingProxyType(
    {"caption": sc.make_scene, "flat": sc.make_flat, "varied": sc.make_varied}
)
_ASKED = ("colour", "shape", "count", "presence", "relation", "place")

KINDS = (*_DRAWN, *_ASKED)
"""What the scenes are and what is asked: to describe one (textured, flat, of any kind), or a question of this kind."""

_YES_OR_NO = ("presence", "relation")


@dataclass(frozen=True)
class Hallucinated:
    """A sentence about one group of a scene's objects, of which one word is wrong.

    Attributes
    ----------
    text : str
        "The image shows a red moon."
    kind : "shape" or "colour"
        What is wrong.
    word : str
        The wrong word: "moon".
    instead : str
        The right one.
    true : str
        The right sentence.
    objects : tuple of int
        Whose it is about, places in ``extra["objects"]``.
    """

    text: str
    kind: str
    word: str
    instead: str
    true: str
    objects: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """The same scene with one object of another kind.

    Attributes
    ----------
    index : int
        Which object, a place in ``extra["objects"]``.
    before, after : (str, str)
        Its colour and shape, here and there.
    caption : str
        Of the other picture.
    scene : Scene
    """

    index: int
    before: tuple[str, str]
    after: tuple[str, str]
    caption: str
    scene: sc.Scene

    def load_image(self) -> Image.Image:
        """Draw the other picture."""
        return _picture(self.scene)

    def load_mask(self) -> NDArray[np.uint8]:
        """Draw its labels (H, W)."""
        return _labels(self.scene)


class Scenes:
    """Scenes of coloured shapes, of which everything is known.

    Scene i is drawn by ``numpy.random.default_rng([seed, i])``: the first 40 of 300 are the same as of 40. A mask's
    labels are shapes; singular and plural name them. ``extra`` of an item has

    ``objects``
        A dict each: ``colour``, ``shape``, ``label``, ``box`` (x0, y0, x1, y1 in pixels) and ``pixels``, how many are
        visible.
    ``regions``
        A function that returns (H, W): 0 for the ground, k + 1 for object k.
    ``caption``
        What is true of the scene, the one reference.
    ``hallucinated``
        Two sentences (:class:`Hallucinated`): a shape, and a colour, that no object of the scene has.
    ``counterfactual``
        The scene with one object of another kind (:class:`Counterfactual`).
    ``answer``, ``about``
        Of a question: the right answer, and which objects it is about.
    ``label``
        ``"yes"`` or ``"no"``, of questions of that kind.

    Parameters
    ----------
    n : int
        How many.
    seed : int
    kind : str
        See :data:`KINDS`.
    prompt : str, optional
        In place of the scene's question, or of ``"Describe this image."``; not with a kind that asks.

    Raises
    ------
    ValueError
        If an argument is unknown or out of range.
    """

    name = "demo-scenes"

    def __init__(self, n: int = 300, seed: int = 7, kind: str = "caption", prompt: str | None = None) -> None:
        if n < 1:
            raise ValueError(f"n: expected at least 1, got {n}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        if prompt is not None and kind in _ASKED:
            raise ValueError(
                f"prompt: expected none with kind={kind}, whose scenes bring their questions, got {prompt!r}"
            )
        self._n, self._seed, self._kind = n, seed, kind
        self._prompt = prompt_of(prompt) or sc.DESCRIBE

    @classmethod
    def open(cls, text: str, *, prompt: str | None = None, compat: str | None = None) -> Scenes:
        """Open what stands behind ``demo://``: ``scenes?n=300&seed=7&kind=flat``.

        Raises
        ------
        ValueError
            If it is something else; names the part.
        """
        del compat  # there is nothing to read
        name, _, query = text.partition("?")
        if name.strip("/") != "scenes":
            raise ValueError(f"data: expected demo://scenes, got demo://{text}")
        given: dict[str, str] = {}
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key not in ("n", "seed", "kind"):
                raise ValueError(f"data: expected n, seed and kind behind demo://scenes, got {key!r}")
            if key in given:
                raise ValueError(f"data: expected {key} once behind demo://scenes, got it twice")
            if key != "kind" and not re.fullmatch(r"[0-9]{1,18}", value):
                raise ValueError(f"{key}: expected a whole number, got {value!r}")
            given[key] = value
        numbers = {key: int(given[key]) for key in ("n", "seed") if key in given}
        return cls(**numbers, kind=given.get("kind", "caption"), prompt=prompt)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self._n

    def __iter__(self) -> Iterator[Item]:
        """Yield an item a scene."""
        for index in range(self._n):
            yield self._item(index)

    def scene(self, index: int) -> sc.Scene:
        """Return a scene, to draw it again."""
        return self._drawn(index)[0]

    def _drawn(self, index: int) -> tuple[sc.Scene, sc.Turn | None, np.random.Generator]:
        rng = np.random.default_rng([self._seed, index])
        if self._kind in _DRAWN:
            return _DRAWN[self._kind](rng), None, rng
        while True:
            # Until one is found that settles such a question.
            scene = _varied(rng)
            turn = sc.ask(scene, self._kind, rng)
            if turn is not None:
                return scene, turn, rng

    def _item(self, index: int) -> Item:
        scene, turn, rng = self._drawn(index)
        caption = sc.caption(scene)
        extra: dict[str, Any] = {
            "objects": _objects(scene),
            "regions": lambda: _regions(scene),
            "caption": caption,
            "hallucinated": _hallucinated(scene, rng),
            "counterfactual": _counterfactual(scene, rng),
        }
        if turn is not None:
            extra |= {"answer": turn.answer, "about": turn.about}
            if self._kind in _YES_OR_NO:
                extra["label"] = turn.answer.partition(",")[0].lower()
        return Item(
            f"{self._kind}-{self._seed}-{index}",
            lambda: _picture(scene),
            (caption if turn is None else turn.answer,),
            self._prompt if turn is None else turn.question,
            categories=CATEGORIES,
            mask=lambda: _labels(scene),
            extra=extra,
        )

    def tags(self, words: Sequence[str]) -> list[str] | None:
        """Tag words; see :func:`tags`."""
        return tags(words)

    def fingerprint(self) -> dict[str, Any]:
        """Return kind, seed and prompt; not the number, for more may be added."""
        return {"data": self.name, "kind": self._kind, "seed": self._seed, "prompt": self._prompt}


def _picture(scene: sc.Scene) -> Image.Image:
    return Image.fromarray(sc.render(scene, SIDE))


def _regions(scene: sc.Scene) -> NDArray[np.uint8]:
    made = np.zeros(scene.pixels(SIDE), dtype=np.uint8)
    for number, part in enumerate(sc.masks(scene, SIDE), start=1):
        made[part] = number
    return made


def _labels(scene: sc.Scene) -> NDArray[np.uint8]:
    known = np.array([0, *(_LABELS[item.shape] for item in scene.objects)], dtype=np.uint8)
    return np.asarray(known[_regions(scene)])


def _objects(scene: sc.Scene) -> tuple[dict[str, Any], ...]:
    found = []
    for item, part in zip(scene.objects, sc.masks(scene, SIDE), strict=True):
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        found.append(
            {
                "colour": item.colour,
                "shape": item.shape,
                "label": _LABELS[item.shape],
                "box": box,
                "pixels": int(part.sum()),
            }
        )
    return tuple(found)


def _hallucinated(scene: sc.Scene, rng: np.random.Generator) -> tuple[Hallucinated, ...]:
    """Draw a group, and tell of it with a shape, and with a colour, that is nowhere in the scene."""
    group = scene.groups[int(rng.integers(len(scene.groups)))]
    members = tuple(scene.objects[place] for place in group.indices)
    shapes = [name for name in sc.SHAPES if name not in {item.shape for item in scene.objects}]
    colours = [name for name in sc.COLOURS if name not in {item.colour for item in scene.objects}]
    shape, colour = (some[int(rng.integers(len(some)))] for some in (shapes, colours))

    def said(shape: str = group.shape, colour: str = group.colour) -> str:
        objects = tuple(replace(item, shape=shape, colour=colour) for item in members)
        return sc.caption(replace(scene, objects=objects))

    true, plural = said(), group.count > 1
    wrong, right = ((sc.PLURALS[name] if plural else name) for name in (shape, group.shape))
    return (
        Hallucinated(said(shape=shape), "shape", wrong, right, true, group.indices),
        Hallucinated(said(colour=colour), "colour", colour, group.colour, true, group.indices),
    )


def _counterfactual(scene: sc.Scene, rng: np.random.Generator) -> Counterfactual:
    """Give one object another colour, or another shape, of which there is none of that kind yet."""
    index = int(rng.integers(len(scene.objects)))
    item = scene.objects[index]
    there = {(one.colour, one.shape) for one in scene.objects}
    colours = [name for name in sc.COLOURS if (name, item.shape) not in there]
    shapes = [name for name in sc.SHAPES if (item.colour, name) not in there]
    if rng.random() < 0.5:
        colour = colours[int(rng.integers(len(colours)))]
        other = replace(item, colour=colour, rgb=sc.COLOURS[colour])
    else:
        other = replace(item, shape=shapes[int(rng.integers(len(shapes)))], angle=0.0)
    changed = replace(scene, objects=(*scene.objects[:index], other, *scene.objects[index + 1 :]))
    before, after = ((one.colour, one.shape) for one in (item, other))
    return Counterfactual(index, before, after, sc.caption(changed), changed)


# Tags of the Penn Treebank, as NLTK's tagger has them; sides ("left") and ordinals are no nouns here.
_SPOKEN: Mapping[str, str] = MappingProxyType(
    {
        "DT": "a an the this each both no",
        "CC": "and",
        "IN": "in of above below between with on at before after than",
        "TO": "to",
        "JJ": "left right top bottom middle first second different same many other more less",
        "EX": "there",
        "PRP": "it you",
        "VBZ": "is shows has happens appears vanishes moves turns does",
        "VBP": "are do have show",
        "VB": "move describe list see",
        "MD": "can",
        "RB": "not up down now then",
        "WP": "what",
        "WDT": "which",
        "WRB": "how where",
        "UH": "yes",
        "NN": "image video picture scene frame object nothing colour color shape",
        "NNS": "images objects colours",
    }
)
_TAGS: Mapping[str, str] = MappingProxyType(
    {word: tag for tag, words in _SPOKEN.items() for word in words.split()}
    | dict.fromkeys(sc.SHAPES, "NN")
    | dict.fromkeys(sc.PLURALS.values(), "NNS")
    | dict.fromkeys(sc.COLOURS, "JJ")
    | dict.fromkeys(sc.NUMBERS, "CD")
    | {mark: mark for mark in ".,:"}
    | {"?": ".", "!": "."}
)


def tags(words: Sequence[str]) -> list[str] | None:
    """Tag the words of a text about a scene, without a tagger: each word has one tag here.

    Parameters
    ----------
    words : sequence of str
        As they stand; capitals do not matter, and marks may hang on them.

    Returns
    -------
    list of str, or None
        Tags of the Penn Treebank; None if a word is not one of the scenes', such as another model may say.
    """
    found: list[str] = []
    for word in words:
        plain = word.strip().lower()
        tag = _TAGS.get(plain) or _TAGS.get(plain.rstrip(".,:?!"))
        if tag is None:
            return None
        found.append(tag)
    return found
