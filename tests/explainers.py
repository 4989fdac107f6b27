"""Explainers of tiny models, and how explanations and steps of streams are compared: for the tests of asking."""

from __future__ import annotations

import pytest
import torch
from conftest_models import llava_model, llava_processor, qwen_model, qwen_processor

STEPS = 8
GREEDY = {"max_new_tokens": STEPS, "do_sample": False}

# Rows of a matrix product are summed in another order one at a time than all at once: about 1e-7 of a state a layer,
# 1e-6 after the joint normalisation divides by the largest score.
SAME_MODEL = {"rtol": 0.0, "atol": 2e-5}


def make(name):
    if name == "llava":
        processor = llava_processor()
        return llava_model(processor), processor
    processor = qwen_processor(name="Qwen2VLProcessor" if name == "qwen2" else "Qwen2_5_VLProcessor")
    return qwen_model(processor, version=name.removeprefix("qwen")), processor


def assert_same(one, other, **tolerance):
    assert one.token_ids == other.token_ids
    assert (one.tokens, one.text, one.offsets) == (other.tokens, other.text, other.offsets)
    assert one.context_tokens == other.context_tokens
    assert one.layout == other.layout
    for name in ("maps", "relevance", "scale", "flat", "context_ids", "target_ids"):
        found, expected = getattr(one.maps, name), getattr(other.maps, name)
        assert found.dtype == expected.dtype
        if tolerance and found.is_floating_point():
            # The maps are of [0, 1], their scales of any size.
            near = {**tolerance, "rtol": max(1e-5, tolerance.get("rtol", 0.0))} if name == "scale" else tolerance
            torch.testing.assert_close(found, expected, **near)
        else:
            assert torch.equal(found, expected), name
    for step, others in zip(one.candidates, other.candidates, strict=True):
        assert [candidate.token_id for candidate in step] == [candidate.token_id for candidate in others]
        assert [candidate.token for candidate in step] == [candidate.token for candidate in others]
        assert [c.probability for c in step] == pytest.approx([c.probability for c in others], rel=1e-4, abs=1e-9)


def assert_step(step, e):
    index = step.index
    assert torch.equal(step.map, e.maps.maps[index])
    assert torch.equal(step.relevance, e.relevance[index, : e.layout.prompt.numel() + index])
    assert (step.scale, step.flat) == (float(e.maps.scale[index]), bool(e.maps.flat[index]))
    assert (step.token, step.token_id) == (e.tokens[index], e.token_ids[index])
    assert step.candidates == e.candidates[index]


def failing(model, call):
    """Let the lm_head fail at its n-th call."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == call:
            raise ZeroDivisionError("in the model")

    return model.lm_head.register_forward_hook(hook)
