"""Figures on how visual words are: the area under a curve by hand, its interval, and what is reported."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tam_fast.demo import evaluate as ev
from tam_fast.demo import grounding as gr
from tam_fast.demo.build_samples import SAMPLE_SEEDS
from tam_fast.demo.train.plan import Plan


def test_auroc_counts_pairs_and_half_of_the_ties():
    more, less = [[3.0, 1.0], [], [2.0]], [[2.0], [0.0], []]
    # Of the pairs with 2: 3 wins, 1 loses, 2 ties; with 0 all win.
    value, low, high = gr.auroc(more, less, np.array([[0, 1, 2], [0, 0, 0], [1, 2, 2], [1, 1, 1]]))
    assert value == pytest.approx((1 + 0 + 0.5 + 3) / 6)
    # Drawn were 4.5 / 6, scene 0 alone 1 / 2, scenes 1 and 2 4 / 4, and one without words of the first kind, left out.
    assert (low, high) == pytest.approx(tuple(np.percentile([0.75, 0.5, 1.0], [2.5, 97.5])))
    assert gr.auroc(less, more, np.array([[0, 1, 2]]))[0] == pytest.approx(1 - value)


def test_auroc_of_many_scenes_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    more, less = ([rng.integers(0, 9, rng.integers(0, 4)).tolist() for _ in range(30)] for _ in range(2))
    first, second = np.concatenate(more)[:, None], np.concatenate(less)[None]
    value, low, high = gr.auroc(more, less, rng.integers(0, 30, (200, 30)))
    assert value == pytest.approx(((first > second) + 0.5 * (first == second)).mean())
    assert low < value < high


def test_auroc_needs_both_kinds():
    with pytest.raises(ValueError, match=r"^scenes: expected words of both kinds"):
        gr.auroc([[], []], [[1.0], []], np.array([[0, 1]]))


def test_scenes_are_fresh():
    used = {Plan().seed, 987_654, ev.DEFAULT_SEED, 555, 1_414, *(seed for seed, _ in SAMPLE_SEEDS)}
    assert gr.DEFAULT_SEED not in used


@pytest.mark.long
def test_the_command_reports_every_figure(tmp_path, capsys):
    gr.main(["--scenes", "4", "--json", str(tmp_path / "report.json")])
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    names = {f"{task}: {measure}" for task in gr.TASKS for measure in gr.MEASURES}
    assert set(report["figures"]) == names | {f"visual: {kind}" for kind in gr.KINDS}
    for name, figure in report["figures"].items():
        assert 0.0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1.0, name
    counts = {kind: report["settings"][kind] for kind in gr.KINDS}
    assert all(counts[kind] == 4 for kind in gr.KINDS if kind.startswith(("true", "false")))
    assert counts["object"] >= 4
    assert counts["function"] >= 8
    assert str(counts["function"]) in shown
    # What the score is for: far from chance on any scenes.
    assert report["figures"]["objects: score"]["value"] > 0.95
    assert report["figures"]["both: score"]["value"] > 0.8
    with pytest.raises(SystemExit):
        gr.main(["--scenes", "0"])
