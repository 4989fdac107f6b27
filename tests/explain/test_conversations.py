"""Conversations, texts without images, and answers that were made before: asked of whole models."""

from __future__ import annotations

import pytest
import torch
from conftest_models import PROMPT, hooks, picture
from explainers import GREEDY, SAME_MODEL, STEPS, assert_same

from tam_fast.models.inputs import render_prompt
from tam_fast.models.registry import family_of


def user(*parts):
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def assistant(text):
    return {"role": "assistant", "content": text}


def image(seed=0):
    return {"type": "image", "image": picture(seed=seed)}


CHAT = [user(image(), "What is the dog?"), assistant("The dog is red."), user(image(1), "And the cat?")]


def test_a_conversation_of_one_turn_is_a_prompt(explainer):
    plain = explainer.explain(picture(), PROMPT, **GREEDY)
    e = explainer.explain(messages=[user(image(), PROMPT)], **GREEDY)
    assert_same(e, plain)
    assert e.messages == [user({"type": "image"}, PROMPT)]
    assert plain.messages is None


def test_the_next_answer_of_a_conversation(explainer):
    e = explainer.explain(messages=CHAT, **GREEDY)
    assert len(e.images) == 2
    assert (e.prompt, e.source) == ("And the cat?", "generated")
    whole = explainer.explain(messages=CHAT, context="conversation", **GREEDY)
    assert whole.token_ids == e.token_ids
    assert "".join(whole.context_tokens).replace(" ", "").startswith("Whatisthedog?Thedogisred.Andthecat?")
    told = explainer.explain(messages=CHAT, context="conversation", answer=e.token_ids)
    assert_same(told, whole, **SAME_MODEL)
    stream = explainer.stream(messages=CHAT, context="conversation", **GREEDY)
    assert len(list(stream)) == STEPS
    assert_same(stream.explanation, whole)


def test_a_past_turn_is_explained_as_it_stood(explainer):
    recorded = explainer.explain(messages=CHAT, turn=0)
    plain = explainer.explain(picture(), "What is the dog?", answer="The dog is red.")
    assert_same(recorded, plain)
    assert recorded.source == "given"
    other = explainer.explain(messages=CHAT, turn=0, answer="A cat.")
    assert other.text.strip() == "A cat."


def test_what_was_thought_may_be_kept_apart(qwen):
    answer = {"role": "assistant", "content": "A dog.", "reasoning_content": "A cat? No."}
    e = qwen.explain(messages=[user(image(), PROMPT), answer], turn=0)
    assert (e.text, e.thinking) == ("A dog.", "A cat? No.")
    plain = qwen.explain(picture(), PROMPT, answer="<think>\nA cat? No.\n</think>\n\nA dog.")
    assert_same(e, plain)
    with pytest.raises(TypeError, match=r"messages\[1\]\['reasoning_content'\]: expected a string, got int"):
        qwen.explain(messages=[user(image(), PROMPT), {**answer, "reasoning_content": 3}], turn=0)


def test_an_answer_goes_on_from_its_beginning(qwen):
    e = qwen.explain(messages=[user(image(), PROMPT), assistant("A dog and")], **GREEDY)
    assert "".join(e.context_tokens).startswith(f"{PROMPT}A dog and")
    given = qwen.explain(picture(), PROMPT, answer=[*qwen.processor.tokenizer("A dog and")["input_ids"], *e.token_ids])
    # The same states; only the beginning's own states are read where they stand, as context of a prompt is.
    torch.testing.assert_close(e.candidates[0][0].probability, given.candidates[3][0].probability, rtol=1e-4, atol=1e-6)
    told = qwen.explain(messages=[user(image(), PROMPT), assistant("A dog and")], answer=" a cat")
    assert told.text == " a cat"


def test_a_text_without_images_has_relevance_and_no_maps(explainer):
    e = explainer.explain(prompt=PROMPT, **GREEDY)
    assert e.maps.maps.shape == (STEPS, 0)
    assert e.images == []
    assert float(e.relevance.max()) == 1.0
    told = explainer.explain(prompt=PROMPT, answer=e.token_ids)
    assert_same(told, e, **SAME_MODEL)
    stream = explainer.stream(prompt=PROMPT, **GREEDY)
    assert [step.map.shape for step in stream] == [(0,)] * STEPS
    assert_same(stream.explanation, e)


def test_a_processor_that_takes_no_text_alone_says_so(qwen, monkeypatch):
    def call(self, images=None, text=None, **options):
        if images is None:
            raise TypeError("images are needed")
        return original(self, images=images, text=text, **options)

    original = type(qwen.processor).__call__
    monkeypatch.setattr(type(qwen.processor), "__call__", call)
    with pytest.raises(ValueError, match=r"images: expected at least one image, without which .*images are needed"):
        qwen.explain(prompt=PROMPT)


def test_ids_are_explained_after_the_fact(explainer):
    pictures = [picture(), picture(60, 90, seed=1)]
    e = explainer.explain(pictures, PROMPT, **GREEDY)
    processor = explainer.processor
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": PROMPT}]
    chat = render_prompt(family_of(explainer.model), processor, [{"role": "user", "content": content}])
    options = {"return_tensors": "pt", "add_special_tokens": chat.add_special_tokens}
    inputs = processor(images=pictures, text=[chat.text], **options)
    sequence = torch.cat([inputs["input_ids"], torch.tensor([e.token_ids])], dim=1)
    found = explainer.explain_ids(inputs, sequence, images=pictures)
    assert found.source == "given"
    assert found.prompt == PROMPT
    assert_same(found, e, **SAME_MODEL)
    assert_same(explainer.explain_ids(inputs, e.token_ids, images=pictures), found)
    sizes = [picture.size for picture in pictures]
    assert_same(explainer.explain_ids(dict(inputs), sequence[0].tolist(), image_sizes=sizes), found)
    with pytest.raises(ValueError, match="sequence: expected tokens behind"):
        explainer.explain_ids(inputs, inputs["input_ids"], images=pictures)
    with pytest.raises(ValueError, match=r"sequence: expected token ids \(P \+ T,\)"):
        explainer.explain_ids(inputs, sequence.expand(2, -1), images=pictures)
    if explainer.model.config.model_type != "llava":
        with pytest.raises(ValueError, match=r"images: expected those that the inputs were made of, .*image_grid_thw"):
            explainer.explain_ids(inputs, sequence, images=pictures[::-1])
    padded = {**inputs, "attention_mask": torch.zeros_like(inputs["attention_mask"])}
    with pytest.raises(ValueError, match="inputs: expected one prompt without padding"):
        explainer.explain_ids(padded, sequence, images=pictures)
    assert hooks(explainer.model) == 0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"messages": CHAT, "turn": 1}, "turn: .*got 1, whose answer is not recorded"),
        ({"messages": CHAT, "images": picture()}, "images: expected one for each of 0 image parts"),
        ({"messages": CHAT, "context": "all"}, "context: expected 'turn' or 'conversation'"),
        ({"messages": CHAT, "turn": 0, "do_sample": False}, "generate_kwargs: expected none with a recorded answer"),
        ({"images": "https://x.org/a.png"}, "images: expected a path, got the URL"),
        ({"grounding": "all", "images": picture()}, "grounding: expected 'contrast' or None"),
        ({"messages": [user(image(), PROMPT)], "answer": ""}, "answer: expected a text"),
    ],
)
def test_contradictions_are_named_before_anything_is_run(qwen, given, message):
    with pytest.raises(ValueError, match=message):
        qwen.explain(**given)
    assert hooks(qwen.model) == 0


def test_all_but_the_first_two_arguments_are_named(qwen):
    with pytest.raises(TypeError):
        qwen.explain(picture(), PROMPT, "A dog.")
