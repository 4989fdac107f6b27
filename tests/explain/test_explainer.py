"""Explainer: generated and given answers have the same maps, whatever the model; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest_models import PROMPT, hooks, llava_model, picture, qwen_model
from explainers import GREEDY, SAME_MODEL, assert_same

import tam_fast
from tam_fast import Explainer, ModelNotSupportedError, activation_maps


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
        sparse = torch.nn.Linear(4, 3)
        sparse.weight = torch.nn.Parameter(sparse.weight.detach().to_sparse(), requires_grad=False)
        model.lm_head = sparse
        with pytest.raises(ModelNotSupportedError, match="rows can be read"):
            Explainer(model, processor)
        model.lm_head = torch.nn.Linear(4, 3, device="meta")
        with pytest.raises(ModelNotSupportedError, match="offloaded"):
            Explainer(model, processor)
    finally:
        model.lm_head = head
    assert repr(Explainer(model, processor)).startswith("Explainer(Qwen2VL")
    assert tam_fast.Explainer is Explainer


@pytest.mark.parametrize("part", ["model.visual.merger", "model.language_model.layers.1", "lm_head", ""])
def test_weights_without_values_are_refused_before_the_model_runs(qwen, part):
    model = qwen_model(qwen.processor)
    model.get_submodule(part).to("meta")
    with pytest.raises(ModelNotSupportedError, match=rf"model: expected weights that have values, got {part}.* meta"):
        Explainer(model, qwen.processor)


def test_a_tokenizer_of_more_tokens_than_the_model_embeds_is_refused(qwen):
    model = qwen_model(qwen.processor)
    model.resize_token_embeddings(300)
    with pytest.raises(ModelNotSupportedError, match=r"processor: .* which embeds 300 tokens, got token id \d+"):
        Explainer(model, qwen.processor).explain(picture(), PROMPT)


def test_processor_of_another_model_is_refused(qwen):
    model = qwen_model(qwen.processor)
    model.config.image_token_id = 5
    with pytest.raises(ModelNotSupportedError, match=r"expected \d+ image tokens"):
        Explainer(model, qwen.processor).explain(picture(), PROMPT)


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


def test_a_folder_in_one_line(qwen, tmp_path):
    qwen.model.save_pretrained(tmp_path)
    qwen.processor.save_pretrained(tmp_path)
    loaded = Explainer.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager", device="cpu")
    assert loaded.model.config._attn_implementation == "eager"
    assert not loaded.model.training
    image = picture(90, 60)
    assert_same(loaded.explain(image, PROMPT, **GREEDY), qwen.explain(image, PROMPT, **GREEDY), atol=1e-4, rtol=0)
    assert Explainer.from_pretrained(tmp_path, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"^device: expected none with device_map"):
        Explainer.from_pretrained(tmp_path, device="cpu", device_map="auto")
    with pytest.raises(FileNotFoundError, match=r"none"):
        Explainer.from_pretrained(str(tmp_path / "none"))
