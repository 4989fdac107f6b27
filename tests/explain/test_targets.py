"""What is explained of an answer: thinking sections apart, the prompt's words, words and spans that are asked for."""

from __future__ import annotations

import re

import pytest
import torch
from conftest_models import PROMPT, picture
from explainers import GREEDY, SAME_MODEL, STEPS

from tam_fast.explain.answers import answer_ids
from tam_fast.explain.targets import check_targets, select
from tam_fast.models.text import TextDecoder

ANSWER = "A dog and a cat sit on the red sofa."
THOUGHT = f"<think>\nIs it a cat? A dog.\n</think>\n\n{ANSWER}"


def test_a_thinking_section_is_context_and_no_target(qwen):
    e = qwen.explain(picture(), PROMPT, answer=THOUGHT)
    assert (e.text, e.thinking) == (ANSWER, "Is it a cat? A dog.")
    assert "".join(e.tokens) == ANSWER
    assert [e.text[start:end] for start, end in e.offsets] == e.tokens
    assert "".join(e.context_tokens).endswith(f"{THOUGHT[:-1]}"), "all that was written before the last token"
    inside = qwen.explain(picture(), PROMPT, answer=THOUGHT, targets="thinking")
    assert (inside.text, inside.thinking) == ("Is it a cat? A dog.", "Is it a cat? A dog.")
    assert inside.steps[-1] < e.steps[0]
    # A map is made of all tokens before its own, whichever of them are explained.
    every = qwen.explain(picture(), PROMPT, answer=f"So. {THOUGHT}")
    assert every.thinking is None, "a mark in the midst of an answer opens no section"
    assert every.text == f"So. {THOUGHT}"


def _ids(explainer, text):
    return explainer.processor.tokenizer(text)["input_ids"]


def test_maps_of_some_tokens_are_those_of_all(qwen):
    everything = qwen.explain(picture(), PROMPT, answer=ANSWER)
    e = qwen.explain(picture(), PROMPT, answer=ANSWER, targets=["dog", re.compile("red sofa"), (0, 1)])
    assert e.text == ANSWER
    assert "".join(e.tokens) == "A dog red sofa"
    assert torch.equal(e.maps.maps, everything.maps.maps[e.steps])
    width = e.relevance.shape[1]
    assert torch.equal(e.relevance, everything.relevance[e.steps, :width])
    assert torch.equal(e.maps.context_ids, everything.maps.context_ids[:width])
    assert e.context_tokens == everything.context_tokens[:width]
    assert [word.text for word in e.words] == ["A", "dog", "red", "sofa"]
    assert torch.equal(e["sofa"], everything["sofa"])
    with pytest.raises(KeyError):
        e["cat"]


def test_fields_of_json_are_asked_for_by_path(qwen):
    answer = '{"dog": [1, 22, 3, 4], "cat": "red"}'
    e = qwen.explain(picture(), PROMPT, answer=answer, targets=["$.dog", "$.cat"])
    assert "".join(e.tokens).replace(" ", "") in ("1,22,3,4red", '1,22,3,4"red', '1,22,3,4red"')
    assert e.path("dog")[0].value == [1, 22, 3, 4]
    with pytest.raises(ValueError, match=r"targets\[0\]: expected something in the answer .*got '\$.bird'"):
        qwen.explain(picture(), PROMPT, answer=answer, targets=["$.bird"])


def test_several_places_of_a_word_are_all_asked_for(qwen):
    e = qwen.explain(picture(), PROMPT, answer="the dog, the dog.", targets=["the dog"])
    assert "".join(e.tokens).replace(" ", "") == "thedogthedog"


def test_the_prompts_words_are_explained_against_those_before_them(qwen):
    e = qwen.explain(picture(), PROMPT, targets="prompt")
    answer = qwen.explain(picture(), PROMPT, **GREEDY)
    assert (e.text, e.source, "".join(e.tokens)) == (PROMPT, "given", PROMPT)
    assert e.token_ids == answer.maps.context_ids[: len(e)].tolist()
    assert e.context_tokens == e.tokens[:-1]
    assert bool((e.relevance.triu() == 0).all()), "no word that comes later"
    # A float64 twin: scores of a word's row, less what the words before it explain.
    hidden, weight = _states(qwen)
    layout = answer.layout
    visual, words = layout.visual_positions, layout.prompt
    ids = torch.tensor(e.token_ids)
    scores = (hidden @ weight[ids].T).relu().T
    for step in range(len(e)):
        maps = scores[:, visual]
        known = scores[step, words[:step]]
        counted = known * (ids[:step] != ids[step])
        causal = maps[step]
        if step and float(counted.sum()) > 0:
            interference = (counted @ maps[:step]) / (counted.sum() + 1e-8)
            scale = (causal @ interference) / (interference @ interference)
            causal = (causal - scale * interference).relu()
        together = torch.cat([causal, known])
        low, high = together.min(), together.max()
        assert high > low or bool(e.maps.flat[step])
        expected = (known - low) / (high - low) if high > low else torch.zeros_like(known)
        assert torch.allclose(e.relevance[step, :step].double(), expected, atol=1e-5)
    unfiltered = qwen.explain(picture(), PROMPT, targets="prompt", kernel_size=1)
    assert torch.allclose(unfiltered.maps.maps[-1].double(), (causal - low) / (high - low), atol=1e-5)


def _states(explainer):
    job = explainer._prepare(picture(), PROMPT, 3)
    with torch.no_grad():
        found = explainer.model.model(**job.model_inputs()).last_hidden_state[0]
    return found.double(), explainer.model.lm_head.weight.detach().double()


def test_candidates_of_the_prompts_words_are_what_was_likely_there(qwen):
    e = qwen.explain(picture(), PROMPT, targets="prompt")
    hidden, weight = _states(qwen)
    job = qwen._prepare(picture(), PROMPT, 3)
    for place, step in zip(job.prompt.layout.prompt.tolist(), e.candidates, strict=True):
        likely = (hidden[place - 1] @ weight.T).softmax(0).topk(3)
        assert [candidate.token_id for candidate in step] == likely.indices.tolist()
        assert [candidate.probability for candidate in step] == pytest.approx(likely.values.tolist(), rel=1e-4)


def test_other_models_explain_their_prompts_too(explainer):
    e = explainer.explain([picture(), picture(seed=2)], PROMPT, targets="prompt", keep_states=True)
    assert e.text.strip() == PROMPT
    assert torch.isfinite(e.maps.maps).all()


@pytest.mark.parametrize(
    "targets, error, message",
    [
        ("words", ValueError, "targets: expected 'answer', 'thinking', 'prompt' or a list .* words go into a list"),
        ([], TypeError, "targets: expected"),
        (3, TypeError, "targets: expected"),
        ([3], TypeError, r"targets\[0\]: expected a word, a regular expression or \(start, end\), got int"),
        ([" "], ValueError, r"targets\[0\]: expected a word"),
        ([(1, 2, 3)], ValueError, r"targets\[0\]: expected a span"),
        (["dog", "zebra"], ValueError, r"targets\[1\]: expected something in the answer 'A dog.*got 'zebra'"),
        ([re.compile("z+")], ValueError, r"targets\[0\]: expected something in the answer .*got 'z\+'"),
        ([(0, 99)], ValueError, r"targets\[0\]: expected 0 <= start < end <= 36, .*got \(0, 99\)"),
        ("thinking", ValueError, "targets: expected an answer with a thinking section, got 'A dog"),
    ],
)
def test_targets_that_are_none(qwen, targets, error, message):
    with pytest.raises(error, match=message):
        qwen.explain(picture(), PROMPT, answer=ANSWER, targets=targets)


def test_what_does_not_go_with_the_prompt_is_refused(qwen):
    for name, value in (("answer", "a"), ("compat", "paper"), ("grounding", "contrast")):
        with pytest.raises(ValueError, match=f"{name}: expected none with targets='prompt'"):
            qwen.explain(picture(), PROMPT, targets="prompt", **{name: value})
    with pytest.raises(ValueError, match="generate_kwargs: expected none with targets='prompt'"):
        qwen.explain(picture(), PROMPT, targets="prompt", do_sample=False)


def test_an_answer_that_only_thinks_is_explained_as_such(qwen):
    cut = "<think>\nIs it a cat, or"
    with pytest.raises(ValueError, match=r"answer: expected tokens behind the thinking section, .*not closed"):
        qwen.explain(picture(), PROMPT, answer=cut)
    assert qwen.explain(picture(), PROMPT, answer=cut, targets="thinking").text == "Is it a cat, or"


def test_a_section_that_the_template_opened(qwen):
    decoder = TextDecoder(qwen.processor.tokenizer)
    for token_id in _ids(qwen, "Is it a cat?\n</think>\n\nA dog."):
        decoder.append(token_id)
    found = select(decoder, "<|im_start|>assistant\n<think>\n", "answer")
    assert (found.text, found.thinking) == ("A dog.", "Is it a cat?")
    assert select(decoder, "<|im_start|>assistant\n", "answer").thinking is None


def test_marks_of_thinking_are_tokens_where_the_tokenizer_has_them(qwen, monkeypatch):
    # This tokenizer knows no such marks: others of its tokens stand for them.
    monkeypatch.setattr("tam_fast.explain.answers.MARKS", (("<|vision_pad|>", "<|vision_end|>"),))
    ids = answer_ids(qwen._prepare(picture(), PROMPT, 3), "<|vision_pad|>cat<|vision_end|> dog <|im_end|>.")
    number = qwen.processor.tokenizer.convert_tokens_to_ids
    assert ids[0] == number("<|vision_pad|>"), "a mark is what it says"
    assert ids.count(number("<|vision_end|>")) == 1
    assert number("<|im_end|>") not in ids, "any other control token is text"


def test_targets_are_checked_before_anything_is_run():
    assert check_targets(re.compile("a")) == [re.compile("a")]
    assert check_targets(("dog", "cat")) == ["dog", "cat"]


def test_a_generated_answer_can_be_cut_to_some_tokens(qwen):
    everything = qwen.explain(picture(), PROMPT, **GREEDY)
    e = qwen.explain(picture(), PROMPT, targets=[(0, 2)], **GREEDY)
    assert e.source == "generated"
    assert len(e) < STEPS
    torch.testing.assert_close(e.maps.maps, everything.maps.maps[: len(e)], **SAME_MODEL)


def test_texts_of_several_parts_and_turns_do_not_run_together(qwen):
    image = {"type": "image", "image": picture()}
    said = [{"type": "text", "text": "Is it a dog"}, image, {"type": "text", "text": "or a cat"}]
    messages = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "and the sofa?"},
    ]
    e = qwen.explain(messages=messages, targets="prompt", context="conversation")
    assert e.text == "Is it a dog\nor a cat\nand the sofa?", "and nothing that the assistant said"
    assert [word.text for word in e.words] == ["Is", "it", "a", "dog", "or", "a", "cat", "and", "the", "sofa"]
    assert [e.text[start:end] for start, end in e.offsets] == e.tokens
    assert qwen.explain(messages=messages, targets="prompt").text == "and the sofa?"
    for given in ({"prefix": "A"}, {}):
        chat = messages[:1] if given else messages[:2]
        with pytest.raises(ValueError, match=r"expected (none with|a last one of a user with) targets='prompt'"):
            qwen.explain(messages=chat, targets="prompt", **given)


def test_spans_of_an_answer_that_its_tokens_spell_otherwise_are_refused(qwen, monkeypatch):
    from tam_fast.explain import answers

    job = qwen._prepare(picture(), PROMPT, 3)
    ids = answer_ids(job, "é dog")
    answers.check_spans(job, "é dog", ids, [(2, 5)])
    answers.check_spans(job, "e\u0301 dog", ids, ["dog"])
    with pytest.raises(ValueError, match=r"targets: expected \(start, end\) of an answer as its tokens spell it"):
        answers.check_spans(job, "e\u0301 dog", ids, [(3, 6)])


def test_a_dollar_is_no_path(qwen):
    assert "".join(qwen.explain(picture(), PROMPT, answer="it costs $5 today", targets=["$5"]).tokens).strip() == "$5"


def test_answers_behind_a_section_that_the_template_opened(qwen):
    import copy

    from tam_fast import Explainer

    processor = copy.copy(qwen.processor)
    processor.chat_template += "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
    opening = Explainer(qwen.model, processor)
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]
    for e in (
        opening.explain(picture(), PROMPT, answer="A dog."),
        opening.explain(messages=messages, turn=0),
        opening.explain(picture(), PROMPT, answer="A cat?\n</think>\n\nA dog."),
    ):
        assert e.text == "A dog."
    reasoned = [messages[0], {**messages[1], "reasoning_content": "A cat?"}]
    e = opening.explain(messages=reasoned, turn=0)
    assert (e.text, e.thinking) == ("A dog.", "A cat?")
    begun = opening.explain(picture(), PROMPT, prefix="A dog and", answer=" a cat")
    assert begun.text == " a cat"
    assert "".join(begun.context_tokens).startswith(f"{PROMPT}A dog and")
