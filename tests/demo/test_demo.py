"""The embedded model: its tokenizer, loading without a network, what it says about the samples."""

from __future__ import annotations

import json
import re
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from tam_fast.demo import ASSETS, build_tokenizer, load_demo, sample_scenes
from tam_fast.demo import evaluate as ev
from tam_fast.demo import scenes as sc
from tam_fast.demo.train import Words


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


# Tokenizer


def test_every_scene_word_is_one_token_of_a_new_tokenizer(tokenizer_folder):
    words = Words(tokenizer_folder)
    assert words.missing() == []
    rng = np.random.default_rng(0)
    texts = [text for seed in range(40) for turn in sc.conversation(sc.make_varied(seed), rng, 4) for text in turn]
    texts += [text for seed in range(40) for turn in sc.talk_pair(sc.make_pair(seed), rng, 3) for text in _said(turn)]
    texts += [text for seed in range(40) for turn in sc.talk_film(sc.make_film(seed), rng, 3) for text in _said(turn)]
    for text in texts:
        assert len(words.ids(text)) == len(re.findall(r"\w+|[^\w\s]", text)), text


def test_the_same_tokenizer_is_built_again(tokenizer_folder, tmp_path):
    build_tokenizer.build(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (tokenizer_folder / file.name).read_bytes()


def test_the_shipped_tokenizer_knows_the_captions():
    words = Words()
    for seed in range(60):
        text = sc.caption(sc.make_scene(seed))
        assert len(words.ids(text)) == len(re.findall(r"\w+|[^\w\s]", text)), text


def _said(turn):
    return turn.question, turn.answer


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
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 8e6


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_demo(tmp_path)


def test_samples_are_captioned_right(demo):
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
