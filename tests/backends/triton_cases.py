"""The Triton kernels against the float64 oracle: on a GPU, or interpreted on the CPU. Collected by test_triton.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import tolerances
import torch
from answers import Case

from tam_fast.backends import triton as backend
from tam_fast.backends.contracts import DeviceAnswer, DeviceStep
from tam_fast.backends.triton import finishing, launch, tuning
from tam_fast.maps import tokens

if backend.INTERPRETED:
    from triton.runtime import interpreter

    _patched: set[int] = set()

    def _call(function: Any, *arguments: Any, **options: Any) -> Any:
        # The interpreter looks through all of Triton's language anew whenever a kernel calls a function.
        if id(function.fn.__globals__) not in _patched:
            _patched.add(id(function.fn.__globals__))
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*arguments, **options)

    interpreter.InterpretedFunction.__call__ = _call

DEVICE = torch.device("cpu" if backend.INTERPRETED else "cuda")
NETWORKS = (1, 3, 5, 7)
# Windows and dtypes that take different ways through the kernels; float64 goes the way of wide windows.
KINDS = [(1, torch.float32), (3, torch.float32), (5, torch.float32), (3, torch.float16), (3, torch.float64)]
# Triton's interpreter cuts float32 to bfloat16 where a GPU rounds: up to a whole unit instead of half of one.
BFLOAT16 = tolerances.FILTER_BFLOAT16 + (2.0**-8 if backend.INTERPRETED else 0.0)


def dense(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32)).to(DEVICE)


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor; those of one NaN for all of them."""
    x = x.masked_fill(torch.isnan(x), float("nan")).contiguous()
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


def host(x: torch.Tensor) -> np.ndarray:
    return x.double().cpu().numpy()


def filtered(x: torch.Tensor, kernel_size: int = 3, **options: Any) -> torch.Tensor:
    return backend.rank_gaussian_filter([x], kernel_size, **options)[0]


def filter_error(got: torch.Tensor, maps: torch.Tensor, kernel_size: int = 3) -> float:
    """Largest error against the oracle relative to each map's maximum."""
    expected = oracle.rank_gaussian_filter(host(maps), kernel_size)
    largest = np.abs(host(maps)).max(axis=(-2, -1), keepdims=True)
    assert got.shape == maps.shape
    assert got.dtype == maps.dtype
    return float((np.abs(host(got) - expected) / np.where(largest == 0, 1, largest)).max())


# ------------------------------------------------------------------------------------------------ rank_gaussian_filter


def test_ragged_maps_of_awkward_sizes_in_one_call() -> None:
    sides = [(h, w) for h in (1, 2, 3, 9) for w in (1, 2, 7, 17)]
    sides += [(8, 16), (15, 15), (16, 8), (31, 3), (32, 2), (33, 5), (7, 32), (2, 31), (3, 33)]
    maps = [dense(1 + i % 2, h, w, seed=i) for i, (h, w) in enumerate(sides)]
    maps.insert(3, dense(0, 4, 4))
    for one, got in zip(maps, backend.rank_gaussian_filter(maps, 3), strict=True):
        assert got.shape == one.shape
        if one.numel():
            assert filter_error(got, one) <= tolerances.FILTER_DENSE, one.shape
            assert torch.equal(got, filtered(one))


@pytest.mark.parametrize("kernel_size", NETWORKS)
def test_windows(kernel_size: int) -> None:
    maps = [dense(2, h, w, seed=h * w) for h, w in ((18, 19), (1, 1), (1, 2), (2, 1), (2, 2), (1, 5), (3, 2), (4, 3))]
    for one, got in zip(maps, backend.rank_gaussian_filter(maps, kernel_size), strict=True):
        assert filter_error(got, one, kernel_size) <= tolerances.FILTER_DENSE, one.shape


@pytest.mark.parametrize("kernel_size", [9, 11, 13, 15])
def test_wide_windows(kernel_size: int) -> None:
    maps = [dense(1, 6 if kernel_size == 9 else 2, 2, seed=kernel_size), dense(1, 1, 2)]
    for one, got in zip(maps, backend.rank_gaussian_filter(maps, kernel_size), strict=True):
        assert filter_error(got, one, kernel_size) <= tolerances.FILTER_DENSE


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
def test_sparse_maps(kernel_size: int) -> None:
    side = 24 if kernel_size < 9 else 4
    maps = torch.where(dense(2, side, side) < (0.03 if kernel_size < 9 else 0.2), dense(2, side, side, seed=1), 0.0)
    assert filter_error(filtered(maps, kernel_size), maps, kernel_size) <= tolerances.FILTER_SPARSE


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float16, tolerances.FILTER_FLOAT16),
        (torch.bfloat16, BFLOAT16),
        (torch.float64, tolerances.FILTER_DENSE),
    ],
)
def test_dtypes(dtype: torch.dtype, tolerance: float, kernel_size: int) -> None:
    maps = dense(2, 6, 7).to(dtype)
    assert filter_error(filtered(maps, kernel_size), maps, kernel_size) <= tolerance


def test_dtypes_of_one_list() -> None:
    maps = [dense(1, 4, 5).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float32, torch.float64)]
    for one, got in zip(maps, backend.rank_gaussian_filter(maps, 3), strict=True):
        assert torch.equal(got, filtered(one))
        assert got.dtype == one.dtype


@pytest.mark.parametrize(("dtype", "kernel_size"), [(torch.float32, 3), (torch.float32, 5), (torch.float64, 3)])
def test_strides_do_not_matter(dtype: torch.dtype, kernel_size: int) -> None:
    shape = (3, 4, 3)
    maps = dense(*shape).to(dtype)
    expected = filtered(maps, kernel_size)
    views = (
        torch.stack([maps, maps], dim=-1)[..., 0],
        torch.cat([maps, maps], dim=-2)[:, : shape[1]],
        maps.transpose(-1, -2).contiguous().transpose(-1, -2),
        maps.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    )
    for view in views:
        assert torch.equal(filtered(view, kernel_size), expected)
    assert torch.equal(filtered(maps[:1].expand(shape), kernel_size)[2], expected[0])
    assert torch.equal(filtered(maps[:, None, None], kernel_size).view(shape), expected)


@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lanes_of_several_columns(dtype: torch.dtype, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for calls of many pixels; where rows are not aligned a lane has one."""
    configuration = tuning.Configuration({"ROWS": 8, "LANES": 128 * columns, "COLUMNS": columns}, 4, 3)
    shapes = [(2, 9, 8), (1, 1, 4), (3, 2, 12), (1, 17, 16), (2, 5, 7), (1, 6, 6)]
    maps = [dense(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
    maps[0][:, 2:4, 2:5] = 0
    maps[3][0, 9:, 3:] *= 1e-6
    spoilt = maps[3].clone()
    spoilt[0, 4, 5], spoilt[0, 12, 2], spoilt[0, 8, 14] = float("nan"), float("inf"), -1.0
    given = [*maps, maps[0].transpose(1, 2).contiguous().transpose(1, 2), spoilt]
    expected = [filtered(x) for x in given]
    monkeypatch.setattr(launch, "configured", lambda *arguments: configuration)
    for x, y, one_column in zip(given, backend.rank_gaussian_filter(given, 3), expected, strict=True):
        assert torch.equal(bits(y), bits(one_column))
        assert torch.equal(bits(filtered(x)), bits(one_column))
    allowed = {torch.float32: tolerances.FILTER_SPARSE, torch.float16: tolerances.FILTER_FLOAT16}.get(dtype, BFLOAT16)
    for x, y in zip(maps, expected, strict=False):
        assert filter_error(y, x) <= allowed


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_squares_that_underflow_beside_large_values(kernel_size: int) -> None:
    """The square of a window's sum may be near the smallest denormal, and the sum of squares 0."""
    maps = dense(41, 6, 16)
    maps[:, :, 8:] = (0.9 + 0.2 * maps[:, :, 8:]) * torch.logspace(-26, -18, 41, device=DEVICE)[:, None, None]
    assert filter_error(filtered(maps, kernel_size), maps, kernel_size) <= tolerances.FILTER_SPARSE


@pytest.mark.parametrize("kernel_size", [3, 5, 9])
@pytest.mark.parametrize("scale", [3e38, 1e30, 1e18, 1e-18, 1e-30, 1e-37, 1e-40])
def test_range(scale: float, kernel_size: int) -> None:
    side = 12 if kernel_size < 9 else 2
    maps = (dense(2, side, side).double() * scale).float()
    got = filtered(maps, kernel_size)
    assert torch.isfinite(got).all()
    # Below the normal range the output itself has fewer bits: half a unit of the smallest denormal is allowed.
    step = 2.0**-150 / float(maps.max())
    assert filter_error(got, maps, kernel_size) <= tolerances.FILTER_DENSE + step


@pytest.mark.parametrize("scale", [1e-300, 1e-60, 1e60, 1e300])
def test_float64_beyond_the_range_of_float32(scale: float) -> None:
    maps = dense(1, 5, 5).double() * scale
    assert filter_error(filtered(maps), maps) <= tolerances.FILTER_DENSE


def test_float16_and_bfloat16_at_the_ends_of_their_range() -> None:
    for dtype, scale, tolerance in (
        (torch.float16, 60000.0, tolerances.FILTER_FLOAT16),
        (torch.float16, 2e-4, tolerances.FILTER_FLOAT16 + 2.0**-25 / 2e-4),
        (torch.bfloat16, 1e38, BFLOAT16),
        (torch.bfloat16, 1e-36, BFLOAT16),
    ):
        maps = (dense(1, 8, 9).double() * scale).to(dtype)
        assert filter_error(filtered(maps), maps) <= tolerance, (dtype, scale)


@pytest.mark.parametrize(("kernel_size", "dtype"), KINDS)
def test_constant_windows(kernel_size: int, dtype: torch.dtype) -> None:
    half = dtype == torch.float16
    for value in (0.0, 1.0, 0.1, *((6e-8, 6e4) if half else (1e-30, 1e-40, 3e38))):
        maps = torch.full((1, 5, 4), value, device=DEVICE, dtype=dtype)
        assert torch.equal(filtered(maps, kernel_size), maps), value
        if kernel_size > 1:
            official = filtered(maps, kernel_size, constant_window_nan=True)
            assert torch.isnan(official).all() == (value > 0), value


@pytest.mark.parametrize(("kernel_size", "dtype"), KINDS[1:])
def test_a_window_with_nonpositive_mean_is_zero(kernel_size: int, dtype: torch.dtype) -> None:
    assert filtered(torch.full((5, 5), -2.0, device=DEVICE, dtype=dtype), kernel_size).eq(0).all()
    maps = (dense(1, 6, 6) - 0.55).to(dtype)
    got, expected = host(filtered(maps, kernel_size)), oracle.rank_gaussian_filter(host(maps), kernel_size)
    half = kernel_size // 2
    padded = oracle.reflect_indices(6, half, half)
    windows = np.lib.stride_tricks.sliding_window_view(host(maps)[0][padded][:, padded], (kernel_size, kernel_size))
    # A band around the discontinuity: where the mean is within rounding of zero, either side is right.
    clear = np.abs(windows.mean((-1, -2))) > 1e-6
    assert (expected[0][clear] == 0).any()
    assert np.abs(got[0] - expected[0])[clear].max() <= (1e-5 if dtype != torch.float16 else 1e-3)


@pytest.mark.parametrize(("kernel_size", "dtype"), KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_spoil_their_windows_only(kernel_size: int, dtype: torch.dtype, bad: float) -> None:
    maps = dense(2, 8, 7).to(dtype)
    clean = filtered(maps, kernel_size)
    maps[0, 4, 3] = bad
    got = filtered(maps, kernel_size)
    half = kernel_size // 2
    touched = torch.zeros(maps.shape, dtype=torch.bool, device=DEVICE)
    touched[0, max(4 - half, 0) : 5 + half, max(3 - half, 0) : 4 + half] = True
    assert torch.isnan(got[touched]).all()
    assert torch.equal(got[~touched], clean[~touched])


def test_a_power_of_two_commutes_across_the_plain_range() -> None:
    maps = dense(1, 9, 8)
    for kernel_size in (3, 5):
        expected = filtered(maps, kernel_size)
        for exponent in (-100, -45, 50, 100):
            got = filtered(maps * 2.0**exponent, kernel_size)
            assert (got * 2.0**-exponent - expected).abs().max() <= tolerances.FILTER_DENSE, exponent


# ------------------------------------------------------------------------------------------ token_scores, answer_scores


def product(s: int, c: int, v: int, t: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(s * 1000 + c)
    hidden = torch.randn(s, c, generator=generator).to(dtype)
    classifier = torch.randn(v, c, generator=generator).to(dtype)
    return hidden.to(DEVICE), classifier.to(DEVICE), torch.randint(v, (t,), generator=generator).to(DEVICE)


def check_scores(got: torch.Tensor, hidden: torch.Tensor, classifier: torch.Tensor, ids: torch.Tensor) -> None:
    f, w = host(hidden), host(classifier)
    numbers = ids.cpu().numpy()
    expected = oracle.token_scores(f, w, numbers)
    magnitude = np.abs(w[numbers]) @ np.abs(f).T
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    assert (np.abs(host(got) - expected) <= tolerances.SCORES * magnitude + 1e-30).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 4, 2), (17, 48, 60, 9), (70, 129, 7, 33), (65, 64, 200, 65)])
def test_scores(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    hidden, classifier, ids = product(*shape, dtype)
    check_scores(backend.token_scores([hidden], classifier, [ids])[0], hidden, classifier, ids)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_scores_of_mixed_dtypes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    hidden, classifier, ids = product(9, 40, 12, 7)
    hidden, classifier = hidden.to(dtypes[0]), classifier.to(dtypes[1])
    check_scores(backend.token_scores([hidden], classifier, [ids])[0], hidden, classifier, ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_strided_matrices(dtype: torch.dtype) -> None:
    hidden, classifier, ids = product(21, 32, 50, 11, dtype)
    views = (
        (hidden.t().contiguous().t(), classifier.t().contiguous().t()),
        (torch.stack([hidden, hidden], -1)[..., 0], torch.cat([classifier, classifier], 1)[:, :32]),
    )
    for states, weight in views:
        check_scores(backend.token_scores([states], weight, [ids])[0], hidden, classifier, ids)


def test_scores_of_a_ragged_list() -> None:
    hidden, classifier, ids = product(70, 20, 30, 40)
    many = backend.token_scores(
        [hidden, hidden[:3], hidden[:0], hidden.bfloat16()], classifier, [ids, ids[:2], ids, ids]
    )
    for got, states, tokens_ in zip(many, (hidden, hidden[:3]), (ids, ids[:2]), strict=False):
        assert torch.equal(got, backend.token_scores([states], classifier, [tokens_])[0])
    assert many[2].shape == (40, 0)
    check_scores(many[3], hidden.bfloat16(), classifier, ids)
    assert backend.token_scores([], classifier, []) == []
    assert backend.token_scores([hidden], classifier, [ids[:0]])[0].shape == (0, 70)


def test_scores_at_positions_and_the_flag() -> None:
    hidden, classifier, ids = product(40, 33, 9, 6)
    positions = torch.tensor([3, 3, 39, 0], device=DEVICE)
    flag = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    got = backend.answer_scores([hidden] * 2, classifier, [ids, ids[:1]], [positions, positions[:2]], flag)
    check_scores(got[0], hidden[positions], classifier, ids)
    check_scores(got[1], hidden[positions[:2]], classifier, ids[:1])
    assert flag.item() == 0
    hidden[20] = float("nan")  # not among the positions
    classifier[ids[0]] = torch.where(torch.arange(33, device=DEVICE) == 4, float("inf"), classifier[ids[0]])
    assert torch.equal(backend.answer_scores([hidden], classifier, [ids[1:2]], [positions], flag)[0], got[0][1:2])
    assert flag.item() == 0
    backend.answer_scores([hidden], classifier, [ids], [positions], flag)
    assert flag.item() == 1


def test_what_is_out_of_range_is_nan_and_never_read() -> None:
    hidden, classifier, _ = product(5, 16, 4, 1)
    flag = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    ids, positions = torch.tensor([2, 4, -1], device=DEVICE), torch.tensor([1, 5, -1], device=DEVICE)
    got = backend.answer_scores([hidden], classifier, [ids], [positions], flag)[0]
    assert torch.isnan(got).cpu().tolist() == [[False, True, True], [True] * 3, [True] * 3]
    assert flag.item() == 1


def test_nan_and_minus_infinity() -> None:
    hidden, classifier, ids = product(4, 8, 9, 3)
    hidden[2, 3] = float("nan")
    hidden[1] = -torch.sign(classifier[ids[0]]) * 3e38
    got = backend.token_scores([hidden], classifier, [ids])[0]
    assert torch.isnan(got[:, 2]).all()
    assert got[0, 1] == 0
    assert not torch.isnan(got[:, [0, 3]]).any()


# ------------------------------------------------------------------------------- least_squares_scale, causal inference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_least_squares_scale(dtype: torch.dtype) -> None:
    a, e = dense(2, 3, 1100).to(dtype), dense(2, 3, 1100, seed=1).to(dtype)
    e[0, 1] = 0
    got = backend.least_squares_scale(a, e)
    expected = oracle.least_squares_scale(host(a), host(e))
    assert got.shape == (2, 3)
    assert got[0, 1] == 0
    assert np.allclose(host(got), expected, rtol=tolerances.SCALE, atol=0)
    views = torch.stack([a, a], -1)[..., 0], e.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(backend.least_squares_scale(*views), got)
    mixed = backend.least_squares_scale(a, e.double())
    assert np.allclose(host(mixed), expected, rtol=tolerances.SCALE, atol=0)
    assert backend.least_squares_scale(a[:0], e[:0]).shape == (0, 3)
    assert backend.least_squares_scale(a[..., :0], e[..., :0]).eq(0).all()


def inference_case(t: int, k: int, n: int, *, triangular: bool = True) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(t * 1000 + k)
    activation = torch.rand(t, n, generator=generator)
    context = torch.rand(k, n, generator=generator)
    relevance = torch.rand(t, k, generator=generator)
    if triangular:
        relevance = torch.tril(relevance, diagonal=max(k - t - 1, 0))
    return activation.to(DEVICE), context.to(DEVICE), relevance.to(DEVICE)


def inferred(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    causal, scale = backend.estimated_causal_inference(*([x] for x in inputs))
    return causal[0], scale[0]


def check_inference(got: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...]) -> None:
    causal, scale = oracle.estimated_causal_inference(*(host(x) for x in inputs))
    largest = max(float(inputs[0].abs().max()), 1e-300)
    assert np.abs(host(got[0]) - causal).max() <= tolerances.CAUSAL * largest
    assert np.allclose(host(got[1]), scale, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 2, 5), (4, 130, 70), (9, 17, 33), (8, 64, 31), (33, 65, 100), (5, 200, 64)]
)
@pytest.mark.parametrize("triangular", [True, False])
def test_inference(shape: tuple[int, int, int], triangular: bool) -> None:
    inputs = inference_case(*shape, triangular=triangular)
    check_inference(inferred(*inputs), inputs)


@pytest.mark.parametrize("targets", [2, 6])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_range_of_inference(scale: float, targets: int) -> None:
    activation, context, relevance = inference_case(targets, 20, 50)
    check_inference(inferred(*(x := (activation * scale, context * scale, relevance))), x)
    causal, _ = inferred(activation, context, relevance * scale)
    # The summand 1e-8 of Eq. 4 cancels between E and s, so the length of the relevances does not matter.
    expected, _ = oracle.estimated_causal_inference(host(activation), host(context), host(relevance))
    assert np.abs(host(causal) - expected).max() <= tolerances.CAUSAL


def test_no_context_no_targets_no_positions() -> None:
    for targets in (4, 6):
        activation, context, relevance = inference_case(targets, 3, 10)
        for maps, weights in ((context[:0], relevance[:, :0]), (context, torch.zeros_like(relevance))):
            causal, scale = inferred(activation, maps, weights)
            assert torch.equal(causal, activation)
            assert scale.eq(0).all()
        causal, scale = inferred(activation[:, :0], context[:, :0], relevance)
        assert causal.shape == (targets, 0)
        assert scale.eq(0).all()
    causal, scale = inferred(activation[:0], context, relevance[:0])
    assert causal.shape == (0, 10)
    assert scale.shape == (0,)
    assert backend.estimated_causal_inference([], [], []) == ([], [])


@pytest.mark.parametrize("targets", [3, 9])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_context_map_reaches_only_targets_that_use_it(bad: float, targets: int) -> None:
    activation, context, relevance = inference_case(targets, 12, 20, triangular=False)
    relevance[:, 4] = 0
    clean = inferred(activation, context, relevance)
    relevance[targets - 2, 4] = 1
    context[4, 7] = bad
    causal, scale = inferred(activation, context, relevance)
    others = [t for t in range(targets) if t != targets - 2]
    # What is computed again is summed in another order.
    assert (causal[others] - clean[0][others]).abs().max() <= tolerances.CAUSAL
    assert torch.allclose(scale[others], clean[1][others], rtol=2e-6, atol=0)
    assert torch.isnan(causal[targets - 2]).any()
    assert torch.isnan(scale[targets - 2])


def test_inference_of_a_ragged_list_and_of_any_strides_and_dtypes() -> None:
    items = [inference_case(*shape) for shape in [(9, 17, 33), (0, 3, 5), (20, 70, 50), (3, 2, 0), (1, 0, 7)]]
    items += [tuple(x.to(torch.bfloat16) for x in inference_case(12, 40, 21))]
    items += [tuple(x.t().contiguous().t() for x in inference_case(6, 9, 21))]
    together = backend.estimated_causal_inference(*(list(x) for x in zip(*items, strict=True)))
    for causal, scale, item in zip(*together, items, strict=True):
        assert causal.shape == item[0].shape
        if item[0].numel():
            check_inference((causal, scale), item)
    one = backend.estimated_causal_inference(*([x] for x in items[2]))
    assert torch.equal(one[0][0], together[0][2])
    assert torch.equal(one[1][0], together[1][2])


# ---------------------------------------------------------------------------------------------------------- finish_maps


class Finish:
    """Arguments of finish_maps and what they come to, in float64."""

    def __init__(self, sizes: list[tuple[int, int]], t: int = 3, k: int = 5, length: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        n = sum(h * w for h, w in sizes)
        self.sizes = sizes
        self.scores = torch.rand(k + t, n, generator=generator).to(DEVICE)
        self.rows = torch.randint(k + t, (t,), generator=generator).to(DEVICE)
        self.context = torch.randint(k + t, (k,), generator=generator).to(DEVICE)
        self.relevance = torch.rand(t, k, generator=generator).to(DEVICE)
        self.text = (torch.rand(t, length, generator=generator) - 0.3).to(DEVICE)
        self.lengths = torch.randint(length + 1, (t,), generator=generator).to(DEVICE)

    def run(self, kernel_size: int, indexed: bool = True, **options: Any) -> tuple[torch.Tensor, ...]:
        context = [self.context] if indexed else None
        found = backend.finish_maps(
            [self.scores], [self.rows], context, [self.relevance], [self.text], [self.lengths], [self.sizes],
            kernel_size, **options,
        )  # fmt: skip
        return tuple(x[0] for x in found)

    def expected(self, kernel_size: int, indexed: bool = True) -> tuple[np.ndarray, ...]:
        scores, rows = host(self.scores), self.rows.cpu().numpy()
        context = self.context.cpu().numpy() if indexed else np.arange(self.relevance.shape[1])
        causal, scale = oracle.estimated_causal_inference(scores[rows], scores[context], host(self.relevance))
        maps, text = np.zeros_like(causal), np.zeros(self.text.shape)
        flat = np.zeros(len(causal), bool)
        for t, length in enumerate(self.lengths.tolist()):
            words = host(self.text)[t, :length]
            low, high = min([*causal[t], *words]), max([*causal[t], *words])
            flat[t] = low == high
            if not flat[t]:
                normalised = (causal[t] - low) / (high - low)
                text[t, :length] = (words - low) / (high - low)
                maps[t] = oracle._filter_grids(normalised, self.sizes, kernel_size)
        return maps, text, scale, flat

    def check(self, got: tuple[torch.Tensor, ...], kernel_size: int, indexed: bool = True) -> None:
        maps, text, scale, flat = self.expected(kernel_size, indexed)
        assert np.abs(host(got[0]) - maps).max() <= tolerances.PIPELINE
        assert np.abs(host(got[1]) - text).max(initial=0) <= tolerances.PIPELINE
        assert np.allclose(host(got[2]), scale, rtol=3e-6, atol=0)
        assert np.array_equal(got[3].cpu().numpy(), flat)


@pytest.mark.parametrize("sizes", [[(1, 1)], [(3, 9)], [(2, 2), (5, 3)], [(4, 4), (4, 4), (4, 4)], [(33, 16)]], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_finish_maps(sizes: list[tuple[int, int]], kernel_size: int) -> None:
    case = Finish(sizes, seed=len(sizes))
    case.check(case.run(kernel_size), kernel_size)


@pytest.mark.parametrize("targets", [1, 2, 7])
@pytest.mark.parametrize(("k", "length"), [(0, 0), (0, 3), (33, 0), (2, 1200)])
def test_finish_maps_of_any_context(targets: int, k: int, length: int) -> None:
    case = Finish([(7, 8), (3, 2)], targets, k, length)
    case.check(case.run(3), 3)
    case.check(case.run(3, indexed=False), 3, indexed=False)


def test_finish_maps_with_a_wide_window_and_of_large_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Finish([(2, 3), (1, 3)], t=2)
    case.check(case.run(9), 9)
    case = Finish([(9, 10), (3, 4)])
    whole = case.run(3)
    monkeypatch.setattr(finishing, "_SEPARATE", 10)
    case.check(case.run(3), 3)
    assert torch.equal(case.run(3)[0], whole[0])


def test_flat_maps() -> None:
    case = Finish([(3, 4)], t=3)
    case.relevance[:] = 0
    case.scores[:] = 0.25
    case.lengths[:] = torch.tensor([0, 4, 2])
    case.text[1] = 0.25
    case.text[2, :2] = 0.5
    got = case.run(3)
    assert got[3].tolist() == [True, True, False]
    assert got[0].eq(0).all()  # the third one's text is above the map
    assert got[1].cpu().tolist() == [[0.0] * 4, [0.0] * 4, [1.0, 1.0, 0.0, 0.0]]
    official = case.run(3, constant_window_nan=True)
    assert official[0].eq(0).all()
    case.text[2, :2] = 0.0
    assert case.run(3)[0][2].eq(1).all()
    assert torch.isnan(case.run(3, constant_window_nan=True)[0][2]).all()


@pytest.mark.parametrize("where", ["map", "text", "beyond"])
def test_nan_makes_all_of_a_row_nan(where: str) -> None:
    case = Finish([(4, 5)], t=3)
    case.rows[:] = torch.tensor([5, 6, 7])
    case.context[:] = torch.tensor([0, 1, 2, 3, 4])
    case.lengths[:] = 3
    if where == "map":
        case.scores[6, 3] = float("nan")
    else:
        case.text[1, 1 if where == "text" else 3] = float("nan")
    maps, text, scale, flat = case.run(3)
    if where == "beyond":
        case.check((maps, text, scale, flat), 3)
        return
    assert torch.isnan(maps).any(1).tolist() == [False, True, False]
    assert torch.isnan(maps[1]).all()
    assert torch.isnan(text[1, :3]).all()
    assert text[1, 3] == 0
    assert not flat.any()


def test_finish_maps_writes_where_it_is_told() -> None:
    case = Finish([(4, 5)])
    out = tuple(torch.full_like(x, 7) for x in case.run(3))
    found = case.run(3, out=[out])
    for place, value in zip(out, found, strict=True):
        assert torch.equal(place, value)


# ---------------------------------------------------------------------------------------------- whole answers, streams


class Answer:
    """A made-up answer as the pipeline hands it to a device, and its oracle."""

    def __init__(self, case: Case, *, interference: bool = True, dtype: torch.dtype = torch.float32) -> None:
        self.case, self.interference = case, interference
        case.to(DEVICE)
        self.tokens = tokens.AnswerTokens(case.hidden, case.classifier, case.token_ids, case.layout, None, None, "")
        self.known = self.tokens.ids.size - 1
        self.targets = self.tokens.target_rows.size
        self.n_p = self.known + 1 - self.targets
        self.visual = case.layout.visual_positions.to(DEVICE)
        context = torch.cat([case.layout.prompt, self.tokens.start + torch.arange(self.targets - 1)]).to(DEVICE)
        self.positions = torch.cat([self.visual, context])
        self.classes = self.on_device(self.tokens.classes)
        self.flag = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        self.dtype = dtype

    @staticmethod
    def on_device(values: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(DEVICE)

    def device_answer(self) -> DeviceAnswer:
        case, t = self.case, self.targets
        scores = backend.answer_scores([case.hidden], case.classifier, [self.classes], [self.positions], self.flag)[0]
        rows, names = self.on_device(self.tokens.rows), self.on_device(self.tokens.names)
        target_names = names[self.n_p :].clone()
        if not self.interference:
            target_names[:] = -1
        lengths = self.n_p + torch.arange(t, device=DEVICE)
        size = self.visual.numel()
        return DeviceAnswer(
            scores=scores,
            context_rows=rows[: self.known].clone(),
            context_names=names[: self.known].clone(),
            target_rows=rows[self.n_p :].clone(),
            target_names=target_names,
            lengths=lengths,
            text_lengths=lengths.clone(),
            sizes=case.sizes,
            maps=torch.full((t, size), 9, dtype=self.dtype, device=DEVICE),
            relevance=torch.full((t, self.known), 9.0, device=DEVICE),
            scale=torch.full((t,), 9.0, device=DEVICE),
            flat=torch.zeros(t, dtype=torch.bool, device=DEVICE),
        )

    def check(self, got: DeviceAnswer, kernel_size: int = 3) -> None:
        expected = self.case.oracle(kernel_size=kernel_size, interference=self.interference)
        if got.maps.dtype == torch.uint8:
            levels = np.floor(np.clip(255 * expected.maps, 0, 255))
            assert np.abs(host(got.maps) - levels).max() <= 1
            assert (host(got.maps) != levels).mean() <= 0.02
        else:
            assert np.abs(host(got.maps) - expected.maps).max() <= tolerances.PIPELINE
        assert np.abs(host(got.relevance) - expected.relevance).max(initial=0) <= tolerances.PIPELINE
        assert np.allclose(host(got.scale), expected.scale, rtol=3e-6, atol=1e-7)
        assert np.array_equal(got.flat.cpu().numpy(), expected.flat)


@pytest.mark.parametrize(
    "case",
    [
        ([(6, 7)], 5, 7, 12),
        ([(1, 1)], 0, 1, 9),
        ([(1, 9)], 0, 5, 9),
        ([(2, 2), (5, 3)], 1, 2, 3),
        ([(8, 9)], 3, 34, 50),
        ([(4, 4), (4, 4)], 20, 3, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("interference", [True, False])
def test_answers(case: tuple[list[tuple[int, int]], int, int, int], interference: bool) -> None:
    sizes, n_p, n_t, v = case
    answer = Answer(Case(sizes, n_p, n_t, v=v), interference=interference)
    got = answer.device_answer()
    backend.answer_maps([got], 3)
    answer.check(got)
    assert answer.flag.item() == 0


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
def test_answers_as_uint8(kernel_size: int) -> None:
    answer = Answer(Case([(6, 5) if kernel_size < 9 else (3, 2)], n_t=3), dtype=torch.uint8)
    got = answer.device_answer()
    backend.answer_maps([got], kernel_size)
    answer.check(got, kernel_size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_answers_of_other_dtypes(dtype: torch.dtype) -> None:
    answer = Answer(Case([(8, 9)], dtype=dtype))
    got = answer.device_answer()
    backend.answer_maps([got], 3)
    answer.check(got)


def test_uint8_shows_nan_as_zero() -> None:
    answer = Answer(Case([(6, 5)], n_t=6), dtype=torch.uint8)
    got = answer.device_answer()
    got.scores[got.target_rows[-1], 3] = float("nan")
    for kernel_size in (1, 3, 5):
        backend.answer_maps([got], kernel_size)
        assert got.maps[-1].eq(0).all()


def test_a_batch_of_ragged_answers_is_the_answers_alone() -> None:
    cases = [Case([(6, 7)]), Case([(2, 2), (5, 3)], n_p=9, n_t=11), Case([(1, 1)], n_p=0, n_t=1), Case([(3, 3)], n_t=8)]
    answers = [Answer(case, dtype=torch.uint8 if i == 3 else torch.float32) for i, case in enumerate(cases)]
    batch = [answer.device_answer() for answer in answers]
    backend.answer_maps(batch, 3)
    for answer, got in zip(answers, batch, strict=True):
        answer.check(got)
    big = answers[1].device_answer()
    backend.answer_maps([big], 3)
    for name in ("maps", "relevance", "scale", "flat"):
        assert torch.equal(getattr(big, name), getattr(batch[1], name)), name
    backend.answer_maps([], 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n_p", "n_t"), [(5, 7), (40, 2), (3, 34)])
def test_context_maps_made_from_states(n_p: int, n_t: int, dtype: torch.dtype) -> None:
    answer = Answer(Case([(6, 7)], n_p, n_t, v=40, dtype=dtype))
    full = answer.device_answer()
    # Rows for the targets alone; those of the prompt's words are poisoned by leaving them out.
    rows, inverse = full.target_rows.unique(return_inverse=True)
    classes = answer.on_device(answer.tokens.classes)[full.context_rows]
    few = replace(full, scores=full.scores[rows].clone(), target_rows=inverse, context_rows=full.context_rows[:0])
    case = answer.case
    states = backend.ContextStates(case.hidden, answer.visual, case.classifier, classes, answer.flag)
    backend.answer_maps([few], 3, states=[states])
    answer.check(few)
    assert answer.flag.item() == 0


def test_context_maps_made_from_states_that_are_bad() -> None:
    answer = Answer(Case([(6, 7)], 12, 6, v=40))
    full = answer.device_answer()
    case = answer.case
    classes = answer.on_device(answer.tokens.classes)[full.context_rows]
    hidden = case.hidden.clone()
    hidden[answer.visual[5]] = float("nan")  # of every context map, but of no activation map
    few = replace(full, context_rows=full.context_rows[:0])
    states = backend.ContextStates(hidden, answer.visual, case.classifier, classes, answer.flag)
    backend.answer_maps([few], 3, states=[states])
    assert answer.flag.item() == 1
    assert torch.isnan(few.maps).all()
    few.target_names[:] = -1
    backend.answer_maps([few], 3, states=[states])
    assert not torch.isnan(few.maps).any()


@pytest.mark.parametrize("given", [True, False])
def test_context_maps_are_read_where_they_are(given: bool) -> None:
    answer = Answer(Case([(6, 7)]))
    got = answer.device_answer()
    nowhere = torch.full_like(answer.case.hidden, float("nan"))
    classes = answer.on_device(answer.tokens.classes)[got.context_rows]
    states = backend.ContextStates(nowhere, answer.visual, answer.case.classifier, classes, answer.flag)
    backend.answer_maps([got], 3, states=[states if given else None])
    answer.check(got)
    assert answer.flag.item() == 0


def stream(answer: Answer, kernel_size: int, capacity: int) -> list[tuple[torch.Tensor, ...]]:
    """Append an answer's tokens one by one, as the pipeline's stream does."""
    case, n_p, start = answer.case, answer.n_p, answer.tokens.start
    prompt = case.hidden[: start + 1].contiguous()
    positions = answer.positions[: answer.visual.numel() + n_p].clone()
    ids = answer.tokens.ids.tolist()
    row_of: dict[int, int] = {}
    for token in ids[:n_p]:
        row_of.setdefault(token, len(row_of))
    width, size = positions.numel(), answer.visual.numel()
    step = DeviceStep(
        prompt=prompt,
        positions=positions,
        states=prompt.new_full((capacity, prompt.shape[1]), float("nan")),
        classifier=case.classifier,
        scores=torch.full((len(set(ids)), width + capacity), float("nan"), device=DEVICE),
        state=torch.zeros(4, dtype=torch.int64, device=DEVICE),
        context_rows=torch.full((n_p + capacity,), -5, device=DEVICE),
        context_names=torch.full((n_p + capacity,), -5, device=DEVICE),
        target=torch.tensor([0, 0 if answer.interference else -1, 0], device=DEVICE),
        sizes=case.sizes,
        n_p=n_p,
        flag=answer.flag,
        maps=torch.empty((1, size), device=DEVICE),
        relevance=torch.empty((1, n_p + capacity), device=DEVICE),
        scale=torch.empty(1, device=DEVICE),
        flat=torch.empty(1, dtype=torch.bool, device=DEVICE),
    )
    if row_of:
        classes = torch.tensor(list(row_of), device=DEVICE)
        known = backend.answer_scores([prompt], case.classifier, [classes], [positions], answer.flag)[0]
        step.scores[: len(row_of), :width] = known
    of_prompt = torch.tensor([row_of[token] for token in ids[:n_p]], dtype=torch.int64, device=DEVICE)
    step.context_rows[:n_p] = of_prompt
    step.context_names[:n_p] = of_prompt
    found = []
    for t, token in enumerate(ids[n_p:]):
        step.states[: t + 1] = case.hidden[start : start + t + 1]
        is_new = token not in row_of
        row = row_of.setdefault(token, len(row_of))
        step.state.copy_(torch.tensor([token, row, n_p + t, int(is_new)]))
        backend.step_answer(step, kernel_size)
        found.append(tuple(x.clone() for x in (step.maps, step.relevance, step.scale, step.flat)))
        assert step.target.tolist() == [row, row if answer.interference else -1, n_p + t]
    return found


@pytest.mark.parametrize(
    ("sizes", "n_p", "n_t", "dtype", "interference"),
    [
        ([(6, 7)], 5, 6, torch.float32, True),
        ([(2, 2), (5, 3)], 0, 4, torch.bfloat16, True),
        ([(5, 5)], 3, 3, torch.float32, False),
    ],
)
def test_a_stream_is_the_answer(
    sizes: list[tuple[int, int]], n_p: int, n_t: int, dtype: torch.dtype, interference: bool
) -> None:
    answer = Answer(Case(sizes, n_p, n_t, v=7, dtype=dtype), interference=interference)
    whole = answer.device_answer()
    backend.answer_maps([whole], 3)
    answer.check(whole)
    for t, (maps, relevance, scale, flat) in enumerate(stream(answer, 3, n_t + 2)):
        assert (maps[0] - whole.maps[t]).abs().max() <= tolerances.PIPELINE
        length = n_p + t
        assert (relevance[0, :length] - whole.relevance[t, :length]).abs().nan_to_num(9).le(tolerances.PIPELINE).all()
        assert relevance[0, length:].eq(0).all()
        assert torch.allclose(scale, whole.scale[t], rtol=3e-6, atol=1e-7)
        assert bool(flat) == bool(whole.flat[t])
    assert answer.flag.item() == 0


def test_a_stream_flags_what_is_not_finite() -> None:
    answer = Answer(Case([(3, 4)], 3, 3, v=7))
    answer.case.hidden[answer.tokens.start, 2] = float("inf")
    stream(answer, 3, 4)
    assert answer.flag.item() == 1


# --------------------------------------------------------------------------------------------------------------- others


def test_runs_repeat_bit_for_bit() -> None:
    answer = Answer(Case([(6, 7)], n_t=9))
    first = answer.device_answer()
    backend.answer_maps([first], 3)
    for _ in range(2 if backend.INTERPRETED else 200):
        again = answer.device_answer()
        backend.answer_maps([again], 3)
        for name in ("maps", "relevance", "scale", "flat"):
            assert torch.equal(getattr(first, name), getattr(again, name)), name


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuning.Tuner:
    """Measure two configurations of whatever is launched; under the interpreter the time is made up."""
    tuner = tuning.Tuner("test")
    candidates = tuning.candidates
    monkeypatch.setenv("TAM_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "candidates", lambda *arguments: candidates(*arguments)[:2])
    monkeypatch.setattr(launch, "tuner", lambda: tuner)
    if backend.INTERPRETED:
        monkeypatch.setattr(launch, "INTERPRETED", False)
        monkeypatch.setattr(launch, "on", lambda device: np.errstate(all="ignore"))
        monkeypatch.setattr(launch, "_capturing", lambda: False)
        monkeypatch.setattr(launch, "_measure", lambda run: lambda configuration: [1.0, run(configuration)][0])
    return tuner


def test_measuring_changes_no_result(tuned: tuning.Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAM_FAST_AUTOTUNE", "1")
    for n_t in (2, 6):
        answer = Answer(Case([(4, 5)], n_t=n_t))
        got = answer.device_answer()
        backend.answer_maps([got], 3)
        answer.check(got)
    names = {name.partition("|")[0] for name in tuned.used}
    assert names == {"token_scores", "interference", "interference_few", "finish_maps.3"}
    assert {source for _, source in tuned.used.values()} == {"measured"}


def test_tune(tuned: tuning.Tuner) -> None:
    found = backend.tune(6, 3, (3, 4), 16, torch.float32, 5, DEVICE)
    names = {name.partition("|")[0] for name in found}
    assert names >= {"token_scores", "step_scores", "interference", "interference_few", "finish_maps.5"}
    assert "rank_gaussian_filter.5" in names
    assert {entry["from"] for entry in found.values()} == {"measured"}
    assert tuning.Tuner("test").find("step_scores", "float32", (15, 16))[1]
    # Nothing more is measured unless asked for.
    backend.least_squares_scale(dense(3, 4), dense(3, 4))
    assert tuned.used["least_squares_scale|float32|2,2"][1] == "rule"


def test_info_names_every_configuration_and_where_it_came_from() -> None:
    backend.rank_gaussian_filter([dense(1, 3, 3)], 3)
    info = backend.info()
    assert info["available"] is True
    assert info["interpreted"] is backend.INTERPRETED
    found = next(iter(info["configurations"].values()))
    name = next(name for name in found if name.startswith("rank_gaussian_filter.3|float32|"))
    assert found[name]["from"]
    assert set(found[name]["blocks"]) == set(tuning.KERNELS["rank_gaussian_filter"])


def test_tensors_of_another_device_are_refused() -> None:
    elsewhere = torch.device("cuda" if backend.INTERPRETED else "cpu")
    assert backend.unavailable(DEVICE) is None
    assert "got tensors on" in str(backend.unavailable(elsewhere))
    if not backend.INTERPRETED:
        with pytest.raises(RuntimeError, match="expected CUDA tensors"):
            backend.rank_gaussian_filter([torch.ones(3, 3)], 3)
    else:
        with pytest.raises(RuntimeError, match="tune: interpreted kernels"):
            backend.tune()
