"""Layouts of the group `anyres`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

import copy
import math
import timeit
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest_models import PROMPT, _pil_class, picture
from families import build
from layout_cases import build_or_skip, check_answers, check_geometry, families
from painting import flat, given

import tam_fast
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.families import FAMILIES
from tam_fast.models.layouts import VisualInput
from tam_fast.models.layouts.anyres import granite4_grids, llava_next_grids, llava_onevision_grids


@families("anyres")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("anyres")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


def anyres_input(name, count, sizes=None, videos=0, **inputs):
    """A prompt of so many visual tokens, for a family's own configuration and processor."""
    built = build_or_skip(name)
    config = built.model.config
    ids = [1, *[config.image_token_id] * count, 2, *[getattr(config, "video_token_id", 0)] * videos, 3]
    inputs = {key: torch.as_tensor(value) for key, value in inputs.items()}
    return VisualInput(config, built.processor, torch.tensor(ids), inputs, sizes)


RELEASED = {
    "llava_next": ("LlavaNext", 336, 14, [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], {}),
    "granite4_vision": (
        "LlavaNext",
        384,
        16,
        [[384 * high, 384 * wide] for high in range(1, 11) for wide in range(1, 11) if high * wide <= 10],
        {"downsample_rate": "4/8"},
    ),
    "llava_onevision": (
        "LlavaOnevision",
        384,
        14,
        [[384 * high, 384 * wide] for high in range(1, 7) for wide in range(1, 7)],
        {"vision_aspect_ratio": "anyres_max_9"},
    ),
}


def released(name):
    """A processor and a configuration with the numbers of a released model; there is no model."""
    images, side, patch, canvases, more = RELEASED[name]
    built = build_or_skip(name)
    images = _pil_class(f"{images}ImageProcessor")(
        size={"height": side, "width": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=canvases
    )
    cells = side // patch
    processor = copy.copy(built.processor)
    processor.image_processor, processor.patch_size, processor.num_image_tokens = images, patch, cells * cells
    config = copy.deepcopy(built.model.config)
    config.vision_config.image_size, config.vision_config.patch_size = side, patch
    config.image_grid_pinpoints = canvases
    for field, value in more.items():
        setattr(config, field, value)
        setattr(processor, field, value)
    return processor, config


@pytest.mark.parametrize("name", RELEASED)
def test_counts_of_hundreds_of_sizes_are_the_processors(name):
    processor, config = released(name)
    random = np.random.default_rng(3)
    for height, width in [*random.integers(20, 2600, (200, 2)), *((size, 700) for size in range(600, 700, 3))]:
        height, width = int(height), int(width)
        side = config.vision_config.image_size
        count = processor._get_number_of_features(height, width, side, side)
        count -= getattr(processor, "num_additional_image_tokens", 0)
        ids = torch.full((count,), config.image_token_id)
        found = VisualInput(config, processor, ids, {"image_sizes": torch.tensor([[height, width]])}, None)
        whole, *rest = FAMILIES[name].grids(found)
        assert whole.shape == (math.isqrt(len(whole)),) * 2
        if not rest:  # a line: newlines are all that is left of its canvas
            assert max(height, width) > 20 * min(height, width)
            continue
        raster = rest[0]
        assert len(whole) + raster.height * (raster.width + 1) == count
        for axis in (0, 1):
            low, high, cells = raster.box[axis], raster.box[2 + axis], raster.shape[1 - axis]
            cell = (high - low) / cells
            # All of the image but what no patch sees, and little beyond it: half a cell was rounded off at most.
            assert -1.6 * cell < low < 0.55 * cell, (height, width)
            assert -1.1 * cell < high - 1 < 1.6 * cell, (height, width)


def test_the_layout_is_had_in_milliseconds():
    processor, config = released("llava_onevision")
    count = processor._get_number_of_features(2000, 1500, 384, 384)
    ids = torch.full((count,), config.image_token_id)
    found = VisualInput(config, processor, ids, {"image_sizes": torch.tensor([[2000, 1500]])}, None)
    assert min(timeit.repeat(lambda: llava_onevision_grids(found), number=1, repeat=9)) < 0.005


def test_sizes_of_images_are_those_of_the_inputs_or_the_callers():
    inputs = anyres_input("llava_next", 16 + 4 * 9, image_sizes=[[32, 64]])
    told = anyres_input("llava_next", 16 + 4 * 9, [(64, 32)])
    assert llava_next_grids(inputs) == llava_next_grids(told)
    with pytest.raises(ValueError, match=r"image_sizes: expected .* got None"):
        llava_next_grids(anyres_input("llava_next", 52))


@pytest.mark.parametrize("name", ["llava_next", "llava_next_video", "llava_onevision", "granite4_vision"])
def test_other_counts_are_refused(name):
    with pytest.raises(ModelNotSupportedError, match=r"expected 16 \+ 10|expected \d+ image tokens"):
        FAMILIES[name].grids(anyres_input(name, 51, [(64, 32)]))


def test_what_does_not_fit_together_is_refused():
    found = anyres_input("llava_next", 52, [(64, 32)])
    other = copy.deepcopy(found.config)
    other.image_grid_pinpoints = [[64, 64]]
    with pytest.raises(ModelNotSupportedError, match="image_grid_pinpoints"):
        llava_next_grids(replace(found, config=other))
    with pytest.raises(ModelNotSupportedError, match="tiles of 32 x 32"):
        llava_next_grids(replace(found, inputs={"pixel_values": torch.zeros(1, 3, 3, 48, 48)}))
    with pytest.raises(ModelNotSupportedError, match="expected 0 video tokens"):
        FAMILIES["llava_next_video"].grids(anyres_input("llava_next_video", 52, [(64, 32)], videos=3))


def test_patches_are_whole_windows():
    other = copy.deepcopy(build_or_skip("granite4_vision").model.config)
    other.downsample_rate = "1/3"
    with pytest.raises(ModelNotSupportedError, match="multiple of 3"):
        granite4_grids(replace(anyres_input("granite4_vision", 52, [(64, 32)]), config=other))


def test_images_of_a_nested_list_are_not_tiled():
    built = build("llava_onevision")
    pictures = [picture(90, 40), picture(40, 64)]
    text = built.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": PROMPT}]}],
        tokenize=False,
    )
    found = built.processor(images=[pictures], text=[text], return_tensors="pt")
    layout = tam_fast.layout_of(built.model, built.processor, found)
    assert [(grid.kind, grid.source, grid.shape) for grid in layout.grids] == [
        ("image", 0, (4, 4)),
        ("image", 1, (4, 4)),
    ]
    model = flat(built)
    changed = built.processor(images=[[pictures[0], picture(40, 64, seed=5)]], text=[text], return_tensors="pt")
    difference = (given(model, changed) - given(model, found)).norm(dim=1)
    assert torch.nonzero(difference > 1e-6).flatten().tolist() == layout.grids[1].positions.tolist()
    flat_list = built.processor(images=pictures, text=[text], return_tensors="pt")
    assert len(tam_fast.layout_of(built.model, built.processor, flat_list).grids) == 4


@pytest.mark.parametrize("name", ["llava_onevision", "llava_onevision.shrunk"])
def test_frames_of_videos_see_their_own_pixels(name):
    model = flat(build(name))
    side = model.config.vision_config.image_size
    pixels = torch.zeros(2, 3, 3, side, side)
    found = anyres_input(name, 0, videos=2 * (3 * 4 + 1), pixel_values_videos=pixels)
    grids = llava_onevision_grids(replace(found, image_sizes=[]))
    shown = [(grid.kind, grid.source, grid.frame, grid.shape) for grid in grids]
    assert shown == [("video", video, frame, (2, 2)) for video in (0, 1) for frame in (0, 1, 2)]
    base = given(model, {"input_ids": found.input_ids[None], "pixel_values_videos": pixels})
    for grid in grids:
        for row, column in ((0, 1), (1, 0)):
            painted = pixels.clone()
            half = 16
            part = slice(row * half, (row + 1) * half), slice(column * half, (column + 1) * half)
            painted[(grid.source, grid.frame, slice(None), *part)] = 1.0
            change = given(model, {"input_ids": found.input_ids[None], "pixel_values_videos": painted}) - base
            changed = torch.nonzero(change.norm(dim=1) > 1e-6).flatten().tolist()
            assert changed == [int(grid.positions[2 * row + column])]
