"""Copies from global to shared memory that arrive later."""

from __future__ import annotations

import numpy as np

from machines.ptx.faults import LaneFault
from machines.ptx.memory import HOST, LOWEST
from machines.ptx.registers import Work
from machines.ptx.shared import HOLDS, REPEAT, WRITTEN, SharedMemory
from machines.ptx.spaces import aligned
from machines.ptx.values import BOOL, INT64, UINT32, Array, first


class Copies(SharedMemory):
    """The lanes with their groups of asynchronous copies."""

    def __init__(self, work: Work):
        super().__init__(work)
        self.committed = np.zeros(self.size, INT64)

    def copy_async(self, places: Array, addresses: Array, size: int, taken: Array | None, lanes: Array | None) -> None:
        to = self.shared_places(places, size, lanes, "destination")
        aligned(addresses, size, "source")
        data = np.zeros((len(to), size), np.uint8)
        count = np.full(len(to), size) if taken is None else taken.astype(INT64)
        if np.count_nonzero(count > size):
            raise LaneFault(f"copies more than {size} bytes", first(count > size))
        for some in np.unique(count[count > 0]):
            rows = np.flatnonzero(count == some)
            source = addresses[rows]
            try:
                self.memory.check(source, int(some))
            except LaneFault as fault:
                raise LaneFault(str(fault), int(rows[fault.position])) from None
            index = (source - np.uint64(LOWEST)).view(INT64)[:, None] + np.arange(some)
            data[rows[:, None], np.arange(some)] = HOST[1][index]
        if self.watch_writes(to, size, lanes, 0, [data]) is not None:
            raise LaneFault(f"race: two warps copy to shared memory at {self.shared_offset(to[0])} at once")
        own = np.arange(self.size) if lanes is None else lanes
        self.copies.append((own, to, data, self.committed[own]))

    def commit_copies(self) -> None:
        self.committed = self.committed + (1 if self.mask is None else self.mask)

    def wait_copies(self, left: int | None) -> None:
        """Copies of the active lanes arrive, but for those of their last `left` groups."""
        still = []
        for lanes, places, data, groups in self.copies:
            done = np.ones(len(lanes), BOOL) if left is None else groups < self.committed[lanes] - left
            if self.mask is not None:
                done &= self.mask[lanes]
            if np.count_nonzero(done):
                self._arrive(lanes[done], places[done], data[done])
            if np.count_nonzero(done) < len(lanes):
                still.append((lanes[~done], places[~done], data[~done], groups[~done]))
        self.copies = still

    def _arrive(self, lanes: Array, places: Array, data: Array) -> None:
        index = (places // 4)[:, None] + np.arange(data.shape[1] // 4)
        tags = self.tags[4][lanes][:, None]
        found = self.state[4][index]
        changed = ((found != 0) & (found != (tags | np.uint32(WRITTEN * REPEAT[4])))).any(1)
        if np.count_nonzero(changed):
            at = first(changed)
            fault = LaneFault(f"a copy to {self.shared_offset(places[at])} arrives over what was written since")
            fault.position = self.position(int(lanes[at]))
            raise fault
        self.shared[4][index] = data.view(UINT32)
        self.state[4][index] = tags | np.uint32((HOLDS | WRITTEN) * REPEAT[4])
