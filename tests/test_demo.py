"""The embedded model: scenes, tokenizer, loading without a network, captions of the samples, training, evaluation."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import torch

from tam_fast.demo import evaluate as ev
from tam_fast.demo import load_demo, sample_scenes
from tam_fast.demo import scenes as sc
from tam_fast.demo import train as tr


@pytest.fixture(scope="module")
def demo():
    return load_demo()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _caption(demo, picture, prompt=sc.DESCRIBE):
    _, ids, layout = ev._answer(*demo, picture, prompt)
    return demo[1].tokenizer.decode(ids[layout.answer_start :])


# Scenes


@pytest.mark.parametrize("seed", [0, 1, 99])
def test_scene_follows_from_its_seed(seed):
    first, second = sc.make_scene(seed), sc.make_scene(seed)
    assert first == second
    np.testing.assert_array_equal(sc.render(first, 96), sc.render(second, 96))
    assert first != sc.make_scene(seed + 1)


def test_scenes_have_the_promised_objects():
    grid = 20
    for seed in range(60):
        scene = sc.make_scene(seed)
        assert 1 <= len(scene.objects) <= 4
        assert sum(group.count for group in scene.groups) == len(scene.objects)
        for item in scene.objects:
            assert item.colour in sc.COLOURS
            assert item.shape in sc.SHAPES
            assert 2 * item.radius * grid >= 5
        lefts = [scene.objects[group.indices[0]].x for group in scene.groups]
        assert lefts == sorted(lefts)


def test_masks_match_the_drawn_pixels():
    for seed in range(12):
        scene = sc.make_scene(seed)
        picture = sc.render(scene, 160).astype(np.float32)
        masks = sc.masks(scene, 160)
        assert masks.shape == (len(scene.objects), 160, 160)
        assert masks.sum(axis=0).max() <= 1
        for item, mask in zip(scene.objects, masks, strict=True):
            assert mask.sum() > 100
            # The light varies by about a tenth; the hue must be the object's own all over its mask.
            inside = picture[mask]
            distance = np.abs(inside - np.array(item.rgb)).mean(axis=1)
            assert np.median(distance) < 20
            assert (distance < 60).mean() > 0.97


def test_coverage_is_the_masks_share_of_each_cell():
    for seed in range(6):
        scene = sc.make_scene(seed)
        cells = sc.masks(scene, 160).reshape(-1, 20, 8, 20, 8).mean(axis=(2, 4))
        # Drawn with coarser pixels: cells at an outline may differ, most cells may not.
        difference = np.abs(sc.coverage(scene, 20) - cells)
        assert difference.mean() < 0.01
        assert (difference > 0.2).mean() < 0.02


def test_captions_are_parsed_back():
    for seed in range(50):
        scene = sc.make_scene(seed)
        named = sc.parse_caption(sc.caption(scene))
        assert named == [(group.count, group.colour, group.shape) for group in scene.groups]
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


# Tokenizer


def test_every_scene_word_is_one_token(demo):
    tokenizer = demo[1].tokenizer
    for word in sc.scene_words():
        bare = word[0].isupper() or word in ("system", "user", "assistant")
        text = word if bare else f" {word}"
        assert len(tokenizer(text).input_ids) == 1, text


@pytest.mark.parametrize(
    "text", ["", "plain words", "Grüße, мир, 你好 🦊!", "a\tb\n\n  c ", "x" * 300, "12345 <b>&amp;</b>"]
)
def test_any_text_survives_the_tokenizer(demo, text):
    tokenizer = demo[1].tokenizer
    assert tokenizer.decode(tokenizer(text).input_ids) == text


# Model


def test_demo_loads_without_a_network(no_network):
    model, processor = load_demo()
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert _caption((model, processor), sc.render(sc.make_scene(np.random.default_rng([3, 1])))).startswith(
        "The image shows"
    )


def test_shipped_files_are_small():
    assert sum(file.stat().st_size for file in tr.ASSETS.rglob("*") if file.is_file()) <= 8e6


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_demo(tmp_path)


def test_lean_forward_equals_the_stock_model(demo):
    trainer = tr.Trainer(tr.Plan(), log=lambda line: None)
    trainer.model.load_state_dict(demo[0].state_dict())
    assert trainer.check_parity() < 1e-3


def test_processor_makes_the_patches_of_the_training(demo):
    from PIL import Image

    picture = sc.render(sc.make_scene(4))
    inputs = demo[1](images=[Image.fromarray(picture)], text=["<|image_pad|>"], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 20, 20]]
    torch.testing.assert_close(inputs["pixel_values"], tr.patchify(picture[None])[0], atol=1e-5, rtol=1e-5)


def test_samples_are_captioned_right(demo):
    from PIL import Image

    paths = sample_scenes()
    assert len(paths) >= 4
    for path in paths:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        scene = sc.make_scene(np.random.default_rng(facts["seed"]))
        picture = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(picture, sc.render(scene, facts["size"]))
        assert [(o["colour"], o["shape"]) for o in facts["objects"]] == [(o.colour, o.shape) for o in scene.objects]
        assert ev.judge_caption(scene, _caption(demo, picture)) == (True, True, True), path.name


def test_a_question_is_answered(demo):
    hits = 0
    for seed in range(8):
        scene = sc.make_scene(np.random.default_rng([5, seed]))
        amount = "is one object" if len(scene.objects) == 1 else f"are {sc.NUMBERS[len(scene.objects)]} objects"
        hits += _caption(demo, sc.render(scene), "How many objects are there?") == f"There {amount} in the image."
    assert hits >= 5


# Training and evaluation


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


def test_otsu_splits_two_levels():
    levels = np.array([10] * 30 + [200] * 10, dtype=np.uint8)
    threshold = ev.otsu_threshold(levels)
    assert 10 <= threshold < 200
    assert ev.otsu_threshold(np.full(9, 7, dtype=np.uint8)) <= 7


def test_ceiling_is_reached_by_no_other_choice_of_cells():
    rng = np.random.default_rng(0)
    covered = rng.random((3, 3)).astype(np.float32) * (rng.random((3, 3)) < 0.7)
    choices = (np.array([(number >> bit) & 1 for bit in range(9)], dtype=bool) for number in range(1, 512))
    best = max(ev._iou(choice.reshape(3, 3), covered) for choice in choices)
    assert ev._ceiling(covered) == pytest.approx(best, abs=1e-6)


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
