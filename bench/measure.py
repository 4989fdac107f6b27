"""Interleaved measuring: peers take turns, and a ratio is taken within a round, where both met the same machine."""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# Samples of calls shorter than this are run once untimed before they are timed: caches hold what the last peer left.
_SHORT = 5e-3
# A call longer than this needs no second look to know how long it takes.
_LONG = 0.1


class WrongResultError(RuntimeError):
    """A result that was to be timed is not right."""


class Quantiles(NamedTuple):
    """The 20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """Percentiles of some values, linear between neighbours.

    Raises
    ------
    ValueError
        If there are no values.
    """
    if not len(values):
        raise ValueError("values: expected at least one, got none")
    return Quantiles(*(float(q) for q in np.quantile(np.asarray(values, dtype=np.float64), (0.2, 0.5, 0.8))))


@dataclass(frozen=True)
class Peer:
    """One way to compute something.

    Attributes
    ----------
    name : str
    run : callable
        Does the work and returns the result.
    check : callable
        Takes a result and raises :class:`WrongResultError` if it is wrong.
    work : float
        Units of work (pixels, say) in one call; times are per unit.
    before : callable, optional
        Called before each sample, not timed.
    note : str
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[Any], None]
    work: float = 1.0
    before: Callable[[], Any] | None = None
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """What was measured of one peer: seconds a unit of work, and their ratio to the first peer's of the same round."""

    name: str
    seconds: Quantiles
    ratio: Quantiles
    samples: int
    inner: int
    rounds: dict[int, float]
    note: str = ""


def verify(case: str, peers: Sequence[Peer], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Run every peer once and check its result; return how long each took.

    Raises
    ------
    WrongResultError
        If a result is wrong; names the case and the peer.
    """
    seconds = []
    for peer in peers:
        if peer.before is not None:
            peer.before()
        began = clock()
        result = peer.run()
        seconds.append(clock() - began)
        try:
            peer.check(result)
        except WrongResultError as error:
            raise WrongResultError(f"{case}: {peer.name}: {error}") from error
    return seconds


def _duration(peer: Peer, first: float, clock: Callable[[], float]) -> float:
    """Seconds of one call: the least of some, once warm; of a long one the first call's."""
    if first >= _LONG:
        return first
    if peer.before is not None:
        peer.before()
    least, spent, calls = math.inf, 0.0, 0
    while spent < 0.02 or calls < 3:
        began = clock()
        peer.run()
        took = clock() - began
        least, spent, calls = min(least, took), spent + took, calls + 1
        if calls >= 1000:
            break
    return max(least, 1e-9)


def interleave(
    case: str,
    peers: Sequence[Peer],
    *,
    budget: float = 1.0,
    min_sample: float = 1e-3,
    min_samples: int = 5,
    max_rounds: int = 300,
    on_round: Callable[[int], Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Check every peer's result, then let the peers take turns; the first is the base of the ratios.

    Parameters
    ----------
    case : str
        For errors.
    peers : sequence of Peer
        In every round each of them gives one sample, another one first each time. Slow ones sit rounds out: each gets
        about `budget` seconds, but at least `min_samples` samples; the base is in every round.
    budget : float
        Seconds a peer.
    min_sample : float
        Seconds that a sample lasts at least: short calls are repeated.
    min_samples, max_rounds : int
    on_round : callable, optional
        Called with each round's number before it.
    clock : callable

    Returns
    -------
    list of Timing
        As `peers`.

    Raises
    ------
    WrongResultError
        If a result is wrong; nothing is timed then.
    ValueError
        If there are no peers, or two of one name.
    """
    if not peers or len({peer.name for peer in peers}) != len(peers):
        raise ValueError(f"peers: expected different names, got {[peer.name for peer in peers]}")
    if on_round is not None:
        on_round(0)
    first = verify(case, peers, clock)
    inner, warm, counts = [], [], []
    for peer, seconds in zip(peers, first, strict=True):
        one = _duration(peer, seconds, clock)
        inner.append(max(1, math.ceil(min_sample / one)))
        warm.append(one < _SHORT)
        counts.append(min(max(int(budget / (one * inner[-1] * (1 + warm[-1]))), min_samples), max_rounds))
    rounds = max(counts)
    counts[0] = rounds

    samples: list[dict[int, float]] = [{} for _ in peers]
    turns: Counter[tuple[int, ...]] = Counter()
    gc.collect()
    for number in range(rounds):
        if on_round is not None:
            on_round(number)
        # Evenly spread: exactly counts[i] of the rounds.
        present = tuple(i for i, n in enumerate(counts) if (number + 1) * n // rounds > number * n // rounds)
        shift = turns[present] % len(present)
        turns[present] += 1
        for i in present[shift:] + present[:shift]:
            samples[i][number] = _sample(peers[i], inner[i], warm[i], clock)

    base = samples[0]
    return [
        Timing(
            name=peer.name,
            seconds=quantiles(list(taken.values())),
            ratio=quantiles([value / base[number] for number, value in taken.items()]),
            samples=len(taken),
            inner=repeats,
            rounds=taken,
            note=peer.note,
        )
        for peer, taken, repeats in zip(peers, samples, inner, strict=True)
    ]


def _sample(peer: Peer, inner: int, warm: bool, clock: Callable[[], float]) -> float:
    if peer.before is not None:
        peer.before()
    run = peer.run
    if warm:
        for _ in range(inner):
            run()
    collecting = gc.isenabled()
    gc.disable()
    try:
        began = clock()
        for _ in range(inner):
            run()
        return (clock() - began) / inner / peer.work
    finally:
        if collecting:
            gc.enable()


def difference(name: str, whole: Timing, part: Timing) -> Timing:
    """What remains of `whole` without `part`, round by round; `ratio` is its share of `whole`."""
    both = {number: whole.rounds[number] - value for number, value in part.rounds.items() if number in whole.rounds}
    return Timing(
        name=name,
        seconds=quantiles(list(both.values())),
        ratio=quantiles([value / whole.rounds[number] for number, value in both.items()]),
        samples=len(both),
        inner=whole.inner,
        rounds=both,
    )


def expect_close(got: Any, expected: Any, tolerance: float, what: str = "result") -> None:
    """Check an array against another.

    Raises
    ------
    WrongResultError
        If shapes differ, or an element is farther off than `tolerance` or NaN where the other is not.
    """
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if got.shape != expected.shape:
        raise WrongResultError(f"{what}: expected shape {expected.shape}, got {got.shape}")
    both_nan = np.isnan(got) & np.isnan(expected)
    error = np.where(both_nan, 0.0, np.abs(got - expected)).max(initial=0.0)
    if not error <= tolerance:
        raise WrongResultError(f"{what}: expected at most {tolerance:g} from the oracle's, got {error:g}")


def expect_equal(got: Any, expected: Any, what: str = "result") -> None:
    """Check an array for being the same as another.

    Raises
    ------
    WrongResultError
        If it is not.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        raise WrongResultError(f"{what}: expected shape {expected.shape}, got {got.shape}")
    wrong = int((got != expected).sum())
    if wrong:
        raise WrongResultError(f"{what}: expected exactly the same values, got {wrong} of {got.size} that differ")
