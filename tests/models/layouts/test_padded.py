"""Layouts of the group `padded`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

import random

import pytest
import torch
from layout_cases import build_or_skip, check_answers, check_geometry, families
from PIL import Image

import tam_fast
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.inputs import prepare_inputs


@families("padded")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("padded")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


def processed(name, *sizes):
    """A configuration, a processor, and what it makes of white pictures."""
    built = build_or_skip(name)
    images = [Image.new("RGB", size, (255, 255, 255)) for size in sizes]
    return built.model.config, built.processor, prepare_inputs(built.model.config, built.processor, images, "What?")


@families("padded")
def test_boxes_are_as_large_as_what_is_not_padding(name):
    draw = random.Random(0)
    for _ in range(150):
        size = (round(2 ** draw.uniform(1, 8.5)), round(2 ** draw.uniform(1, 8.5)))
        if max(size) > 40 * min(size):
            continue
        *_, prompt = processed(name, size)
        pixels = prompt.inputs["pixel_values"]
        white = int((pixels > 0).sum())  # what is padding was black
        (grid,) = prompt.layout.grids
        area = (grid.box[2] - grid.box[0]) * (grid.box[3] - grid.box[1])
        assert white == pytest.approx(pixels.numel() / area), size
        assert grid.box[:2] == (0.0, 0.0)
        assert min(grid.box[2:]) >= 1.0


@families("padded")
def test_sizes_are_needed_and_must_be_those_of_the_images(name):
    config, processor, prompt = processed(name, (90, 40))
    with pytest.raises(ValueError, match=r"image_sizes: expected .* got None"):
        tam_fast.layout_of(config, processor, prompt.inputs)
    with pytest.raises(ModelNotSupportedError, match=r"2 images|expected 112 \+ 112 image tokens"):
        tam_fast.layout_of(config, processor, prompt.inputs, [(90, 40), (90, 40)])
    other = (40, 190) if name.startswith("inkling_mm") else (40, 90)  # which has no shapes among its inputs
    with pytest.raises(ModelNotSupportedError, match=r"cells of an image of 40 x 90 pixels|expected [0-9]+ image"):
        tam_fast.layout_of(config, processor, prompt.inputs, [other])


@families("padded")
def test_more_tokens_than_cells_are_refused(name):
    config, processor, prompt = processed(name, (90, 40))
    ids = torch.cat([prompt.input_ids, torch.tensor([config.image_token_id])])
    with pytest.raises(ModelNotSupportedError, match=r"expected (18|112) image tokens .* got (19|113)"):
        tam_fast.layout_of(config, processor, {**prompt.inputs, "input_ids": ids}, [(90, 40)])


@families("padded")
def test_videos_are_refused(name):
    if name.startswith("inkling_mm"):  # it has none
        return
    config, processor, prompt = processed(name, (90, 40))
    inputs = {**prompt.inputs, "video_grid_thw": torch.tensor([[2, 4, 4]])}
    with pytest.raises(ModelNotSupportedError, match="images only"):
        tam_fast.layout_of(config, processor, inputs, [(90, 40)])


@pytest.mark.parametrize("name", ["kimi_k25", pytest.param("glm5_next", marks=pytest.mark.long)])
def test_images_that_are_not_resized_fill_their_cells(name, monkeypatch):
    built = build_or_skip(name)
    monkeypatch.setattr(built.processor.image_processor, "do_resize", False)
    *_, prompt = processed(name, (400, 32))
    (grid,) = prompt.layout.grids
    assert (grid.shape, grid.box) == ((2, 25), (0.0, 0.0, 1.0, 1.0))
