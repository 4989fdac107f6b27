"""The words of an answer, which tokens spell them, and what they are to the masks: :func:`words`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from tam_fast.evaluation.names import Names, Part, Synonyms, parts_of, stem_of_clitic
from tam_fast.evaluation.tagging import FUNCTION, NOUN, Tagged, Tagger, noun_lemma, only_noun, open_tagger

__all__ = ["FUNCTION_WORD", "NOUN_WITHOUT_MASK", "OTHER", "Word", "words"]

NOUN_WITHOUT_MASK, FUNCTION_WORD, OTHER = -1, -2, -3

_MARK = re.compile(r"\S")
_ENDS = frozenset(".!?\u2026\u3002\uff01\uff1f")


@dataclass(frozen=True)
class Word:
    """A word, phrase or mark of an answer.

    Attributes
    ----------
    text : str
        As it stands in the answer.
    tokens : tuple of int
        Which tokens spell it, places in the answer.
    label : int
        What masks call it: a category's label; -1 a noun of no category, -2 a function word, -3 anything else.
    """

    text: str
    tokens: tuple[int, ...]
    label: int


def words(
    token_ids: Sequence[int],
    tokenizer: Any,
    categories: Mapping[str, int],
    compat: str | None = None,
    *,
    synonyms: Synonyms | None = None,
    tagger: str | Tagger | None = None,
) -> list[Word]:
    """Split an answer into words, and say which of them name objects, which are nouns and which function words.

    Parameters
    ----------
    token_ids : sequence of T int
        The answer's tokens, end tokens included or not; the maps' order.
    tokenizer : transformers tokenizer
    categories : mapping of str to int
        Labels of the masks, at least 0, by name.
    compat : None or "official"
        ``"official"`` groups, tags and matches words as the published script does: see
        :func:`tam_fast.evaluation.official.official_words`.
    synonyms : mapping or path, optional
        Other words for categories, by their name: ``{"person": ["man", "woman"]}``, or a file
        (:func:`tam_fast.evaluation.names.read_synonyms`).
    tagger : None, "nltk", "spacy:MODEL" or callable
        What tells parts of speech: NLTK's averaged perceptron with WordNet's lemmas, unless said otherwise
        (:data:`tam_fast.evaluation.tagging.Tagger`).

    Returns
    -------
    list of Word
        In the order of the text. Each token but special ones (end tokens) belongs to a word or mark.

        - Words are told from the text, as everywhere in this library; marks between them are words of their own (-3)
          if they have tokens of their own.
        - Whole sentences are tagged, not lone words. "it's" is what "it" is.
        - Names are matched as wholes, the longest first (:class:`tam_fast.evaluation.names.Names`); a phrase is one
          word: "a hot dog" is "a" and "hot dog", and no dog. A name of one word counts only where it is a noun: is
          tagged so, or stands behind a determiner with the tag of a verb or adverb, or is a noun alone in WordNet.
        - Function words are those whose tags are in :data:`tam_fast.evaluation.tagging.FUNCTION`.

    Raises
    ------
    ValueError
        If an argument is wrong.
    FileNotFoundError
        If the tagger's data or WordNet are not where ``NLTK_DATA`` says, or there is no file of synonyms.
    ModuleNotFoundError
        If NLTK or spaCy is missing; says what to install.
    """
    ids = [int(token_id) for token_id in token_ids]
    if compat == "official":
        if synonyms is not None or tagger is not None:
            raise ValueError('compat: expected None with synonyms or a tagger, got "official"')
        from tam_fast.evaluation.official import official_words

        return official_words(ids, tokenizer, categories)
    if compat is not None:
        raise ValueError(f'compat: expected None or "official", got {compat!r}')
    tell = open_tagger(tagger)
    lemma: Callable[[str], str]
    if tagger is None or tagger == "nltk":
        lemma = noun_lemma
    elif isinstance(tagger, str):
        lemma = lru_cache(None)(lambda word: tell([word])[0][1])
    else:
        lemma = str.lower
    units = _units(ids, tokenizer)
    if not units:
        Names(categories, synonyms)
        return []
    names = Names(categories, synonyms, lemma)
    _tag(units, tell, lemma)
    return _labelled(units, names, only_noun if lemma is noun_lemma else lambda _: False)


@dataclass
class _Unit:
    """A word or mark of the text, with its tokens, tag and lemma."""

    text: str
    start: int
    end: int
    is_word: bool
    tokens: tuple[int, ...] = ()
    tag: str = ""
    parts: tuple[Part, ...] = ()
    begins: bool = False  # a sentence


def _units(ids: Sequence[int], tokenizer: Any) -> list[_Unit]:
    """Split a text into words and marks, and give them their tokens."""
    from tam_fast.explanation.words import split_words  # it needs torch, which importing this room does not
    from tam_fast.models.text import TextDecoder

    decoder = TextDecoder(tokenizer)
    for token_id in ids:
        decoder.append(token_id)
    text, offsets = decoder.text, decoder.offsets
    # Special tokens, and others that add nothing to the text, have no characters.
    spans = [(index, first, last) for index, (first, last) in enumerate(offsets) if last > first]
    units: list[_Unit] = []
    place = 0
    for start, end in [*split_words(text, [first for _, first, _ in spans]), (len(text), len(text))]:
        units += [_Unit(mark[0], mark.start(), mark.end(), False) for mark in _MARK.finditer(text, place, start)]
        if end > start:
            units.append(_Unit(text[start:end], start, end, True))
        place = end
    taken: set[int] = set()
    for unit in sorted(units, key=lambda one: not one.is_word):  # words first: a mark has what they leave
        within = [index for index, first, last in spans if first < unit.end and last > unit.start]
        unit.tokens = tuple(within if unit.is_word else [index for index in within if index not in taken])
        taken.update(within)
    before = None
    for unit in units:
        between = "" if before is None else text[before.end : unit.start]
        unit.begins = before is None or "\n" in between or (before.text in _ENDS and bool(between))
        before = unit
    return units


_Tell: TypeAlias = "Callable[[Sequence[str]], Tagged]"


def _tag(units: list[_Unit], tell: _Tell, lemma: Callable[[str], str]) -> None:
    """Tag sentence by sentence; a word with a clitic is tagged in two, and is what its first part is."""
    sentence: list[_Unit] = []
    for unit in [*units, None]:
        if sentence and (unit is None or unit.begins):
            _tag_sentence(sentence, tell, lemma)
            sentence = []
        if unit is not None:
            sentence.append(unit)


def _tag_sentence(sentence: list[_Unit], tell: _Tell, lemma: Callable[[str], str]) -> None:
    said: list[str] = []
    places: list[int] = []
    for unit in sentence:
        places.append(len(said))
        said += [part for part in (stem_of_clitic(unit.text) if unit.is_word else (unit.text,)) if part]
    told = tell(said)
    for unit, place in zip(sentence, places, strict=True):
        unit.tag, own = told[place]
        if unit.is_word:
            parts = parts_of(unit.text)
            unit.parts = ((parts[0], own),) if len(parts) == 1 else tuple((part, lemma(part)) for part in parts)


def _labelled(units: Sequence[_Unit], names: Names, surely: Callable[[str], bool]) -> list[Word]:
    found: list[Word] = []
    at = 0
    while at < len(units):
        unit = units[at]
        stop, label = at + 1, _kind(unit)
        parts: list[Part] = []
        for end in range(at, len(units)):
            if not units[end].parts:
                break
            parts += units[end].parts
            if len(parts) > names.longest:
                break
            named = names.find(parts)
            # A single word may be an adjective or a verb: an orange bus, he skis.
            if named is not None and (len(parts) > 1 or _is_noun(units, at, surely)):
                stop, label = end + 1, named
        run = units[at:stop]
        tokens = tuple(dict.fromkeys(index for one in run for index in one.tokens))
        if tokens:
            text = unit.text if stop == at + 1 else " ".join(one.text for one in run)
            found.append(Word(text, tokens, label))
        at = stop
    return found


def _is_noun(units: Sequence[_Unit], at: int, surely: Callable[[str], bool]) -> bool:
    """Whether a word that is a category's name is a noun: as it is tagged, or where its tag can only be an error."""
    unit = units[at]
    if unit.tag in NOUN:
        return True
    after_determiner = at > 0 and not unit.begins and units[at - 1].tag in ("DT", "PRP$")
    return (after_determiner and unit.tag.startswith(("VB", "RB"))) or surely(unit.parts[0][1])


def _kind(unit: _Unit) -> int:
    if not unit.is_word:
        return OTHER
    if unit.tag in NOUN:
        return NOUN_WITHOUT_MASK
    return FUNCTION_WORD if unit.tag in FUNCTION else OTHER
