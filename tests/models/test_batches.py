"""Prompts joined: whose fit, what the padding is, and what a recorder of rows sees of each."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest_models import PROMPT, hooks, picture, qwen_model, qwen_processor
from generating import STEPS, generate
from transformers import LogitsProcessor, LogitsProcessorList

from tam_fast.models.batches import fits, join, last_positions, record_rows, why_apart
from tam_fast.models.heads import Head
from tam_fast.models.inputs import prepare_inputs
from tam_fast.models.recording import record


@pytest.fixture(scope="module")
def made():
    processor = qwen_processor()
    model = qwen_model(processor)
    images = [[picture()], [], [picture(56, 90, seed=1), picture(seed=2)]]
    words = [PROMPT, f"{PROMPT} {PROMPT}", "Why?"]
    return model, [prepare_inputs(model, processor, some, text) for some, text in zip(images, words, strict=True)]


def joined(prompts, side="left", fill=(7, 8, 9)):
    return join([prompt.inputs for prompt in prompts], fill, prompts[0].family, side)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_and_images_follow_each_other(made, side):
    _, prompts = made
    assert all(fits(one.inputs, other.inputs, "qwen2_vl") for one in prompts for other in prompts)
    inputs = joined(prompts, side)
    width = max(prompt.input_ids.numel() for prompt in prompts)
    for b, (prompt, token_id) in enumerate(zip(prompts, (7, 8, 9), strict=True)):
        length = prompt.input_ids.numel()
        text, padding = (slice(width - length, None), slice(0, width - length))
        if side == "right":
            text, padding = slice(0, length), slice(length, None)
        assert torch.equal(inputs["input_ids"][b, text], prompt.input_ids)
        assert inputs["input_ids"][b, padding].eq(token_id).all()
        assert inputs["attention_mask"][b, text].all()
        assert not inputs["attention_mask"][b, padding].any()
        if "mm_token_type_ids" in inputs:
            assert not inputs["mm_token_type_ids"][b, padding].any()
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(inputs[name], torch.cat([prompts[0].inputs[name], prompts[2].inputs[name]]))


def test_what_has_no_mask_is_attended_to(made):
    _, prompts = made
    rows = [dict(prompt.inputs) for prompt in prompts[:2]]
    rows[0].pop("attention_mask")
    assert fits(*rows, "qwen2_vl")
    mask = join(rows, (7, 8), prompts[0].family, "left")["attention_mask"]
    assert torch.equal(mask, joined(prompts[:2], fill=(7, 8))["attention_mask"])


def test_prompts_that_do_not_fit():
    ids, pixels = torch.ones(1, 4, dtype=torch.int64), torch.zeros(1, 3, 8, 8)
    plain = {"input_ids": ids}
    one = {**plain, "pixel_values": pixels}
    assert fits(one, plain, "llava")
    assert fits(one, {"input_ids": ids[:, :2], "pixel_values": pixels.repeat(2, 1, 1, 1)}, "llava")
    for other in (
        {**plain, "pixel_values": torch.zeros(1, 3, 8, 9)},
        {**plain, "pixel_values": pixels.half()},
        {**plain, "num_local_patches": [1]},
        {**one, "token_type_ids": torch.zeros_like(ids)},
    ):
        assert not fits(one, other, "llava")
        assert not fits(other, one, "llava")
    # Images in the second dimension, and a first of 1.
    stacked = {**plain, "pixel_values": pixels[None]}
    assert fits(stacked, stacked, "idefics3")
    assert not fits(stacked, plain, "idefics3")
    assert not fits(stacked, {**plain, "pixel_values": pixels.repeat(1, 2, 1, 1, 1)}, "idefics3")


def test_models_that_were_not_tried_have_a_reason(made, monkeypatch):
    model, _ = made
    assert why_apart(model) == ""
    assert why_apart(model, videos=True) == ""
    text = model.config.get_text_config()
    monkeypatch.setattr(text, "layer_types", ["full_attention", "indexed_attention"])
    assert "indexed_attention" in why_apart(model)
    monkeypatch.setattr(text, "layer_types", ["full_attention", "sliding_attention"])
    assert why_apart(model) == ""
    monkeypatch.setattr(text, "_attn_implementation_internal", "flash_attention_2")
    assert "flash_attention_2" in why_apart(model)
    monkeypatch.setattr(model.config, "model_type", "mine")
    assert "mine" in why_apart(model)


def test_every_row_is_recorded_as_it_would_be_alone(made):
    model, prompts = made
    lengths = [prompt.input_ids.numel() for prompt in prompts]
    with record_rows(model, Head(model), 3, lengths) as rows:
        output = generate(model, joined(prompts), suppress_tokens=[model.config.image_token_id])
    assert hooks(model) == 0
    for b, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        with record(model, Head(model), 3, prompt_length=lengths[b]) as alone:
            expected = generate(model, prompt.inputs, suppress_tokens=[model.config.image_token_id])
        written = output[b, max(lengths) :].tolist()
        assert written == expected[0, lengths[b] :].tolist()
        assert row.was_fed(written)
        assert not row.was_fed([1, *written[1:]])
        assert (len(row), row.states.prefill_length) == (STEPS, lengths[b])
        torch.testing.assert_close(row.states.hidden, alone.states.hidden, atol=1e-5, rtol=0)
        assert [step for step, _ in row.candidates[2]] == [step for step, _ in alone.candidates[2]]
        assert row.verify(Head(model)) == ""


def test_calls_of_others_are_not_the_rows(made):
    model, prompts = made
    lengths = [prompt.input_ids.numel() for prompt in prompts]

    class Asks(LogitsProcessor):
        def __call__(self, input_ids, scores):
            model(input_ids=input_ids[:, -3:], use_cache=True)
            return scores

    with record_rows(model, Head(model), 3, lengths) as rows:
        generate(model, joined(prompts), logits_processor=LogitsProcessorList([Asks()]))
    assert [(len(row), row.trouble) for row in rows] == [(STEPS, "")] * 3


def test_one_pass_shows_each_rows_last_position(made):
    model, prompts = made
    lengths = [prompt.input_ids.numel() for prompt in prompts]
    recorded = record_rows(model, Head(model), 3, lengths, "right")
    with torch.no_grad(), last_positions(model.lm_head, lengths), recorded as rows:
        logits = model(**joined(prompts, "right"), use_cache=False).logits
    assert logits.shape[:2] == (3, 1)
    for b, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        with torch.no_grad():
            expected = model(**prompt.inputs).logits[0, -1]
        torch.testing.assert_close(logits[b, 0], expected, atol=1e-4, rtol=0)
        assert len(row.states) == lengths[b]
        assert row.verify(Head(model)) == ""


def test_calls_of_other_threads_and_other_numbers_of_rows(made):
    model, prompts = made
    lengths = [prompt.input_ids.numel() for prompt in prompts]
    with record_rows(model, Head(model), 3, lengths) as rows:
        thread = threading.Thread(target=generate, args=(model, joined(prompts)))
        thread.start()
        thread.join()
    assert not any(len(row) or row.trouble for row in rows)
    with record_rows(model, Head(model), 3, lengths) as rows:
        generate(model, prompts[0].inputs)
    assert all("there are states of 1 rows" in row.trouble for row in rows)
    assert hooks(model) == 0
