"""ROUGE-L and METEOR of answers: against the definitions, and what they do not take."""

from __future__ import annotations

import sys

import pytest
from language import needs_nltk_data

from tam_fast.evaluation import meteor, rouge_l
from tam_fast.evaluation.captions import without_end


def slow_rouge_l(text: str, reference: str) -> float:
    """One sentence each, no word twice: the longest common subsequence, from the definition."""
    said, known = text.split(), reference.split()
    best = 0
    for chosen in range(1 << len(said)):
        kept = [word for place, word in enumerate(said) if chosen >> place & 1]
        rest = iter(known)
        if len(kept) > best and all(word in rest for word in kept):
            best = len(kept)
    precision, recall = best / len(said), best / len(known)
    return 2 * precision * recall / (precision + recall) if best else 0.0


def test_rouge_l_by_hand_and_by_the_definition():
    pytest.importorskip("rouge")
    pairs = [("a cat sits on the mat", "the cat lay on a mat"), ("x y", "y x"), ("a b c", "d e"), ("one", "one")]
    for text, reference in pairs:
        assert rouge_l(text, [reference]) == pytest.approx(slow_rouge_l(text, reference), abs=1e-7)
    assert rouge_l("a dog", ["a cat", "a dog runs", "dogs"]) == pytest.approx(0.8, abs=1e-7)  # the best reference
    assert rouge_l("A dog", ["a dog"]) == pytest.approx(0.5, abs=1e-7)  # case is kept


def test_end_tokens_are_no_words():
    assert without_end("A dog.<|im_end|>") == "A dog."
    assert without_end("A dog</s><eos>\n") == "A dog"
    assert without_end("<|im_end|> is a token") == "<|im_end|> is a token"
    pytest.importorskip("rouge")
    assert rouge_l("a dog<|im_end|>", ["a dog"]) == rouge_l("a dog", ["a dog"])


@pytest.mark.parametrize("text", ["", " ", "...", "<|im_end|>"])
def test_an_answer_without_words_has_no_rouge(text: str):
    pytest.importorskip("rouge")
    assert rouge_l(text, ["a dog"]) == 0.0


@needs_nltk_data
def test_meteor_by_hand():
    # All words match in one chunk: F is 1, the penalty 0.5 (1 / 3)^3.
    assert meteor("a Red dog", ["a red dog"]) == pytest.approx(1 - 0.5 / 27)
    # By stem, and by synonym of WordNet; one word: penalty 0.5.
    assert meteor("dogs", ["dog"]) == pytest.approx(0.5)
    assert meteor("auto", ["car"]) == pytest.approx(0.5)
    assert meteor("automobile", ["car"]) == 0.0  # NLTK looks its stem up, "automobil"
    assert meteor("car", ["zebra", "car"]) == pytest.approx(0.5)
    # One of two words, of one: P = 1, R = 1/2, F = 10 P R / (R + 9 P).
    assert meteor("dog", ["dog barking"]) == pytest.approx(0.5 * 5 / 9.5)
    assert meteor("", ["dog"]) == 0.0
    assert meteor("dog<|im_end|>", ["dog"]) == meteor("dog", ["dog"])


def test_too_long_a_sentence_is_an_error_not_a_crash():
    pytest.importorskip("rouge")
    long = " ".join(f"w{place}" for place in range(sys.getrecursionlimit()))
    with pytest.raises(
        ValueError, match=r"^text: expected sentences that ROUGE-L can be made of, got one of \d+ words"
    ):
        rouge_l(long, ["one word"])


@pytest.mark.parametrize("references", [[], ["", " . "]])
def test_references_need_a_word(references: list[str]):
    pytest.importorskip("rouge")
    with pytest.raises(ValueError, match=r"^references: expected at least one with a word"):
        rouge_l("a dog", references)


def test_one_reference_is_still_a_list():
    pytest.importorskip("rouge")
    with pytest.raises(ValueError, match=r"^references: expected a list of texts"):
        rouge_l("a dog", "a dog")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rouge", None)
    with pytest.raises(ModuleNotFoundError, match=r"^evaluation: expected rouge, .*tam-fast\[evaluation\]"):
        rouge_l("a dog", ["a dog"])
