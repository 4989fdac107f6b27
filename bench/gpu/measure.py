"""Interleaved measuring on a device: peers take turns, and a ratio is taken within a round.

A peer that fails or is wrong is named, left out and makes the run fail at its end; the others are still measured, for
time on a device is dear.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import tam_fast
from bench.gpu.clock import Call, Clock
from bench.measure import Timing, quantiles


class Way(Enum):
    """How a peer is launched and timed."""

    THROUGHPUT = "graph of calls on inputs of their own, events"
    REPLAY = "one replay of a graph of one call, events"
    COLD = "one replay after the cache was emptied, events"
    EAGER = "calls one after another, events"
    QUEUED = "calls queued behind other work, events"
    WALL = "one call until it is done, host clock"


@dataclass(frozen=True)
class Peer:
    """One way to compute something.

    Attributes
    ----------
    name : str
    calls : sequence of callable
        The same work on inputs of their own, launched in turn; each returns its result.
    check : callable
        Takes the first call's result; raises if it is wrong, and may return a remark.
    way : Way
    work : float
        Units of work (bytes, say) in one call; ratios are per unit.
    backend : str, optional
        Of tam_fast, during the calls.
    """

    name: str
    calls: Sequence[Call]
    check: Callable[[Any], str | None]
    way: Way = Way.THROUGHPUT
    work: float = 1.0
    backend: str | None = None
    note: str = ""


@dataclass
class Case:
    """Peers that were measured together, and those that could not be."""

    name: str
    timings: list[Timing] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass
class _Prepared:
    peer: Peer
    launch: Call
    calls: int  # of one launch
    ahead: float
    note: str
    repeat: int = 1
    samples: dict[int, float] = field(default_factory=dict)


def _serving(backend: str | None) -> AbstractContextManager[Any]:
    return nullcontext() if backend is None else tam_fast.use_backend(backend)


def _prepare(peer: Peer, clock: Clock) -> _Prepared:
    """Warm up, check, capture if the way says so, and check what the graph gives."""
    with _serving(peer.backend):
        note = peer.check(peer.calls[0]()) or ""
        clock.synchronize()

        def launch() -> None:
            for call in peer.calls:
                call()

        ahead = 0.0
        if peer.way in (Way.THROUGHPUT, Way.REPLAY, Way.COLD):
            calls = peer.calls if peer.way is Way.THROUGHPUT else peer.calls[:1]
            replay, results = clock.capture(calls)
            replay()
            clock.synchronize()
            note = peer.check(results[0]) or ""
            return _Prepared(peer, replay, len(calls), 1e-4, note)
        launch()
        host = clock.wall(launch)
        if peer.way is Way.QUEUED:
            ahead = 1e-4 + 1.5 * host
        return _Prepared(peer, launch, len(peer.calls), ahead, note)


def _sample(item: _Prepared, clock: Clock) -> float:
    """Seconds of one call."""
    with _serving(item.peer.backend):
        if item.peer.way is Way.WALL:
            return clock.wall(item.launch) / item.calls
        cold = item.peer.way is Way.COLD
        # Each replay takes the host some microseconds too.
        ahead = item.ahead + (1e-5 * item.repeat if item.ahead else 0.0)
        seconds = clock.events(item.launch, item.repeat, ahead=ahead, cold=cold)
        return seconds / (item.repeat * item.calls)


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interleave(
    name: str,
    peers: Sequence[Peer],
    clock: Clock,
    *,
    budget: float = 0.4,
    min_sample: float = 2e-4,
    min_samples: int = 7,
    max_rounds: int = 300,
    report: Callable[[str], Any] = print,
) -> Case:
    """Check every peer, then let those that are right take turns; the first of them is the base of the ratios.

    Parameters
    ----------
    name : str
        Of the case.
    peers : sequence of Peer
        In every round each gives one sample, another one first each time. Slow ones sit rounds out: each gets about
        `budget` seconds, but at least `min_samples` samples; the base is in every round.
    clock : Clock
    budget : float
        Seconds a peer.
    min_sample : float
        Seconds that a sample lasts at least: short launches are repeated, but a lone replay is not.
    min_samples, max_rounds : int
    report : callable
        Told of every peer that is left out.

    Returns
    -------
    Case
        Seconds a call and ratios a unit of work.

    Raises
    ------
    ValueError
        If there are no peers, or two of one name.
    """
    if not peers or len({peer.name for peer in peers}) != len(peers):
        raise ValueError(f"peers: expected different names, got {[peer.name for peer in peers]}")
    case, ready, counts = Case(name), [], []
    for peer in peers:
        try:
            item = _prepare(peer, clock)
            one = max(_sample(item, clock) * item.calls, 1e-9)
        except Exception as error:  # a peer's own failure, whatever it is, is that peer's result
            case.failures[peer.name] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            report(f"{name}: {peer.name} is left out: {case.failures[peer.name]}")
            continue
        if peer.way in (Way.THROUGHPUT, Way.EAGER):
            item.repeat = min(max(1, math.ceil(min_sample / one)), 100)
        ready.append(item)
        counts.append(min(max(int(budget / (one * item.repeat)), min_samples), max_rounds))
    if not ready:
        return case
    rounds = counts[0] = max(counts)
    turn = 0
    with _no_collection():
        for number in range(rounds):
            # Evenly spread: exactly counts[i] of the rounds.
            present = [i for i, n in enumerate(counts) if (number + 1) * n // rounds > number * n // rounds]
            shift = turn % len(present)
            turn += 1
            for i in present[shift:] + present[:shift]:
                ready[i].samples[number] = _sample(ready[i], clock)
    base, unit = ready[0].samples, ready[0].peer.work
    for item in ready:
        ratios = [value / item.peer.work / (base[number] / unit) for number, value in item.samples.items()]
        case.timings.append(
            Timing(
                name=item.peer.name,
                seconds=quantiles(list(item.samples.values())),
                ratio=quantiles(ratios),
                samples=len(item.samples),
                inner=item.repeat * item.calls,
                rounds=item.samples,
                note="; ".join(part for part in (item.peer.way.value, item.peer.note, item.note) if part),
            )
        )
    return case
