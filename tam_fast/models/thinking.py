"""Thinking sections: what a model writes for itself before its answer, told by the marks around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["MARKS", "Section", "closed", "find_section", "is_open", "marks_of", "without_section", "written_out"]

MARKS: Sequence[tuple[str, str]] = (
    ("<think>", "</think>"),  # Qwen3-VL, GLM-4.1V, MiniMax, LFM2, DeepSeek
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|channel>thought\n", "<channel|>"),  # Gemma 4
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<thinking>", "</thinking>"),
)
"""Pairs of marks, opening and closing, as chat templates and models write them."""


@dataclass(frozen=True)
class Section:
    """Where a thinking section lies in a text, in characters.

    Attributes
    ----------
    start, stop : int
        What was thought, without the marks and the white space beside them.
    end : int
        Where the answer begins: behind the closing mark and white space; the text's end where it was not closed.
    closed : bool
        Whether there is a closing mark.
    """

    start: int
    stop: int
    end: int
    closed: bool


def is_open(prompt: str) -> bool:
    """Whether a prompt ends within a thinking section, as templates that begin one for the model write it."""
    return any(prompt.rfind(opening) > prompt.rfind(closing) for opening, closing in MARKS)


def find_section(text: str, opened: bool = False) -> Section | None:
    """Find the thinking section that a generated text begins with.

    Parameters
    ----------
    text : str
        With the marks in it.
    opened : bool
        Whether the prompt has opened one already (:func:`is_open`).

    Returns
    -------
    Section or None
        None where the text begins with its answer. A mark in the midst of an answer opens none.
    """
    begin = len(text) - len(text.lstrip())
    for opening, closing in MARKS:
        if text.startswith(opening, begin):
            return _section(text, begin + len(opening), closing)
    if not opened:
        return None
    closings = [(place, closing) for _, closing in MARKS if (place := text.find(closing)) >= 0]
    return _section(text, 0, min(closings)[1] if closings else MARKS[0][1])


def _section(text: str, start: int, closing: str) -> Section:
    stop = text.find(closing, start)
    closed = stop >= 0
    end = stop + len(closing) if closed else len(text)
    stop = stop if closed else len(text)
    inside = text[start:stop]
    first = start + len(inside) - len(inside.lstrip())
    last = max(first, start + len(inside.rstrip()))
    return Section(first, last, end + len(text[end:]) - len(text[end:].lstrip()), closed)


def marks_of(processor: Any) -> tuple[str, str]:
    """Choose the marks of a model: those that its chat template writes, else those that its tokenizer has as tokens."""
    tokenizer = processor.tokenizer
    templates = [getattr(owner, "chat_template", None) or "" for owner in (processor, tokenizer)]
    unknown = {None, getattr(tokenizer, "unk_token_id", None)}
    for pair in MARKS:
        if any(pair[1] in str(template) for template in templates):
            return pair
    for pair in MARKS:
        if tokenizer.convert_tokens_to_ids(pair[1]) not in unknown:
            return pair
    return MARKS[0]


def closed(processor: Any) -> str:
    """Return what ends a thinking section in which nothing was thought."""
    return f"\n{marks_of(processor)[1]}\n\n"


def written_out(reasoning: str, answer: str, processor: Any, opened: bool = False) -> str:
    """Write an answer with its thinking section before it, as the model would have; `opened`: the prompt begins it."""
    opening, closing = marks_of(processor)
    begin = "" if opened else f"{opening.rstrip()}\n"
    return f"{begin}{reasoning.strip()}\n{closing}\n\n{answer}"


def without_section(text: str) -> str:
    """Leave out a thinking section at the beginning of an answer."""
    section = find_section(text)
    return text if section is None else text[section.end :]
