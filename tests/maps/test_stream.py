"""A stream gives the bits of the whole answer, however the states come, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch
from answers import SIZES, Case, stream

import tam_fast


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("options", [{}, {"kernel_size": 5}, {"interference": False}], ids=str)
def test_streaming_gives_the_same_bits(path: str, sizes: list[tuple[int, int]], options: dict[str, object]) -> None:
    case = Case(sizes, n_p=20, n_t=30, v=90, interleaved=True)
    whole = case.maps(**options)
    for t, step in enumerate(stream(case, **options)):
        assert (step.index, step.token_id) == (t, int(whole.target_ids[t]))
        assert torch.equal(step.map, whole.maps[t])
        assert torch.equal(step.relevance, whole.relevance[t, : 20 + t])
        assert step.scale == float(whole.scale[t])
        assert step.flat == bool(whole.flat[t])


def test_streaming_from_a_chunked_prefill() -> None:
    case = Case([(4, 5)])
    chunks = [4, 10, case.answer_start - 14]
    for a, b in zip(stream(case), stream(case, chunks), strict=True):
        assert torch.equal(a.map, b.map)


def test_streaming_without_states_is_refused() -> None:
    case = Case([(4, 5)])
    maps = tam_fast.ActivationMapStream(case.classifier, case.layout, case.token_ids[: case.answer_start])
    with pytest.raises(ValueError, match=r"call extend\(\)"):
        maps.append(1)
    maps.extend(case.hidden[: case.answer_start])
    maps.append(1)
    maps.append(2)  # y_2 reads no state beyond the prompt's last
    with pytest.raises(ValueError, match="before token 2, got"):
        maps.append(3)
    maps.extend(case.hidden[case.answer_start : case.answer_start + 1])
    with pytest.raises(ValueError, match="token_ids: expected ids from 0 to 11"):
        maps.append(12)
    with pytest.raises(ValueError, match="hidden: expected C = 32"):
        maps.extend(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="prompt_ids: expected"):
        tam_fast.ActivationMapStream(case.classifier, case.layout, [1, 2])


def test_streaming_states_of_another_dtype_are_refused() -> None:
    case = Case([(4, 5)])
    maps = tam_fast.ActivationMapStream(case.classifier, case.layout, case.token_ids[: case.answer_start])
    maps.extend(case.hidden[: case.answer_start])
    with pytest.raises(TypeError, match=r"hidden: expected torch.float32 as before, got torch.float64"):
        maps.extend(case.hidden[case.answer_start :].double())
