"""A kernel cut into runs of instructions, and the watch over registers that may be read unwritten."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from machines.ptx.decoder import Decoder, Instruction
from machines.ptx.faults import LaneFault
from machines.ptx.values import BOOL, Array, Step, first

if TYPE_CHECKING:
    from machines.ptx.batch import Batch
    from machines.ptx.module import Kernel


@dataclass
class Run:
    """Instructions in a row, of which only the last may go elsewhere or wait."""

    instructions: list[Instruction] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    of_step: list[Instruction] = field(default_factory=list)
    end: Instruction | None = None
    target: int = -1


class Program:
    """A decoded kernel: runs, and for the registers that may be read unwritten the steps that watch them."""

    def __init__(self, kernel: Kernel):
        d = Decoder(kernel)
        d.decode()
        self.names, self.widths, self.fixed, self.specials = d.names, d.widths, d.fixed, d.specials
        self.shared_bytes, self.local_bytes = d.shared_bytes, d.local_bytes
        self.runs: list[Run] = []
        starts = self._cut(d)
        for run in self.runs:
            if run.end is not None and run.end.target:
                if run.end.target not in d.labels:
                    raise NotImplementedError(f"{kernel.name}: no label {run.end.target}")
                run.target = starts[d.labels[run.end.target]]
        self.tracked: set[int] = set()
        self._watch()
        self.constants: dict[int, list[Array | None]] = {}

    def _cut(self, d: Decoder) -> dict[int, int]:
        """Split at labels and at what goes elsewhere or waits."""
        marks = set(d.labels.values())
        starts: dict[int, int] = {}
        run = Run()
        for index, made in enumerate(d.instructions):
            alone = made.control in ("warp", "barrier")
            if (index in marks or alone) and run.instructions:
                self.runs.append(run)
                run = Run()
            if not run.instructions:
                starts[index] = len(self.runs)
            run.instructions.append(made)
            if made.control:
                run.end = made
                self.runs.append(run)
                run = Run()
        if run.instructions or len(d.instructions) in marks or not self.runs:
            starts[len(d.instructions)] = len(self.runs)
            self.runs.append(run)
        if self.runs[-1].end is None or self.runs[-1].end.control != "exit" or self.runs[-1].end.predicate is not None:
            self.runs.append(Run([Instruction("}", 0, "exit", control="exit")]))
            self.runs[-1].end = self.runs[-1].instructions[0]
        return starts

    def _after(self, index: int) -> list[int]:
        run = self.runs[index]
        if run.end is None or run.end.control in ("warp", "barrier"):
            return [index + 1]
        following = [] if run.end.predicate is None else [index + 1]
        return [*following, run.target] if run.end.control == "branch" else following

    def _watch(self) -> None:
        """Find by data flow the reads that some path reaches without a write, and make the steps."""
        everything = (1 << len(self.names)) - 1
        arrives = [everything] * len(self.runs)
        arrives[0] = 0
        for slot in [*self.fixed, *self.specials.values()]:
            arrives[0] |= 1 << slot
        todo, queued = [0], {0}
        seen: set[int] = set()
        while todo:
            index = heapq.heappop(todo)
            queued.discard(index)
            seen.add(index)
            known = arrives[index]
            for made in self.runs[index].instructions:
                known = self._written(made, known)
            for after in self._after(index):
                met = arrives[after] & known
                if (met != arrives[after] or after not in seen) and after not in queued:
                    queued.add(after)
                    heapq.heappush(todo, after)
                arrives[after] = met
        unsure: dict[int, list[int]] = {}  # by instruction: the registers that may not have been written
        for index, run in enumerate(self.runs):
            known = arrives[index]
            for made in run.instructions:
                reads = list(made.reads)
                reads += [made.predicate[0]] if made.predicate is not None else []
                reads += [made.copy] if made.copy is not None else []
                missing = [slot for slot in reads if not known >> slot & 1]
                if missing:
                    unsure[id(made)] = missing
                    self.tracked.update(missing)
                    if made.copy in missing:
                        self.tracked.update(made.writes)
                known = self._written(made, known)
        for run in self.runs:
            for made in run.instructions:
                self._finish(run, made, unsure.get(id(made), []))

    def _written(self, made: Instruction, known: int) -> int:
        if made.predicate is not None:
            return known
        if made.copy is not None and not known >> made.copy & 1:
            for slot in made.writes:
                known &= ~(1 << slot)
            return known
        for slot in made.writes:
            known |= 1 << slot
        return known

    def _finish(self, run: Run, made: Instruction, unsure: list[int]) -> None:
        def note(step: Step) -> None:
            run.steps.append(step)
            run.of_step.append(made)

        must = [slot for slot in unsure if slot != made.copy]
        guard = [slot for slot in must if made.predicate is not None and slot == made.predicate[0]]
        if guard:
            note(watching(guard, self.names))
        inner = [slot for slot in must if slot not in guard]
        if made.control:
            if inner:
                note(watching(inner, self.names))
            tracked = [slot for slot in made.writes if slot in self.tracked]
            if made.step is not None:
                made.step = tracking(made.step, [], tracked, None, self.names)
            return
        assert made.step is not None
        copied = made.copy if made.copy is not None and made.copy in unsure else None
        tracked = [slot for slot in made.writes if slot in self.tracked]
        step = made.step
        if inner or tracked:
            step = tracking(step, inner, tracked, copied, self.names)
        note(step if made.predicate is None else predicated(step, *made.predicate))


def watching(slots: list[int], names: list[str]) -> Step:
    def step(s: Batch) -> None:
        for slot in slots:
            missing = ~s.written[slot] if s.mask is None else ~s.written[slot][s.mask]
            if np.count_nonzero(missing):
                raise LaneFault(f"register {names[slot]} is read and was never written", first(missing))

    return step


def tracking(step: Step, reads: list[int], writes: list[int], copied: int | None, names: list[str]) -> Step:
    if not reads and not writes:
        return step
    watch = watching(reads, names)

    def tracked(s: Batch) -> None:
        watch(s)
        step(s)
        for slot in writes:
            now: Any = True if copied is None else s.written[copied]
            if s.mask is not None:
                now = np.where(s.mask, now, s.written[slot])
            s.written[slot] = np.ones(s.size, BOOL) if now is True else now

    return tracked


def predicated(step: Step, slot: int, negated: bool) -> Step:
    def guarded(s: Batch) -> None:
        mask, chosen = s.mask, s.R[slot]
        if negated:
            chosen = ~chosen
        if mask is not None:
            chosen = chosen & mask
        count = np.count_nonzero(chosen)
        if count:
            s.mask = chosen if count < s.size else None
            step(s)
            s.mask = mask

    return guarded
