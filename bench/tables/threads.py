"""What more threads bring."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import tolerances
import torch

import tam_fast
from bench import cases
from bench.measure import Peer, expect_close, interleave
from bench.records import Record, record
from bench.tables import Options, effort


def _peers(run: Callable[[], Any], check: Callable[[Any], None], counts: list[int], work: float) -> list[Peer]:
    return [
        Peer(f"{count} thread{'s' * (count > 1)}", run, check, work, before=partial(torch.set_num_threads, count))
        for count in counts
    ]


def measure(part: str, threads: int, options: Options) -> list[Record]:
    """The filter in ns a pixel and whole answers in ms on 1, 2 and all threads; ratios are to one thread."""
    counts = sorted({1, min(2, threads), threads})
    records = []
    for shape in (cases.SHAPES[0], cases.SHAPES[-1]):
        case = f"filter, {cases.filter_case(shape, 3)}"
        run = partial(tam_fast.rank_gaussian_filter, torch.from_numpy(cases.maps(shape)))
        check = cases.filter_check(shape, 3, tolerances.FILTER_DENSE)
        peers = _peers(run, check, counts, float(cases.maps(shape).size))
        timings = interleave(case, peers, **effort(options, 1.0))
        records += [record(case, timing, "ns a pixel", counts[i]) for i, timing in enumerate(timings)]
    tokens, channels = (16, 256) if options.get("quick") else (128, 1536)
    answer = cases.random_answer(tokens, [(36, 36)], channels, 4096)
    expected = cases.oracle_answer(answer)
    case = f"activation_maps, {tokens} tokens, 36x36, C = {channels:,}"
    run = partial(tam_fast.activation_maps, answer.hidden, answer.classifier, answer.token_ids, answer.layout)
    peers = _peers(
        run, lambda got: expect_close(got.maps, expected.maps, tolerances.PIPELINE, "maps"), counts, work=1.0
    )
    timings = interleave(case, peers, **effort(options, 2.0))
    return records + [record(case, timing, "ms", counts[i]) for i, timing in enumerate(timings)]
