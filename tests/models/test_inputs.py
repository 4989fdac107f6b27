"""Inputs: where the words of the prompt stand, images of every kind, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from conftest_models import PROMPT, QWEN_TEMPLATE, picture, prompt_text, qwen_processor
from PIL import Image

from tam_fast.models import ModelNotSupportedError
from tam_fast.models.families import FAMILIES
from tam_fast.models.inputs import load_images, prepare_inputs, render_prompt


@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT,
        "a",
        "You are a helpful assistant.",
        "user",
        "Two\nlines, and  two spaces",
        "naïve café — 你好 🙂?",
        "<|im_end|> and <b>",
    ],
)
def test_prompt_positions_spell_the_users_text(qwen, prompt):
    model, processor = qwen
    found = prepare_inputs(model, processor, [picture()], prompt)
    assert prompt_text(found, processor) == prompt.replace("<|im_end|>", "")
    last_image = int(found.layout.grids[-1].positions[-1])
    assert int(found.layout.prompt[0]) > last_image, "the same words of the system prompt come before the image"


@pytest.mark.parametrize("prompt", [PROMPT, "USER", "two\nlines", "你好 🙂"])
def test_prompt_positions_of_llava(llava, prompt):
    model, processor = llava
    found = prepare_inputs(model, processor, [picture(), picture()], prompt)
    assert found.rendered.text == f"<s>USER: <image>\n<image>\n{prompt} ASSISTANT:"
    assert found.input_ids.tolist().count(processor.tokenizer.bos_token_id) == 1
    assert prompt_text(found, processor).strip() == prompt


def test_several_user_texts(qwen):
    _, processor = qwen
    text = {"type": "text"}
    chat = [
        {"role": "user", "content": [{**text, "text": "A dog"}, {"type": "image"}, {**text, "text": "A dog"}]},
        {"role": "assistant", "content": [{**text, "text": "A dog"}]},
        {"role": "user", "content": [{**text, "text": "the cat?"}]},
    ]
    found = render_prompt(FAMILIES["qwen2_vl"], processor, chat)
    assert [found.text[start:end] for start, end in found.spans] == ["A dog", "A dog", "the cat?"]
    assert found.spans[0][1] < found.spans[1][0] < found.text.index("assistant\nA dog")


def test_template_that_trims_is_followed_and_one_that_rewrites_is_refused(qwen):
    model, _ = qwen
    processor = qwen_processor()
    processor.chat_template = QWEN_TEMPLATE.replace("part['text']", "part['text'] | trim")
    found = prepare_inputs(model, processor, [picture()], "  the dog \n")
    assert prompt_text(found, processor) == "the dog"
    processor.chat_template = QWEN_TEMPLATE.replace("part['text']", "part['text'] | upper")
    with pytest.raises(ModelNotSupportedError, match="chat template that keeps"):
        prepare_inputs(model, processor, [picture()], "the dog")


def test_missing_template_is_refused(qwen):
    model, _ = qwen
    processor = qwen_processor()
    processor.chat_template = None
    with pytest.raises(ModelNotSupportedError, match=r"expected a chat template.*Qwen2-VL"):
        prepare_inputs(model, processor, [picture()], PROMPT)


@pytest.mark.parametrize(
    "prompt, error, message",
    [
        ("", ValueError, "prompt: expected a text, got ''"),
        (" \n", ValueError, "prompt"),
        (None, TypeError, "prompt: expected a string"),
        ("see <|image_pad|>", ValueError, "placeholder"),
        ("<|im_end|>", ValueError, "special ones"),
    ],
)
def test_prompts_without_words_are_refused(qwen, prompt, error, message):
    model, processor = qwen
    with pytest.raises(error, match=message):
        prepare_inputs(model, processor, [picture()], prompt)


def test_processor_that_rewrites_text_is_refused(qwen):
    model, processor = qwen

    class Other:
        tokenizer = processor.tokenizer
        image_processor = processor.image_processor
        chat_template = processor.chat_template
        apply_chat_template = processor.apply_chat_template

        def __call__(self, images, text, **kwargs):
            return processor(images=images, text=[text[0] + "!"], **kwargs)

    with pytest.raises(ModelNotSupportedError, match="cannot be located"):
        prepare_inputs(model, Other(), [picture()], PROMPT)


def test_slow_tokenizer_is_refused(qwen, monkeypatch):
    model, processor = qwen
    monkeypatch.setattr(type(processor.tokenizer), "is_fast", property(lambda self: False))
    with pytest.raises(ModelNotSupportedError, match="fast tokenizer"):
        prepare_inputs(model, processor, [picture()], PROMPT)


def test_images_of_every_kind(tmp_path):
    image = picture(30, 20).convert("RGBA")
    image.convert("RGB").save(tmp_path / "a.png")
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    found = load_images([image, tmp_path / "a.png", str(tmp_path / "a.png"), np.asarray(image.convert("RGB"))])
    assert [item.mode for item in found] == ["RGB"] * 4
    assert len({item.tobytes() for item in found}) == 1
    assert load_images(str(tmp_path / "turned.jpg"))[0].size == (20, 30)


def test_what_is_no_image_is_refused(tmp_path, monkeypatch):
    (tmp_path / "note.png").write_text("no image")
    for images, error, message in (
        ([], ValueError, "at least one"),
        (None, ValueError, "at least one"),
        (3, TypeError, "images: .*int"),
        ([picture(), 3], TypeError, r"images\[1\]"),
        (tmp_path / "none.png", FileNotFoundError, "images"),
        (tmp_path / "note.png", ValueError, "note.png"),
        (np.zeros((2, 2)), ValueError, r"\(2, 2\) of float64"),
        (np.zeros((0, 2, 3), np.uint8), ValueError, "images"),
    ):
        with pytest.raises(error, match=message):
            load_images(images)
    picture(60, 60).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="2000 pixels"):
        load_images(tmp_path / "large.png")


def test_prompts_of_one_shape_are_rendered_once_each(qwen, monkeypatch):
    model, _ = qwen
    processor = qwen_processor()
    render, rendered = processor.apply_chat_template, []
    monkeypatch.setattr(processor, "apply_chat_template", lambda *a, **k: rendered.append(1) or render(*a, **k))
    for number, prompt in enumerate(("one", "two", "three words more")):
        found = prepare_inputs(model, processor, [picture()], prompt)
        assert prompt_text(found, processor) == prompt
        assert len(rendered) == number + 2, "the first also shows where the texts go"
    # Another template: what is known of the first one must not be taken for it.
    processor.chat_template = QWEN_TEMPLATE.replace("part['text']", "'Q:' + part['text']")
    assert prompt_text(prepare_inputs(model, processor, [picture()], "one"), processor) == "one"


def test_a_template_that_tells_the_time_is_followed(qwen, monkeypatch):
    _, processor = qwen
    times = iter("abc")
    monkeypatch.setattr(
        processor, "apply_chat_template", lambda chat, **_: next(times) + "|" + chat[0]["content"][0]["text"]
    )
    chat = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    with pytest.raises(ModelNotSupportedError, match="keeps the user's text"):
        render_prompt(FAMILIES["qwen2_vl"], processor, chat)
    times = iter("aaabb")  # it has become b since the pattern was made
    for _ in range(3):
        found = render_prompt(FAMILIES["qwen2_vl"], processor, chat)
        assert [found.text[start:end] for start, end in found.spans] == ["x"]


def test_the_rendered_ids_are_those_of_the_rendered_text(qwen, llava):
    for model, processor in (qwen, llava):
        found = prepare_inputs(model, processor, [picture()], PROMPT)
        ids = processor.tokenizer(found.rendered.text, add_special_tokens=found.rendered.add_special_tokens)
        assert list(found.rendered_ids) == ids["input_ids"]
