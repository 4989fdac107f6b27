"""Layouts of the group `rows`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

import random

import pytest
import torch
from clips import check_clips, metadata
from conftest_models import PROMPT, picture
from families import tools
from layout_cases import build_or_skip, check_answers, check_geometry, families

from tam_fast.models import ModelNotSupportedError
from tam_fast.models.inputs import prepare_inputs
from tam_fast.models.layouts.rows import molmo2_grids, pixtral_grids
from tam_fast.models.layouts.source import VisualInput


@families("rows")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("rows")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


def source(name, *sizes):
    built = build_or_skip(name)
    images = [picture(*size) for size in sizes]
    inputs = prepare_inputs(built.model, built.processor, images, PROMPT).inputs
    return VisualInput(built.model.config, built.processor, inputs["input_ids"][0], inputs, sizes)


def changed(found, **inputs):
    return VisualInput(
        found.config, found.processor, inputs.pop("input_ids", found.input_ids), {**found.inputs, **inputs}, None
    )


def test_pixtral_needs_its_rows_to_be_there():
    found = source("mistral3", (90, 60), (60, 60))
    assert [grid.shape for grid in pixtral_grids(found)] == [(4, 6), (4, 4)]
    with pytest.raises(ModelNotSupportedError, match="0 image tokens"):
        pixtral_grids(changed(found, image_sizes=None))
    # As many tokens, in other rows.
    with pytest.raises(ModelNotSupportedError, match="6 rows of 4 image tokens"):
        pixtral_grids(changed(found, image_sizes=torch.tensor([[96, 64], [64, 64]])))
    with pytest.raises(ModelNotSupportedError, match="24"):
        pixtral_grids(changed(found, image_sizes=torch.tensor([[64, 96], [64, 80]])))


def test_pixtral_leaves_the_rest_of_an_image_that_is_not_resized():
    found = source("mistral3", (96, 64))
    whole = pixtral_grids(found)[0]
    assert whole.box == (0.0, 0.0, 1.0, 1.0)
    (left,) = pixtral_grids(changed(found, image_sizes=torch.tensor([[70, 100]])))
    assert left.shape == whole.shape
    assert left.box == pytest.approx((0, 0, 96 / 100, 64 / 70))


def test_a_crop_is_refused():
    found = source("mistral3", (96, 64))
    images = found.image_processor
    images.do_center_crop = True
    try:
        with pytest.raises(ModelNotSupportedError, match="do_center_crop"):
            pixtral_grids(found)
    finally:
        images.do_center_crop = False


def molmo(size, grid, pooling, cols=True, wrong=0):
    """An image of made-up ids, with what the image processor says of it."""
    built = build_or_skip("molmo2")
    config = built.model.config
    low_height, low_width, height, width = grid
    ids = [5]
    for rows, columns in ((low_height, low_width), (height, width)):
        ids += ([config.image_patch_id] * columns + [6] * cols) * rows + [7]
    inputs = {"image_grids": torch.tensor([grid]), "image_token_pooling": pooling[wrong:]}
    return VisualInput(config, built.processor, torch.tensor(ids), inputs, [size])


def test_molmo2_boxes_are_those_of_its_patches_for_any_size():
    built = build_or_skip("molmo2")
    images = built.processor.image_processor
    generator = random.Random(3)
    side, margins = 56 // 8, sum(images.overlap_margins)
    for _ in range(150):
        width, height = (round(20 * 1.02 ** generator.randrange(100)) for _ in range(2))
        found = images([torch.zeros(3, height, width, dtype=torch.uint8)], return_tensors="pt")
        grid = found["image_grids"][0].tolist()
        overview, tile = molmo2_grids(molmo((width, height), grid, found["image_token_pooling"], _ % 2))
        assert overview.kind == "overview"
        assert overview.box == pytest.approx((0, 0, 8 / 7, 8 / 7))
        assert (tile.kind, tile.shape) == ("tile", (grid[2], grid[3]))
        for cells, end in ((tile.width, tile.box[2]), (tile.height, tile.box[3])):
            # So many crops of 5 new patches each.
            patches = next(n * (side - margins) + margins for n in range(1, 5) if (n * 5 + 3) // 2 == cells)
            assert end == pytest.approx(2 * cells / patches)


def test_molmo2_needs_what_its_cells_pool():
    images = build_or_skip("molmo2").processor.image_processor
    found = images([torch.zeros(3, 40, 90, dtype=torch.uint8)], return_tensors="pt")
    grid, pooling = found["image_grids"][0].tolist(), found["image_token_pooling"]
    assert len(molmo2_grids(molmo((90, 40), grid, pooling))) == 2
    with pytest.raises(ModelNotSupportedError, match="image_token_pooling"):
        molmo2_grids(molmo((90, 40), grid, pooling, wrong=1))
    with pytest.raises(ModelNotSupportedError, match="image_grids"):
        molmo2_grids(changed(molmo((90, 40), grid, pooling), image_grids=torch.tensor([[4, 4, 1, 1]])))
    turned = [*grid[:2], grid[3], grid[2]]
    with pytest.raises(ModelNotSupportedError, match="rows of"):
        molmo2_grids(changed(molmo((90, 40), grid, pooling), image_grids=torch.tensor([turned])))


@pytest.mark.parametrize("ends", [False, True])
def test_molmo2_sees_a_video_frame_by_frame(monkeypatch, ends):
    import standin
    import transformers

    built = build_or_skip("molmo2")
    from transformers import image_processing_backends, video_processing_utils

    cls = standin.take("molmo2.video_processing_molmo2", "Molmo2VideoProcessor")
    if not hasattr(video_processing_utils, "tvF"):
        monkeypatch.setattr(video_processing_utils, "tvF", image_processing_backends.tvF, raising=False)
    # 7 patches, 3 x 3 of them a cell, which pad the first cells as well.
    processor = tools.without_videos(transformers.Molmo2Processor)(
        image_processor=built.processor.image_processor,
        video_processor=cls(size={"height": 56, "width": 56}, patch_size=8, do_sample_frames=False),
        tokenizer=built.processor.tokenizer,
        chat_template=built.processor.chat_template,
        video_use_col_tokens=ends,
    )
    check_clips(built, processor, [3], video_metadata=[metadata(3)])
