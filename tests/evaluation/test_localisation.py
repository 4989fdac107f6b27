"""Maps against masks: by hand, against slow twins, at their bounds, and EAGLE's recorded cases."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from methods import golden

from tam_fast.evaluation.localisation import (
    auroc,
    cell_shares,
    energy_in_mask,
    kl,
    nss,
    pointing_game,
    resized,
    soft_iou,
)

LEFT = np.array([[True, False], [True, False]])
MAPS = hnp.arrays(np.float64, (4, 5), elements=st.integers(0, 6).map(lambda value: value / 6))
MASKS = hnp.arrays(np.bool_, (4, 5)).filter(lambda mask: mask.any() and not mask.all())


# Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "size"), [((3, 5), (7, 11)), ((4, 4), (4, 9)), ((1, 6), (5, 6)), ((20, 15), (480, 640))]
)
def test_growing_is_bilinear_without_aligned_corners(shape, size):
    map = np.random.default_rng(0).random(shape)
    expected = torch.nn.functional.interpolate(torch.from_numpy(map)[None, None], size, mode="bilinear")[0, 0]
    np.testing.assert_allclose(resized(map, size), expected, atol=1e-12)


def test_shrinking_is_the_mean_of_what_is_covered():
    map = np.arange(24.0).reshape(4, 6)
    np.testing.assert_allclose(resized(map, (2, 3)), map.reshape(2, 2, 3, 2).mean(axis=(1, 3)))
    np.testing.assert_allclose(resized([[1.0, 2.0, 3.0]], (1, 2)), [[(1 + 0.5 * 2) / 1.5, (0.5 * 2 + 3) / 1.5]])
    assert resized(map, (4, 6)) is not map


def test_what_is_resized_stays_within_its_extremes_and_nan_stays_near():
    found = resized([[0.0, np.nan, 0.0, 5.0]], (1, 8))
    assert np.isnan(found).any()
    assert found[0, -1] == 5.0
    assert found[0, 0] == 0.0


def test_a_cell_is_covered_by_a_share():
    mask = np.zeros((4, 4), bool)
    mask[:, :1] = True
    np.testing.assert_allclose(cell_shares(mask, (2, 2)), [[0.5, 0], [0.5, 0]])
    np.testing.assert_allclose(cell_shares([[1, 0]], (1, 4)), [[1, 1, 0, 0]])
    np.testing.assert_allclose(cell_shares([[1, 0]], (1, 3)), [[1, 0.5, 0]])


# Pointing --------------------------------------------------------------------------------------------------------


def test_the_brightest_point_hits_or_misses():
    map = [[0.1, 0.2], [0.9, 0.3]]
    assert pointing_game(map, LEFT) is True
    assert pointing_game(map, ~LEFT) is False
    assert pointing_game(map, (0, 1, 1, 2)) is True
    assert pointing_game(map, [(0, 0, 1, 1), (1, 1, 2, 2)]) is False
    assert pointing_game(map, (0, 2, 2, 4), size=(4, 4)) is True
    assert pointing_game(map, (2, 0, 4, 4), size=(4, 4)) is False


def test_pixels_beside_the_object_hit_within_the_tolerance():
    map, mask = np.zeros((9, 9)), np.zeros((9, 9), bool)
    map[4, 4] = 1
    mask[1, 0] = True  # 5 away
    assert pointing_game(map, mask, 4.99) is False
    assert pointing_game(map, mask, 5) is True


def test_ties_count_by_their_share_and_a_constant_map_points_nowhere():
    assert pointing_game([[1.0, 1.0], [0.0, 1.0]], LEFT) == pytest.approx(1 / 3)
    for value in (0.0, 0.5):
        assert pointing_game(np.full((2, 2), value), LEFT) is False


def test_what_official_pointing_does_wrong():
    pytest.importorskip("cv2", reason='compat="official" resizes with OpenCV')
    tie, nothing = np.array([[1.0, 1.0], [0.0, 1.0]]), np.zeros((2, 2))
    assert pointing_game(tie, LEFT, compat="official") is True
    assert pointing_game(nothing, LEFT, compat="official") is True
    assert pointing_game(np.array([[np.nan, 0.0], [1.0, 0.0]]), LEFT, compat="official") is False
    with pytest.raises(ValueError, match="tolerance: "):
        pointing_game(tie, LEFT, 15, compat="official")


def test_pointing_is_eagles():
    pytest.importorskip("cv2", reason='compat="official" resizes with OpenCV')
    folder = golden.folder()
    cases = json.loads((folder / "eagle_metrics.json").read_text())["pointing"]
    with np.load(folder / "eagle_metrics.npz") as archive:
        arrays = dict(archive)
    differ = 0
    for case in cases:
        height, width = case["size"]
        map = arrays[f"pointing_map{case['case']:02}"]
        polygon = np.unpackbits(arrays[f"pointing_mask{case['case']:02}"])[: height * width].reshape(height, width)
        hits = (
            pointing_game(map, case["box"], size=(height, width), compat="official"),
            pointing_game(map, polygon, compat="official"),
        )
        assert hits == (bool(case["hit_box"]), bool(case["hit_mask"])), case
        if case["kind"] == "zero":
            differ += pointing_game(map, polygon) is False
        elif case["kind"] == "nan":
            with pytest.raises(ValueError, match="map: "):
                pointing_game(map, polygon)
    assert differ == sum(case["kind"] == "zero" for case in cases) > 0
    assert len(cases) == 18


# Figures by hand -------------------------------------------------------------------------------------------------


def test_figures_of_a_tiny_case():
    map = np.array([[0.8, 0.2], [0.4, 0.6]])
    assert energy_in_mask(map, LEFT) == pytest.approx(1.2 / 2.0)
    assert energy_in_mask(map - 0.5, LEFT) == pytest.approx(0.3 / 0.4)
    assert auroc(map, LEFT) == pytest.approx(3 / 4)
    assert soft_iou(map, LEFT) == pytest.approx(1.2 / 2.8)
    assert nss(map, LEFT) == pytest.approx((0.6 - 0.5) / map.std())
    assert nss(map, [[3, 0], [1, 0]]) == pytest.approx((0.75 * 0.8 + 0.25 * 0.4 - 0.5) / map.std())
    gaze = np.array([[0.5, 0.0], [0.5, 0.0]])
    assert kl(map, gaze) == pytest.approx(0.5 * np.log(0.5 / 0.4) + 0.5 * np.log(0.5 / 0.2))


@pytest.mark.parametrize(("shape", "size"), [((3, 4), (17, 10)), ((9, 8), (4, 8)), ((6, 5), (3, 11))])
def test_sums_of_a_resized_map_need_not_make_it(shape, size):
    generator = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.98):
        map, mask = generator.random(shape), generator.random(size) < share
        found = resized(map, size)
        assert energy_in_mask(map, mask) == pytest.approx(found[mask].sum() / found.sum())
        union = np.maximum(found, mask).sum()
        assert soft_iou(map, mask) == pytest.approx(np.minimum(found, mask).sum() / union)
        assert energy_in_mask(map - 0.5, mask) == pytest.approx(energy_in_mask(np.maximum(map - 0.5, 0), mask))


def test_figures_of_maps_that_say_nothing():
    nothing = np.zeros((2, 2))
    assert energy_in_mask(nothing, LEFT) == 0
    assert auroc(nothing, LEFT) == 0.5
    assert soft_iou(nothing, LEFT) == 0
    assert nss(nothing, LEFT) == 0
    assert kl(nothing, LEFT) == pytest.approx(np.log(2))
    assert np.isnan(auroc([[0.0, 1.0], [0.5, 0.2]], np.ones((2, 2), bool)))


@settings(max_examples=40)
@given(MAPS, MASKS)
def test_auroc_is_the_share_of_pairs_in_order(map, mask):
    inside, outside = map[mask], map[~mask]
    pairs = (inside[:, None] > outside).sum() + 0.5 * (inside[:, None] == outside).sum()
    assert auroc(map, mask) == pytest.approx(pairs / (inside.size * outside.size))


@settings(max_examples=40)
@given(MAPS, MASKS)
def test_auroc_of_cells_is_that_of_pixels_of_their_cells_value(map, mask):
    fine = np.kron(mask, np.ones((3, 2), bool)) ^ (np.add.outer(np.arange(12), np.arange(10)) % 7 == 0)
    if fine.all() or not fine.any():
        return
    assert auroc(map, fine) == pytest.approx(auroc(np.kron(map, np.ones((3, 2))), fine))


@settings(max_examples=40)
@given(MAPS, MASKS)
def test_bounds_and_what_scales_change(map, mask):
    found = {name: metric(map, mask) for name, metric in ALL.items()}
    for name in ("energy", "auroc", "soft_iou"):
        assert 0 <= found[name] <= 1
    assert 0 <= float(found["pointing"]) <= 1
    for name in ("energy", "auroc", "pointing", "nss", "kl"):
        assert ALL[name](map * 4, mask) == pytest.approx(found[name])
    for name in ("auroc", "pointing", "nss"):
        assert ALL[name](map * 2 + 1, mask) == pytest.approx(found[name])
    for name in ("auroc", "pointing"):
        assert ALL[name](map**3, mask) == pytest.approx(found[name])
    assert ALL["auroc"](-map, mask) == pytest.approx(1 - found["auroc"])


ALL = {"energy": energy_in_mask, "auroc": auroc, "soft_iou": soft_iou, "pointing": pointing_game, "nss": nss, "kl": kl}


@settings(max_examples=40)
@given(MASKS)
def test_the_mask_itself_is_perfect_and_its_inverse_the_worst(mask):
    for name in ("energy", "auroc", "soft_iou", "pointing"):
        assert ALL[name](mask.astype(float), mask) == 1
        assert ALL[name](~mask * 1.0, mask) == 0
    assert kl(mask * 1.0, mask) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: auroc([[np.nan, 1.0]], [[1, 0]]), "map"),
        (lambda: soft_iou([[2.0, 1.0]], [[1, 0]]), "map"),
        (lambda: auroc([1.0, 2.0], [[1, 0]]), "map"),
        (lambda: auroc([[1.0, 2.0]], [1, 0]), "mask"),
        (lambda: energy_in_mask([[1.0, 2.0, 3.0]], [[1, 0, 7]]), "mask"),
        (lambda: nss([[1.0, 2.0]], [[0, 0]]), "gaze"),
        (lambda: kl([[1.0, 2.0]], [[1, -1]]), "gaze"),
        (lambda: pointing_game([[1.0, 2.0]], [[0, 0]]), "target"),
        (lambda: pointing_game([[1.0, 2.0]], [[0, 1]], -1), "tolerance"),
        (lambda: pointing_game([[1.0, 2.0]], [[0, 1]], compat="paper"), "compat"),
        (lambda: pointing_game([[1.0, 2.0]], np.array([[0, 1]]), size=(1, 2)), "size"),
        (lambda: resized([[1.0]], (0, 1)), "size"),
    ],
)
def test_errors_name_the_argument(call, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        call()
