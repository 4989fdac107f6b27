"""Parts of speech and lemmas: NLTK's averaged perceptron and WordNet, from data that lie on this machine.

Data are read from the folders that ``NLTK_DATA`` and NLTK itself name; nothing is fetched. A tagger may also be a
spaCy model, or any function.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from threading import RLock
from typing import Any, TypeAlias

__all__ = ["FUNCTION", "NOUN", "Tagged", "Tagger", "load_wordnet", "lone_tag", "noun_lemma", "only_noun", "open_tagger"]

NOUN = frozenset({"NN", "NNS", "NNP", "NNPS"})
"""Tags of nouns, of the Penn Treebank."""

FUNCTION = frozenset({"CC", "DT", "EX", "MD", "POS", "PRP", "PRP$", "UH", "WDT", "WP", "WP$", "WRB"})
"""Tags of function words: the published script's choice. Prepositions (IN) and numbers (CD) are none of them."""

Tagged: TypeAlias = "list[tuple[str, str]]"
"""A tag and a lemma for each word."""

Tagger: TypeAlias = "Callable[[Sequence[str]], Sequence[str | tuple[str, str]] | None]"
"""Takes the words and marks of a sentence, and gives for each its tag of the Penn Treebank, or its tag and lemma;
None for a sentence that it does not know."""

_TAGGER = "taggers/averaged_perceptron_tagger_eng"
_WORDNET = "corpora/wordnet"
_lock = RLock()
_held: dict[str, Any] = {}


def open_tagger(tagger: str | Tagger | None) -> Callable[[Sequence[str]], Tagged]:
    """Return a function that tags a sentence.

    Parameters
    ----------
    tagger : None, "nltk", "spacy:MODEL" or callable
        None is NLTK's. What a function does not know (it returns None) is asked of NLTK's. If it gives tags alone, a
        word's lemma is the word in lower case.

    Raises
    ------
    ValueError
        If it is something else.
    ModuleNotFoundError
        If spaCy is asked for and missing.
    OSError
        If spaCy has no such model on this machine.
    """
    if tagger is None or tagger == "nltk":
        return _by_nltk
    if isinstance(tagger, str):
        kind, _, model = tagger.partition(":")
        if kind != "spacy" or not model:
            raise ValueError(f"tagger: expected nltk, spacy:MODEL or a function, got {tagger!r}")
        return _by_spacy(model)
    if not callable(tagger):
        raise ValueError(f"tagger: expected nltk, spacy:MODEL or a function, got {type(tagger).__name__}")

    def told(words: Sequence[str]) -> Tagged:
        found = tagger(words)
        if found is None:
            return _by_nltk(words)
        if len(found) != len(words):
            raise ValueError(f"tagger: expected a tag for each of {len(words)} words, got {len(found)}")
        return [
            (one, word.lower()) if isinstance(one, str) else (str(one[0]), str(one[1]).lower())
            for one, word in zip(found, words, strict=True)
        ]

    return told


def lone_tag(word: str) -> str:
    """Tag a word without its sentence, as the published script does.

    Raises
    ------
    FileNotFoundError, ModuleNotFoundError
        See :func:`load_wordnet`.
    """
    return _lone(word, _perceptron())


@lru_cache(maxsize=65_536)
def _lone(word: str, perceptron: Any) -> str:
    return str(perceptron.tag([word])[0][1])


def noun_lemma(word: str) -> str:
    """Return the lemma of a noun by WordNet's exceptions and endings: "knives" to "knife"; others as they stand.

    Parameters
    ----------
    word : str
        In lower case.

    Raises
    ------
    FileNotFoundError, ModuleNotFoundError
        See :func:`load_wordnet`.
    """
    load_wordnet()
    return _lemma(word)


@lru_cache(maxsize=65_536)
def _lemma(word: str) -> str:
    with _lock:
        return str(_held["lemmatizer"].lemmatize(word, "n")) if word else word


def only_noun(word: str) -> bool:
    """Whether WordNet has a word, and has it as a noun alone: "oven", which taggers mistake, but not "bear".

    Parameters
    ----------
    word : str
        A lemma, in lower case.

    Raises
    ------
    FileNotFoundError, ModuleNotFoundError
        See :func:`load_wordnet`.
    """
    load_wordnet()
    return _only_noun(word)


@lru_cache(maxsize=65_536)
def _only_noun(word: str) -> bool:
    with _lock:
        senses = _held["wordnet"].synsets(word)
        return bool(senses) and all(sense.pos() == "n" for sense in senses)


def load_wordnet() -> Any:
    """Load WordNet.

    Returns
    -------
    nltk.corpus.reader.WordNetCorpusReader

    Raises
    ------
    FileNotFoundError
        If it is not there; names ``NLTK_DATA`` and what it is to hold.
    ModuleNotFoundError
        If NLTK is missing; says what to install.
    """
    with _lock:
        if "wordnet" not in _held:
            nltk = _nltk()
            from nltk.corpus import wordnet
            from nltk.stem import WordNetLemmatizer

            try:
                wordnet.ensure_loaded()
            except LookupError as error:
                raise _missing(nltk) from error
            _held["lemmatizer"] = WordNetLemmatizer()
            _held["wordnet"] = wordnet
        return _held["wordnet"]


def _perceptron() -> Any:
    with _lock:
        if "perceptron" not in _held:
            nltk = _nltk()
            from nltk.tag import PerceptronTagger

            try:
                _held["perceptron"] = PerceptronTagger(lang="eng")
            except LookupError as error:
                raise _missing(nltk) from error
        return _held["perceptron"]


def _by_nltk(words: Sequence[str]) -> Tagged:
    perceptron = _perceptron()
    return [(tag, noun_lemma(word.lower())) for word, tag in perceptron.tag(list(words))]


def _by_spacy(model: str) -> Callable[[Sequence[str]], Tagged]:
    try:
        spacy: Any = import_module("spacy")
    except ImportError as error:
        raise ModuleNotFoundError(f"tagger: expected spaCy for spacy:{model}, got none: pip install spacy") from error
    with _lock:
        language = _held.get(f"spacy:{model}")
        if language is None:
            language = _held[f"spacy:{model}"] = spacy.load(model)

    def told(words: Sequence[str]) -> Tagged:
        made = import_module("spacy.tokens").Doc(language.vocab, words=list(words))
        for _, pipe in language.pipeline:
            made = pipe(made)
        return [(token.tag_, (token.lemma_ or token.text).lower()) for token in made]

    return told


def _nltk() -> Any:
    try:
        import nltk
    except ImportError as error:
        raise ModuleNotFoundError(
            "evaluation: expected nltk, which tells nouns, got none: pip install 'tam-fast[evaluation]'"
        ) from error
    # NLTK reads the variable once, when it is imported.
    for folder in reversed(os.environ.get("NLTK_DATA", "").split(os.pathsep)):
        if folder and folder not in nltk.data.path:
            nltk.data.path.insert(0, folder)
    return nltk


def _missing(nltk: Any) -> FileNotFoundError:
    looked = ", ".join(map(str, nltk.data.path)) or "nowhere"
    return FileNotFoundError(
        f"NLTK_DATA: expected a folder with {_TAGGER} and {_WORDNET} (nltk.org/nltk_data has them), looked in {looked}"
    )
