"""Obj-IoU, Func-IoU, precision and recall: against a slow twin, by hand, and as properties."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tam_fast.evaluation import Scores, Word, plausibility, score
from tam_fast.evaluation.plausibility import Targets, chosen_above, overlaps, resized_levels
from tam_fast.maps.metrics import iou, otsu_threshold

cv2 = pytest.importorskip("cv2")

CAT, DOG = 17, 18
CAT_AND_DOG = [Word("A", (0,), -2), Word("cat", (1,), CAT), Word("and", (2,), -2), Word("dog", (3,), DOG)]
FIGURES = ("obj_iou", "precision", "recall", "func_iou")


def corners() -> np.ndarray:
    """A mask (6, 8): the cat at the upper left, the dog at the lower right."""
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[:3, :4], mask[3:, 4:] = CAT, DOG
    return mask


def bright(where: np.ndarray, high: int = 200, low: int = 0) -> np.ndarray:
    return np.where(where, high, low).astype(np.uint8)


def slow_score(maps: np.ndarray, words: list[Word], mask: np.ndarray) -> dict[str, list[float]]:
    """Pixel by pixel, from the definitions."""
    height, width = mask.shape
    found: dict[str, list[float]] = {figure: [] for figure in FIGURES}
    thresholds, others = [], []
    for word in words:
        if word.label < -1:
            continue
        best, levels_of_word = (-1.0, 0.0, 0.0), []
        for token in word.tokens:
            grown = cv2.resize(maps[token], (width, height), interpolation=cv2.INTER_LINEAR)
            threshold = int(cv2.threshold(grown, 0, 255, cv2.THRESH_OTSU)[0])
            constant = len({int(value) for value in grown.flat}) == 1
            both = chosen = there = 0
            for value, label in zip(grown.flat, mask.flat, strict=True):
                is_chosen = int(value) > threshold and not constant
                both += is_chosen and label == word.label
                chosen += is_chosen
                there += label == word.label
            if not constant:
                levels_of_word.append(threshold)
            if there and both / (chosen + there - both) > best[0]:
                best = (both / (chosen + there - both), both / chosen if chosen else 0.0, both / there)
        if best[0] >= 0:
            for figure, value in zip(FIGURES, best, strict=False):
                found[figure].append(value)
        (thresholds if best[0] >= 0 else others).extend([max(levels_of_word)] if levels_of_word else [])
    used = thresholds if found["obj_iou"] else others
    mean = sum(used) / len(used) if used else 0.0
    for word in words:
        if word.label == -2 and any(other.label >= -1 for other in words):
            shares = []
            for token in word.tokens:
                cells = [int(value) for value in maps[token].flat]
                shares.append(sum(value < mean or value == 0 == mean for value in cells) / len(cells))
            found["func_iou"].append(sum(shares) / len(shares))
    return found


def of_figures(found: Scores) -> dict[str, list[float]]:
    return {figure: getattr(found, figure) for figure in FIGURES}


@pytest.mark.parametrize("seed", range(12))
def test_score_is_what_the_definitions_give(seed: int):
    rng = np.random.default_rng(seed)
    maps = (rng.random((9, 5, 7)) ** rng.integers(1, 6) * 255).astype(np.uint8)
    maps[rng.integers(9)] = rng.integers(256)
    mask = np.kron(rng.integers(0, 5, size=(4, 3)), np.ones((8, 9), dtype=np.int32))
    labels = rng.integers(-3, 6, size=6)
    words = [
        Word("w", tuple(rng.choice(9, size=rng.integers(1, 4), replace=False).tolist()), int(one)) for one in labels
    ]
    found, expected = of_figures(score(maps, words, mask)), slow_score(maps, words, mask)
    for figure in FIGURES:
        assert found[figure] == pytest.approx(expected[figure], abs=1e-12), figure


def test_by_hand():
    mask = corners()
    cat = bright(mask == CAT)
    dog = bright(mask == DOG)
    dog[3:, 2:4] = 200  # half as much again beside it
    the = np.zeros((6, 8), dtype=np.uint8)
    the[0, :4] = 100
    found = score(np.stack([the, cat, the // 2, dog]), CAT_AND_DOG, mask)
    assert found.obj_iou == pytest.approx([1.0, 12 / 18])
    assert found.precision == pytest.approx([1.0, 12 / 18])
    assert found.recall == [1.0, 1.0]
    # Otsu of two levels, 0 and 200, is 0: what is not 0 is bright.
    assert (found.otsu, found.threshold) == ([0, 0], 0.0)
    assert found.func_iou == pytest.approx([44 / 48, 44 / 48])
    assert [(row["figure"], row["word"], row["token"], row["text"]) for row in found.words][::3] == [
        *(("obj_iou", 1, 1, "cat"), ("obj_iou", 3, 3, "dog"), ("func_iou", 0, 0, "A"))
    ]
    for figure in FIGURES:
        assert [row["value"] for row in found.words if row["figure"] == figure] == getattr(found, figure)


def test_functional_words_are_measured_by_the_nouns_threshold():
    mask = corners()
    cat = bright(mask == CAT, high=200, low=60)
    found = score(np.stack([bright(mask == DOG, 61, 59), cat]), [Word("a", (0,), -2), Word("cat", (1,), CAT)], mask)
    assert found.threshold == 60.0
    assert found.func_iou == [36 / 48]
    several = score(np.stack([bright(mask == DOG, 61, 59), cat]), [Word("a", (0, 1), -2), Word("cat", (1,), CAT)], mask)
    assert several.func_iou == [(36 / 48 + 0) / 2]
    assert several.words[-1]["token"] == -1


def test_the_best_token_of_a_word_counts():
    mask = corners()
    maps = np.stack([bright(mask == DOG), bright(mask == CAT), bright(mask >= 0)])
    found = score(maps, [Word("hot dog", (0, 1, 2), CAT)], mask)
    assert (found.obj_iou, found.words[0]["token"]) == ([1.0], 1)


def test_two_objects_side_by_side_are_two():
    mask = corners()
    maps = np.stack([bright(mask == CAT), bright(mask == DOG)])
    assert score(maps, [Word("cat", (0,), CAT), Word("cat", (1,), CAT)], mask).obj_iou == [1.0, 0.0]


def test_constant_maps_choose_nothing():
    mask = corners()
    for level in (0, 7, 255):
        maps = np.full((4, 3, 4), level, dtype=np.uint8)
        found = score(maps, CAT_AND_DOG, mask)
        assert found.obj_iou == found.precision == found.recall == [0.0, 0.0]
        assert found.func_iou == ([1.0, 1.0] if level == 0 else [0.0, 0.0])  # only cells of 0 are dark
        # Beside a map that says something, it has no say in the threshold.
        maps[3, 1:, 2:] = level ^ 0x80
        assert score(maps, CAT_AND_DOG, mask).threshold == score(maps[3:], [Word("dog", (0,), DOG)], mask).otsu[0]


def test_the_threshold_is_of_nouns_that_the_mask_has():
    mask = corners()
    maps = np.stack([bright(mask == CAT, 9, 5), bright(mask == CAT, 200, 100), bright(mask == CAT, 80, 40)])
    function, noun, absent = Word("the", (0,), -2), Word("thing", (1,), -1), Word("zebra", (1,), 24)
    assert score(maps, [function, noun, Word("cat", (2,), CAT)], mask).threshold == 40.0
    assert score(maps, [function, absent, Word("cat", (2,), CAT)], mask).threshold == 40.0
    # Only where there is none, of the others.
    only = score(maps, [function, noun, absent], mask)
    assert (only.threshold, only.func_iou, only.obj_iou) == (100.0, [1.0], [])
    alone = score(maps, [function, Word("is", (1,), -3)], mask)
    assert math.isnan(alone.threshold)
    assert (alone.func_iou, alone.words) == ([], [])


def test_without_a_mask_only_dark_cells_are_counted():
    maps = np.stack([bright(corners() == DOG, 50), bright(corners() == CAT, 200, 60)])
    found = score(maps, [Word("the", (0,), -2), Word("cat", (1,), CAT)], None)
    assert (found.obj_iou, found.threshold, found.func_iou) == ([], 60.0, [1.0])


def test_levels_are_floats_times_255_rounded_down():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = rng.random((4, 5, 6))
    expected = score(np.floor(values * 255).astype(np.uint8), CAT_AND_DOG, corners())
    for maps in (values, torch.tensor(values, requires_grad=True)):
        assert score(maps, CAT_AND_DOG, corners()) == expected
    assert score(values.tolist(), CAT_AND_DOG, corners().tolist()) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_masks_of_any_whole_numbers(dtype: type):
    mask = corners().astype(dtype)
    maps = np.stack([bright(mask == CAT)] * 4)
    assert score(maps, CAT_AND_DOG, mask) == score(maps, CAT_AND_DOG, corners())
    far = [Word("cat", (0,), 70_000)]
    assert score(maps, far, mask).obj_iou == []
    assert score(maps, far, np.where(mask == CAT, 70_000, 0)).obj_iou == [1.0]
    assert score(maps, [Word("cat", (0,), 1)], mask == CAT).obj_iou == [1.0]


def test_a_mask_smaller_than_the_map_sees_means():
    levels = np.zeros((8, 8), dtype=np.uint8)
    levels[::4, ::4] = 160
    assert resized_levels(levels, (2, 2)).tolist() == [[10, 10], [10, 10]]
    assert resized_levels(levels, (2, 2), linear=True).tolist() == [[0, 0], [0, 0]]
    assert resized_levels(levels, (8, 8)) is levels


def between(levels: np.ndarray, level: int) -> Fraction:
    """Otsu's variance between the values up to a level and those above it, exactly."""
    low, high = ([int(v) for v in levels.ravel() if (v <= level) == below] for below in (True, False))
    if not low or not high:
        return Fraction(0)
    return len(low) * len(high) * (Fraction(sum(low), len(low)) - Fraction(sum(high), len(high))) ** 2


@given(st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_thresholds_and_counts_are_those_of_maps_metrics(values: list[int]):
    levels = np.array([values], dtype=np.uint8)
    rng = np.random.default_rng(len(values))
    labels = rng.integers(0, 2, size=levels.shape)
    target = Targets(labels).of(1)
    found = overlaps(levels, target)
    assert found.threshold == otsu_threshold(levels)
    theirs = int(cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)[0])
    # Among levels that are exactly as good as each other OpenCV takes any; ours is the lowest.
    same = theirs > found.threshold and between(levels, theirs) == between(levels, found.threshold)
    assert theirs == found.threshold or same or not found.varies
    if found.varies and target is not None:
        assert found.iou == pytest.approx(iou(levels > found.threshold, labels == 1), abs=1e-15)
    assert (chosen_above(levels, levels.shape).sum() > 0) == found.varies


def test_pictures_too_large_for_opencv_s_counts(monkeypatch: pytest.MonkeyPatch):
    """It counts in float32, which stands still at 2^24."""
    rng = np.random.default_rng(0)
    levels, labels = rng.integers(0, 256, size=(40, 50)).astype(np.uint8), rng.integers(0, 2, size=(40, 50))
    expected = overlaps(levels, Targets(labels).of(1))
    monkeypatch.setattr(plausibility, "_EXACT", 100)
    assert overlaps(levels, Targets(labels).of(1)) == expected


# Properties ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_bounds_and_harmony(seed: int):
    rng = np.random.default_rng(seed)
    maps = (rng.random((4, 4, 5)) ** 3 * rng.integers(0, 256, size=(4, 1, 1))).astype(np.uint8)
    found = score(maps, CAT_AND_DOG, corners())
    for figure in FIGURES:
        assert len(getattr(found, figure)) == 2
        assert all(0.0 <= value <= 1.0 for value in getattr(found, figure))
    for one, precision, recall in zip(found.obj_iou, found.precision, found.recall, strict=True):
        assert one <= min(precision, recall) + 1e-15
        if one:
            assert 1 / one == pytest.approx(1 / precision + 1 / recall - 1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 255), st.integers(0, 254))
def test_a_perfect_map_is_1_and_an_inverted_one_0(seed: int, high: int, low: int):
    low = min(low, high - 1)
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.integers(0, 2, size=(3, 4)), np.ones((5, 6), dtype=np.int64))
    word = [Word("cat", (0,), 1)]
    if 0 < mask.sum() < mask.size:
        assert score(bright(mask == 1, high, low)[None], word, mask).obj_iou == [1.0]
        inverted = score(bright(mask == 0, high, low)[None], word, mask)
        assert (inverted.obj_iou, inverted.precision, inverted.recall) == ([0.0], [0.0], [0.0])


@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.integers(1, 5))
def test_scaling_and_shifting_levels_changes_nothing(seed: int, shift: int, factor: int):
    """Otsu's choice is the same under affine maps of levels, as the variances between classes scale together."""
    mask = corners()
    levels = np.random.default_rng(seed).integers(0, 50, size=(1, 6, 8)).astype(np.uint8)
    word = [Word("cat", (0,), CAT)]
    before, after = score(levels, word, mask), score(levels * factor + shift, word, mask)
    # Where two thresholds are equally good, rounding decides.
    assert after.obj_iou == before.obj_iou or abs(after.otsu[0] - (before.otsu[0] * factor + shift)) % factor == 0


# What is wrong -------------------------------------------------------------------------------------------------------

MAPS = np.zeros((4, 3, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("maps", "words", "mask", "options", "error", "message"),
    [
        (MAPS[0], [], corners(), {}, ValueError, r"maps: expected \(T, h, w\), got shape"),
        (
            MAPS.astype(int),
            [],
            corners(),
            {},
            TypeError,
            "maps: expected uint8, or floating point from 0 to 1, got int64",
        ),
        (MAPS + 1.5, [], corners(), {}, ValueError, "maps: expected values from 0 to 1, got 1.5"),
        (MAPS + math.nan, [], corners(), {}, ValueError, "maps: expected values from 0 to 1, got nan"),
        (MAPS, [], corners()[0], {}, ValueError, r"mask: expected \(H, W\)"),
        (MAPS, [], corners() / 2, {}, TypeError, "mask: expected whole numbers, got float64"),
        (
            MAPS,
            [Word("cat", (4,), 1)],
            corners(),
            {},
            ValueError,
            r"words: expected tokens of the 4 maps, got \(4,\) for 'cat'",
        ),
        (MAPS, [Word("cat", (-1,), 1)], corners(), {}, ValueError, "words: expected tokens of at least 0"),
        (MAPS, [Word("cat", (), 1)], corners(), {}, ValueError, "words: expected words with tokens, got 'cat'"),
        (MAPS, [], corners(), {"compat": "paper"}, ValueError, "compat: expected None or"),
        (MAPS, [], corners(), {"references": ["a"]}, ValueError, "text: expected the answer"),
    ],
)
def test_what_is_wrong_is_named(maps, words, mask, options, error: type[Exception], message: str):
    with pytest.raises(error, match=f"^{message}"):
        score(maps, words, mask, **options)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match=r"^evaluation: expected OpenCV, .*tam-fast\[evaluation\]"):
        score(MAPS, CAT_AND_DOG, corners())
