"""Blocks that run together: which of their lanes go on, which wait, and where they meet again."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from machines.ptx.access import Access
from machines.ptx.decoder import Instruction
from machines.ptx.faults import Fault, LaneFault
from machines.ptx.program import Run
from machines.ptx.registers import Work
from machines.ptx.values import BOOL, UINT32, Array, first

ENDLESS = 10_000_000  # how often a launch may come to the same instruction


class Batch(Access):
    """The lanes with their places in the program."""

    def __init__(self, work: Work):
        super().__init__(work)
        self.barriers = 0
        self.waiting: dict[int, Array] = {}
        self.parked: dict[int, Array] = {}
        self.arrived: dict[int, Array] = {}
        self.at_barrier: dict[int, Array] = {}

    def execute(self, counts: list[int], lanes: list[int]) -> None:
        runs = self.program.runs
        index = 0
        self.mask = None if self.live.all() else self.live.copy()
        while index >= 0:
            run = runs[index]
            counts[index] += 1
            lanes[index] += self.size if self.mask is None else int(np.count_nonzero(self.mask))
            if counts[index] > ENDLESS:
                line = run.instructions[0].line
                raise Fault(f"{self.kernel.name}, line {line}: ran {ENDLESS} times and does not end")
            steps = iter(run.steps)
            made = run.end
            try:
                for step in steps:
                    step(self)
                if made is None:
                    index += 1
                elif made.control == "warp":
                    together = self.converged(made, index)
                    lanes[index] -= int(np.count_nonzero(self.parked[index])) if index in self.parked else 0
                    if together:
                        assert made.step is not None
                        made.step(self)
                    index = index + 1 if together else -1
                elif made.control == "barrier":
                    index = self._barrier(index, made)
                else:
                    index = self._branch(index, run, made)
            except LaneFault as fault:
                left = operator.length_hint(steps)
                if left or made is None or made.control not in ("warp", "barrier"):
                    made = run.of_step[len(run.steps) - left - 1]
                active_lanes = self.lanes()
                lane = fault.position if active_lanes is None else int(active_lanes[fault.position])
                raise self._fault(made, lane, str(fault)) from None
            if index < 0:
                index = self._next()
            elif self.waiting or self.parked:
                mask = np.ones(self.size, BOOL) if self.mask is None else self.mask
                first_waiting = min(self.waiting, default=index)
                if first_waiting < index:
                    self._add(self.waiting, index, mask)
                    index = self._next()
                elif first_waiting == index or index in self.parked:
                    self._take(index, mask)

    def converged(self, made: Instruction, index: int) -> bool:
        """Whether lanes are left to execute an instruction of a warp; those that must wait are parked."""
        all_bits = np.uint32(0xFFFFFFFF)
        named = all_bits if made.members is None else self.R[made.members].view(UINT32)
        if self.mask is None and (made.members is None or not np.count_nonzero(named != all_bits)):
            return True
        bits = self.active_bits()
        active = np.ones(self.size, BOOL) if self.mask is None else self.mask
        lane_bit = np.uint32(1) << self.lane_in_warp.astype(UINT32)
        alone = active & (named & lane_bit == 0)
        if np.count_nonzero(alone):
            at = first(alone)
            what = f"the lane is not among those that it names, {int(np.broadcast_to(named, self.size)[at]):#010x}"
            raise LaneFault(what, self.position(at))
        live = np.repeat(self.live_bits(), 32)
        if made.members is None and np.count_nonzero(active & (live != all_bits)):
            at = first(active & (live != all_bits))
            raise LaneFault(f"lanes {~live[at]:#010x} of the warp do not exist or exited", self.position(at))
        missing = active & (named & live & ~np.repeat(bits, 32) != 0)
        if not np.count_nonzero(missing):
            return True
        late = np.repeat(missing.reshape(-1, 32).any(1), 32) & active
        self._add(self.parked, index, late)
        self.mask = active & ~late
        return bool(np.count_nonzero(self.mask))

    def _add(self, groups: dict[int, Array], index: int, mask: Array) -> None:
        groups[index] = groups[index] | mask if index in groups else mask

    def _barrier(self, index: int, made: Instruction) -> int:
        if self.mask is None and not self.arrived:
            self.barriers += self.blocks
            self.new_epoch(None)
            self._reduce(made, np.ones(self.blocks, BOOL))
            return index + 1
        mask = np.ones(self.size, BOOL) if self.mask is None else self.mask
        self._add(self.arrived, made.barrier, mask)
        self._add(self.at_barrier, index, mask)
        self._release(made.barrier)
        return -1

    def _release(self, number: int) -> None:
        arrived = self.arrived[number].reshape(self.blocks, -1)
        complete = (arrived | ~self.live.reshape(self.blocks, -1)).all(1) & arrived.any(1)
        if not np.count_nonzero(complete):
            return
        self.barriers += int(np.count_nonzero(complete))
        released = np.repeat(complete, self.threads) & self.arrived[number]
        self.new_epoch(complete)
        for index in list(self.at_barrier):
            made = self.program.runs[index].end
            assert made is not None
            here = self.at_barrier[index] & released
            if made.barrier != number or not np.count_nonzero(here):
                continue
            bits = self.active_bits(here)
            torn = (bits != 0) & (bits != self.live_bits())
            if np.count_nonzero(torn):
                self.mask = here
                where = self._where(int(first(np.repeat(torn, 32) & ~here & self.live)))
                raise self._fault(made, first(np.repeat(torn, 32) & here), f"divergence: a lane of the warp is {where}")
            self.mask = here
            self._reduce(made, complete)
            self._add(self.waiting, index + 1, here)
            left = self.at_barrier[index] & ~here
            if np.count_nonzero(left):
                self.at_barrier[index] = left
            else:
                del self.at_barrier[index]
        self.arrived[number] = self.arrived[number] & ~released
        if not np.count_nonzero(self.arrived[number]):
            del self.arrived[number]

    def _reduce(self, made: Instruction, complete: Array) -> None:
        """What bar.red writes."""
        if made.reduction is None:
            return
        operation, slot, negated, to = made.reduction
        votes = (self.R[slot] ^ negated).reshape(self.blocks, -1)
        here = (np.ones(self.size, BOOL) if self.mask is None else self.mask).reshape(self.blocks, -1)
        yes = (votes & here).sum(1)
        result: Array = yes.astype(UINT32)
        if operation != "popc":
            result = yes > 0 if operation == "or" else yes == here.sum(1)
        self.put(to, np.repeat(result, self.threads))
        if to in self.written:
            self.written[to] = self.written[to] | here.reshape(-1)

    def _exit(self, mask: Array | None) -> None:
        self.end(mask)
        for number in list(self.arrived):
            self._release(number)

    def _branch(self, index: int, run: Run, made: Instruction) -> int:
        """The run where the current lanes go on; those that part from them wait."""
        leave = run.target if made.control == "branch" else -1
        chosen: Any = None
        if made.predicate is not None:
            slot, negated = made.predicate
            chosen = ~self.R[slot] if negated else self.R[slot]
            if self.mask is not None:
                chosen = chosen & self.mask
            count = np.count_nonzero(chosen)
            if not count:
                return index + 1
            if count == (self.size if self.mask is None else np.count_nonzero(self.mask)):
                chosen = None
        if chosen is None:
            if leave < 0:
                self._exit(self.mask)
            return leave
        stay = ~chosen if self.mask is None else self.mask & ~chosen
        if leave < 0:
            self._exit(chosen)
        else:
            self._add(self.waiting, leave, chosen)
        self.mask = stay
        return index + 1

    def _next(self) -> int:
        """Make the lanes at the smallest address the current ones."""
        if not self.waiting:
            for index in list(self.parked):
                made = self.program.runs[index].end
                assert made is not None
                self.mask = self.parked.pop(index)
                if self.converged(made, index):
                    self._add(self.waiting, index, self.mask)
            if self.parked and not self.waiting:
                self._deadlock(self.parked, "divergence: it waits for lanes of the warp, one of which is")
            if self.at_barrier and not self.waiting:
                self._deadlock(self.at_barrier, "deadlock: the barrier waits for lanes of the block, one of which is")
            if not self.waiting:
                return -1
        index = min(self.waiting)
        self._take(index, self.waiting.pop(index))
        return index

    def _take(self, index: int, mask: Array | None) -> None:
        if mask is not None and index in self.waiting:
            mask = mask | self.waiting.pop(index)
        if mask is not None and index in self.parked:
            mask = mask | self.parked.pop(index)
        self.mask = None if mask is None or np.count_nonzero(mask) == self.size else mask

    def _deadlock(self, groups: dict[int, Array], what: str) -> None:
        index = min(groups)
        made = self.program.runs[index].end
        assert made is not None
        lane = first(groups[index])
        unit = 32 if groups is self.parked else self.threads
        begin = lane // unit * unit
        others = np.zeros(self.size, BOOL)
        others[begin : begin + unit] = True
        others &= ~groups[index]
        alive = others & self.live
        other = first(alive) if np.count_nonzero(alive) else first(others) if np.count_nonzero(others) else lane
        raise self._fault(made, lane, f"{what} {self._where(other)}")

    def _where(self, lane: int) -> str:
        """Where a lane is, in words."""
        for groups, what in ((self.parked, "waiting at"), (self.at_barrier, "at"), (self.waiting, "before")):
            for index, mask in groups.items():
                if mask[lane]:
                    made = self.program.runs[index].instructions[0]
                    return f"{what} line {made.line}, {made.text!r}"
        return "elsewhere" if self.live[lane] else "gone: it exited or never was"

    def _fault(self, made: Instruction, lane: int, what: str) -> Fault:
        block, thread = divmod(lane, self.threads)
        number = self.chosen[block]
        bx, by, _ = self.block_shape
        gx, gy, _ = self.grid
        blocks = (number % gx, number // gx % gy, number // (gx * gy))
        threads = (thread % bx, thread // bx % by, thread // (bx * by))
        return Fault(f"{self.kernel.name}, line {made.line}: {made.text}; block {blocks}, thread {threads}: {what}")
