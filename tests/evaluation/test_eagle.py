"""EAGLE's protocol: its recorded pictures and figures, its faults under compat="official" and not by default."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from asked_scenes import small, small_scene
from methods import golden
from PIL import Image

from tam_fast.evaluation import eagle
from tam_fast.maps.answer import activation_maps
from tam_fast.maps.layout import Grid, Layout
from tam_fast.methods import refine


@pytest.fixture(scope="module")
def arrays():
    with np.load(golden.folder() / "eagle_metrics.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def said():
    return json.loads((golden.folder() / "eagle_metrics.json").read_text())


def printed(lines):
    return dict(line.split(": ") for line in lines)


@pytest.mark.parametrize("kind", ["float", "ties", "uint8"])
def test_pictures_are_eagles(arrays, kind):
    pytest.importorskip("cv2", reason='compat="official" resizes with OpenCV')
    map = arrays[f"map_{kind}"]
    insertion, deletion = eagle.perturbed(arrays["image"], map, 8, compat="official")
    if kind == "ties":
        # Floats that tie are sorted as the processor's instructions have it; what is shown is never below the rest.
        for step, picture in enumerate(insertion, 1):
            shown = picture.any(axis=2) | ~arrays["image"].any(axis=2)
            count = map.size * step // 8
            assert np.sort(map[shown])[::-1][:count].tolist() == np.sort(map.ravel())[::-1][:count].tolist()
        np.testing.assert_array_equal(insertion | deletion, np.broadcast_to(arrays["image"], insertion.shape))
        return
    np.testing.assert_array_equal(insertion, arrays[f"insertion_{kind}"])
    np.testing.assert_array_equal(deletion, arrays[f"deletion_{kind}"])


def test_pictures_of_distinct_values_are_eagles_by_default(arrays):
    insertion, deletion = eagle.perturbed(arrays["image"], arrays["map_float"], 8)
    np.testing.assert_array_equal(insertion, arrays["insertion_float"])
    np.testing.assert_array_equal(deletion, arrays["deletion_float"])


def test_ties_stand_by_place_by_default(arrays):
    map = arrays["map_ties"].ravel()
    order = eagle.pixel_order(arrays["map_ties"], arrays["map_ties"].shape)
    for one, two in pairwise(order):
        assert (map[one], -one) > (map[two], -two)


def test_cells_of_zero_come_first_officially_and_last_by_default(arrays):
    pytest.importorskip("cv2", reason='compat="official" resizes with OpenCV')
    map = arrays["map_uint8"]
    zeros = int((map == 0).sum())
    official, ours = (map.ravel()[eagle.pixel_order(map, map.shape, compat)] for compat in ("official", None))
    assert zeros > 0
    assert not official[:zeros].any()
    assert official[zeros] == map.max()
    assert ours[0] == map.max()
    assert not ours[-zeros:].any()
    first = eagle.perturbed(arrays["image"], map, 8)[0][0]
    assert (map[first.any(axis=2)] > 0).all()


def test_areas_and_figures_are_eagles(said):
    records = [one["record"] for one in said["faithfulness"]]
    for one in said["faithfulness"]:
        assert eagle.areas_under(one["record"]) == pytest.approx((one["insertion_auc"], one["deletion_auc"]), abs=1e-12)
    found = eagle.faithfulness(records)
    lines = printed(said["faithfulness_printed"])
    for name, value in {
        "Insertion AUC Score": found.insertion_auc,
        "Deletion AUC Score": found.deletion_auc,
        "Average highest confidence": found.highest,
        "Insertion Sensitiveity AUC Score": found.sensitive_insertion_auc,
        "Deletion Sensitiveity AUC Score": found.sensitive_deletion_auc,
        "Sensitiveity Average highest confidence": found.sensitive_highest,
    }.items():
        assert lines[name] == f"{value:.4f}"
    assert found.count == found.sensitive_count == len(records)


def test_areas_by_hand_and_images_without_sensitive_words():
    one = {
        "region_area": [0.5, 1.0],
        "insertion_word_score": [[0.4, 0.6], [0.5, 0.9]],
        "deletion_word_score": [[0.5, 0.5], [0.4, 0.2]],
        "insertion_score": [0.5, 0.7],
        "deletion_score": [0.5, 0.3],
    }
    assert eagle.areas_under(one) == pytest.approx((0.5 * 0.4 + 0.5 * 0.6, 0.5 * 0.6 + 0.5 * 0.4))
    blind = {**one, "insertion_word_score": [[0.5, 0.5]] * 2, "deletion_word_score": [[0.4, 0.4]] * 2}
    found = eagle.faithfulness([one, blind])
    assert found.sensitive_count == 1
    assert found.sensitive_insertion_auc == pytest.approx(0.5 * (0.2 + 0.6) / 2 + 0.5 * (0.6 + 0.9) / 2)
    assert np.isnan(eagle.faithfulness([blind]).sensitive_highest)
    with pytest.raises(ValueError, match=r"^records: "):
        eagle.faithfulness([])
    with pytest.raises(ValueError, match=r"^record: "):
        eagle.areas_under({**one, "region_area": [1.0]})


@pytest.mark.long
def test_a_record_of_the_embedded_model():
    given = small()
    map = given.layout.canvas(0).join(torch.rand(1, len(given.task().visual)))[0].numpy()
    found = eagle.record(given, map, tokens=[4, 5], steps=2)
    assert found["region_area"] == pytest.approx([1 / 2, 1])
    whole = given.log_probabilities().exp()[4:6].tolist()
    assert found["insertion_word_score"][-1] == pytest.approx(whole, abs=1e-6)
    black = given.with_images(Image.new("RGB", small_scene().size)).log_probabilities().exp()[4:6].tolist()
    assert found["deletion_word_score"][-1] == pytest.approx(black, abs=1e-6)
    assert found["insertion_score"] == pytest.approx(np.mean(found["insertion_word_score"], axis=1))
    pictures, _ = eagle.perturbed(np.asarray(small_scene()), map, 2)
    first = given.with_images(Image.fromarray(pictures[0])).log_probabilities().exp()[4:6].tolist()
    assert found["insertion_word_score"][0] == pytest.approx(first, abs=1e-6)
    eagle.faithfulness([found])
    with pytest.raises(ValueError, match=r"^tokens: "):
        eagle.record(given, map, tokens=[99])


def test_tam_of_one_token_at_a_time_is_without_causal_inference():
    generator = torch.Generator().manual_seed(3)
    hidden, rows = torch.randn(40, 16, generator=generator), torch.randn(9, 16, generator=generator)
    grid = Grid(range(30), 5, 6)
    ids = torch.randint(9, (41,), generator=generator)
    alone = activation_maps(hidden, rows, ids, Layout([grid], torch.empty(0, dtype=torch.int64), 40))
    raw = (hidden[:30] @ rows[ids[40]]).relu()[None]
    script = refine(raw, interference=None, filter="rank_gaussian", grids=[grid])
    torch.testing.assert_close(alone.maps, script / raw.max(), rtol=0, atol=1e-5)
    assert eagle.SCRIPT_TAM == "cam+rank_gaussian"
    together = activation_maps(hidden, rows, ids, Layout([grid], torch.arange(30, 39), 40))
    assert (together.maps / together.maps.max() - alone.maps / alone.maps.max()).abs().max() > 0.01


def test_eight_bits_and_arguments():
    assert eagle.script_levels([[0.0, 0.999, 1.0]]).tolist() == [[0, 254, 255]]
    with pytest.raises(ValueError, match=r"^map: "):
        eagle.script_levels([[1.5]])
    with pytest.raises(ValueError, match=r"^compat: "):
        eagle.pixel_order([[1.0]], (1, 1), "paper")
    with pytest.raises(TypeError, match=r"^image: "):
        eagle.perturbed(np.zeros((2, 2)), [[1.0]], 1)
