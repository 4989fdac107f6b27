"""The tokenizer as the training uses it, and the words that a text slot is mixed of."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tam_fast.demo import ASSETS
from tam_fast.demo import scenes as sc

__all__ = ["NOTHING", "PREFIX", "SLOT_WORDS", "token_ids", "vocabulary_size", "word_id"]

PREFIX = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
"""What stands before the visual slots."""

NOTHING = " nothing"
"""The word of a cell that no object covers."""

SLOT_WORDS: tuple[str, ...] = (
    *(f" {colour}" for colour in sc.COLOURS),
    *(f" {shape}" for shape in sc.SHAPES),
    *(f" {sc.PLURALS[shape]}" for shape in sc.SHAPES),
    NOTHING,
)
"""Colours, shapes, plurals and NOTHING: W words, in the order of every (..., W) of a batch."""


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(ASSETS / "tokenizer.json"))


@lru_cache(maxsize=65536)
def token_ids(text: str) -> tuple[int, ...]:
    """Encode a text."""
    return tuple(_tokenizer().encode(text).ids)


def word_id(word: str) -> int:
    """Return the id of a word that is one token."""
    ids = token_ids(word)
    if len(ids) != 1:
        raise RuntimeError(f"expected one token for {word!r}, got {len(ids)}: the tokenizer does not fit the scenes")
    return ids[0]


def vocabulary_size() -> int:
    """Count the tokens, special ones included."""
    return int(_tokenizer().get_vocab_size())
