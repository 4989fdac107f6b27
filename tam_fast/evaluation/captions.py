"""Answers against captions that people wrote: ROUGE-L and METEOR.

They say how good the answers are that maps are judged on; they say nothing of the maps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tam_fast.evaluation.tagging import load_wordnet

__all__ = ["meteor", "rouge_l", "without_end"]

_END = re.compile(r"(?:<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<\|end\|>|<end_of_turn>|<eos>|</s>)\s*\Z")


def without_end(text: str) -> str:
    """Take end tokens, such as ``<|im_end|>`` or ``</s>``, off the end of an answer."""
    while (shorter := _END.sub("", text)) != text:
        text = shorter
    return text


def rouge_l(text: str, references: Sequence[str]) -> float:
    """Return ROUGE-L of an answer, its F-measure with the best of the references, by the package ``rouge`` 1.0.1.

    Case and marks are kept, sentences end at each ".", a word counts once however often it stands. (The package
    ``rouge-score`` reads words otherwise; the two differ by up to 0.1.)

    Parameters
    ----------
    text : str
        The answer; end tokens at its end are left out.
    references : sequence of str
        At least one that has a word.

    Returns
    -------
    float
        From 0 to 1; 0 if the answer has no word.

    Raises
    ------
    ValueError
        If no reference has a word, or a sentence is too long for the package, which recurses once a word.
    ModuleNotFoundError
        If the package is missing; says what to install.
    """
    try:
        from rouge import Rouge
    except ImportError as error:
        raise ModuleNotFoundError(
            "evaluation: expected rouge, which scores captions, got none: pip install 'tam-fast[evaluation]'"
        ) from error
    said, known = _read(text, references)
    if not _has_word(said):
        return 0.0
    scorer: Any = Rouge(metrics=["rouge-l"], stats=["f"])
    try:
        return max(float(scorer.get_scores(said, one)[0]["rouge-l"]["f"]) for one in known)
    except RecursionError as error:
        words = max(len(sentence.split()) for one in (said, *known) for sentence in one.split("."))
        raise ValueError(f"text: expected sentences that ROUGE-L can be made of, got one of {words} words") from error


def meteor(text: str, references: Sequence[str]) -> float:
    """Return METEOR of an answer with the best of the references, as NLTK has it, by lower-cased words between spaces.

    Words are matched as they stand, by their stems (Porter), and by synonyms of WordNet, which NLTK looks up by stems:
    "automobile" has none, since "automobil" is no word.

    Parameters
    ----------
    text : str
        The answer; end tokens at its end are left out.
    references : sequence of str
        At least one that has a word.

    Returns
    -------
    float
        From 0 to 1; 0 if the answer has no word.

    Raises
    ------
    ValueError
        If no reference has a word.
    FileNotFoundError
        If WordNet's data are not where ``NLTK_DATA`` says.
    ModuleNotFoundError
        If NLTK is missing; says what to install.
    """
    wordnet = load_wordnet()
    from nltk.translate.meteor_score import meteor_score

    said, known = _read(text, references)
    words = said.split()  # NLTK brings both to lower case
    if not words:
        return 0.0
    return float(meteor_score([one.split() for one in known], words, wordnet=wordnet))


def _has_word(text: str) -> bool:
    """Whether something is left where sentences end at each "."."""
    return any(part.strip() for part in text.split("."))


def _read(text: str, references: Sequence[str]) -> tuple[str, list[str]]:
    if isinstance(references, str):
        raise ValueError("references: expected a list of texts, got one text")
    known = [one for one in references if _has_word(one)]
    if not known:
        raise ValueError(f"references: expected at least one with a word, got {len(references)} without")
    return without_end(text), known
