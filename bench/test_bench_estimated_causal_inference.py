"""Causal inference of a whole answer beside its peers; every result is checked before it is timed."""

from __future__ import annotations

import pytest

from bench import cases

NAMES = [peer.name for peer in cases.causal_peers((2, 2, 3))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", cases.CAUSAL_SIZES, ids=str)
def test_estimated_causal_inference(benchmark, name: str, size: tuple[int, int, int]) -> None:
    peer = next(peer for peer in cases.causal_peers(size) if peer.name == name)
    peer.check(peer.run())
    benchmark.group = cases.causal_case(size)
    benchmark.extra_info.update(name=name)
    benchmark.pedantic(peer.run, rounds=3 if "token by token" in name else 20, iterations=1, warmup_rounds=1)
