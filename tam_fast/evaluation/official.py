"""Words and scores as the published script has them (xmed-lab/TAM at 7c7df1d), faults included.

Its numbers can be had digit for digit with ``compat="official"``. What it does otherwise than the default:

1. The end token belongs to the last word; ".<|im_end|>" is tagged as a noun, so that the maps of stop and end enter
   Func-IoU's threshold; without a stop the last noun is lost.
2. Any word of a name matches, and the last name that does wins: "dog" is a hot dog, "bear" a teddy bear.
3. Words are tagged alone: "oven" is an adverb, "wooden" a noun.
4. Nouns in a row with one label merge to the better, whether the mask has it or not: what is dropped may be of another
   object, and two objects side by side count once.
5. A constant map has Otsu's threshold 0 and chooses everything, a map of zeros nothing, with precision NaN; where b is
   0, nothing is dark.
6. The first token's map is that of the prompt's first word: as maps of ``compat="official"`` have it, which are to be
   judged so.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tam_fast.evaluation.names import read_categories
from tam_fast.evaluation.plausibility import (
    Overlap,
    Scores,
    Targets,
    add_function,
    add_object,
    caption_scores,
    overlaps,
    resized_levels,
)
from tam_fast.evaluation.tagging import FUNCTION, NOUN, lone_tag, noun_lemma
from tam_fast.evaluation.words import FUNCTION_WORD, NOUN_WITHOUT_MASK, OTHER, Word

__all__ = ["official_score", "official_words", "retokenised"]

_HAN = ("\u4e00", "\u9fff")


def retokenised(token_ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Decode an answer, special tokens included, and tokenise the text again: which may give other tokens."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [int(one) for one in tokenizer(text, add_special_tokens=False)["input_ids"]]


def official_words(token_ids: Sequence[int], tokenizer: Any, categories: Mapping[str, int]) -> list[Word]:
    """Group and label the tokens of an answer's text, tokenised again.

    A token begins a word if it is the first, part of the ASCII marks in their order, Chinese, or begins with a space.
    If there are other than T tokens, :func:`official_score` leaves the answer out.

    Parameters
    ----------
    token_ids : sequence of T int
        End tokens included, as the published program has them.
    tokenizer : transformers tokenizer
    categories : mapping of str to int
        In their order, of which the last that matches counts.

    Returns
    -------
    list of Word
        Tokens are places in the text tokenised again.
    """
    labels = read_categories(categories)
    named = [({_plain(part) for part in name.split()}, label) for name, label in labels.items()]
    grouped: list[tuple[str, list[int]]] = []
    for index, piece in enumerate(_pieces(retokenised(token_ids, tokenizer), tokenizer)):
        if not grouped or piece in string.punctuation or piece.startswith(" ") or _HAN[0] <= piece[:1] <= _HAN[1]:
            grouped.append((piece, [index]))
        else:
            before, indices = grouped[-1]
            grouped[-1] = (before + piece, [*indices, index])
    return [Word(text.strip(), tuple(indices), _label(text.strip(), named)) for text, indices in grouped]


def _pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Decode tokens one by one; with the space that SentencePiece writes as U+2581 and a lone token loses."""
    found = []
    for token_id in ids:
        piece = str(tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        name = tokenizer.convert_ids_to_tokens(token_id)
        spaced = isinstance(name, str) and name.startswith("\u2581") and not piece.startswith(" ")
        found.append(" " + piece if spaced else piece)
    return found


def _label(word: str, named: Sequence[tuple[set[str], int]]) -> int:
    tag = lone_tag(word)
    if tag not in NOUN:
        return FUNCTION_WORD if tag in FUNCTION else OTHER
    plain = _plain(word)
    matching = [label for parts, label in named if plain in parts]
    return matching[-1] if matching else NOUN_WITHOUT_MASK


def _plain(word: str) -> str:
    return noun_lemma(word.lower().replace("-", ""))


def official_score(
    levels: NDArray[np.uint8],
    words: Sequence[Word],
    labels: NDArray[Any] | None,
    *,
    references: Sequence[str] | None = None,
    text: str | None = None,
) -> Scores:
    """Judge maps (T, h, w) by words and labels (H, W); None: zeros of the maps' size.

    Func-IoU's threshold b is the mean over all nouns; without any it is NaN, and nothing is dark. Lists are those that
    the script returns: of an answer with other than T tokens they are empty.
    """
    count = 1 + max((index for word in words for index in word.tokens), default=-1)
    if count != levels.shape[0]:
        return Scores(dropped=f"{levels.shape[0]} maps for {count} tokens of the text")
    if labels is None:
        labels = np.zeros(levels.shape[1:], dtype=np.uint8)
    targets = Targets(labels)
    objects: list[tuple[int, Word, int, Overlap]] = []
    thresholds: list[float] = []
    otsu: list[int] = []
    before: int | None = None
    for place, word in enumerate(words):
        if word.label < NOUN_WITHOUT_MASK:
            continue
        target = targets.of(word.label)
        several = [
            overlaps(resized_levels(levels[token], labels.shape, linear=True), target, constant=True)
            for token in word.tokens
        ]
        otsu += [one.threshold for one in several]
        thresholds.append(float(max(one.threshold for one in several)))
        if target is not None:
            best = max(range(len(several)), key=lambda index: several[index].iou)
            objects.append((place, word, word.tokens[best], several[best]))
        if word.label >= 0 and word.label == before and len(objects) > 1:
            del objects[-1 if objects[-2][3].iou >= objects[-1][3].iou else -2]
        before = word.label
    threshold = float(np.mean(thresholds)) if thresholds else math.nan
    rouge, met = caption_scores(references, text)
    found = Scores(otsu=otsu, threshold=threshold, rouge_l=rouge, meteor=met)
    for place, word, token, overlap in objects:
        add_object(found, place, word, token, overlap, undefined=math.nan)
    for place, word in enumerate(words):
        if word.label == FUNCTION_WORD:
            dark = np.mean([float(np.mean(levels[token] < threshold)) for token in word.tokens])
            add_function(found, place, word, float(dark))
    return found
