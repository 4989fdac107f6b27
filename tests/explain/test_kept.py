"""States that an explanation keeps: maps of tokens that were not said, also after saving and loading."""

from __future__ import annotations

import pytest
import torch
from conftest_models import PROMPT, picture

import tam_fast


@pytest.fixture(scope="module")
def asked(qwen):
    images = [picture(90, 60), picture(60, 90)]
    return qwen, images, qwen.explain(images, PROMPT, max_new_tokens=5, min_new_tokens=5, keep_states=True)


def same(one, two, atol=0.0):
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        torch.testing.assert_close(first, second, atol=atol, rtol=0)


def test_the_token_that_was_said_has_its_own_map(asked):
    _, _, e = asked
    for step, token in enumerate(e.token_ids):
        same(e.what_if(step, token), e[step])
    same(e.what_if(-1, e.token_ids[-1]), e[-1])


def test_a_token_that_was_not_said_is_as_in_an_answer_with_it(asked):
    explainer, images, e = asked
    for step in (0, 2, 4):
        other = (e.token_ids[step] + 17) % 256 + 3
        given = explainer.explain(images, PROMPT, answer=[*e.token_ids[:step], other])
        same(e.what_if(step, other), given[step], atol=1e-4)


def test_tokens_by_their_text(asked):
    explainer, _, e = asked
    same(e.what_if(1, " dog"), e.what_if(1, explainer.processor.tokenizer(" dog")["input_ids"][0]))
    same(e.what_if(1, "dog"), e.what_if(1, " dog"))
    candidate = e.candidates[2][1]
    same(e.what_if(2, candidate.token), e.what_if(2, candidate.token_id))
    with pytest.raises(ValueError, match=r"^token: expected a text of one token, got 'the dog sits'"):
        e.what_if(0, "the dog sits")


def test_saved_and_loaded(asked, tmp_path):
    explainer, _, e = asked
    e.save(tmp_path / "a")
    again = tam_fast.load(tmp_path / "a")
    for step, token in enumerate(e.token_ids):
        same(again.what_if(step, token), e[step])
        for candidate in e.candidates[step]:
            same(again.what_if(step, candidate.token_id), e.what_if(step, candidate.token_id))
    rare = next(number for number in range(256) if number not in set(again.states.rows.ids.tolist()))
    with pytest.raises(KeyError, match="classifier="):
        again.what_if(0, rare)
    weight = explainer.model.lm_head.weight.detach()
    same(again.what_if(0, rare, classifier=weight), e.what_if(0, rare))
    with pytest.raises(ValueError, match="token: expected a token of the answer or a candidate"):
        again.what_if(0, "no such token")


def test_states_are_not_kept_unless_asked(asked, tmp_path):
    explainer, images, e = asked
    plain = explainer.explain(images, PROMPT, max_new_tokens=2)
    assert plain.states is None
    with pytest.raises(ValueError, match=r"keep_states=True"):
        plain.what_if(0, 5)
    # What no map reads is not kept.
    assert e.states.hidden.shape[0] < e.maps.layout.answer_start + len(e) - 1


def test_bad_steps_and_tokens_are_named(asked):
    _, _, e = asked
    with pytest.raises(IndexError, match="expected a token from 0 to 4, got 5"):
        e.what_if(5, 5)
    for token in (-1, 10**6):
        with pytest.raises(ValueError, match=r"^token: expected an id from 0"):
            e.what_if(0, token)
    for token in (1.5, None, True):
        with pytest.raises(TypeError, match=r"^token: "):
            e.what_if(0, token)


@pytest.mark.parametrize("name", ["hidden", "token_ids", "positions", "row_ids", "rows"])
def test_damaged_states_are_refused(asked, tmp_path, name):
    import hashlib
    import json

    import safetensors.torch

    _, _, e = asked
    arrays, document = e.save(tmp_path / "a")
    tensors = safetensors.torch.load(arrays.read_bytes())
    for change in ("missing", "short"):
        changed = dict(tensors)
        if change == "missing":
            del changed[f"states.{name}"]
        else:
            changed[f"states.{name}"] = tensors[f"states.{name}"][:-1].clone()
        data = safetensors.torch.save(changed)
        arrays.write_bytes(data)
        said = json.loads(document.read_text())
        said["arrays_sha256"] = hashlib.sha256(data).hexdigest()
        document.write_text(json.dumps(said))
        with pytest.raises(ValueError, match=r"states: expected|positions|grids"):
            tam_fast.load(tmp_path / "a")
