"""Training: what reaches it, the lean forward pass, patches, checkpoints, and a whole run of a few steps."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tam_fast.demo import asking, load_demo
from tam_fast.demo import evaluate as ev
from tam_fast.demo import scenes as sc
from tam_fast.demo import train as tr
from tam_fast.demo.train import batches, command, samples, trainer

SHORT = dataclasses.replace(
    tr.SMOKE,
    language=(tr.Phase(2, 5, 3),),
    warmup=(tr.Phase(1, 5, 2), tr.Phase(1, 20, 2)),
    alignment=(tr.Phase(1, 5, 2),),
    polish=(tr.Phase(3, 5, 2),),
    settle=(tr.Phase(1, 5, 2),),
)


def _trainer(plan, folder):
    return tr.Trainer(plan, lambda line: None, folder)


def test_lean_forward_equals_the_stock_model_on_images_pairs_and_videos(demo):
    trainer = tr.Trainer(tr.Plan(), log=lambda line: None)
    trainer.model.load_state_dict(demo[0].state_dict())
    assert trainer.check_parity() < 1e-3


@pytest.mark.parametrize("extent", [(1.0, 1.0), (0.8, 1.2), (0.8, 0.8)])
def test_processor_makes_the_patches_of_the_training(tokenizer_folder, tmp_path, extent):
    trainer = _trainer(SHORT, tokenizer_folder)
    trainer.save(tmp_path)
    _, processor = load_demo(tmp_path)
    picture = sc.render(sc.make_varied(4, extent=extent))
    inputs = processor(images=[Image.fromarray(picture)], text=["<|image_pad|>"], return_tensors="pt")
    # Pictures between 16x16 and 20x20 cells keep their size.
    assert inputs["image_grid_thw"].tolist() == [[1, *(round(20 * side) for side in extent)]]
    torch.testing.assert_close(inputs["pixel_values"], tr.patchify(picture[None, None])[0], atol=1e-5, rtol=1e-5)


def test_frames_are_patched_as_the_training_does(tokenizer_folder):
    film = sc.make_film(2, 6)
    planes = samples.film_planes(film)
    drawn = [np.stack([sc.render(frame) for frame in plane])[None] for plane in planes]
    ours = torch.cat([tr.patchify(frames)[0] for frames in drawn])
    asked = asking.pixels_of_frames(film.frames, batches.IMAGE_MEAN, batches.IMAGE_STD)
    torch.testing.assert_close(asked, ours, atol=1e-5, rtol=1e-5)


# Nothing but pixels and words


@pytest.mark.parametrize("kind", ["image", "pair", "film"])
def test_a_batch_of_pictures_holds_pixels_and_words_alone(tokenizer_folder, monkeypatch, kind):
    def refuse(*arguments, **options):
        raise AssertionError("a mask was asked for")

    words, plan = tr.Words(tokenizer_folder), dataclasses.replace(SHORT, kinds={kind: 1.0})
    drawn = samples.draw(np.random.default_rng(0), plan, 3, pictures=True)
    for module in (sc, sc.shapes):
        monkeypatch.setattr(module, "masks", refuse)
        monkeypatch.setattr(module, "coverage", refuse)
    batch = batches.make_batch(np.random.default_rng(1), drawn, words, 5, pictures=True)
    assert (batch.slots, batch.own, batch.slot_weights) == (None, None, None)
    # All that is left: pixels, tokens with their weights, and which words the objects bear; no field per cell or pixel.
    present = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    tensors = {name: value for name, value in present.items() if value is not None and name != "shape"}
    assert set(tensors) == {"pictures", "tokens", "weights", "words"}
    assert tensors["tokens"].shape == tensors["weights"].shape
    assert tensors["words"].shape == (3, 25)
    assert tensors["pictures"].shape == (3, batch.shape.slots, 2 * 3 * 8 * 8)
    with pytest.raises(AssertionError, match="a mask was asked for"):
        batches.make_batch(np.random.default_rng(1), drawn, words, 5, pictures=False)


def test_no_picture_is_told_where_anything_is():
    def said(pictures):
        rng = np.random.default_rng(2)
        drawn = [sample for _ in range(6) for sample in samples.draw(rng, tr.Plan(), 20, pictures=pictures)]
        return " ".join(text for sample in drawn for talk in sample.talks for turn in talk for text in turn)

    places = re.compile(r"\b(?:left|right|above|below|top|bottom|[Ww]here)\b")
    assert not places.search(said(True))
    assert len(places.findall(said(False))) > 50


def test_warmup_labels_do_not_change_when_objects_change_places(tokenizer_folder):
    words = tr.Words(tokenizer_folder)
    scene = sc.make_varied(11, most=3)
    moved = dataclasses.replace(scene, objects=tuple(dataclasses.replace(o, y=1.0 - o.y) for o in scene.objects))
    made = [
        batches.make_batch(
            np.random.default_rng(0),
            [samples.Sample(((one,),), (((sc.DESCRIBE, sc.caption(one)),),))],
            words,
            20,
            pictures=True,
        )
        for one in (scene, moved)
    ]
    assert torch.equal(made[0].words, made[1].words)
    assert torch.equal(made[0].tokens, made[1].tokens)
    assert not torch.equal(made[0].pictures, made[1].pictures)


def test_loss_weights_lie_on_answers(tokenizer_folder):
    words = tr.Words(tokenizer_folder)
    ids, weights = batches.dialogue([("Is there a red circle?", "No, there is no red circle.")], words)
    said = {words._tokenizer.decode([token]).strip(): weight for token, weight in zip(ids, weights, strict=True)}
    # What the question says already decides nothing.
    assert said["there"] == said["is"] == said[","] == said["red"] == said["circle"] == 1.0
    assert said["No"] == said["no"] == 4.0
    assert weights[: ids.index(words.id("No"))] == [0.1] * ids.index(words.id("No"))


# Runs


@pytest.mark.long
def test_a_run_resumed_anywhere_is_the_run_bit_for_bit(tokenizer_folder, tmp_path):
    whole = _trainer(SHORT, tokenizer_folder)
    whole.run()
    # After three steps the first stage is over, after eight polish is under way: the optimisers' state matters.
    parts = _trainer(SHORT, tokenizer_folder)
    for steps in (3, 4, 2):
        parts.run(tmp_path / "kept.pt", stop_after=steps)
        parts = _trainer(SHORT, tokenizer_folder)
        parts.resume(tmp_path / "kept.pt")
    parts.run()
    assert parts.history == whole.history
    assert (len(whole.history), parts.pieces, whole.pieces) == (9, 4, 1)
    for (name, one), other in zip(whole.model.state_dict().items(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.long
def test_a_checkpoint_of_another_plan_is_refused(tokenizer_folder, tmp_path):
    first = _trainer(SHORT, tokenizer_folder)
    first.run(tmp_path / "kept.pt", stop_after=1)
    other = _trainer(dataclasses.replace(SHORT, seed=21), tokenizer_folder)
    with pytest.raises(ValueError, match=r"checkpoints: expected .* of a run with the same plan"):
        other.resume(tmp_path / "kept.pt")


@pytest.mark.long
def test_steps_depend_on_seed_stage_and_number_alone(tokenizer_folder):
    trainer, again = (_trainer(SHORT, tokenizer_folder) for _ in range(2))
    again.batch("language", 0)
    for stage in tr.STAGES:
        assert torch.equal(trainer.batch(stage, 0)[0].tokens, again.batch(stage, 0)[0].tokens)
    one, other = (trainer.batch("language", step)[0] for step in (0, 1))
    assert one.tokens.shape != other.tokens.shape or not torch.equal(one.tokens, other.tokens)


def test_a_tokenizer_of_other_scenes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sc, "scene_words", lambda: ["circle", "dodecahedron"])
    with pytest.raises(ValueError, match=r"tokenizer: expected every scene word as one token, .* splits dodecahedron"):
        tr.train(tmp_path, SHORT)


@pytest.mark.long
def test_smoke_training_lowers_the_loss_and_writes_a_model(tokenizer_folder, tmp_path):
    lines = []
    record = tr.train(tmp_path / "model", tr.SMOKE, lines.append, tmp_path / "checkpoints", tokenizer_folder)
    kept = torch.load(tmp_path / "checkpoints" / trainer.CHECKPOINT, weights_only=True)
    language = [loss for stage, loss in kept["history"] if stage == "language"]
    assert all(np.isfinite(loss) for _, loss in kept["history"])
    assert language[-1] < language[0]
    assert {stage for stage, _ in kept["history"]} == set(tr.STAGES)
    assert json.loads((tmp_path / "model" / "training.json").read_text()) == json.loads(json.dumps(record))
    model, processor = load_demo(tmp_path / "model")
    hidden, ids, _ = ev._answer(model, processor, sc.render(sc.make_scene(0)), sc.DESCRIBE)
    assert hidden.shape == (len(ids) - 1, 64)
    report = ev.evaluate(1, path=tmp_path / "model", kinds=["captions", "second", "which image", "event"])
    assert set(report.parts) == {"captions", "second", "which image", "event"}
    # A second run finds every step done.
    tr.train(tmp_path / "again", tr.SMOKE, lines.append, tmp_path / "checkpoints", tokenizer_folder)
    first, second = (tmp_path / name / "model.safetensors" for name in ("model", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_the_package_is_the_command(tmp_path, monkeypatch, threads):
    asked = []
    monkeypatch.setattr(command, "train", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(command, "keep_freed_memory", lambda: asked.append("memory"))
    monkeypatch.setattr(sys, "argv", ["train", "--smoke", "--output", str(tmp_path), "--threads", "1"])
    runpy.run_module("tam_fast.demo.train", run_name="__main__")
    first, (output, plan, _, checkpoints, tokenizer), *others = asked
    assert first == "memory"
    assert (output, plan, checkpoints, tokenizer, others) == (tmp_path, tr.SMOKE, None, tr.ASSETS, [])
    assert torch.get_num_threads() == 1


def test_of_several_seeds_the_best_by_validation_is_kept(tmp_path, monkeypatch, threads):
    def fake(output, plan, *others):
        output.mkdir(parents=True)
        (output / "model.safetensors").write_text(str(plan.seed))
        return {"validation": {"caption": {1: 0.4, 2: 0.9, 3: 0.5}[plan.seed], "dark": 1.0}}

    monkeypatch.setattr(command, "train", fake)
    monkeypatch.setattr(command, "keep_freed_memory", lambda: True)
    command.main(["--output", str(tmp_path), "--seed", "1", "2", "3", "--threads", "1"])
    assert (tmp_path / "model.safetensors").read_text() == "2"
