"""Layouts: grids of every group against where the tokens stand and the pixels came from, and what is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest_models import PROMPT, picture
from PIL import Image

from tam_fast.models import ModelNotSupportedError
from tam_fast.models.inputs import prepare_inputs
from tam_fast.models.layouts import VisualInput, visual_mask
from tam_fast.models.layouts.fixed import crop_box, fixed_grids
from tam_fast.models.layouts.native import native_grids


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
