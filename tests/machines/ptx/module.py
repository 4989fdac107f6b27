"""Modules, their kernels, and launches."""

from __future__ import annotations

import bisect
import re
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from machines.ptx.batch import Batch
from machines.ptx.faults import Fault
from machines.ptx.memory import Memory
from machines.ptx.program import Program
from machines.ptx.registers import Work
from machines.ptx.spaces import SHARED_LIMIT
from machines.ptx.values import TYPES, flags

BATCH_LANES = 4096


@dataclass(frozen=True)
class Parameter:
    name: str
    offset: int
    size: int
    alignment: int


@dataclass
class Statistics:
    """What a launch executed: instructions of groups of lanes, of lanes, those by opcode, and barriers of blocks."""

    instructions: int = 0
    lanes: int = 0
    opcodes: Counter[str] = field(default_factory=Counter)
    barriers: int = 0


class Module:
    """A PTX module: `kernels` by name, `target` such as "sm_80". Bodies are decoded when first launched."""

    def __init__(self, text: str):
        text = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)
        text = re.sub(r"//[^\n]*", "", text)
        found = re.search(r"\.target\s+(\w+)", text)
        self.target = found[1] if found else ""
        self._lines = [m.end() for m in re.finditer("\n", text)]
        self.kernels: dict[str, Kernel] = {}
        outside, begin = [], 0
        for entry in re.finditer(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{;]*)\{", text):
            depth = 1
            for brace in re.compile("[{}]").finditer(text, entry.end()):
                depth += 1 if brace[0] == "{" else -1
                if not depth:
                    break
            else:
                raise ValueError(f"kernel {entry[1]} has no end")
            outside.append(text[begin : entry.start()])
            begin = brace.end()
            self.kernels[entry[1]] = Kernel(self, entry[1], entry[2] or "", entry[3], text, entry.end(), brace.start())
        outside.append(text[begin:])
        self.declarations = "".join(outside)

    def line(self, position: int) -> int:
        return bisect.bisect_right(self._lines, position) + 1


class Kernel:
    """One entry of a module; launch() runs it."""

    def __init__(self, module: Module, name: str, parameters: str, directives: str, text: str, begin: int, end: int):
        self.module, self.name, self.text, self.begin, self.end = weakref.proxy(module), name, text, begin, end
        self._keep = module
        self.parameters, self.parameter_bytes = self._parameters(parameters)
        self.required = self.max_threads = None
        for directive, numbers in re.findall(r"\.(maxntid|reqntid)\s+([\d,\s]+)", directives):
            extents = [int(x) for x in numbers.replace(" ", "").strip().split(",") if x]
            extents += [1] * (3 - len(extents))
            self.max_threads = extents[0] * extents[1] * extents[2]
            if directive == "reqntid":
                self.required = tuple(extents)
        self._program: Program | None = None

    @staticmethod
    def _parameters(text: str) -> tuple[tuple[Parameter, ...], int]:
        made, offset = [], 0
        for declaration in filter(str.strip, text.split(",")):
            found = re.match(
                r"\s*\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)\s*(?:\[(\d+)\])?",
                declaration,
            )
            if found is None:
                raise NotImplementedError(f"parameter {declaration.strip()}")
            element = TYPES[found[2]].itemsize
            alignment, size = int(found[1] or element), element * int(found[4] or 1)
            offset = -(-offset // alignment) * alignment
            made.append(Parameter(found[3], offset, size, alignment))
            offset += size
        return tuple(made), offset

    @property
    def program(self) -> Program:
        if self._program is None:
            self._program = Program(self)
        return self._program

    @property
    def static_shared_bytes(self) -> int:
        return self.program.shared_bytes

    def launch(
        self, grid: Any, block: Any, parameters: bytes, *, shared_bytes: int = 0, memory: Memory, seed: int = 0
    ) -> Statistics:
        """Run to completion.

        Parameters
        ----------
        grid, block
            Three extents, or one number.
        parameters
            The parameter space, laid out as `self.parameters` says.
        shared_bytes
            Dynamic shared memory, beyond `static_shared_bytes`.
        memory
            The global memory that may be touched.
        seed
            Of what shared memory and registers hold before anything is written.
        """
        grid, block = extents(grid), extents(block)
        threads, program = block[0] * block[1] * block[2], self.program
        total = program.shared_bytes + shared_bytes
        for wrong, what in (
            (min(*grid, *block) < 1, f"grid {grid} of blocks {block}"),
            (grid[0] >= 2**31 or max(grid[1:]) > 65535, f"grid {grid}"),
            (threads > 1024 or block[2] > 64, f"block {block}: more than 1024 threads, or more than 64 deep"),
            (self.max_threads is not None and threads > self.max_threads,
             f"block {block}: compiled for at most {self.max_threads} threads"),
            (self.required is not None and block != self.required, f"block {block}: compiled for {self.required}"),
            (total > SHARED_LIMIT, f"{total} bytes of shared memory: no device has more than {SHARED_LIMIT}"),
            (len(parameters) != self.parameter_bytes,
             f"{len(parameters)} bytes of parameters for {self.parameter_bytes}"),
        ):  # fmt: skip
            if wrong:
                raise Fault(f"{self.name}: {what}")
        memory.refresh()
        statistics = Statistics()
        blocks, padded = grid[0] * grid[1] * grid[2], -(-threads // 32) * 32
        at_once = max(1, BATCH_LANES // padded)
        counts, lanes = [0] * len(program.runs), [0] * len(program.runs)
        with np.errstate(all="ignore", invalid="call", under="call", call=flags):
            for begin in range(0, blocks, at_once):
                chosen = range(begin, min(begin + at_once, blocks))
                batch = Batch(Work(self, grid, block, chosen, parameters, total, shared_bytes, memory, seed))
                batch.execute(counts, lanes)
                statistics.barriers += batch.barriers
        for run, count, active in zip(program.runs, counts, lanes, strict=True):
            statistics.instructions += count * len(run.instructions)
            statistics.lanes += active * len(run.instructions)
            for made in run.instructions if active else ():
                statistics.opcodes[made.opcode] += active
        return statistics


def extents(value: Any) -> tuple[int, int, int]:
    values = [int(x) for x in value] if isinstance(value, (tuple, list)) else [int(value)]
    x, y, z = values + [1] * (3 - len(values))
    return x, y, z
