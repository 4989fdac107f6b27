"""The words of an answer, how a text splits into them, and the tokens that might have stood in their place."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Candidate", "Word", "is_whole", "split_words"]


@dataclass(frozen=True)
class Candidate:
    """One token that the model might have generated at a step.

    Attributes
    ----------
    token_id : int
    token : str
        The decoded piece, with its leading space.
    probability : float
        The model's probability for it at this step, in [0, 1].
    """

    token_id: int
    token: str
    probability: float


@dataclass(frozen=True)
class Word:
    """A word or phrase of the answer, and the tokens that spell it.

    Attributes
    ----------
    text : str
        As it stands in the answer.
    start, stop : int
        Its tokens are ``start, ..., stop - 1``; ``e.span(word.start, word.stop)`` is its map.
    characters : tuple of 2 ints
        Its place in the answer: ``e.text[characters[0]:characters[1]] == text``.
    strength : float
        Its visual strength: the largest :attr:`Explanation.visual_strength` of its tokens.
    grounding : float, optional
        How visual it is, in [0, 1]: the highest :attr:`Explanation.grounding` score of its tokens.
    value : object
        What a field of the answer's JSON holds, where :meth:`Explanation.path` found it; else None.
    """

    text: str
    start: int
    stop: int
    characters: tuple[int, int]
    strength: float
    grounding: float | None = None
    value: Any = field(default=None, compare=False)


# First and last code point of scripts that put no space between words: Thai and Lao, Myanmar, Khmer, kana, Han.
_SPACELESS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def _is_letter(character: str) -> bool:
    """Whether a character belongs to words: letters, digits, combining marks, joiners, the underscore."""
    return character.isalnum() or character in "_\u200c\u200d" or unicodedata.category(character).startswith("M")


def _is_spaceless(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _SPACELESS)


def is_whole(text: str, start: int, end: int) -> bool:
    """Whether characters start..end neither begin nor end within a word."""

    def inside(place: int) -> bool:
        return 0 < place < len(text) and _is_letter(text[place - 1]) and _is_letter(text[place])

    return not inside(start) and not inside(end)


def _joins(text: str, place: int) -> bool:
    """Whether the character at `place` joins the letters on its two sides to one word."""
    if not 0 < place < len(text) - 1:
        return False
    before, character, after = (text[at] for at in (place - 1, place, place + 1))
    if character in "'\u2019-\u2010\u2011":
        return _is_letter(before) and _is_letter(after)
    return character in ".," and before.isdigit() and after.isdigit()


def split_words(text: str, token_starts: Sequence[int]) -> list[tuple[int, int]]:
    """Cut text into words, (start, end) each; where a script has no spaces, at the tokens' starts."""
    starts = set(token_starts)
    words: list[tuple[int, int]] = []
    begin: int | None = None
    for place, character in enumerate(text):
        if not (_is_letter(character) or _joins(text, place)):
            if begin is not None:
                words.append((begin, place))
                begin = None
            continue
        if begin is not None:
            spaceless = _is_spaceless(character), _is_spaceless(text[place - 1])
            if spaceless[0] != spaceless[1] or (all(spaceless) and place in starts):
                words.append((begin, place))
                begin = place
        else:
            begin = place
    if begin is not None:
        words.append((begin, len(text)))
    # Joiners alone, as between emoji, are none.
    return [(start, end) for start, end in words if text[start:end].strip("\u200c\u200d")]
