"""The rank Gaussian filter against the float64 oracle: every path, dtype, layout and awkward size."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import tolerances
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tam_fast
from tam_fast import _C

SIDES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
KERNELS = (1, 3, 5, 7, 9, 11, 13, 15)


def dense(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def sparse(*shape: int, share: float = 0.01, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.where(generator.random(shape) < share, generator.random(shape), 0).astype(np.float32)


def error(got: torch.Tensor | np.ndarray, maps: np.ndarray, kernel_size: int = 3) -> float:
    """Largest error against the oracle relative to each map's maximum."""
    expected = oracle.rank_gaussian_filter(maps, kernel_size)
    largest = np.abs(maps.astype(np.float64)).max(axis=(-2, -1), keepdims=True)
    return float((np.abs(np.asarray(got, dtype=np.float64) - expected) / np.where(largest == 0, 1, largest)).max())


@pytest.mark.parametrize("kernel_size", KERNELS)
def test_dense_maps(path: str, kernel_size: int) -> None:
    maps = dense(2, 9, 11) if path == "reference" else dense(6, 36, 36)
    assert error(tam_fast.rank_gaussian_filter(maps, kernel_size), maps, kernel_size) <= tolerances.FILTER_DENSE


@pytest.mark.parametrize("kernel_size", KERNELS)
@pytest.mark.parametrize("share", [0.3, 0.1, 0.03, 0.01])
def test_sparse_maps(isa: str, kernel_size: int, share: float) -> None:
    maps = sparse(8, 36, 36, share=share)
    assert error(tam_fast.rank_gaussian_filter(maps, kernel_size), maps, kernel_size) <= tolerances.FILTER_SPARSE


@pytest.mark.parametrize("height", SIDES)
def test_awkward_sizes(isa: str, height: int) -> None:
    for width in SIDES:
        maps = dense(2, height, width, seed=height * 100 + width)
        assert error(tam_fast.rank_gaussian_filter(maps), maps) <= tolerances.FILTER_DENSE, (height, width)


@pytest.mark.parametrize("kernel_size", KERNELS[1:])
def test_maps_smaller_than_the_window_reflect_repeatedly(path: str, kernel_size: int) -> None:
    for height, width in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 5), (3, 2), (4, 3)):
        maps = dense(1, height, width, seed=height * 10 + width)
        got = tam_fast.rank_gaussian_filter(maps, kernel_size)
        assert error(got, maps, kernel_size) <= tolerances.FILTER_DENSE, (height, width)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-6, 1e6, 1e18, 1e30])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_range(isa: str, scale: float, kernel_size: int) -> None:
    maps = dense(3, 16, 17) * np.float32(scale)
    assert error(tam_fast.rank_gaussian_filter(maps, kernel_size), maps, kernel_size) <= tolerances.FILTER_DENSE


@pytest.mark.parametrize("scale", [3e38, 1e-37, 1e-40])
def test_ends_of_the_range(isa: str, scale: float) -> None:
    maps = (dense(3, 16, 17).astype(np.float64) * scale).astype(np.float32)
    got = tam_fast.rank_gaussian_filter(maps)
    assert np.isfinite(got).all()
    # Below the normal range the output itself has fewer bits: half a unit of the smallest denormal is allowed.
    step = 2.0**-150 / float(np.abs(maps).max())
    assert error(got, maps) <= tolerances.FILTER_DENSE + step


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, tolerances.FILTER_DENSE),
        (torch.float16, tolerances.FILTER_FLOAT16),
        (torch.bfloat16, tolerances.FILTER_BFLOAT16),
        (torch.float64, tolerances.FILTER_DENSE),
    ],
)
def test_dtypes(path: str, dtype: torch.dtype, tolerance: float) -> None:
    maps = torch.from_numpy(dense(2, 10, 12)).to(dtype)
    got = tam_fast.rank_gaussian_filter(maps)
    assert got.dtype == dtype
    assert error(got.double().numpy(), maps.double().numpy()) <= tolerance


def test_float64_beyond_the_range_of_float32(isa: str) -> None:
    for scale in (1e-300, 1e-60, 1e60, 1e300):
        maps = dense(2, 9, 9).astype(np.float64) * scale
        assert error(tam_fast.rank_gaussian_filter(maps), maps) <= tolerances.FILTER_DENSE, scale


LAYOUTS = {
    "contiguous": lambda x: x,
    "sliced": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "row-sliced": lambda x: torch.cat([x, x], dim=-2)[:, : x.shape[1]],
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch-last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "broadcast": lambda x: x[:1].expand(x.shape),
    "row-broadcast": lambda x: x[:, :1, :].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_strides_do_not_matter(isa: str, layout: str, dtype: torch.dtype) -> None:
    maps = LAYOUTS[layout](torch.from_numpy(dense(3, 17, 9)).to(dtype))
    got = tam_fast.rank_gaussian_filter(maps)
    assert got.is_contiguous()
    assert torch.equal(got, tam_fast.rank_gaussian_filter(maps.clone(memory_format=torch.contiguous_format)))


def test_numpy_in_numpy_out(isa: str) -> None:
    maps = dense(4, 7, 6)
    backward = maps[::-1, :, ::-1]
    assert isinstance(tam_fast.rank_gaussian_filter(maps), np.ndarray)
    assert np.array_equal(tam_fast.rank_gaussian_filter(backward), tam_fast.rank_gaussian_filter(backward.copy()))
    frozen = maps.copy()
    frozen.flags.writeable = False
    assert np.array_equal(tam_fast.rank_gaussian_filter(frozen), tam_fast.rank_gaussian_filter(maps))
    assert np.array_equal(tam_fast.rank_gaussian_filter(maps.astype(">f4")), tam_fast.rank_gaussian_filter(maps))


def test_leading_dimensions(path: str) -> None:
    maps = torch.from_numpy(dense(6, 5, 7))
    flat = tam_fast.rank_gaussian_filter(maps)
    assert torch.equal(tam_fast.rank_gaussian_filter(maps.view(2, 3, 5, 7)), flat.view(2, 3, 5, 7))
    assert torch.equal(tam_fast.rank_gaussian_filter(maps[0]), flat[0])
    many = maps.view(1, 2, 1, 3, 1, 1, 1, 1, 5, 7)
    assert torch.equal(tam_fast.rank_gaussian_filter(many), flat.view(many.shape))


def test_list_of_ragged_maps_is_the_maps_alone(path: str) -> None:
    maps = [torch.from_numpy(dense(n, h, w, seed=n)) for n, h, w in ((3, 4, 5), (1, 9, 2), (2, 1, 1), (0, 3, 3))]
    together = tam_fast.rank_gaussian_filter(maps)
    assert isinstance(together, list)
    for item, result in zip(maps, together, strict=True):
        assert torch.equal(result, tam_fast.rank_gaussian_filter(item))
    assert tam_fast.rank_gaussian_filter([]) == []


def test_batch_place_and_threads_do_not_change_bits(isa: str, threads: None) -> None:
    maps = torch.from_numpy(np.concatenate([dense(37, 36, 36), sparse(37, 36, 36), dense(37, 36, 36) - 0.5]))
    torch.set_num_threads(1)
    expected = tam_fast.rank_gaussian_filter(maps)
    loop = torch.stack([tam_fast.rank_gaussian_filter(item) for item in maps])
    assert torch.equal(loop, expected)
    for count in (2, 3, 8):
        torch.set_num_threads(count)
        assert torch.equal(tam_fast.rank_gaussian_filter(maps), expected), count


@pytest.mark.parametrize("kernel_size", KERNELS)
def test_all_instruction_sets_have_the_same_bits(kernel_size: int) -> None:
    kinds = [dense(5, 33, 19), sparse(5, 33, 19, share=0.1), dense(5, 33, 19) - 0.5, np.ones((2, 33, 19), np.float32)]
    broken = dense(2, 33, 19)
    broken[0, 5, 5], broken[1, 20, 3] = np.nan, np.inf
    maps = torch.from_numpy(np.concatenate([*kinds, broken, dense(2, 33, 19) * np.float32(1e-38)]))
    results = {}
    for name in _C.available_isas():
        _C.set_isa(name)
        try:
            results[name] = tam_fast.rank_gaussian_filter(maps, kernel_size)
            assert _C.last_isa() == name
        finally:
            _C.set_isa(None)
    first = results.pop("serial")
    for name, result in results.items():
        assert torch.equal(result.view(torch.int32), first.view(torch.int32)), name


def test_constant_windows_keep_their_value(path: str) -> None:
    for value in (0.0, 1.0, 0.1, 1e-30, 3e38):
        maps = torch.full((1, 6, 7), value)
        assert torch.equal(tam_fast.rank_gaussian_filter(maps), maps), value


def test_a_window_with_nonpositive_mean_is_zero(path: str) -> None:
    assert torch.equal(tam_fast.rank_gaussian_filter(torch.full((5, 5), -2.0)), torch.zeros(5, 5))
    maps = dense(1, 8, 9) - np.float32(0.55)
    got = np.asarray(tam_fast.rank_gaussian_filter(maps))
    expected = oracle.rank_gaussian_filter(maps)
    # A band around the discontinuity: where the mean is within rounding of zero, either side is right.
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(maps[0].astype(float), 1, mode="reflect"), (3, 3))
    clear = np.abs(windows.mean((-1, -2))) > 1e-6
    assert clear.sum() > 60
    assert (expected[0][clear] == 0).any()
    assert np.abs(got[0] - expected[0])[clear].max() <= 1e-5


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_spoil_their_windows_only(path: str, kernel_size: int, bad: float) -> None:
    maps = dense(2, 15, 14)
    clean = np.asarray(tam_fast.rank_gaussian_filter(maps, kernel_size))
    maps[0, 7, 6] = bad
    got = np.asarray(tam_fast.rank_gaussian_filter(maps, kernel_size))
    half = kernel_size // 2
    touched = np.zeros_like(maps, dtype=bool)
    touched[0, 7 - half : 8 + half, 6 - half : 7 + half] = True
    assert np.isnan(got[touched]).all()
    # A huge value may set the map's power of two, so that its neighbours differ by rounding, not more.
    assert np.abs(got - clean)[~touched].max() <= tolerances.FILTER_DENSE


def test_all_nonfinite_map(path: str) -> None:
    assert torch.isnan(tam_fast.rank_gaussian_filter(torch.full((4, 5), float("nan")))).all()


def test_negative_zero_is_zero(path: str) -> None:
    maps = torch.tensor([[0.0, -0.0], [-0.0, 0.0]])
    assert torch.equal(tam_fast.rank_gaussian_filter(maps), torch.zeros(2, 2))


def test_large_map_in_strips(isa: str) -> None:
    maps = dense(1, 700, 533)
    got = tam_fast.rank_gaussian_filter(maps)
    for top in (0, 310, 620):
        # Rows beyond the part that is compared stand in for its neighbours in the whole map.
        begin, end = max(top - 2, 0), min(top + 82, 700)
        expected = oracle.rank_gaussian_filter(maps[:, begin:end])[:, top - begin : top - begin + 80]
        assert np.abs(got[:, top : top + 80] - expected).max() <= tolerances.FILTER_DENSE


finite_maps = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9),
    elements=st.floats(0, 1, width=32, allow_subnormal=False).map(lambda v: 0.0 if v < 1e-20 else v),
)
odd = st.sampled_from([1, 3, 5, 7])


@given(finite_maps, st.integers(-60, 60), odd)
def test_scaling_by_a_power_of_two_commutes(maps: np.ndarray, exponent: int, kernel_size: int) -> None:
    factor = np.float32(2.0**exponent)
    scaled = tam_fast.rank_gaussian_filter(maps * factor, kernel_size)
    assert np.array_equal(scaled, tam_fast.rank_gaussian_filter(maps, kernel_size) * factor)


@given(finite_maps, odd)
def test_output_lies_within_its_window(maps: np.ndarray, kernel_size: int) -> None:
    half = kernel_size // 2
    width = [(0, 0)] * (maps.ndim - 2) + [(half, half)] * 2
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(maps, width, mode="reflect"), (kernel_size,) * 2, (-2, -1)
    )
    got = tam_fast.rank_gaussian_filter(maps, kernel_size)
    slack = 4e-7 * maps.max(initial=0)
    assert (got >= windows.min((-1, -2)) - slack).all()
    assert (got <= windows.max((-1, -2)) + slack).all()


@given(st.permutations(range(9)), st.integers(0, 2**32 - 1))
def test_permuting_a_window_changes_nothing_but_rounding(order: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).random(9, dtype=np.float32)
    centre = tam_fast.rank_gaussian_filter(values.reshape(3, 3))[1, 1]
    assert abs(tam_fast.rank_gaussian_filter(values[order].reshape(3, 3))[1, 1] - centre) <= tolerances.FILTER_DENSE


@given(finite_maps, odd)
def test_flipping_commutes(maps: np.ndarray, kernel_size: int) -> None:
    flipped = tam_fast.rank_gaussian_filter(maps[..., ::-1, ::-1], kernel_size)[..., ::-1, ::-1]
    assert np.abs(flipped - tam_fast.rank_gaussian_filter(maps, kernel_size)).max() <= tolerances.FILTER_DENSE


@given(finite_maps)
def test_kernel_size_one_is_the_identity(maps: np.ndarray) -> None:
    assert np.array_equal(tam_fast.rank_gaussian_filter(maps, 1), maps)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 3, 3)])
def test_a_batch_of_zero_maps_is_empty(shape: tuple[int, ...]) -> None:
    assert tam_fast.rank_gaussian_filter(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize(
    ("maps", "kernel_size", "kind", "words"),
    [
        (torch.zeros(3, 0, 4), 3, ValueError, ["maps", "H >= 1", "(3, 0, 4)"]),
        (torch.zeros(3, 4, 0), 3, ValueError, ["maps", "(3, 4, 0)"]),
        (torch.zeros(3), 3, ValueError, ["maps", "two dimensions", "(3,)"]),
        (torch.zeros(3, 3), 2, ValueError, ["kernel_size", "odd", "2"]),
        (torch.zeros(3, 3), 0, ValueError, ["kernel_size", "0"]),
        (torch.zeros(3, 3), -3, ValueError, ["kernel_size", "-3"]),
        (torch.zeros(3, 3), 17, ValueError, ["kernel_size", "15", "17"]),
        (torch.zeros(3, 3), 3.0, TypeError, ["kernel_size", "float"]),
        (torch.zeros(3, 3), True, TypeError, ["kernel_size", "bool"]),
        (torch.zeros(3, 3, dtype=torch.int32), 3, TypeError, ["maps", "float32", "int32"]),
        (torch.zeros(3, 3, dtype=torch.bool), 3, TypeError, ["maps", "bool"]),
        (torch.zeros(3, 3, dtype=torch.complex64), 3, TypeError, ["maps", "complex64"]),
        (np.zeros((3, 3), dtype=np.uint8), 3, TypeError, ["maps", "uint8"]),
        (np.array([["a"]]), 3, TypeError, ["maps", "numeric"]),
        ("maps", 3, TypeError, ["maps", "str"]),
        ([torch.zeros(3, 3), torch.zeros(3)], 3, ValueError, ["maps[1]", "(3,)"]),
        (torch.zeros(3, 3).to_sparse(), 3, TypeError, ["maps", "sparse"]),
    ],
)
def test_errors_name_argument_expectation_and_value(
    maps: object, kernel_size: object, kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        tam_fast.rank_gaussian_filter(maps, kernel_size)  # type: ignore[call-overload]
    for word in words:
        assert word in str(caught.value)
