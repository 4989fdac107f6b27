"""The official program's demo cases, on random weights with the real tokenizer: an image, ten frames, several turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_models import picture, qwen_model

import tam_fast
from tam_fast import Explainer
from tam_fast.models.processors import load_processor

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "processors" / "qwen2vl"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the real tokenizer is not beside the project")
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


@pytest.fixture(scope="module")
def explainer():
    processor = load_processor(FOLDER)

    model = qwen_model(processor)
    return Explainer(model, processor)


def test_an_image(explainer):
    e = explainer.explain(picture(84, 56), "Describe this image in detail.", **GREEDY)
    assert e.layout.sizes == [(2, 3)]
    assert "".join(e.context_tokens).startswith("Describe this image in detail.")
    assert e.overlay(0).size == (84, 56)


def test_ten_frames(explainer):
    frames = np.stack([np.asarray(picture(84, 56, seed=seed)) for seed in range(10)])
    e = explainer.explain(videos={"video": frames, "fps": 2.0}, prompt="Describe this video.", **GREEDY)
    # Qwen2-VL sees frames in pairs.
    assert [(grid.kind, grid.source, grid.frame, grid.shape) for grid in e.layout.grids] == [
        ("video", 0, frame, (2, 3)) for frame in range(5)
    ]
    assert len(e.videos[0].frames) == 10
    assert e.videos[0].times == pytest.approx([k / 2 for k in range(10)])
    assert len(e[0]) == 5
    told = explainer.explain(videos={"video": frames, "fps": 2.0}, prompt="Describe this video.", answer=e.token_ids)
    torch.testing.assert_close(told.maps.maps, e.maps.maps, atol=2e-5, rtol=0)


def test_several_turns(explainer):
    messages = [
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "What is on the sofa?"}]},
        {"role": "assistant", "content": "A dog and a cat."},
        {"role": "user", "content": "What colour is the dog?"},
        {"role": "assistant", "content": "The dog is brown."},
        {"role": "user", "content": [VIDEO, {"type": "text", "text": "And what happens here?"}]},
    ]
    frames = [picture(56, 56, seed=seed) for seed in range(4)]
    first = explainer.explain(picture(84, 56), messages=messages[:4], turn=1)
    assert first.text == "The dog is brown."
    assert "".join(first.context_tokens).startswith("What colour is the dog?")
    both = explainer.explain(picture(84, 56), videos=[frames], messages=messages, context="conversation", **GREEDY)
    assert [(grid.kind, grid.source, grid.frame) for grid in both.layout.grids] == [
        ("image", 0, 0),
        ("video", 0, 0),
        ("video", 0, 1),
    ]
    assert "".join(both.context_tokens).startswith("What is on the sofa?A dog and a cat.What colour is the dog?")
    assert both.source == "generated"
    again = tam_fast.layout_of(
        explainer.model, explainer.processor, _inputs(explainer, messages, frames), image_sizes=[(84, 56)]
    )
    assert again.grids == both.layout.grids


def _inputs(explainer, messages, frames):
    from tam_fast.models.chat import read_chat
    from tam_fast.models.inputs import prepare_chat

    chat = read_chat(picture(84, 56), videos=[frames], messages=messages)
    return prepare_chat(explainer.model, explainer.processor, chat).inputs
