"""Instructions that compare, choose and move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from machines.ptx.floats import bfloat16_to_float32, flushed
from machines.ptx.instructions.decoders import elementwise, opcode, unsupported
from machines.ptx.values import BOOL, FLOAT32, TYPES, UINT32, UNSIGNED, Array, Step


def unordered(function: Any) -> Callable[[Array, Array], Array]:
    return lambda x, y: np.logical_not(function(x, y))


COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "ne": np.not_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
    "equ": lambda x, y: (x == y) | (x != x) | (y != y), "neu": np.not_equal,
    "ltu": unordered(np.greater_equal), "leu": unordered(np.greater),
    "gtu": unordered(np.less_equal), "geu": unordered(np.less),
    "num": lambda x, y: (x == x) & (y == y), "nan": lambda x, y: (x != x) | (y != y),
}  # fmt: skip


def comparison(d: Any, name: str, kind: str, ftz: bool, a: Any, b: Any) -> tuple[Callable[..., Array], Any, Any]:
    function, dtype = COMPARISONS[name], TYPES[kind]
    if name == "ne" and "f" in kind:
        function = lambda x, y: (x < y) | (x > y)  # noqa: E731
    if kind == "bf16":
        compared = function
        function = lambda x, y: compared(bfloat16_to_float32(x), bfloat16_to_float32(y))  # noqa: E731
    if ftz:
        inner = function
        function = lambda x, y: inner(flushed(x), flushed(y))  # noqa: E731
    return function, (d.source(a, kind), dtype), (d.source(b, kind), dtype)


BOOLEANS: dict[str, Any] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@opcode("setp")
def set_predicate(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    compare, *rest, kind = modifiers
    combine = next((BOOLEANS[x] for x in rest if x in BOOLEANS), None)
    unsupported(set(rest) - set(BOOLEANS) - {"ftz"})
    function, a, b = comparison(d, compare, kind, "ftz" in rest, operands[1], operands[2])
    targets = operands[0] if isinstance(operands[0], tuple) else (operands[0],)
    if combine is None and len(targets) == 1:
        return elementwise(function, d.destination(targets[0], "pred"), a, b)
    third = d.predicate(operands[3]) if combine is not None else None
    slots = [d.destination(x, "pred") for x in targets]

    def step(s: Any) -> None:
        (i, i_type), (j, j_type) = a, b
        result = function(s.R[i].view(i_type), s.R[j].view(j_type))
        for slot, value in zip(slots, (result, ~result), strict=False):
            if third is not None and combine is not None:
                value = combine(value, s.R[third[0]] ^ third[1])
            s.put(slot, value)

    return step


@opcode("set")
def set_value(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    compare, *rest, to, kind = modifiers
    unsupported(set(rest) - {"ftz"})
    function, a, b = comparison(d, compare, kind, "ftz" in rest, operands[1], operands[2])
    if to == "f32":
        return elementwise(lambda x, y: function(x, y).astype(FLOAT32), d.destination(operands[0], to), a, b)
    return elementwise(lambda x, y: -function(x, y).astype(UINT32), d.destination(operands[0], to), a, b)


@opcode("selp")
def select(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    (kind,) = modifiers
    dtype, (chooser, negated) = TYPES[kind], d.predicate(operands[3])
    a, b = (d.source(x, kind, loose=True) for x in operands[1:3])
    if negated:
        a, b = b, a
    to = d.destination(operands[0], kind)
    return elementwise(np.where, to, (chooser, BOOL), (a, dtype), (b, dtype))


@opcode("mov")
def move(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    (kind,) = modifiers
    to, source = operands
    if isinstance(source, list):
        width = TYPES[kind].itemsize * 8 // len(source)
        parts = [d.source(x, f"b{width}") for x in source]
        part, whole = UNSIGNED[width], UNSIGNED[TYPES[kind].itemsize * 8]

        def pack(s: Any) -> None:
            columns = np.stack([s.R[x].view(part) for x in parts], axis=1)
            s.put(target, columns.view(whole).reshape(-1))

        target = d.destination(to, kind)
        return pack
    if isinstance(to, list):
        width = TYPES[kind].itemsize * 8 // len(to)
        targets, a, part = [d.destination(x, f"b{width}") for x in to], d.source(source, kind), UNSIGNED[width]

        def unpack(s: Any) -> None:
            columns = np.ascontiguousarray(s.R[a]).view(part).reshape(-1, len(targets))
            for index, slot in enumerate(targets):
                s.put(slot, np.ascontiguousarray(columns[:, index]))

        return unpack
    a = d.source(source, kind, copies=True)
    slot = d.destination(to, kind)

    def step(s: Any) -> None:
        if s.mask is None:
            s.R[slot] = s.R[a]
        elif s.R[a] is not None:
            s.put(slot, s.R[a])

    return step
