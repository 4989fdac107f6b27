"""Explanations whose pages say something: one hot cell a token, a video, a text in many scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from explanations import make_explanation
from PIL import Image

from tam_fast.explanation import Candidate, Explanation, Frames
from tam_fast.maps.answer import TokenActivationMaps
from tam_fast.maps.layout import Grid, Layout

GREY = (128, 128, 128)


def spotted(
    shapes: Sequence[tuple[int, int]],
    cells: Sequence[int],
    *,
    boxes: Sequence[tuple[float, float, float, float]] | None = None,
    sources: Sequence[int] | None = None,
    kinds: Sequence[str] | None = None,
    size: tuple[int, int] = (480, 320),
    tokens: Sequence[str] | None = None,
    **fields: Any,
) -> Explanation:
    """Tokens " w0", " w1", ... on grey images, each with one cell of 1 in its map; -1 is a flat map."""
    count = sum(height * width for height, width in shapes)
    maps = torch.zeros(len(cells), count)
    for token, cell in enumerate(cells):
        if cell >= 0:
            maps[token, cell] = 1.0
    tokens = [f" w{number}" for number in range(len(cells))] if tokens is None else tokens
    images = [Image.new("RGB", size, GREY) for _ in range(1 + max(sources or [0]))]
    made = make_explanation(tokens, shapes, boxes=boxes, sources=sources, maps=maps, images=images, **fields)
    if kinds is not None:
        grids = [replace(grid, kind=kind) for grid, kind in zip(made.layout.grids, kinds, strict=True)]
        made.maps.layout = replace(made.layout, grids=tuple(grids))
    made.maps.flat[:] = torch.tensor([cell < 0 for cell in cells])
    return made


def film(frames: int = 4, tokens: Sequence[str] = (" dog", " runs", " fast")) -> Explanation:
    """A video of two frames a temporal index, (2, 3) cells each; token t is seen at temporal index t + 1."""
    grids = [Grid(range(6 * f, 6 * f + 6), 2, 3, kind="video", frame=f) for f in range(frames)]
    start = 6 * frames
    layout = Layout(tuple(grids), [start, start + 1], start + 3)
    maps = torch.zeros(len(tokens), start)
    for token in range(len(tokens)):
        maps[token, 6 * ((token + 1) % frames) + 4] = 1.0
    count = len(tokens)
    text = "".join(tokens)
    ends = [sum(len(token) for token in tokens[: n + 1]) for n in range(count)]
    pictures = [Image.new("RGB", (240, 160), (60 + 20 * number,) * 3) for number in range(2 * frames)]
    return Explanation(
        tokens=list(tokens),
        token_ids=list(range(count)),
        text=text,
        offsets=[(end - len(token), end) for end, token in zip(ends, tokens, strict=True)],
        maps=TokenActivationMaps(
            maps,
            torch.zeros(count, count + 1),
            torch.zeros(count),
            torch.zeros(count, dtype=torch.bool),
            torch.arange(count + 1),
            torch.arange(count),
            layout,
        ),
        candidates=[[Candidate(1, token, 0.5)] for token in tokens],
        images=[],
        prompt="What happens?",
        context_tokens=["What", " happens?", *tokens[:-1]],
        model="test",
        videos=[Frames(pictures, [0.5 * number for number in range(2 * frames)])],
    )


def settle(page: Any) -> None:
    """Wait until two frames have been drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")
