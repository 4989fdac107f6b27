"""The rank Gaussian filter beside every peer."""

from __future__ import annotations

from bench import cases
from bench.measure import interleave
from bench.records import Record, record
from bench.tables import Options, effort


def measure(part: str, threads: int, options: Options) -> list[Record]:
    """Every shape, every peer; ns a pixel."""
    records = []
    for shape, kernel_size in cases.FILTER_CASES:
        case = cases.filter_case(shape, kernel_size)
        timings = interleave(case, cases.filter_peers(shape, kernel_size), **effort(options, 1.0))
        records += [record(case, timing, "ns a pixel", threads) for timing in timings]
    return records
