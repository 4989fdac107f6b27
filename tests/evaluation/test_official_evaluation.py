"""``compat="official"`` against the published program's recorded output, and its faults: there, and by default not."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from language import END, byte_tokenizer, ids_of, needs_nltk_data
from PIL import Image
from places import data_folder

import tam_fast
from tam_fast.evaluation import Scores, Word, score, summary, words

pytest.importorskip("cv2")

GOLDEN = data_folder() / "golden_methods"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no recorded outputs beside the checkout")
TOKENIZERS = (
    "llava15_tokenizer",
    pytest.param("qwen2vl", marks=pytest.mark.long),
    pytest.param("internvl3_tokenizer", marks=pytest.mark.long),
)
LISTS = ("obj_iou", "func_iou", "precision", "recall", "rouge_l", "meteor")


@cache
def recorded() -> tuple[dict[str, Any], Any]:
    document = json.loads((GOLDEN / "evaluation_official.json").read_text(encoding="utf-8"))
    return document, np.load(GOLDEN / "evaluation_official.npz")


def mask_of(case: dict[str, Any]) -> np.ndarray | None:
    if case["seg_label"] is None:
        return None
    return np.asarray(Image.open(data_folder() / "coco_free" / case["seg_label"]))


def words_of(case: dict[str, Any]) -> list[Word]:
    parts = zip(case["words"], case["tokens_of_word"], case["labels"], strict=True)
    return [Word(text, tuple(tokens), label) for text, tokens, label in parts]


@cache
def all_scores() -> dict[str, Scores]:
    document, arrays = recorded()
    return {
        case["case"]: score(
            arrays[f"{case['case']}_maps"],
            words_of(case),
            mask_of(case),
            references=case["references"],
            text=case["text"],
            compat="official",
        )
        for case in document["cases"]
    }


# Recorded outputs ----------------------------------------------------------------------------------------------------


@needs_golden
@needs_nltk_data
def test_scores_are_those_recorded():
    pytest.importorskip("rouge")
    document, arrays = recorded()
    assert len(document["cases"]) == 44
    for case in document["cases"]:
        name = case["case"]
        found = all_scores()[name]
        for one in LISTS:
            expected = arrays[f"{name}_{one}"]
            assert len(getattr(found, one)) == len(expected), (name, one)
            np.testing.assert_allclose(getattr(found, one), expected, rtol=0, atol=1e-12, err_msg=f"{name} {one}")
        assert found.otsu == arrays[f"{name}_otsu"].tolist(), name
        assert (found.dropped != "") == (name == "c38")


@needs_golden
@needs_nltk_data
def test_summaries_are_the_lines_it_prints():
    pytest.importorskip("rouge")
    lines = recorded()[0]["summary"]
    whole = summary(all_scores().values(), resamples=10)
    assert str(whole) == lines["printed_all"]
    assert (whole.n, whole.dropped) == (43, 1)
    assert math.isnan(whole.precision)
    some = summary([all_scores()[name] for name in lines["cases_without_nan"]], resamples=10)
    assert str(some) == lines["printed_without_nan_cases"]


@needs_golden
@needs_nltk_data
@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_are_those_recorded(name: str):
    from transformers import AutoTokenizer

    cases = json.loads((GOLDEN / "words_official.json").read_text(encoding="utf-8"))[name]
    assert len(cases) >= 50
    tokenizer = AutoTokenizer.from_pretrained(data_folder() / "processors" / name)
    for case in cases:
        found = words(case["ids"], tokenizer, recorded()[0]["category_coco"], compat="official")
        assert [word.text for word in found] == case["words"]
        assert [list(word.tokens) for word in found] == case["tokens_of_word"]
        assert [word.label for word in found] == case["labels"]
        # An answer whose text has other tokens is left out, silently there.
        maps = np.zeros((len(case["ids"]), 2, 2), dtype=np.uint8)
        dropped = score(maps, found, np.zeros((4, 4), dtype=np.uint8), compat="official").dropped
        assert (dropped == "") == case["usable"]


@needs_golden
@needs_nltk_data
@pytest.mark.long
def test_words_of_recorded_answers_are_those_recorded():
    from transformers import AutoTokenizer

    document, _ = recorded()
    tokenizer = AutoTokenizer.from_pretrained(data_folder() / "processors" / "qwen2vl")
    for case in document["cases"]:
        categories = document["category_coco"] if case["category"] == "coco" else case["category"]
        ids = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
        assert words(ids, tokenizer, categories, compat="official") == words_of(case), case["case"]


# The faults, one by one ----------------------------------------------------------------------------------------------

CAT, DOG, ZEBRA = 17, 18, 24
MASK = np.zeros((6, 8), dtype=np.uint8)
MASK[:3, :4], MASK[3:, 4:] = CAT, DOG


def bright(label: int, high: int = 200, low: int = 0) -> np.ndarray:
    return np.where(label == MASK, high, low).astype(np.uint8)


def both(maps: list[np.ndarray], said: list[Word]) -> tuple[Scores, Scores]:
    stacked = np.stack(maps)
    return score(stacked, said, MASK, compat="official"), score(stacked, said, MASK)


def by_both(text: str, categories: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    found = (
        {word.text: word.label for word in words(ids_of(text), byte_tokenizer(), categories, compat=compat)}
        for compat in ("official", None)
    )
    return next(found), next(found)


@needs_nltk_data
def test_fault_1_the_end_token_is_part_of_the_last_word():
    official, ours = by_both(f"A dog.{END}", {"dog": DOG})
    assert official == {"A": -2, "dog": DOG, f".{END}": -1}  # a noun
    assert ours == {"A": -2, "dog": DOG, ".": -3}
    official, ours = by_both(f"A dog{END}", {"dog": DOG})
    assert official == {"A": -2, f"dog{END}": -1}  # the last noun is lost
    assert ours == {"A": -2, "dog": DOG}


def test_fault_1_the_end_token_s_map_enters_the_threshold():
    maps = [np.full((6, 8), 120, dtype=np.uint8), bright(DOG, 250, 100), bright(CAT, 250, 150)]
    official = score(
        np.stack(maps),
        [Word("A", (0,), -2), Word("dog", (1,), DOG), Word(f".{END}", (2,), -1)],
        MASK,
        compat="official",
    )
    assert (official.threshold, official.func_iou) == (125.0, [1.0])
    ours = score(np.stack(maps), [Word("A", (0,), -2), Word("dog", (1,), DOG), Word(".", (2,), -3)], MASK)
    assert (ours.threshold, ours.func_iou) == (100.0, [0.0])


@needs_nltk_data
def test_fault_2_any_word_of_a_name_matches_and_the_last_wins():
    categories = {"bear": 23, "dog": DOG, "baseball bat": 39, "baseball glove": 40, "hot dog": 58, "teddy bear": 88}
    official, ours = by_both("A dog and his bears play baseball.", categories)
    assert (official["dog"], official["bears"], official["baseball"]) == (58, 88, 40)
    assert (ours["dog"], ours["bears"], ours["baseball"]) == (DOG, 23, -1)


@needs_nltk_data
def test_fault_3_words_are_tagged_alone():
    categories = {"oven": 79, "laptop": 73}
    official, ours = by_both("Laptop on a wooden table by the oven.", categories)
    assert (official["Laptop"], official["wooden"], official["oven"]) == (-3, -1, -3)
    assert (ours["Laptop"], ours["wooden"], ours["oven"]) == (73, -3, 79)


def test_fault_4_merging():
    # An absent label twice: of the two others, which are of other objects, the lesser is gone.
    maps = [bright(CAT), bright(CAT), bright(DOG), bright(DOG)]
    said = [Word("cat", (0,), CAT), Word("dog", (1,), DOG), Word("zebra", (2,), ZEBRA), Word("zebra", (3,), ZEBRA)]
    official, ours = both(maps, said)
    assert (official.obj_iou, official.recall) == ([1.0], [1.0])
    assert ours.obj_iou == [1.0, 0.0]
    # Two cats side by side are one, also with other words than nouns between.
    said = [Word("cat", (0,), CAT), Word("and", (1,), -2), Word("cat", (2,), CAT), Word("x", (3,), -3)]
    official, ours = both(maps, said)
    assert official.obj_iou == [1.0]
    assert ours.obj_iou == [1.0, 0.0]
    # With another noun between they are two.
    between = [*said[:1], Word("box", (1,), -1), *said[2:]]
    assert both(maps, between)[0].obj_iou == [1.0, 0.0]


def test_fault_5_constant_maps():
    the, cat = Word("the", (0,), -2), Word("cat", (1,), CAT)
    official, ours = both([np.zeros((6, 8), dtype=np.uint8)] * 2, [the, cat])
    assert math.isnan(official.precision[0])
    assert math.isnan(summary([official], resamples=5).precision)
    assert ours.precision == [0.0]
    assert (official.func_iou, ours.func_iou) == ([0.0], [1.0])  # perfectly dark
    official, ours = both([np.zeros((6, 8), dtype=np.uint8), np.full((6, 8), 9, dtype=np.uint8)], [the, cat])
    assert (official.recall, official.precision) == ([1.0], [12 / 48])  # everything is chosen
    assert (ours.recall, ours.precision) == ([0.0], [0.0])


def test_fault_6_the_first_token_is_judged_by_the_map_of_a_word_of_the_prompt():
    """Whatever the first token is, its map is the same; the maps are the published program's, and so is this."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(30, 16, generator=generator)
    classifier = torch.randn(40, 16, generator=generator)
    layout = tam_fast.Layout([tam_fast.Grid(torch.arange(2, 22), 4, 5)], torch.tensor([22, 23, 24]), 26)
    said = [Word("cat", (0,), 1)]
    mask = np.kron(np.arange(20).reshape(4, 5) % 2, np.ones((3, 3), dtype=np.int64))
    found: dict[str | None, set[float]] = {"official": set(), None: set()}
    for first in range(10, 16):
        ids = torch.arange(31) % 7
        ids[26] = first
        for compat, values in found.items():
            levels = tam_fast.activation_maps(hidden, classifier, ids, layout, compat=compat).uint8()
            values.update(score(levels.numpy()[:1].reshape(1, 4, 5), said, mask).obj_iou)
    assert len(found["official"]) == 1
    assert len(found[None]) > 1


def test_a_map_too_few_is_an_error_and_there_an_answer_that_is_left_out():
    said = [Word("cat", (0,), CAT), Word("dog", (1,), DOG)]
    official = score(bright(CAT)[None], said, MASK, compat="official", references=["a cat"], text="a cat")
    assert official == Scores(dropped="1 maps for 2 tokens of the text", threshold=official.threshold)
    with pytest.raises(ValueError, match=r"^words: expected tokens of the 1 maps"):
        score(bright(CAT)[None], said, MASK)
