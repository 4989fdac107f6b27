"""Ways to name tokens of an answer: words, phrases, characters, patterns, paths into its JSON."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeAlias

from tam_fast.explanation.json_text import Node
from tam_fast.explanation.paths import document_of, fields_at, paths_of
from tam_fast.explanation.result import Result
from tam_fast.explanation.words import Word, is_whole, split_words

__all__ = ["Key", "Naming"]

Key: TypeAlias = "int | str | slice | tuple[int, int] | Word"
"""What names tokens: an index, a word or phrase, a slice or span of tokens, a Word."""

_SHOWN = 40  # paths or words that an error lists


class Naming(Result):
    """A result whose tokens have names."""

    @cached_property
    def words(self) -> list[Word]:
        """The words of the answer in order, without punctuation, each with the tokens that spell it.

        A word is a run of letters, digits and marks; an apostrophe or hyphen, or a point or comma between digits, joins
        two runs. In scripts written without spaces (Chinese, Japanese, Thai, Khmer, ...) the words are the tokens'
        pieces. Where only some tokens were explained, words are there as far as they were.
        """
        places = split_words(self.text, [start for start, _ in self.offsets])
        found = (self._word(*run) for start, end in places for run in self._explained(start, end))
        return [word for word in found if word is not None]

    def find(self, word: str) -> list[Word]:
        """Find every place of a word or phrase in the answer.

        Parameters
        ----------
        word : str
            Compared without regard to case; a space stands for any white space. Where it occurs as a whole word, only
            those places count; otherwise parts of words do, so ``"circ"`` finds ``"circle"``.

        Returns
        -------
        list of Word
            In the order of the text; empty if there is none, or its tokens were not explained.

        Raises
        ------
        TypeError
            If `word` is not a string.
        """
        if not isinstance(word, str):
            raise TypeError(f"word: expected a string, got {type(word).__name__}")
        found = (self._word(*place) for place in self._places(word))
        return [word for word in found if word is not None]

    def _places(self, word: str) -> list[tuple[int, int]]:
        """Find the characters of every place of a word or phrase."""
        for form in dict.fromkeys((word, unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word))):
            pieces = [re.escape(piece) for piece in form.split()]
            if not pieces:
                return []
            places = [match.span() for match in re.finditer(r"\s+".join(pieces), self.text, re.IGNORECASE)]
            if places:
                return [place for place in places if is_whole(self.text, *place)] or places
        return []

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and bool(self.find(word))

    def characters(self, start: int, end: int) -> Word:
        """Return what stands at characters ``start:end`` of the text, as a Word.

        Parameters
        ----------
        start, end : int
            As in ``e.text[start:end]``; from 0 on.

        Returns
        -------
        Word
            Its tokens are all that show one of the characters.

        Raises
        ------
        TypeError, ValueError
            If they are no whole numbers, not of at least one character of the text, or its tokens were not explained.
        """
        for name, place in (("start", start), ("end", end)):
            if isinstance(place, bool) or not hasattr(place, "__index__"):
                raise TypeError(f"{name}: expected a whole number, got {type(place).__name__}")
        first, last = int(start.__index__()), int(end.__index__())
        if not 0 <= first < last <= len(self.text):
            raise ValueError(
                f"start: expected 0 <= start < end <= {len(self.text)}, characters of the text, got {first} to {last}"
            )
        return self._explained_word("start", first, last)

    def regex(self, pattern: str | re.Pattern[str], flags: int = 0, group: int | str = 0) -> list[Word]:
        r"""Find every match of a regular expression in the text.

        Parameters
        ----------
        pattern : str or re.Pattern
            As for :func:`re.finditer`.
        flags : int
            Such as ``re.IGNORECASE``; with a compiled pattern 0.
        group : int or str
            Which group of a match is meant: ``e.regex(r"(\w+) circle", group=1)``.

        Returns
        -------
        list of Word
            In the order of the text. Left out are matches of no character, those without the group, and those whose
            tokens were not explained.

        Raises
        ------
        TypeError, ValueError
            If `pattern` is no regular expression or has no such group, if nothing matches, or the tokens of no match
            were explained.
        """
        if not isinstance(pattern, (str, re.Pattern)) or isinstance(getattr(pattern, "pattern", ""), bytes):
            raise TypeError(f"pattern: expected a regular expression for texts, got {pattern!r}")
        if isinstance(pattern, re.Pattern) and flags:
            raise ValueError(f"flags: expected 0 with a compiled pattern, which has its own, got {flags!r}")
        try:
            compiled = re.compile(pattern, flags)
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"pattern: expected a regular expression, got {pattern!r}: {error}") from error
        names = [*range(compiled.groups + 1), *compiled.groupindex]
        if isinstance(group, bool) or group not in names:
            raise ValueError(f"group: expected one of {', '.join(map(repr, names))}, got {group!r}")
        places = [match.span(group) for match in compiled.finditer(self.text)]
        places = [(start, end) for start, end in places if start < end]
        found = [word for place in places if (word := self._word(*place)) is not None]
        if places and not found:
            self._explained_word("pattern", *places[0])
        if not found:
            raise ValueError(f"pattern: expected a match in {self._beginning()}, got none of {compiled.pattern!r}")
        return found

    def path(self, path: str) -> list[Word]:
        """Find fields of the answer's JSON, such as an object's box, by their path.

        The JSON may stand in a fence or amid prose (the longest object or list of the text counts), and may break off
        at its end: what is there is found. An answer without JSON that has boxes in marks of its own, such as
        ``<box>(10,20),(30,40)</box>`` or ``<|box_start|>...<|box_end|>``, counts as a list of objects with ``box``, and
        ``ref`` where one is marked: ``e.path("$[0].box")``.

        Parameters
        ----------
        path : str
            JSONPath: ``"$.objects[0].box"``, ``"objects[-1]['a key']"``, ``"$.objects[*].label"`` for all of them. Of
            equal keys the last counts, as in :func:`json.loads`.

        Returns
        -------
        list of Word
            One a value, in the order of the text, with its parsed :attr:`Word.value`. Its characters are those of the
            value as it is spelt: of a text without the quotes, of a list of numbers from the first to the last, of all
            else the whole. Values whose tokens were not explained are left out.

        Raises
        ------
        KeyError
            If the path leads nowhere; the message lists those that there are.
        TypeError, ValueError
            If it is no path, the answer has neither JSON nor boxes, or the value's tokens were not explained.
        """
        fields = fields_at(self._document, path)
        if not fields:
            known = self.paths()
            listed = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
            raise KeyError(f"{path!r} is not in the answer; its paths are: {listed}")
        words = [(self._word(field.start, field.end), field) for field in fields]
        found = [replace(word, value=field.value) for word, field in words if word is not None]
        return found or [self._explained_word("path", fields[0].start, fields[0].end)]

    def paths(self) -> list[str]:
        """List the paths of all values of the answer's JSON, in the order of the text.

        A list of numbers, such as a box, has one path for all of them; ``path("$.box[0]")`` finds its first.

        Raises
        ------
        ValueError
            If the answer has neither JSON nor boxes.
        """
        return paths_of(self._document)

    @cached_property
    def _document(self) -> Node:
        found = document_of(self.text)
        if found is None:
            raise ValueError(f"path: expected an answer with JSON or boxes, got {self._beginning()}")
        return found

    def _beginning(self) -> str:
        return repr(self.text if len(self.text) <= 200 else self.text[:200] + "...")

    @cached_property
    def _hidden(self) -> list[bool] | None:
        """Of each character whether no explained token shows it; None where all tokens were explained."""
        if self.steps is None:
            return None
        hidden = [not character.isspace() for character in self.text]
        for start, end in self.offsets:
            hidden[start:end] = [False] * (end - start)
        return hidden if any(hidden) else None

    def _explained(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Cut characters start..end to the runs whose tokens were explained."""
        if self._hidden is None:
            yield start, end
            return
        begin: int | None = None
        for place in range(start, end + 1):
            inside = place < end and not self._hidden[place]
            if inside and begin is None:
                begin = place
            elif not inside and begin is not None:
                yield begin, place
                begin = None

    def _word(self, start: int, end: int) -> Word | None:
        """Make the word at characters start..end; None if there is one that no explained token shows."""
        if self._hidden is not None and any(self._hidden[start:end]):
            return None
        tokens = [i for i, (first, last) in enumerate(self.offsets) if first < end and last > start]
        if not tokens:
            return None
        some = slice(tokens[0], tokens[-1] + 1)
        strength = float(self.visual_strength[some].max())
        score = float(self.grounding.score[some].max()) if self.method == "tam" else None
        return Word(self.text[start:end], some.start, some.stop, (start, end), strength, score)

    def _explained_word(self, name: str, start: int, end: int) -> Word:
        """Make the word at characters start..end, or raise for the argument `name`."""
        word = self._word(start, end)
        if word is None:
            shown = self.text[start:end]
            raise ValueError(f"{name}: expected tokens that were explained, got {shown[:200]!r}, whose tokens were not")
        return word

    def _tokens(self, key: Key) -> tuple[int, int]:
        """Resolve any way of naming tokens to their range (start, stop), which is not empty."""
        if isinstance(key, Word):
            found = self._range(key.start, key.stop)
            if self.text[slice(*key.characters)] != key.text:
                raise ValueError(f"key: expected a Word of this explanation, got {key.text!r} of another")
            return found
        if isinstance(key, str):
            words = self.find(key)
            if not words:
                known = list(dict.fromkeys(word.text for word in self.words))
                listed = ", ".join(known) or "none"
                what = "is in the answer, but was not explained" if self._places(key) else "is not in the answer"
                raise KeyError(
                    f"{key!r} {what}; {'its words are' if self._hidden is None else 'explained are'}: {listed}"
                )
            return words[0].start, words[0].stop
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise ValueError(f"key: expected a slice of step 1, got step {step}")
            return self._range(start, stop)
        if isinstance(key, tuple):
            if len(key) != 2:
                raise ValueError(f"key: expected a span (start, end), got {key!r}")
            return self._tokens(slice(*key))
        if isinstance(key, bool) or not hasattr(key, "__index__"):
            raise TypeError(
                f"key: expected a token's index, a word, a slice, a span (start, end) or a Word, "
                f"got {type(key).__name__}"
            )
        index = int(key.__index__())
        if not -len(self) <= index < len(self):
            raise IndexError(f"key: expected a token from 0 to {len(self) - 1}, got {index}")
        return index % len(self), index % len(self) + 1

    def _one(self, name: str, key: Any) -> int:
        """Resolve a key that names one token to its index."""
        start, stop = self._tokens(key)
        if stop - start > 1:
            shown = key.text if isinstance(key, Word) else key
            raise ValueError(
                f"{name}: expected one token, got {shown!r}, which is {stop - start}: give the index of one"
            )
        return start

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"key: expected at least one of {len(self)} tokens, got tokens {start} to {stop}")
        return start, stop
