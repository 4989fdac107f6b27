"""Layouts of the group `native_kin`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest_models import PROMPT, picture
from families import tools
from layout_cases import build_or_skip, check_answers, check_geometry, families
from painting import flat, given

import tam_fast
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.heads import Head
from tam_fast.models.inputs import prepare_inputs


@families("native_kin")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("native_kin")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


def processed(name, *sizes):
    """A configuration, a processor, and what it makes of some pictures."""
    built = build_or_skip(name)
    images = [picture(*size) for size in sizes]
    return built.model.config, built.processor, prepare_inputs(built.model.config, built.processor, images, "What?")


@families("native_kin")
def test_sizes_are_not_needed(name):
    config, processor, prompt = processed(name, (90, 40), (56, 104))
    assert tam_fast.layout_of(config, processor, prompt.inputs) == prompt.layout
    assert [grid.box for grid in prompt.layout.grids] == [(0.0, 0.0, 1.0, 1.0)] * 2


@families("native_kin")
def test_more_tokens_than_cells_are_refused(name):
    config, processor, prompt = processed(name, (90, 40))
    ids = torch.cat([prompt.input_ids, torch.tensor([config.image_token_id])])
    with pytest.raises(ModelNotSupportedError, match=r"expected [0-9]+ image tokens \(.*image_grid.* got [0-9]+ with"):
        tam_fast.layout_of(config, processor, {**prompt.inputs, "input_ids": ids})


@families("native_kin")
def test_patches_that_make_no_whole_cells_are_refused(name):
    if name == "video_llama_3":  # a patch is a cell
        return
    config, processor, prompt = processed(name, (90, 40))
    grid = "image_grid_hw" if name == "nemotron_h_omni" else "image_grid_thw"
    inputs = {**prompt.inputs, grid: prompt.inputs[grid] + 1}
    with pytest.raises(ModelNotSupportedError, match=f"{grid} of multiples of"):
        tam_fast.layout_of(config, processor, inputs)


def test_no_newline_beginning_or_end_of_hunyuan_is_a_cell():
    _, _, prompt = processed("hunyuan_vl", (90, 40))
    (grid,) = prompt.layout.grids
    rows = grid.positions.reshape(grid.shape)
    first = int(torch.nonzero(prompt.input_ids == prompt.input_ids[rows[0, 0]]).flatten()[0])
    expected = [[first + 1 + row * (grid.width + 1) + column for column in range(grid.width)] for row in range(2)]
    assert grid.shape == (2, 6)
    assert rows.tolist() == expected


HEIGHT, WIDTH, FRAMES = 4, 6, (3, 2)  # patches of a frame; frames of two videos
CELLS = HEIGHT * WIDTH // 4


VIDEOS = pytest.mark.parametrize(
    "name", ["video_llama_3", *(pytest.param(name, marks=pytest.mark.long) for name in ("muse_spark", "dots3_note"))]
)


class Videos:
    """In place of a video processor, which needs torchvision: patches drawn at random, two frames a second."""

    model_input_names = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_compression_mask")
    merge_size = 2
    temporal_patch_size = 1
    frame_timestamp_format = "Time: {timestamp:.1f}s"

    def __init__(self, channels: int, left_out: int | None) -> None:
        self.channels, self.left_out = channels, left_out

    def __call__(self, videos: Any, **_: Any) -> dict[str, Any]:
        from transformers.video_utils import VideoMetadata

        counts = FRAMES[: len(videos)]
        draw = torch.Generator().manual_seed(0)
        found = {
            "pixel_values_videos": torch.randn(sum(counts) * HEIGHT * WIDTH, self.channels, generator=draw),
            "video_grid_thw": torch.tensor([[count, HEIGHT, WIDTH] for count in counts]),
            "video_metadata": [
                VideoMetadata(total_num_frames=count, fps=2.0, duration=count / 2, frames_indices=[*range(count)])
                for count in counts
            ],
        }
        if self.left_out is None:
            return found
        mask = torch.ones(sum(counts) * CELLS, dtype=torch.bool)
        mask[CELLS : CELLS + self.left_out] = False
        return {**found, "video_merge_sizes": torch.tensor([2] * len(counts)), "video_compression_mask": mask}


def with_videos(name: str, videos: int, images: int = 0, left_out: int = 0) -> tuple[Any, dict[str, Any]]:
    """A family's processor that takes videos, and what it makes of some, and of images before them."""
    import transformers

    parts = build_or_skip(name).processor
    base = getattr(transformers, type(parts).__name__)
    if not hasattr(base, "replace_video_token"):
        pytest.skip("these processors write videos into prompts in another way")
    channels = parts.image_processor([picture()], return_tensors="pt")["pixel_values"].shape[1]
    attributes = {attribute: getattr(parts, attribute) for attribute in base.get_attributes()}
    attributes["video_processor"] = Videos(channels, left_out if name == "video_llama_3" else None)
    processor = tools.without_videos(base)(**attributes, chat_template=parts.chat_template)
    content = [*[{"type": "image"}] * images, *[{"type": "video"}] * videos, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    found = processor(
        images=[picture(90, 40)] * images or None,
        videos=[np.zeros((4, 8, 8, 3), np.uint8)] * videos,
        text=[text],
        return_tensors="pt",
    )
    return processor, dict(found)


def patches_of(name: str, frame: int, cell: int) -> list[int]:
    """Which patches make a cell of a frame, counted over all videos."""
    if name == "muse_spark":  # row by row
        first = frame * HEIGHT * WIDTH + 2 * WIDTH * (cell // 3) + 2 * (cell % 3)
        return [first, first + 1, first + WIDTH, first + WIDTH + 1]
    first = 4 * (frame * CELLS + cell)
    return [*range(first, first + 4)]


@VIDEOS
def test_cells_of_frames_see_their_own_patches(name):
    built = build_or_skip(name)
    processor, found = with_videos(name, 2)
    layout = tam_fast.layout_of(built.model.config, processor, found)
    assert [(grid.kind, grid.source, grid.frame, grid.shape) for grid in layout.grids] == [
        ("video", source, frame, (2, 3)) for source, count in enumerate(FRAMES) for frame in range(count)
    ]
    assert processor.tokenizer.decode(found["input_ids"][0][layout.prompt]) == PROMPT
    model = flat(built)
    known = inspect.signature(type(model).forward).parameters
    inputs = {key: value for key, value in found.items() if key in known}
    base = given(model, inputs)
    for frame, grid in enumerate(layout.grids):
        for cell in (0, 1, 3):
            pixels = inputs["pixel_values_videos"].clone()
            pixels[patches_of(name, frame, cell)] += 1.0
            change = (given(model, {**inputs, "pixel_values_videos": pixels}) - base).norm(dim=1)
            changed = torch.nonzero(change > 1e-5 * change.max()).flatten().tolist()
            assert changed == [int(grid.positions[cell])], (frame, cell)


@VIDEOS
def test_images_and_videos_are_told_apart(name):
    processor, found = with_videos(name, 1, images=2)
    layout = tam_fast.layout_of(build_or_skip(name).model.config, processor, found)
    shown = [(grid.kind, grid.source, grid.frame) for grid in layout.grids]
    assert shown == [("image", 0, 0), ("image", 1, 0), *[("video", 0, frame) for frame in range(FRAMES[0])]]


def test_a_video_whose_tokens_were_left_out_is_refused():
    processor, found = with_videos("video_llama_3", 1, left_out=6)
    with pytest.raises(ModelNotSupportedError, match=r"got 12 of 18: .* use_token_compression=False"):
        tam_fast.layout_of(build_or_skip("video_llama_3").model.config, processor, found)


@pytest.mark.parametrize("merges", [None, [2, 2]])
def test_merge_sizes_of_other_images_are_refused(merges):
    config, processor, prompt = processed("video_llama_3", (90, 40))
    inputs = dict(prompt.inputs)
    del inputs["image_merge_sizes"]
    if merges is not None:
        inputs["image_merge_sizes"] = torch.tensor(merges)
    with pytest.raises(ModelNotSupportedError, match="1 numbers in image_merge_sizes"):
        tam_fast.layout_of(config, processor, inputs)


def test_a_heads_rows_are_those_of_the_language_model_inside():
    model = build_or_skip("nemotron_h_omni").model
    assert model.get_output_embeddings() is None
    assert Head(model).module is model.language_model.lm_head
    with pytest.raises(ModelNotSupportedError, match="get_output_embeddings"):
        Head(SimpleNamespace(get_output_embeddings=lambda: None, get_decoder=lambda: torch.nn.Identity()))
