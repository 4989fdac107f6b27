"""The closed-form scale by a CUDA kernel, against the float64 oracle."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import tolerances
import torch
from machines.cuda_calls import Cuda
from machines.cuda_modules import TARGETS
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 600, 1296]


@pytest.fixture(params=TARGETS)
def cuda(request: pytest.FixtureRequest) -> Cuda:
    """The kernels on every device there is, the emulated one included."""
    return Cuda.named(request.param)


def pair(t: int, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * t + n + seed)
    return torch.rand(t, n, generator=generator).to(dtype), torch.randn(t, n, generator=generator).to(dtype)


def scales(cuda: Cuda, pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    kept, items, outputs = [], [], []
    for a, e in pairs:
        x, y = cuda.put(a), cuda.put(e)
        out = torch.full((len(x) + 1,), -7.0, device=cuda.device)
        kept.append((x, y))
        outputs.append(out)
        items.append(
            (
                *(x.data_ptr(), cuda.dtype(x), x.stride(0)),
                *(y.data_ptr(), cuda.dtype(y), y.stride(0)),
                *(*x.shape, out.data_ptr()),
            )
        )
    cuda.module.least_squares_scale(items, cuda.stream)
    cuda.wait()
    for out in outputs:
        assert out[-1] == -7.0
    return [out[:-1].cpu() for out in outputs]


def check(got: Tensor, a: Tensor, e: Tensor) -> None:
    x, y = a.double().numpy(), e.double().numpy()
    # Both sums are rounded at the size of their terms; the numerator's may cancel.
    limit = tolerances.SCALE * oracle.least_squares_scale(np.abs(x), np.abs(y))
    assert (np.abs(got.double().numpy() - oracle.least_squares_scale(x, y)) <= limit + 1e-44).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_against_the_oracle(cuda: Cuda, dtype: torch.dtype, n: int) -> None:
    a, e = pair(1 + n % 5, n, dtype)
    check(scales(cuda, [(a, e)])[0], a, e)


@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in DTYPES if a != b])
def test_mixed_dtypes(cuda: Cuda, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    a, e = pair(3, 50)
    a, e = a.to(dtypes[0]), e.to(dtypes[1])
    check(scales(cuda, [(a, e)])[0], a, e)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-18, 1e18, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_range(cuda: Cuda, scale: float, dtype: torch.dtype) -> None:
    a, e = pair(3, 50, dtype)
    for x, y in ((a * scale, e * scale), (a * scale, e), (a, e * min(scale, 1e18))):
        check(scales(cuda, [(x, y)])[0], x, y)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_squares_of_float64_stay_in_range(cuda: Cuda, scale: float) -> None:
    a, e = pair(3, 50, torch.float64)
    (expected,) = scales(cuda, [(a, e)])
    (got,) = scales(cuda, [(a * scale, e * scale)])
    assert torch.allclose(got, expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_nan_and_infinity(cuda: Cuda, dtype: torch.dtype) -> None:
    a, e = pair(5, 40, dtype)
    e[0] = 0
    a[1, 7] = torch.nan
    e[2, 39] = torch.nan
    a[3, 0], e[3, 0] = torch.inf, 1.0
    (got,) = scales(cuda, [(a, e)])
    assert got[0] == 0
    assert torch.isnan(got[1:3]).all()
    assert got[3] == torch.inf
    check(got[4:], a[4:], e[4:])
    (zero,) = scales(cuda, [(torch.zeros(2, 9, dtype=dtype), pair(2, 9, dtype)[1])])
    assert torch.equal(zero, torch.zeros(2))


def test_rows_with_strides_and_rows_that_repeat(cuda: Cuda) -> None:
    a, e = pair(6, 33)
    (expected,) = scales(cuda, [(a, e[:1].expand(6, 33).contiguous())])
    assert torch.equal(scales(cuda, [(a, e[:1].expand(6, 33))])[0], expected)
    wide = torch.full((6, 40), torch.nan)
    wide[:, 3:36] = a
    assert torch.equal(scales(cuda, [(wide[:, 3:36], e[:1].expand(6, 33))])[0], expected)


def test_no_positions_and_no_rows(cuda: Cuda) -> None:
    (got,) = scales(cuda, [(torch.zeros(3, 0), torch.zeros(3, 0))])
    assert torch.equal(got, torch.zeros(3))
    assert scales(cuda, [(torch.zeros(0, 5), torch.zeros(0, 5))])[0].shape == (0,)
    assert scales(cuda, []) == []


@pytest.mark.parametrize("count", [2, 9, 65])
def test_a_ragged_list_gives_what_each_gives_alone(cuda: Cuda, count: int) -> None:
    pairs = [pair(i % 4, 1 + i * 7 % 50, DTYPES[i % 4], i) for i in range(count)]
    for (a, e), got in zip(pairs, scales(cuda, pairs), strict=True):
        assert torch.equal(got, scales(cuda, [(a, e)])[0])
        check(got, a, e)


def test_same_bits_whatever_the_order_of_threads(cuda: Cuda) -> None:
    for dtype in (torch.float32, torch.float64):
        a, e = pair(7, 500, dtype)
        results = []
        for seed in range(3):
            cuda.set_seed(seed)
            results.append(scales(cuda, [(a, e)])[0])
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
