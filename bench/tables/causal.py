"""The causal inference of a whole answer beside its peers."""

from __future__ import annotations

from bench import cases
from bench.measure import interleave
from bench.records import Record, record
from bench.tables import Options, effort


def measure(part: str, threads: int, options: Options) -> list[Record]:
    """Two sizes of answer; ms an answer."""
    records = []
    for size in cases.CAUSAL_SIZES:
        case = cases.causal_case(size)
        timings = interleave(case, cases.causal_peers(size), **effort(options, 2.0, 10))
        records += [record(case, timing, "ms", threads) for timing in timings]
    return records
