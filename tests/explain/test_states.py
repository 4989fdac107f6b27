"""Explanations of states that were made elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest_models import PROMPT, picture

import tam_fast
from tam_fast.explain.job import Job
from tam_fast.explain.states import explain_states
from tam_fast.models.chat import read_chat
from tam_fast.models.inputs import prepare_inputs


@pytest.fixture(scope="module")
def asked(qwen):
    """An explanation of a model's own, and the states, un-normed too, that another engine would give for it."""
    model, processor = qwen.model, qwen.processor
    images = [picture(90, 60), picture(60, 90)]
    e = tam_fast.Explainer(model, processor).explain(images, PROMPT, max_new_tokens=4, min_new_tokens=4)
    prompt = prepare_inputs(model, processor, images, PROMPT)
    ids = torch.cat([prompt.input_ids, torch.tensor(e.token_ids)])
    seen = {}
    norm = model.model.language_model.norm
    handle = norm.register_forward_hook(lambda _m, given, made: seen.update(raw=given[0][0], normed=made[0]))
    inputs = Job(model, processor, None, read_chat(images, PROMPT), prompt, 3).model_inputs(e.token_ids[:-1])
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return e, seen, ids, prompt.layout, model, processor, images


def test_same_states_same_explanation(asked):
    e, seen, ids, layout, model, processor, images = asked
    found = explain_states(
        seen["normed"], model.lm_head.weight, ids, layout, tokenizer=processor.tokenizer, images=images, prompt=PROMPT
    )
    assert found.source == "states"
    assert (found.text, found.tokens, found.offsets) == (e.text, e.tokens, e.offsets)
    assert found.context_tokens == e.context_tokens
    torch.testing.assert_close(found.maps.maps, e.maps.maps, atol=1e-4, rtol=0)
    for ours, theirs in zip(found.candidates, e.candidates, strict=True):
        assert [c.token_id for c in ours] == [c.token_id for c in theirs]
        np.testing.assert_allclose([c.probability for c in ours], [c.probability for c in theirs], atol=1e-4)
    assert found.overlay(0).size == images[0].size


def test_states_that_are_not_normed_yet(asked):
    _, seen, ids, layout, model, _, _ = asked
    weight = model.lm_head.weight
    plain = explain_states(seen["normed"], weight, ids, layout)
    normed = explain_states(seen["raw"], weight, ids, layout, norm=model.model.language_model.norm)
    assert torch.equal(plain.maps.maps, normed.maps.maps)
    assert not torch.equal(plain.maps.maps, explain_states(seen["raw"], weight, ids, layout).maps.maps)


def test_without_a_tokenizer_tokens_are_their_ids(asked):
    e, seen, ids, layout, model, *_ = asked
    found = explain_states(seen["normed"].numpy(), model.lm_head.weight.detach().numpy(), ids.tolist(), layout)
    assert found.tokens == [f"[{number}]" for number in e.token_ids]
    assert found.text[slice(*found.offsets[1])] == found.tokens[1]
    assert found.images == []
    assert [c.token for c in found.candidates[0]] == [f"[{c.token_id}]" for c in e.candidates[0]]


def test_a_bias_is_in_the_candidates_and_not_in_the_maps(asked):
    _, seen, ids, layout, model, *_ = asked
    weight = model.lm_head.weight
    bias = torch.zeros(weight.shape[0])
    bias[7] = 1e4
    found = explain_states(seen["normed"], weight, ids, layout, classifier_bias=bias)
    assert torch.equal(found.maps.maps, explain_states(seen["normed"], weight, ids, layout).maps.maps)
    assert all(step[0].token_id == 7 for step in found.candidates)


def test_saved_and_loaded(asked, tmp_path):
    _, seen, ids, layout, model, processor, images = asked
    found = explain_states(
        seen["normed"], model.lm_head.weight, ids, layout, tokenizer=processor.tokenizer, images=images
    )
    found.save(tmp_path / "a")
    again = tam_fast.load(tmp_path / "a")
    assert again.source == "states"
    assert torch.equal(again.maps.maps, found.maps.maps)


def test_bad_input_is_named(asked):
    _, seen, ids, layout, model, processor, images = asked
    hidden, weight = seen["normed"], model.lm_head.weight
    with pytest.raises(ValueError, match=r"^hidden: expected floating point \(S, C\)"):
        explain_states(hidden[None], weight, ids, layout)
    with pytest.raises(TypeError, match=r"^hidden"):
        explain_states("x", weight, ids, layout)
    with pytest.raises(ValueError, match=r"^classifier: "):
        explain_states(hidden, weight[0], ids, layout)
    with pytest.raises(ValueError, match=r"^classifier_bias: expected"):
        explain_states(hidden, weight, ids, layout, classifier_bias=torch.zeros(3))
    with pytest.raises(ValueError, match=r"^token_ids"):
        explain_states(hidden, weight, ids[:-1], layout)
    with pytest.raises(ValueError, match=r"^images: expected 2"):
        explain_states(hidden, weight, ids, layout, images=images[:1])
    with pytest.raises(TypeError, match=r"^norm"):
        explain_states(hidden, weight, ids, layout, norm=5)
    with pytest.raises(ValueError, match=r"^norm: expected states"):
        explain_states(hidden, weight, ids, layout, norm=lambda states: states[..., :3])
    broken = hidden.clone()
    broken[layout.answer_start - 1] = float("nan")
    with pytest.raises(ValueError, match="hidden"):
        explain_states(broken, weight, ids, layout, tokenizer=processor.tokenizer)
