"""Correction of wrong answers: EAGLE's recorded figures, by hand, and the embedded model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from asked_scenes import explainer, small_scene
from methods import golden
from PIL import Image

from tam_fast.evaluation.hallucination import correction_area, correction_record, hallucination, says


@pytest.fixture(scope="module")
def said():
    return json.loads((golden.folder() / "eagle_metrics.json").read_text())


def made(label, *texts):
    count = len(texts)
    areas = [(step + 1) / count for step in range(count)]
    scores = np.linspace(0, 1, count).tolist()
    return {
        "region_area": areas,
        "insertion_score": scores,
        "deletion_score": scores[::-1],
        "label": label,
        "revised_answering": list(texts),
    }


def test_figures_are_eagles(said):
    lines = dict(line.split(": ") for line in said["hallucination_printed"])
    found = hallucination(said["hallucination"], compat="official")
    assert lines["Insertion AUC Score"] == f"{found.insertion_auc:.4f}"
    assert lines["Deletion AUC Score"] == f"{found.deletion_auc:.4f}"
    assert lines["Average highest confidence"] == f"{found.highest:.4f}"
    assert lines["Average Minimal Correction Region (AMCR)"] == f"{found.amcr:.4f}"
    assert lines["Correction Success Rate under Budget (CSR@10%)"] == f"{found.csr:.2%}"
    ours = hallucination(said["hallucination"])
    assert ours.amcr == pytest.approx(found.amcr)
    assert ours.csr == pytest.approx(found.csr * found.corrected / found.count)
    assert found.corrected < found.count


def test_the_least_that_has_to_be_taken_away():
    assert correction_area(made("no", "No.", "Yes.", "No.", "Yes.")) == pytest.approx(0.25)
    assert correction_area(made("no", "No.", "Yes.", "No.", "No.")) == 0
    assert correction_area(made("yes", "No.", "No.")) is None
    turned = made("no", "No.", "Yes.", "No.", "Yes.")
    for name in ("region_area", "revised_answering"):
        turned[name].reverse()
    assert correction_area(turned) == pytest.approx(0.25)


def test_rates_by_hand_divide_by_all_and_officially_by_the_corrected():
    records = [made("no", *["No."] * 10), made("no", *["No."] * 5, *["Yes."] * 5), made("no", *["Yes."] * 10)]
    found, official = hallucination(records), hallucination(records, compat="official")
    assert found.amcr == official.amcr == pytest.approx((0 + 0.5 + 1) / 3)
    assert found.csr == pytest.approx(1 / 3)
    assert official.csr == pytest.approx(1 / 2)
    assert (found.corrected, found.count) == (2, 3)
    assert hallucination(records, budget=0.5).csr == pytest.approx(2 / 3)
    never = [made("no", "Yes.", "Yes.")]
    assert hallucination(never).csr == 0
    assert np.isnan(hallucination(never, compat="official").csr)
    tenth = made("no", *["No."] * 9, "Yes.")
    assert hallucination([tenth]).csr == 1


@pytest.mark.parametrize(
    ("text", "ours", "official"),
    [
        ("Yes.", "yes", "yes"),
        (" no, there is not", "no", "no"),
        ("Not at all.", "no", "no"),
        ("Not sure.", None, "no"),
        ("Nothing like it, yes", None, "no"),
        ("**Yes**", "yes", None),
        ("Yesterday", None, "yes"),
        ("I cannot tell.", None, None),
        ("", None, None),
    ],
)
def test_what_an_answer_says(text, ours, official):
    assert says(text) == ours
    assert says(text, "official") == official


@pytest.mark.long
def test_the_embedded_model_is_asked_with_less_and_less_of_the_image():
    picture = small_scene()
    question = "What is the shape of the green object?"
    map = np.zeros((4, 4))
    map[:2] = 1  # the upper half is blamed: it goes first
    found = correction_record(explainer(), picture, question, "no", map, steps=2, words={"no": "The"}, max_new_tokens=2)
    assert found["region_area"] == pytest.approx([0.5, 1.0])
    assert found["label"] == "no"
    lower = np.asarray(picture).copy()
    lower[:28] = 0
    texts = [explainer().explain(one, question, max_new_tokens=2).text for one in (Image.fromarray(lower), picture)]
    assert found["revised_answering"] == texts
    told = [
        next(c for c in explainer().explain(one, question, answer="The").candidates[0] if c.token == "The").probability
        for one in (Image.fromarray(lower), picture)
    ]
    assert found["insertion_score"] == pytest.approx(told, abs=1e-5)
    hallucination([found])


@pytest.mark.long
@pytest.mark.parametrize("steps", [1, None])
def test_regions_are_taken_away_whole(steps):
    map = np.zeros((4, 4))
    map[:2] = 1
    regions = np.repeat(np.arange(2), 28)[:, None] + np.zeros((1, 56), int)
    how = {"words": {"no": "The"}, "max_new_tokens": 2}
    asked = explainer(), small_scene(), "What is the shape of the green object?", "no", map
    by_pixels = correction_record(*asked, steps=steps or 2, **how)
    assert correction_record(*asked, regions=regions, steps=steps, **how) == by_pixels


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"^label: "):
        correction_record(explainer(), small_scene(), "Is it?", "maybe", [[1.0]])
    with pytest.raises(ValueError, match=r"^regions: "):
        correction_record(explainer(), small_scene(), "Is it?", "no", [[1.0]], regions=np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"^record: "):
        correction_area({"region_area": [1.0], "revised_answering": [], "label": "no"})
    with pytest.raises(ValueError, match=r"^records: "):
        hallucination([])
    with pytest.raises(ValueError, match=r"^compat: "):
        says("Yes", "paper")
