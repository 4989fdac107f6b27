"""The rank Gaussian filter beside its peers; every result is checked before it is timed."""

from __future__ import annotations

import pytest

from bench import cases

NAMES = [peer.name for peer in cases.filter_peers((1, 5, 5), 3)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "kernel_size"), cases.FILTER_CASES, ids=str)
def test_rank_gaussian_filter(benchmark, name: str, shape: cases.Shape, kernel_size: int) -> None:
    peer = next(peer for peer in cases.filter_peers(shape, kernel_size) if peer.name == name)
    peer.check(peer.run())
    benchmark.group = cases.filter_case(shape, kernel_size)
    benchmark.extra_info.update(name=name, pixels=peer.work)
    benchmark.pedantic(peer.run, rounds=3 if peer.note else 40, iterations=1, warmup_rounds=0 if peer.note else 5)
