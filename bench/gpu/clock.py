"""Clocks: of a CUDA device by its events, and of the host for rehearsals without one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Call = Callable[[], Any]
# Clock cycles of a second, nearly: for how long the device is kept busy while the host runs ahead.
_CYCLES = 1.5e9


class Clock(Protocol):
    """Where work runs, and how long it takes there."""

    device: torch.device
    cache: int  # bytes of the device's last cache

    def synchronize(self) -> None:
        """Wait for the device."""

    def capture(self, calls: Sequence[Call]) -> tuple[Call, list[Any]]:
        """Record calls; return what replays them, and their results, which each replay writes anew."""

    def events(self, launch: Call, repeat: int = 1, *, ahead: float = 0.0, cold: bool = False) -> float:
        """Seconds on the device from before the first to after the last of some launches.

        The host runs `ahead` seconds ahead of the device, so that its own time is not seen; 0: it does not. `cold`
        empties the device's cache before.
        """

    def wall(self, launch: Call) -> float:
        """Seconds on the host until the work of a launch is done."""


class Cuda:
    """The current CUDA device."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.cache = int(torch.cuda.get_device_properties(self.device).L2_cache_size)
        self._scrub = torch.zeros(2 * max(self.cache, 1 << 24), dtype=torch.uint8, device=self.device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def capture(self, calls: Sequence[Call]) -> tuple[Call, list[Any]]:
        graph = torch.cuda.CUDAGraph()
        self.synchronize()
        with torch.cuda.graph(graph):
            # Kept, so that no two calls of the graph write to the same memory.
            results = [call() for call in calls]
        return graph.replay, results

    def events(self, launch: Call, repeat: int = 1, *, ahead: float = 0.0, cold: bool = False) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.synchronize()
        if ahead > 0:
            torch.cuda._sleep(int(ahead * _CYCLES))
        if cold:
            self._scrub.add_(1)
        begin.record()
        for _ in range(repeat):
            launch()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    def wall(self, launch: Call) -> float:
        self.synchronize()
        began = time.perf_counter()
        launch()
        self.synchronize()
        return time.perf_counter() - began


class Host:
    """This processor, by the host's clock: to rehearse the programs, not to report anything."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.cache = torch.device("cpu"), 1 << 16
        self._clock = clock

    def synchronize(self) -> None:
        pass

    def capture(self, calls: Sequence[Call]) -> tuple[Call, list[Any]]:
        results = [call() for call in calls]

        def replay() -> None:
            for index, call in enumerate(calls):
                results[index] = call()

        return replay, results

    def events(self, launch: Call, repeat: int = 1, *, ahead: float = 0.0, cold: bool = False) -> float:
        began = self._clock()
        for _ in range(repeat):
            launch()
        return self._clock() - began

    def wall(self, launch: Call) -> float:
        return self.events(launch)
