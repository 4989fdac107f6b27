"""record: generate's own steps and no others, what is kept of them, and what their verification notices."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest_models import hooks, qwen_model
from generating import STEPS, generate

from tam_fast.models.heads import Head
from tam_fast.models.recording import Points, record, verify


def recorder(model, **options):
    return record(model, Head(model), 4, **options)


def test_chunks_are_handed_out_and_need_not_be_kept(model, inputs):
    chunks = []
    with recorder(model, on_states=chunks.append, keep=False) as recording:
        generate(model, inputs)
    prompt = inputs["input_ids"].shape[1]
    assert [chunk.shape[0] for chunk in chunks] == [prompt] + [1] * (STEPS - 1)
    assert len(recording.states) == prompt + STEPS - 1
    assert (recording.states.prefill_length, len(recording)) == (prompt, STEPS)
    with pytest.raises(RuntimeError, match="kept"):
        _ = recording.states.hidden


def test_hooks_are_released_on_error(model, inputs):
    def fail(_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), recorder(model, on_states=fail):
        generate(model, inputs)
    assert hooks(model) == 0


def test_calls_of_other_threads_are_not_recorded(model, inputs):
    with recorder(model) as recording:
        thread = threading.Thread(target=generate, args=(model, inputs))
        thread.start()
        thread.join()
    assert len(recording) == len(recording.states) == len(recording.candidates) == 0
    assert not recording.trouble


def test_candidates_are_the_models_own_probabilities(model, inputs):
    with recorder(model) as recording:
        output = generate(
            model, inputs, do_sample=True, temperature=2.0, output_logits=True, return_dict_in_generate=True
        )
    assert len(recording.candidates) == STEPS
    for step, logits in enumerate(output.logits):
        probabilities = logits[0].double().softmax(0)
        values, ids = probabilities.topk(4)
        assert [token for token, _ in recording.candidates[step]] == ids.tolist()
        assert [p for _, p in recording.candidates[step]] == pytest.approx(values.tolist(), rel=1e-5)
    assert recording.verify(Head(model)) == ""
    assert hooks(model) == 0


def test_what_the_steps_were_given_is_known(model, inputs):
    with recorder(model) as recording:
        generated = generate(model, inputs)[0, inputs["input_ids"].shape[1] :].tolist()
    assert recording.was_fed(generated)
    assert recording.was_fed(generated[:2])
    assert not recording.was_fed([generated[0] + 1, *generated[1:]])


@pytest.mark.parametrize(
    ("settings", "trouble"),
    [
        ({"num_beams": 2}, "batch of 1 sequence, got 2"),
        ({"num_return_sequences": 2, "do_sample": True}, "batch of 1 sequence, got 2"),
        ({"use_cache": False}, "use_cache=True"),
    ],
)
def test_more_than_one_sequence_of_states_is_noted_and_the_answer_kept(model, inputs, settings, trouble):
    with recorder(model) as recording:
        output = generate(model, inputs, **settings)
    assert output.shape[1] == inputs["input_ids"].shape[1] + STEPS
    assert trouble in recording.trouble
    assert recording.verify(Head(model)) == recording.trouble


def points(model, n=6, k=4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n, model.lm_head.in_features, generator=generator).to(dtype)
    ids = torch.randint(model.lm_head.out_features, (n, k), generator=generator)
    with torch.no_grad():
        scored = model.lm_head.to(dtype)(states).gather(1, ids)
    return Points(states, ids, scored, scored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_logits_that_follow_from_the_states_are_taken_and_others_are_not(processor, dtype):
    model = qwen_model(processor)
    for seed in range(20):
        good = points(model, dtype=dtype, seed=seed)
        head = Head(model)
        assert verify(head, good) == ""
        # Another state, another token, one logit that is off by more than rounding: each is noticed.
        others = good.states.roll(1, dims=0)
        assert "its row times the captured state" in verify(
            head, Points(others, good.token_ids, good.scored, good.scored)
        )
        ids = good.token_ids.roll(1, dims=1)
        assert "its row times" in verify(head, Points(good.states, ids, good.scored, good.scored))
        off = good.scored.clone()
        off[3, 2] += 0.5 * good.scored.abs().max() + 1
        why = verify(head, Points(good.states, good.token_ids, off, off))
        assert f"token id {int(good.token_ids[3, 2])}" in why


@pytest.mark.parametrize("factor", [1.0, 0.25, 16.0])
def test_one_factor_for_all_logits_is_taken_and_a_mixture_is_not(model, factor):
    good = points(model)
    scaled = Points(good.states, good.token_ids, good.scored, factor * good.scored)
    assert verify(Head(model), scaled) == ""
    turned = Points(good.states, good.token_ids, good.scored, -factor * good.scored)
    assert "scaled or capped" in verify(Head(model), turned)
    mixed = Points(good.states, good.token_ids, good.scored, factor * good.scored + 0.3 * good.scored.roll(1, dims=0))
    assert "scaled or capped" in verify(Head(model), mixed)


def test_states_that_are_not_finite_are_for_the_maps_to_refuse(model):
    good = points(model)
    good.states[2, 3] = float("nan")
    with torch.no_grad():
        scored = model.lm_head(good.states).gather(1, good.token_ids)
    assert verify(Head(model), Points(good.states, good.token_ids, scored, scored)) == ""
