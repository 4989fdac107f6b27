"""What a call costs beyond its kernel, and what importing costs beyond torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import tolerances
import torch

import tam_fast
from bench import ROOT, cases
from bench.measure import Peer, difference, interleave, quantiles
from bench.records import Record, record, single
from bench.tables import Options, effort
from tam_fast import _C

CASE = "one 36x36 map"
IMPORT = "import tam_fast, after import torch"
BARE = "bare kernel (_C)"
HEAVY = ("transformers", "scipy", "PIL")

_PROGRAM = f"""
import sys, time
import torch
before = set(sys.modules)
began = time.perf_counter()
import tam_fast
seconds = time.perf_counter() - began
print(seconds, *[name for name in {HEAVY!r} if name in sys.modules and name not in before])
"""


def _call(threads: int, options: Options) -> list[Record]:
    shape = (1, 36, 36)
    x = cases.maps(shape)[0]
    tensor, out = torch.from_numpy(x), torch.empty(36, 36)
    items = [(tensor.data_ptr(), out.data_ptr(), _C.F32, tensor.shape, tensor.stride())]
    check = cases.filter_check(shape, 3, tolerances.FILTER_DENSE)
    median = np.empty_like(x)

    def bare() -> torch.Tensor:
        _C.rank_gaussian_filter(items, 3, False, 1)
        return out

    def one(got: Any) -> None:
        check(np.asarray(got)[None])

    peers = [
        Peer(BARE, bare, one),
        Peer(
            "torch.ops.tam_fast.rank_gaussian_filter", lambda: torch.ops.tam_fast.rank_gaussian_filter(tensor, 3), one
        ),
        Peer("public operator, torch", lambda: tam_fast.rank_gaussian_filter(tensor), one),
        Peer("public operator, numpy", lambda: tam_fast.rank_gaussian_filter(x), one),
        Peer(
            "cv2.medianBlur (median only)",
            lambda: cv2.medianBlur(x, 3, dst=median),
            lambda got: cases.median_check(x[None], 3, border=False)(got[None]),
        ),
    ]
    timings = interleave(CASE, peers, **effort(options, 1.0))
    records = [record(CASE, timing, "us", threads) for timing in timings]
    for timing in timings[1:4]:
        beyond = difference(f"{timing.name}, beyond the bare kernel", timing, timings[0])
        p20, p50, p80 = (value * 1e6 for value in beyond.seconds)
        records.append(Record(CASE, beyond.name, "us", threads, p20, p50, p80, samples=beyond.samples))
    return records


def _import(threads: int, options: Options) -> list[Record]:
    seconds, loaded = [], set()
    for _ in range(2 if options.get("quick") else 11):
        done = subprocess.run([sys.executable, "-c", _PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
        first, *names = done.stdout.split()
        seconds.append(float(first))
        loaded.update(names)
    seconds = seconds[1:]  # the first may read from the disk
    p20, p50, p80 = (value * 1e3 for value in quantiles(seconds))
    note = f"imports {', '.join(sorted(loaded))}" if loaded else f"imports none of {', '.join(HEAVY)}"
    return [
        Record(IMPORT, "import", "ms", threads, p20, p50, p80, samples=len(seconds), note=note),
        single(IMPORT, "heavy packages imported", "", threads, float(len(loaded)), note),
    ]


def measure(part: str, threads: int, options: Options) -> list[Record]:
    """A call on one small map in us, or importing in ms."""
    return _call(threads, options) if part == "call" else _import(threads, options)
