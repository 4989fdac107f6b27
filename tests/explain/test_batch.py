"""explain_batch: tokens and maps of one by one, errors that name the request, what does not run together and why."""

from __future__ import annotations

import copy
import functools
import io
import logging
import sys
import weakref

import numpy as np
import pytest
import torch
from clips import clip
from conftest_models import PROMPT, hooks, picture
from explainers import assert_same, make
from families import build, builders
from layout_cases import build_or_skip
from transformers import GenerationConfig, LogitsProcessorList

import tam_fast
from tam_fast import Explainer, ModelNotSupportedError
from tam_fast.demo import sample_scenes
from tam_fast.explain import batch as batch_module
from tam_fast.explain.progress import progress
from tam_fast.models import batches
from tam_fast.models.layouts.source import token_id

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@functools.cache
def demo():
    return Explainer(*tam_fast.load_demo())


@functools.cache
def tiny():
    return Explainer(*make("qwen2.5"))


@pytest.fixture(params=["demo", "qwen2.5", "llava"])
def some(request):
    return {"demo": demo, "qwen2.5": tiny}.get(request.param, lambda: Explainer(*make(request.param)))()


@pytest.fixture
def parts(monkeypatch):
    """How many ran together, call by call, and how."""
    seen = []

    def spied(name, original):
        def spy(requests):
            seen.append((name, len(requests)))
            return original(requests)

        monkeypatch.setattr(batch_module, name, spy)

    spied("_generated", batch_module._generated)
    spied("_passed", batch_module._passed)
    return seen


def asked():
    """Prompts of many kinds: lengths, sizes of images, two of them, none, conversations."""
    image = {"type": "image"}
    turns = [
        {"role": "user", "content": [image, {"type": "text", "text": "What is on the sofa?"}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "And what else can be seen there, on it and near it?"},
    ]
    return [
        {"images": picture(90, 60), "prompt": PROMPT},
        {"images": picture(60, 150, seed=1), "prompt": "Why?"},
        {"images": [picture(90, 60, seed=2), picture(56, 56, seed=3)], "prompt": f"{PROMPT} {PROMPT}"},
        {"prompt": "What can be seen, and where, in a picture that nobody shows?"},
        {"images": picture(seed=4), "messages": turns},
    ]


def same(explainer, requests, size=8):
    """Compare a batch with one by one; return what the batch gave."""
    found = explainer.explain_batch(requests, size)
    assert len(found) == len(requests)
    for request, e in zip(requests, found, strict=True):
        alone = explainer.explain(**request)
        assert (e.source, e.steps, e.thinking, e.messages) == (
            alone.source,
            alone.steps,
            alone.thinking,
            alone.messages,
        )
        assert_same(e, alone, **TOLERANCE)
        as_bytes = [(one.maps.maps * 255).round().to(torch.int16) for one in (e, alone)]
        assert not as_bytes[0].numel() or int((as_bytes[0] - as_bytes[1]).abs().max()) <= 1
        assert set(e.elapsed) == set(alone.elapsed)
    assert not hooks(explainer.model)
    return found


# Equality ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, *(pytest.param(size, marks=pytest.mark.long) for size in (1, 2, 5))])
def test_generated_answers_are_those_of_one_by_one(some, parts, size):
    same(some, [{**request, **GREEDY} for request in asked()], size)
    assert parts == {8: [("_generated", 5)], 5: [("_generated", 5)], 2: [("_generated", 2)] * 2, 1: []}[size]


def test_given_answers_and_prompts_are_those_of_one_by_one(some, parts):
    answers = ["The dog.", "A cat sits on the red sofa near the window.", [70, 71, 72], "No.", "The dog looks at it."]
    requests = [{**request, "answer": answer} for request, answer in zip(asked(), answers, strict=True)]
    requests += [{**request, "targets": "prompt"} for request in asked()[1:3]]
    found = same(some, requests)
    assert parts == [("_passed", 7)]
    assert {e.source for e in found} == {"given"}


def test_the_embedded_models_answers_end_where_they_end(parts, monkeypatch):
    """Rows finish at different steps; the others go on."""
    monkeypatch.setattr(batch_module, "_alone", lambda request: pytest.fail("one was run by itself"))
    scenes = sample_scenes()[:3]
    prompts = ["Describe this image.", "Is there a circle?", "Why?"]
    requests = [{"images": scene, "prompt": prompt} for scene, prompt in zip(scenes, prompts, strict=True)]
    found = same(demo(), requests)
    assert parts == [("_generated", 3)]
    assert len({len(e.tokens) for e in found}) > 1
    assert {e.source for e in found} == {"generated"}


def test_kinds_and_settings_that_differ_run_apart(parts):
    one, two, three, four, five = asked()
    requests = [
        {**one, **GREEDY},
        {**two, **GREEDY, "max_new_tokens": 9},
        {**three, "answer": "The dog."},
        {**four, **GREEDY, "kernel_size": 5, "keep_states": True},
        {**five, "targets": "prompt"},
        {**one, **GREEDY, "targets": [(0, 3)], "grounding": "contrast"},
    ]
    found = same(tiny(), requests)
    assert parts == [("_generated", 3), ("_passed", 2)]
    assert found[3].states is not None
    assert found[5].contrast is not None


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 0.01},  # says again whatever there was
        {"suppress_tokens": [70, 71], "bad_words_ids": [[72, 73]]},
        {"generation_config": GenerationConfig(max_new_tokens=5, repetition_penalty=1.5)},
    ],
)
def test_settings_work_on_each_row(parts, settings):
    same(tiny(), [{**request, **GREEDY, **settings} for request in asked()])
    assert parts == [("_generated", 5)]


def test_padding_is_a_word_of_each_prompt():
    """So penalties find no other tokens than they would in the prompt alone."""
    calls = []
    handle = tiny().model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    tiny().explain_batch([{**request, **GREEDY} for request in asked()])
    handle.remove()
    for ids, mask in zip(calls[0]["input_ids"], calls[0]["attention_mask"].bool(), strict=True):
        assert set(ids[~mask].tolist()) <= set(ids[mask].tolist())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size"),
        ({"logits_processor": LogitsProcessorList()}, "logits_processor"),
        ({"cache_implementation": "static"}, "cache_implementation"),
    ],
)
def test_other_settings_run_one_by_one_and_the_log_says_so(parts, caplog, settings, name):
    with caplog.at_level(logging.INFO, "tam_fast"):
        same(tiny(), [{**request, **GREEDY, **settings} for request in asked()[:2]])
    assert not parts
    assert f"run by itself: {name} is not known" in caplog.text


def test_sampling_runs_together_and_is_verified(parts):
    torch.manual_seed(0)
    requests = [{**request, **GREEDY, "do_sample": True, "top_k": 20} for request in asked()]
    found = tiny().explain_batch(requests)
    assert parts == [("_generated", 5)]
    for request, e in zip(asked(), found, strict=True):
        told = tiny().explain(**request, answer=e.token_ids)
        assert_same(e, told, **TOLERANCE)


def test_models_that_were_not_proven_run_one_by_one(parts, caplog, monkeypatch):
    explainer = Explainer(*make("qwen2"))
    requests = [{**request, **GREEDY} for request in asked()[:2]]
    with caplog.at_level(logging.INFO, "tam_fast"):
        monkeypatch.setattr(batches, "JOINED", frozenset())
        same(explainer, requests)
        monkeypatch.undo()
        monkeypatch.setattr(explainer.model.config.get_text_config(), "layer_types", ["indexed_attention"] * 2)
        assert "indexed_attention" in batches.why_apart(explainer.model)
    assert not parts
    assert "batches of qwen2_vl were not proven" in caplog.text


def test_states_that_are_not_shown_come_from_a_pass_over_the_answer(monkeypatch, caplog):
    """One row's proof fails: it alone is forced."""
    explainer = tiny()
    requests = [{**request, **GREEDY} for request in asked()[:3]]
    alone = [explainer.explain(**request) for request in requests]
    original = batch_module.doubt

    def doubt(job, recording, generated, count):
        return "it was made up" if job.chat.prompt == "Why?" else original(job, recording, generated, count)

    monkeypatch.setattr(batch_module, "doubt", doubt)
    found = explainer.explain_batch(requests)
    assert [e.source for e in found] == ["generated", "teacher_forced", "generated"]
    for e, other in zip(found, alone, strict=True):
        assert_same(e, other, **TOLERANCE)


@pytest.mark.parametrize("arguments", [{"answer": [5, 6, 7]}, GREEDY], ids=["given", "generated"])
def test_a_head_that_gives_other_logits_than_its_rows_is_refused(arguments):
    model, processor = make("qwen2")
    wrong = torch.randn(model.lm_head.weight.shape[0], generator=torch.Generator().manual_seed(1))
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output + wrong)
    if "answer" not in arguments:
        arguments = {**arguments, "suppress_tokens": [model.config.vision_start_token_id]}
    requests = [{**request, **arguments} for request in asked()[:2]]
    with pytest.raises(ModelNotSupportedError, match=r"^requests\[0\]: .*its row times the captured state"):
        Explainer(model, processor).explain_batch(requests)
    handle.remove()
    assert not hooks(model)


@pytest.mark.parametrize("shift", [1, -1])
def test_rows_cut_wrong_are_noticed(monkeypatch, shift):
    """A mutant that takes a wrong row's logits fails the proof, so that maps are right all the same."""
    explainer = tiny()
    original = batches.Recording.take
    taken = []

    def take(self, rows, scored, logits, fed, keep):
        taken.append(logits)
        other = torch.roll(logits, shift)
        return original(self, rows, other, other, fed, keep)

    requests = [{**request, **GREEDY} for request in asked()[:2]]
    alone = [explainer.explain(**request) for request in requests]
    record = batches.record_rows.__enter__

    def enter(self):
        for row in self._rows:
            row.take = functools.partial(take, row)
        return record(self)

    monkeypatch.setattr(batches.record_rows, "__enter__", enter)
    found = explainer.explain_batch(requests)
    assert taken
    assert {e.source for e in found} == {"teacher_forced"}
    for e, other in zip(found, alone, strict=True):
        assert_same(e, other, **TOLERANCE)


# Errors --------------------------------------------------------------------------------------------


def test_a_wrong_request_is_named_and_nothing_of_its_batch_is_run(parts):
    requests = [{**request, **GREEDY} for request in asked()[:4]]
    requests[3]["prompt"] = " "
    calls = []
    handle = tiny().model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(ValueError, match=r"^requests\[3\]: prompt: expected") as caught:
            tiny().explain_batch(requests)
        assert str(caught.value.__cause__).startswith("prompt: expected")
        assert not calls
        assert not parts
        assert caught.value.explanations == []
        with pytest.raises(ValueError, match=r"^requests\[3\]: prompt: expected") as caught:
            tiny().explain_batch(requests, 2)
    finally:
        handle.remove()
    assert parts == [("_generated", 2)]
    # What was explained before is not lost.
    for request, e in zip(requests[:2], caught.value.explanations, strict=True):
        assert_same(e, tiny().explain(**request), **TOLERANCE)


def test_requests_are_taken_a_batch_at_a_time():
    taken = []

    def lazily():
        for k, request in enumerate(asked()[:3]):
            taken.append(k)
            yield {**request, **GREEDY}
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        tiny().explain_batch(lazily(), 2)
    assert taken == [0, 1, 2]
    assert len(caught.value.explanations) == 2
    assert tiny().explain_batch(iter([])) == []


@pytest.mark.parametrize(
    ("requests", "size", "error", "message"),
    [
        ({"prompt": PROMPT}, 8, TypeError, r"^requests: expected dicts of explain\(\)'s arguments, got dict"),
        (7, 8, TypeError, "^requests: expected dicts"),
        (["prompt"], 8, TypeError, r"^requests\[0\]: expected a dict of explain\(\)'s arguments, got str"),
        ([{"prompt": PROMPT}, {"prompts": PROMPT}], 8, ValueError, r"^requests\[1\]: generate_kwargs: .*prompts"),
        ([{"images": "nowhere.png"}], 8, FileNotFoundError, r"^requests\[0\]: images: "),
        ([{"prompt": PROMPT, "answer": [2**40]}], 8, ValueError, r"^requests\[0\]: answer: "),
        ([], 0, ValueError, "^batch_size: expected at least 1, got 0"),
        ([], 1.5, TypeError, "^batch_size: expected a whole number"),
    ],
)
def test_what_is_no_request_is_refused(requests, size, error, message):
    with pytest.raises(error, match=message):
        tiny().explain_batch(requests, size)


def test_an_answer_without_tokens_is_its_own_requests_error(parts):
    ends = torch.as_tensor(tiny().model.generation_config.eos_token_id).flatten().tolist()
    requests = [{**request, "max_new_tokens": 6} for request in asked()[:3]]
    first, second = (tiny().explain(**request) for request in requests[:2])
    # Told to end at the first token of the second answer.
    stop = second.token_ids[0]
    assert stop not in first.token_ids, "the case is of no use"
    with pytest.raises(ValueError, match=r"^requests\[1\]: answer: expected at least one token") as caught:
        tiny().explain_batch([{**request, "eos_token_id": [*ends, stop]} for request in requests])
    assert parts == [("_generated", 3)]
    assert_same(caught.value.explanations[0], first, **TOLERANCE)


def test_states_that_are_nan_name_their_request():
    model, processor = make("qwen2")
    explainer = Explainer(model, processor)
    requests = [{**request, "answer": [120 + k, 71, 72]} for k, request in enumerate(asked()[:2])]
    expected = explainer.explain(**requests[0])
    with torch.no_grad():
        model.get_input_embeddings().weight[121] = float("nan")
    with pytest.raises(ValueError, match=r"^requests\[1\]: .*NaN") as caught:
        explainer.explain_batch(requests)
    assert len(caught.value.explanations) == 1
    assert_same(caught.value.explanations[0], expected, **TOLERANCE)


def test_hooks_are_released_when_the_model_fails():
    model, processor = make("qwen2")

    def fail(*_):
        raise ZeroDivisionError("in the model")

    handle = model.lm_head.register_forward_hook(fail)
    for arguments in (GREEDY, {"answer": [70, 71, 72]}):
        with pytest.raises(ZeroDivisionError, match=r"^requests\[0\]: in the model"):
            Explainer(model, processor).explain_batch([{**request, **arguments} for request in asked()[:3]])
        assert not hooks(model)
    handle.remove()


@pytest.mark.parametrize("arguments", [{"answer": [70, 71, 72]}, GREEDY], ids=["given", "generated"])
def test_what_fails_together_is_run_one_by_one(caplog, arguments):
    model, processor = make("qwen2")

    def fail(_module, _inputs, output):
        if output.shape[0] > 1:
            raise torch.cuda.OutOfMemoryError("too many")

    requests = [{**request, **arguments} for request in asked()[:3]]
    expected = Explainer(model, processor).explain_batch(requests, 1)
    handle = model.lm_head.register_forward_hook(fail)
    found = Explainer(model, processor).explain_batch(requests)
    handle.remove()
    assert "3 requests are run one by one; together: OutOfMemoryError: too many" in caplog.text
    for e, other in zip(found, expected, strict=True):
        assert e.source == other.source
        assert_same(e, other)
    assert not hooks(model)


def test_states_of_a_batch_are_let_go_before_the_next(monkeypatch):
    kept, alive = [], []
    original = batch_module.explanations

    def explanations(made):
        alive.append(sum(reference() is not None for reference in kept))
        kept.extend(weakref.ref(item.hidden) for item in made)
        return original(made)

    monkeypatch.setattr(batch_module, "explanations", explanations)
    found = tiny().explain_batch([{**request, **GREEDY} for request in [*asked(), *asked()[:1]]], 2)
    assert (len(found), len(kept), alive) == (6, 6, [0, 0, 0])


# Progress ------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_and_nowhere_else(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    requests = [{**request, **GREEDY} for request in asked()[:3]]
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    tiny().explain_batch(requests, 2, progress=True)
    assert "explaining" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    tiny().explain_batch(requests, 2, progress=True)
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    tiny().explain_batch(requests, 2)
    assert (log.getvalue(), screen.getvalue(), capsys.readouterr().out) == ("", "", "")


def test_progress_in_a_notebook_without_widgets(monkeypatch):
    from tam_fast.explain import progress as module

    monkeypatch.setattr(module, "_in_notebook", lambda: True)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())

    def fail():
        with progress(None, "reading") as shown:
            shown.advance(3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with progress(4, "explaining") as shown:
        shown.advance()
    assert log.getvalue() == "\rreading 0\rreading 3\n\rexplaining 0/4\rexplaining 1/4\n"


# Every family --------------------------------------------------------------------------------------

QUICK = ("qwen3_5",)


def settings_of(explainer):
    config = explainer.model.config
    # Nor the mark of an image's beginning, behind which older versions of Qwen2-VL look for one.
    unsaid = [*(token_id(config, kind) for kind in ("image", "video")), getattr(config, "vision_start_token_id", None)]
    unsaid = [number for number in unsaid if number is not None and number < explainer._head().size]
    return {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": unsaid or None}


def check_family(explainer, requests):
    """Generated, given and the prompt's words, against one by one."""
    settings = settings_of(explainer)
    found = same(explainer, [{**request, **settings} for request in requests])
    given = [
        {**request, "answer": e.token_ids * (1 + k % 2)}
        for k, (request, e) in enumerate(zip(requests, found, strict=True))
    ]
    same(explainer, given)
    same(explainer, [{**request, "targets": "prompt"} for request in requests])


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in sorted(builders())]
)
def test_every_family_runs_together_as_one_by_one_or_not_together(name, parts, monkeypatch):
    built = build_or_skip(name)
    explainer = Explainer(built.model, built.processor)
    text = built.model.config.get_text_config(decoder=True)
    if hasattr(text, "attention_chunk_size"):
        monkeypatch.setattr(text, "attention_chunk_size", 16)  # shorter than the prompts
    words = "Tell me all about the dog and the cat on the sofa. "
    prompts = [PROMPT, words * 2, f"{PROMPT} And?", "Why?"]
    few, many = built.sizes[0], built.sizes[-1]
    requests = [
        {"images": [picture(*size, seed=10 * k + i) for i, size in enumerate(sizes)], "prompt": prompt}
        for k, (prompt, sizes) in enumerate(
            zip(prompts, (few, many, few, built.sizes[len(built.sizes) // 2]), strict=True)
        )
    ]
    try:
        explainer.explain(prompt=words, targets="prompt")
    except ModelNotSupportedError:
        pass  # no text without images
    else:
        requests.insert(2, {"prompt": words * 3})
    check_family(explainer, requests)
    assert {kind for kind, _ in parts} == (
        {"_generated", "_passed"} if built.model.config.model_type in batches.JOINED else set()
    )


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(batches.WITH_VIDEOS | {"glm4v"}))
def test_families_with_videos_beside_images(name, parts):
    from families.native import QWEN_CHAT

    from tam_fast.models.frames import video_part

    built = build_or_skip(name)
    processor = copy.copy(built.processor)
    small = name in ("qwen2_vl", "qwen2_5_vl", "video_llama_3")
    size = {"shortest_edge": 784, "longest_edge": 60_000} if small else {"shortest_edge": 6000, "longest_edge": 100_000}
    part = video_part(type(processor).__name__, processor.image_processor, {"size": size})
    if name in ("internvl", "gemma4"):
        part = video_part(type(processor).__name__, processor.image_processor, {})
    if name == "internvl":
        part.size = dict(processor.image_processor.size)
    if name == "llava_onevision":
        side = built.model.config.vision_config.image_size
        part.size = {"height": side, "width": side}
    processor.video_processor = part
    if name.startswith("qwen2"):  # whose template in tests knows images alone
        processor.chat_template = QWEN_CHAT
    frames = [clip(4, 1, (5, 5, 40, 30)), clip(6, 2, (9, 9, 30, 30)), clip(4, 3, (20, 5, 60, 30))]
    videos = [{"video": some, "fps": fps} for some, fps in zip(frames, (2.0, 1.0, 2.0), strict=True)]
    pictures = [picture(*size, seed=3) for size in built.sizes[0]]
    requests = [
        {"videos": videos[0], "prompt": f"{PROMPT} {PROMPT}"},
        {"images": pictures, "prompt": PROMPT},
        {"videos": videos[1], "prompt": "Why?"},
        *([] if name == "glm4v" else [{"images": pictures, "videos": [videos[2], videos[0]], "prompt": "Both?"}]),
    ]
    check_family(Explainer(built.model, processor), requests)
    assert bool(parts) == (name in batches.WITH_VIDEOS)


def test_the_table_names_families_that_are_built():
    known = {name.partition(".")[0] for name in builders()}
    assert known >= batches.JOINED >= batches.WITH_VIDEOS
    assert np.all([name in tam_fast.models.support() for name in batches.JOINED])
    assert build(QUICK[0]).model.config.model_type in batches.JOINED
