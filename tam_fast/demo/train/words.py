"""The tokenizer as the training uses it, and the words that a text slot is mixed of."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from tam_fast.demo import ASSETS
from tam_fast.demo import scenes as sc

__all__ = ["BETWEEN", "CONTENT", "NOTHING", "PREFIX", "SLOT_WORDS", "Words"]

PREFIX = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
"""What stands before the visual slots."""

BETWEEN = "<|vision_end|><|vision_start|>"
"""What stands between the slots of two images."""

NOTHING = " nothing"
"""The word of a cell that no object covers."""

SLOT_WORDS: tuple[str, ...] = (
    *(f" {colour}" for colour in sc.COLOURS),
    *(f" {shape}" for shape in sc.SHAPES),
    *(f" {sc.PLURALS[shape]}" for shape in sc.SHAPES),
    NOTHING,
)
"""Colours, shapes, plurals and NOTHING: W words, in the order of every (..., W) of a batch."""

_DECIDING = ("no", "left", "right", "above", "below", "top", "bottom", "first", "second", "up", "down", *sc.VERBS)

CONTENT: frozenset[str] = frozenset(
    {
        *SLOT_WORDS[:-1],
        *(f" {word}" for word in (*sc.NUMBERS, *_DECIDING)),
        *("Yes", "No", "Both", " Yes", " No"),
    }
)
"""Words that decide whether an answer is right; the loss weighs them more than the words around them."""


class Words:
    """A tokenizer's folder: ``ids`` of a text, ``id`` of one word, ``size`` of the vocabulary."""

    def __init__(self, folder: Path = ASSETS) -> None:
        from tokenizers import Tokenizer

        self.folder = folder
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.size = int(self._tokenizer.get_vocab_size())
        self.ids = lru_cache(maxsize=65536)(self._ids)
        self.content = frozenset(ids[0] for ids in map(self.ids, sorted(CONTENT)) if len(ids) == 1)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text).ids)

    def id(self, word: str) -> int:
        """Return the id of a word that is one token.

        Raises
        ------
        ValueError
            If it is not: the tokenizer was made for other scenes.
        """
        ids = self.ids(word)
        if len(ids) != 1:
            raise ValueError(f"word: expected one token for {word!r}, got {len(ids)} in {self.folder}")
        return ids[0]

    def missing(self) -> list[str]:
        """Words of the scenes that this tokenizer takes apart."""
        return [word for word in sc.scene_words() if min(len(self.ids(word)), len(self.ids(f" {word}"))) != 1]
