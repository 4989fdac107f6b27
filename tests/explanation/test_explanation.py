"""Explanation: maps of words, tokens and spans, peaks, and fields that must agree."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from explanations import make_explanation
from PIL import Image

from tam_fast.explanation import Contrast, Explanation, Frames, Peak, Word


def test_word_map_is_the_maximum_of_its_tokens() -> None:
    e = make_explanation()
    expected = torch.maximum(e.maps.grid(2), e.maps.grid(3))
    for got in (e["circle"], e["Circle"], e.span(2, 4), e[2:4], e[(2, 4)], e[e.words[2]], e.grid("circle")):
        assert isinstance(got, torch.Tensor)
        assert got.shape == (4, 6)
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)
    assert torch.equal(e.vector("circle"), expected.flatten())


def test_token_index_counts_from_both_ends_and_gives_a_copy() -> None:
    e = make_explanation()
    assert torch.equal(e[-1], e.maps.grid(len(e) - 1))  # type: ignore[arg-type]
    before = e.maps.maps.clone()
    e.vector(0).zero_()
    e.grid(0).zero_()
    assert torch.equal(e.maps.maps, before)
    assert len(list(e)) == len(e)  # type: ignore[call-overload]


def test_several_images_give_a_list() -> None:
    e = make_explanation(shapes=((2, 3), (4, 1)), sources=(0, 1))
    maps = e["red"]
    assert isinstance(maps, list)
    assert [tuple(m.shape) for m in maps] == [(2, 3), (4, 1)]
    for g, raster in enumerate(maps):
        assert torch.equal(raster, e.maps.grid(1, g))
        assert torch.equal(raster, e.grid("red", g))
    with pytest.raises(IndexError, match=r"g: expected a grid from 0 to 1, got 2"):
        e.grid("red", 2)


def test_tiles_of_one_image_give_one_map() -> None:
    boxes = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
    e = make_explanation(shapes=((2, 3), (2, 3)), boxes=boxes)
    assert torch.equal(e["red"], torch.cat([e.grid("red", 0), e.grid("red", 1)], dim=1))  # type: ignore[arg-type]
    assert torch.equal(e.span(1, 2), e["red"])  # type: ignore[arg-type]


def test_nan_is_passed_over() -> None:
    maps = torch.tensor([[math.nan, 0.5], [0.25, math.nan], [math.nan, math.nan]])
    e = make_explanation(["a", "b", " c"], ((1, 2),), maps=maps)
    assert torch.equal(e.vector("ab"), torch.tensor([0.25, 0.5]))
    assert bool(e.vector("c").isnan().all())
    assert e.visual_strength.tolist() == [0.5, 0.25, 0.0]
    assert e.peak("c").value == 0.0


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("dog", KeyError, r"'dog' is not in the answer; its words are: A, red, circle, a, well-made, and, the"),
        (13, IndexError, r"key: expected a token from 0 to 12, got 13"),
        (-14, IndexError, r"key: expected a token from 0 to 12, got -14"),
        (slice(3, 3), ValueError, r"key: expected at least one of 13 tokens, got tokens 3 to 3"),
        (slice(0, 4, 2), ValueError, r"key: expected a slice of step 1, got step 2"),
        ((1, 2, 3), ValueError, r"key: expected a span \(start, end\), got \(1, 2, 3\)"),
        (True, TypeError, r"key: expected a token's index.* got bool"),
        (1.0, TypeError, r"key: expected a token's index.* got float"),
        (Word("x", 9, 20, (0, 1), 0.0), ValueError, r"key: expected at least one of 13 tokens, got tokens 9 to 20"),
    ],
)
def test_wrong_keys(key: Any, error: type[Exception], message: str) -> None:
    e = make_explanation()
    for ask in (e.__getitem__, e.vector, e.grid, e.peak, e.overlay):
        with pytest.raises(error, match=message):
            ask(key)


def test_peak_is_placed_on_the_image() -> None:
    maps = torch.zeros(2, 4 + 6)
    maps[0, 4 + 5] = 0.5
    boxes = [(0.0, 0.0, 1.0, 1.0), (0.5, 0.0, 1.0, 0.5)]
    e = make_explanation(["a", " b"], ((2, 2), (2, 3)), boxes=boxes, sources=[0, 0], maps=maps)
    peak = e.peak("a")
    assert (peak.value, peak.grid, peak.row, peak.column, peak.source) == (0.5, 1, 1, 2, 0)
    assert peak.x == pytest.approx(0.5 + 0.5 * 2.5 / 3)
    assert peak.y == pytest.approx(0.375)
    assert e.peak("b") == Peak(0.0, 0, 0, 0, 0, 0.25, 0.25)


def test_strength_is_the_brightest_cell() -> None:
    e = make_explanation()
    assert torch.equal(e.visual_strength, e.maps.maps.amax(1))
    assert e.visual_strength.shape == (len(e),)
    assert torch.equal(e.relevance, e.maps.relevance)


def test_repr_is_short() -> None:
    text = repr(make_explanation(shapes=((4, 6), (2, 2))))
    assert "red circle" in text
    assert "13 tokens" in text
    assert "4x6, 2x2" in text
    assert len(text) < 200


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"token_ids": [1]}, ValueError, r"token_ids: expected one for each of 13 maps, got 1"),
        ({"candidates": []}, ValueError, r"candidates: expected one for each of 13 maps, got 0"),
        ({"context_tokens": ["x"]}, ValueError, r"context_tokens: expected one for each of 15 columns"),
        ({"offsets": [(0, 99)] * 13}, ValueError, r"offsets: .* got \(0, 99\) for token 0"),
        ({"offsets": [(2, 1)] * 13}, ValueError, r"offsets: .* got \(2, 1\) for token 0"),
        ({"images": [Image.new("RGB", (1, 1))] * 2}, ValueError, r"images: expected 1, .* got 2"),
        ({"images": ["photo.jpg"]}, TypeError, r"images: expected PIL images, got str"),
        ({"tokens": ["x"]}, ValueError, r"tokens: expected one for each of 13 maps, got 1"),
        ({"steps": [0]}, ValueError, r"steps: expected one for each of 13 maps, got 1"),
        ({"steps": [0, *range(12)]}, ValueError, r"steps: expected ascending places from 0 on, got \[0, 0"),
        ({"steps": [-1, *range(12)]}, ValueError, r"steps: expected ascending places"),
        ({"steps": [*range(12), 13]}, ValueError, r"context_tokens: expected 3 of the prompt and 13 of .*, got 15"),
        ({"steps": [*range(12), 12.0]}, TypeError, r"steps: expected a list of whole numbers"),
        ({"steps": range(13)}, TypeError, r"steps: expected a list of whole numbers"),
        ({"videos": [Frames([Image.new("RGB", (1, 1))])]}, ValueError, r"videos: expected 0, .* got 1"),
        ({"thinking": 3}, TypeError, r"thinking: expected a text, got int"),
        ({"contrast": Contrast(torch.zeros(2), torch.zeros(2))}, ValueError, r"contrast: expected one for each of 13"),
        ({"messages": {}}, TypeError, r"messages: expected a list of them, got dict"),
        ({"messages": [{"content": []}]}, ValueError, r"messages: expected objects with a role"),
    ],
)
def test_fields_must_agree(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dataclasses.replace(make_explanation(), **fields)


def test_maps_must_fit_their_layout() -> None:
    with pytest.raises(ValueError, match=r"maps: expected maps of shape \(tokens, 24\), got \(13, 5\)"):
        make_explanation(maps=torch.zeros(13, 5))


def test_images_become_rgb() -> None:
    e = make_explanation(images=[Image.new("L", (8, 8), 7)])
    assert e.images[0].mode == "RGB"


def test_videos_must_fit_the_grids(film: Explanation) -> None:
    with pytest.raises(ValueError, match=r"^videos: expected 1, .* got 2"):
        dataclasses.replace(film, videos=film.videos * 2)
    with pytest.raises(TypeError, match=r"^videos: expected Frames, got str"):
        dataclasses.replace(film, videos=["a.mp4"])  # type: ignore[list-item]


def test_grounding_is_that_of_the_maps(film: Explanation) -> None:
    assert film.grounding is film.grounding
    assert film.grounding.score.shape == (6,)
    assert film.grounding.gain is not None
    assert film.grounding.gain.tolist() == [2.0] * 6
    assert film.words[1].grounding == float(film.grounding.word(1, 2).score)
    assert make_explanation().grounding.gain is None
