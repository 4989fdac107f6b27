"""The rank Gaussian filter beside its peers; every result is checked against the oracle before it is timed."""

from __future__ import annotations

import cases
import numpy as np
import oracle
import pytest
import tolerances

GRID = [(shape, 3) for shape in cases.SHAPES] + [((128, 36, 36), 5)]
NAMES = [
    "tam_fast",
    "cv2.medianBlur (median only)",
    "numpy sliding_window_view + sort",
    "torch unfold + sort",
    "reference loop (numpy)",
    "scipy.ndimage.generic_filter",
]


def check(peer: cases.Peer, shape: tuple[int, int, int], kernel_size: int) -> int:
    """Compare a peer's result with what it claims to compute; return how many pixels it made."""
    got = peer.run()
    maps = cases.maps(shape)[: got.shape[0], : got.shape[1], : got.shape[2]]
    if peer.slow:
        maps = np.ascontiguousarray(maps)
    if peer.computes == "median":
        half = kernel_size // 2
        windows = np.lib.stride_tricks.sliding_window_view(maps, (kernel_size, kernel_size), (1, 2))
        expected = np.median(windows.reshape(*windows.shape[:3], -1), axis=-1)
        assert np.array_equal(got[:, half:-half, half:-half], expected)
    else:
        expected = oracle.rank_gaussian_filter(maps, kernel_size)
        tolerance = tolerances.FILTER_DENSE if peer.name == "tam_fast" else 5e-6
        assert np.abs(got - expected).max() <= tolerance
    return got.size


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "kernel_size"), GRID)
def test_rank_gaussian_filter(benchmark, name: str, shape: tuple[int, int, int], kernel_size: int) -> None:
    peer = next(peer for peer in cases.filter_peers(shape, kernel_size) if peer.name == name)
    benchmark.group = f"rank_gaussian_filter {'x'.join(map(str, shape))} k={kernel_size}"
    benchmark.extra_info.update(name=name, pixels=check(peer, shape, kernel_size))
    if peer.slow:
        benchmark.pedantic(peer.run, rounds=3, iterations=1, warmup_rounds=0)
    else:
        benchmark.pedantic(peer.run, rounds=40, iterations=1, warmup_rounds=5)
