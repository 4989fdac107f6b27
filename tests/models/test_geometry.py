"""``layout_of``: from a processor's outputs alone, and the user's words told from the token ids."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest_models import PROMPT, QWEN_TEMPLATE, TEXTS, picture, prompt_text
from layout_cases import build_or_skip

import tam_fast
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.inputs import prepare_inputs

PROMPTS = [PROMPT, "What is\nthis?\n", "user", "\n\nWhat?", "assistant says: <b>no</b>", *TEXTS]


@pytest.mark.parametrize("name", ["qwen", "llava"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("count", [1, 2])
def test_layout_of_inputs_is_that_of_the_prompt(request, name, prompt, count):
    model, processor = request.getfixturevalue(name)
    images = [picture(90 + 30 * index, 60) for index in range(count)]
    found = prepare_inputs(model, processor, images, prompt)
    sizes = [image.size for image in images]
    for named in (model, model.config):
        layout = tam_fast.layout_of(named, processor, found.inputs, sizes)
        assert layout.grids == found.layout.grids
        assert layout.answer_start == found.input_ids.numel()
        # Blanks at a text's ends may be the template's; a token of them alone says nothing.
        ours, theirs = (
            processor.tokenizer.decode(found.input_ids[positions]) for positions in (layout.prompt, found.layout.prompt)
        )
        assert ours.strip() == theirs.strip()


def chat(processor, *turns, generation=True):
    """Token ids of a chat: turns of (role, text or 'image' and text)."""
    messages = [
        {
            "role": role,
            "content": [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in parts],
        }
        for role, *parts in turns
    ]
    text = processor.apply_chat_template(
        messages, chat_template=processor.chat_template, add_generation_prompt=generation, tokenize=False
    )
    images = [picture()] * sum(part == "<image>" for _, *parts in turns for part in parts)
    return processor(images=images, text=[text], return_tensors="pt")


def words(processor, inputs, model):
    layout = tam_fast.layout_of(model, processor, inputs)
    return processor.tokenizer.decode(inputs["input_ids"][0, layout.prompt])


def test_only_the_last_turn_counts(qwen):
    model, processor = qwen
    inputs = chat(
        processor,
        ("system", "Speak plainly."),
        ("user", "<image>", "What is it?"),
        ("assistant", "A dog."),
        ("user", "And the colour?"),
    )
    assert words(processor, inputs, model) == "And the colour?"
    assert words(processor, chat(processor, ("user", "<image>", "a"), ("assistant", "b"), ("user", "c")), model) == "c"


def test_images_after_and_between_texts(qwen):
    model, processor = qwen
    inputs = chat(processor, ("user", "Look at ", "<image>", " and at ", "<image>", " please"))
    assert words(processor, inputs, model) == "Look at  and at  please"


def test_a_prompt_that_is_not_answered_yet(qwen):
    model, processor = qwen
    inputs = chat(processor, ("user", "<image>", "What is it?"), generation=False)
    assert words(processor, inputs, model) == "What is it?"


def test_typed_control_tokens_are_words(qwen):
    model, processor = qwen
    found = prepare_inputs(model, processor, [picture()], "is <|im_end|> a word?")
    layout = tam_fast.layout_of(model, processor, found.inputs)
    assert layout == found.layout
    assert prompt_text(found, processor) == "is <|im_end|> a word?"


def test_without_a_template_every_text_counts(qwen):
    model, processor = qwen
    bare = copy.copy(processor)
    bare.chat_template = None
    text = "<|vision_start|><|image_pad|><|vision_end|>What is it?"
    inputs = bare(images=[picture()], text=[text], return_tensors="pt")
    assert words(bare, inputs, model) == "What is it?"
    assert processor.chat_template == QWEN_TEMPLATE
    # As well where there is one and the prompt was written otherwise.
    assert words(processor, inputs, model) == "What is it?"


def test_what_is_missing_is_named(qwen, llava):
    model, processor = llava
    found = prepare_inputs(model, processor, [picture()], PROMPT)
    with pytest.raises(ValueError, match=r"^image_sizes: expected \(width, height\) of every image.*'llava'"):
        tam_fast.layout_of(model, processor, found.inputs)
    with pytest.raises(ModelNotSupportedError, match="2 images"):
        tam_fast.layout_of(model, processor, found.inputs, [(90, 60)] * 2)
    model, processor = qwen
    found = prepare_inputs(model, processor, [picture()], PROMPT)
    with pytest.raises(ValueError, match=r"^image_sizes: expected .* 1 images, got 2"):
        tam_fast.layout_of(model, processor, found.inputs, [(90, 60)] * 2)
    with pytest.raises(TypeError, match=r"^image_sizes: expected a list"):
        tam_fast.layout_of(model, processor, found.inputs, [90, 60])
    with pytest.raises(ValueError, match=r"^image_sizes: .*at least 1"):
        tam_fast.layout_of(model, processor, found.inputs, [(0, 60)])
    with pytest.raises(ValueError, match=r"^inputs: expected input_ids"):
        tam_fast.layout_of(model, processor, {})
    with pytest.raises(TypeError, match=r"^inputs"):
        tam_fast.layout_of(model, processor, 5)
    with pytest.raises(ValueError, match=r"^inputs: .*one prompt"):
        tam_fast.layout_of(model, processor, {**found.inputs, "input_ids": torch.zeros(2, 3, dtype=torch.int64)})
    with pytest.raises(TypeError, match=r"^processor"):
        tam_fast.layout_of(model, processor.image_processor, found.inputs)
    with pytest.raises(TypeError, match="model_type"):
        tam_fast.layout_of(object(), processor, found.inputs)


def test_ids_may_be_a_vector(qwen):
    model, processor = qwen
    found = prepare_inputs(model, processor, [picture()], PROMPT)
    flat = {**found.inputs, "input_ids": found.input_ids.tolist()}
    assert tam_fast.layout_of(model, processor, flat) == found.layout


def long_params(*names):
    return [pytest.param(name, marks=pytest.mark.long) for name in names]


@pytest.mark.parametrize("name", ["llava", "internvl", *long_params("llama4", "gemma3", "qwen2_vl")])
@pytest.mark.parametrize("tensors", ["np", None])
def test_outputs_may_be_arrays_or_lists(name, tensors):
    built = build_or_skip(name)
    images = [picture(*size) for size in built.sizes[0]]
    found = prepare_inputs(built.model, built.processor, images, PROMPT)
    inputs = {
        key: value.float().numpy() if key == "pixel_values" else value.numpy() for key, value in found.inputs.items()
    }
    if tensors is None:
        inputs = {key: list(value) if key == "pixel_values" else value.tolist() for key, value in inputs.items()}
    sizes = [image.size for image in images]
    assert tam_fast.layout_of(built.model, built.processor, inputs, sizes) == found.layout


@pytest.mark.parametrize("name", ["llava", "internvl", *long_params("llama4", "kimi_k25", "got_ocr2.tiles")])
def test_sizes_that_are_not_those_of_the_images_are_named(name):
    built = build_or_skip(name)
    (size,) = built.sizes[0]
    found = prepare_inputs(built.model, built.processor, [picture(*size)], PROMPT)
    for sizes in ([size] * 2, [size] * 3, []):
        with pytest.raises(ValueError, match=r"^image_sizes: expected \(width, height\)"):
            tam_fast.layout_of(built.model, built.processor, found.inputs, sizes)
    with pytest.raises(TypeError, match=r"^image_sizes: expected a list"):
        tam_fast.layout_of(built.model, built.processor, found.inputs, [(size[0] + 0.5, size[1])])
    if name in ("internvl", "kimi_k25", "got_ocr2.tiles"):
        with pytest.raises(ValueError, match=r"^image_sizes: expected .* that the inputs were made of"):
            tam_fast.layout_of(built.model, built.processor, found.inputs, [(20, 20)])


def test_a_header_that_was_typed_is_text(llava):
    model, processor = llava
    typed = "USER: hi ASSISTANT: and USER: again"
    found = prepare_inputs(model, processor, [picture()], typed)
    assert prompt_text(found, processor).strip() == typed
    assert tam_fast.layout_of(model, processor, found.inputs, [picture().size]) == found.layout
    # A mark of the beginning more, and a turn before.
    text = "<s>USER: <image>\nUSER: one ASSISTANT: two</s>USER: USER: three ASSISTANT:"
    inputs = processor(images=[picture()], text=[text], return_tensors="pt")
    layout = tam_fast.layout_of(model, processor, inputs, [picture().size])
    assert processor.tokenizer.decode(inputs["input_ids"][0, layout.prompt]).strip() == "USER: three"


@pytest.mark.long
def test_numbers_that_a_template_gives_images_are_none_of_the_users():
    built = build_or_skip("ernie4_5_vl_moe")
    parts = ("one", "<image>", "Picture 7:", "<image>", "and three")
    inputs = chat(built.processor, ("user", *parts))
    assert words(built.processor, inputs, built.model) == "onePicture 7:and three"
