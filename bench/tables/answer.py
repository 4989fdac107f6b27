"""The whole post-processing of an answer, from hidden states to maps, beside the published program's steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tolerances
import torch

import tam_fast
from bench import cases, machine
from bench.measure import Peer, WrongResultError, difference, expect_close, interleave
from bench.records import Record, record, single
from bench.tables import Options, effort

# A longer product over the vocabulary is timed on some positions and scaled.
_LONGEST = 20.0


def build(options: Options) -> cases.Answer:
    """128 tokens on 36x36 positions, channels and vocabulary as Qwen2-VL-2B has them; less for a quick look."""
    if options.get("quick"):
        return cases.random_answer(16, [(36, 36)], 256, 8192)
    return cases.random_answer(128, [(36, 36)], 1536, 151_936)


def name_of(answer: cases.Answer) -> str:
    """Name of the case."""
    rows, channels = answer.classifier.shape
    sides = " and ".join(cases.times(size) for size in answer.layout.sizes)
    return f"{answer.tokens} tokens, {sides}, C = {channels:,}, V = {rows:,}"


def _maps_check(expected: Any, tolerance: float) -> Callable[[Any], None]:
    def check(got: Any) -> None:
        got = got.maps if isinstance(got, tam_fast.TokenActivationMaps) else got
        expect_close(got, expected.maps, tolerance, "maps")
        if not np.isfinite(np.asarray(got)).all():
            raise WrongResultError("maps: expected finite values, got NaN")

    return check


def _product(answer: cases.Answer) -> Peer:
    """The logits over the whole vocabulary at every position, as the published program has the model make them."""
    hidden, classifier = answer.hidden, answer.classifier
    few = hidden[:128]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        few @ classifier.T
        seconds.append(time.perf_counter() - began)
    estimate = min(seconds) * hidden.shape[0] / few.shape[0]
    note = ""
    if estimate > _LONGEST:
        few = hidden[:256]
        note = f"timed on {few.shape[0]} of {hidden.shape[0]} positions, scaled"
    else:
        few = hidden

    def check(got: Any) -> None:
        rows, columns = torch.arange(0, few.shape[0], 97), torch.arange(0, classifier.shape[0], 9973)
        expected = few[rows].double() @ classifier[columns].double().T
        expect_close(got[rows][:, columns], expected, 2 * cases.PEER, "logits")

    work = few.shape[0] / hidden.shape[0]
    return Peer("product over the vocabulary (torch)", lambda: few @ classifier.T, check, work, note=note)


def _times(threads: int, options: Options) -> list[Record]:
    answer = build(options)
    case = name_of(answer)
    default, official = cases.oracle_answer(answer), cases.oracle_answer(answer, "official")
    logits, columns = cases.published_logits(answer)
    unique = answer.unique()
    expected_scores = np.maximum(answer.classifier[unique].double().numpy() @ answer.hidden.double().numpy().T, 0)
    inputs = (answer.hidden, answer.classifier, answer.token_ids, answer.layout)
    ours, theirs = _maps_check(default, tolerances.PIPELINE), _maps_check(default, 2 * cases.PEER)
    peers = [
        Peer("tam_fast.activation_maps", lambda: tam_fast.activation_maps(*inputs), ours),
        Peer(
            "of which scores (token_scores)",
            lambda: tam_fast.token_scores(answer.hidden, answer.classifier, unique),
            lambda got: expect_close(got, expected_scores, 2 * cases.PEER, "scores"),
        ),
        Peer(
            'tam_fast, compat="official"',
            lambda: tam_fast.activation_maps(*inputs, compat="official"),
            _maps_check(official, tolerances.OFFICIAL_FLOAT),
        ),
        Peer("torch, vectorised", lambda: cases.vectorised_torch(answer), theirs),
        Peer("numpy, vectorised", lambda: cases.vectorised_numpy(answer), theirs),
        Peer(
            "published program's steps after its logits",
            lambda: cases.published_steps(answer, logits, columns),
            _maps_check(official, tolerances.OFFICIAL_FLOAT),
            note=f"includes the {answer.prompt} prompt tokens, as its first call does",
        ),
        _product(answer),
    ]
    timings = interleave(case, peers, **effort(options, 3.0, 3))
    timings.insert(2, difference("of which all that follows", timings[0], timings[1]))
    return [record(case, timing, "ms", threads) for timing in timings]


def _memory(threads: int, options: Options) -> list[Record]:
    small = cases.random_answer(4, [(6, 6)], 64, 512)  # first calls load things
    tam_fast.activation_maps(small.hidden, small.classifier, small.token_ids, small.layout)
    answer = build(options)
    case = name_of(answer)
    machine.reset_high_water()
    before = machine.high_water()
    got = tam_fast.activation_maps(answer.hidden, answer.classifier, answer.token_ids, answer.layout)
    beyond = machine.high_water() - before
    _maps_check(cases.oracle_answer(answer), tolerances.PIPELINE)(got)
    states = answer.mebibytes - 4 * answer.tokens * answer.positions / 2**20
    return [
        single(case, "states + maps", "MiB", threads, answer.mebibytes),
        single(case, "peak beyond the inputs", "MiB", threads, beyond, "maps included"),
        single(case, "(states + peak) / (states + maps)", "", threads, (states + beyond) / answer.mebibytes),
    ]


def measure(part: str, threads: int, options: Options) -> list[Record]:
    """Times in ms an answer, and the peak of resident memory beyond the inputs."""
    return _memory(threads, options) if part == "memory" else _times(threads, options)
