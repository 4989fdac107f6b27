"""The embedded model asked about scenes, pairs and videos: :func:`ask`, :class:`Answer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from tam_fast.demo import scenes as sc
from tam_fast.maps.layout import Grid, Layout
from tam_fast.models.capture import capture

__all__ = ["Answer", "ask", "pixels_of_frames"]

PATCH = 8
SIZE = 160
_LONGEST = 96


@dataclass(frozen=True)
class Answer:
    """A greedy answer: final hidden states (S, C), ids (S + 1,) of prompt and answer, where things stand, its text."""

    hidden: torch.Tensor
    ids: list[int]
    layout: Layout
    words: list[str]
    text: str


def pixels_of_frames(frames: Sequence[sc.Scene], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Frames as ``pixel_values_videos`` (N, 3 * 2 * PATCH ** 2): consecutive ones two by two, row by row of cells.

    What transformers' video processor makes of the rendered frames when it has nothing to resize; that one needs
    torchvision.
    """
    drawn = np.stack([sc.render(frame, SIZE) for frame in frames])
    count, height, width = drawn.shape[:3]
    x = (torch.from_numpy(drawn).to(torch.float32) / 255.0 - torch.tensor(mean)) / torch.tensor(std)
    x = x.view(count // 2, 2, height // PATCH, PATCH, width // PATCH, PATCH, 3).permute(0, 2, 4, 6, 1, 3, 5)
    return x.reshape(count // 2 * (height // PATCH) * (width // PATCH), -1)


def _visual(processor: Any, images: Sequence[sc.Scene], film: Sequence[sc.Scene]) -> tuple[dict[str, Any], list[Any]]:
    """Pixels as the model takes them, and (cells, height, width) of every image, or of every plane of the video."""
    if film:
        height, width = film[0].pixels(SIZE // PATCH)
        part = processor.image_processor
        pixels = pixels_of_frames(film, part.image_mean, part.image_std)
        grid = torch.tensor([[len(film) // 2, height, width]])
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}, [(height, width)] * (len(film) // 2)
    pictures = [Image.fromarray(sc.render(scene, SIZE)) for scene in images]
    made = processor.image_processor(images=pictures, return_tensors="pt")
    sizes = [(int(height), int(width)) for _, height, width in made["image_grid_thw"]]
    return {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}, sizes


@torch.no_grad()
def ask(
    model: Any,
    processor: Any,
    question: str,
    images: Sequence[sc.Scene] = (),
    film: Sequence[sc.Scene] = (),
    before: Sequence[tuple[str, str]] = (),
) -> Answer:
    """Ask a question greedily.

    Parameters
    ----------
    model, processor
        As :func:`tam_fast.demo.load_demo` returns them.
    question : str
        The last user turn; its words are the layout's prompt.
    images : sequence of Scene
        One or two, rendered at 160 pixels a side.
    film : sequence of Scene
        An even number of frames instead.
    before : sequence of (str, str)
        Earlier turns: questions and answers. The pictures belong to the first.
    """
    visual, sizes = _visual(processor, images, film)
    tokenizer, config = processor.tokenizer, model.config
    turns = [*before, (question, None)]
    marks = [{"type": "video"}] if film else [{"type": "image"} for _ in images]
    messages: list[dict[str, Any]] = []
    for index, (asked, answered) in enumerate(turns):
        messages.append({"role": "user", "content": [*([] if index else marks), {"type": "text", "text": asked}]})
        if answered is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answered}]})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    placeholder = config.video_token_id if film else config.image_token_id
    ids: list[int] = []
    grids: list[Grid] = []
    for token in tokenizer(text).input_ids:
        if token != placeholder:
            ids.append(token)
            continue
        # One placeholder stands for all planes of a video, or for one image.
        planes = sizes if film else [sizes[len(grids)]]
        for frame, (height, width) in enumerate(planes):
            cells = torch.arange(height * width) + len(ids)
            kind, source = ("video", 0) if film else ("image", len(grids))
            grids.append(Grid(cells, height, width, kind, source, frame if film else 0))
            ids += [placeholder] * (height * width)
    sequence = torch.tensor(ids)
    kinds = (sequence == placeholder).int() * (2 if film else 1)
    with capture(model) as states:
        out = model.generate(
            input_ids=sequence[None],
            attention_mask=torch.ones_like(sequence)[None],
            mm_token_type_ids=kinds[None],
            **visual,
            do_sample=False,
            max_new_tokens=_LONGEST,
        )[0]
    if int(out[-1]) == model.generation_config.eos_token_id:
        out = out[:-1]
    spoken = tokenizer(question).input_ids
    end = len(ids) - len(tokenizer("<|im_end|>\n<|im_start|>assistant\n").input_ids)
    layout = Layout(tuple(grids), torch.arange(end - len(spoken), end), len(ids))
    answer = out[len(ids) :].tolist()
    words = [tokenizer.decode([token]).strip() for token in answer]
    return Answer(states.hidden[: len(out) - 1], out.tolist(), layout, words, str(tokenizer.decode(answer)).strip())
