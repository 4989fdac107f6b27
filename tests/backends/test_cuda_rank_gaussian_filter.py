"""The CUDA rank Gaussian filter, emulated and on a GPU if there is one, against the float64 oracle and the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import oracle
import pytest
import tolerances
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from machines import cuda_modules
from machines.cuda_modules import Target
from torch import Tensor

from tam_fast.backends import cpu

SIDES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65)
KERNELS = (1, 3, 5, 7, 9, 11, 13, 15)
NETWORKS = (3, 5, 7)
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


@pytest.fixture(params=cuda_modules.TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    chosen = cuda_modules.load(request.param)
    yield chosen
    if chosen.emulated:
        chosen.module.set_seed(0)


def item_of(target: Target, x: Tensor, y: Tensor) -> tuple[int, ...]:
    return (x.data_ptr(), y.data_ptr(), getattr(target.module, CODES[x.dtype]), *x.shape, *x.stride())


def filtered(
    target: Target, maps: list[Tensor], kernel_size: int = 3, constant_window_nan: bool = False
) -> list[Tensor]:
    """Filter (M, H, W) tensors as they lie in memory, into memory that is full of 7."""
    inputs = [x if x.device == target.device else target.put(x) for x in maps]
    outputs = [torch.full(x.shape, 7.0, dtype=x.dtype, device=target.device) for x in inputs]
    items = [item_of(target, x, y) for x, y in zip(inputs, outputs, strict=True)]
    target.module.rank_gaussian_filter(items, kernel_size, constant_window_nan, target.stream)
    return [y.cpu() for y in outputs]


def on_cpu(maps: Tensor, kernel_size: int = 3, **options: bool) -> Tensor:
    return cpu.rank_gaussian_filter([maps.cpu()], kernel_size, **options)[0]


def dense(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def sparse(*shape: int, share: float = 0.01, seed: int = 0) -> Tensor:
    return dense(*shape, seed=seed) * (dense(*shape, seed=seed + 1) < share)


def error(got: Tensor, maps: Tensor, kernel_size: int = 3) -> float:
    """Largest error against the oracle relative to each map's maximum."""
    x = maps.cpu().double().numpy()
    expected = oracle.rank_gaussian_filter(x, kernel_size)
    largest = np.abs(x).max(axis=(-2, -1), keepdims=True)
    return float((np.abs(got.double().numpy() - expected) / np.where(largest == 0, 1, largest)).max(initial=0))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


# ------------------------------------------------------------------------------------------------- against the oracle


@pytest.mark.parametrize("kernel_size", KERNELS)
def test_dense_maps(target: Target, kernel_size: int) -> None:
    maps = dense(3, 36, 36) if kernel_size <= 7 else dense(2, 17, 18)
    (got,) = filtered(target, [maps], kernel_size)
    assert error(got, maps, kernel_size) <= tolerances.FILTER_DENSE
    assert (got - on_cpu(maps, kernel_size)).abs().max() <= tolerances.DEVICE


@pytest.mark.parametrize("kernel_size", KERNELS[1:])
@pytest.mark.parametrize("share", [0.3, 0.1, 0.03, 0.01])
def test_sparse_maps(target: Target, kernel_size: int, share: float) -> None:
    maps = sparse(4, 36, 36, share=share) if kernel_size <= 7 else sparse(2, 19, 21, share=share)
    (got,) = filtered(target, [maps], kernel_size)
    assert error(got, maps, kernel_size) <= tolerances.FILTER_SPARSE
    assert (got - on_cpu(maps, kernel_size)).abs().max() <= tolerances.DEVICE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel_size", NETWORKS)
def test_awkward_sizes_in_ragged_batches(target: Target, kernel_size: int, dtype: torch.dtype) -> None:
    sides = SIDES if kernel_size == 3 else SIDES[::2]
    maps = [dense(2, height, width, seed=height * 100 + width).to(dtype) for height in sides for width in sides]
    tolerance = tolerances.FILTER_DENSE if dtype == torch.float32 else tolerances.FILTER_BFLOAT16
    assert len(maps) >= 64
    before = target.module.launches() if target.emulated else 0
    for x, y in zip(maps, filtered(target, maps, kernel_size), strict=True):
        assert error(y, x, kernel_size) <= tolerance, tuple(x.shape)
    if target.emulated:
        assert target.module.launches() - before == -(-len(maps) // 64)


@pytest.mark.parametrize("kernel_size", KERNELS[1:])
def test_maps_smaller_than_the_window_reflect_repeatedly(target: Target, kernel_size: int) -> None:
    shapes = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 5), (3, 2), (4, 3), (1, 4), (2, 8), (1, 12))
    maps = [dense(1, *shape, seed=sum(shape)) for shape in shapes]
    for x, y in zip(maps, filtered(target, maps, kernel_size), strict=True):
        assert error(y, x, kernel_size) <= tolerances.FILTER_DENSE, tuple(x.shape)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-12, 1e-6, 1e6, 1e18, 1e30])
@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
def test_range(target: Target, scale: float, kernel_size: int) -> None:
    maps = dense(2, 12, 16) * np.float32(scale)
    (got,) = filtered(target, [maps], kernel_size)
    assert error(got, maps, kernel_size) <= tolerances.FILTER_DENSE


@pytest.mark.parametrize("scale", [3e38, 1e-37, 1e-40])
@pytest.mark.parametrize("width", [16, 17])
def test_ends_of_the_range(target: Target, scale: float, width: int) -> None:
    maps = (dense(2, 16, width).double() * scale).float()
    (got,) = filtered(target, [maps])
    assert torch.isfinite(got).all()
    # Below the normal range the output itself has fewer bits: half a unit of the smallest denormal is allowed.
    assert error(got, maps) <= tolerances.FILTER_DENSE + 2.0**-150 / float(maps.max())


@pytest.mark.parametrize("low", [1e-8, 1e-12, 1e-16, 1e-20, 1e-30])
@pytest.mark.parametrize("kernel_size", NETWORKS)
def test_small_values_beside_large_ones(target: Target, low: float, kernel_size: int) -> None:
    # Where the short way gives up on precision: a part of the map far below its maximum.
    maps = dense(2, 24, 32)
    maps[:, :, 10:] *= low
    maps[1, 12:] = 0
    (got,) = filtered(target, [maps], kernel_size)
    assert error(got, maps, kernel_size) <= tolerances.FILTER_SPARSE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel_size", NETWORKS)
def test_squares_that_underflow_beside_large_values(target: Target, dtype: torch.dtype, kernel_size: int) -> None:
    """The square of a window's sum may be near the smallest denormal, and the sum of squares 0."""
    maps = dense(161, 8, 24)
    maps[:, :, 10:] = (0.9 + 0.2 * maps[:, :, 10:]) * torch.logspace(-26, -18, 161)[:, None, None]
    maps = maps.to(dtype)
    (got,) = filtered(target, [maps], kernel_size)
    allowed = tolerances.FILTER_BFLOAT16 if dtype == torch.bfloat16 else tolerances.FILTER_SPARSE
    assert error(got, maps, kernel_size) <= allowed


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float16, tolerances.FILTER_FLOAT16),
        (torch.bfloat16, tolerances.FILTER_BFLOAT16),
        (torch.float64, 1e-12),
    ],
)
def test_dtypes(target: Target, dtype: torch.dtype, tolerance: float, kernel_size: int) -> None:
    for maps in (dense(2, 10, 12), sparse(2, 11, 13, share=0.3), dense(1, 9, 16) - 0.3):
        x = maps.to(dtype) if kernel_size > 1 else maps.to(dtype).abs()  # 1 copies negative values
        (got,) = filtered(target, [x], kernel_size)
        assert got.dtype == dtype
        assert error(got, x, kernel_size) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_rounded_once(target: Target, dtype: torch.dtype) -> None:
    # Sorting half values in pairs and rounding the result must give the float32 filter's result, rounded.
    for maps in (dense(2, 20, 24), sparse(2, 21, 23, share=0.2), dense(2, 8, 9) - 0.5):
        x = maps.to(dtype)
        (got,) = filtered(target, [x])
        (wide,) = filtered(target, [x.float()])
        assert same_bits(got, wide.to(dtype))


def test_float64_range(target: Target) -> None:
    for scale in (1e-300, 1e-100, 1e100, 1e300):
        maps = dense(1, 9, 10).double() * scale
        (got,) = filtered(target, [maps], 5)
        assert error(got, maps, 5) <= 1e-12, scale


# ----------------------------------------------------------------------------------------------------- special values


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
def test_constant_windows_keep_their_value(target: Target, kernel_size: int) -> None:
    for value in (0.0, 1.0, 0.1, 1e-30, 3e38):
        maps = torch.full((1, 6, 8), value)
        (got,) = filtered(target, [maps], kernel_size)
        # One-pass sums of a constant are off by rounding, and so is the range that large values are brought to.
        assert torch.allclose(got, maps, rtol=2e-7, atol=0), value


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
def test_constant_windows_of_the_official_program(target: Target, kernel_size: int) -> None:
    maps = torch.cat([torch.full((1, 6, 8), 0.3), torch.zeros(1, 6, 8), torch.full((1, 6, 8), -0.3), dense(1, 6, 8)])
    maps = torch.cat([maps, maps], -1)
    maps[0, 2, 3] = 0.5
    (got,) = filtered(target, [maps], kernel_size, constant_window_nan=True)
    expected = oracle.rank_gaussian_filter(maps, kernel_size, official=True)
    np.testing.assert_allclose(got, expected, atol=tolerances.FILTER_SPARSE, equal_nan=True)
    assert np.isnan(expected).any()


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
def test_negative_values(target: Target, kernel_size: int) -> None:
    assert torch.equal(filtered(target, [torch.full((1, 5, 5), -2.0)], kernel_size)[0], torch.zeros(1, 5, 5))
    for shift in (0.3, 0.55, 2.0):
        maps = dense(2, 11, 12) - shift
        (got,) = filtered(target, [maps], kernel_size)
        expected = oracle.rank_gaussian_filter(maps, kernel_size)
        half = kernel_size // 2
        padded = np.pad(maps.double().numpy(), ((0, 0), (half, half), (half, half)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel_size, kernel_size), (-2, -1))
        # A band around the discontinuity: where the mean is within rounding of zero, either side is right.
        clear = np.abs(windows.mean((-1, -2))) > 1e-6
        assert np.abs(got.numpy() - expected)[clear].max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("width", [16, 14])
def test_nonfinite_values_spoil_their_windows_only(
    target: Target, kernel_size: int, bad: float, dtype: torch.dtype, width: int
) -> None:
    maps = dense(2, 17, width).to(dtype)
    (clean,) = filtered(target, [maps], kernel_size)
    maps[0, 7, 6] = bad
    (got,) = filtered(target, [maps], kernel_size)
    half = kernel_size // 2
    touched = torch.zeros(maps.shape, dtype=torch.bool)
    touched[0, 7 - half : 8 + half, 6 - half : 7 + half] = True
    assert torch.isnan(got[touched]).all()
    # Beside a bad value windows are made in the general way, which may round otherwise.
    step = 1.0 if dtype in (torch.float32, torch.float64) else 2.0**16 if dtype == torch.bfloat16 else 2.0**13
    assert (got - clean).abs()[~touched].max() <= tolerances.FILTER_DENSE * step


def test_zeros_and_signed_zeros(target: Target) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        maps = torch.zeros(1, 8, 12, dtype=dtype)
        assert torch.equal(filtered(target, [maps])[0], maps)
        maps[0, ::2, ::3] = -0.0
        for kernel_size in (3, 5, 9):
            assert torch.equal(filtered(target, [maps], kernel_size)[0], torch.zeros(1, 8, 12, dtype=dtype))


# ------------------------------------------------------------------------------------------------- memory and batches


def layouts(x: Tensor, device: torch.device) -> dict[str, Tensor]:
    """The same (M, H, W) values, laid out in memory in many ways."""
    x = x.to(device)
    count, height, width = x.shape
    wide = torch.full((count, height + 3, width + 5), torch.nan, dtype=x.dtype, device=device)
    wide[:, 2:-1, 4:-1] = x
    odd = torch.full((x.numel() + 1,), torch.nan, dtype=x.dtype, device=device)[1:].view(x.shape)
    odd.copy_(x)
    steps = torch.full((count, height, 2 * width), torch.nan, dtype=x.dtype, device=device)
    steps[..., ::2] = x
    backwards = torch.empty_like(x)
    backwards.copy_(x.flip(0, 1, 2))
    return {
        "sliced": wide[:, 2:-1, 4:-1],
        "misaligned": odd,
        "strided": steps[..., ::2],
        "permuted": x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "channels last": x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "backwards": backwards,  # its strides are made negative below
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel_size", [3, 5, 9])
@pytest.mark.parametrize("width", [12, 13])
def test_layouts(target: Target, dtype: torch.dtype, kernel_size: int, width: int) -> None:
    maps = dense(3, 10, width).to(dtype)
    (expected,) = filtered(target, [maps], kernel_size)
    for name, x in layouts(maps, target.device).items():
        y = torch.full(maps.shape, 7.0, dtype=dtype, device=target.device)
        item = list(item_of(target, x, y))
        if name == "backwards":
            item[0] += (x.numel() - 1) * x.element_size()
            item[6:] = [-stride for stride in item[6:]]
        target.module.rank_gaussian_filter([tuple(item)], kernel_size, False, target.stream)
        assert same_bits(y.cpu(), expected), name


def test_broadcast_maps(target: Target) -> None:
    one = target.put(dense(1, 9, 12))
    (got,) = filtered(target, [one.expand(3, 9, 12)])
    assert same_bits(got, filtered(target, [one])[0].expand(3, 9, 12))
    row = target.put(dense(1, 1, 12))
    (got,) = filtered(target, [row.expand(2, 5, 12)])
    assert error(got, row.expand(2, 5, 12)) <= tolerances.FILTER_DENSE


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 9])
def test_only_the_output_is_written(target: Target, kernel_size: int) -> None:
    x = target.put(dense(2, 7, 9))
    memory = torch.full((x.numel() + 32,), 7.0, device=target.device)
    y = memory[13 : 13 + x.numel()].view(x.shape)
    target.module.rank_gaussian_filter([item_of(target, x, y)], kernel_size, False, target.stream)
    assert (memory[:13] == 7).all()
    assert (memory[13 + x.numel() :] == 7).all()
    assert (y.cpu() <= 1).all()


def test_mixed_dtypes_and_empty_items_in_one_call(target: Target) -> None:
    maps = [dense(2, 9, 12), dense(0, 4, 4), dense(1, 8, 8).half(), dense(3, 5, 7).bfloat16(), dense(2, 6, 6).double()]
    for x, y in zip(maps, filtered(target, maps), strict=True):
        assert same_bits(y, filtered(target, [x])[0])
    target.module.rank_gaussian_filter([], 3, False, target.stream)


def test_many_maps_and_long_strips(target: Target) -> None:
    # More work than a small device has threads for: strips of many rows, of which the last one is short.
    maps = dense(150, 67, 36)
    (got,) = filtered(target, [maps])
    for index in (0, 77, 149):
        assert error(got[index], maps[index]) <= tolerances.FILTER_DENSE
    assert same_bits(got[77:78], filtered(target, [maps[77:78]])[0])


def test_large_map(target: Target) -> None:
    maps = dense(1, 300, 533)
    (got,) = filtered(target, [maps])
    assert error(got, maps) <= tolerances.FILTER_DENSE


@pytest.mark.parametrize("kernel_size", [3, 5, 9])
def test_repeats_have_the_same_bits(target: Target, kernel_size: int) -> None:
    maps = torch.cat([dense(3, 18, 22), sparse(3, 18, 22), dense(3, 18, 22) - 0.5])
    (first,) = filtered(target, [maps], kernel_size)
    for seed in range(1, 4 if target.emulated else 100):
        if target.emulated:
            target.module.set_seed(seed)
        assert same_bits(filtered(target, [maps], kernel_size)[0], first)


# --------------------------------------------------------------------------------------------------------- properties

finite_maps = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9),
    elements=st.floats(-1, 1, width=32, allow_subnormal=False).map(lambda v: 0.0 if abs(v) < 1e-20 else v),
)


@given(finite_maps, st.sampled_from([1, 3, 5, 7, 9]))
def test_any_small_map(maps: np.ndarray, kernel_size: int) -> None:
    x = torch.from_numpy(maps).abs()
    (got,) = filtered(cuda_modules.load("emulated"), [x], kernel_size)
    assert error(got, x, kernel_size) <= tolerances.FILTER_SPARSE


@given(finite_maps, st.integers(-60, 60), st.sampled_from(NETWORKS))
def test_scaling_by_a_power_of_two(maps: np.ndarray, exponent: int, kernel_size: int) -> None:
    emulated = cuda_modules.load("emulated")
    x = torch.from_numpy(maps).abs()
    (plain,) = filtered(emulated, [x], kernel_size)
    (scaled,) = filtered(emulated, [x * 2.0**exponent], kernel_size)
    assert float((scaled * 2.0**-exponent - plain).abs().max()) <= tolerances.FILTER_SPARSE * float(x.max())


@given(finite_maps, st.sampled_from(NETWORKS))
def test_output_lies_within_its_window(maps: np.ndarray, kernel_size: int) -> None:
    half = kernel_size // 2
    x = np.abs(maps)
    padded = np.pad(x, ((0, 0), (half, half), (half, half)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel_size,) * 2, (-2, -1))
    got = filtered(cuda_modules.load("emulated"), [torch.from_numpy(x)], kernel_size)[0].numpy()
    slack = 4e-7 * x.max(initial=0)
    assert (got >= windows.min((-1, -2)) - slack).all()
    assert (got <= windows.max((-1, -2)) + slack).all()


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "kernel_size", "words"),
    [
        ({}, 2, ["kernel_size", "odd", "2"]),
        ({}, 17, ["kernel_size", "15", "17"]),
        ({0: 0}, 3, ["items", "address", "0"]),
        ({1: 0}, 3, ["items", "address", "0"]),
        ({2: 9}, 3, ["items", "F32", "9"]),
        ({3: -1}, 3, ["items", "size", "-1"]),
    ],
)
def test_refusals(target: Target, changes: dict[int, int], kernel_size: int, words: list[str]) -> None:
    x = target.put(dense(1, 4, 4))
    item = list(item_of(target, x, torch.empty_like(x)))
    for place, value in changes.items():
        item[place] = value
    with pytest.raises(ValueError) as caught:
        target.module.rank_gaussian_filter([tuple(item)], kernel_size, False, target.stream)
    for word in words:
        assert word in str(caught.value)
