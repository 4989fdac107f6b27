"""Other methods in place of TAM: the same tokens, the same answer, the same layout; maps of their own."""

from __future__ import annotations

import pytest
import torch
from conftest_models import PROMPT, hooks, picture
from explainers import GREEDY

import tam_fast
from tam_fast.models.errors import ModelNotSupportedError

ANSWER = "A dog and a cat sit on the red sofa."


def minmax(maps):
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(1e-12), 0.0)


def test_cam_is_the_scores_at_the_cells(explainer):
    image = picture(112, 84)
    e = explainer.explain(image, PROMPT, answer=ANSWER, method="cam")
    ours = explainer.explain(image, PROMPT, answer=ANSWER)
    assert (e.method, ours.method) == ("cam", "tam")
    assert (e.token_ids, e.layout, e.text) == (ours.token_ids, ours.layout, ours.text)
    assert torch.equal(e.relevance, ours.relevance)
    job = explainer._prepare(image, PROMPT, 3)
    with torch.no_grad():
        states = explainer.model.model(**job.model_inputs(e.token_ids[:-1])).last_hidden_state[0]
    weight = explainer.model.get_output_embeddings().weight.detach()
    scores = tam_fast.token_scores(states, weight, torch.tensor(e.token_ids))[:, e.layout.visual_positions]
    torch.testing.assert_close(e.maps.maps, minmax(scores), atol=1e-5, rtol=0)


def test_cam_with_what_tam_does_to_it_is_tam_but_for_its_scale(qwen):
    image = picture(168, 140)
    ours = qwen.explain(image, PROMPT, answer=ANSWER)
    e = qwen.explain(image, PROMPT, answer=ANSWER, method="cam", refine="eci+rgf")
    same = qwen.explain(image, PROMPT, answer=ANSWER, method="cam+eci+rgf")
    assert torch.equal(e.maps.maps, same.maps.maps)
    # Where the smallest evidence of all is 0, TAM's joint normalisation is a factor, which the filter lets pass.
    torch.testing.assert_close(e.maps.maps, minmax(ours.maps.maps), atol=2e-5, rtol=0)


def test_some_tokens_of_a_generated_answer(qwen):
    e = qwen.explain(picture(), PROMPT, method="cam+rgf", **GREEDY)
    assert e.source == "generated"
    some = qwen.explain(picture(), PROMPT, method="cam+rgf", answer=e.token_ids, targets=[(1, 3)])
    torch.testing.assert_close(some.maps.maps, e.maps.maps[some.places], atol=1e-5, rtol=0)


def test_the_scale_of_the_whole_answer(qwen):
    one = qwen.explain(picture(), PROMPT, answer=ANSWER, method="cam", scale="answer")
    assert one.method == "cam@answer"
    assert float(one.maps.maps.max()) == 1.0
    assert bool((one.maps.maps.amax(1) < 1.0).any())


def test_it_is_kept_with_the_explanation(qwen, tmp_path):
    e = qwen.explain(picture(), PROMPT, answer=ANSWER, method="cam+median")
    e.save(tmp_path / "e")
    found = tam_fast.load(tmp_path / "e")
    assert found.method == e.method == "cam+median"
    assert torch.equal(found.maps.maps, e.maps.maps)
    with pytest.raises(ValueError, match="grounding: expected maps of method 'tam'"):
        _ = e.grounding
    assert e.words[0].grounding is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "magic"}, "method: expected one of tam"),
        ({"method": "cam", "method_options": {"layers": 3}}, "layers: expected an option of 'cam'"),
        ({"method": "cam", "scale": "all"}, "scale: expected 'map' or 'answer'"),
        ({"scale": "answer"}, "scale: expected none with method='tam'"),
        ({"method_options": {"layer": 1}}, "method_options: expected none with method='tam'"),
        ({"method": "cam", "compat": "paper"}, "compat: expected none with method='cam'"),
        ({"method": "cam", "keep_states": True}, "keep_states: expected none with method='cam'"),
        ({"method": "cam", "grounding": "contrast"}, "grounding: expected none with method='cam'"),
        ({"method": "cam", "targets": "prompt"}, "method: expected none with targets='prompt'"),
    ],
)
def test_what_is_refused_before_anything_is_run(qwen, options, message, monkeypatch):
    monkeypatch.setattr("tam_fast.explain.explainer.prepare_chat", None)
    with pytest.raises(ValueError, match=message):
        qwen.explain(picture(), PROMPT, **options)
    assert hooks(qwen.model) == 0


def test_a_model_that_cannot_is_named_before_it_is_run(qwen, monkeypatch):
    from tam_fast.methods import METHODS

    def refuse(_model, **_):
        raise ModelNotSupportedError("method: 'cam' needs more, got less")

    changed = METHODS["cam"].__class__(**{**vars(METHODS["cam"]), "check": refuse})
    monkeypatch.setattr("tam_fast.explain.methods.method_of", lambda _: changed)
    monkeypatch.setattr("tam_fast.explain.explainer.prepare_chat", None)
    with pytest.raises(ModelNotSupportedError, match="'cam' needs more"):
        qwen.explain(picture(), PROMPT, method="cam")


# What the prompt knows of a method's options ----------------------------------------------------------------------


def told(monkeypatch):
    """Options that a method is run with."""
    from tam_fast.explain import methods

    seen = []

    def look(task, method, options):
        seen.append(options)
        return torch.zeros((len(task), task.visual.numel()))

    monkeypatch.setattr(methods, "raw_maps", look)
    return seen


def test_superpixels_are_of_the_prompts_images(qwen, monkeypatch):
    seen, image = told(monkeypatch), picture(112, 84)

    def asked(method="lime", **options):
        qwen.explain(image, PROMPT, answer=ANSWER, method=method, method_options=options)
        return seen[-1]

    for given in ({}, {"images": None}, {"images": True}):
        (one,) = asked(**given)["images"]
        assert one.size == (112, 84)
    assert asked(images=False)["images"] is None
    assert asked(images=[image])["images"] == [image]
    assert asked("rise")["images"] is None, "its masks are smooth unless they are asked for by regions"
    assert len(asked("rise", images=True)["images"]) == 1
    qwen.explain(prompt=PROMPT, answer=ANSWER, method="lime")
    assert seen[-1]["images"] is None
    with pytest.raises(
        ValueError, match="images: expected a prompt with images whose superpixels True takes, got none"
    ):
        qwen.explain(prompt=PROMPT, answer=ANSWER, method="lime", method_options={"images": True})


def test_superpixels_of_images_in_messages(qwen):
    message = {
        "role": "user",
        "content": [
            {"type": "image", "image": picture(112, 84)},
            {"type": "image", "image": picture(84, 84, seed=1)},
            {"type": "text", "text": PROMPT},
        ],
    }
    options = {"regions": 8}
    e = qwen.explain(messages=[message], answer=ANSWER, method="occlusion", method_options=options)
    blocks = qwen.explain(
        messages=[message], answer=ANSWER, method="occlusion", method_options={**options, "images": False}
    )
    assert e.maps.maps.shape == blocks.maps.maps.shape
    assert not torch.equal(e.maps.maps, blocks.maps.maps)


def test_absent_pixels_are_grey_after_what_the_processor_does(qwen, monkeypatch):
    seen, part = told(monkeypatch), qwen.processor.image_processor

    def normalization(baseline, **changed):
        for name, value in changed.items():
            monkeypatch.setattr(part, name, value)
        qwen.explain(picture(), PROMPT, answer=ANSWER, method="lime", method_options={"baseline": baseline})
        return seen[-1]["normalization"]

    assert normalization("mean_embedding") is normalization("blur") is None
    found = normalization("grey", image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1])
    for one, other in zip(found, ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)), strict=True):
        assert one == pytest.approx(other)
    assert normalization("black") == found
    assert normalization("black", do_normalize=False) == (pytest.approx((0.0,)), pytest.approx((1.0,)))
    found = normalization("grey", do_normalize=True, do_rescale=False)
    assert found[0] == pytest.approx((0.5 / 255, 0.4 / 255, 0.3 / 255))


@pytest.mark.parametrize("baseline", ["grey", "black", "mean", "blur"])
def test_absent_pixels_just_work(qwen, baseline):
    options = {"baseline": baseline, "regions": 3}
    e = qwen.explain(picture(), PROMPT, answer="A dog.", method="occlusion", method_options=options)
    assert bool(e.maps.maps.any())


def test_progress_is_shown(qwen, monkeypatch):
    from contextlib import contextmanager

    from tam_fast.explain import methods
    from tam_fast.explain.progress import Progress

    bars = []

    @contextmanager
    def progress(total, what):
        bars.append([what, total, 0, "open"])

        def advance(count):
            bars[-1][2] += count

        yield Progress(advance)
        bars[-1][3] = "closed"

    monkeypatch.setattr(methods, "progress", progress)
    options = {"regions": 8, "images": False, "progress": True}

    def run(method, **more):
        return qwen.explain(picture(), PROMPT, answer="A dog.", method=method, method_options={**options, **more})

    run("occlusion")
    ((what, total, done, state),) = bars
    assert what == "passes of occlusion"
    assert total == done > 1
    assert state == "closed"
    bars.clear()
    run("region_search", steps=3)  # whose total grows
    assert [bar[1] for bar in bars] == [bars[0][2], None]
    assert [bar[3] for bar in bars] == ["closed", "closed"]
    bars.clear()
    seen = []
    run("occlusion", progress=lambda *said: seen.append(said))
    assert seen
    assert not bars
    run("occlusion", progress=False)
    assert not bars


def test_wrong_values_of_options_are_refused_before_anything_is_run(qwen, monkeypatch):
    monkeypatch.setattr("tam_fast.explain.explainer.prepare_chat", None)
    for method, options, message in (
        ("rise", {"samples": 0}, "samples: expected a number from 1, got 0"),
        ("layer_cam", {"layer": 99}, "layer: expected a layer from 0"),
        ("attention", {"layer": 99}, "layer: expected a layer from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            qwen.explain(picture(), PROMPT, method=method, method_options=options)
