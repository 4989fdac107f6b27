"""Questions about a scene, and their answers: :func:`ask`, :func:`follow_up`, :func:`talk`.

An answer follows from the scene's objects alone. Questions that a scene does not settle (two stars for "the star", a
pair side by side for "above") are not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from tam_fast.demo.scenes.captions import DESCRIBE, caption, join, kind_phrase, phrase, separate_caption
from tam_fast.demo.scenes.shapes import COLOURS, NUMBERS, PLURALS, SHAPES, Group, Scene

__all__ = [
    "PLACES",
    "QUESTIONS",
    "WHERE",
    "Turn",
    "absent_kind",
    "ask",
    "conversation",
    "follow_up",
    "place_of",
    "talk",
]

WHERE = "Where is it?"

CLEARLY = 0.1
"""Least distance along an axis, in sides, for one object to be left of or above another."""

CENTRAL = 0.06
"""Objects nearer than this to a middle line are neither left nor right, neither top nor bottom."""


@dataclass(frozen=True)
class Turn:
    """One question, its answer, its kind, and the indices of the objects that the answer is about.

    `about` serves evaluation only: the answer's nouns are expected to light up there.
    """

    question: str
    answer: str
    kind: str
    about: tuple[int, ...] = ()


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _any_group(scene: Scene, rng: np.random.Generator) -> Group:
    groups = scene.groups
    return groups[int(rng.integers(len(groups)))]


def _single(scene: Scene) -> list[Group]:
    """Kinds of one object: "the red circle" means it."""
    return [group for group in scene.groups if group.count == 1]


def _members(scene: Scene, *, colour: str | None = None, shape: str | None = None) -> tuple[int, ...]:
    """Indices of the objects of a colour, or of a shape, or of both."""
    return tuple(
        index
        for index, item in enumerate(scene.objects)
        if colour in (None, item.colour) and shape in (None, item.shape)
    )


def _caption(scene: Scene, rng: np.random.Generator) -> Turn:
    question = _pick(rng, (DESCRIBE, DESCRIBE, "What is in the image?", "List the objects."))
    return Turn(question, caption(scene), "caption", tuple(range(len(scene.objects))))


def _separate(scene: Scene, rng: np.random.Generator) -> Turn | None:
    del rng
    text = separate_caption(scene)
    if text is None:
        return None
    return Turn("What colour is each object?", text, "separate", tuple(range(len(scene.objects))))


def _colour(scene: Scene, rng: np.random.Generator) -> Turn:
    return _colour_of(scene, _any_group(scene, rng).shape, "What colour {} the {}?")


def _colour_of(scene: Scene, shape: str, form: str) -> Turn:
    members = _members(scene, shape=shape)
    noun, verb = (shape, "is") if len(members) == 1 else (PLURALS[shape], "are")
    colours = join([group.colour for group in scene.groups if group.shape == shape])
    return Turn(form.format(verb, noun), f"The {noun} {verb} {colours}.", "colour", members)


def _shape(scene: Scene, rng: np.random.Generator) -> Turn | None:
    options = [group for group in scene.groups if len(_members(scene, colour=group.colour)) == 1]
    if not options:
        return None
    group = options[int(rng.integers(len(options)))]
    if rng.random() < 0.5:
        question, answer = "What is the {} object?", f"It is {kind_phrase(group.colour, group.shape)}."
    else:
        question, answer = "What shape is the {} object?", f"The {group.colour} object is a {group.shape}."
    return Turn(question.format(group.colour), answer, "shape", group.indices)


def _count(scene: Scene, rng: np.random.Generator) -> Turn:
    if rng.random() < 0.5:
        total = len(scene.objects)
        amount = "is one object" if total == 1 else f"are {NUMBERS[total]} objects"
        return Turn("How many objects are there?", f"There {amount} in the image.", "count", tuple(range(total)))
    shape = _any_group(scene, rng).shape if rng.random() < 0.7 else _pick(rng, SHAPES)
    return _count_of(scene, shape, "How many {} are there?")


def _count_of(scene: Scene, shape: str, form: str) -> Turn:
    members = _members(scene, shape=shape)
    if not members:
        answer = f"There are no {PLURALS[shape]}."
    elif len(members) == 1:
        answer = f"There is one {shape}."
    else:
        answer = f"There are {NUMBERS[len(members)]} {PLURALS[shape]}."
    return Turn(form.format(PLURALS[shape]), answer, "count", members)


def absent_kind(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Draw a kind that is not there; mostly its colour is, or its shape, or each on another object."""
    there = {(group.colour, group.shape) for group in scene.groups}
    while True:
        near, one, other = rng.random(), _any_group(scene, rng), _any_group(scene, rng)
        colour = one.colour if near < 0.55 else _pick(rng, list(COLOURS))
        shape = other.shape if 0.25 <= near < 0.85 else _pick(rng, SHAPES)
        if (colour, shape) not in there:
            return colour, shape


def _presence(scene: Scene, rng: np.random.Generator) -> Turn:
    if rng.random() < 0.5:
        group = _any_group(scene, rng)
        colour, shape = group.colour, group.shape
    else:
        colour, shape = absent_kind(scene, rng)
    return _presence_of(scene, colour, shape, "Is there {}?")


def _presence_of(scene: Scene, colour: str, shape: str, form: str) -> Turn:
    question = form.format(kind_phrase(colour, shape))
    match = next((g for g in scene.groups if (g.colour, g.shape) == (colour, shape)), None)
    if match is None:
        return Turn(question, f"No, there is no {colour} {shape}.", "presence")
    verb = "is" if match.count == 1 else "are"
    return Turn(question, f"Yes, there {verb} {phrase(match)}.", "presence", match.indices)


def place_of(scene: Scene, index: int, central: float = CENTRAL) -> str | None:
    """Say where an object is: "top left", "bottom right"; None nearer to a middle line than `central`."""
    item = scene.objects[index]
    down, across = item.y - scene.extent[0] / 2, item.x - scene.extent[1] / 2
    if min(abs(down), abs(across)) < central:
        return None
    return f"{'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"


def _place(scene: Scene, rng: np.random.Generator) -> Turn | None:
    options = [group for group in _single(scene) if place_of(scene, group.indices[0]) is not None]
    if not options:
        return None
    group = options[int(rng.integers(len(options)))]
    name = f"the {group.colour} {group.shape}"
    answer = f"The {group.colour} {group.shape} is in the {place_of(scene, group.indices[0])}."
    return Turn(f"Where is {name}?", answer, "place", group.indices)


def _shuffled(groups: Sequence[Group], rng: np.random.Generator) -> list[Group]:
    return [groups[int(index)] for index in rng.permutation(len(groups))]


def _colours(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """Ask for several colours, in any order: each has to be found by its noun, not by its place in a list."""
    single = [group for group in scene.groups if len(_members(scene, shape=group.shape)) == 1]
    if len(single) < 2:
        return None
    asked = _shuffled(single, rng)[:4]
    names = join([f"the {group.shape}" for group in asked])
    text = join([f"the {group.shape} is {group.colour}" for group in asked])
    about = tuple(group.indices[0] for group in asked)
    return Turn(f"What colour are {names}?", f"{text[0].upper()}{text[1:]}.", "colours", about)


def _places(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """Ask where several objects are; those near a middle line are on the side where their centre is."""
    single = _single(scene)
    if len(single) < 2:
        return None
    asked = _shuffled(single, rng)[:3]
    names = [f"the {group.colour} {group.shape}" for group in asked]
    where = [place_of(scene, group.indices[0], central=0.0) for group in asked]
    text = join([f"{name} is in the {place}" for name, place in zip(names, where, strict=True)])
    about = tuple(group.indices[0] for group in asked)
    return Turn(f"Where are {join(names)}?", f"{text[0].upper()}{text[1:]}.", "places", about)


def _relation(scene: Scene, rng: np.random.Generator) -> Turn | None:
    single = _single(scene)
    if len(single) < 2:
        return None
    first, second = (single[int(i)] for i in rng.choice(len(single), 2, replace=False))
    one, other = scene.objects[first.indices[0]], scene.objects[second.indices[0]]
    across = bool(rng.random() < 0.5)
    distance = one.x - other.x if across else one.y - other.y
    if abs(distance) < CLEARLY:
        return None
    names = ("left of", "right of") if across else ("above", "below")
    true, false = names if distance < 0 else names[::-1]
    asked = true if rng.random() < 0.5 else false
    a, b = f"the {first.colour} {first.shape}", f"the {second.colour} {second.shape}"
    answer = f"{'Yes' if asked == true else 'No'}, {a} is {true} {b}."
    return Turn(f"Is {a} {asked} {b}?", answer, "relation", first.indices + second.indices)


QUESTIONS: Mapping[str, Callable[[Scene, np.random.Generator], Turn | None]] = MappingProxyType(
    {
        "caption": _caption,
        "separate": _separate,
        "colours": _colours,
        "places": _places,
        "colour": _colour,
        "shape": _shape,
        "count": _count,
        "presence": _presence,
        "place": _place,
        "relation": _relation,
    }
)
"""Kinds of turns about one image: how each is asked; None where the scene does not settle such a question."""


def ask(scene: Scene, kind: str, rng: np.random.Generator, tries: int = 4) -> Turn | None:
    """Ask one question of a kind (:data:`QUESTIONS`); None where none was found that the scene settles."""
    for _ in range(tries):
        turn = QUESTIONS[kind](scene, rng)
        if turn is not None:
            return turn
    return None


def follow_up(scene: Scene, last: Turn, rng: np.random.Generator) -> Turn | None:
    """Ask on, in words that only the turn before gives a meaning: "And the star?", "Where is it?".

    None where the last turn leads nowhere.
    """
    if last.kind == "colour":
        others = [g.shape for g in scene.groups if not set(_members(scene, shape=g.shape)) & set(last.about)]
        if others:
            turn = _colour_of(scene, _pick(rng, others), "And the {1}?")
            return Turn(turn.question, turn.answer, "follow-up", turn.about)
    if last.kind == "count" and "objects" not in last.question:
        turn = _count_of(
            scene, _pick(rng, [shape for shape in SHAPES if PLURALS[shape] not in last.question]), "And {}?"
        )
        return Turn(turn.question, turn.answer, "follow-up", turn.about)
    if last.kind in ("presence", "shape") and len(last.about) == 1:
        place = place_of(scene, last.about[0])
        if place is not None:
            return Turn(WHERE, f"It is in the {place}.", "follow-up", last.about)
    if last.kind == "presence":
        other = _presence(scene, rng)
        if other.question != last.question:
            return Turn(other.question.replace("Is there", "And"), other.answer, "follow-up", other.about)
    return None


# Descriptions bind many words at once: "the circle is red" teaches what "What colour is the circle?" asks.
_DESCRIPTIONS: Mapping[str, float] = MappingProxyType(
    {"caption": 0.45, "separate": 0.15, "colours": 0.25, "places": 0.15}
)
_MIX: Mapping[str, float] = MappingProxyType(
    {"colour": 0.19, "shape": 0.11, "count": 0.18, "presence": 0.18, "place": 0.15, "relation": 0.19}
)


PLACES: frozenset[str] = frozenset({"places", "place", "relation"})
"""Kinds of turns whose answers say where something is."""


def _choose(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    return list(shares)[int(rng.choice(len(shares), p=np.array(list(shares.values())) / sum(shares.values())))]


def talk(scene: Scene, rng: np.random.Generator, turns: int, described: float = 0.5, places: bool = True) -> list[Turn]:
    """Draw a conversation on one scene: with a share of `described` a description first; some questions follow up.

    Without `places` no answer says where anything is.
    """
    left_out = frozenset() if places else PLACES
    descriptions, mix = ({k: v for k, v in shares.items() if k not in left_out} for shares in (_DESCRIPTIONS, _MIX))
    result: list[Turn] = []
    if rng.random() < described:
        result.append(ask(scene, _choose(rng, descriptions), rng) or _caption(scene, rng))
    while len(result) < turns:
        turn = follow_up(scene, result[-1], rng) if result and rng.random() < 0.55 else None
        if turn is None or (turn.question == WHERE and not places):
            turn = ask(scene, _choose(rng, mix), rng)
        if turn is not None and all(turn.question != before.question for before in result):
            result.append(turn)
    return result[:turns]


def conversation(scene: Scene, rng: np.random.Generator, turns: int) -> list[tuple[str, str]]:
    """Questions and answers on one scene: :func:`talk` without kinds and objects."""
    return [(turn.question, turn.answer) for turn in talk(scene, rng, turns)]
