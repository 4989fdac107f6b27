"""Explainer: generated, streamed and given answers have the same maps; nothing is kept that need not be."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest_models import hooks, llava_model, llava_processor, picture, qwen_model, qwen_processor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import tam_fast
from tam_fast import Explainer, ModelNotSupportedError, activation_maps

PROMPT = "What is in the picture?"
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


@pytest.fixture(scope="module", params=["qwen2", "qwen2.5", "llava"])
def explainer(request):
    return Explainer(*make(request.param))


@pytest.fixture(scope="module")
def qwen():
    return Explainer(*make("qwen2"))


@pytest.fixture
def ends(qwen):
    """Set which ids end an answer, for one test."""
    before = qwen.model.generation_config.eos_token_id

    def setter(value):
        qwen.model.generation_config.eos_token_id = value

    yield setter
    qwen.model.generation_config.eos_token_id = before


@pytest.fixture(autouse=True)
def nothing_stays():
    threads = threading.active_count()
    yield
    gc.collect()
    assert threading.active_count() == threads


def assert_same(one, other, **tolerance):
    assert one.token_ids == other.token_ids
    assert (one.tokens, one.text, one.offsets) == (other.tokens, other.text, other.offsets)
    assert one.context_tokens == other.context_tokens
    assert one.layout == other.layout
    for name in ("maps", "relevance", "scale", "flat", "context_ids", "target_ids"):
        found, expected = getattr(one.maps, name), getattr(other.maps, name)
        assert found.dtype == expected.dtype
        if tolerance and found.is_floating_point():
            torch.testing.assert_close(found, expected, **tolerance)
        else:
            assert torch.equal(found, expected), name
    for step, others in zip(one.candidates, other.candidates, strict=True):
        assert [candidate.token_id for candidate in step] == [candidate.token_id for candidate in others]
        assert [candidate.token for candidate in step] == [candidate.token for candidate in others]
        assert [c.probability for c in step] == pytest.approx([c.probability for c in others], rel=1e-4, abs=1e-9)


# What comes out ----------------------------------------------------------------------------------


def test_explanation_of_a_generated_answer(explainer):
    model, processor = explainer.model, explainer.processor
    image = picture(150, 70)
    e = explainer.explain(image, PROMPT, **GREEDY)
    found = explainer._prepare(image, PROMPT, 3).prompt
    with torch.no_grad():
        output = model.generate(**found.inputs, **GREEDY, output_hidden_states=True, return_dict_in_generate=True)
    generated = output.sequences[0, found.layout.answer_start :].tolist()
    assert generated[: len(e)] == e.token_ids
    assert set(generated[len(e) :]) <= {processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id}
    rows = len(found.input_ids) + len(e) - 1
    hidden = torch.cat([step[-1][0] for step in output.hidden_states])[:rows]
    ids = output.sequences[0, : rows + 1]
    maps = activation_maps(hidden, model.lm_head.weight, ids, found.layout)
    for name in ("maps", "relevance", "scale", "flat", "context_ids", "target_ids"):
        assert torch.equal(getattr(e.maps, name), getattr(maps, name)), name
    assert e.prompt == PROMPT
    assert e.images[0].size == (150, 70)
    assert "".join(e.context_tokens).strip().startswith(PROMPT)
    assert set(e.elapsed) == {"prepare", "generate", "maps", "total"}
    assert e.model == type(model).__name__
    assert len(e) > 1
    for token_id, step in zip(e.token_ids, e.candidates, strict=True):
        assert len(step) == 3
        assert step[0].token_id == token_id, "greedy"
        assert 1 >= step[0].probability >= step[1].probability >= step[2].probability >= 0
    assert hooks(model) == 0


def test_given_answer_has_the_maps_of_its_generation(explainer):
    images = [picture(120, 60, seed=1), picture(60, 90, seed=2)]
    e = explainer.explain(images, PROMPT, **GREEDY)
    forced = explainer.explain(images, PROMPT, answer=e.token_ids)
    assert_same(forced, e, **SAME_MODEL)
    assert set(forced.elapsed) == {"prepare", "forward", "maps", "total"}
    assert_same(explainer.explain(images, PROMPT, answer=torch.tensor(e.token_ids)), forced)
    assert_same(explainer.explain(images, PROMPT, answer=np.array(e.token_ids)), forced)
    assert hooks(explainer.model) == 0


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


def test_stream_gives_the_same_bits(explainer):
    image = picture(150, 70)
    e = explainer.explain(image, PROMPT, **GREEDY)
    stream = explainer.stream(image, PROMPT, **GREEDY)
    assert stream.layout == e.layout
    steps = []
    for step in stream:
        steps.append(step)
        with pytest.raises(RuntimeError, match="iterated to its end"):
            _ = stream.explanation
    assert_same(stream.explanation, e)
    assert [c.probability for step in steps for c in step.candidates] == [
        c.probability for step in e.candidates for c in step
    ]
    assert [step.index for step in steps] == list(range(len(e)))
    assert [step.token for step in steps] == e.tokens
    assert [step.token_id for step in steps] == e.token_ids
    assert steps[-1].text == e.text
    for index, step in enumerate(steps):
        assert torch.equal(step.map, e.maps.maps[index])
        assert torch.equal(step.grid(0), e.maps.grid(index, 0))
        assert torch.equal(step.relevance, e.relevance[index, : step.relevance.numel()])
        assert step.scale == float(e.maps.scale[index])
        assert step.flat == bool(e.maps.flat[index])
    with pytest.raises(IndexError, match="g: expected"):
        steps[0].grid(1)
    with pytest.raises(StopIteration):
        next(stream)
    assert set(stream.explanation.elapsed) == {"prepare", "generate", "maps", "total"}
    assert hooks(explainer.model) == 0


# What nobody asks for -----------------------------------------------------------------------------


@pytest.fixture
def work(monkeypatch):
    """Count tokens that were decoded, maps that were made one by one, and answers whose maps were made together."""
    done = {"decoded": 0, "single": 0, "whole": 0}

    def counting(owner, name, key):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            done[key] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    counting(tam_fast.explainer._Writer, "_append", "decoded")
    counting(tam_fast.ActivationMapStream, "append", "single")
    counting(tam_fast.explainer, "activation_maps", "whole")
    return done


def assert_step(step, e):
    index = step.index
    assert torch.equal(step.map, e.maps.maps[index])
    assert torch.equal(step.relevance, e.relevance[index, : e.layout.prompt.numel() + index])
    assert (step.scale, step.flat) == (float(e.maps.scale[index]), bool(e.maps.flat[index]))
    assert (step.token, step.token_id) == (e.tokens[index], e.token_ids[index])
    assert step.candidates == e.candidates[index]


def test_steps_do_no_work_until_they_are_read(explainer, work):
    e = explainer.explain(picture(), PROMPT, **GREEDY)
    texts = [step.text for step in explainer.stream(picture(), PROMPT, **GREEDY)]
    assert texts[-1] == e.text
    work.update(decoded=0, single=0, whole=0)
    stream = explainer.stream(picture(), PROMPT, **GREEDY)
    steps = []
    for step in stream:
        steps.append(step)
        assert work == {"decoded": 0, "single": 0, "whole": 0}
    assert work == {"decoded": 0, "single": 0, "whole": 1}, "maps that nobody has read are made together"
    assert_step(steps[2], e)
    assert work == {"decoded": 3, "single": 0, "whole": 1}
    assert_same(stream.explanation, e)
    for step, text in zip(steps, texts, strict=True):
        assert_step(step, e)
        assert step.text == text, "as it was then"


@pytest.mark.parametrize("read", [{0}, {1, 2}, {3}, {0, 5, 7}, set(range(8))], ids=str)
def test_any_steps_may_be_read_at_once_and_the_others_later(qwen, work, read):
    e = qwen.explain(picture(), PROMPT, **GREEDY)
    stream = qwen.stream(picture(), PROMPT, **GREEDY)
    steps = []
    for step in stream:
        steps.append(step)
        if step.index in read:
            assert_step(step, e)
            assert work["single"] == step.index + 1
    assert len(steps) == STEPS
    assert_same(stream.explanation, e)
    for step in steps:
        assert_step(step, e)
    assert work["single"] == STEPS


@pytest.mark.parametrize("end", ["close", "drop", "error", "finish"])
def test_steps_outlive_the_stream_but_keep_no_states(qwen, end, monkeypatch):
    e = qwen.explain(picture(), PROMPT, **GREEDY)
    made, handles = [], []
    handles.append(
        qwen.model.get_decoder().register_forward_hook(
            lambda module, args, output: made.append(StorageWeakRef(output.last_hidden_state.untyped_storage()))
        )
    )
    if end == "error":
        handles.append(failing(qwen.model, 5))
    try:
        stream = qwen.stream(picture(), PROMPT, **GREEDY)
        steps = [next(stream) for _ in range(4)]
        if end == "close":
            stream.close()
        elif end == "error":
            with pytest.raises(ZeroDivisionError):
                next(stream)
        elif end == "finish":
            steps += stream
        del stream
    finally:
        for handle in handles:
            handle.remove()
    gc.collect()
    assert made
    assert all(storage.expired() for storage in made)
    for step in steps:
        assert_step(step, e)
        assert step.text == e.text[: e.offsets[step.index][1]] or "\N{REPLACEMENT CHARACTER}" in step.text
    assert hooks(qwen.model) == 0


def test_a_step_travels_without_its_stream(qwen):
    e = qwen.explain(picture(), PROMPT, **GREEDY)
    stream = qwen.stream(picture(), PROMPT, **GREEDY)
    steps = [pickle.loads(pickle.dumps(step)) for step in stream]
    for step in steps:
        assert_step(step, e)
        assert torch.equal(step.grid(0), e.maps.grid(step.index, 0))


def test_steps_are_read_by_other_threads_while_the_loop_goes_on(qwen):
    e = qwen.explain(picture(), PROMPT, **GREEDY)
    with ThreadPoolExecutor(4) as pool:
        stream = qwen.stream(picture(), PROMPT, **GREEDY)
        checks = [pool.submit(assert_step, step, e) for step in stream for _ in range(3)]
        for check in checks:
            check.result()
    assert_same(stream.explanation, e)


@pytest.mark.parametrize("compat", ["official", "paper"])
def test_compat_and_kernel_size_reach_the_maps(qwen, compat):
    e = qwen.explain(picture(), PROMPT, **GREEDY)
    other = qwen.explain(picture(), PROMPT, compat=compat, **GREEDY)
    assert other.token_ids == e.token_ids
    assert not torch.equal(other.maps.maps, e.maps.maps)
    plain = qwen.explain(picture(), PROMPT, kernel_size=1, **GREEDY)
    assert not torch.equal(plain.maps.maps, e.maps.maps)
    *_, last = stream = list(qwen.stream(picture(), PROMPT, kernel_size=1, **GREEDY))
    assert torch.equal(last.map, plain.maps.maps[len(stream) - 1])
    with pytest.raises(ValueError, match="compat"):
        qwen.explain(picture(), PROMPT, compat="other", **GREEDY)


def test_attention_implementations_agree_and_are_left_alone(explainer):
    model = explainer.model
    expected = explainer.explain(picture(), PROMPT, **GREEDY)
    before = model.config._attn_implementation
    assert before == "sdpa"
    try:
        model.set_attn_implementation("eager")
        assert_same(explainer.explain(picture(), PROMPT, **GREEDY), expected, **SAME_MODEL)
        assert model.config._attn_implementation == "eager"
    finally:
        model.set_attn_implementation(before)


def test_half_precision(explainer):
    processor = explainer.processor
    if "Llava" in type(processor).__name__:
        model = llava_model(processor).to(torch.bfloat16)
    else:
        model = qwen_model(processor, version=explainer.model.config.model_type[4:-3].replace("_", "."))
        model = model.to(torch.bfloat16)
    half = Explainer(model, processor)
    e = half.explain(picture(), PROMPT, **GREEDY)
    assert e.maps.maps.dtype == torch.float32
    # bfloat16 has 8 bits: the two ways round states differently by up to 2^-8 of the largest, a few times over.
    forced = half.explain(picture(), PROMPT, answer=e.token_ids)
    torch.testing.assert_close(forced.maps.maps, e.maps.maps, rtol=0, atol=0.1)


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


# The end mark ------------------------------------------------------------------------------------


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


# Stopping and failing ----------------------------------------------------------------------------


def test_leaving_the_loop_stops_generation(qwen):
    stream = qwen.stream(picture(), PROMPT, max_new_tokens=200, do_sample=False)
    calls = []
    handle = qwen.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    try:
        for step in stream:
            if step.index == 1:
                break
        seen = len(calls)
        assert seen == 2, "the model runs while the loop waits, and only then"
        stream.close()
        stream.close()
        assert len(calls) == seen
    finally:
        handle.remove()
    assert hooks(qwen.model) == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "tam_fast-stream"]
    with pytest.raises(StopIteration):
        next(stream)
    with pytest.raises(RuntimeError, match="closed after 2 tokens"):
        _ = stream.explanation


def test_dropping_the_stream_or_never_starting_it_leaves_nothing(qwen):
    stream = qwen.stream(picture(), PROMPT, **GREEDY)
    next(stream)
    del stream
    gc.collect()
    assert hooks(qwen.model) == 0
    del qwen.stream(picture(), PROMPT, **GREEDY).layout
    with qwen.stream(picture(), PROMPT, **GREEDY) as stream:
        next(stream)
    assert hooks(qwen.model) == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "tam_fast-stream"]


def failing(model, call):
    """Let the lm_head fail at its n-th call."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == call:
            raise ZeroDivisionError("in the model")

    return model.lm_head.register_forward_hook(hook)


def test_errors_of_the_model_come_out_and_leave_nothing(qwen):
    handle = failing(qwen.model, 3)
    try:
        with pytest.raises(ZeroDivisionError, match="in the model"):
            qwen.explain(picture(), PROMPT, **GREEDY)
    finally:
        handle.remove()
    assert hooks(qwen.model) == 0
    handle = failing(qwen.model, 3)
    stream = qwen.stream(picture(), PROMPT, **GREEDY)
    try:
        assert [next(stream).index, next(stream).index] == [0, 1]
        with pytest.raises(ZeroDivisionError, match="in the model"):
            next(stream)
    finally:
        handle.remove()
    assert hooks(qwen.model) == 0
    with pytest.raises(RuntimeError, match="failed after 2 tokens"):
        _ = stream.explanation
    with pytest.raises(StopIteration):
        next(stream)


def test_the_model_can_be_used_between_steps(qwen):
    import transformers

    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 17):
        pytest.skip("older Qwen-VL models keep the position offset of the last prompt, which another prompt changes")
    e = qwen.explain(picture(), PROMPT, **GREEDY)
    stream = qwen.stream(picture(), PROMPT, **GREEDY)
    for step in stream:
        if step.index == 1:
            other = qwen.explain(picture(60, 60, seed=5), "the cat?", max_new_tokens=3, do_sample=False)
    assert len(other) == 3
    assert_same(stream.explanation, e)


def test_states_that_are_not_finite_are_named(qwen):
    weight = qwen.model.model.language_model.norm.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0] = float("nan")
        with pytest.raises(ValueError, match="NaN or Inf"):
            qwen.explain(picture(), PROMPT, answer="the dog")
        with pytest.raises(ValueError, match=r"NaN or Inf at position \d+"):
            list(qwen.stream(picture(), PROMPT, **GREEDY))
        stream = qwen.stream(picture(), PROMPT, **GREEDY)
        step = next(stream)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"NaN or Inf at position \d+"):
                _ = step.map
        with pytest.raises(ValueError, match=r"NaN or Inf at position \d+"):
            list(stream)
        with pytest.raises(RuntimeError, match="failed"):
            _ = stream.explanation
        step = next(stream := qwen.stream(picture(), PROMPT, **GREEDY))
        stream.close()
        with pytest.raises(ValueError, match=r"NaN or Inf at position \d+"):
            _ = step.scale
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert hooks(qwen.model) == 0


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_beams": 3}, "num_beams = 1 .*got 3"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences = 1"),
        ({"assistant_model": object()}, "assisted"),
        ({"prompt_lookup_num_tokens": 3}, "assisted"),
        ({"streamer": object()}, r"Explainer.stream"),
        ({"input_ids": torch.zeros(1, 2)}, "made of images and prompt"),
        ({"output_attentions": True}, "output_attentions"),
        ({"prefill_chunk_size": 4}, "one piece"),
        ({"use_cache": False}, "use_cache=True"),
        ({"no_such_argument": 1}, "no_such_argument"),
    ],
)
def test_generate_arguments_that_are_refused(qwen, settings, message):
    with pytest.raises(ValueError, match=message):
        qwen.explain(picture(), PROMPT, max_new_tokens=3, **settings)
    with pytest.raises(ValueError, match=message):
        list(qwen.stream(picture(), PROMPT, max_new_tokens=3, **settings))
    assert hooks(qwen.model) == 0


def test_generation_configuration_is_heeded(qwen):
    configuration = qwen.model.generation_config.__class__(max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert len(qwen.explain(picture(), PROMPT, generation_config=configuration)) == 2
    configuration.num_beams = 2
    with pytest.raises(ValueError, match="num_beams"):
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
        ("a <|image_pad|> b", ValueError, "placeholder"),
    ],
)
def test_answers_that_are_refused(qwen, answer, error, message):
    with pytest.raises(error, match=message):
        qwen.explain(picture(), PROMPT, answer=answer)


def test_arguments_that_are_refused(qwen):
    with pytest.raises(ValueError, match="prompt: expected a text"):
        qwen.explain(picture(), "")
    with pytest.raises(ValueError, match="prompt: expected a text"):
        qwen.stream(picture(), " ")
    with pytest.raises(ValueError, match="at least one image"):
        qwen.explain([], PROMPT)
    with pytest.raises(ValueError, match="expected none with answer=, got temperature"):
        qwen.explain(picture(), PROMPT, answer="the dog", temperature=1.0)
    with pytest.raises(ValueError, match="kernel_size"):
        qwen.explain(picture(), PROMPT, answer="the dog", kernel_size=2)
    qwen.model.train()
    try:
        with pytest.raises(ValueError, match=r"model.eval\(\)"):
            qwen.explain(picture(), PROMPT)
    finally:
        qwen.model.eval()


def test_models_that_are_refused(qwen):
    model, processor = qwen.model, qwen.processor
    with pytest.raises(TypeError, match="processor: expected a processor with image_processor"):
        Explainer(model, processor.tokenizer)
    with pytest.raises(TypeError, match="model_type"):
        Explainer(object(), processor)
    head = model.lm_head
    try:
        model.lm_head = torch.nn.Identity()
        with pytest.raises(ModelNotSupportedError, match="get_output_embeddings"):
            Explainer(model, processor)
        quantised = torch.nn.Module()
        quantised.weight = torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
        model.lm_head = quantised
        with pytest.raises(ModelNotSupportedError, match=r"int8.*quantisation"):
            Explainer(model, processor)
        model.lm_head = torch.nn.Linear(4, 3, device="meta")
        with pytest.raises(ModelNotSupportedError, match="offloaded"):
            Explainer(model, processor)
    finally:
        model.lm_head = head
    assert repr(Explainer(model, processor)).startswith("Explainer(Qwen2VL")
    assert tam_fast.Explainer is Explainer


def test_processor_of_another_model_is_refused(qwen):
    model = qwen_model(qwen.processor)
    model.config.image_token_id = 5
    with pytest.raises(ModelNotSupportedError, match=r"expected \d+ image tokens"):
        Explainer(model, qwen.processor).explain(picture(), PROMPT)


# What is kept ------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """See every tensor that an operation makes: shapes, and bytes that are alive together."""

    def __init__(self):
        super().__init__()
        self.shapes = []
        self.live = {}
        self.peak = 0
        self.steps = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        made = list(output) if isinstance(output, (list, tuple)) else [output]
        inputs = {value.untyped_storage()._cdata for value in args if isinstance(value, torch.Tensor)}
        for value in made:
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
                if storage._cdata not in inputs:
                    self.shapes.append((str(function), tuple(value.shape), value.dtype))
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        total = sum(size for _, size in self.live.values())
        self.peak = max(self.peak, total)
        if str(function).startswith("aten.argmax"):
            self.steps.append(total)  # greedy generation takes its next token
        return output

    def logits(self, vocabulary):
        """Rows of the largest tensor with one column a word."""
        rows = [
            torch.Size(shape).numel() // vocabulary
            for _, shape, dtype in self.shapes
            if shape and shape[-1] == vocabulary and dtype.is_floating_point
        ]
        return max(rows, default=0)


@pytest.fixture(scope="module")
def watched(qwen):
    """An image large enough for prompt, vocabulary and channels to be told apart by their sizes."""
    image = picture(420, 420)
    positions = qwen._prepare(image, PROMPT, 3).prompt.layout.answer_start
    assert positions not in (len(qwen.processor.tokenizer), 32, 48)
    return image, positions


def test_no_logits_but_those_of_generate(qwen, watched):
    image, positions = watched
    vocabulary = len(qwen.processor.tokenizer)
    with Watch() as watch:
        e = qwen.explain(image, PROMPT, **GREEDY)
    assert watch.logits(vocabulary) <= len(e) < positions, "those of a few steps, for their candidates"
    with Watch() as watch:
        qwen.explain(image, PROMPT, answer=e.token_ids)
    assert watch.logits(vocabulary) == len(e), "those of the answer, for its candidates"
    with Watch() as watch:
        qwen.explain(image, PROMPT, answer=e.token_ids * 10)
    assert watch.logits(vocabulary) == 32 < 10 * len(e), "a few at a time"
    assert positions > 200


def test_no_attention_weights_are_asked_for(qwen, watched, monkeypatch):
    image, positions = watched
    asked = []
    for module in qwen.model.modules():
        if type(module).__name__ in ("Qwen2VLTextModel", "Qwen2VLAttention", "Qwen2VLDecoderLayer"):
            forward = module.forward

            def record(*args, forward=forward, **kwargs):
                asked.append((kwargs.get("output_attentions"), kwargs.get("output_hidden_states")))
                return forward(*args, **kwargs)

            monkeypatch.setattr(module, "forward", record)
    with Watch() as watch:
        e = qwen.explain(image, PROMPT, **GREEDY)
    with Watch() as forced:
        qwen.explain(image, PROMPT, answer=e.token_ids)
    assert asked
    assert {value for pair in asked for value in pair} <= {None, False}
    for shapes, length in ((watch.shapes, positions), (forced.shapes, positions + len(e) - 1)):
        square = [
            entry for entry in shapes if len(entry[1]) >= 3 and entry[1][-2:] == (length, length) and entry[1][-3] > 1
        ]
        assert not square, "a weight for each head and pair of positions"


def layer_states(model):
    """Record the states that every layer of the decoder returns, weakly."""
    made = []

    def hook(module, args, output):
        state = output[0] if isinstance(output, tuple) else output
        made.append((state.shape[1], weakref.ref(state), StorageWeakRef(state.untyped_storage())))

    return made, [layer.register_forward_hook(hook) for layer in model.model.language_model.layers]


@pytest.mark.parametrize("answer", [None, "A dog and a cat sit on the red sofa."])
def test_no_other_layers_states_are_kept(qwen, watched, monkeypatch, answer):
    image, positions = watched
    made, handles = layer_states(qwen.model)
    alive = []

    def look(hidden, *args, **kwargs):
        alive.extend(length for length, tensor, storage in made if tensor() is not None or not storage.expired())
        assert hidden.untyped_storage().nbytes() <= (hidden.shape[0] + 1) * hidden.shape[1] * 4
        return activation_maps(hidden, *args, **kwargs)

    monkeypatch.setattr("tam_fast.explainer.activation_maps", look)
    try:
        qwen.explain(image, PROMPT, answer, **({} if answer else GREEDY))
    finally:
        for handle in handles:
            handle.remove()
    assert len(made) >= 2
    assert max(length for length, *_ in made) >= positions
    assert alive == []


@pytest.mark.parametrize("way", ["explain", "stream"])
def test_peak_memory_against_generate(way, monkeypatch):
    """Beyond the peak of processor and generate: rows of final states, and nothing that grows with the layers."""
    processor = qwen_processor()
    image = picture(700, 560)
    excess = {}
    for layers in (2, 6):
        explainer = Explainer(qwen_model(processor, layers=layers), processor)
        with torch.no_grad(), Watch() as plain:
            job = explainer._prepare(image, PROMPT, 3)
            output = explainer.model.generate(**job.model_inputs(), **GREEDY)
        del job
        with Watch() as watch:
            if way == "explain":
                explainer.explain(image, PROMPT, **GREEDY)
            else:
                stream = explainer.stream(image, PROMPT, **GREEDY)
                # A watch sees one thread: this one goes on into the thread that generates.
                monkeypatch.setattr("tam_fast.explainer._Ambience.enter", lambda _, stack: stack.enter_context(watch))
                for _ in stream:
                    pass
        states = output.shape[1] * 32 * 4
        assert watch.peak - plain.peak <= states
        assert len(watch.steps) == len(plain.steps) == STEPS
        excess[layers] = [more - less for more, less in zip(watch.steps, plain.steps, strict=True)]
        # Three candidates a step, the logits of a few steps, and some scalars.
        others = 4096 + 2**14
        assert max(excess[layers]) <= states + others, "more than the rows of final states is alive while generating"
        assert min(excess[layers]) >= states // 2, "the watch saw nothing"
    assert abs(max(excess[6]) - max(excess[2])) < 4096, "another layer's states would show here"


# A real tokenizer --------------------------------------------------------------------------------


def test_real_tokenizer_from_photograph_to_words(shared_data):
    processor = tam_fast.load_processor(shared_data / "processors" / "qwen2vl")
    explainer = Explainer(qwen_model(processor), processor)
    photo = sorted((shared_data / "coco_free" / "image").glob("*.jpg"))[0]
    e = explainer.explain(photo, "Describe this image.", **GREEDY)
    stream = explainer.stream(photo, "Describe this image.", **GREEDY)
    for _ in stream:
        pass
    assert_same(stream.explanation, e)
    assert_same(explainer.explain(photo, "Describe this image.", answer=e.token_ids), e, **SAME_MODEL)
    forced = explainer.explain(photo, "Describe this image.", answer="Two giraffes, one 你好 🙂.")
    assert forced.text == "Two giraffes, one 你好 🙂."
    assert forced.tokens[0] == "Two"
    assert forced["giraffes"].shape == forced.layout.sizes[0]
    assert forced.context_tokens[:4] == ["Describe", " this", " image", "."]
