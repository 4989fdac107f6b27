"""Interference, scale and residual against the oracle."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import tolerances
import torch

import tam_fast
from tam_fast import _C

SHAPES = [(1, 1, 1), (3, 2, 5), (9, 17, 33), (8, 64, 31), (16, 65, 100), (40, 130, 257), (5, 200, 64), (143, 70, 50)]


def case(t: int, k: int, n: int, *, triangular: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(t * 1000 + k)
    activation = torch.rand(t, n, generator=generator)
    context = torch.rand(k, n, generator=generator)
    relevance = torch.rand(t, k, generator=generator)
    if triangular:
        relevance = torch.tril(relevance, diagonal=max(k - t - 1, 0))
    return activation, context, relevance


def check(got: tuple[torch.Tensor, torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> None:
    causal, scale = oracle.estimated_causal_inference(*(x.double().numpy() for x in inputs))
    largest = max(float(inputs[0].abs().max()), 1e-300)
    assert np.abs(got[0].double().numpy() - causal).max() <= tolerances.CAUSAL * largest
    assert np.allclose(got[1].double().numpy(), scale, rtol=2e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("triangular", [True, False])
def test_against_the_oracle(path: str, shape: tuple[int, int, int], triangular: bool) -> None:
    inputs = case(*shape, triangular=triangular)
    check(tam_fast.estimated_causal_inference(*inputs), inputs)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e18])
def test_range(isa: str, scale: float) -> None:
    activation, context, relevance = case(6, 20, 50)
    # The summand 1e-8 of Eq. 4 is absolute, so relevances stay of the size it is meant for.
    inputs = (activation * scale, context * scale, relevance)
    check(tam_fast.estimated_causal_inference(*inputs), inputs)


def test_empty_context_and_zero_relevance(path: str) -> None:
    activation, context, relevance = case(4, 3, 10)
    for maps, weights in ((context[:0], relevance[:, :0]), (context, torch.zeros_like(relevance))):
        causal, scale = tam_fast.estimated_causal_inference(activation, maps, weights)
        assert torch.equal(causal, activation)
        assert torch.equal(scale, torch.zeros(4))
    causal, scale = tam_fast.estimated_causal_inference(activation[:0], context, relevance[:0])
    assert causal.shape == (0, 10)
    assert scale.shape == (0,)


def test_a_token_explained_by_its_context_vanishes(path: str) -> None:
    _, context, _ = case(1, 5, 40)
    relevance = torch.zeros(1, 5)
    relevance[0, 3] = 2.0
    causal, scale = tam_fast.estimated_causal_inference(3 * context[3:4], context, relevance)
    assert causal.abs().max() <= 1e-6
    assert torch.allclose(scale, torch.tensor(3.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_context_map_reaches_only_targets_that_use_it(path: str, bad: float) -> None:
    activation, context, relevance = case(9, 12, 20, triangular=False)
    clean = tam_fast.estimated_causal_inference(
        activation, context, relevance.clone().index_fill_(1, torch.tensor(4), 0)
    )
    relevance[:, 4] = 0
    relevance[6, 4] = 1
    context[4, 7] = bad
    causal, scale = tam_fast.estimated_causal_inference(activation, context, relevance)
    others = [0, 1, 2, 3, 4, 5, 7, 8]
    assert torch.equal(causal[others], clean[0][others])
    assert torch.equal(scale[others], clean[1][others])
    assert torch.isnan(causal[6]).any()


def test_bits_do_not_depend_on_batch_threads_or_instruction_set(threads: None) -> None:
    activation, context, relevance = case(37, 150, 201)
    results = []
    for name in _C.available_isas():
        _C.set_isa(name)
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(tam_fast.estimated_causal_inference(activation, context, relevance))
            singles = [
                tam_fast.estimated_causal_inference(activation[t : t + 1], context, relevance[t : t + 1])
                for t in range(37)
            ]
            results.append((torch.cat([s[0] for s in singles]), torch.cat([s[1] for s in singles])))
            assert _C.last_isa() == name
        finally:
            _C.set_isa(None)
    for causal, scale in results[1:]:
        assert torch.equal(causal, results[0][0])
        assert torch.equal(scale, results[0][1])


def test_a_longer_context_of_zero_relevance_changes_no_bit(isa: str) -> None:
    activation, context, relevance = case(11, 70, 90)
    short = tam_fast.estimated_causal_inference(activation, context, relevance)
    longer = torch.cat([context, torch.rand(80, 90)])
    padded = torch.cat([relevance, torch.zeros(11, 80)], dim=1)
    for got, expected in zip(tam_fast.estimated_causal_inference(activation, longer, padded), short, strict=True):
        assert torch.equal(got, expected)


def test_a_list_gives_what_each_item_gives_alone(path: str, threads: None) -> None:
    items = [case(*shape) for shape in [(9, 17, 33), (0, 3, 5), (20, 70, 50), (3, 2, 0), (1, 0, 7)]]
    items += [case(t, t + 3, 24) for t in range(1, 12)]
    items += [tuple(x.to(torch.bfloat16) for x in case(12, 40, 21))]
    alone = [tam_fast.estimated_causal_inference(*item) for item in items]
    for count in (1, 3):
        torch.set_num_threads(count)
        together = tam_fast.estimated_causal_inference(*(list(x) for x in zip(*items, strict=True)))
        for causal, scale, expected in zip(*together, alone, strict=True):
            assert torch.equal(causal, expected[0])
            assert torch.equal(scale, expected[1])


def test_strides_dtypes_lists_and_numpy(isa: str) -> None:
    inputs = case(6, 9, 21)
    expected = tam_fast.estimated_causal_inference(*inputs)
    views = tuple(x.t().contiguous().t() for x in inputs)
    for got, want in zip(tam_fast.estimated_causal_inference(*views), expected, strict=True):
        assert torch.equal(got, want)
    arrays = tam_fast.estimated_causal_inference(*(x.numpy() for x in inputs))
    assert isinstance(arrays[0], np.ndarray)
    assert np.array_equal(arrays[0], expected[0].numpy())
    causal, scale = tam_fast.estimated_causal_inference(*([x, x[:2] if i != 1 else x] for i, x in enumerate(inputs)))
    assert torch.equal(causal[0], expected[0])
    assert torch.equal(causal[1], expected[0][:2])
    assert torch.equal(scale[1], expected[1][:2])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        halves = tuple(x.to(dtype) for x in inputs)
        check(tam_fast.estimated_causal_inference(*halves), halves)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"activation": torch.zeros(2)}, ValueError, ["activation", "(T, N)"]),
        ({"context": torch.zeros(4, 6)}, ValueError, ["context", "N = 5", "(4, 6)"]),
        ({"relevance": torch.zeros(2, 3)}, ValueError, ["relevance", "(2, 4)", "(2, 3)"]),
        ({"relevance": torch.zeros(2, 4, dtype=torch.bool)}, TypeError, ["relevance", "bool"]),
        ({"activation": [torch.zeros(2, 5)]}, TypeError, ["context", "list"]),
    ],
)
def test_errors(change: dict[str, object], kind: type[Exception], words: list[str]) -> None:
    arguments: dict[str, object] = {
        "activation": torch.zeros(2, 5),
        "context": torch.zeros(4, 5),
        "relevance": torch.zeros(2, 4),
    }
    with pytest.raises(kind) as caught:
        tam_fast.estimated_causal_inference(**(arguments | change))
    for word in words:
        assert word in str(caught.value)
