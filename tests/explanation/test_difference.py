"""Differences of maps on one scale, and other tokens at steps of a part of the answer, against the float64 oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch

from tam_fast.explanation import Explanation

Make = Callable[..., Explanation]


def evidence(e: Explanation, step: int, token_id: int) -> tuple[Any, float]:
    """What Eq. 3 normalises, filtered, and its maximum, in the oracle's words."""
    states, layout = e.states, e.layout
    assert states is not None
    kept = states.layout
    hidden, ids, rows = states.hidden.numpy(), states.token_ids.numpy(), states.rows(torch.arange(12)).numpy()
    n_p, start = kept.prompt.numel(), kept.answer_start
    context = np.concatenate([ids[kept.prompt.numpy()], ids[start : start + step]])
    visual = kept.visual_positions.numpy()
    places = np.concatenate([kept.prompt.numpy(), start - 1 + np.arange(step)])
    scores = oracle.token_scores(hidden, rows, [*context, token_id])
    text = scores[-1, places]
    causal = scores[-1, visual]
    if n_p + step:
        masked = np.where(context == token_id, 0.0, text)
        causal = oracle.estimated_causal_inference(causal[None], scores[:-1, visual], masked[None])[0][0]
    filtered, offset = [], 0
    for height, width in layout.sizes:
        raster = causal[offset : offset + height * width].reshape(height, width)
        filtered.append(oracle.rank_gaussian_filter(raster))
        offset += height * width
    return filtered, max([causal.max(), *text])


def expected(first: tuple[Any, float], second: tuple[Any, float]) -> list[Any]:
    scale = max(first[1], second[1])
    return [(a - b) / scale for a, b in zip(first[0], second[0], strict=True)]


def assert_close(got: Any, wanted: list[Any]) -> None:
    assert len(got) == len(wanted)
    for one, two in zip(got, wanted, strict=True):
        assert one.dtype == torch.float32
        np.testing.assert_allclose(one.numpy(), two, atol=1e-6, rtol=0)
        assert float(one.abs().max()) <= 1.0


@pytest.mark.parametrize("floor", [0.0, 0.05])
@pytest.mark.parametrize("steps", [None, [1, 2, 4]])
@pytest.mark.parametrize("prompt", [3, 0])
@pytest.mark.parametrize("seed", range(3))
def test_differences_of_tokens(kept: Make, seed: int, prompt: int, steps: list[int] | None, floor: float) -> None:
    e = kept(seed, prompt=prompt, steps=steps, floor=floor)
    places = e.places
    for one, two in ((0, 1), (2, 0), (1, 1)):
        wanted = expected(*(evidence(e, places[row], e.token_ids[row]) for row in (one, two)))
        assert_close(e.difference(one, two), wanted)
        assert_close(e.difference(e.words[one], e.tokens[two].strip()), wanted)
    for row in range(len(e)):
        wanted = expected(evidence(e, places[row], 3), evidence(e, places[row], 7))
        assert_close(e.difference(3, 7, step=row), wanted)
        assert_close(e.difference(7, 3, step=e.words[row]), [-map for map in wanted])


def test_a_span_is_the_maximum_of_its_tokens(kept: Make) -> None:
    e = kept(5)
    sides = [[evidence(e, step, e.token_ids[step]) for step in some] for some in ((1, 2), (3,))]
    joined = [(np.maximum.reduce([np.array(s[0], dtype=object)[g] for s in side])) for side in sides for g in (0, 1)]
    scale = max(side[1] for some in sides for side in some)
    assert_close(e.difference((1, 3), 3), [(joined[g] - joined[2 + g]) / scale for g in (0, 1)])


@pytest.mark.parametrize("seed", range(4))
def test_where_the_smallest_value_is_zero_it_is_the_maps_times_their_largest(kept: Make, seed: int) -> None:
    e = kept(seed)
    for one, two in ((0, 1), (4, 2)):
        highest = [evidence(e, row, e.token_ids[row])[1] for row in (one, two)]
        wanted = [
            (a * highest[0] - b * highest[1]).numpy() / max(highest)  # type: ignore[operator]
            for a, b in zip(e[one], e[two], strict=True)
        ]
        for got, found in zip(e.difference(one, two), wanted, strict=True):
            np.testing.assert_allclose(got.numpy(), found, atol=2e-6)


def test_where_there_is_no_evidence_there_is_no_difference(kept: Make) -> None:
    e = kept(0)
    assert e.states is not None
    e.states.hidden.zero_()
    assert all(not found.any() for found in e.difference(0, 1))


def test_other_tokens_at_steps_of_a_part(kept: Make) -> None:
    """Rows of a part of the answer are not its steps."""
    whole, part = kept(1), kept(1, steps=[1, 4])
    for row, step in enumerate((1, 4)):
        for got, said in zip(part.what_if(row, part.token_ids[row]), part[row], strict=True):
            assert torch.equal(got, said)
        for token in (0, 5):
            for got, other in zip(part.what_if(part.words[row], token), whole.what_if(step, token), strict=True):
                assert torch.equal(got, other)


def test_a_saved_part_keeps_its_steps(kept: Make, tmp_path: Any) -> None:
    e = kept(2, steps=[0, 3])
    e.save(tmp_path / "e")
    again = Explanation.load(tmp_path / "e")
    assert again.steps == [0, 3]
    for got, wanted in zip(again.difference(0, 1), e.difference(0, 1), strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(KeyError, match="classifier="):
        again.difference(0, next(n for n in range(12) if n not in again.states.rows.ids.tolist()), step=0)  # type: ignore[union-attr]


def test_a_text_without_images_has_no_cells(kept: Make) -> None:
    assert kept(0, shapes=()).difference(0, 1) == []


def test_what_is_asked_wrongly(kept: Make, film: Explanation) -> None:
    e = kept(0)
    with pytest.raises(ValueError, match=r"^states: expected an explanation that keeps them"):
        film.difference(0, 1)
    with pytest.raises(ValueError, match=r"^step: expected one token, got 'w0 w1', which is 2"):
        e.what_if("w0 w1", 3)
    with pytest.raises(ValueError, match=r"^step: expected one token"):
        e.difference(3, 4, step=e.find("w0 w1")[0])
    with pytest.raises(ValueError, match=r"^second: expected a token of the answer or a candidate"):
        e.difference(3, "zebra", step=0)
    with pytest.raises(KeyError, match=r"'zebra' is not in the answer"):
        e.difference(0, "zebra")
    with pytest.raises(ValueError, match=r"^first: expected an id from 0 to 3, got 9"):
        e.difference(9, 1, step=0, classifier=torch.zeros(4, 8))
