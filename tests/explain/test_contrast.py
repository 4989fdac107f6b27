"""What images do to the probability of an answer, against the model's own logits with and without them."""

from __future__ import annotations

import families
import pytest
import torch
from conftest_models import PROMPT, picture

from tam_fast.explain.answers import answer_ids
from tam_fast.explain.contrast import blind_job, contrast_of, without_images
from tam_fast.explain.generation import force
from tam_fast.explain.job import Job
from tam_fast.models.chat import read_chat
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.heads import Head
from tam_fast.models.inputs import prepare_chat

ANSWER = "A dog and a cat sit on the red sofa, and nobody else is there; it rains."  # more than one block of logits


def job_of(model, processor, chat):
    return Job(model, processor, Head(model), chat, prepare_chat(model, processor, chat), 3)


def from_logits(job, ids):
    """Log-probabilities of an answer from all logits of a plain call of the model."""
    with torch.no_grad():
        logits = job.model(**job.model_inputs(ids)).logits[0]
    first = job.prompt.layout.answer_start - 1
    rows = logits[first : first + len(ids)].float().log_softmax(dim=1)
    return rows.gather(1, torch.tensor(ids)[:, None])[:, 0]


def check(model, processor, chat, steps=None):
    job = job_of(model, processor, chat)
    ids, hidden, _ = force(job, answer_ids(job, ANSWER))
    assert len(ids) > 32
    found = contrast_of(job, blind_job(job), ids, hidden, steps)
    blind = job_of(model, processor, without_images(chat))
    assert blind.prompt.layout.grids == ()
    some = slice(None) if steps is None else steps
    torch.testing.assert_close(found.with_images, from_logits(job, ids)[some], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.without_images, from_logits(blind, ids)[some], rtol=0, atol=1e-4)
    assert float(found.gain.abs().max()) > 1e-4
    return found


def test_both_are_the_models_own_probabilities(explainer):
    check(explainer.model, explainer.processor, read_chat(picture(), PROMPT))


@pytest.mark.parametrize("name", ["gemma4", "chameleon"])  # caps its logits; overwrites some
def test_logits_as_the_model_returns_them(name):
    built = families.build(name)
    check(built.model, built.processor, read_chat(picture(*built.sizes[0][0]), PROMPT))


def test_of_some_tokens_in_a_conversation(qwen):
    said = {"type": "text", "text": "And this?"}
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]},
        {"role": "assistant", "content": "A tree."},
        {"role": "user", "content": [said, {"type": "image"}]},
    ]
    chat = read_chat([picture(), picture(seed=1)], messages=messages)
    alone = without_images(chat)
    assert alone.messages[0]["content"] == [{"type": "text", "text": PROMPT}]
    assert alone.messages[2]["content"] == [said]
    assert (alone.images, alone.videos) == ([], [])
    assert len(chat.images) == 2
    assert len(check(qwen.model, qwen.processor, chat, [3, 33])) == 2


def test_what_cannot_be_compared_is_refused(qwen):
    chat = read_chat(prompt=PROMPT)
    job = job_of(qwen.model, qwen.processor, chat)
    ids, hidden, _ = force(job, answer_ids(job, ANSWER))
    with pytest.raises(ValueError, match=r"^grounding: expected an image or a video to leave out"):
        contrast_of(job, blind_job(job), ids, hidden)


def test_a_processor_that_needs_images_is_named():
    built = families.build("paligemma")
    chat = read_chat(picture(*built.sizes[0][0]), PROMPT)
    job = job_of(built.model, built.processor, chat)
    ids, hidden, _ = force(job, answer_ids(job, ANSWER))
    with pytest.raises(
        ModelNotSupportedError, match=r"^grounding: expected .* without its images .*PaliGemmaProcessor"
    ):
        contrast_of(job, blind_job(job), ids, hidden)
