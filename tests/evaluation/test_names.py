"""Names of categories in a text: whole ones, the longest, and synonyms from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tam_fast.evaluation.names import Names, parts_of, read_synonyms, stem_of_clitic

COCO = {"hot dog": 58, "dog": 18, "teddy bear": 88, "wine glass": 46, "cup": 47, "skis": 35, "person": 1}


def find(names: Names, text: str) -> int | None:
    return names.find([(word, word.removesuffix("s")) for word in text.split()])


def lemma(word: str) -> str:
    return word.removesuffix("s")


def test_a_name_is_all_of_its_words():
    names = Names(COCO, lemma=lemma)
    assert names.longest == 2
    assert find(names, "hot dog") == find(names, "hot dogs") == 58
    assert find(names, "dog") == find(names, "dogs") == 18
    for part in ("hot", "bear", "teddy", "glass", "wine", "dog hot", "a dog"):
        assert find(names, part) is None
    assert find(names, "ski") == find(names, "skis") == 35


def test_the_name_that_stands_there_goes_before_one_with_its_lemma():
    names = Names({"glass": 1, "glasses": 2, "Ball": 3}, lemma=lambda word: word.removesuffix("es"))
    assert [names.find([(word, "glass")]) for word in ("glass", "glasses", "glasss")] == [1, 2, 1]
    assert find(names, "ball") == 3


def test_names_are_split_as_words_are():
    names = Names({"T-shirt": 1, "dining_table": 2, "person's hand": 3, "stop/sign": 4})
    assert [find(names, text) for text in ("t shirt", "dining table", "person hand", "stop sign")] == [1, 2, 3, 4]
    assert parts_of("T-Shirt's") == ["t", "shirt"]
    assert parts_of("-") == []
    assert [stem_of_clitic(word) for word in ("man\u2019s", "can't", "'s", "it'll", "Dog")] == [
        *(("man", "'s"), ("ca", "n't"), ("'s", ""), ("it", "'ll"), ("Dog", ""))
    ]


def test_synonyms_mean_their_category():
    names = Names(COCO, {"person": ["man", "young woman"], "cup": "mug", "zebra": ["stripes"]}, lemma)
    assert [find(names, text) for text in ("man", "young woman", "woman", "mugs", "stripes")] == [1, 1, None, 47, None]
    # A category of that name goes before the synonym, as it stands and by lemma.
    names = Names({"dog": 18, "animal": 9}, {"animal": ["dog", "dogs", "cat"]}, lemma)
    assert [find(names, text) for text in ("dog", "dogs", "cats")] == [18, 9, 9]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"person": ["man", "woman"], "cup": "mug"}'),
        ("a.txt", "# who\n\nperson: man , woman # and so on\ncup: mug\n"),
    ],
)
def test_synonyms_from_a_file(tmp_path: Path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8-sig")
    assert read_synonyms(path) == read_synonyms(str(path)) == {"person": ["man", "woman"], "cup": ["mug"]}
    assert find(Names(COCO, path), "woman") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("person man", "expected 'name: word, word' in .*line 1: 'person man'"),
        ("person: man\ncup:", "line 2: 'cup:'"),
        ('{"person": ', "expected JSON"),
        ('{"person": 3}', "expected a list of words for 'person', got int"),
        ('{"person": [""]}', "expected words for 'person', got ''"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=f"^synonyms: .*{message}"):
        read_synonyms(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"^synonyms: expected a file"):
        read_synonyms(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_bytes(b"person: m\xe4n")
    with pytest.raises(ValueError, match=r"^synonyms: expected text in UTF-8"):
        read_synonyms(tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("categories", "synonyms", "message"),
    [
        ({"dog": -1}, None, "categories: expected labels of at least 0, got -1 for 'dog'"),
        ({"dog": True}, None, "categories: expected labels"),
        ({"dog": 1.5}, None, "categories: expected labels"),
        ({" ": 1}, None, "categories: expected names"),
        ({"-": 1}, None, "categories: expected names that have letters"),
        (["dog"], None, "categories: expected a mapping"),
        ({"dog": 1, "Dog": 2}, None, "categories: expected one label for 'Dog', got 1 and 2"),
        ({"a": 1, "b": 2}, {"a": ["x"], "b": ["x"]}, "synonyms: expected one label for 'x', got 1 and 2"),
        ({"a": 1}, ["a"], "synonyms: expected a mapping or a file, got list"),
    ],
)
def test_what_is_wrong_is_named(categories, synonyms, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        Names(categories, synonyms)


def test_several_names_may_share_a_label():
    assert find(Names({"dog": 1, "Dog": 1, "puppy": 1}), "puppy") == 1
    assert find(Names({}), "dog") is None
