"""Training: the lean forward pass, patches, and a whole run of a few steps."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tam_fast.demo import evaluate as ev
from tam_fast.demo import load_demo
from tam_fast.demo import scenes as sc
from tam_fast.demo import train as tr
from tam_fast.demo.train import command


def test_lean_forward_equals_the_stock_model(demo):
    trainer = tr.Trainer(tr.Plan(), log=lambda line: None)
    trainer.model.load_state_dict(demo[0].state_dict())
    assert trainer.check_parity() < 1e-3


def test_processor_makes_the_patches_of_the_training(demo):
    picture = sc.render(sc.make_scene(4))
    inputs = demo[1](images=[Image.fromarray(picture)], text=["<|image_pad|>"], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 20, 20]]
    torch.testing.assert_close(inputs["pixel_values"], tr.patchify(picture[None])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_smoke_training_lowers_the_loss_and_writes_a_model(tmp_path):
    lines = []
    history = tr.train(tmp_path / "model", tr.SMOKE, lines.append, tmp_path / "checkpoints")
    language = [loss for stage, loss in history if stage == "language"]
    assert all(np.isfinite(loss) for _, loss in history)
    assert language[-1] < language[0]
    assert {stage for stage, _ in history} == set(tr.STAGES)
    model, processor = load_demo(tmp_path / "model")
    hidden, ids, _ = ev._answer(model, processor, sc.render(sc.make_scene(0)), sc.DESCRIBE)
    assert hidden.shape == (len(ids) - 1, 64)
    # A second run finds every stage done.
    assert tr.train(tmp_path / "again", tr.SMOKE, lines.append, tmp_path / "checkpoints") == []
    first, second = (tmp_path / name / "model.safetensors" for name in ("model", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_the_package_is_the_command(tmp_path, monkeypatch, threads):
    asked = []
    monkeypatch.setattr(command, "train", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(sys, "argv", ["train", "--smoke", "--output", str(tmp_path), "--threads", "1"])
    runpy.run_module("tam_fast.demo.train", run_name="__main__")
    (output, plan, _, checkpoints), *others = asked
    assert (output, plan, checkpoints, others) == (tmp_path, tr.SMOKE, None, [])
    assert torch.get_num_threads() == 1
