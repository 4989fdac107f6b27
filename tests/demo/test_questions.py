"""Questions about scenes, pairs and videos: every answer is checked against the objects and masks anew."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tam_fast.demo import scenes as sc

NOUNS = {**{shape: shape for shape in sc.SHAPES}, **{plural: shape for shape, plural in sc.PLURALS.items()}}


def _centres(scene):
    """Centre (x, y) in sides of every object's visible pixels."""
    return [tuple(np.argwhere(mask).mean(axis=0)[::-1] / 160) for mask in sc.masks(scene)]


def _named(scene, text):
    """Index of the one object that "red circle" names."""
    colour, noun = text.split()[-2:]
    found = [i for i, item in enumerate(scene.objects) if (item.colour, item.shape) == (colour, noun)]
    assert len(found) == 1, text
    return found[0]


def _number(word):
    return {"no": 0, "a": 1, "an": 1}.get(word, sc.NUMBERS.index(word) if word in sc.NUMBERS else -1)


def _turns(kind, count=60):
    for seed in range(400):
        rng = np.random.default_rng([9, seed])
        scene = sc.make_varied(rng)
        turn = sc.ask(scene, kind, rng)
        if turn is not None:
            yield scene, turn
            count -= 1
        if not count:
            return
    raise AssertionError(f"too few questions of kind {kind}")


def test_colours_are_those_of_the_named_shape():
    for scene, turn in _turns("colour"):
        noun = re.fullmatch(r"What colour (?:is|are) the (\w+)\?", turn.question)[1]
        said = re.findall(r"\b(" + "|".join(sc.COLOURS) + r")\b", turn.answer)
        assert set(said) == {o.colour for o in scene.objects if o.shape == NOUNS[noun]}
        assert (noun in sc.SHAPES) == (sum(o.shape == NOUNS[noun] for o in scene.objects) == 1)


def test_several_colours_are_those_of_the_named_shapes():
    for scene, turn in _turns("colours", 40):
        said = re.findall(r"[Tt]he (\w+) is (\w+)", turn.answer)
        assert [noun for noun, _ in said] == re.findall(r"the (\w+)", turn.question)
        assert len(said) >= 2
        for noun, colour in said:
            assert [item.colour for item in scene.objects if item.shape == noun] == [colour]


def test_shapes_are_those_of_the_named_colour():
    for scene, turn in _turns("shape"):
        colour = re.search(r"the (\w+) object", turn.question)[1]
        (there,) = [o.shape for o in scene.objects if o.colour == colour]
        assert turn.answer.rstrip(".").split()[-1] == there


def test_counts_are_counts():
    for scene, turn in _turns("count"):
        noun = re.fullmatch(r"How many (\w+) are there\?", turn.question)[1]
        there = sum(noun == "objects" or o.shape == NOUNS[noun] for o in scene.objects)
        assert _number(turn.answer.split()[2]) == there


def test_yes_means_that_it_is_there():
    answers = []
    for scene, turn in _turns("presence", 120):
        colour, shape = turn.question.rstrip("?").split()[-2:]
        count = sum((o.colour, o.shape) == (colour, shape) for o in scene.objects)
        answers.append(turn.answer.startswith("Yes, "))
        assert turn.answer.split(",")[0] == ("Yes" if count else "No")
        assert _number(turn.answer.split()[3]) == count
    assert 0.35 < np.mean(answers) < 0.65


def test_places_and_relations_agree_with_the_masks():
    for scene, turn in _turns("place"):
        index = _named(scene, turn.question.rstrip("?"))
        x, y = _centres(scene)[index]
        down, across = turn.answer.rstrip(".").split()[-2:]
        assert (down, across) == ("top" if y < 0.5 else "bottom", "left" if x < 0.5 else "right")
    for scene, turn in _turns("places", 30):
        said = re.findall(r"[Tt]he (\w+ \w+) is in the (top|bottom) (left|right)", turn.answer)
        assert [name for name, *_ in said] == re.findall(r"the (\w+ \w+)", turn.question)
        assert len(said) >= 2
        for name, down, across in said:
            item = scene.objects[_named(scene, name)]
            assert (down, across) == ("top" if item.y < 0.5 else "bottom", "left" if item.x < 0.5 else "right")
    answers = []
    for scene, turn in _turns("relation", 120):
        one, _, other = re.fullmatch(r"Is (.*) (left of|right of|above|below) (.*)\?", turn.question).groups()
        a, true, b = re.fullmatch(r"(?:Yes|No), (.*) (left of|right of|above|below) (.*)\.", turn.answer).groups()
        assert (a, b) == (f"{one} is", other)
        (x, y), (u, v) = (_centres(scene)[_named(scene, text)] for text in (one, other))
        holds = {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}
        assert holds[true]
        asked = re.search(r"(left of|right of|above|below)", turn.question)[1]
        answers.append(turn.answer.startswith("Yes"))
        assert answers[-1] == holds[asked]
    assert 0.35 < np.mean(answers) < 0.65


@pytest.mark.parametrize("kind", ["caption", "separate"])
def test_captions_name_every_object(kind):
    for scene, turn in _turns(kind, 30):
        if kind == "caption":
            assert sorted(sc.parse_caption(turn.answer)) == sorted(
                (group.count, group.colour, group.shape) for group in scene.groups
            )
        else:
            said = re.findall(r"[Tt]he (\w+) (?:is|are) (\w+)", turn.answer)
            assert sorted((NOUNS[noun], colour) for noun, colour in said) == sorted(
                {(o.shape, o.colour) for o in scene.objects}
            )


def test_follow_ups_are_answered_as_if_asked_in_full():
    kinds = set()
    for seed in range(300):
        rng = np.random.default_rng([4, seed])
        scene = sc.make_varied(rng)
        first = sc.ask(scene, ("colour", "count", "presence", "shape")[seed % 4], rng)
        turn = None if first is None else sc.follow_up(scene, first, rng)
        if turn is None:
            continue
        kinds.add(first.kind)
        words = turn.question.rstrip("?").split()
        assert turn.question != first.question
        if turn.question == "Where is it?":
            (index,) = first.about
            x, y = _centres(scene)[index]
            place = f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"
            assert turn.answer == f"It is in the {place}."
        elif first.kind == "colour":
            shown = {o.colour for o in scene.objects if o.shape == NOUNS[words[-1]]}
            assert {word for word in re.findall(r"\w+", turn.answer) if word in sc.COLOURS} == shown
        elif first.kind == "count":
            assert _number(turn.answer.split()[2]) == sum(o.shape == NOUNS[words[-1]] for o in scene.objects)
        else:
            there = any((o.colour, o.shape) == tuple(words[-2:]) for o in scene.objects)
            assert turn.answer.startswith("Yes" if there else "No")
    assert kinds == {"colour", "count", "presence", "shape"}


def test_drills_are_right():
    seen = set()
    for seed in range(200):
        rng = np.random.default_rng([8, seed])
        scene = sc.make_varied(rng)
        turn = sc.drill(scene, rng)
        form, rest = re.fullmatch(r"(What colour|Where|How many|Is there) (.*)\?", turn.question).groups()
        names, said = re.split(r", | and ", rest), re.split(r", | and ", turn.answer.strip().rstrip("."))
        seen.add(form)
        assert len(names) == len(said)
        for name, text in zip(names, said, strict=True):
            assert text.startswith(f"{name} ")
            answer = text[len(name) + 1 :]
            fits = [o for o in scene.objects if name in (o.shape, sc.PLURALS[o.shape], f"{o.colour} {o.shape}")]
            if form == "What colour":
                assert [o.colour for o in fits] == [answer]
            elif form == "How many":
                assert _number(answer) == len(fits)
            elif form == "Is there":
                assert answer == ("Yes" if fits else "No")
            else:
                (item,) = fits
                assert answer == f"{'top' if item.y < 0.5 else 'bottom'} {'left' if item.x < 0.5 else 'right'}"
    assert seen == {"What colour", "Where", "How many", "Is there"}


def test_talks_do_not_repeat_a_question():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        turns = sc.talk(sc.make_varied(rng), rng, 5)
        assert len({turn.question for turn in turns}) == len(turns) == 5


def test_answers_about_two_images_are_right():
    seen = set()
    for seed in range(150):
        rng = np.random.default_rng([6, seed])
        pair = sc.make_pair(rng)
        kinds = [{(o.colour, o.shape) for o in scene.objects} for scene in pair]
        for name in sc.PAIR_QUESTIONS:
            turn = sc.ask_pair(pair, name, rng)
            if turn is None:
                assert name == "difference"
                continue
            if name == "which image":
                kind = tuple(turn.question.rstrip("?").split()[-2:])
                start = {
                    (True, False): "The first",
                    (False, True): "The second",
                    (True, True): "Both",
                    (False, False): "No",
                }
                assert turn.answer.startswith(start[kind in kinds[0], kind in kinds[1]] + " image")
                seen.add(turn.answer.split()[0])
            elif name == "difference":
                (_, *one), (_, *other) = sc.parse_caption(turn.answer)
                assert tuple(one) in kinds[0]
                assert tuple(other) in kinds[1]
                assert len(pair[0].objects) == len(pair[1].objects)
                assert one != other
                seen.add(name)
            else:
                which = ("first", "second").index(turn.question.split()[2])
                assert {(colour, shape) for _, colour, shape in sc.parse_caption(turn.answer)} == kinds[which]
    assert seen == {"The", "Both", "No", "difference"}


def test_videos_show_what_they_are_said_to():
    events = set()
    for seed in range(120):
        film = sc.make_film(seed)
        assert len(film.frames) == len(film.present) in (4, 6, 8)
        item, what = film.cast[film.event.index], film.event.what
        events.add(what)
        assert sc.what_happens(film).split()[1:3] == [item.colour, item.shape]
        there = [film.event.index in present for present in film.present]
        masks = [sc.masks(frame) for frame in film.frames]
        rows = [
            present.index(film.event.index) if shown else None
            for present, shown in zip(film.present, there, strict=True)
        ]
        centres = [np.argwhere(m[r]).mean(axis=0) if r is not None else None for m, r in zip(masks, rows, strict=True)]
        colours = [f.objects[r].colour if r is not None else None for f, r in zip(film.frames, rows, strict=True)]
        if what in ("appears", "vanishes"):
            assert there == sorted(there, reverse=what == "vanishes")
            assert len(set(there)) == 2
            continue
        assert all(there)
        down, across = (centres[-1] - centres[0]) / 160
        if what == "turns":
            assert (colours[0], colours[-1]) == (item.colour, film.event.colour)
            assert item.colour != film.event.colour
            assert abs(down) + abs(across) < 0.02
        else:
            moved = {"left": -across, "right": across, "up": -down, "down": down}
            assert max(moved, key=moved.get) == what.split()[1]
            assert max(moved.values()) > 0.14
        # Whoever is not meant stays where and what it is.
        for index, other in enumerate(film.cast):
            if index != film.event.index:
                assert all(
                    frame.objects[present.index(index)] == other
                    for frame, present in zip(film.frames, film.present, strict=True)
                )
    assert events == set(sc.EVENTS)
