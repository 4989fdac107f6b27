"""Parts of speech and lemmas, and what is said where their data or packages are missing."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from language import needs_nltk_data

from tam_fast.evaluation import tagging
from tam_fast.evaluation.tagging import FUNCTION, NOUN, lone_tag, noun_lemma, only_noun, open_tagger


@pytest.fixture
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "_held", {})


@needs_nltk_data
def test_sentences_are_tagged_and_nouns_have_lemmas():
    told = open_tagger(None)(["The", "two", "Knives", "lie", "in", "the", "oven", "."])
    assert [tag for tag, _ in told[:2]] == ["DT", "CD"]
    assert told[2][1] == "knife"
    assert told[6][0] in NOUN
    assert lone_tag("oven") not in NOUN  # without its sentence
    assert lone_tag("the") in FUNCTION
    lemmas = {
        "men": "men",
        "mice": "mouse",
        "wolves": "wolf",
        "glasses": "glass",
        "scissors": "scissors",
        "qwxyz": "qwxyz",
    }
    assert {word: noun_lemma(word) for word in lemmas} == lemmas
    assert noun_lemma("") == ""
    assert only_noun("oven")
    assert not only_noun("bear")
    assert not only_noun("xyzzyx")


def test_a_tagger_of_ones_own():
    told = open_tagger(lambda words: ["NN"] * len(words))
    assert told(["Dogs", "Run"]) == [("NN", "dogs"), ("NN", "run")]
    told = open_tagger(lambda words: [("NNS", word[:-1]) for word in words])
    assert told(["Dogs"]) == [("NNS", "dog")]
    with pytest.raises(ValueError, match=r"^tagger: expected a tag for each of 2 words, got 1"):
        open_tagger(lambda words: ["NN"])(["a", "b"])


@needs_nltk_data
def test_what_a_tagger_does_not_know_is_asked_of_nltk():
    told = open_tagger(lambda words: None if "oven" in words else ["X"] * len(words))
    assert told(["the", "dog"]) == [("X", "the"), ("X", "dog")]
    assert told(["the", "oven"])[0] == ("DT", "the")


@pytest.mark.parametrize("tagger", ["hmm", "spacy", "spacy:", 3])
def test_other_taggers_are_refused(tagger: object):
    with pytest.raises(ValueError, match=r"^tagger: expected nltk, spacy:MODEL or a function"):
        open_tagger(tagger)  # type: ignore[arg-type]


def test_spacy_tags_the_words_it_is_given(monkeypatch: pytest.MonkeyPatch, nothing_held: None):
    """spaCy's own splitting is not asked for: the words are ours."""

    class Doc(list):  # type: ignore[type-arg]
        def __init__(self, vocabulary: object, words: Sequence[str]) -> None:
            assert vocabulary == "vocabulary"
            super().__init__(SimpleNamespace(text=word, tag_="", lemma_="") for word in words)

    def tag(document: Doc) -> Doc:
        for token in document:
            token.tag_ = "NNS" if token.text.endswith("s") else "DT"
        return document

    def lemmatise(document: Doc) -> Doc:
        for token in document:
            token.lemma_ = token.text.removesuffix("s") if token.tag_ == "NNS" else ""
        return document

    loaded: list[str] = []

    def load(model: str) -> SimpleNamespace:
        loaded.append(model)
        return SimpleNamespace(vocab="vocabulary", pipeline=[("tagger", tag), ("lemmatizer", lemmatise)])

    spacy, tokens = ModuleType("spacy"), ModuleType("spacy.tokens")
    spacy.load, tokens.Doc = load, Doc  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    monkeypatch.setitem(sys.modules, "spacy.tokens", tokens)
    told = open_tagger("spacy:small")
    assert told(["The", "Dogs"]) == [("DT", "the"), ("NNS", "dog")]
    open_tagger("spacy:small")
    assert loaded == ["small"]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, nothing_held: None):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ModuleNotFoundError, match=r"^tagger: expected spaCy for spacy:small, .*pip install spacy"):
        open_tagger("spacy:small")
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ModuleNotFoundError, match=r"^evaluation: expected nltk, .*tam-fast\[evaluation\]"):
        open_tagger(None)(["a"])


def test_missing_data_are_named_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nothing_held: None
):
    nltk = pytest.importorskip("nltk")
    from nltk.corpus.util import LazyCorpusLoader

    def refuse(*_args: object, **_more: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(
        nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", nltk.corpus.reader.WordNetCorpusReader, None)
    )
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    asked = (
        r"^NLTK_DATA: expected a folder with taggers/averaged_perceptron_tagger_eng and corpora/wordnet .*looked in "
    )
    for ask in (tagging.load_wordnet, lambda: lone_tag("a"), lambda: open_tagger(None)(["a"])):
        with pytest.raises(FileNotFoundError, match=asked) as told:
            ask()
        assert str(tmp_path) in str(told.value)
    assert nltk.data.path == [str(tmp_path)]
