"""Layouts of the group `tiles`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

import copy
import sys
import timeit

import numpy as np
import pytest
import standin
import torch
from conftest_models import PROMPT, _pil_class, picture
from families import build
from layout_cases import build_or_skip, check_answers, check_geometry, families
from painting import flat, given

import tam_fast
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.families import FAMILIES
from tam_fast.models.inputs import prepare_inputs
from tam_fast.models.layouts import VisualInput
from tam_fast.models.layouts.tiles import internvl_grids, least_enlarged_canvas, nearest_canvas


@families("tiles")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("tiles")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


SIZES = [
    *np.random.default_rng(5).integers(8, 2400, (400, 2)).tolist(),
    # Of proportions that canvases have, about the areas at which another one is taken.
    *(
        [side * wide + more, side * high]
        for side in (5, 158, 224, 448, 633)
        for wide, high in ((1, 1), (2, 1), (2, 3))
        for more in (-1, 0, 1)
    ),
]


def rule_of(cls):
    return sys.modules[cls.__module__].get_optimal_tiled_canvas


@pytest.mark.parametrize("side, least, most", [(448, 1, 12), (364, 1, 12), (448, 3, 7), (32, 1, 1), (32, 2, 40)])
def test_canvases_of_hundreds_of_sizes_are_the_processors(side, least, most):
    rule = rule_of(_pil_class("GotOcr2ImageProcessor"))
    for width, height in SIZES:
        expected = rule((height, width), (side, side), least, most)
        assert nearest_canvas((width, height), (side, side), least, most) == tuple(expected), (width, height)


@pytest.mark.parametrize("side, most", [(512, 12), (364, 6), (32, 1), (32, 40)])
def test_canvases_of_cohere_are_the_processors(side, most):
    cls = standin.take("cohere2_vision.image_processing_cohere2_vision", "Cohere2VisionImageProcessor")
    rule = rule_of(cls)
    for width, height in SIZES:
        expected = tuple(int(number) for number in rule((height, width), (side, side), 1, most))
        assert least_enlarged_canvas((width, height), side, most) == expected, (width, height)


def tiles_input(name, counts, sizes, side=32):
    """A prompt of images of so many visual tokens, for a family's own configuration and processor."""
    built = build_or_skip(name)
    tokenizer, config = built.processor.tokenizer, built.model.config
    start = tokenizer.convert_tokens_to_ids("<img>" if name.startswith("internvl") else "<|START_OF_IMG|>")
    ids = [1]
    for count in counts:
        ids += [start, *[config.image_token_id] * count, 2]
    inputs = {"pixel_values": torch.zeros(sum(counts) // 4, 3, side, side)}
    return VisualInput(config, built.processor, torch.tensor(ids), inputs, sizes)


def test_one_tile_is_the_whole_image():
    grids = internvl_grids(tiles_input("internvl", [4, 12], [(32, 32), (64, 32)]))
    assert [(grid.kind, grid.source, grid.box) for grid in grids] == [
        ("image", 0, (0.0, 0.0, 1.0, 1.0)),
        ("tile", 1, (0.0, 0.0, 0.5, 1.0)),
        ("tile", 1, (0.5, 0.0, 1.0, 1.0)),
        ("overview", 1, (0.0, 0.0, 1.0, 1.0)),
    ]


@pytest.mark.parametrize("name", ["internvl", "aya_vision", "cohere2_vision"])
def test_sizes_are_needed(name):
    grids = FAMILIES[name].grids
    with pytest.raises(ValueError, match=r"image_sizes: expected .* got None"):
        grids(tiles_input(name, [12], None))
    with pytest.raises(ValueError, match=r"image_sizes: expected \(width, height\) of 2 images, got 1"):
        grids(tiles_input(name, [12, 4], [(64, 32)]))
    with pytest.raises(ModelNotSupportedError, match=r"(1 x 2|2 x 2) tiles"):
        grids(tiles_input(name, [12, 16], [(64, 32), (32, 64)]))
    with pytest.raises(ModelNotSupportedError, match="a multiple of 4 visual tokens an image"):
        grids(tiles_input(name, [13], [(64, 32)]))
    with pytest.raises(ModelNotSupportedError, match="multiple of 2 patches"):
        grids(tiles_input(name, [12], [(64, 32)], side=24))


def test_settings_of_the_processor_override_those_of_its_part():
    built = build("internvl")
    processor = copy.copy(built.processor)
    for options, count in (({}, 6), ({"max_patches": 2}, 2)):
        processor.images_kwargs = {"crop_to_patches": True, **options}
        if not hasattr(type(processor), "images_kwargs"):
            pytest.skip("this version of transformers keeps them elsewhere")
        layout = prepare_inputs(built.model, processor, [picture(96, 64)], PROMPT).layout
        assert sum(grid.kind == "tile" for grid in layout.grids) == count
    processor.images_kwargs = {"crop_to_patches": False}
    layout = prepare_inputs(built.model, processor, [picture(96, 64)], PROMPT).layout
    assert [grid.kind for grid in layout.grids] == ["image"]


def test_the_layout_is_had_in_milliseconds():
    found = tiles_input("internvl", [4 * 7] * 3, [(96, 64)] * 3)
    assert min(timeit.repeat(lambda: internvl_grids(found), number=1, repeat=9)) < 0.005


class Videos:
    """In place of a video processor, which needs torchvision: frames of one tile each."""

    model_input_names = ("pixel_values_videos",)

    def __call__(self, videos, **_):
        return {"pixel_values_videos": torch.zeros(len(videos), 3, 3, 32, 32)}


def test_frames_of_videos_are_told_from_images():
    import transformers
    from families import tools

    built = build("internvl")
    processor = tools.without_videos(transformers.InternVLProcessor)(
        image_processor=built.processor.image_processor,
        tokenizer=built.processor.tokenizer,
        video_processor=Videos(),
        image_seq_length=4,
        chat_template=built.processor.chat_template,
    )
    content = [{"type": kind} for kind in ("image", "video", "image", "video")] + [{"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    found = processor(
        images=[picture(64, 32), picture(30, 30)],
        videos=[np.zeros((3, 8, 8, 3), np.uint8)] * 2,
        text=[text],
        return_tensors="pt",
    )
    layout = tam_fast.layout_of(built.model, processor, found, [(64, 32), (30, 30)])
    assert [(grid.kind, grid.source, grid.frame) for grid in layout.grids] == [
        *[("tile", 0, 0), ("tile", 0, 0), ("overview", 0, 0)],
        *[("video", 0, frame) for frame in range(3)],
        ("image", 1, 0),
        *[("video", 1, frame) for frame in range(3)],
    ]
    assert processor.tokenizer.decode(found["input_ids"][0][layout.prompt]) == PROMPT
    model = flat(built)
    base = given(model, found)
    for number, grid in enumerate(layout.grids):
        for row, column in ((0, 1), (1, 0)):
            pixels = found["pixel_values"].clone()
            pixels[number, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 1.0
            change = (given(model, {**found, "pixel_values": pixels}) - base).norm(dim=1)
            assert torch.nonzero(change > 1e-6).flatten().tolist() == [int(grid.positions[2 * row + column])]


def test_what_a_user_writes_names_no_frame():
    built = build("internvl")
    text = [{"type": "text", "text": "Frame1: "}, {"type": "image"}, {"type": "text", "text": PROMPT}]
    text = built.processor.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    found = built.processor(images=[picture(30, 30)], text=[text], return_tensors="pt")
    layout = tam_fast.layout_of(built.model, built.processor, found, [(30, 30)])
    assert [grid.kind for grid in layout.grids] == ["image"]
