"""Every word that scenes are spoken of with: :func:`scene_words`."""

from __future__ import annotations

from tam_fast.demo.scenes.shapes import COLOURS, NUMBERS, PLURALS, SHAPES

__all__ = ["scene_words"]

# The second line holds words of no question yet: a later training may use them without a new tokenizer.
_OTHER = (
    "The the There there This this Describe describe What what List How how Is is It it Yes No no image images video "
    "picture scene frame shows show are a an A An and And in at to of not nothing colour color colours object objects "
    "many each shape Where where Which which You you helpful assistant system user "
    "left right above below top bottom middle Both both first second different same between "
    "happens appears vanishes moves turns up down Does does move move before after now then "
    "see do can has have on with other same one more less than Are"
)


def scene_words() -> list[str]:
    """Return every word of captions, questions, answers and of the chat layout, without punctuation, sorted."""
    words = set(COLOURS) | set(SHAPES) | set(PLURALS.values()) | set(NUMBERS)
    return sorted(words | set(_OTHER.split()))
