"""From the text of a kernel to instructions, each with the step that does it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from machines.ptx.instructions import DECODERS
from machines.ptx.spaces import SHARED_BASE, WINDOWS
from machines.ptx.values import TYPES, UNSIGNED, Array, Step

if TYPE_CHECKING:
    from machines.ptx.module import Kernel


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
