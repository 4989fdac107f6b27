"""Which tokens are explained: the answer's, those of its thinking section, or the words and spans that were asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tam_fast.explanation.paths import document_of, fields_at
from tam_fast.explanation.words import is_whole
from tam_fast.models.text import TextDecoder
from tam_fast.models.thinking import find_section, is_open

__all__ = ["Selection", "Target", "Targets", "check_targets", "select"]

Target: TypeAlias = "str | re.Pattern[str] | tuple[int, int]"
Targets: TypeAlias = "Literal['answer', 'thinking', 'prompt'] | Sequence[Target]"
"""What is explained: a part by its name, or words, ``$`` paths, regular expressions and spans of the answer."""

NAMES = ("answer", "thinking", "prompt")


@dataclass(frozen=True)
class Selection:
    """Some tokens of what was generated.

    Attributes
    ----------
    steps : list of int
        Their places in the generated sequence, ascending.
    text : str
        The part of the text that is shown: the answer, or the thinking section.
    offsets : list of (int, int)
        Each token's characters in `text`.
    thinking : str or None
        The thinking section's text, where there is one.
    """

    steps: list[int]
    text: str
    offsets: list[tuple[int, int]]
    thinking: str | None

    def runs(self) -> list[tuple[int, int]]:
        """Join neighbouring steps to (start, stop)."""
        found: list[tuple[int, int]] = []
        for step in self.steps:
            if found and found[-1][1] == step:
                found[-1] = (found[-1][0], step + 1)
            else:
                found.append((step, step + 1))
        return found


def check_targets(targets: Any) -> Targets:
    """Check what is to be explained, before anything is run.

    Raises
    ------
    ValueError, TypeError
        If it is no name of a part and no sequence of words, patterns and spans.
    """
    if isinstance(targets, str):
        if targets not in NAMES:
            raise ValueError(
                f"targets: expected {', '.join(map(repr, NAMES))} or a list of words, regular expressions and "
                f"(start, end), got {targets!r}: words go into a list"
            )
        return targets
    if isinstance(targets, re.Pattern):
        return [targets]
    if not isinstance(targets, Sequence) or not targets:
        raise TypeError(
            f"targets: expected {', '.join(map(repr, NAMES))} or a list of words, regular expressions and (start, "
            f"end), got {targets!r}"
        )
    for number, target in enumerate(targets):
        if isinstance(target, str):
            if not target.strip():
                raise ValueError(f"targets[{number}]: expected a word, got {target!r}")
        elif isinstance(target, tuple):
            if len(target) != 2 or not all(isinstance(edge, int) and not isinstance(edge, bool) for edge in target):
                raise ValueError(f"targets[{number}]: expected a span of characters (start, end), got {target!r}")
        elif not isinstance(target, re.Pattern):
            raise TypeError(
                f"targets[{number}]: expected a word, a regular expression or (start, end), got {type(target).__name__}"
            )
    return list(targets)


def select(decoder: TextDecoder, prompt_end: str, targets: Targets) -> Selection:
    """Choose of a generated sequence the tokens that are explained.

    Parameters
    ----------
    decoder : TextDecoder
        Of the whole sequence.
    prompt_end : str
        What stands in the prompt behind the user's words: a template may begin a thinking section.
    targets : str or sequence
        As :func:`check_targets` returns them; not ``"prompt"``.

    Raises
    ------
    ValueError
        If there are none of these tokens.
    """
    # Names of special tokens are in the pieces, though not in the text.
    starts = [0]
    for piece in decoder.pieces:
        starts.append(starts[-1] + len(piece))
    raw = "".join(decoder.pieces)
    section = find_section(raw, is_open(prompt_end))
    count = len(decoder.pieces)
    if section is None:
        first, inside, thinking = 0, (0, 0), None
    else:
        first = next((k for k in range(count) if starts[k + 1] > section.end), count)
        within = [k for k in range(count) if starts[k] < section.stop and starts[k + 1] > section.start]
        inside = (within[0], within[-1] + 1) if within else (0, 0)
        thinking = raw[section.start : section.stop]
    if targets == "thinking":
        if inside[0] == inside[1]:
            raise ValueError(f"targets: expected an answer with a thinking section, got {raw[:200]!r}")
        return _part(decoder, *inside, thinking)
    if first == count:
        assert section is not None
        how = "" if section.closed else " (it was not closed: give more max_new_tokens)"
        raise ValueError(
            f"answer: expected tokens behind the thinking section, got none{how}: targets='thinking' explains that"
        )
    answer = _part(decoder, first, count, thinking)
    if isinstance(targets, str):
        return answer
    wanted = sorted(set(_wanted(answer, targets)))
    return Selection([answer.steps[k] for k in wanted], answer.text, [answer.offsets[k] for k in wanted], thinking)


def _part(decoder: TextDecoder, first: int, last: int, thinking: str | None) -> Selection:
    offsets = decoder.offsets[first:last]
    begin = offsets[0][0]
    end = max(stop for _, stop in offsets) if last < len(decoder.pieces) else len(decoder.text)
    text = decoder.text[begin:end]
    if first:
        # What separates the answer from the section before it.
        begin += len(text) - len(text.lstrip())
        text = text.lstrip()
    moved = [(max(start - begin, 0), max(stop - begin, 0)) for start, stop in offsets]
    return Selection(list(range(first, last)), text, moved, thinking)


def _wanted(answer: Selection, targets: Sequence[Target]) -> list[int]:
    """Find the tokens of some words, patterns and spans; each must be there."""
    found: list[int] = []
    for number, target in enumerate(targets):
        if isinstance(target, tuple):
            start, end = target
            if not 0 <= start < end <= len(answer.text):
                raise ValueError(
                    f"targets[{number}]: expected 0 <= start < end <= {len(answer.text)}, the answer's characters, "
                    f"got {target}"
                )
            places = [target]
        elif isinstance(target, str) and (target == "$" or target.startswith(("$.", "$["))):
            document = document_of(answer.text)
            fields = [] if document is None else fields_at(document, target)
            places = [(field.start, field.end) for field in fields]
        else:
            pattern = target
            if isinstance(target, str):
                pattern = re.compile(r"\s+".join(map(re.escape, target.split())), re.IGNORECASE)
            assert isinstance(pattern, re.Pattern)
            places = [match.span() for match in pattern.finditer(answer.text) if match.group()]
            if isinstance(target, str):
                # As Explanation.find does: parts of words only where there is no whole one.
                places = [place for place in places if is_whole(answer.text, *place)] or places
        tokens = [
            k
            for k, (first, last) in enumerate(answer.offsets)
            if any(first < end and last > start for start, end in places)
        ]
        if not tokens:
            shown = target.pattern if isinstance(target, re.Pattern) else target
            raise ValueError(
                f"targets[{number}]: expected something in the answer {answer.text[:200]!r}, got {shown!r}"
            )
        found += tokens
    return found
