"""Layouts of the group `proportions`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

import random

import pytest
import torch
from clips import Framed, check_clips
from conftest_models import PROMPT, picture
from families import tools
from layout_cases import build_or_skip, check_answers, check_geometry, families

from tam_fast.models import ModelNotSupportedError
from tam_fast.models.inputs import prepare_inputs
from tam_fast.models.layouts.proportions import (
    emu3_grids,
    fuyu_grids,
    gemma4_grids,
    gemma4_unified_grids,
    lighton_grids,
)
from tam_fast.models.layouts.source import VisualInput


@families("proportions")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("proportions")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


def source(name, *sizes):
    built = build_or_skip(name)
    images = [picture(*size) for size in sizes]
    inputs = prepare_inputs(built.model, built.processor, images, PROMPT).inputs
    return VisualInput(built.model.config, built.processor, inputs["input_ids"][0], inputs, sizes)


def changed(found, sizes=None, **inputs):
    return VisualInput(found.config, found.processor, found.input_ids, {**found.inputs, **inputs}, sizes)


def test_gemma4_needs_rasters_of_whole_cells():
    found = source("gemma4", (90, 60), (60, 60))
    grids = gemma4_grids(found)
    assert [grid.source for grid in grids] == [0, 1]
    places = found.inputs["image_position_ids"]
    with pytest.raises(ModelNotSupportedError, match="rasters of cells of 2 x 2 patches"):
        gemma4_grids(changed(found, image_position_ids=places[:, 1:]))
    with pytest.raises(ModelNotSupportedError, match="0 image tokens"):
        gemma4_grids(changed(found, image_position_ids=None))
    with pytest.raises(ModelNotSupportedError, match=r"\(n, patches, 2\)"):
        gemma4_grids(changed(found, image_position_ids=places[0]))
    with pytest.raises(ModelNotSupportedError, match="image tokens"):
        gemma4_unified_grids(found)


@pytest.mark.parametrize("name", ["gemma4", pytest.param("gemma4_unified", marks=pytest.mark.long)])
def test_gemma4_sees_videos_frame_by_frame(name):
    import transformers

    built = build_or_skip(name)
    parts = built.processor
    processor = tools.without_videos(getattr(transformers, type(parts).__name__))(
        feature_extractor=None,
        image_processor=parts.image_processor,
        tokenizer=parts.tokenizer,
        video_processor=Framed(parts.image_processor),
        chat_template=parts.chat_template,
        image_seq_length=70,
    )
    check_clips(built, processor, [2, 3])


def test_gemma4_counts_the_frames_of_videos():
    built = build_or_skip("gemma4")
    places = torch.tensor([[x, y] for y in range(2) for x in range(4)])
    ids = torch.tensor(([built.model.config.video_token_id] * 2 + [5]) * 3)

    def kinds(**inputs):
        found = VisualInput(built.model.config, built.processor, ids, inputs, None)
        return [(grid.source, grid.frame) for grid in gemma4_grids(found)]

    frames = places.expand(3, -1, -1)
    assert kinds(video_position_ids=frames, num_frames_per_video=torch.tensor([2, 1])) == [(0, 0), (0, 1), (1, 0)]
    assert kinds(video_position_ids=frames) == [(0, 0), (0, 1), (0, 2)]
    assert kinds(video_position_ids=frames[:, None]) == [(0, 0), (1, 0), (2, 0)]
    with pytest.raises(ModelNotSupportedError, match="3 frames"):
        kinds(video_position_ids=frames, num_frames_per_video=torch.tensor([2, 2]))


def test_lighton_needs_one_run_an_image():
    found = source("lighton_ocr", (90, 60))
    assert [grid.shape for grid in lighton_grids(found)] == [(4, 6)]
    parted = found.input_ids.clone()
    first = int(torch.nonzero(parted == found.config.image_token_id)[0])
    parted[first - 1], parted[first] = parted[first].clone(), parted[first - 1].clone()
    with pytest.raises(ModelNotSupportedError, match="0 other between them"):
        lighton_grids(VisualInput(found.config, found.processor, parted, found.inputs, None))


def test_fuyu_finds_its_rows_for_any_size():
    built = build_or_skip("fuyu")
    processor, config = built.processor, built.model.config
    generator = random.Random(5)
    for _ in range(60):
        width, height = (round(10 * 1.04 ** generator.randrange(90)) for _ in range(2))
        found = processor(images=[picture(width, height)], text=["x"], return_tensors="pt")
        grid = fuyu_grids(VisualInput(config, processor, found["input_ids"][0], found, [(width, height)]))[0]
        assert torch.equal(grid.positions, torch.nonzero(found["input_ids"][0] == config.image_token_id).flatten()), (
            width,
            height,
        )
        assert 1.0 <= grid.box[2] < 1 + 1 / (grid.width - 1 or 1e-9)
        assert 1.0 <= grid.box[3] < 1 + 1 / (grid.height - 1 or 1e-9)


def test_fuyu_needs_the_images_size():
    found = source("fuyu", (90, 60))
    with pytest.raises(ValueError, match="image_sizes"):
        fuyu_grids(changed(found))
    with pytest.raises(ModelNotSupportedError, match="4 rows of image tokens"):
        fuyu_grids(changed(found, [(90, 40)]))
    with pytest.raises(ModelNotSupportedError, match="6 rows of 8"):
        fuyu_grids(changed(found, [(90, 70)]))


def test_emu3_counts_the_ends_of_its_lines():
    found = source("emu3", (64, 32))
    (grid,) = emu3_grids(found)
    assert grid.shape == (4, 8)
    assert grid.positions.diff().tolist() == ([1] * 7 + [2]) * 3 + [1] * 7
    with pytest.raises(ModelNotSupportedError, match="ends of lines"):
        emu3_grids(changed(found, image_sizes=torch.tensor([[32, 56]])))
