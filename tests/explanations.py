"""Explanations with random maps, and their comparison bit by bit: for tests of words, files, pictures and command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from tam_fast.explanation import Candidate, Explanation
from tam_fast.maps.answer import TokenActivationMaps
from tam_fast.maps.layout import Grid, Layout

TOKENS = ["A", " red", " cir", "cle", ", a", " well-", "made", " circle", " and", " the", " end", ".", ""]


def make_explanation(
    tokens: Sequence[str] = TOKENS,
    shapes: Sequence[tuple[int, int]] = ((4, 6),),
    *,
    sources: Sequence[int] | None = None,
    boxes: Sequence[tuple[float, float, float, float]] | None = None,
    maps: torch.Tensor | None = None,
    images: Sequence[Image.Image] | None = None,
    prompt: int = 3,
    seed: int = 0,
    **fields: Any,
) -> Explanation:
    """An explanation of `tokens` with random maps (or `maps`); its text is the tokens run together."""
    generator = torch.Generator().manual_seed(seed)
    sources = list(sources) if sources is not None else [0] * len(shapes)
    boxes = list(boxes) if boxes is not None else [(0.0, 0.0, 1.0, 1.0)] * len(shapes)
    grids, place = [], 2
    for (height, width), source, box in zip(shapes, sources, boxes, strict=True):
        grids.append(Grid(range(place, place + height * width), height, width, source=source, box=box))
        place += height * width
    layout = Layout(tuple(grids), torch.arange(place, place + prompt), place + prompt + 1)
    t, n, k = len(tokens), layout.offsets[-1], prompt + max(0, len(tokens) - 1)
    text, offsets = "", []
    for token in tokens:
        offsets.append((len(text), len(text) + len(token)))
        text += token
    if images is None:
        noise = np.random.default_rng(seed)
        images = [Image.fromarray(noise.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(1 + max(sources))]
    values: dict[str, Any] = {
        "tokens": list(tokens),
        "token_ids": list(range(100, 100 + t)),
        "text": text,
        "offsets": offsets,
        "maps": TokenActivationMaps(
            maps=torch.rand(t, n, generator=generator) if maps is None else maps,
            relevance=torch.rand(t, k, generator=generator),
            scale=torch.rand(t, generator=generator),
            flat=torch.zeros(t, dtype=torch.bool),
            context_ids=torch.arange(k),
            target_ids=torch.arange(100, 100 + t),
            layout=layout,
        ),
        "candidates": [[Candidate(7, token, 0.75), Candidate(8, " other", 0.125)] for token in tokens],
        "images": list(images),
        "prompt": "What is it?",
        "context_tokens": [f"c{i}" for i in range(k)],
        "model": "test",
        "elapsed": {"generate": 0.5},
    }
    return Explanation(**{**values, **fields})


def assert_same(one: Explanation, two: Explanation) -> None:
    for name in (
        "tokens",
        "token_ids",
        "text",
        "offsets",
        "candidates",
        "prompt",
        "context_tokens",
        "model",
        "elapsed",
    ):
        assert getattr(one, name) == getattr(two, name), name
    assert one.layout == two.layout
    for name in ("maps", "relevance", "scale", "flat", "context_ids", "target_ids"):
        first, second = getattr(one.maps, name), getattr(two.maps, name)
        assert (first.dtype, first.shape) == (second.dtype, second.shape), name
        assert first.contiguous().numpy().tobytes() == second.contiguous().numpy().tobytes(), name
    assert [(i.mode, i.size, i.tobytes()) for i in one.images] == [(i.mode, i.size, i.tobytes()) for i in two.images]
