"""capture: the rows are the final hidden states, nothing else is kept, hooks never stay."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from conftest_models import hooks, qwen_model
from generating import STEPS, generate

from tam_fast.models.capture import CapturedCandidates, capture


def test_states_are_what_the_classifier_reads(model, inputs):
    with capture(model) as states:
        output = generate(model, inputs, output_hidden_states=True, return_dict_in_generate=True)
    expected = torch.cat([step[-1][0] for step in output.hidden_states])
    assert states.prefill_length == inputs["input_ids"].shape[1]
    assert len(states) == output.sequences.shape[1] - 1
    assert torch.equal(states.hidden, expected)
    assert states.hidden is states.hidden, "joined once, not at each access"
    assert hooks(model) == 0


def test_dtype_is_the_models(processor, inputs):
    half = qwen_model(processor, dtype=torch.bfloat16)
    with capture(half) as states:
        generate(half, inputs)
    assert states.hidden.dtype == torch.bfloat16


def test_static_cache_gives_the_same_rows(model, inputs):
    with capture(model) as dynamic:
        generate(model, inputs)
    with capture(model) as static:
        generate(model, inputs, cache_implementation="static")
    torch.testing.assert_close(static.hidden, dynamic.hidden, rtol=1e-4, atol=1e-5)


def test_under_inference_mode_and_without_gradients(model, inputs):
    with torch.inference_mode(), capture(model) as states:
        generate(model, inputs)
    assert states.hidden.shape[0] == inputs["input_ids"].shape[1] + STEPS - 1
    with capture(model) as states:
        model(**inputs, use_cache=False)
    assert not states.hidden.requires_grad, "a kept graph would keep every layer"


def test_hooks_are_released_on_error(model, inputs):
    with pytest.raises(KeyError, match="mine"), capture(model):
        raise KeyError("mine")
    assert hooks(model) == 0


def test_calls_of_other_threads_are_not_recorded(model, inputs):
    with capture(model) as states:
        thread = threading.Thread(target=generate, args=(model, inputs))
        thread.start()
        thread.join()
    assert len(states) == 0
    with pytest.raises(RuntimeError, match="thread"):
        _ = states.hidden


def test_entering_twice_is_refused_and_reuse_is_not(model, inputs):
    hook = capture(model)
    with hook as first:
        generate(model, inputs)
        with pytest.raises(RuntimeError, match="once"):
            hook.__enter__()
    rows = len(first)
    with hook as second:
        generate(model, inputs, max_new_tokens=1, min_new_tokens=1)
    assert (len(first), len(second)) == (rows, inputs["input_ids"].shape[1])
    assert hooks(model) == 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_beams": 2}, "batch of 1 sequence, got 2"),
        ({"num_return_sequences": 2, "do_sample": True}, "batch of 1 sequence, got 2"),
        ({"use_cache": False}, "use_cache=True"),
    ],
)
def test_more_than_one_sequence_of_states_is_refused(model, inputs, settings, message):
    with pytest.raises(ValueError, match=message), capture(model):
        generate(model, inputs, **settings)
    assert hooks(model) == 0


def test_two_calls_in_one_block_are_refused(model, inputs):
    with capture(model):
        generate(model, inputs)
        with pytest.raises(ValueError, match=r"one generate\(\)"):
            generate(model, inputs)


class Fake(torch.nn.Module):
    """A model that is its own decoder and returns what it is given."""

    def get_decoder(self):
        return self

    def forward(self, output):
        return output


@pytest.mark.parametrize("rows", [1, 7])
def test_only_the_rows_themselves_stay_alive(rows):
    model = Fake()
    large = torch.randn(1, 100, 8)
    with capture(model) as states:
        model(SimpleNamespace(last_hidden_state=large[:, :rows]))
    assert torch.equal(states.hidden, large[0, :rows])
    assert states.hidden.untyped_storage().nbytes() == rows * 8 * 4


def test_whole_storage_is_kept_without_a_copy():
    model = Fake()
    prefill = torch.randn(1, 100, 8)
    with capture(model) as states:
        model((prefill,))  # return_dict=False
    assert states.hidden.data_ptr() == prefill.data_ptr()
    step = torch.randn(1, 1, 8)
    with capture(model) as states:
        model((prefill,))
        model((step,))
        step.zero_()  # a compiled step may write its outputs to the same place again
    assert bool(states.hidden[-1].any())


@pytest.mark.parametrize(
    "output", [SimpleNamespace(logits=1), (), (torch.zeros(3),), SimpleNamespace(last_hidden_state=None)]
)
def test_decoder_without_final_states_is_refused(output):
    model = Fake()
    with pytest.raises(TypeError, match="last_hidden_state"), capture(model):
        model(output)
    assert hooks(model) == 0


def test_no_decoder_is_refused():
    with pytest.raises(TypeError, match="get_decoder"):
        capture(torch.nn.Linear(2, 2))


def kept_bytes(candidates):
    tensors = [tensor for step in candidates._steps for tensor in step] + candidates._rows
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("vocabulary", [30, 1500, 5000])
def test_logits_wait_to_be_looked_at_together_but_few(vocabulary):
    """Read at once or at the end: the same bits; what waits never takes more than a few KiB."""
    logits = torch.randn(40, 1, 1, vocabulary)
    logits[7] = logits[7].round()  # ties
    late, early = CapturedCandidates(), CapturedCandidates()
    for number, row in enumerate(logits):
        for candidates in (late, early):
            given = row.clone()
            candidates.append_step(given, 5)
            given.zero_()  # a compiled step may write its outputs to the same place again
        assert len(late) == len(early) == number + 1
        assert kept_bytes(late) <= 40 * 5 * (8 + 4) + 2**14
        assert len(early[number]) == 5
    assert [late[step] for step in range(40)] == [early[step] for step in range(40)]
    assert late[3] == late[-37]
    assert not late._rows
