"""The operators as torch sees them: schemas, fakes, autograd policy, torch.compile."""

from __future__ import annotations

import pytest
import torch

import tam_fast
from tam_fast.backends import selection
from tam_fast.backends.copying import copying
from tam_fast.operators import library

X = torch.rand(3, 6, 7)
HIDDEN, CLASSIFIER, IDS = torch.rand(9, 8), torch.rand(20, 8), torch.tensor([1, 5, 5])
ACTIVATION, CONTEXT, RELEVANCE = torch.rand(4, 12), torch.rand(5, 12), torch.rand(4, 5)

SAMPLES = {
    "rank_gaussian_filter": [
        (X, 3),
        (X.permute(2, 0, 1), 3),
        (X[:, ::2, 1:], 5),
        (X[:1].expand(3, 6, 7), 1),
        (X.half(), 3),
        (X[:0], 3),
    ],
    "rank_gaussian_filter_batch": [([X, X[0, :2].bfloat16()], 3), ([X.permute(1, 2, 0)], 5)],
    "token_scores": [(HIDDEN, CLASSIFIER, IDS), (HIDDEN.t().contiguous().t(), CLASSIFIER.bfloat16(), IDS[:0])],
    "token_scores_batch": [([HIDDEN, HIDDEN[:2]], CLASSIFIER, [IDS, IDS[:1]])],
    "least_squares_scale": [(X, X.flip(0)), (X.permute(1, 0, 2), X.permute(1, 0, 2).contiguous()), (X[0, 0], X[1, 1])],
    "estimated_causal_inference": [
        (ACTIVATION, CONTEXT, RELEVANCE),
        (ACTIVATION.t().contiguous().t(), CONTEXT[:0], RELEVANCE[:, :0]),
    ],
    "estimated_causal_inference_batch": [([ACTIVATION], [CONTEXT], [RELEVANCE])],
    "finish_maps": [
        (
            [CONTEXT, CONTEXT],
            [torch.tensor([4, 3, 2, 1]), torch.tensor([0])],
            [torch.arange(5), torch.arange(0)],
            [RELEVANCE, torch.zeros(1, 0)],
            [torch.rand(4, 6), torch.rand(1, 0)],
            [torch.tensor([3, 4, 5, 6]), torch.tensor([0])],
            [3, 4, 2, 3, 3, 2],
            [1, 2],
            3,
            False,
        )
    ],
}


def test_every_operator_has_samples() -> None:
    assert set(SAMPLES) == {schema.partition("(")[0] for schema in library.SCHEMAS}


CASES = [(name, index) for name, samples in SAMPLES.items() for index in range(len(samples))]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_opcheck(path: str, name: str, index: int) -> None:
    torch.library.opcheck(getattr(torch.ops.tam_fast, name).default, SAMPLES[name][index])


@pytest.mark.parametrize(("name", "index"), CASES)
def test_fake_allocates_as_the_kernel_does(name: str, index: int) -> None:
    operator, sample = getattr(torch.ops.tam_fast, name).default, SAMPLES[name][index]
    real = torch.utils._pytree.tree_leaves(operator(*sample))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = operator(*torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, sample))
    for a, b in zip(real, torch.utils._pytree.tree_leaves(fake), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_results_never_require_grad() -> None:
    maps = X.clone().requires_grad_()
    assert not tam_fast.rank_gaussian_filter(maps).requires_grad
    assert not tam_fast.token_scores(HIDDEN.clone().requires_grad_(), CLASSIFIER, IDS).requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        tam_fast.rank_gaussian_filter(maps).sum().backward()


def test_compiles_without_graph_breaks() -> None:
    def whole(maps: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        filtered = tam_fast.rank_gaussian_filter(maps * 2, 3) + 1
        ragged = tam_fast.rank_gaussian_filter([maps, maps[0, :2]], 5)
        scores = tam_fast.token_scores(hidden, CLASSIFIER, IDS)
        causal, scale = tam_fast.estimated_causal_inference(ACTIVATION, CONTEXT, RELEVANCE)
        return filtered, ragged[1], scores, causal, scale, tam_fast.least_squares_scale(causal, ACTIVATION)

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager", dynamic=False)
    for a, b in zip(compiled(X, HIDDEN), whole(X, HIDDEN), strict=True):
        assert torch.equal(a, b)


@pytest.mark.long
def test_compiles_with_inductor_and_dynamic_shapes() -> None:
    compiled = torch.compile(lambda maps: tam_fast.rank_gaussian_filter(maps.relu()) * 2, fullgraph=True, dynamic=True)
    for shape in ((3, 6, 7), (5, 9, 4)):
        maps = torch.randn(shape)
        assert torch.equal(compiled(maps), tam_fast.rank_gaussian_filter(maps.relu()) * 2)


def test_tensors_of_other_devices_are_served_by_the_cpu() -> None:
    """What a device without kernels of its own is served by: copied in, computed, copied back."""
    served = copying(selection.serving(selection.CPU))
    maps = [X, X[0, :2].bfloat16()]
    for got, expected in zip(served.rank_gaussian_filter(maps, 3), tam_fast.rank_gaussian_filter(maps), strict=True):
        assert torch.equal(got, expected)
    scores = served.token_scores([HIDDEN, HIDDEN[:2]], CLASSIFIER, [IDS, IDS[:1]])
    for got, expected in zip(
        scores, tam_fast.token_scores([HIDDEN, HIDDEN[:2]], CLASSIFIER, [IDS, IDS[:1]]), strict=True
    ):
        assert torch.equal(got, expected)
    assert torch.equal(served.least_squares_scale(X, X.flip(0)), tam_fast.least_squares_scale(X, X.flip(0)))
    causal, scale = served.estimated_causal_inference([ACTIVATION], [CONTEXT], [RELEVANCE])
    expected_causal, expected_scale = tam_fast.estimated_causal_inference(ACTIVATION, CONTEXT, RELEVANCE)
    assert torch.equal(causal[0], expected_causal)
    assert torch.equal(scale[0], expected_scale)
    *arguments, sizes, grids, kernel_size, nan = SAMPLES["finish_maps"][0]
    assert (sizes, grids) == ([3, 4, 2, 3, 3, 2], [1, 2])
    expected = torch.ops.tam_fast.finish_maps.default(*SAMPLES["finish_maps"][0])
    out = [tuple(torch.empty_like(part[item]) for part in expected) for item in range(2)]
    rasters = [[(3, 4)], [(2, 3), (3, 2)]]
    found = served.finish_maps(*arguments, rasters, kernel_size, constant_window_nan=nan, out=out)
    for part in range(4):
        for item in range(2):
            assert torch.equal(found[part][item], expected[part][item])
            assert torch.equal(out[item][part], expected[part][item])


@pytest.mark.parametrize("name", ["rank_gaussian_filter", "least_squares_scale", "estimated_causal_inference"])
def test_a_call_names_its_backend(name: str) -> None:
    operator, sample = getattr(tam_fast, name), SAMPLES[name][0]
    expected = torch.utils._pytree.tree_leaves(operator(*sample))
    for a, b in zip(torch.utils._pytree.tree_leaves(operator(*sample, backend="reference")), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="backend: expected one of cpu, cuda, triton, reference, got 'abacus'"):
        operator(*sample, backend="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="backend: expected a backend that can be used here, got 'cuda'"):
            operator(*sample, backend="cuda")
