"""Videos of the group `native`: prompts that the families' own processors write, with patches made up and painted."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from conftest_models import PROMPT, picture
from families import names_of, tools
from families.native import QWEN_CHAT
from layout_cases import build_or_skip as build
from painting import flat, given

import tam_fast
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.families import FAMILIES
from tam_fast.models.layouts import visual_mask

HEIGHT, WIDTH = 4, 6  # patches
CELLS = (HEIGHT // 2, WIDTH // 2)
FRAMES = (3, 2)  # temporal patches of two videos
NAMES = [name for name in names_of("native") if FAMILIES[name].videos]
ALL = pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.long) for name in NAMES[1:])])
GLM = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga")


class Videos:
    """In place of a video processor, which needs torchvision: patches drawn at random, two frames a second."""

    model_input_names = ("pixel_values_videos", "video_grid_thw")
    merge_size = temporal_patch_size = 2
    frame_timestamp_format = "Time: {timestamp:.1f}s"
    font = ""

    def __init__(self, channels: int, joined: int, segment: int | None) -> None:
        self.channels, self.joined, self.segment = channels, joined, segment

    def __call__(self, videos: Any, **_: Any) -> dict[str, Any]:
        from transformers.video_utils import VideoMetadata

        counts = FRAMES[: len(videos)]
        segments = [_segments(count, self.segment) for count in counts]
        rows = [[frames * self.joined, HEIGHT, WIDTH] for video in segments for frames in video]
        patches = sum(time * HEIGHT * WIDTH for time, _, _ in rows)
        found = {
            "pixel_values_videos": torch.randn(patches, self.channels, generator=torch.Generator().manual_seed(0)),
            "video_grid_thw": torch.tensor(rows),
            "video_metadata": [
                VideoMetadata(total_num_frames=2 * count, fps=2.0, duration=count, frames_indices=[*range(2 * count)])
                for count in counts
            ],
        }
        return found if self.segment is None else {**found, "num_chunks_per_video": [*map(len, segments)]}


def _segments(count: int, most: int | None) -> list[int]:
    return [count] if most is None else [min(most, count - start) for start in range(0, count, most)]


def prepared(name: str, videos: int, images: int = 0, before: str = "") -> tuple[Any, dict[str, Any]]:
    """A family's processor that takes videos, and what it makes of some, images and a text before them."""
    import transformers

    built = build(name)
    base = getattr(transformers, type(built.processor).__name__)
    if not hasattr(base, "replace_video_token"):
        pytest.skip("these processors write videos into prompts in another way")
    parts = built.processor
    channels = parts.image_processor([picture()], return_tensors="pt")["pixel_values"].shape[1]
    joined = 2 if name == "ernie4_5_vl_moe" else 1
    # The first versions with this family have no segments.
    segment = (
        2 if name == "minimax_m3_vl" and "num_chunks_per_video" in getattr(parts, "unused_input_names", ()) else None
    )
    processor = tools.without_videos(base)(
        image_processor=parts.image_processor,
        tokenizer=parts.tokenizer,
        video_processor=Videos(channels, joined, segment),
        chat_template=QWEN_CHAT if name in ("qwen2_vl", "qwen2_5_vl") else parts.chat_template,
    )
    content = [*[{"type": "image"}] * images, *[{"type": "video"}] * videos, {"type": "text", "text": PROMPT}]
    content = [{"type": "text", "text": before}, *content] if before else content
    chat = [{"role": "user", "content": content}]
    found = processor(
        images=[picture(90, 60)] * images or None,
        videos=[np.zeros((4, 8, 8, 3), np.uint8)] * videos,
        text=[processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)],
        return_tensors="pt",
        return_mm_token_type_ids=True,
    )
    return processor, dict(found)


def patches_of(name: str, frame: int, row: int, column: int) -> list[int]:
    """Which patches make a cell of a frame, counted over all videos."""
    size = HEIGHT * WIDTH
    if name == "muse_glimmer":  # row by row
        return [frame * size + (2 * row + y) * WIDTH + 2 * column + x for y in (0, 1) for x in (0, 1)]
    cell = 4 * (row * CELLS[1] + column)
    frames = (2 * frame, 2 * frame + 1) if name == "ernie4_5_vl_moe" else (frame,)
    return [time * size + cell + patch for time in frames for patch in range(4)]


@ALL
def test_cells_of_frames_see_their_own_patches(name):
    built = build(name)
    processor, found = prepared(name, 2)
    layout = tam_fast.layout_of(built.model.config, processor, found)
    assert [(grid.kind, grid.source, grid.frame, grid.shape) for grid in layout.grids] == [
        ("video", source, frame, CELLS) for source, count in enumerate(FRAMES) for frame in range(count)
    ]
    mask = visual_mask(built.model.config, found["input_ids"][0])
    assert torch.equal(layout.visual_positions, torch.nonzero(mask).flatten())
    assert processor.tokenizer.decode(found["input_ids"][0][layout.prompt]) == PROMPT
    model = flat(built)
    known = inspect.signature(type(model).forward).parameters
    inputs = {key: value for key, value in found.items() if key in known}
    base = given(model, inputs)
    for frame, grid in enumerate(layout.grids):
        for row, column in ((0, 0), (0, 1), (1, 0)):
            pixels = inputs["pixel_values_videos"].clone()
            pixels[patches_of(name, frame, row, column)] += 1.0
            change = (given(model, {**inputs, "pixel_values_videos": pixels}) - base).norm(dim=1)
            changed = torch.nonzero(change > 1e-5 * change.max()).flatten().tolist()
            assert changed == [int(grid.positions[row * CELLS[1] + column])], (frame, row, column)


@ALL
def test_images_before_videos_are_told_apart(name):
    built = build(name)
    processor, found = prepared(name, 2, images=2)
    layout = tam_fast.layout_of(built.model.config, processor, found)
    shown = [(grid.kind, grid.source, grid.frame) for grid in layout.grids]
    assert shown[:2] == [("image", 0, 0), ("image", 1, 0)]
    assert shown[2:] == [("video", source, frame) for source, count in enumerate(FRAMES) for frame in range(count)]
    mask = visual_mask(built.model.config, found["input_ids"][0])
    assert torch.equal(layout.visual_positions, torch.nonzero(mask).flatten())
    start = int(layout.grids[2].positions[0])
    video = "<|image|>" if name in GLM else processor.video_token
    assert int(found["input_ids"][0, start]) == processor.tokenizer.convert_tokens_to_ids(video)


@ALL
def test_times_of_frames_are_none_of_the_users_words(name):
    processor, found = prepared(name, 1, before="At 3.0 seconds: 3")
    layout = tam_fast.layout_of(build(name).model.config, processor, found)
    assert processor.tokenizer.decode(found["input_ids"][0][layout.prompt]) == f"At 3.0 seconds: 3{PROMPT}"


@ALL
def test_a_grid_of_more_frames_than_the_prompt_has_is_refused(name):
    processor, found = prepared(name, 1)
    found["video_grid_thw"][-1, 0] += 2
    with pytest.raises(ModelNotSupportedError, match=r"expected .*(video tokens|tokens of videos) \(video_grid_thw"):
        tam_fast.layout_of(build(name).model.config, processor, found)


def test_segments_of_one_long_video():
    processor, found = prepared("minimax_m3_vl", 1)
    if len(found["video_grid_thw"]) == 1:
        pytest.skip("no segments in this version")
    assert found["video_grid_thw"][:, 0].tolist() == [2, 1]
    assert "num_chunks_per_video" not in found
    layout = tam_fast.layout_of(build("minimax_m3_vl").model.config, processor, found)
    assert [(grid.source, grid.frame) for grid in layout.grids] == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("counts", [[1, 2], [3]])
def test_segments_are_those_that_the_inputs_say(counts):
    processor, found = prepared("minimax_m3_vl", 2)
    if len(found["video_grid_thw"]) == 2:
        pytest.skip("no segments in this version")
    found["num_chunks_per_video"] = counts
    layout = tam_fast.layout_of(build("minimax_m3_vl").model.config, processor, found)
    expected = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)] if len(counts) == 2 else [(0, frame) for frame in range(5)]
    assert [(grid.source, grid.frame) for grid in layout.grids] == expected


def test_a_wrong_number_of_segments_is_refused():
    processor, found = prepared("minimax_m3_vl", 2)
    if len(found["video_grid_thw"]) == 2:
        pytest.skip("no segments in this version")
    found["num_chunks_per_video"] = [1, 1]
    with pytest.raises(ModelNotSupportedError, match=r"3 segments .*num_chunks_per_video \[1, 1\]"):
        tam_fast.layout_of(build("minimax_m3_vl").model.config, processor, found)


def test_a_frame_count_that_ernie_cannot_join_is_refused():
    processor, found = prepared("ernie4_5_vl_moe", 1)
    found["video_grid_thw"][0, 0] += 1
    with pytest.raises(ModelNotSupportedError, match=r"video_grid_thw of multiples of 2 x 2 x 2"):
        tam_fast.layout_of(build("ernie4_5_vl_moe").model.config, processor, found)
