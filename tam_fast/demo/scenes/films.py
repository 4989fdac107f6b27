"""Short videos in which one thing happens: :func:`make_film`, :func:`talk_film`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tam_fast.demo.scenes.captions import kind_phrase, listing
from tam_fast.demo.scenes.placing import make_varied, paint
from tam_fast.demo.scenes.questions import Turn
from tam_fast.demo.scenes.shapes import COLOURS, Object, Scene

__all__ = ["EVENTS", "FILM_EXTENT", "FRAMES", "VERBS", "Event", "Film", "make_film", "talk_film", "what_happens"]

FILM_EXTENT = (0.6, 0.6)
"""Extent of a frame: 12x12 cells where an image has 20x20."""

EVENTS: tuple[str, ...] = ("appears", "vanishes", "moves left", "moves right", "moves up", "moves down", "turns")
"""What can happen; "turns" is followed by the new colour."""

VERBS: tuple[str, ...] = ("appears", "vanishes", "moves", "turns")
"""The words for it."""

FRAMES = (4, 6, 8)
_EVENT_SHARES = (0.18, 0.18, 0.11, 0.11, 0.11, 0.11, 0.2)
_LEAST_WAY = 0.16
_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Event:
    """What happens: an entry of :data:`EVENTS`, to which object of the film, and the new colour if it turns."""

    what: str
    index: int
    colour: str = ""


@dataclass(frozen=True)
class Film:
    """Frames of one camera, the objects that play in it as they begin, and the event.

    Every frame is a :class:`Scene`; ``present[f]`` are the indices, in ``cast``, of the objects of frame f, in order.
    """

    frames: tuple[Scene, ...]
    present: tuple[tuple[int, ...], ...]
    cast: tuple[Object, ...]
    event: Event


def _room(item: Object, direction: str, others: list[Object]) -> float:
    """How far an object can move, in sides, without leaving the frame or covering another."""
    across, down = _STEPS[direction]
    way = 0.0
    while way < 0.35:
        x, y = item.x + across * (way + 0.02), item.y + down * (way + 0.02)
        edge = item.radius + 0.01
        if not (edge <= x <= FILM_EXTENT[1] - edge and edge <= y <= FILM_EXTENT[0] - edge):
            break
        if any(np.hypot(x - o.x, y - o.y) < 0.8 * (item.radius + o.radius) for o in others):
            break
        way += 0.02
    return way


def _film(scene: Scene, event: Event, count: int, rng: np.random.Generator) -> Film | None:
    cast = scene.objects
    item = cast[event.index]
    others = [o for i, o in enumerate(cast) if i != event.index]
    everyone = tuple(range(len(cast)))
    rest = tuple(i for i in everyone if i != event.index)
    # The change falls between two frames of the middle half.
    change = int(rng.integers(count // 4, count - count // 4)) + (1 if count == 4 else 0)
    states: list[tuple[Object, ...]] = []
    present: list[tuple[int, ...]] = []
    if event.what.startswith("moves"):
        direction = event.what.split()[1]
        room = _room(item, direction, others)
        if room < _LEAST_WAY:
            return None
        across, down = _STEPS[direction]
        way = float(rng.uniform(_LEAST_WAY, room))
        for frame in range(count):
            share = way * frame / (count - 1)
            moved = replace(item, x=item.x + across * share, y=item.y + down * share)
            states.append(tuple(moved if i == event.index else o for i, o in enumerate(cast)))
            present.append(everyone)
    else:
        rgb = paint(rng, event.colour, flat=False) if event.colour else item.rgb
        for frame in range(count):
            after = frame >= change
            if event.what == "turns":
                seen, kind = everyone, replace(item, colour=event.colour, rgb=rgb) if after else item
            else:
                seen, kind = everyone if after == (event.what == "appears") else rest, item
            states.append(tuple(kind if i == event.index else cast[i] for i in seen))
            present.append(seen)
    frames = tuple(replace(scene, objects=objects) for objects in states)
    return Film(frames, tuple(present), cast, event)


def make_film(seed: int | np.random.Generator, frames: int | None = None) -> Film:
    """Draw a video of 4, 6 or 8 frames (or as many as asked for) with one or two objects and one event."""
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    count = frames if frames is not None else FRAMES[int(rng.integers(len(FRAMES)))]
    what = EVENTS[int(rng.choice(len(EVENTS), p=_EVENT_SHARES))]
    while True:
        scene = make_varied(rng, extent=FILM_EXTENT, most=2)
        kinds = {(o.colour, o.shape) for o in scene.objects}
        if len(kinds) < len(scene.objects):
            continue
        index = int(rng.integers(len(scene.objects)))
        colour = ""
        if what == "turns":
            options = [c for c in COLOURS if (c, scene.objects[index].shape) not in kinds]
            colour = options[int(rng.integers(len(options)))]
        film = _film(scene, Event(what, index, colour), count, rng)
        if film is not None:
            return film


def what_happens(film: Film, known: bool = False) -> str:
    """Say what happens: "A red circle moves left."; of an object that is `known`, "The red circle moves left."."""
    item, event = film.cast[film.event.index], film.event
    name = kind_phrase(item.colour, item.shape) if not known else f"the {item.colour} {item.shape}"
    return f"{name[0].upper()}{name[1:]} {event.what}{' ' + event.colour if event.colour else ''}."


def talk_film(film: Film, rng: np.random.Generator, turns: int) -> list[Turn]:
    """Draw questions about a video: the event, the objects before it."""
    item = film.cast[film.event.index]
    happens = Turn("What happens in the video?", what_happens(film), "event", (film.event.index,))
    start = replace(film.frames[0], objects=film.cast)
    text = f"The video shows {listing(start)}. {what_happens(film, known=True)}"
    described = Turn("Describe this video.", text, "film", tuple(range(len(film.cast))))
    moving = "Yes" if film.event.what.startswith("moves") else "No"
    answer = f"{moving}, the{what_happens(film, known=True)[3:]}"
    moves = Turn(f"Does the {item.colour} {item.shape} move?", answer, "does it move", (film.event.index,))
    options = [happens, described, moves]
    return [options[int(index)] for index in rng.permutation(len(options))[:turns]]
