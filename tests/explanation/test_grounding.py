"""How visual a token is: bounds, what must not change the score, values by hand."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tam_fast.explanation.grounding import Contrast, Grounding, grounding_of
from tam_fast.explanation.words import Word

PARTS = ("score", "visual_mass", "text_mass", "share", "entropy", "fill", "peak", "scale", "flat")
BOUNDED = ("score", "visual_mass", "text_mass", "share", "entropy", "fill", "peak")


def maps_of(maps, relevance, scale=None, flat=None):
    maps, relevance = torch.as_tensor(maps), torch.as_tensor(relevance)
    return SimpleNamespace(
        maps=maps,
        relevance=relevance,
        scale=torch.ones(len(maps)) if scale is None else torch.as_tensor(scale),
        flat=torch.zeros(len(maps), dtype=torch.bool) if flat is None else torch.as_tensor(flat),
    )


def rows(count, least=0):
    """Maps or relevances of `count` tokens, from 0 to 1, with NaN and many zeros."""
    values = st.one_of(st.just(0.0), st.floats(0, 1, width=32), st.just(float("nan")))
    width = st.integers(least, 6)
    return width.flatmap(lambda n: hnp.arrays(np.float32, (count, n), elements=values))


def check(grounding, count):
    for name in BOUNDED:
        value = getattr(grounding, name)
        assert value.shape == (count,)
        assert value.dtype == torch.float32
        assert bool(((value >= 0) & (value <= 1)).all()), name  # false for NaN
    assert torch.isfinite(grounding.scale).all()


def assert_alike(one, other, names):
    for name in names:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6, msg=name)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(0, 3))
def test_bounds_and_what_must_not_change_it(data, count):
    maps, relevance = data.draw(rows(count)), data.draw(rows(count))
    flat = data.draw(hnp.arrays(bool, count))
    found = grounding_of(maps_of(maps, relevance, flat=flat))
    check(found, count)
    assert not found.score[found.flat].any()
    # A finer grid of the same picture, cells and words in another order, words that do not matter, words said twice.
    words = np.concatenate([relevance, np.zeros((count, 5), np.float32), relevance], axis=1)
    same = grounding_of(maps_of(np.repeat(maps, 4, axis=1)[:, ::-1].copy(), words[:, ::-1].copy(), flat=flat))
    assert_alike(found, same, [name for name in PARTS if name != "entropy"])
    # Images beside it that stay dark leave the masses, and fill less of all there is to see.
    wide = grounding_of(maps_of(np.concatenate([maps, 0 * np.nan_to_num(maps)], axis=1), relevance, flat=flat))
    assert_alike(found, wide, ("visual_mass", "text_mass", "share", "peak"))
    torch.testing.assert_close(wide.fill, found.fill / 2)
    # A map that is weaker everywhere is never more visual.
    weak = grounding_of(maps_of(maps * np.float32(0.5), relevance, flat=flat))
    assert bool((weak.score <= found.score + 1e-6).all())


def test_grids_of_one_picture_give_one_score():
    coarse = torch.rand(20, 20, generator=torch.Generator().manual_seed(3)) ** 4
    fine = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1)
    one, other = (grounding_of(maps_of(raster.reshape(1, -1), [[0.3, 1.0]])) for raster in (coarse, fine))
    assert_alike(one, other, [name for name in PARTS if name != "entropy"])
    assert float(other.entropy) > float(one.entropy)


def test_values_by_hand():
    found = grounding_of(maps_of([[0.6, 0.2, 0.0, 0.0]], [[0.5, 1.0, 0.0]], [1.25]))
    nats = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    evidence = 0.5 * (1 - math.exp(nats) / 4)
    expected = {
        "visual_mass": 0.4 / 0.8,
        "text_mass": 1.25 / 1.5,
        "share": 0.375,
        "entropy": nats / math.log(4),
        "fill": math.exp(nats) / 4,
        "peak": 0.6,
        "scale": 1.25,
        "score": evidence**2 / (evidence**2 + 0.07**2),
    }
    for name, value in expected.items():
        assert float(getattr(found, name)) == pytest.approx(value, rel=1e-6), name
    assert float(found.score) == pytest.approx(0.94144, abs=1e-5)
    assert found.gain is None


def test_half_is_where_evidence_is_what_the_formula_says():
    # Half of the cells alike: fill 0.5, so the mass must be 0.14.
    found = grounding_of(maps_of([[0.1401] * 8 + [0.0] * 8, [0.1399] * 8 + [0.0] * 8], [[1.0], [1.0]]))
    assert found.score.tolist() == pytest.approx([0.5, 0.5], abs=2e-3)
    assert found.visual.tolist() == [True, False]


@pytest.mark.parametrize("cells", [0, 1, 7])
def test_nothing_to_see_is_not_visual(cells):
    nan = float("nan")
    maps = torch.zeros(4, cells)
    maps[1], maps[2], maps[3] = 1.0, nan, 1.0  # of one constant, unknown, and flat all the same
    found = grounding_of(maps_of(maps, torch.full((4, 2), 0.5), [1.0, nan, 0.0, 2.0], [False, False, False, True]))
    check(found, 4)
    assert found.score.tolist() == pytest.approx([0.0] * 4, abs=1e-9)
    assert found.text_mass.tolist() == [0.5, 0.5, 0.5, 0.0]
    assert not found.visual.any()


def test_nothing_at_all():
    check(grounding_of(maps_of(torch.empty(2, 0), torch.empty(2, 0))), 2)
    check(grounding_of(maps_of(torch.empty(0, 3), torch.empty(0, 2))), 0)
    tiny = grounding_of(maps_of([[1e-45, 1e-38, 0.0]], [[1e-45]]))
    check(tiny, 1)


def test_maps_of_bytes():
    levels = torch.tensor([[255, 51, 0]], dtype=torch.uint8)
    assert_alike(grounding_of(maps_of(levels, [[1.0]])), grounding_of(maps_of(levels.float() / 255, [[1.0]])), PARTS)


@pytest.fixture
def three() -> Grounding:
    contrast = Contrast(torch.tensor([-0.5, -1.0, 0.0]), torch.tensor([-2.5, -0.5, -1e30]))
    maps = [[0.0, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0], [0.2, 0.1, 0.0, 0.0]]
    return grounding_of(maps_of(maps, [[0.0], [0.5], [1.0]], flat=[True, False, False]), contrast)


def test_a_word_is_its_most_visual_token(three):
    word = three.word(0, 3)
    for name in PARTS:
        assert torch.equal(getattr(word, name), getattr(three, name)[1:2]), name
    assert not word.flat
    assert float(three.word(0, 2).gain) == 1.5
    several = three.words([Word("a", 0, 1, (0, 1), 0.0), Word("bc", 1, 3, (1, 3), 0.0)])
    assert several.flat.tolist() == [True, False]
    assert several.share.tolist() == three.share[:2].tolist()
    assert several.gain.tolist() == pytest.approx([2.0, 1e30])
    none = three.words([])
    assert len(none) == len(none.gain) == 0
    assert none.flat.dtype == torch.bool
    for place in ((1, 1), (-1, 2), (2, 4)):
        with pytest.raises(IndexError, match=r"^start: expected at least one of 3 tokens"):
            three.word(*place)


def test_a_flat_token_never_speaks_for_a_word():
    dark = grounding_of(maps_of([[0.0], [0.0]], [[0.5], [1.0]], flat=[True, False]))
    assert float(dark.word(0, 2).text_mass) == 1.0


def test_to_dict_is_json(three):
    told = json.loads(json.dumps(three.to_dict(), allow_nan=False))
    assert list(told) == [*PARTS, "gain"]
    assert told["flat"] == [True, False, False]
    assert "gain" not in grounding_of(maps_of([[1.0]], [[1.0]])).to_dict()


def test_what_is_refused():
    good = torch.tensor([-1.0])
    with pytest.raises(TypeError, match=r"^with_images: expected a torch.Tensor"):
        Contrast([-1.0], good)
    for wrong in (
        good.double(),
        good[None],
        torch.tensor([0.1]),
        torch.tensor([float("nan")]),
        torch.tensor([-float("inf")]),
    ):
        with pytest.raises(ValueError, match=r"^without_images: expected"):
            Contrast(good, wrong)
    with pytest.raises(ValueError, match=r"^without_images: expected 1 values"):
        Contrast(good, torch.tensor([-1.0, -1.0]))
    with pytest.raises(ValueError, match=r"^contrast: expected one value for each of 2 tokens, got 1"):
        grounding_of(maps_of(torch.zeros(2, 1), torch.zeros(2, 1)), Contrast(good, good))
    with pytest.raises(ValueError, match=r"^maps: expected relevance of 2 tokens, as there are maps, got 1"):
        grounding_of(maps_of(torch.zeros(2, 1), torch.zeros(1, 1)))
