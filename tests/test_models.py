"""Layouts, prompts and processors: where visual tokens and words stand, and what is refused."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest_models import (
    QWEN_TEMPLATE,
    byte_tokenizer,
    llava_model,
    llava_processor,
    picture,
    piece_tokenizer,
    qwen_model,
    qwen_processor,
)
from PIL import Image

from tam_fast.models import ModelNotSupportedError
from tam_fast.models.families import FAMILIES, IMPOSSIBLE, MISSING, family_of
from tam_fast.models.inputs import load_images, prepare_inputs, render_prompt
from tam_fast.models.layouts import VisualInput, crop_box, fixed_grids, native_grids, visual_mask
from tam_fast.models.processors import image_only_processor_class, load_processor
from tam_fast.models.text import TextDecoder, token_pieces, tokens_in_spans

PROMPT = "What is in the picture?"


@pytest.fixture(scope="module")
def qwen():
    processor = qwen_processor()
    return qwen_model(processor), processor


@pytest.fixture(scope="module")
def llava():
    processor = llava_processor()
    return llava_model(processor), processor


# Native grids ------------------------------------------------------------------------------------


def test_native_grid_of_an_image_that_is_not_square(qwen):
    model, processor = qwen
    found = prepare_inputs(model, processor, [picture(170, 60)], PROMPT)
    (grid,) = found.layout.grids
    assert grid.shape == (2, 6)
    assert grid.box == (0.0, 0.0, 1.0, 1.0)
    marked = torch.nonzero(found.input_ids == model.config.image_token_id).flatten()
    assert torch.equal(grid.positions, marked)
    assert found.layout.answer_start == found.input_ids.numel()


def test_native_grids_of_several_images(qwen):
    model, processor = qwen
    found = prepare_inputs(model, processor, [picture(90, 60), picture(60, 120), picture(60, 60)], PROMPT)
    assert found.layout.sizes == [(2, 3), (4, 2), (2, 2)]
    assert [grid.source for grid in found.layout.grids] == [0, 1, 2]
    joined = torch.cat([grid.positions for grid in found.layout.grids])
    assert torch.equal(joined, joined.sort().values)
    assert torch.equal(joined, torch.nonzero(visual_mask(model.config, found.input_ids)).flatten())


def video_input(ids, **sizes):
    config = SimpleNamespace(
        model_type="qwen2_vl",
        image_token_id=7,
        video_token_id=8,
        vision_config=SimpleNamespace(spatial_merge_size=2),
    )
    inputs = {name: torch.tensor(value) for name, value in sizes.items()}
    return VisualInput(config, None, torch.tensor(ids), inputs, [])


def test_native_grids_of_a_video_are_one_a_frame_in_sequence_order():
    ids = [1] + [8] * 6 + [2] + [7] * 2 + [3]
    grids = native_grids(video_input(ids, video_grid_thw=[[3, 2, 4]], image_grid_thw=[[1, 2, 4]]))
    assert [(grid.kind, grid.source, grid.frame, grid.shape) for grid in grids] == [
        ("video", 0, 0, (1, 2)),
        ("video", 0, 1, (1, 2)),
        ("video", 0, 2, (1, 2)),
        ("image", 0, 0, (1, 2)),
    ]
    assert torch.cat([grid.positions for grid in grids]).tolist() == [1, 2, 3, 4, 5, 6, 8, 9]


@pytest.mark.parametrize("tokens", [0, 3, 5])
def test_native_grid_that_does_not_fit_its_tokens_is_refused(tokens):
    with pytest.raises(ModelNotSupportedError, match=rf"expected 4 image tokens .*qwen2_vl.*got {tokens}"):
        native_grids(video_input([1] + [7] * tokens, image_grid_thw=[[1, 4, 4]]))


def test_placeholders_without_images_are_refused():
    with pytest.raises(ModelNotSupportedError, match="expected 0 image tokens"):
        native_grids(video_input([1, 7, 7]))


# Fixed grids -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, box",
    [
        ((336, 336), (0, 0, 1, 1)),
        ((672, 336), (168 / 672, 0, 504 / 672, 1)),
        ((336, 1000), (0, 332 / 1000, 1, 668 / 1000)),
        ((640, 480), (56 / 448, 0, 392 / 448, 1)),  # 448 x 336 after the resize
        ((500, 375), (56 / 448, 0, 392 / 448, 1)),
        ((101, 67), (85 / 506, 0, 421 / 506, 1)),  # 506.5 is cut to 506
    ],
)
def test_centre_crop_box(size, box):
    processor = SimpleNamespace(
        do_resize=True,
        size={"shortest_edge": 336},
        do_center_crop=True,
        crop_size={"height": 336, "width": 336},
    )
    assert crop_box(processor, size) == pytest.approx(box)


def test_box_of_other_resizes():
    squeezed = SimpleNamespace(do_resize=True, size={"height": 30, "width": 20}, do_center_crop=False)
    assert crop_box(squeezed, (500, 100)) == (0.0, 0.0, 1.0, 1.0)
    crop = {"height": 8, "width": 8}
    padded = SimpleNamespace(do_resize=False, do_center_crop=True, crop_size=crop)
    assert crop_box(padded, (4, 16)) == (-0.5, 0.25, 1.5, 0.75)
    unknown = SimpleNamespace(do_resize=True, size={"longest_edge": 9}, do_center_crop=False)
    with pytest.raises(ModelNotSupportedError, match="shortest_edge"):
        crop_box(unknown, (4, 4))


@pytest.mark.parametrize("size", [(160, 60), (60, 160), (149, 97), (61, 60)])
def test_box_is_where_the_pixels_came_from(llava, size):
    """A ramp over the image shows in the processed pixels which part of it is left."""
    processor = llava[1].image_processor
    width, height = size
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(width)
    ramp[..., 1] = np.arange(height)[:, None]
    pixels = processor([Image.fromarray(ramp)], return_tensors="np")["pixel_values"][0]
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    values = (pixels * std[:, None, None] + mean[:, None, None]) * 255
    x0, y0, x1, y1 = crop_box(processor, size)
    columns, rows = values[0].mean(0), values[1].mean(1)
    cells = np.arange(len(columns)) + 0.5
    inner = slice(3, -3)  # the resize replicates the border
    np.testing.assert_allclose(columns[inner], ((x0 + (x1 - x0) * cells / 56) * width - 0.5)[inner], atol=1.1)
    np.testing.assert_allclose(rows[inner], ((y0 + (y1 - y0) * cells / 56) * height - 0.5)[inner], atol=1.1)


def test_fixed_grid(llava):
    model, processor = llava
    found = prepare_inputs(model, processor, [picture(112, 56), picture(56, 56)], PROMPT)
    assert found.layout.sizes == [(4, 4), (4, 4)]
    assert found.layout.grids[0].box == (0.25, 0.0, 0.75, 1.0)
    assert found.layout.grids[1].box == (0.0, 0.0, 1.0, 1.0)
    marked = torch.nonzero(found.input_ids == model.config.image_token_id).flatten()
    assert torch.equal(found.layout.visual_positions, marked)


def test_fixed_grid_refuses_other_towers_and_counts(llava):
    model, processor = llava
    ids = torch.full((16,), model.config.image_token_id)
    pixels = {"pixel_values": torch.zeros(1, 3, 56, 56)}
    assert len(fixed_grids(VisualInput(model.config, processor, ids, pixels, [(56, 56)]))) == 1
    with pytest.raises(ModelNotSupportedError, match=r"expected 16 image tokens .*got 17"):
        fixed_grids(VisualInput(model.config, processor, ids.new_full((17,), int(ids[0])), pixels, [(56, 56)]))
    with pytest.raises(ModelNotSupportedError, match="pixel_values"):
        fixed_grids(VisualInput(model.config, processor, ids, {}, [(56, 56)]))
    config = copy.deepcopy(model.config)
    config.vision_config.model_type = "pixtral"
    with pytest.raises(ModelNotSupportedError, match="pixtral"):
        fixed_grids(VisualInput(config, processor, ids, pixels, [(56, 56)]))


# Families ----------------------------------------------------------------------------------------


def fake(model_type, **config):
    return SimpleNamespace(config=SimpleNamespace(model_type=model_type, **config))


def test_supported_families():
    assert family_of(fake("qwen2_5_vl")) is FAMILIES["qwen2_vl"]
    assert family_of(fake("llava")).answer_prefix == " "


@pytest.mark.parametrize("model_type", sorted(IMPOSSIBLE))
def test_impossible_models_get_the_reason(model_type):
    with pytest.raises(ModelNotSupportedError, match=r"not possible: it") as caught:
        family_of(fake(model_type))
    assert isinstance(caught.value, ValueError)
    assert model_type in str(caught.value)
    assert IMPOSSIBLE[model_type] in str(caught.value)


@pytest.mark.parametrize("model_type", [*sorted(MISSING), "llama"])
def test_models_to_come_get_what_is_missing(model_type):
    with pytest.raises(ModelNotSupportedError, match=rf"'{model_type}'.*not supported yet: missing is .*qwen2_vl"):
        family_of(fake(model_type))


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="model_type"):
        family_of(object())
    with pytest.raises(ModelNotSupportedError, match="cross-attention"):
        family_of(fake("some_encoder_decoder", is_encoder_decoder=True))
    with pytest.raises(ModelNotSupportedError, match="image_token_id"):
        visual_mask(SimpleNamespace(model_type="x"), torch.tensor([1]))


def test_older_configurations_call_the_token_an_index():
    config = SimpleNamespace(model_type="llava", image_token_index=5)
    assert visual_mask(config, torch.tensor([5, 1])).tolist() == [True, False]


# Prompts -----------------------------------------------------------------------------------------


def prompt_text(found, processor):
    return processor.tokenizer.decode(found.input_ids[found.layout.prompt])


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


def test_tokens_in_spans():
    offsets = [(0, 0), (0, 3), (3, 5), (5, 5), (5, 9), (9, 9)]
    assert tokens_in_spans(offsets, [(3, 5)]) == [2, 3]
    assert tokens_in_spans(offsets, [(4, 6)]) == [2, 3, 4]
    assert tokens_in_spans(offsets, [(0, 3), (8, 9)]) == [1, 4, 5]
    assert tokens_in_spans(offsets, []) == []


# Images ------------------------------------------------------------------------------------------


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


# Text --------------------------------------------------------------------------------------------

TEXTS = [
    "The dog looks at the cat.",
    " leading and  double spaces\n\n\ttabs",
    "你好，世界 🙂👩‍👩‍👧 ñandú",
    "é" * 200 + " the dog" * 40 + "🙂" * 30,
]


@pytest.mark.parametrize("make", [byte_tokenizer, piece_tokenizer])
@pytest.mark.parametrize("text", TEXTS)
def test_decoder_gives_text_pieces_and_offsets(make, text):
    tokenizer = make()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoder = TextDecoder(tokenizer)
    for index, token in enumerate(ids):
        peeked = decoder.peek(token)
        assert decoder.append(token) == peeked
        known = tokenizer.decode(ids[: index + 1], skip_special_tokens=True)
        assert decoder.text == known or (decoder.text.endswith("\ufffd") and known.endswith("\ufffd"))
    assert decoder.text == tokenizer.decode(ids, skip_special_tokens=True) == text
    covered = sorted(set(decoder.offsets))
    assert covered[0][0] == 0
    assert covered[-1][1] == len(text)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(covered)), "gap or overlap"
    for piece, (start, end) in zip(decoder.pieces, decoder.offsets, strict=True):
        assert end > start or (piece, start) == ("", 0), "a leading space that decoding drops"
        assert "\ufffd" in piece or piece == text[start:end]
    assert token_pieces(tokenizer, ids) == decoder.pieces


@pytest.mark.parametrize("make", [byte_tokenizer, piece_tokenizer])
def test_decoder_survives_garbage_and_special_tokens(make):
    tokenizer = make()
    special = tokenizer.eos_token_id
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(len(tokenizer), (150,), generator=generator).tolist()
        ids[7] = special
        decoder = TextDecoder(tokenizer)
        for token in ids:
            decoder.append(token)
        if make is byte_tokenizer:  # runs of stray bytes are decoded as a whole by the other
            known = tokenizer.decode(ids, skip_special_tokens=True)
            assert decoder.text.rstrip("\ufffd") == known.rstrip("\ufffd")
        assert decoder.pieces[7] == tokenizer.eos_token
        assert decoder.offsets[7][0] == decoder.offsets[7][1]
        assert all(0 <= start <= end <= len(decoder.text) for start, end in decoder.offsets)
    assert TextDecoder(tokenizer).peek(special) == tokenizer.eos_token


# Processors --------------------------------------------------------------------------------------


def test_importing_needs_no_transformers():
    import subprocess

    code = "import sys, tam_fast, tam_fast.capture, tam_fast.explainer, tam_fast.models.processors as p;" + (
        "p.load_processor; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", ["Qwen2VLProcessor", "Qwen2_5_VLProcessor"])
def test_processor_without_video_is_saved_loaded_copied(tmp_path, name):
    processor = qwen_processor(name=name)
    processor.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    assert type(loaded) is type(processor)
    text = [f"<|vision_start|><|image_pad|><|vision_end|>{PROMPT}"]
    expected = processor(images=[picture()], text=text, return_tensors="pt")
    for other in (loaded, copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert other.chat_template == QWEN_TEMPLATE
        found = other(images=[picture()], text=text, return_tensors="pt")
        assert torch.equal(found["input_ids"], expected["input_ids"])
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
    with pytest.raises(ValueError, match="torchvision"):
        processor(text=["x"], videos=[np.zeros((2, 28, 28, 3), np.uint8)])


def test_llava_processor_is_loaded(tmp_path):
    processor = llava_processor()
    processor.save_pretrained(tmp_path)
    loaded = load_processor(str(tmp_path))
    found = loaded(images=[picture()], text=["<image> dog"], return_tensors="pt")
    assert torch.equal(
        found["pixel_values"], processor(images=[picture()], text=["<image> dog"], return_tensors="pt")["pixel_values"]
    )


def test_folders_without_a_processor_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="path_or_id"):
        load_processor(tmp_path / "none")
    piece_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="path_or_id"):
        load_processor(tmp_path)
    with pytest.raises(ValueError, match="LlavaProcessor"):
        image_only_processor_class("LlavaProcessor")


# Real tokenizers and processors ------------------------------------------------------------------


def test_real_qwen_processor(shared_data):
    processor = load_processor(shared_data / "processors" / "qwen2vl")
    model = SimpleNamespace(
        config=SimpleNamespace(
            model_type="qwen2_vl",
            image_token_id=processor.image_token_id,
            video_token_id=processor.video_token_id,
            vision_config=SimpleNamespace(spatial_merge_size=2),
        )
    )
    photos = sorted((shared_data / "coco_free" / "image").glob("*.jpg"))[:2]
    images = load_images(photos)
    found = prepare_inputs(model, processor, images, "Describe this image, naïvely: 你好 🙂.")
    assert prompt_text(found, processor) == "Describe this image, naïvely: 你好 🙂."
    for image, grid in zip(images, found.layout.grids, strict=True):
        assert grid.shape == (round(image.height / 28), round(image.width / 28))
    decoder = TextDecoder(processor.tokenizer)
    for text in TEXTS:
        decoder = TextDecoder(processor.tokenizer)
        for token in processor.tokenizer(text)["input_ids"]:
            decoder.append(token)
        assert decoder.text == text


def test_real_llava_tokenizer(shared_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "processors" / "llava15_tokenizer")
    processor = llava_processor(tokenizer, size=336)
    config = SimpleNamespace(
        model_type="llava",
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_config=SimpleNamespace(model_type="clip_vision_model", patch_size=14),
    )
    found = prepare_inputs(SimpleNamespace(config=config), processor, [picture(640, 480)], "Describe the dog: 你好 🙂.")
    assert found.layout.sizes == [(24, 24)]
    assert found.layout.grids[0].box == pytest.approx((0.125, 0, 0.875, 1))
    assert prompt_text(found, processor).strip() == "Describe the dog: 你好 🙂."
    assert tokenizer.convert_ids_to_tokens(found.input_ids[:3].tolist()) == ["<s>", "▁US", "ER"]
    for text in TEXTS:
        decoder = TextDecoder(tokenizer)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for token in ids:
            decoder.append(token)
        assert decoder.text == tokenizer.decode(ids)
