"""What a scene's caption says, and what a caption names."""

from __future__ import annotations

from collections.abc import Sequence

from tam_fast.demo.scenes.shapes import COLOURS, NUMBERS, PLURALS, SHAPES, Group, Scene

__all__ = ["DESCRIBE", "caption", "join", "kind_phrase", "listing", "parse_caption", "phrase", "separate_caption"]

DESCRIBE = "Describe this image."


def join(parts: Sequence[str]) -> str:
    """Join "a", "b", "c" to "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def kind_phrase(colour: str, shape: str) -> str:
    """Name one object: "a red circle", "an orange star"."""
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def phrase(group: Group) -> str:
    """Name all objects of a kind: "a red circle", "two blue stars"."""
    if group.count == 1:
        return kind_phrase(group.colour, group.shape)
    return f"{NUMBERS[group.count]} {group.colour} {PLURALS[group.shape]}"


def listing(scene: Scene) -> str:
    """List all kinds from left to right: "a red circle, two blue stars and a pink moon"."""
    return join([phrase(group) for group in scene.groups])


def caption(scene: Scene) -> str:
    """List of all kinds from left to right: "The image shows a red circle, two blue stars and a pink moon."."""
    return f"The image shows {listing(scene)}."


def separate_caption(scene: Scene) -> str | None:
    """List all kinds with noun and adjective apart: "The circle is red and the stars are blue.".

    None where two kinds share their shape.
    """
    groups = scene.groups
    if len({group.shape for group in groups}) < len(groups):
        return None
    parts = [
        f"the {group.shape} is {group.colour}" if group.count == 1 else f"the {PLURALS[group.shape]} are {group.colour}"
        for group in groups
    ]
    text = join(parts)
    return text[0].upper() + text[1:] + "."


def parse_caption(text: str) -> list[tuple[int, str, str]]:
    """Named objects of a list caption: (count, colour, shape) for every colour-noun pair, repeats included.

    A noun without a colour before it is returned with an empty colour, and a count that is missing counts as 1.
    """
    nouns = {**{shape: shape for shape in SHAPES}, **{plural: shape for shape, plural in PLURALS.items()}}
    named: list[tuple[int, str, str]] = []
    count, colour = 1, ""
    for word in text.replace(",", " ").replace(".", " ").lower().split():
        if word in ("a", "an"):
            count = 1
        elif word in NUMBERS:
            count = NUMBERS.index(word)
        elif word in COLOURS:
            colour = word
        elif word in nouns:
            named.append((count, colour, nouns[word]))
            count, colour = 1, ""
    return named
