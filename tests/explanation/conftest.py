"""Explanations over videos, of parts of an answer, and with states that were kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from explanations import make_explanation
from PIL import Image

from tam_fast.explanation import Contrast, Explanation, Frames
from tam_fast.explanation.kept import Rows, keep
from tam_fast.maps.answer import TokenActivationMaps, activation_maps
from tam_fast.maps.layout import Grid, Layout


def stills(count: int, size: tuple[int, int] = (24, 16), seed: int = 0) -> list[Image.Image]:
    noise = np.random.default_rng(seed)
    return [Image.fromarray(noise.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def film() -> Explanation:
    """Six tokens about one image (2, 3) and a video of five frames in three temporal indices (2, 2).

    The tokens are the third, fourth, sixth ... that were generated, behind a thinking section.
    """
    grids = [Grid(range(6), 2, 3)]
    grids += [Grid(range(6 + 4 * f, 10 + 4 * f), 2, 2, kind="video", frame=f) for f in range(3)]
    layout = Layout(tuple(grids), [20, 21], 23)
    steps = [3, 4, 6, 7, 8, 9]
    tokens = [" A", " dog", " runs", " and", " a", " cat"]
    random = torch.Generator().manual_seed(1)
    relevance = torch.rand(6, 11, generator=random)
    for row, step in enumerate(steps):
        relevance[row, 2 + step :] = 0
    maps = TokenActivationMaps(
        torch.rand(6, 18, generator=random) * 0.5,
        relevance,
        torch.rand(6, generator=random),
        torch.zeros(6, dtype=torch.bool),
        torch.arange(11),
        torch.arange(100, 106),
        layout,
    )
    text = "A dog, runs and a cat"
    offsets = [(0, 1), (1, 5), (6, 11), (11, 15), (15, 17), (17, 21)]
    generated = ["<think>", "hm", "</think>", *tokens[:2], ",", *tokens[2:5]]
    return Explanation(
        tokens=tokens,
        token_ids=list(range(100, 106)),
        text=text,
        offsets=offsets,
        maps=maps,
        candidates=[[] for _ in tokens],
        images=stills(1, (30, 20)),
        prompt="What happens?",
        context_tokens=["What", " happens?", *generated],
        model="test",
        steps=steps,
        videos=[Frames(stills(5), [0.0, 0.5, 1.0, 1.5, 2.0])],
        thinking="hm",
        contrast=Contrast(torch.full((6,), -0.5), torch.full((6,), -2.5)),
        messages=[{"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "?"}]}],
    )


@pytest.fixture
def text_only() -> Explanation:
    e = make_explanation(["A", " b", " c"], ((1, 1),))
    maps = e.maps
    maps.maps, maps.layout = torch.zeros(3, 0), Layout((), [0, 1, 2], 4)
    return Explanation(**{**vars(e), "images": []})


def kept_explanation(
    seed: int,
    shapes: tuple[tuple[int, int], ...] = ((4, 5), (3, 3)),
    prompt: int = 3,
    steps: list[int] | None = None,
    floor: float = 0.0,
) -> Explanation:
    """An explanation of random states, which are kept; with `floor` no score is 0.

    All tokens of the answer, or those at some steps.
    """
    random = np.random.default_rng(seed)
    count = 6
    cells = sum(height * width for height, width in shapes)
    grids, place = [], 1
    for number, (height, width) in enumerate(shapes):
        grids.append(Grid(range(place, place + height * width), height, width, source=number))
        place += height * width
    layout = Layout(tuple(grids), range(place, place + prompt), place + prompt + 1)
    hidden = random.standard_normal((layout.answer_start + count - 1, 8)).astype(np.float32)
    classifier = random.standard_normal((12, 8)).astype(np.float32)
    if floor:
        hidden, classifier = np.abs(hidden) * 0.1 + floor, np.abs(classifier) * 0.1 + floor
    ids = random.integers(0, 12, len(hidden) + 1)
    states, rows = torch.tensor(hidden, dtype=torch.float32), torch.tensor(classifier, dtype=torch.float32)
    maps = activation_maps(states, rows, torch.tensor(ids), layout)
    assert maps.maps.shape == (count, cells)
    places = list(range(count)) if steps is None else steps
    words = [f" w{number}" for number in range(count)]
    last = places[-1]
    kept = keep(
        states[: layout.answer_start + last],
        torch.tensor(ids)[: layout.answer_start + last + 1],
        layout,
        Rows(torch.arange(12), rows),
        None,
        3,
    )
    chosen = TokenActivationMaps(
        maps.maps[places],
        maps.relevance[places, : prompt + last],
        maps.scale[places],
        maps.flat[places],
        maps.context_ids[: prompt + last],
        maps.target_ids[places],
        layout,
    )
    return Explanation(
        tokens=[words[step] for step in places],
        token_ids=maps.target_ids[places].tolist(),
        text="".join(words),
        offsets=[(3 * step, 3 * step + 3) for step in places],
        maps=chosen,
        candidates=[[] for _ in places],
        images=[],
        prompt="",
        context_tokens=[f"p{number}" for number in range(prompt)] + words[:last],
        model="test",
        states=kept,
        steps=steps,
    )


@pytest.fixture
def kept():
    """Make explanations of random states, see :func:`kept_explanation`."""
    return kept_explanation
