"""Processors: saved, loaded and copied without a video part, and real ones with their tokenizers."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest_models import (
    PROMPT,
    QWEN_TEMPLATE,
    TEXTS,
    llava_model,
    llava_processor,
    picture,
    piece_tokenizer,
    prompt_text,
    qwen_processor,
)
from families.tools import tokenizer

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
        assert other.video_processor.settings == processor.video_processor.settings


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


DAMAGE = {
    "missing": None,
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "text": b'"x"',
    "object": b"{}",
    "cut": b'{"a": [1, 2',
    "binary": b"\xff\xfe\x00",
    "nested": b"[" * 100_000,
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Processors of both kinds as folders."""
    made = {}
    for make in (qwen_processor, llava_processor):
        made[make] = tmp_path_factory.mktemp(make.__name__)
        make().save_pretrained(made[make])
    return made


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("make", [qwen_processor, llava_processor])
def test_a_damaged_file_is_named(make, name, damage, folders, tmp_path):
    folder = shutil.copytree(folders[make], tmp_path / "p")
    (folder / name).unlink()
    if DAMAGE[damage] is not None:
        (folder / name).write_bytes(DAMAGE[damage])
    with pytest.raises(ValueError, match=f"^path_or_id: .*{name}") as caught:
        load_processor(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", lambda held: {**held, "model": None}),
        ("tokenizer.json", lambda held: {**held, "model": {**held["model"], "vocab": {}}}),
        ("tokenizer.json", lambda held: {**held, "added_tokens": 3}),
        ("tokenizer.json", lambda held: {key: value for key, value in held.items() if key != "added_tokens"}),
        ("processor_config.json", lambda held: {**held, "image_processor": []}),
        ("processor_config.json", lambda held: {"processor_class": held["processor_class"]}),
    ],
)
def test_a_file_of_another_content_is_named(name, change, folders, tmp_path):
    folder = shutil.copytree(folders[llava_processor], tmp_path / "p")
    (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))
    with pytest.raises(ValueError, match=f"^path_or_id: .*{name}"):
        load_processor(folder)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json", "chat_template.json"])
def test_a_damaged_file_that_need_not_be_there_is_named(name, folders, tmp_path):
    folder = shutil.copytree(folders[qwen_processor], tmp_path / "p")
    (folder / name).write_bytes(b"[")
    with pytest.raises(ValueError, match=f"path_or_id: .*{name}"):
        load_processor(folder)


def test_a_folder_of_the_old_kind_is_loaded(folders, tmp_path):
    """The image processor in a file of its own."""
    folder = shutil.copytree(folders[llava_processor], tmp_path / "p")
    held = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(held.pop("image_processor")))
    (folder / "processor_config.json").write_text(json.dumps(held))
    assert load_processor(folder).patch_size == 14
    (folder / "preprocessor_config.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"path_or_id: .*preprocessor_config.json"):
        load_processor(folder)


def test_the_real_folder_without_its_vocabulary_is_refused(shared_data, tmp_path):
    """By itself transformers loads it, with two tokens."""
    source = shared_data / "processors" / "qwen2vl"
    for name in ("processor_config.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, tmp_path)
    with pytest.raises(ValueError, match=r"path_or_id: .*tokenizer\.json"):
        load_processor(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json, or merges\.txt"):
        load_processor(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match=r"expected a tokenizer with a vocabulary .*tokenizer\.json"):
        load_processor(tmp_path)


def _old_llava(folder, tmp_path, leave_out=("patch_size", "vision_feature_select_strategy", "num_additional")):
    """A folder as processors were saved before they counted image tokens themselves."""
    folder = shutil.copytree(folder, tmp_path / "old")
    held = json.loads((folder / "processor_config.json").read_text())
    kept = {key: value for key, value in held.items() if not key.startswith(leave_out)}
    (folder / "processor_config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize(
    "leave_out", [("patch_size", "vision", "num_additional"), ("num_additional",), ("patch_size",)]
)
def test_an_old_llava_processor_is_completed_by_its_model(strategy, leave_out, tmp_path):
    whole = llava_processor(strategy=strategy)
    model = llava_model(whole, strategy=strategy)
    whole.save_pretrained(tmp_path / "whole")
    folder = _old_llava(tmp_path / "whole", tmp_path, leave_out)
    model.config.save_pretrained(folder)
    loaded = load_processor(folder)
    assert loaded.to_dict() == whole.to_dict()
    if strategy == "default":
        expected = prepare_inputs(model, whole, [picture()], PROMPT)
        assert torch.equal(prepare_inputs(model, loaded, [picture()], PROMPT).input_ids, expected.input_ids)


def test_an_old_llava_processor_that_nothing_completes_is_refused(folders, tmp_path):
    folder = _old_llava(folders[llava_processor], tmp_path)
    everything = "patch_size, vision_feature_select_strategy, num_additional_image_tokens"
    vision = {"model_type": "clip_vision_model", "patch_size": 14}
    for config, lacking in (
        (None, everything),
        ({"model_type": "llava"}, everything),
        ({"model_type": "llava", "vision_config": {**vision, "patch_size": 0}}, "patch_size, vision_feature"),
        ({"model_type": "llava", "vision_config": vision}, "vision_feature_select_strategy of"),
        (
            {"model_type": "llava", "vision_config": {"patch_size": 14}, "vision_feature_select_strategy": "full"},
            "num_additional_image_tokens of",
        ),
    ):
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"path_or_id: expected {lacking}"):
            load_processor(folder)
    given = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    loaded = load_processor(folder, **given)
    assert {name: getattr(loaded, name) for name in given} == given


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


@pytest.mark.parametrize(
    ("name", "videos"),
    [
        ("Qwen3VLProcessor", True),
        ("Glm4vProcessor", True),
        ("InternVLProcessor", True),
        ("LlavaOnevisionProcessor", True),
        ("MuseGlimmerProcessor", False),
    ],
)
def test_any_processor_with_a_video_part_is_saved_and_loaded_without_it(tmp_path, name, videos):
    if not hasattr(transformers, name):
        pytest.skip(f"this version of transformers has no {name}")
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<|image_pad|>",
        "image_end_token": "</img>",
        "image_start_token": "<img>",
        "video_start_token": "<vid>",
        "video_end_token": "</vid>",
    }
    words = tokenizer("<|vision_start|>", "<|vision_end|>", named=named)
    processor = image_only_processor_class(name)(qwen_processor().image_processor, words, chat_template=QWEN_TEMPLATE)
    processor.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    for other in (loaded, copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert type(other) is type(processor)
        assert other.chat_template == QWEN_TEMPLATE
        assert other.image_token == processor.image_token
        assert hasattr(other, "video_processor") is videos
        if videos:
            assert other.video_processor.to_dict() == processor.video_processor.to_dict()
        else:
            with pytest.raises(ValueError, match=r"^videos: "):
                other(videos=[picture()], text=["<|video_pad|>"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LlavaOnevisionProcessor", {"num_image_tokens": 729, "vision_feature_select_strategy": "full"}),
        ("LlavaOnevisionProcessor", {"vision_aspect_ratio": "anyres_max_4", "image_token": "<|image_pad|>"}),
        ("InternVLProcessor", {"image_seq_length": 64}),
    ],
)
def test_settings_of_the_processor_itself_are_saved_and_loaded(tmp_path, name, settings):
    names = ("start_image_token", "end_image_token", "context_image_token", "image_token", "video_token")
    named = {key: "<|image_pad|>" if key in names[2:4] else f"<{key}>" for key in names}
    images = qwen_processor().image_processor
    processor = image_only_processor_class(name)(images, tokenizer(named=named), **settings)
    processor.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    assert {key: getattr(loaded, key) for key in settings} == settings
    assert loaded.to_dict() == processor.to_dict()


@pytest.mark.parametrize("name", ["LlavaProcessor", "nothing", "PreTrainedModel"])
def test_only_processors_with_a_video_part_are_made_without_it(name):
    with pytest.raises(ValueError, match=rf"^name: expected .*{name}"):
        image_only_processor_class(name)
