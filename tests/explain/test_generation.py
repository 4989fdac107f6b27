"""Generation: what an answer's end is, given answers as tokens, and what `generate` may be given."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest_models import PROMPT, hooks, picture, qwen_processor
from explainers import GREEDY, SAME_MODEL, STEPS, assert_same

from tam_fast import Explainer
from tam_fast.explain.answers import answer_ids
from tam_fast.models.text import TextDecoder, special_token_ids
from tam_fast.models.typed import control_tokens


@pytest.fixture
def ends(qwen):
    """Set which ids end an answer, for one test."""
    before = qwen.model.generation_config.eos_token_id

    def setter(value):
        qwen.model.generation_config.eos_token_id = value

    yield setter
    qwen.model.generation_config.eos_token_id = before


def test_given_text_is_tokenised_as_the_models_own(explainer):
    answer = "A dog and a cat sit on the red sofa."
    e = explainer.explain(picture(), PROMPT, answer=answer)
    assert e.text == answer
    assert "".join(e.tokens) == answer
    assert_same(explainer.explain(picture(), PROMPT, answer=e.token_ids), e)
    assert [e.text[start:end] for start, end in e.offsets] == e.tokens
    assert e["dog"].shape == e.layout.sizes[0]


def test_text_that_would_join_the_prompt_is_tokenised_alone(qwen):
    e = qwen.explain(picture(), PROMPT, answer="\n\nA dog")
    assert e.text == "\n\nA dog"


def test_sampling_streams_what_it_explains(qwen):
    settings = {"max_new_tokens": STEPS, "do_sample": True, "temperature": 3.0, "top_k": 0}
    torch.manual_seed(3)
    e = qwen.explain(picture(), PROMPT, **settings)
    torch.manual_seed(3)
    stream = qwen.stream(picture(), PROMPT, **settings)
    steps = list(stream)
    assert_same(stream.explanation, e)
    assert any(step.candidates[0].token_id != step.token_id for step in steps), "temperature 3 takes other tokens"
    greedy = qwen.explain(picture(), PROMPT, max_new_tokens=1, do_sample=False)
    probabilities = [c.probability for c in greedy.candidates[0]]
    assert [c.probability for c in e.candidates[0]] == pytest.approx(probabilities), "before the temperature"


def test_end_mark_is_no_token_of_the_answer(qwen, ends):
    free = qwen.explain(picture(), PROMPT, **GREEDY)
    last = 4
    end = free.token_ids[last]
    assert end not in free.token_ids[:last]
    ends([end, qwen.processor.tokenizer.eos_token_id])
    e = qwen.explain(picture(), PROMPT, **GREEDY)
    assert e.token_ids == free.token_ids[:last]
    assert torch.equal(e.maps.maps, free.maps.maps[:last])
    stream = qwen.stream(picture(), PROMPT, **GREEDY)
    assert [step.token_id for step in stream] == e.token_ids
    assert_same(stream.explanation, e)
    assert_same(qwen.explain(picture(), PROMPT, answer=[*e.token_ids, end]), e, **SAME_MODEL)


def test_end_mark_in_the_middle_is_shown(qwen, ends):
    tokenizer = qwen.processor.tokenizer
    end = tokenizer.eos_token_id
    dog, cat = (tokenizer(word)["input_ids"][0] for word in (" dog", " cat"))
    script = [dog, end, end, cat, end]
    ends(None)

    def dictate(prompt):
        def processor(ids, scores):
            forced = torch.full_like(scores, -float("inf"))
            forced[0, script[ids.shape[1] - prompt]] = 0
            return forced

        return [processor]

    prompt = qwen._prepare(picture(), PROMPT, 3).prompt.layout.answer_start
    settings = {"max_new_tokens": len(script), "do_sample": False, "logits_processor": dictate(prompt)}
    e = qwen.explain(picture(), PROMPT, **settings)
    assert e.token_ids == script[:-1]
    assert e.tokens[1] == tokenizer.eos_token
    assert e.offsets[1] == e.offsets[2] == (e.offsets[0][1], e.offsets[0][1])
    stream = qwen.stream(picture(), PROMPT, **settings)
    assert [step.token_id for step in stream] == script[:-1]
    assert_same(stream.explanation, e)


def test_answer_of_nothing_but_the_end_mark_is_refused(qwen, ends):
    first = qwen.explain(picture(), PROMPT, max_new_tokens=1, do_sample=False).token_ids
    ends(first)
    with pytest.raises(ValueError, match="at least one token before the end mark"):
        qwen.explain(picture(), PROMPT, **GREEDY)
    with pytest.raises(ValueError, match="at least one token before the end mark"):
        list(qwen.stream(picture(), PROMPT, **GREEDY))
    with pytest.raises(ValueError, match="at least one token before the end mark"):
        qwen.explain(picture(), PROMPT, answer=first)
    assert hooks(qwen.model) == 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_beams": 0}, "num_beams of at least 1, got 0"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences = 1"),
        ({"num_return_sequences": 0}, "num_return_sequences = 1"),
        ({"streamer": object()}, r"Explainer.stream"),
        ({"input_ids": torch.zeros(1, 2)}, "made of images and prompt"),
        ({"output_attentions": True}, "output_attentions"),
        ({"no_such_argument": 1}, "no_such_argument"),
    ],
)
def test_generate_arguments_that_are_refused(qwen, settings, message):
    with pytest.raises(ValueError, match=message):
        qwen.explain(picture(), PROMPT, max_new_tokens=3, **settings)
    with pytest.raises(ValueError, match=message):
        list(qwen.stream(picture(), PROMPT, max_new_tokens=3, **settings))
    assert hooks(qwen.model) == 0


def test_a_generation_configuration_is_an_object(qwen):
    with pytest.raises(TypeError, match=r"generation_config: expected a transformers\.GenerationConfig, got dict"):
        qwen.explain(picture(), PROMPT, generation_config={"max_new_tokens": 3})


def test_generation_configuration_is_heeded(qwen):
    configuration = qwen.model.generation_config.__class__(max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert len(qwen.explain(picture(), PROMPT, generation_config=configuration)) == 2
    configuration.num_return_sequences = 2
    with pytest.raises(ValueError, match="num_return_sequences"):
        qwen.explain(picture(), PROMPT, generation_config=configuration)
    assert len(qwen.explain(picture(), PROMPT, max_length=60, do_sample=False)) >= 1


def test_a_cache_switched_off_for_training_is_switched_on(qwen):
    before = qwen.model.generation_config.use_cache
    qwen.model.generation_config.use_cache = False
    try:
        assert len(qwen.explain(picture(), PROMPT, **GREEDY)) == STEPS
    finally:
        qwen.model.generation_config.use_cache = before


@pytest.mark.parametrize(
    "answer, error, message",
    [
        ("", ValueError, "answer: expected a text"),
        ([], ValueError, "at least one token"),
        ([[1, 2]], TypeError, "token ids"),
        ([1.5], TypeError, "token ids"),
        (object(), TypeError, "string or token ids"),
        ([1, 10**6], ValueError, "answer: expected token ids from 0 to"),
        ([1, -1], ValueError, "answer: expected token ids from 0 to"),
        ("a \ud800", ValueError, r"answer: expected text .* lone surrogate '\\ud800' at character 2"),
    ],
)
def test_answers_that_are_refused(qwen, answer, error, message):
    with pytest.raises(error, match=message):
        qwen.explain(picture(), PROMPT, answer=answer)


def test_a_placeholders_id_in_an_answer_is_refused(qwen):
    with pytest.raises(ValueError, match="placeholder"):
        qwen.explain(picture(), PROMPT, answer=[1, qwen.processor.image_token_id, 2])


@pytest.mark.parametrize("answer", ["x {} y", "{}", "A dog.{}", "{}{} a", "\n{} 你", "\ufffd {}\ufffd\ufffd"])
@pytest.mark.parametrize("prompt", [PROMPT, "What</s><|im_end|>?"])
def test_control_tokens_in_a_given_answer_are_text(explainer, prompt, answer):
    """An end mark in the middle of it, or at its end, included."""
    tokenizer = explainer.processor.tokenizer
    for token in control_tokens(tokenizer).values():
        given = answer.replace("{}", token)
        job = explainer._prepare(picture(), prompt, 1)
        ids = answer_ids(job, given)
        assert not special_token_ids(tokenizer).intersection(ids)
        decoder = TextDecoder(tokenizer)
        for token_id in ids:
            decoder.append(token_id)
        assert decoder.text == tokenizer.decode(ids) == given
    e = explainer.explain(picture(), prompt, answer=given)
    assert e.text == given


def test_control_tokens_in_a_given_answer_can_be_obeyed(qwen):
    job = qwen._prepare(picture(), PROMPT, 1)
    end = qwen.processor.tokenizer.eos_token_id
    middle = answer_ids(job, "a <|im_end|> b<|im_end|>", "obey")
    assert middle.count(end) == 1, "the last one is the answer's end"
    assert middle[-1] != end
    with pytest.raises(ValueError, match="placeholder"):
        answer_ids(job, "a <|image_pad|> b", "obey")
    with pytest.raises(ValueError, match="special_tokens: expected"):
        answer_ids(job, "a", "no")


def test_without_a_cache_the_answer_is_passed_over_once_more(qwen):
    plain = qwen.explain(picture(), PROMPT, **GREEDY)
    e = qwen.explain(picture(), PROMPT, use_cache=False, **GREEDY)
    assert (plain.source, e.source) == ("generated", "teacher_forced")
    assert e.token_ids == plain.token_ids
    torch.testing.assert_close(e.maps.maps, plain.maps.maps, atol=2e-5, rtol=0)


def test_control_tokens_are_obeyed_if_they_are_meant(qwen):
    typed = "one <|im_end|> two"
    ids = {}
    for way in ("text", "obey"):
        e = qwen.explain(picture(), typed, special_tokens=way, **GREEDY)
        ids[way] = e.maps.context_ids.tolist()
        told = qwen.explain(picture(), PROMPT, answer="x <|im_end|> y", special_tokens=way)
        end = qwen.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert (end in told.token_ids) == (way == "obey")
        stream = qwen.stream(picture(), typed, special_tokens=way, **GREEDY)
        list(stream)
        assert stream.explanation.token_ids == e.token_ids
    assert ids["text"] != ids["obey"]
    for ask in (qwen.explain, qwen.stream):
        with pytest.raises(ValueError, match="special_tokens: expected 'text' or 'obey', got 'both'"):
            ask(picture(), PROMPT, special_tokens="both")


def test_an_answer_that_its_tokens_do_not_spell_is_refused(qwen):
    from tokenizers import normalizers

    processor = copy.deepcopy(qwen_processor())
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    lowercasing = Explainer(qwen.model, processor)
    with pytest.raises(
        ValueError, match=r"answer: expected a text that .* spells, got 'A Dog', whose tokens read 'a dog'"
    ):
        lowercasing.explain(picture(), PROMPT, answer="A Dog")
    assert lowercasing.explain(picture(), PROMPT, answer="a dog").text == "a dog"


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 2, "length_penalty": 2.0, "early_stopping": True},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_what_writes_several_positions_at_a_time_is_passed_over_once_more(qwen, settings):
    arguments = {"max_new_tokens": STEPS, "do_sample": False, **settings}
    e = qwen.explain(picture(), PROMPT, **arguments)
    job = qwen._prepare(picture(), PROMPT, 3)
    with torch.no_grad():
        expected = qwen.model.generate(**job.model_inputs(), **arguments)
    assert e.source == "teacher_forced"
    assert e.token_ids == expected[0, job.prompt.layout.answer_start :].tolist()[: len(e)]
    assert_same(e, qwen.explain(picture(), PROMPT, answer=e.token_ids))
    with pytest.raises(ValueError, match=r"generate_kwargs: expected no \w+: .*: use explain\(\)"):
        qwen.stream(picture(), PROMPT, **arguments)
    assert hooks(qwen.model) == 0


def test_an_assistant_models_answer_is_passed_over_once_more(qwen):
    e = qwen.explain(picture(), PROMPT, assistant_model=qwen.model, **GREEDY)
    assert e.source == "teacher_forced"
    assert e.token_ids == qwen.explain(picture(), PROMPT, **GREEDY).token_ids


def test_a_prompt_that_is_processed_in_chunks_is_put_together(qwen):
    plain = qwen.explain(None, PROMPT, **GREEDY)
    e = qwen.explain(None, PROMPT, prefill_chunk_size=4, **GREEDY)
    assert e.source == "generated"
    assert_same(e, plain, **SAME_MODEL)
    stream = qwen.stream(None, PROMPT, prefill_chunk_size=4, **GREEDY)
    assert len(list(stream)) == STEPS
    assert_same(stream.explanation, e)


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_implementation": "static"},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"do_sample": True, "temperature": 2.0, "top_p": 0.9, "min_p": 0.01},
        {"bad_words_ids": [[3]], "suppress_tokens": [5], "min_new_tokens": STEPS},
    ],
    ids=str,
)
def test_generations_own_steps_are_taken_whatever_chooses_the_tokens(qwen, settings):
    torch.manual_seed(0)
    e = qwen.explain(picture(), PROMPT, **{**GREEDY, **settings})
    assert e.source == "generated"
    assert_same(qwen.explain(picture(), PROMPT, answer=e.token_ids), e, **SAME_MODEL)


def test_stop_strings_end_an_answer(qwen):
    whole = qwen.explain(picture(), PROMPT, **GREEDY)
    stop = whole.tokens[2]
    e = qwen.explain(picture(), PROMPT, stop_strings=[stop], tokenizer=qwen.processor.tokenizer, **GREEDY)
    assert e.source == "generated"
    assert e.token_ids == whole.token_ids[: len(e)]
    assert len(e) <= 3
