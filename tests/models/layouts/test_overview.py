"""Layouts of the group `overview`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import standin
import torch
from families import build
from layout_cases import check_answers, check_geometry, families
from PIL import Image

from tam_fast.models import ModelNotSupportedError
from tam_fast.models.layouts import VisualInput
from tam_fast.models.layouts.overview import minicpm_grids, ovis2_grids, perception_lm_canvas, perception_lm_grids


@families("overview")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("overview")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


def overview_input(name, ids, sizes=None, **inputs):
    """A prompt made by hand, for a family's own configuration and processor."""
    built = build(name)
    inputs = {key: torch.tensor(value) for key, value in inputs.items()}
    return VisualInput(built.model.config, built.processor, torch.tensor(ids), inputs, sizes)


def ovis(*tokens):
    """Ids of some strings; a number stands for so many visual tokens."""
    tokenizer = build("ovis2").processor.tokenizer
    ids = []
    for token in tokens:
        ids += tokenizer.convert_tokens_to_ids(["<IMG_ATOM>"] * token if isinstance(token, int) else [token])
    return ids


def test_ovis2_reads_the_marks():
    marks = ("<IMG_START>", 25, "<IMG_GRID>", 25, "<IMG_COL>", 25, "<IMG_ROW>", 25, "<IMG_COL>", 25, "<IMG_END>")
    grids = ovis2_grids(overview_input("ovis2", ovis(*marks, "<IMG_START>", 25, "<IMG_GRID>", "<IMG_END>")))
    assert [(grid.kind, grid.source) for grid in grids] == [("overview", 0), *[("tile", 0)] * 4, ("image", 1)]
    assert [grid.box for grid in grids[1:5]] == [
        (0, 0, 0.5, 0.5),
        (0.5, 0, 1, 0.5),
        (0, 0.5, 0.5, 1),
        (0.5, 0.5, 1, 1),
    ]


@pytest.mark.parametrize(
    "tokens, got",
    [
        (("<IMG_START>", 24, "<IMG_GRID>", "<IMG_END>"), "got 24"),
        ((25,), "got token None"),
        (("<IMG_COL>", 25), "got token"),
        (("<IMG_START>", 25, "<IMG_COL>", 25), "got token"),
        (("<IMG_START>", 25, "<IMG_GRID>", 25, "<IMG_COL>", 25, "<IMG_ROW>", 25, "<IMG_END>"), r"got \[2, 1\]"),
    ],
)
def test_ovis2_refuses_what_is_not_its_own(tokens, got):
    with pytest.raises(ModelNotSupportedError, match=got):
        ovis2_grids(overview_input("ovis2", ovis(*tokens)))


def minicpm(*tokens):
    tokenizer = build("minicpmv4_6").processor.tokenizer
    ids = []
    for token in tokens:
        names = ["<|image_pad|>"] * token if isinstance(token, int) else [token]
        ids += tokenizer.convert_tokens_to_ids(names)
    return ids


def test_minicpm_slices_have_their_own_sizes():
    slices = ("<slice>", 4, "</slice>", "<slice>", 2, "</slice>")
    ids = minicpm("<image>", 6, "</image>", *slices, "Ċ", *slices, "x", "<image>", 2, "</image>")
    sizes = [[8, 12], *[[8, 8], [4, 8]] * 2, [8, 4]]
    grids = minicpm_grids(overview_input("minicpmv4_6", ids, target_sizes=sizes))
    shapes = [(2, 3), *[(2, 2), (1, 2)] * 2, (2, 1)]
    assert [grid.shape for grid in grids] == shapes
    assert [grid.kind for grid in grids] == ["overview", *["tile"] * 4, "image"]
    assert grids[4].box == (0.5, 0.5, 1.0, 1.0)
    # Four times as many tokens of a model that merges patches once only.
    assert minicpm_grids(overview_input("minicpmv4_6", minicpm("<image>", 24), target_sizes=[[8, 12]]))[0].shape == (
        4,
        6,
    )


@pytest.mark.parametrize(
    "tokens, sizes, got",
    [
        (("<image>", 6, "</image>"), [[8, 12], [8, 8]], "got 1"),
        (("<image>", 5, "</image>"), [[8, 12]], "got 5"),
        (("x", 6), [[8, 12]], "got token"),
        (("<slice>", 6, "</slice>"), [[8, 12]], "got token"),
        (("<image>", 6, "</image>", "x", "<slice>", 6), [[8, 12]] * 2, "slices behind their image"),
        (
            ("<image>", 6, "</image>", "<slice>", 6, "</slice>", "<slice>", 6, "</slice>", "Ċ", "<slice>", 6),
            [[8, 12]] * 4,
            r"got \[2, 1\]",
        ),
    ],
)
def test_minicpm_refuses_what_is_not_its_own(tokens, sizes, got):
    with pytest.raises(ModelNotSupportedError, match=got):
        minicpm_grids(overview_input("minicpmv4_6", minicpm(*tokens), target_sizes=sizes))


def perception_images(**settings):
    pytest.importorskip("transformers.models.perception_lm")
    cls = standin.take("perception_lm.image_processing_perception_lm", "PerceptionLMImageProcessor")
    return cls(do_rescale=False, do_normalize=False, **settings)


@pytest.mark.parametrize("limit", [1, 4, 9, 36])
def test_perception_lm_has_the_tiles_of_its_own_processor(limit):
    images = perception_images(tile_size=32, max_num_tiles=limit)
    generator = np.random.default_rng(limit)
    for width, height in [(32, 32), (64, 64), (32, 33), (600, 30), (30, 600), *generator.integers(8, 260, (150, 2))]:
        blank = torch.zeros(1, 3, int(height), int(width))
        _, canvas = images.resize(blank, 32, limit)
        assert perception_lm_canvas((int(width), int(height)), 32, limit) == canvas, (width, height)


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (60, 60)])
def test_perception_lm_boxes_are_where_the_pixels_came_from(size):
    """A ramp over the image shows in each tile's pixels which part of it that is."""
    images = perception_images(tile_size=32, max_num_tiles=6)
    width, height = size
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(width) * 2
    ramp[..., 1] = np.arange(height)[:, None] * 2
    pixels = images([Image.fromarray(ramp)], return_tensors="pt")["pixel_values"]
    config = SimpleNamespace(model_type="perception_lm", image_token_id=7)
    processor = SimpleNamespace(image_processor=images, patch_size=4, pooling_ratio=2)
    ids = torch.full((16 * pixels.shape[1],), 7)
    source = VisualInput(config, processor, ids, {"pixel_values": pixels}, [size])
    grids = perception_lm_grids(source)
    assert [grid.kind for grid in grids] == ["overview"] + ["tile"] * (len(grids) - 1)
    assert torch.equal(torch.cat([grid.positions for grid in grids]), torch.arange(len(ids)))
    for grid, tile in zip(grids, pixels[0].float(), strict=True):
        x, y = (sum(grid.box[axis::2]) / 2 for axis in (0, 1))
        assert float(tile[0].mean()) / 2 == pytest.approx(x * width - 0.5, abs=1)
        assert float(tile[1].mean()) / 2 == pytest.approx(y * height - 0.5, abs=1)
    with pytest.raises(ValueError, match="image_sizes"):
        perception_lm_grids(VisualInput(config, processor, ids, {"pixel_values": pixels}, None))
    wrong = (600, 20) if width == height else (32, 32)
    with pytest.raises(ModelNotSupportedError, match=f"tiles of an image of {wrong[0]} x {wrong[1]}"):
        perception_lm_grids(VisualInput(config, processor, ids, {"pixel_values": pixels}, [wrong]))
    with pytest.raises(ModelNotSupportedError, match="pixel_values"):
        perception_lm_grids(VisualInput(config, processor, ids, {}, [size]))
