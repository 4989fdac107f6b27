"""Figures by name: which there are, and what each makes of an answer and its maps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from places import ROOT

from tam_fast.evaluation import measures as room
from tam_fast.evaluation.data.item import Item
from tam_fast.evaluation.measures import (
    FIGURES,
    MEASURES,
    Case,
    Figure,
    Measure,
    NothingToMeasure,
    Options,
    Value,
    measure,
    read_measures,
)


def word(text: str, label: int, *tokens: int) -> Any:
    return SimpleNamespace(text=text, label=label, tokens=tokens)


def case(item: Item, words: list[Any], box: tuple[float, ...] = (0, 0, 1, 1), size: tuple[int, int] = (8, 4)) -> Case:
    """An answer without a model: an image of width x height, and a raster that covers a part of it."""
    from tam_fast.evaluation.passes import Subject

    subject: Any = SimpleNamespace(image=Image.new("RGB", size), canvas=SimpleNamespace(box=box, shape=(2, 4)))
    subject.on_raster = lambda picture, background=0: Subject.on_raster(subject, picture, background)
    return Case(subject, item, "a dog", lambda: words, Options())


def maps(*rasters: Any) -> Any:
    values = np.asarray(rasters, dtype=np.float32)
    return SimpleNamespace(rasters=values, values=values.reshape(len(values), -1), spec=None)


MASK = np.repeat(np.repeat(np.array([[0, 7, 7, 0], [0, 0, 9, 9]]), 2, axis=0), 2, axis=1)  # (4, 8)
DOG = [[0, 1, 1, 0], [0, 0, 0, 0]]
SHIFTED = [[1, 1, 0, 0], [0, 0, 0, 0]]


def found(one: str, case: Case, given: Any) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for value in MEASURES[one].values(case, given):
        values.setdefault(value.figure, []).append(value.value)
    return values


def test_names_of_measures_and_figures() -> None:
    assert list(MEASURES)[:2] == ["plausibility", "localisation"]
    names = list(FIGURES)
    assert len(set(names)) == len(names)
    assert names[:5] == ["obj_iou", "func_iou", "precision", "recall", "f1_iou"]
    assert all(FIGURES[name].about for name in names)
    assert [one.name for one in read_measures(None)] == ["plausibility", "localisation"]
    assert [one.name for one in read_measures("deletion, pointing")] == ["localisation", "insertion"]
    assert [one.name for one in read_measures(["f1_iou"])] == ["plausibility"]
    assert [one.name for one in read_measures("all")] == list(MEASURES)
    with pytest.raises(ValueError, match=r"figures: expected some of plausibility, .*, got 'beauty'"):
        read_measures("pointing,beauty")
    with pytest.raises(ValueError, match=r"figures: expected some of plausibility, .*, got none"):
        read_measures([])


def test_the_page_lists_every_figure() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    # Others may have been registered, by the page's own example for one.
    ours = [one for one in MEASURES.values() if one.function.__module__.startswith("tam_fast.evaluation.")]
    assert {figure.name for one in ours for figure in one.figures} | {"f1_iou"} == shown
    for one in ours:
        assert f"`{one.name}`" in text


def test_localisation_of_a_map_on_and_beside_its_object() -> None:
    at = case(Item("a", categories={"dog": 7}, mask=MASK), [word("a", -2, 0), word("dog", 7, 1)])
    right = found("localisation", at, maps(np.zeros((2, 4)), DOG))
    assert right["pointing"] == [1.0]
    assert right["auroc"] == [1.0]
    assert 0.5 < right["soft_iou"][0] < 1.0  # bilinear edges
    beside = found("localisation", at, maps(DOG, SHIFTED))
    assert beside["pointing_15"] == [1.0]
    assert beside["auroc"][0] == pytest.approx((1 * 6 - 1 * 1 + 0.5 * 6) / 12, abs=0.2)
    assert beside["soft_iou"][0] < right["soft_iou"][0]
    assert beside["energy"][0] < right["energy"][0]


def test_the_map_of_a_word_is_of_all_its_tokens() -> None:
    at = case(Item("a", categories={"dog": 7}, mask=MASK), [word("dog", 7, 0, 1)])
    half = [[0, 1, 0, 0], [0, 0, 0, 0]], [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert found("localisation", at, maps(*half)) == found("localisation", at, maps(DOG, DOG))


def test_values_name_their_words() -> None:
    at = case(Item("a", mask=MASK), [word("dog", 7, 0), word("sees", -3, 1), word("cat", 9, 2), word("bird", 8, 3)])
    values = MEASURES["localisation"].values(at, maps(DOG, DOG, SHIFTED, DOG))
    assert {(value.word, value.text) for value in values} == {(0, "dog"), (2, "cat")}


@pytest.mark.parametrize(
    ("words", "reason"),
    [([word("a", -2, 0)], "no word of a category"), ([word("bird", 8, 0)], "no word whose category the mask has")],
)
def test_nothing_to_measure_is_told(words: list[Any], reason: str) -> None:
    with pytest.raises(NothingToMeasure, match=reason):
        MEASURES["localisation"].values(case(Item("a", mask=MASK), words), maps(DOG))


def test_no_mask_and_a_mask_that_is_missing_are_two_things(tmp_path: Any) -> None:
    words = [word("dog", 7, 0)]
    with pytest.raises(NothingToMeasure, match="no mask"):
        MEASURES["localisation"].values(case(Item("a"), words), maps(DOG))
    with pytest.raises((ValueError, OSError), match="mask"):
        MEASURES["localisation"].values(case(Item("a", mask=tmp_path / "none.png"), words), maps(DOG))
    with pytest.raises(ValueError, match=r"mask|labels"):
        MEASURES["localisation"].values(case(Item("a", mask=np.zeros((4, 8))), words), maps(DOG))


def test_boxes_stand_for_masks() -> None:
    boxes = {7: ((2.0, 0.0, 6.0, 2.0),), 9: ((0.0, 0.0, 8.0, 4.0),)}
    at = case(Item("a", boxes=boxes), [word("dog", 7, 0)])
    assert np.array_equal(at.mask, np.where(MASK == 7, 7, 9))  # the smaller box lies upon the larger
    assert found("localisation", at, maps(DOG))["pointing"] == [1.0]
    with pytest.raises(ValueError, match="boxes: expected labels other than the background's, got 0"):
        _ = case(Item("a", boxes={0: ((0.0, 0.0, 1.0, 1.0),)}), []).mask


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.25, 0.0, 0.75, 1.0), MASK[:, 2:6]),
        ((0.0, 0.5, 1.0, 1.0), MASK[2:]),
        ((-0.25, 0.0, 1.0, 1.5), np.pad(MASK, ((0, 2), (2, 0)))),
        ((1.5, 0.0, 2.0, 1.0), np.zeros((4, 4), dtype=int)),
    ],
)
def test_masks_are_cut_to_what_the_model_saw(box: tuple[float, ...], expected: Any) -> None:
    assert np.array_equal(case(Item("a", mask=MASK), [], box).mask, expected)


def test_official_masks_are_not_cut() -> None:
    at = case(Item("a", mask=MASK), [], (0.25, 0.0, 0.75, 1.0))
    at.options = Options(compat="official")
    assert np.array_equal(at.mask, MASK)


def test_gaze() -> None:
    gaze = np.zeros((4, 8))
    gaze[0:2, 2:6] = 1
    at = case(Item("a", extra={"gaze": gaze}), [])
    right, wrong = (found("gaze", at, maps(one)) for one in (DOG, [[0, 0, 0, 0], [0, 0, 1, 1]]))
    assert right["nss"][0] > 0.5 > wrong["nss"][0]
    assert right["kl"][0] < wrong["kl"][0]
    with pytest.raises(NothingToMeasure, match="no gaze map"):
        found("gaze", case(Item("a"), []), maps(DOG))


# One's own


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    len(MEASURES)
    monkeypatch.setattr(room, "_measures", dict(room._measures))
    return


@pytest.mark.usefixtures("registered")
def test_a_measure_of_ones_own() -> None:
    @measure("brightest", [Figure("brightest", "brightest")], cost="none")
    def brightest(case: Case, maps: Any) -> Iterator[Value]:
        for place, one in case.objects():
            yield case.value("brightest", float(case.word_map(maps, one).max()), place)

    assert list(MEASURES)[-1] == "brightest"
    assert found("brightest", case(Item("a", mask=MASK), [word("dog", 7, 0)]), maps(DOG)) == {"brightest": [1.0]}
    assert [one.name for one in read_measures("brightest")] == ["brightest"]
    for name, figure, message in (
        ("brightest", "other", "name: expected one that is free"),
        ("other", "brightest", "figures: expected names that are free, got 'brightest'"),
        ("other", "f1_iou", "figures: expected names that are free, got 'f1_iou'"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(name, [Figure(figure, figure)], cost="none")(brightest)


def test_a_figure_that_is_not_listed_is_an_error() -> None:
    odd = Measure("odd", (Figure("a", "a"),), "none", True, False, lambda case: [Value("b", 1.0)])
    with pytest.raises(ValueError, match="figure: expected one of a of odd, got b"):
        odd.values(case(Item("a"), []))
    empty = Measure("empty", (Figure("a", "a"),), "none", True, False, lambda case: [])
    with pytest.raises(NothingToMeasure, match="no value"):
        empty.values(case(Item("a"), []))
