"""Instructions that load, store and copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from machines.ptx.faults import LaneFault
from machines.ptx.instructions.choices import move
from machines.ptx.instructions.decoders import opcode, unsupported
from machines.ptx.values import SIGNED, TYPES, UINT32, UNSIGNED, Step

CACHING = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "relaxed", "weak", "acquire", "release",
           "gpu", "sys", "cta", "acq_rel", "sc"}  # fmt: skip
SPACES = ("global", "shared", "local", "param", "const")


def access(modifiers: list[str]) -> tuple[str, int, str]:
    """Space, elements and type of a load or store."""
    space = next((x.split("::")[0] for x in modifiers if x.split("::")[0] in SPACES), "generic")
    count = next((int(x[1]) for x in modifiers if x in ("v2", "v4", "v8")), 1)
    known = {"v2", "v4", "v8", *CACHING, *TYPES}
    unsupported({x for x in modifiers if x not in known and "::" not in x and x not in SPACES})
    return space, count, modifiers[-1]


@opcode("ld", "ldu")
def load(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    space, count, kind = access(modifiers)
    targets = operands[0] if isinstance(operands[0], list) else [operands[0]]
    slots = [d.destination(x, kind, loose=True) for x in targets]
    memory, size = TYPES[kind], TYPES[kind].itemsize
    register = [d.bits(x, size * 8) for x in targets]
    wide = [(SIGNED if memory.kind == "i" else UNSIGNED)[b] if b != size * 8 else None for b in register]
    base, offset = d.address(operands[1], space)
    if len(targets) != count:
        raise NotImplementedError(f"{len(targets)} registers for {count} elements")
    if space == "param" and base is None:

        def constant(s: Any) -> None:
            for index, slot in enumerate(slots):
                value = s.parameter(offset + index * size, memory)
                s.put(slot, value if wide[index] is None else value.astype(wide[index]))

        return constant

    def step(s: Any) -> None:
        lanes = s.lanes()
        values = s.load(space, s.addresses(base, offset, lanes), size, count)
        for slot, value, to in zip(slots, values, wide, strict=True):
            s.put_lanes(slot, value if to is None else value.view(memory).astype(to), lanes)

    return step


@opcode("st")
def store(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    space, count, kind = access(modifiers)
    sources = operands[1] if isinstance(operands[1], list) else [operands[1]]
    size = TYPES[kind].itemsize
    slots = [d.source(x, kind, loose=True) for x in sources]
    bits = [d.bits(x, size * 8) for x in sources]
    base, offset = d.address(operands[0], space)
    if len(sources) != count:
        raise NotImplementedError(f"{len(sources)} registers for {count} elements")
    to = UNSIGNED[size * 8]

    def step(s: Any) -> None:
        lanes, values = s.lanes(), []
        for slot, width in zip(slots, bits, strict=True):
            value = s.R[slot].view(UNSIGNED[width])
            value = value if lanes is None else value[lanes]
            values.append(value if width == size * 8 else value.astype(to))
        s.store(space, s.addresses(base, offset, lanes), size, values)

    return step


ATOMICS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda old, new: old + new, "min": min, "max": max, "exch": lambda old, new: new,
    "and": lambda old, new: old & new, "or": lambda old, new: old | new, "xor": lambda old, new: old ^ new,
    "inc": lambda old, top: old.dtype.type(0) if old >= top else old + old.dtype.type(1),
}  # fmt: skip


@opcode("atom", "red")
def atomic(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    space = next((x for x in modifiers if x in ("global", "shared")), "generic")
    operation = next(x for x in modifiers if x in ATOMICS or x == "cas")
    kind = modifiers[-1]
    unsupported(set(modifiers) - {space, operation, kind, *CACHING})
    slot = d.destination(operands[0], kind) if name == "atom" else None
    place, *values = operands[1:] if name == "atom" else operands
    base, offset = d.address(place, space)
    sources, dtype = [d.source(x, kind) for x in values], TYPES[kind]

    def step(s: Any) -> None:
        lanes = s.lanes()
        addresses = s.addresses(base, offset, lanes)
        arguments = [s.R[x].view(dtype) if lanes is None else s.R[x].view(dtype)[lanes] for x in sources]
        result = np.empty(len(addresses), dtype)
        for i in range(len(addresses)):
            old = s.atomic_cell(space, addresses, i, dtype)
            result[i] = before = old[0]
            if operation != "cas":
                old[0] = ATOMICS[operation](before, arguments[0][i])
            elif before == arguments[0][i]:
                old[0] = arguments[1][i]
        if slot is not None:
            s.put_lanes(slot, result, lanes)

    return step


@opcode("cp")
def copy_async(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    if modifiers[0] != "async" or "bulk" in modifiers:
        raise NotImplementedError("copies other than cp.async")
    if "commit_group" in modifiers:
        return lambda s: s.commit_copies()
    if "wait_all" in modifiers:
        return lambda s: s.wait_copies(None)
    if "wait_group" in modifiers:
        left = d.integer(operands[0])
        return lambda s: s.wait_copies(left)
    unsupported({x for x in modifiers if "::" not in x} - {"async", "ca", "cg", "shared", "global"})
    to, to_offset = d.address(operands[0], "shared")
    source, source_offset = d.address(operands[1], "global")
    size = d.integer(operands[2])
    if size not in (4, 8, 16) or ("cg" in modifiers and size != 16):
        raise NotImplementedError(f"asynchronous copy of {size} bytes")
    taken = d.source(operands[3], "u32") if len(operands) > 3 else None

    def step(s: Any) -> None:
        lanes = s.lanes()
        places, addresses = s.addresses(to, to_offset, lanes), s.addresses(source, source_offset, lanes)
        bytes_read = None
        if taken is not None:
            bytes_read = s.R[taken].view(UINT32)
            bytes_read = bytes_read if lanes is None else bytes_read[lanes]
        s.copy_async(places, addresses, size, bytes_read, lanes)

    return step


@opcode("membar", "fence", "prefetch", "prefetchu", "nanosleep", "griddepcontrol", "createpolicy", "discard")
def nothing(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    if name == "createpolicy":
        return move(d, name, ["b64"], [operands[0], "0"])
    return lambda s: None


@opcode("trap")
def trap(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    def step(s: Any) -> None:
        raise LaneFault("trap")

    return step
