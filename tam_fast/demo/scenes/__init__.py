"""Generated scenes of coloured shapes: pictures, masks, captions, questions, pairs of images, short videos.

Everything follows from a :class:`numpy.random.Generator` (or a seed), so a scene is reproduced exactly by its seed. All
geometry is in sides of a picture; a scene can be rendered at any size.
"""

from tam_fast.demo.scenes.captions import DESCRIBE, caption, parse_caption, separate_caption
from tam_fast.demo.scenes.drills import DRILLS, drill
from tam_fast.demo.scenes.films import EVENTS, FRAMES, VERBS, Event, Film, make_film, talk_film, what_happens
from tam_fast.demo.scenes.pairs import PAIR_QUESTIONS, ask_pair, changed, make_pair, talk_pair
from tam_fast.demo.scenes.placing import make_closeup, make_flat, make_scene, make_varied
from tam_fast.demo.scenes.questions import QUESTIONS, Turn, ask, conversation, follow_up, place_of, talk
from tam_fast.demo.scenes.shapes import (
    COLOURS,
    NUMBERS,
    PLURALS,
    SHAPES,
    Group,
    Object,
    Scene,
    coverage,
    masks,
)
from tam_fast.demo.scenes.surfaces import SURFACES, render
from tam_fast.demo.scenes.vocabulary import scene_words

__all__ = [
    "COLOURS",
    "DESCRIBE",
    "DRILLS",
    "EVENTS",
    "FRAMES",
    "NUMBERS",
    "PAIR_QUESTIONS",
    "PLURALS",
    "QUESTIONS",
    "SHAPES",
    "SURFACES",
    "VERBS",
    "Event",
    "Film",
    "Group",
    "Object",
    "Scene",
    "Turn",
    "ask",
    "ask_pair",
    "caption",
    "changed",
    "conversation",
    "coverage",
    "drill",
    "follow_up",
    "make_closeup",
    "make_film",
    "make_flat",
    "make_pair",
    "make_scene",
    "make_varied",
    "masks",
    "parse_caption",
    "place_of",
    "render",
    "scene_words",
    "separate_caption",
    "talk",
    "talk_film",
    "talk_pair",
    "what_happens",
]
