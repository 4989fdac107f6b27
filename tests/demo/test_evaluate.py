"""Figures of the embedded model: how captions are judged, and what is reported."""

from __future__ import annotations

import json

import pytest

from tam_fast.demo import evaluate as ev
from tam_fast.demo import scenes as sc


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


def test_evaluation_reports_every_figure(tmp_path, capsys):
    ev.main(["--scenes", "8", "--json", str(tmp_path / "report.json")])
    assert "Ceiling" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    names = {"precision", "coverage", "exact", "ceiling"}
    kinds = ("peak, shape", "peak, object", "Obj-IoU", "Func-IoU", "F1-IoU")
    names |= {f"{method}: {kind}" for method in ev.METHODS for kind in kinds}
    assert set(report["figures"]) == names
    for figure in report["figures"].values():
        assert 0.0 <= figure["low"] <= figure["high"] <= 1.0
        assert 0.0 <= figure["value"] <= 1.0
    assert len(report["captions"]) == report["settings"]["scenes"] == 8
    with pytest.raises(SystemExit):
        ev.main(["--scenes", "0"])
