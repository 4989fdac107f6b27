"""Layouts of the group `fixed`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest_models import _pil_class, picture
from families import tools
from layout_cases import build_or_skip, check_answers, check_geometry, families
from PIL import Image

import tam_fast
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.families import FAMILIES
from tam_fast.models.layouts import VisualInput
from tam_fast.models.layouts.crops import _number_of_crops, _strips
from tam_fast.models.layouts.fixed import centred_grids, crop_box, square_grids, video_llava_grids


@families("fixed")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("fixed")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


def _asked(built, images, content="Hello", **options):
    """A processor's output for images and a text, asked for something."""
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": content}]
    template = built.processor.chat_template or FAMILIES[built.model.config.model_type].chat_template
    text = built.processor.apply_chat_template(
        [{"role": "user", "content": parts}], chat_template=template, add_generation_prompt=True
    )
    return built.processor(images=images, text=[text], return_tensors="pt", **options)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("llava", True),
        ("llava.siglip", False),
        ("llava.pad", True),
        ("vipllava", True),
        ("video_llava", True),
        ("paligemma", False),
        ("gemma3", False),
        ("janus", True),
        ("deepseek_vl", True),
        ("got_ocr2", False),
        ("pp_chart2table", False),
        ("chameleon", True),
    ],
)
def test_sizes_are_asked_for_where_they_tell_something(name, needed):
    built = build_or_skip(name)
    images = [picture(70, 40), picture(40, 50)]
    inputs = _asked(built, images)
    if needed:
        with pytest.raises(ValueError, match="image_sizes: expected"):
            tam_fast.layout_of(built.model.config, built.processor, inputs)
    else:
        layout = tam_fast.layout_of(built.model.config, built.processor, inputs)
        assert [grid.source for grid in layout.grids] == [0, 1]
        assert layout == tam_fast.layout_of(built.model, built.processor, inputs, [image.size for image in images])


@pytest.mark.long
@pytest.mark.parametrize("name", ["llava", "paligemma", "gemma3", "janus", "got_ocr2", "chameleon"])
def test_other_counts_are_refused(name):
    built = build_or_skip(name)
    inputs = dict(_asked(built, [picture(70, 40)]))
    visual = torch.nonzero(inputs["input_ids"][0] == built.model.config.image_token_id).flatten()
    kept = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    kept[visual[0]] = False
    inputs["input_ids"] = inputs["input_ids"][:, kept]
    with pytest.raises(ModelNotSupportedError, match=f"image tokens .*got {visual.numel() - 1}"):
        tam_fast.layout_of(built.model.config, built.processor, inputs, [(70, 40)])


# ------------------------------------------------------------------------------------------------------- pan and scan

PAN = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 20}


@pytest.mark.long
def test_crops_that_only_the_call_asked_for():
    built = build_or_skip("gemma3")
    images = [picture(100, 40), picture(60, 60), picture(40, 100)]
    inputs = _asked(built, images, "Here is the original image ", images_kwargs=dict(PAN))
    built.processor.images_kwargs = {**getattr(built.processor, "images_kwargs", {}), **PAN}
    try:
        layout = tam_fast.layout_of(built.model.config, built.processor, inputs, [image.size for image in images])
    finally:
        del built.processor.images_kwargs
    kinds = [(grid.source, grid.kind) for grid in layout.grids]
    assert kinds == [(0, "overview"), *[(0, "crop")] * 3, (1, "image"), (2, "overview"), *[(2, "crop")] * 3]
    shown = built.processor.tokenizer.decode(inputs["input_ids"][0][layout.prompt])
    assert shown.strip() == "Here is the original image"
    with pytest.raises(ValueError, match="image_sizes"):
        tam_fast.layout_of(built.model.config, built.processor, inputs)
    # One image, or crops behind each: their number needs no settings.
    inputs = _asked(built, images[::2], images_kwargs=dict(PAN))
    layout = tam_fast.layout_of(built.model.config, built.processor, inputs, [(100, 40), (40, 100)])
    assert len(layout.grids) == 8
    with pytest.raises(ModelNotSupportedError, match="images and crops"):
        tam_fast.layout_of(built.model.config, built.processor, inputs, [(100, 40), (40, 100), (60, 60)])


@pytest.mark.parametrize(("least", "most", "ratio"), [(20, 4, 1.2), (7, 6, 1.0), (33, 3, 2.0)])
def test_numbers_of_crops_are_the_processors(least, most, ratio):
    settings = {
        "pan_and_scan_min_crop_size": least,
        "pan_and_scan_max_num_crops": most,
        "pan_and_scan_min_ratio_to_activate": ratio,
    }
    images = _pil_class("Gemma3ImageProcessor")(do_pan_and_scan=True, **settings)
    source = VisualInput(None, SimpleNamespace(image_processor=images), torch.zeros(1), {}, None)
    for size in itertools.product(range(1, 120, 7), range(3, 200, 11)):
        found = images.pan_and_scan(np.zeros((3, size[1], size[0]), np.uint8), **settings)
        assert _number_of_crops(source, size) == len(found), size
        if found:
            widths = [round((x1 - x0) * size[0]) for x0, _, x1, _ in _strips(size, len(found))]
            heights = [round((y1 - y0) * size[1]) for _, y0, _, y1 in _strips(size, len(found))]
            assert [crop.shape[1:] for crop in found] == list(zip(heights, widths, strict=True))


# ------------------------------------------------------------------------------------------------------ GOT-OCR's tiles


@pytest.mark.long
def test_tiles_that_only_the_call_asked_for():
    built = build_or_skip("got_ocr2")
    images = [picture(60, 60), picture(100, 160)]
    sizes = [image.size for image in images]
    inputs = _asked(built, images, images_kwargs={"crop_to_patches": True, "max_patches": 6})
    with pytest.raises(ValueError, match="image_sizes"):
        tam_fast.layout_of(built.model.config, built.processor, inputs)
    with pytest.raises(ModelNotSupportedError, match="max_patches 12"):
        tam_fast.layout_of(built.model.config, built.processor, inputs, [(60, 60), (170, 60)])
    with pytest.raises(ModelNotSupportedError, match="max_patches 12"):
        tam_fast.layout_of(built.model.config, built.processor, inputs, sizes[::-1])
    layout = tam_fast.layout_of(built.model.config, built.processor, inputs, sizes)
    assert [(grid.source, grid.kind) for grid in layout.grids] == [
        (0, "image"),
        *[(1, "tile")] * 6,
        (1, "overview"),
    ]
    assert layout.grids[2].box == (0.5, 0.0, 1.0, 1 / 3)


# --------------------------------------------------------------------------------------------------------------- boxes


def _content(pixels):
    """Where pixels (3, H, W) are brighter than the grey around a white picture, as (x0, y0, x1, y1)."""
    seen = pixels[0] > pixels.max() / 2
    rows, columns = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize("name", ["LlavaImageProcessor", "JanusImageProcessor", "DeepseekVLHybridImageProcessor"])
def test_padded_boxes_are_the_processors(name):
    side = 84
    size = {"shortest_edge": side} if name.startswith("Llava") else {"height": side, "width": side}
    more = {"do_pad": True, "crop_size": {"height": side, "width": side}} if name.startswith("Llava") else {}
    try:
        images = _pil_class(name)(size=size, resample=0, **more)
    except (AttributeError, ImportError):
        pytest.skip(f"this version of transformers has no {name}")
    config = SimpleNamespace(model_type="janus", vision_config=SimpleNamespace(patch_size=14), image_token_id=0)
    for size in [(170, 60), (60, 170), (57, 61), (400, 9), (31, 30), (84, 83), (85, 84), (5, 11), (127, 64)]:
        pixels = images([Image.new("RGB", size, (255, 255, 255))], return_tensors="np")["pixel_values"][0]
        if name.startswith("Llava"):
            box = crop_box(images, size)
        else:
            given = {"pixel_values": torch.from_numpy(pixels)[None]}
            source = VisualInput(
                config, SimpleNamespace(image_processor=images), torch.zeros(36, dtype=torch.int64), given, [size]
            )
            (grid,) = centred_grids(source)
            box = grid.box
        # The picture's own edges, in pixels of the processed one.
        edges = [
            (at - low) / (high - low) * side for at, (low, high) in itertools.product((0, 1), (box[::2], box[1::2]))
        ]
        np.testing.assert_allclose(_content(pixels), edges, atol=1.0, err_msg=str(size))


def test_class_tokens_and_names_of_pixels():
    images = SimpleNamespace(do_resize=True, size={"height": 28, "width": 42}, do_center_crop=False)
    vision = SimpleNamespace(model_type="clip_vision_model", patch_size=14)
    config = SimpleNamespace(
        model_type="video_llava", vision_config=vision, image_token_id=7, vision_feature_select_strategy="full"
    )
    processor = SimpleNamespace(image_processor=images)
    ids = torch.tensor([1, *[7] * 7, 2, *[7] * 7])
    for name in ("pixel_values", "pixel_values_images"):
        grids = video_llava_grids(VisualInput(config, processor, ids, {name: torch.zeros(2, 3, 28, 42)}, None))
        assert [grid.positions.tolist() for grid in grids] == [list(range(2, 8)), list(range(10, 16))]
        assert [grid.shape for grid in grids] == [(2, 3)] * 2


@pytest.mark.parametrize("model_type", ["gemma3n", "fast_vlm"])
def test_families_that_need_timm_have_squares(model_type):
    family = FAMILIES[model_type]
    assert "timm" in family.unproven
    assert family.grids is square_grids
    images = SimpleNamespace(do_resize=True, size={"height": 64, "width": 64}, do_center_crop=False)
    config = SimpleNamespace(model_type=model_type, vision_config=None, image_token_id=7)
    processor = SimpleNamespace(image_processor=images)
    ids = torch.tensor([1, *[7] * 16, 2, *[7] * 16, 3])
    pixels = {"pixel_values": torch.zeros(2, 3, 64, 64)}
    grids = square_grids(VisualInput(config, processor, ids, pixels, None))
    assert [(grid.source, grid.shape, int(grid.positions[0])) for grid in grids] == [(0, (4, 4), 1), (1, (4, 4), 18)]
    assert all(grid.box == (0.0, 0.0, 1.0, 1.0) for grid in grids)
    with pytest.raises(ModelNotSupportedError, match="a square of visual tokens for each of 2 images"):
        square_grids(VisualInput(config, processor, ids[2:], pixels, None))


# -------------------------------------------------------------------------------------------------------- ShieldGemma 2


@pytest.mark.long
def test_shieldgemmas_own_processor_and_classifier():
    transformers = pytest.importorskip("transformers")
    built = build_or_skip("shieldgemma2")
    processor = transformers.ShieldGemma2Processor(
        built.processor.image_processor,
        built.processor.tokenizer,
        chat_template=tools.template("<start_of_image>"),
        image_seq_length=9,
    )
    inputs = processor(images=[picture(70, 40)], policies=["violence"], return_tensors="pt")
    layout = tam_fast.layout_of(built.model.config, processor, inputs)
    assert layout.sizes == [(3, 3)]
    assert "gore" in processor.tokenizer.decode(inputs["input_ids"][0][layout.prompt])
    # The classifier says how likely "Yes" is: there are no words to explain.
    classifier = transformers.ShieldGemma2ForImageClassification._from_config(
        copy.deepcopy(built.model.config), attn_implementation="eager"
    )
    with pytest.raises((ModelNotSupportedError, AttributeError)):  # the class itself, in transformers 5.0
        tam_fast.Explainer(classifier, built.processor)
