"""Processors: saved, loaded and copied without a video part, and real ones with their tokenizers."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest_models import (
    PROMPT,
    QWEN_TEMPLATE,
    TEXTS,
    llava_processor,
    picture,
    piece_tokenizer,
    prompt_text,
    qwen_processor,
)

from tam_fast.models.inputs import load_images, prepare_inputs
from tam_fast.models.processors import image_only_processor_class, load_processor
from tam_fast.models.text import TextDecoder


def test_importing_needs_no_transformers():
    code = (
        "import sys, tam_fast, tam_fast.models.capture, tam_fast.explain.explainer, tam_fast.models.processors as p;"
        + ("p.load_processor; assert 'transformers' not in sys.modules")
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
