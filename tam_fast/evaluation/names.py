"""Which words of a text name which category: whole names, the longest first, and their synonyms."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Names", "Part", "Synonyms", "parts_of", "read_synonyms", "stem_of_clitic"]

Synonyms: TypeAlias = "Mapping[str, str | Iterable[str]] | str | os.PathLike[str]"
"""Other words for categories by their name (``{"person": ["man", "woman"]}``), or a file of them."""

Part: TypeAlias = "tuple[str, str]"
"""A part of a word in lower case, and its lemma."""

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'"})
_HYPHENS = re.compile(r"[-\u2010\u2011]+")
_SEPARATORS = re.compile(r"[\s_/,\-\u2010\u2011]+")
_CLITICS = ("'s", "'re", "'ve", "'ll", "'d", "'m")


def stem_of_clitic(word: str) -> tuple[str, str]:
    """Split what hangs on a word off it: "man's" to ("man", "'s"), "can't" to ("ca", "n't"); else ("word", "")."""
    word = word.translate(_APOSTROPHES)
    lower = word.lower()
    if lower.endswith("n't") and len(word) > 3:
        return word[:-3], word[-3:]
    for clitic in _CLITICS:
        if lower.endswith(clitic) and len(word) > len(clitic):
            return word[: -len(clitic)], word[-len(clitic) :]
    return word, ""


def parts_of(word: str) -> list[str]:
    """Split a word of a text at its hyphens, in lower case and without clitics: "T-shirt's" to "t", "shirt"."""
    return [part for part in _HYPHENS.split(stem_of_clitic(word)[0].lower()) if part]


def read_synonyms(synonyms: Synonyms | None) -> dict[str, list[str]]:
    """Read other words for categories.

    Parameters
    ----------
    synonyms : mapping, path or None
        A file is JSON (an object: a name to a list of words) or text in UTF-8, a line a category ::

            # a remark
            person: man, woman, boy, girl

    Returns
    -------
    dict of str to list of str

    Raises
    ------
    ValueError
        If it is no such mapping or file; names the line.
    FileNotFoundError
        If there is no such file.
    """
    if synonyms is None:
        return {}
    if isinstance(synonyms, (str, os.PathLike)):
        path = Path(synonyms)
        if not path.is_file():
            raise FileNotFoundError(f"synonyms: expected a file, got {path}")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"synonyms: expected text in UTF-8, got other bytes in {path}") from error
        synonyms = _from_json(text, path) if text.lstrip().startswith("{") else _from_lines(text, path)
    if not isinstance(synonyms, Mapping):
        raise ValueError(f"synonyms: expected a mapping or a file, got {type(synonyms).__name__}")
    found: dict[str, list[str]] = {}
    for name, words in synonyms.items():
        several = [words] if isinstance(words, str) else words
        if not isinstance(several, Iterable) or isinstance(several, Mapping):
            raise ValueError(f"synonyms: expected a list of words for {name!r}, got {type(words).__name__}")
        listed = list(several)
        wrong = [word for word in (name, *listed) if not isinstance(word, str) or not word.strip()]
        if wrong:
            raise ValueError(f"synonyms: expected words for {name!r}, got {wrong[0]!r}")
        found.setdefault(name, []).extend(listed)
    return found


def _from_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"synonyms: expected JSON in {path}, got {error}") from error


def _from_lines(text: str, path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        name, colon, rest = line.partition(":")
        words = [word.strip() for word in rest.split(",") if word.strip()]
        if not colon or not name.strip() or not words:
            raise ValueError(f"synonyms: expected 'name: word, word' in {path}, got line {number}: {line[:80]!r}")
        found.setdefault(name.strip(), []).extend(words)
    return found


class Names:
    """Names of categories, to be looked for in a text.

    A name is all of its words, in order: "hot dog" is named by "hot dogs" and "hot-dog", never by "dog" or "hot". At
    each place the longest name counts. Words agree as they stand, or else by their lemmas ("knives" and "knife");
    case, hyphens and clitics do not matter. Of two categories, that whose name stands there as it is goes before one
    with the same lemmas, and a name before a synonym.

    Parameters
    ----------
    categories : mapping of str to int
        Labels, at least 0, by name; several names may share one.
    synonyms : mapping or path, optional
        See :func:`read_synonyms`. Those of names that are not among `categories` are left out, since a file may serve
        many images of different categories.
    lemma : callable, optional
        Of a word in lower case; its own lemma if left out.

    Raises
    ------
    ValueError
        If a name is empty, a label is none, or one name stands for two labels.
    """

    def __init__(
        self,
        categories: Mapping[str, int],
        synonyms: Synonyms | None = None,
        lemma: Callable[[str], str] | None = None,
    ) -> None:
        lemma = lemma or (lambda word: word)
        others = read_synonyms(synonyms)
        labels = read_categories(categories)
        self._exact: dict[tuple[str, ...], int] = {}
        self._alike: dict[tuple[str, ...], int] = {}
        for names, what in (
            (labels.items(), "categories"),
            (((word, labels[name]) for name, words in others.items() if name in labels for word in words), "synonyms"),
        ):
            known = dict(self._exact)
            spelled: list[tuple[tuple[str, ...], int]] = []
            for name, label in names:
                words = tuple(stem_of_clitic(word)[0] for word in _SEPARATORS.split(name.lower().strip()) if word)
                if not words:
                    raise ValueError(f"{what}: expected names that have letters, got {name!r}")
                if what == "synonyms" and words in known:
                    continue  # a category of its own name
                if self._exact.setdefault(words, label) != label:
                    raise ValueError(f"{what}: expected one label for {name!r}, got {self._exact[words]} and {label}")
                spelled.append((words, label))
            for words, label in spelled:
                self._alike.setdefault(tuple(map(lemma, words)), label)
        self.longest = max(map(len, self._exact), default=0)

    def find(self, parts: Sequence[Part]) -> int | None:
        """Return the label that parts of words name, all of them together; None if none does."""
        label = self._exact.get(tuple(word for word, _ in parts))
        return label if label is not None else self._alike.get(tuple(lemma for _, lemma in parts))


def read_categories(categories: Mapping[str, int]) -> dict[str, int]:
    """Check labels by name.

    Raises
    ------
    ValueError
        If it is no mapping of names to whole numbers of at least 0.
    """
    if not isinstance(categories, Mapping):
        raise ValueError(f"categories: expected a mapping of names to labels, got {type(categories).__name__}")
    found: dict[str, int] = {}
    for name, label in categories.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"categories: expected names, got {name!r}")
        if isinstance(label, bool) or not hasattr(label, "__index__") or int(label) < 0:
            raise ValueError(f"categories: expected labels of at least 0, got {label!r} for {name!r}")
        found[name] = int(label)
    return found
