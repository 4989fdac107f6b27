"""Layouts of the group `native`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

import copy

import pytest
from conftest_models import PROMPT, picture
from families import build
from layout_cases import check_answers, check_geometry, families

import tam_fast
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.inputs import prepare_inputs


@families("native")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("native")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


def _config(**vision):
    config = copy.deepcopy(build("qwen2_vl").model.config)
    for name, value in vision.items():
        setattr(config.vision_config, name, value)
    return config


def test_patches_that_make_no_whole_cells_are_refused():
    built = build("qwen2_vl")
    found = prepare_inputs(built.model, built.processor, [picture(90, 60)], PROMPT)
    with pytest.raises(ModelNotSupportedError, match=r"image_grid_thw of multiples of 1 x 3 x 3 .*\[1, 4, 6\]"):
        tam_fast.layout_of(_config(spatial_merge_size=3), built.processor, found.inputs)


def test_a_processor_that_merges_otherwise_is_refused():
    built = build("qwen2_vl")
    found = prepare_inputs(built.model, built.processor, [picture(90, 60)], PROMPT)
    with pytest.raises(ModelNotSupportedError, match=r"expected 24 image tokens \(image_grid_thw / 1\^2\).* got 6"):
        tam_fast.layout_of(_config(spatial_merge_size=1), built.processor, found.inputs)


def test_a_wrong_number_of_image_sizes_is_refused():
    built = build("qwen2_vl")
    found = prepare_inputs(built.model, built.processor, [picture(90, 60)], PROMPT)
    with pytest.raises(ValueError, match=r"image_sizes: expected .* of 1 images, got 2"):
        tam_fast.layout_of(built.model, built.processor, found.inputs, [(90, 60), (90, 60)])
