"""A machine for PTX: compiled CUDA and Triton kernels run on host memory, checked as compute-sanitizer would check.

    module = Module(text)
    with Memory.recording() as memory:
        ...                                       # torch operations on CPU tensors, which the kernel may then touch
        module.kernels[name].launch(grid, block, parameters, shared_bytes=1024, memory=memory)

Lanes of many blocks run together, as arrays with one element for each lane, and always those at the smallest address
in the program, so that what diverged meets again as structured code means it to. Faults, beyond wrong addresses: shared
memory read before it was written or while a copy to it is in flight, shared memory touched by two warps between
barriers of which one writes (unless both write the same), warps that are not together where they must be, barriers that
never complete, registers read before they were written. Kernels that pass need not be right: neither races for global
memory are seen, nor those among the lanes of one warp.
"""

from __future__ import annotations

import bisect
import ctypes
import heapq
import operator
import re
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ptx_instructions import (
    BOOL,
    DECODERS,
    INT64,
    TYPES,
    UINT32,
    UINT64,
    UNSIGNED,
    Array,
    LaneFault,
    Step,
    first,
    flags,
    scalar,
)  # fmt: skip
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHARED_LIMIT = 227 * 1024
SHARED_BASE = 1024  # what the device keeps for itself comes first, so 0 is nobody's address
WINDOWS = {"shared": 1 << 56, "local": 1 << 57, "param": 1 << 58}  # of generic addresses; the host's lie far below
BATCH_LANES = 4096
ENDLESS = 10_000_000  # how often a launch may come to the same instruction
LOWEST = 4096  # no host address is below
_BYTES = np.ctypeslib.as_array((ctypes.c_uint8 * (2**47 - 2 * LOWEST)).from_address(LOWEST))
HOST = {size: _BYTES.view(UNSIGNED[size * 8]) for size in (1, 2, 4, 8)}

# What is known of a byte of shared memory: that it holds a value, that the warp (number + 1) in the low bits wrote it
# since the last barrier, and who else touched it. A copy in flight writes, but holds no value yet.
HOLDS, WRITTEN, MANY = 0x80, 0x40, 0x3F
REPEAT = {1: 1, 2: 0x0101, 4: 0x01010101, 8: 0x0101010101010101}
COMBINATIONS = [a | b | c for a in (0, HOLDS) for b in (0, WRITTEN) for c in (0, MANY)]
EVERY = {
    unit: {known: scalar(known * repeat, UNSIGNED[unit * 8]) for known in COMBINATIONS}
    for unit, repeat in REPEAT.items()
}
SHIFTS = {size: scalar(size.bit_length() - 1, INT64) for size in (1, 2, 4, 8)}
ONE = scalar(1, INT64)
SHARED_BEGIN = scalar(SHARED_BASE, UINT64)


class Fault(Exception):
    """What a kernel may not do; says which kernel, instruction, line of the PTX, block and thread."""


def aligned(addresses: Array, size: int, name: str = "address") -> None:
    bad = addresses & np.uint64(size - 1) != 0
    if np.count_nonzero(bad):
        at = first(bad)
        raise LaneFault(f"{name} {int(addresses[at]):#x} is not a multiple of {size}", at)


class Memory:
    """The global memory that kernels may touch, as blocks of host memory."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        self._storages: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self._bounds: tuple[list[int], list[int]] | None = None
        self._arrays: tuple[Array, Array] = (np.zeros(0, UINT64), np.zeros(0, UINT64))

    @staticmethod
    def recording() -> Recorder:
        """Memory that knows, while it is active as a context, every tensor that torch takes or returns."""
        return Recorder()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def add(self, address: int, size: int) -> None:
        self._blocks[address] = max(size, self._blocks.get(address, 0))
        self._bounds = None

    def add_tensor(self, tensor: torch.Tensor) -> None:
        """The whole storage of a CPU tensor, for as long as it lives."""
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        reference = StorageWeakRef(storage)
        known = self._storages.get(reference.cdata)
        if known is None or known[1:] != (address, size) or known[0].expired():
            self._storages[reference.cdata] = (reference, address, size)
            self._bounds = None

    def refresh(self) -> None:
        """Forget the tensors that died, and order the rest."""
        dead = [key for key, (reference, *_) in self._storages.items() if reference.expired()]
        for key in dead:
            del self._storages[key]
        if self._bounds is not None and not dead:
            return
        blocks = sorted([*self._blocks.items(), *((address, size) for _, address, size in self._storages.values())])
        starts: list[int] = []
        ends: list[int] = []
        for address, size in blocks:
            if not size:
                continue
            if starts and address < ends[-1]:
                ends[-1] = max(ends[-1], address + size)
            else:
                starts.append(address)
                ends.append(address + size)
        self._bounds = (starts, ends)
        self._arrays = (np.array(starts, UINT64), np.array(ends, UINT64))

    def locate(self, addresses: Array, size: int, whole: int) -> tuple[Array, Array]:
        """Index of elements of `size` bytes, and the host memory that it is an index of.

        Raises LaneFault for the first address from which `whole` bytes are not in one block, or that is not aligned.
        """
        assert self._bounds is not None
        starts, ends = self._bounds
        block = bisect.bisect_right(starts, int(addresses[0])) - 1
        if block >= 0:
            start, length = starts[block], ends[block] - starts[block]
            offsets = addresses - scalar(start, UINT64)
            spread = int(np.bitwise_or.reduce(offsets))  # no offset is larger, or less aligned
            if not (start | spread) & (whole - 1) and (
                spread + whole <= length or int(np.maximum.reduce(offsets)) + whole <= length
            ):
                return offsets.view(INT64) >> SHIFTS[size], HOST[size][(start - LOWEST) // size :]
        aligned(addresses, whole)
        self.check(addresses, whole)
        return (addresses - np.uint64(LOWEST)).view(INT64) >> SHIFTS[size], HOST[size]

    def check(self, addresses: Array, size: int) -> None:
        """Raise LaneFault for the first address from which `size` bytes are not in one block."""
        assert self._bounds is not None
        starts, ends = self._bounds
        low, high = int(addresses.min()), int(addresses.max())
        block = bisect.bisect_right(starts, low) - 1
        if block >= 0 and high + size <= ends[block]:
            return
        firsts, lasts = self._arrays
        if not len(firsts):
            raise LaneFault(f"{size} bytes at {low:#x}, and there is no memory")
        blocks = np.searchsorted(firsts, addresses, "right").astype(INT64) - 1
        bad = (blocks < 0) | (addresses > np.uint64(2**47)) | (addresses + np.uint64(size) > lasts[blocks])
        if np.count_nonzero(bad):
            at = first(bad)
            address = int(addresses[at])
            block = bisect.bisect_right(starts, address) - 1
            where = f"before every block, the first of which is at {starts[0]:#x}"
            if block >= 0:
                begin, length = starts[block], ends[block] - starts[block]
                where = f"{address - begin} bytes from the start of a block of {length} at {begin:#x}"
            raise LaneFault(f"{size} bytes at {address:#x} are outside memory: {where}", at)


class Recorder(Memory):
    """Memory with a dispatch mode: see Memory.recording()."""

    def __enter__(self) -> Recorder:
        self._mode = _RecordingMode(self)
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        self._mode.__exit__(*exception)  # type: ignore[no-untyped-call]


class _RecordingMode(TorchDispatchMode):
    def __init__(self, memory: Memory):
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = memory

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs))
        if function.namespace in ("aten", "prim", "prims"):
            result = function(*args, **(kwargs or {}))
        else:  # operators written in Python: also what they make on the way
            with self:
                result = function.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **(kwargs or {}))
        self._note(result)
        return result

    def _note(self, values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout == torch.strided:
                self.memory.add_tensor(value)


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


# ------------------------------------------------------------------------------------------------------------- parsing


@dataclass
class Instruction:
    text: str
    line: int
    opcode: str
    predicate: tuple[int, bool] | None = None
    step: Step | None = None
    reads: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    copy: int | None = None  # the register that a plain mov copies, whether or not it was ever written
    control: str = ""  # branch, exit, barrier or warp: what ends a run
    target: str = ""
    members: int | None = None
    barrier: int = 0
    reduction: tuple[str, int, bool, int] | None = None


@dataclass
class Run:
    """Instructions in a row, of which only the last may go elsewhere or wait."""

    instructions: list[Instruction] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    of_step: list[Instruction] = field(default_factory=list)
    end: Instruction | None = None
    target: int = -1


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


SPECIALS = {"%tid", "%ntid", "%ctaid", "%nctaid"}
SINGLE_SPECIALS = {"%laneid", "%warpid", "%nwarpid", "%smid", "%nsmid", "%gridid", "%lanemask_eq", "%lanemask_le",
                   "%lanemask_lt", "%lanemask_ge", "%lanemask_gt", "%dynamic_smem_size", "%total_smem_size", "%clock",
                   "%clock64", "%globaltimer"}  # fmt: skip
STATEMENT = re.compile(
    r"\s*(?:(?P<label>[\w$.%]+)\s*:(?!:)|(?P<brace>[{}])|(?P<line>\.(?:loc|file)\b[^\n]*)|(?P<statement>[^;]+);|;|$)"
)
INSTRUCTION = re.compile(r"(?:@(!?)\s*([\w%$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
VARIABLE = re.compile(r"\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*((?:\[\s*\d*\s*\])*)")
NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")


def split_operands(text: str) -> list[Any]:
    """Operands as strings, vectors {a, b} as lists, pairs a|b as tuples."""
    found: list[Any] = []
    for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", text):
        part = part.strip()
        if part.startswith("{"):
            found.append([x.strip() for x in part[1:-1].split(",")])
        elif "|" in part and not part.startswith("["):
            found.append(tuple(x.strip() for x in part.split("|")))
        else:
            found.append(part)
    return found


class Decoder:
    """The names and registers of one kernel, while its instructions become steps."""

    windows = WINDOWS

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.scopes: list[dict[str, tuple[int, int]]] = [{}]
        self.names: list[str] = []
        self.widths: list[int] = []
        self.constants: dict[tuple[bytes, str], int] = {}
        self.fixed: dict[int, Array] = {}
        self.specials: dict[str, int] = {}
        self.symbols: dict[str, int] = {x.name: WINDOWS["param"] + x.offset for x in kernel.parameters}
        self.scratch: dict[int, int] = {}
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.current = Instruction("", 0, "")
        self.shared_bytes = self.local_bytes = 0

    # What decoders of instructions ask

    def _slot(self, name: str, bits: int) -> int:
        self.names.append(name)
        self.widths.append(bits)
        return len(self.names) - 1

    def register(self, name: str) -> tuple[int, int] | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def bits(self, operand: str, otherwise: int) -> int:
        found = self.register(operand)
        return found[1] if found else otherwise

    def _check(self, operand: str, bits: int, kind: str, loose: bool) -> None:
        wanted = 1 if kind == "pred" else TYPES[kind].itemsize * 8
        if bits != wanted and not (loose and bits > wanted > 1):
            raise ValueError(f"{operand} has {bits} bits, and {kind} does not")

    def source(self, operand: str, kind: str, loose: bool = False, copies: bool = False) -> int:
        """The slot that holds an operand."""
        found = self.register(operand)
        if found is not None:
            self._check(operand, found[1], kind, loose)
            if copies:
                self.current.copy = found[0]
            else:
                self.current.reads.append(found[0])
            return found[0]
        if operand in SINGLE_SPECIALS or operand.rsplit(".", 1)[0] in SPECIALS:
            if operand not in self.specials:
                self.specials[operand] = self._slot(operand, 64 if "64" in operand or "timer" in operand else 32)
            self._check(operand, self.widths[self.specials[operand]], kind, loose)
            return self.specials[operand]
        return self.constant(self._number(operand, kind), TYPES[kind])

    def _number(self, operand: str, kind: str) -> Any:
        found = re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", operand)
        if found:
            bits = 32 if found[1] in "fF" else 64
            exact = np.array(int(found[2], 16), UNSIGNED[bits])
            own = TYPES[f"f{bits}"]
            return exact.view(TYPES[kind] if TYPES[kind].itemsize == own.itemsize else own)[()]
        value = self.integer(operand)
        if value is None:
            value = self.symbol(operand)
        return value

    def symbol(self, name: str) -> int:
        if name not in self.symbols:
            raise NotImplementedError(f"address of {name!r}")
        return self.symbols[name]

    def integer(self, operand: Any) -> int | None:
        if operand == "WARP_SZ":
            return 32
        if not isinstance(operand, str) or not NUMBER.match(operand):
            return None
        sign, digits = (-1, operand[1:]) if operand.startswith("-") else (1, operand)
        digits = digits.rstrip("U")
        base = 8 if re.fullmatch("0[0-7]+", digits) else 0
        return sign * int(digits, base)

    def constant(self, value: Any, dtype: np.dtype[Any]) -> int:
        if isinstance(value, int) and dtype.kind in "iu":
            bits = dtype.itemsize * 8
            value = np.array(value % (1 << bits), UNSIGNED[bits]).view(dtype)
        elif isinstance(value, int) and dtype.kind == "f" and dtype.itemsize == 2:
            value = np.array(value, UNSIGNED[16]).view(dtype)
        value = np.array(value, dtype)
        key = (value.tobytes(), dtype.str)
        if key not in self.constants:
            self.constants[key] = self._slot(str(value), dtype.itemsize * 8)
            self.fixed[self.constants[key]] = value
        return self.constants[key]

    def destination(self, operand: str, kind: str, loose: bool = False) -> int:
        bits = 1 if kind == "pred" else TYPES[kind].itemsize * 8
        if operand == "_":
            if bits not in self.scratch:
                self.scratch[bits] = self._slot("_", bits)
            return self.scratch[bits]
        found = self.register(operand)
        if found is None:
            raise ValueError(f"{operand} is no register")
        self._check(operand, found[1], kind, loose)
        self.current.writes.append(found[0])
        return found[0]

    def predicate(self, operand: str) -> tuple[int, bool]:
        return self.source(operand.lstrip("!"), "pred"), operand.startswith("!")

    def address(self, operand: str, space: str) -> tuple[int | None, int]:
        """The register of a base, or None, and what is added to it."""
        found = re.fullmatch(r"\[\s*([\w%$.-]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        if not found:
            raise NotImplementedError(f"address {operand}")
        offset = self.integer(found[2]) if found[2] else 0
        register = self.register(found[1])
        if offset is None:
            raise NotImplementedError(f"address {operand}")
        if register is not None:
            if register[1] not in (32, 64):
                raise ValueError(f"address in {register[1]} bits")
            self.current.reads.append(register[0])
            return register[0], offset
        absolute = self.integer(found[1])
        return None, (self.symbol(found[1]) if absolute is None else absolute) + offset

    # The kernel's text

    def decode(self) -> None:
        kernel = self.kernel
        body = kernel.text[kernel.begin : kernel.end]
        self._lay_out(body)
        self._statements(body)

    def _lay_out(self, body: str) -> None:
        """Give addresses to variables: static shared memory, that of unknown size after it, local memory."""
        used = set(re.findall(r"[\w$]+", re.sub(r"\.loc[^\n]*", "", body)))
        unsized = []
        for found in VARIABLE.finditer(self.kernel.module.declarations + body):
            space, alignment, kind, name, extents = found.groups()
            size = TYPES[kind].itemsize
            for count in re.findall(r"\[\s*(\d*)\s*\]", extents):
                size *= int(count or 0)
            align = int(alignment or TYPES[kind].itemsize)
            if name in used and space == "local":
                self.local_bytes = -(-self.local_bytes // align) * align
                self.symbols[name] = self.local_bytes
                self.local_bytes += size
            elif name in used:
                self.shared_bytes = -(-self.shared_bytes // align) * align
                self.symbols[name] = SHARED_BASE + self.shared_bytes
                self.shared_bytes += size
                unsized += [] if size else [(name, align)]
        for _, align in unsized:
            self.shared_bytes = -(-self.shared_bytes // align) * align
        self.symbols.update({name: SHARED_BASE + self.shared_bytes for name, _ in unsized})

    def _statements(self, body: str) -> None:
        position = 0
        while position < len(body):
            found = STATEMENT.match(body, position)
            assert found is not None
            start, position = found.start(), found.end()
            if found["label"]:
                self.labels[found["label"]] = len(self.instructions)
            elif found["brace"] == "{":
                self.scopes.append({})
            elif found["brace"] == "}":
                self.scopes.pop()
            elif found["statement"]:
                start = found.start("statement")
                self._statement(found["statement"].strip(), start)

    def _statement(self, text: str, position: int) -> None:
        if text.startswith(".reg"):
            for kind, names in re.findall(r"\.reg\s+\.(\w+)\s+(.*)", text, re.DOTALL):
                bits = 1 if kind == "pred" else TYPES[kind].itemsize * 8
                for name in names.split(","):
                    stem, _, count = name.strip().rstrip(">").partition("<")
                    every = [f"{stem}{i}" for i in range(int(count))] if count else [stem]
                    self.scopes[-1].update({one: (self._slot(one, bits), bits) for one in every})
            return
        if text.startswith("."):
            if not VARIABLE.match(text) and not text.startswith((".pragma", ".noreturn")):
                raise NotImplementedError(f"{self.kernel.name}: directive {text}")
            return
        found = INSTRUCTION.fullmatch(text)
        line = self.kernel.module.line(self.kernel.begin + position)
        shown = " ".join(text.split())
        if found is None:
            raise NotImplementedError(f"{self.kernel.name}, line {line}: {shown}")
        self.current = Instruction(shown, line, found[3])
        try:
            if found[2]:
                register = self.register(found[2])
                if register is None:
                    raise ValueError(f"{found[2]} is no register")
                self.current.predicate = (register[0], bool(found[1]))
            self._instruction(found[3].split("."), split_operands(found[4]))
        except (NotImplementedError, ValueError, KeyError, IndexError) as error:
            raise NotImplementedError(f"{self.kernel.name}, line {line}: {shown}: {error!r}") from error
        self.instructions.append(self.current)

    def _instruction(self, parts: list[str], operands: list[Any]) -> None:
        name, modifiers, made = parts[0], parts[1:], self.current
        if name == "bra":
            made.control, made.target = "branch", operands[0]
        elif name in ("ret", "exit"):
            made.control = "exit"
        elif name in ("bar", "barrier") and modifiers[:2] == ["warp", "sync"]:
            made.control, made.members = "warp", self.source(operands[0], "u32")
            made.step = lambda s: None
        elif name in ("bar", "barrier"):
            self._barrier(modifiers, operands)
        else:
            decoder = DECODERS.get(name)
            if decoder is None:
                raise NotImplementedError(f"opcode {'.'.join(parts)}")
            made.step = decoder(self, name, modifiers, operands)
            if name in ("mma", "ldmatrix"):
                made.control = "warp"
            elif name in ("shfl", "redux", "vote"):
                made.control = "warp"
                made.members = self.source(operands[-1], "u32")
        if made.predicate is not None and made.control in ("warp", "barrier"):
            raise NotImplementedError("predicate on an instruction of a warp or block")

    def _barrier(self, modifiers: list[str], operands: list[Any]) -> None:
        made, kinds = self.current, {"sync", "red", "cta", "aligned", "or", "and", "popc", "pred", "u32"}
        if set(modifiers) - kinds or not {"sync", "red"} & set(modifiers):
            raise NotImplementedError(f"barrier {modifiers}")
        made.control = "barrier"
        reduces = "red" in modifiers
        number = self.integer(operands[1 if reduces else 0])
        if number is None or len(operands) > (3 if reduces else 1):
            raise NotImplementedError("barrier with a count or with its number in a register")
        made.barrier = number
        if reduces:
            operation = next(x for x in modifiers if x in ("or", "and", "popc"))
            slot, negated = self.predicate(operands[2])
            made.reduction = (operation, slot, negated, self.destination(operands[0], modifiers[-1]))


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
                batch = Batch(self, grid, block, chosen, parameters, total, shared_bytes, memory, seed)
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


class Batch:
    """Blocks that run together: `R` holds the registers, `mask` the lanes that execute (None: all of them)."""

    def __init__(
        self, kernel: Kernel, grid: tuple[int, int, int], block: tuple[int, int, int], chosen: range, parameters: bytes,
        shared: int, dynamic: int, memory: Memory, seed: int,
    ):  # fmt: skip
        self.kernel, self.program, self.memory = kernel, kernel.program, memory
        self.block_shape, self.grid, self.chosen, self.parameters = block, grid, chosen, parameters
        threads = block[0] * block[1] * block[2]
        self.threads = -(-threads // 32) * 32
        self.blocks = len(chosen)
        self.size = self.blocks * self.threads
        self.random = np.random.default_rng((seed, chosen.start))
        self.mask: Array | None = None
        self._lanes: tuple[Any, Array] = (None, np.zeros(0, INT64))
        thread = np.tile(np.arange(self.threads), self.blocks)
        self.lane_in_warp = thread % 32
        self.live = thread < threads
        self._live_bits: Array | None = None
        self.plans: dict[Any, Any] = {}
        self._garbage: dict[Any, Array] = {}
        self.barriers = 0
        self._registers(thread, shared, dynamic)
        self.written = {slot: np.zeros(self.size, BOOL) for slot in self.program.tracked}
        self._shared(thread, shared)
        self.local_stride = -(-self.program.local_bytes // 16) * 16
        self.local = self.random.integers(0, 256, self.size * self.local_stride, np.uint8)
        self.copies: list[tuple[Array, Array, Array, Array]] = []  # lanes, places, data, groups
        self.committed = np.zeros(self.size, INT64)
        self.waiting: dict[int, Array] = {}
        self.parked: dict[int, Array] = {}
        self.arrived: dict[int, Array] = {}
        self.at_barrier: dict[int, Array] = {}

    def _registers(self, thread: Array, shared: int, dynamic: int) -> None:
        program = self.program
        if self.size not in program.constants:
            constants: list[Array | None] = [None] * len(program.names)
            for slot, value in program.fixed.items():
                constants[slot] = np.full(self.size, value)
            program.constants[self.size] = constants
        self.R: list[Any] = list(program.constants[self.size])
        index = np.repeat(np.array(self.chosen), self.threads)
        bx, by, _ = self.block_shape
        gx, gy, _ = self.grid
        vectors = {
            "%tid": (thread % bx, thread // bx % by, thread // (bx * by)),
            "%ctaid": (index % gx, index // gx % gy, index // (gx * gy)),
            "%ntid": self.block_shape, "%nctaid": self.grid,
        }  # fmt: skip
        one = np.uint64(1) << self.lane_in_warp.astype(UINT64)
        singles: dict[str, Any] = {
            "%laneid": self.lane_in_warp, "%warpid": thread // 32, "%nwarpid": self.threads // 32,
            "%dynamic_smem_size": dynamic, "%total_smem_size": shared, "%lanemask_eq": one,
            "%lanemask_lt": one - 1, "%lanemask_le": 2 * one - 1,
            "%lanemask_ge": 2**32 - one, "%lanemask_gt": 2**32 - 2 * one,
        }  # fmt: skip
        for name, slot in program.specials.items():
            stem, _, axis = name.partition(".")
            value = vectors[stem]["xyz".index(axis)] if axis else singles.get(name, 0)
            made = np.empty(self.size, UNSIGNED[program.widths[slot]])
            made[:] = value
            self.R[slot] = made

    def _shared(self, thread: Array, shared: int) -> None:
        self.shared_bytes, self.shared_stride = shared, -(-shared // 16) * 16
        data = self.random.integers(0, 256, self.blocks * self.shared_stride, np.uint8)
        self.shared = {size: data.view(UNSIGNED[size * 8]) for size in (1, 2, 4, 8)}
        state = np.zeros_like(data)
        self.state = {size: state.view(UNSIGNED[size * 8]) for size in REPEAT}
        self.block_base = np.repeat(np.arange(self.blocks) * self.shared_stride, self.threads)
        warp = thread // 32 + 1
        tags = (warp * REPEAT[8]).astype(UINT64)  # in all bytes of a word
        self.tags = {size: tags.astype(UNSIGNED[size * 8]) for size in REPEAT}

    # Registers

    def garbage(self, dtype: np.dtype[Any]) -> Array:
        if dtype not in self._garbage:
            made = self.random.integers(0, 256, self.size * dtype.itemsize, np.uint8)
            self._garbage[dtype] = (made & 1).view(BOOL) if dtype is BOOL else made.view(dtype)
        return self._garbage[dtype]

    def put(self, slot: int, value: Array) -> None:
        """Write a register of the active lanes."""
        if self.mask is not None:
            old = self.R[slot]
            if old is None:
                old = self.garbage(value.dtype)
            elif old.dtype is not value.dtype:
                old = old.view(value.dtype)
            value = np.where(self.mask, value, old)
        self.R[slot] = value

    def put_lanes(self, slot: int, value: Array, lanes: Array | None) -> None:
        if lanes is None:
            self.R[slot] = value
            return
        old = self.R[slot]
        made = self.garbage(value.dtype).copy() if old is None else old.view(value.dtype).copy()
        made[lanes] = value
        self.R[slot] = made

    def put_warps(self, slot: int, value: Array, warps: Array) -> None:
        if self.mask is None:
            self.R[slot] = value.reshape(-1)
            return
        old = self.R[slot]
        made = self.garbage(value.dtype).copy() if old is None else old.view(value.dtype).copy()
        made.reshape(-1, 32)[warps] = value
        self.R[slot] = made

    def lanes(self) -> Array | None:
        """Numbers of the active lanes, None for all."""
        if self.mask is None:
            return None
        if self._lanes[0] is not self.mask:
            self._lanes = (self.mask, np.flatnonzero(self.mask))
        return self._lanes[1]

    def parameter(self, address: int, dtype: np.dtype[Any]) -> Array:
        offset = address - WINDOWS["param"]
        if not 0 <= offset <= len(self.parameters) - dtype.itemsize or offset % dtype.itemsize:
            raise LaneFault(f"{dtype.itemsize} bytes at {offset} of the parameters' {len(self.parameters)}")
        return np.full(self.size, np.frombuffer(self.parameters, dtype, 1, offset)[0])

    # Warps

    def active_bits(self, mask: Array | None = None) -> Array:
        mask = self.mask if mask is None else mask
        if mask is None:
            return np.full(self.size // 32, 0xFFFFFFFF, UINT32)
        return np.packbits(mask, bitorder="little").view(UINT32)

    def live_bits(self) -> Array:
        if self._live_bits is None:
            self._live_bits = np.packbits(self.live, bitorder="little").view(UINT32)
        return self._live_bits

    def named_by_warp(self, named: Array, active: Array) -> Array:
        return np.where(active.reshape(-1, 32), named, np.uint32(0)).max(1)

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
            raise LaneFault(what, self._position(at))
        live = np.repeat(self.live_bits(), 32)
        if made.members is None and np.count_nonzero(active & (live != all_bits)):
            at = first(active & (live != all_bits))
            raise LaneFault(f"lanes {~live[at]:#010x} of the warp do not exist or exited", self._position(at))
        missing = active & (named & live & ~np.repeat(bits, 32) != 0)
        if not np.count_nonzero(missing):
            return True
        late = np.repeat(missing.reshape(-1, 32).any(1), 32) & active
        self._add(self.parked, index, late)
        self.mask = active & ~late
        return bool(np.count_nonzero(self.mask))

    def _position(self, lane: int) -> int:
        return lane if self.mask is None else int(np.count_nonzero(self.mask[:lane]))

    # Memory

    def addresses(self, base: int | None, offset: int, lanes: Array | None) -> Array:
        if base is None:
            return np.full(self.size if lanes is None else len(lanes), offset, UINT64)
        value = self.R[base]
        if value.dtype.kind != "u":
            value = value.view(UNSIGNED[value.itemsize * 8])
        if lanes is not None:
            value = value[lanes]
        if offset:
            value = value + value.dtype.type(offset % (1 << value.itemsize * 8))
        return value if value.dtype is UINT64 else value.astype(UINT64)

    def space(self, addresses: Array) -> tuple[str, Array]:
        """What generic addresses are in, "generic" for several spaces, and where there."""
        low, high = int(addresses.min()), int(addresses.max())
        if high < 1 << 48:
            return "global", addresses
        for space, window in WINDOWS.items():
            if low >= window and high < 2 * window:
                return space, addresses if space == "param" else addresses - np.uint64(window)
        known = addresses < 1 << 48
        for window in WINDOWS.values():
            known |= (addresses >= window) & (addresses < 2 * window)
        if np.count_nonzero(known) < known.size:
            raise LaneFault(f"address {int(addresses[first(~known)]):#x} is in no space", first(~known))
        return "generic", addresses

    def _by_space(self, addresses: Array, lanes: Array | None, access: Callable[[Array, Array, Array], None]) -> None:
        """Access each space that generic addresses are in, by positions, addresses and lanes."""
        lanes = np.arange(self.size) if lanes is None else lanes
        spaces = addresses >> np.uint64(56)
        for space in np.unique(spaces):
            at = np.flatnonzero(spaces == space)
            try:
                access(at, addresses[at], lanes[at])
            except LaneFault as fault:
                fault.position = int(at[fault.position])
                raise

    def load(self, space: str, addresses: Array, size: int, count: int) -> list[Array]:
        return self._load(space, addresses, size, count, self.lanes())

    def _load(self, space: str, addresses: Array, size: int, count: int, lanes: Array | None) -> list[Array]:
        whole = size * count
        if space == "generic":
            space, addresses = self.space(addresses)
        if space == "generic":
            values = [np.empty(len(addresses), UNSIGNED[size * 8]) for _ in range(count)]

            def read(at: Array, some: Array, their: Array) -> None:
                for value, found in zip(values, self._load(space, some, size, count, their), strict=True):
                    value[at] = found

            self._by_space(addresses, lanes, read)
            return values
        if space == "param":
            return self._load_parameters(addresses, size, count)
        if space == "shared":
            places = self.shared_places(addresses, whole, lanes)
            self.watch_reads(places, whole, lanes)
            index, data = places >> SHIFTS[size], self.shared[size]
        else:
            index, data = self._places(space, addresses, size, whole, lanes)
        return [data[part:][index] if part else data[index] for part in range(count)]

    def store(self, space: str, addresses: Array, size: int, values: list[Array]) -> None:
        self._store(space, addresses, size, values, self.lanes())

    def _store(self, space: str, addresses: Array, size: int, values: list[Array], lanes: Array | None) -> None:
        whole, together = size * len(values), None
        if space == "generic":
            space, addresses = self.space(addresses)
        if space == "generic":

            def write(at: Array, some: Array, their: Array) -> None:
                self._store(space, some, size, [value[at] for value in values], their)

            self._by_space(addresses, lanes, write)
            return
        if space == "shared":
            places = self.shared_places(addresses, whole, lanes)
            together = self.watch_writes(places, whole, lanes, HOLDS, values)
            index, data = places >> SHIFTS[size], self.shared[size]
        else:
            index, data = self._places(space, addresses, size, whole, lanes)
        for part, value in enumerate(values):
            data[part:][index] = value
        if together is not None:
            for part, value in enumerate(values):
                lost = together[data[index[together] + part] != value[together]]
                if len(lost):
                    place = self._shared_offset(index[lost[0]] * size)
                    what = f"race: two warps write different values to shared memory at {place}"
                    raise LaneFault(what, int(lost[0]))

    def _places(self, space: str, addresses: Array, size: int, whole: int, lanes: Array | None) -> tuple[Array, Array]:
        """Index of elements, and what it is an index of."""
        if space == "global":
            return self.memory.locate(addresses, size, whole)
        if space != "local":
            raise LaneFault(f"access to {space} memory")
        aligned(addresses, whole)
        if int(addresses.max()) + whole > self.program.local_bytes:
            raise LaneFault(f"address {int(addresses.max()):#x} of local memory", int(addresses.argmax()))
        lane = np.arange(self.size) if lanes is None else lanes
        return (lane * self.local_stride + addresses.view(INT64)) // size, self.local.view(UNSIGNED[size * 8])

    def _load_parameters(self, addresses: Array, size: int, count: int) -> list[Array]:
        offsets = (addresses - np.uint64(WINDOWS["param"])).view(INT64)
        bad = (offsets < 0) | (offsets + size * count > len(self.parameters)) | (offsets % (size * count) != 0)
        if np.count_nonzero(bad):
            at = first(bad)
            raise LaneFault(f"{size * count} bytes at {int(offsets[at])} of the parameters' {len(self.parameters)}", at)
        padded = np.frombuffer(self.parameters + bytes(-len(self.parameters) % size), UNSIGNED[size * 8])
        return [padded[offsets // size + part] for part in range(count)]

    def shared_places(self, addresses: Array, size: int, lanes: Array | None, name: str = "address") -> Array:
        """Where bytes are in the batch's shared memory."""
        offsets = addresses - SHARED_BEGIN
        spread = int(np.bitwise_or.reduce(offsets))  # no offset is larger, or less aligned
        if spread & (size - 1):
            aligned(addresses, size, name)
        if spread + size > self.shared_bytes and int(np.maximum.reduce(offsets)) + size > self.shared_bytes:
            at = first((offsets + np.uint64(size) > self.shared_bytes) | (addresses < SHARED_BEGIN))
            place = int(addresses[at]) - SHARED_BASE
            raise LaneFault(f"{size} bytes at {place} of the {self.shared_bytes} of shared memory", at)
        return offsets.view(INT64) + (self.block_base if lanes is None else self.block_base[lanes])

    def _words(self, places: Array, size: int, lanes: Array | None) -> tuple[Array, Array, Array, int]:
        """Index of what is known of words of shared memory, that, the tags of the lanes, bytes of a word."""
        unit = min(size, 8)
        index, tags = places >> SHIFTS[unit], self.tags[unit]
        tags = tags if lanes is None else tags[lanes]
        if size > unit:
            index, tags = np.concatenate((index, index + ONE)), np.concatenate((tags, tags))
        return index, self.state[unit], tags, unit

    def watch_reads(self, places: Array, size: int, lanes: Array | None) -> None:
        index, state, tags, unit = self._words(places, size, lanes)
        word = EVERY[unit]
        found, own = state[index], tags | word[HOLDS]
        others = (found & word[HOLDS | MANY]) != own
        if not np.count_nonzero(others):
            return
        clean = ((found & word[HOLDS | WRITTEN]) == word[HOLDS]) | ~others
        if np.count_nonzero(clean) < clean.size:
            self._watch_bytes_read(index, state, tags, unit, len(places))
            return
        touched = found & word[MANY]
        simple = (touched == tags) | (touched == word[0])
        if np.count_nonzero(simple) == simple.size:
            fresh = found | tags
        else:
            rest = touched[~simple].view(np.uint8).reshape(-1, unit)
            if np.count_nonzero(rest != rest[:, :1]):
                self._watch_bytes_read(index, state, tags, unit, len(places))
                return
            fresh = found | np.where(simple, tags, word[MANY])
        state[index] = fresh
        again = state[index]
        both = again != fresh
        if np.count_nonzero(both):
            state[index[both]] = again[both] | word[MANY]

    def _watch_bytes_read(self, index: Array, state: Array, tags: Array, unit: int, lanes: int) -> None:
        known, tag = state[index].view(np.uint8).reshape(-1, unit), tags.view(np.uint8).reshape(-1, unit)
        touched = known & MANY
        if np.count_nonzero(known < HOLDS):
            at, byte = (int(x[0]) for x in np.nonzero(known < HOLDS))
            place = int(index[at]) * unit + byte
            what = "a copy to it is in flight" if self._in_flight(place) else "it was never written"
            raise LaneFault(f"reads shared memory at {self._shared_offset(place)}, but {what}", at % lanes)
        race = (known & WRITTEN != 0) & (touched != tag)
        if np.count_nonzero(race):
            self._race("read", index, known, race, unit, lanes)
        fresh = np.where(touched == 0, tag | HOLDS, np.where(touched == tag, known, MANY | HOLDS))
        state[index] = fresh.view(state.dtype).reshape(-1)
        again = state[index].view(np.uint8).reshape(-1, unit)
        if np.count_nonzero(again != fresh):
            both = (again != fresh).any(1)
            mixed = np.where(again != fresh, MANY | HOLDS, again)[both]
            state[index[both]] = mixed.view(state.dtype).reshape(-1)

    def watch_writes(
        self, places: Array, size: int, lanes: Array | None, holds: int, values: list[Array]
    ) -> Array | None:
        """Note writes, and return the lanes that write with another warp's at once: all must write the same.

        Two warps may write the same value, as they do where Triton has several warps hold the same elements.
        """
        index, state, tags, unit = self._words(places, size, lanes)
        fresh = tags | EVERY[unit][WRITTEN | holds]
        touched = state[index] & EVERY[unit][MANY]
        if np.count_nonzero(touched) and np.count_nonzero((touched != 0) & (touched != tags)):
            known, tag = state[index].view(np.uint8).reshape(-1, unit), tags.view(np.uint8).reshape(-1, unit)
            others = (known & MANY != 0) & (known & MANY != tag)
            here = places + np.arange(0, size, unit)[:, None]
            present = self.shared[1][here.reshape(-1, 1) + np.arange(unit)]
            written = np.stack(values, axis=1).view(np.uint8).reshape(len(places), size // unit, unit)
            written = written.swapaxes(0, 1).reshape(-1, unit)
            race = others & ((known & (WRITTEN | HOLDS) != WRITTEN | HOLDS) | (present != written))
            if np.count_nonzero(race):
                self._race("write", index, known, race, unit, len(places))
            many = np.where(others, np.uint8(MANY), np.uint8(0))
            fresh = (fresh.view(np.uint8).reshape(-1, unit) | many).view(fresh.dtype).reshape(-1)
        state[index] = fresh
        again = state[index]
        both = again != fresh
        if not np.count_nonzero(both):
            return None
        other = np.flatnonzero(both)
        found, mine = again[other].view(np.uint8), fresh[other].view(np.uint8)
        state[index[other]] = np.where(found != mine, found | np.uint8(MANY), found).view(state.dtype)
        return np.unique(other % len(places))

    def _race(self, what: str, index: Array, known: Array, race: Array, unit: int, lanes: int) -> None:
        at = first(race.any(1))
        byte = first(race[at])
        other = int(known[at, byte])
        who = f"warp {(other & MANY) - 1}" if other & MANY != MANY else "several warps"
        did = "wrote" if other & WRITTEN else "read"
        place = self._shared_offset(int(index[at]) * unit + byte)
        message = f"race: {what} of shared memory at {place}, which {who} {did} since the last barrier"
        raise LaneFault(message, at % lanes)

    def _shared_offset(self, place: int) -> int:
        return int(place) % self.shared_stride

    def atomic_cell(self, space: str, addresses: Array, i: int, dtype: np.dtype[Any]) -> Array:
        address, lanes = addresses[i : i + 1], self.lanes()
        lane = np.array([i]) if lanes is None else lanes[i : i + 1]
        try:
            if space == "generic":
                space, address = self.space(address)
            size = dtype.itemsize
            aligned(address, size)
            if space == "global":
                self.memory.check(address, size)
                at = (int(address[0]) - LOWEST) // size
                return HOST[size][at : at + 1].view(dtype)
            place = int(self.shared_places(address, size, lane)[0])
        except LaneFault as fault:
            raise LaneFault(str(fault), i) from None
        known = self.state[1][place : place + size]
        if (known < HOLDS).any():
            raise LaneFault(f"reads shared memory at {self._shared_offset(place)}, but it was never written", i)
        other = (known & WRITTEN != 0) & (known & MANY != self.tags[1][lane[0]])
        if other.any():
            raise LaneFault(f"race: atomic at {self._shared_offset(place)}, which another warp wrote", i)
        known[:] = HOLDS | MANY
        return self.shared[size][place // size : place // size + 1].view(dtype)

    # Asynchronous copies

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
            raise LaneFault(f"race: two warps copy to shared memory at {self._shared_offset(to[0])} at once")
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
            fault = LaneFault(f"a copy to {self._shared_offset(places[at])} arrives over what was written since")
            fault.position = self._position(int(lanes[at]))
            raise fault
        self.shared[4][index] = data.view(UINT32)
        self.state[4][index] = tags | np.uint32((HOLDS | WRITTEN) * REPEAT[4])

    def _in_flight(self, place: int) -> bool:
        return any(
            np.count_nonzero((places <= place) & (places + data.shape[1] > place)) for _, places, data, _ in self.copies
        )

    # Which lanes run

    def _add(self, groups: dict[int, Array], index: int, mask: Array) -> None:
        groups[index] = groups[index] | mask if index in groups else mask

    def _new_epoch(self, blocks: Array | None) -> None:
        if not self.shared_stride:
            return
        state = self.state[1].reshape(self.blocks, -1)
        if blocks is None:
            state &= HOLDS
        else:
            state[blocks] &= HOLDS

    def _barrier(self, index: int, made: Instruction) -> int:
        if self.mask is None and not self.arrived:
            self.barriers += self.blocks
            self._new_epoch(None)
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
        self._new_epoch(complete)
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
        self.live = self.live & ~(np.ones(self.size, BOOL) if mask is None else mask)
        self._live_bits = None
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
