"""Video clips for families that lay frames out as they do images: processors, prompts, and one cell painted."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from conftest_models import PROMPT
from families import Built
from painting import flat, given

import tam_fast

WIDTH, HEIGHT = 70, 40


@dataclass(frozen=True)
class Framed:
    """In place of a video processor, which needs torchvision: the family's image processor, frame by frame."""

    images: Any
    model_input_names: tuple[str, ...] = ("pixel_values_videos", "video_position_ids", "num_frames_per_video")

    def __call__(self, videos: Any, **_: Any) -> dict[str, Any]:
        found = [self.images([*video], return_tensors="pt") for video in videos]
        return {
            "pixel_values_videos": torch.cat([one["pixel_values"] for one in found]),
            "video_position_ids": torch.cat([one["image_position_ids"] for one in found]),
            "num_frames_per_video": torch.tensor([len(video) for video in videos]),
            "num_soft_tokens_per_video": [int(one["num_soft_tokens_per_image"][0]) for one in found],
            "video_metadata": [metadata(len(video)) for video in videos],
        }


def metadata(frames: int) -> Any:
    """Of a clip of two frames a second."""
    from transformers.video_utils import VideoMetadata

    every = [*range(frames)]
    return VideoMetadata(total_num_frames=frames, fps=2.0, duration=frames / 2, frames_indices=every)


def clip(frames: int, painted: int | None = None, box: tuple[int, int, int, int] = (0, 0, 0, 0)) -> np.ndarray:
    """Grey frames (frames, HEIGHT, WIDTH, 3), a box x0, y0, x1, y1 of one of them painted."""
    made = np.full((frames, HEIGHT, WIDTH, 3), (90, 70, 110), dtype=np.uint8)
    if painted is not None:
        x0, y0, x1, y1 = box
        made[painted, y0:y1, x0:x1] = (255, 20, 200)
    return made


def prompted(processor: Any, clips: list[np.ndarray], words: str = PROMPT, **options: Any) -> dict[str, Any]:
    """What a processor makes of a prompt about clips."""
    content = [*[{"type": "video"}] * len(clips), {"type": "text", "text": words}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    given = {"videos": clips, "text": [text], "return_tensors": "pt", "return_mm_token_type_ids": True}
    return dict(processor(**given, **options))


def check_clips(built: Built, processor: Any, counts: list[int], **options: Any) -> None:
    """Assert that the cells of a frame see their own part of their own frame, and no other position does."""
    model = flat(built)
    known = inspect.signature(type(model).forward).parameters

    def seen(clips: list[np.ndarray]) -> tuple[dict[str, Any], torch.Tensor]:
        found = prompted(processor, clips, **options)
        return found, given(model, {name: value for name, value in found.items() if name in known})

    blank = [clip(count) for count in counts]
    found, base = seen(blank)
    layout = tam_fast.layout_of(built.model.config, processor, found)
    assert [(grid.kind, grid.source, grid.frame) for grid in layout.grids] == [
        ("video", source, frame) for source, count in enumerate(counts) for frame in range(count)
    ]
    assert processor.tokenizer.decode(found["input_ids"].flatten()[layout.prompt]).strip() == PROMPT
    for grid in (layout.grids[0], layout.grids[1], layout.grids[-1]):
        for row, column in ((0, 0), (1, 0), (0, 1), (1, 2)):
            # A quarter of a cell each way about its middle.
            x, y = (
                (low + (high - low) * (place + 0.5) / cells) * side
                for low, high, place, cells, side in (
                    (grid.box[0], grid.box[2], column, grid.width, WIDTH),
                    (grid.box[1], grid.box[3], row, grid.height, HEIGHT),
                )
            )
            half = max(2, WIDTH // grid.width // 4)
            box = (max(0, int(x) - half), max(0, int(y) - half), int(x) + half, int(y) + half)
            painted = [*blank]
            painted[grid.source] = clip(counts[grid.source], grid.frame, box)
            change = (seen(painted)[1] - base).norm(dim=1)
            assert int(change.argmax()) == int(grid.positions[row * grid.width + column]), (row, column)
            inside = torch.zeros_like(change, dtype=torch.bool)
            inside[grid.positions] = True
            assert float(change[~inside].max()) <= 1e-5 * float(change.max())
