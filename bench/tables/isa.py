"""The rank Gaussian filter on each instruction set of the machine, beside OpenCV's median; half dtypes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tolerances
import torch

import tam_fast
from bench import cases
from bench.measure import Peer, WrongResultError, expect_close, interleave
from bench.records import Record, record
from bench.tables import Options, effort
from tam_fast import _C

TOLERANCES = {
    torch.float32: tolerances.FILTER_DENSE,
    torch.float16: tolerances.FILTER_FLOAT16,
    torch.bfloat16: tolerances.FILTER_BFLOAT16,
}


def _ran_on(name: str, check: Callable[[Any], None]) -> Callable[[Any], None]:
    def both(got: Any) -> None:
        if _C.last_isa() != name:
            raise WrongResultError(f"instruction set: expected {name} to have run, got {_C.last_isa()}")
        check(got)

    return both


def _instruction_sets(shape: cases.Shape, kernel_size: int) -> list[Peer]:
    x = cases.maps(shape)
    tensor, pixels = torch.from_numpy(x), float(x.size)
    check = cases.filter_check(shape, kernel_size, tolerances.FILTER_DENSE)
    median = cases.median_check(x, kernel_size, border=False)
    return [
        Peer("cv2.medianBlur (median only)", cases.opencv_median(x, kernel_size), median, pixels),
        *(
            Peer(
                f"tam_fast, {name}",
                lambda: tam_fast.rank_gaussian_filter(tensor, kernel_size),
                _ran_on(name, check),
                pixels,
                before=partial(_C.set_isa, name),
            )
            for name in reversed(_C.available_isas())
        ),
    ]


def _half_dtypes(shape: cases.Shape, kernel_size: int) -> list[Peer]:
    from oracle import rank_gaussian_filter

    peers = []
    for dtype, tolerance in TOLERANCES.items():
        x = torch.from_numpy(cases.maps(shape)).to(dtype)
        expected = rank_gaussian_filter(x.double().numpy(), kernel_size)

        def check(got: torch.Tensor, expected: Any = expected, tolerance: float = tolerance) -> None:
            expect_close(got.double(), expected, tolerance * float(np.abs(expected).max()), "filtered maps")

        run = partial(tam_fast.rank_gaussian_filter, x, kernel_size)
        peers.append(Peer(f"tam_fast, {str(dtype).removeprefix('torch.')}", run, check, float(x.numel())))
    return peers


def measure(part: str, threads: int, options: Options) -> list[Record]:
    """Every shape with 3x3 and 5x5 windows; ratios are to OpenCV's median, of the dtypes to float32."""
    records = []
    for kernel_size in (3, 5):
        for shape in cases.SHAPES:
            case = cases.filter_case(shape, kernel_size)
            timings = interleave(case, _instruction_sets(shape, kernel_size), **effort(options, 0.5))
            records += [record(case, timing, "ns a pixel", threads) for timing in timings]
    _C.set_isa(None)
    for kernel_size in (3, 5):
        case = f"{cases.filter_case(cases.SHAPES[0], kernel_size)}, dtypes"
        timings = interleave(case, _half_dtypes(cases.SHAPES[0], kernel_size), **effort(options, 0.5))
        records += [record(case, timing, "ns a pixel", threads) for timing in timings]
    return records
