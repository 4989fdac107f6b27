"""Streams: the same bits as a whole answer's, no work that nobody asks for, and nothing left when one ends early."""

from __future__ import annotations

import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest_models import PROMPT, hooks, picture
from explainers import GREEDY, STEPS, assert_same, assert_step, failing
from torch.multiprocessing.reductions import StorageWeakRef

import tam_fast


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

    counting(tam_fast.explain.job.Writer, "_append", "decoded")
    counting(tam_fast.ActivationMapStream, "append", "single")
    counting(tam_fast.explain.job, "activation_maps", "whole")
    return done


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


def test_an_error_that_would_end_a_loop_does_not_pass_for_the_answers_end(qwen):
    def stop(module, inputs, output):
        raise StopIteration("mine")

    handle = qwen.model.register_forward_hook(stop)
    try:
        with pytest.raises(RuntimeError, match="got StopIteration: mine"):
            list(qwen.stream(picture(), PROMPT, **GREEDY))
    finally:
        handle.remove()


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


def test_a_second_thread_is_told_instead_of_waiting_for_ever(qwen):
    """While one thread waits for the model, another one that wants a step gets an error; the first goes on."""
    stepping, go_on = threading.Event(), threading.Event()

    def hold(*_):
        stepping.set()
        assert go_on.wait(20)

    stream = qwen.stream(picture(), PROMPT, **GREEDY)
    handle = qwen.model.lm_head.register_forward_hook(hold)
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(next, stream)
            assert stepping.wait(20)
            with pytest.raises(RuntimeError, match="expected one thread at a time, got a second one"):
                pool.submit(next, stream).result(5)
            go_on.set()
            assert first.result(20).index == 0
        finally:
            go_on.set()
            handle.remove()
    assert [step.index for step in stream] == list(range(1, STEPS))  # one thread after the other may
