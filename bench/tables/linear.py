"""Cost of activation_maps by number of tokens and of positions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tolerances

import tam_fast
from bench import cases, machine
from bench.measure import Peer, WrongResultError, difference, expect_close, interleave
from bench.records import Record, record, single
from bench.tables import LINEAR_CHANNELS, Options, effort

VOCABULARY = 32_768
TOKENS = (32, 64, 128, 256, 512, 1024, 2000)
FRAME = (24, 32)
FRAMES = (1, 2, 4, 8, 16, 32)
TOTAL, SCORES, REST = "total", "scores", "after the scores"


def case_of(tokens: int, positions: int) -> str:
    """Name of a case."""
    return f"{tokens} tokens, {positions} positions"


def check_some(answer: cases.Answer) -> Callable[[Any], None]:
    """Check the first, the last and some other tokens' maps, for the oracle takes long for all of a long answer."""
    targets = sorted({0, 1, answer.tokens // 3, answer.tokens - 1})
    expected = np.stack([cases.oracle_map(answer, target) for target in targets])

    def check(got: tam_fast.TokenActivationMaps) -> None:
        expect_close(got.maps[targets], expected, tolerances.PIPELINE, f"maps of tokens {targets}")
        if not np.isfinite(got.maps.numpy()).all():
            raise WrongResultError("maps: expected finite values, got NaN")

    return check


def _case(tokens: int, grids: list[tuple[int, int]], threads: int, options: Options) -> list[Record]:
    answer = cases.random_answer(tokens, grids, LINEAR_CHANNELS, VOCABULARY)
    unique = answer.unique()
    few = slice(None, None, 101)
    expected = np.maximum(answer.classifier[unique].double().numpy() @ answer.hidden[few].double().numpy().T, 0)
    peers = [
        Peer(
            TOTAL,
            lambda: tam_fast.activation_maps(answer.hidden, answer.classifier, answer.token_ids, answer.layout),
            check_some(answer),
        ),
        Peer(
            SCORES,
            lambda: tam_fast.token_scores(answer.hidden, answer.classifier, unique),
            lambda got: expect_close(got[:, few], expected, 2 * cases.PEER, "scores"),
        ),
    ]
    case = case_of(tokens, answer.positions)
    timings = interleave(case, peers, **effort(options, 1.0))
    timings.append(difference(REST, timings[0], timings[1]))
    return [record(case, timing, "ms", threads) for timing in timings]


def _corner(threads: int, options: Options) -> list[Record]:
    """The largest case once: time and memory."""
    small = cases.random_answer(4, [(6, 6)], 64, 512)  # first calls load things
    tam_fast.activation_maps(small.hidden, small.classifier, small.token_ids, small.layout)
    tokens, frames = (64, 2) if options.get("quick") else (TOKENS[-1], FRAMES[-1])
    answer = cases.random_answer(tokens, [FRAME] * frames, LINEAR_CHANNELS, VOCABULARY)
    case = f"{case_of(tokens, answer.positions)}, once"
    machine.reset_high_water()
    before, began = machine.high_water(), time.perf_counter()
    got = tam_fast.activation_maps(answer.hidden, answer.classifier, answer.token_ids, answer.layout)
    seconds = time.perf_counter() - began
    beyond = machine.high_water() - before
    check_some(answer)(got)
    return [
        single(case, TOTAL, "ms", threads, seconds * 1e3),
        single(case, "states + maps", "MiB", threads, answer.mebibytes),
        single(case, "peak beyond the inputs", "MiB", threads, beyond, "maps included"),
    ]


def measure(part: str, threads: int, options: Options) -> list[Record]:
    """Tokens at 36x36 positions, positions (frames of a video) at 64 tokens, or the corner."""
    if part == "corner":
        return _corner(threads, options)
    quick = options.get("quick")
    records = []
    if part == "tokens":
        for tokens in TOKENS[:3] if quick else TOKENS:
            records += _case(tokens, [(36, 36)], threads, options)
    else:
        for frames in FRAMES[:3] if quick else FRAMES:
            records += _case(64, [FRAME] * frames, threads, options)
    return records
