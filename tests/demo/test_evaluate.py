"""Figures of the embedded model: how answers are judged, and what is reported."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tam_fast.demo import evaluate as ev
from tam_fast.demo import scenes as sc
from tam_fast.demo.kinds import KINDS, Case, judge


def _case(name, seed=0):
    for index in range(200):
        case = KINDS[name].draw(np.random.default_rng([seed, index]))
        if case is not None:
            return case
    raise AssertionError(f"no case of kind {name}")


def test_a_scenes_own_caption_is_exact():
    for seed in range(50):
        scene = sc.make_scene(seed)
        assert ev.judge_caption(scene, sc.caption(scene)) == (True, True, True)


def test_judge_caption_tells_precision_from_coverage():
    scene = next(s for s in map(sc.make_scene, range(100)) if len(s.groups) == 2 and len(s.objects) == 2)
    first, second = scene.groups
    one = f"The image shows a {first.colour} {first.shape}."
    assert ev.judge_caption(scene, one) == (True, False, False)
    twice = f"The image shows a {first.colour} {first.shape}, a {first.colour} {first.shape} and a {second.colour} "
    assert ev.judge_caption(scene, twice + f"{second.shape}.") == (True, True, False)
    wrong = next(shape for shape in sc.SHAPES if shape not in (first.shape, second.shape))
    assert ev.judge_caption(scene, f"The image shows a {first.colour} {wrong}.") == (False, False, False)
    assert ev.judge_caption(scene, "") == (False, False, False)


@pytest.mark.parametrize("name", list(KINDS))
def test_the_reference_is_right_and_another_answer_is_not(name):
    case = _case(name)
    figures = judge(name, case, case.turn.answer)
    assert set(figures.values()) == {1.0}
    wrong = judge(name, case, "It is nothing.")
    assert set(wrong) == set(figures)
    assert set(wrong.values()) == {0.0}


def test_a_right_yes_with_a_wrong_word_is_told_apart():
    case = next(c for c in (_case("presence", seed) for seed in range(20)) if c.turn.answer.startswith("Yes"))
    figures = judge("presence", case, "Yes, there is a moon.")
    assert figures == {"right": 0.0, "right yes or no": 1.0, "right where it is yes": 1.0}


def test_nouns_about_two_images_are_looked_for_in_the_image_that_is_meant():
    pair = next(
        p for p in map(sc.make_pair, range(50)) if {o.shape for o in p[0].objects} & {o.shape for o in p[1].objects}
    )
    shape = next(o.shape for o in pair[0].objects if o.shape in {o.shape for o in pair[1].objects})
    case = Case(sc.Turn("", "", ""), images=pair)
    halves = {}
    for said in ("The first image shows a", "The second image shows a", "Both images show a"):
        words = [*said.split(), "red", shape]
        cells = case.cover(words)(shape, "", len(words) - 1)
        assert cells.shape == (32, 16)
        halves[said.split()[-4].lower() if "images" not in said else "both"] = (cells[:16].any(), cells[16:].any())
    assert halves == {"first": (True, False), "second": (False, True), "both": (True, True)}


def test_cells_of_a_video_are_those_of_both_frames():
    film = next(f for f in (sc.make_film(seed, 6) for seed in range(50)) if f.event.what == "moves left")
    case = Case(sc.Turn("", "", ""), film=film.frames)
    shape = film.cast[0].shape
    cells = case.cover([shape])(shape, "", 0)
    assert cells.shape == (36, 12)
    masks = [sum(m for m, o in zip(sc.masks(f), f.objects, strict=True) if o.shape == shape) for f in film.frames[:2]]
    expected = sum(np.asarray(m, dtype=np.float64).reshape(12, 8, 12, 8).mean(axis=(1, 3)) for m in masks) / 2
    np.testing.assert_allclose(cells[:12], expected, atol=1e-6)


def test_evaluation_reports_every_figure(tmp_path, capsys):
    ev.main(["--scenes", "2", "--json", str(tmp_path / "report.json")])
    out = capsys.readouterr().out
    assert "Ceiling" in out
    assert "Not measured, video: what happens: not part of its training" in out
    assert "Not measured, position: where is: its words are not in the tokenizer" in out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(report["kinds"]) == {"captions", "flat", "colour", "shape", "count", "presence"}
    assert set(report["kinds"]) | set(report["unlearned"]) == set(KINDS)
    kinds = ("peak, shape", "peak, object", "Obj-IoU", "Func-IoU", "F1-IoU")
    maps = {"ceiling"} | {f"{method}: {kind}" for method in ev.METHODS for kind in kinds}
    for name, part in report["kinds"].items():
        own = {"precision", "coverage", "exact"} if name in ("captions", "flat") else {"right"}
        assert own | maps <= set(part["figures"])
        for figure in part["figures"].values():
            assert 0.0 <= figure["low"] <= figure["high"] <= 1.0
            assert 0.0 <= figure["value"] <= 1.0
        assert len(part["answers"]) == part["scenes"] == report["settings"]["scenes"] == 2
    with pytest.raises(SystemExit):
        ev.main(["--scenes", "0"])


def test_development_shows_raw_maps_of_another_seed(capsys):
    ev.main(["--scenes", "2", "--kinds", "captions", "--development"])
    out = capsys.readouterr().out
    assert f"seed {ev.DEVELOPMENT_SEED}" in out
    assert "CAM" in out
    assert "TAM" not in out
    with pytest.raises(SystemExit):
        ev.main(["--development", "--seed", "3"])


@pytest.mark.parametrize(
    "wrong", [{"kinds": ["captions", "poems"]}, {"methods": ["XAM"]}, {"methods": []}, {"scenes": 0}]
)
def test_unknown_kinds_and_methods_are_named(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: expected"):
        ev.evaluate(**wrong)
