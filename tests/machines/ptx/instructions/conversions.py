"""Instructions that convert numbers and addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from machines.ptx.floats import bfloat16_to_float32, directed, float32_to_bfloat16, flushed, to_integer
from machines.ptx.instructions.choices import move
from machines.ptx.instructions.decoders import elementwise, opcode, simple, unsupported
from machines.ptx.values import FLOAT16, FLOAT32, SIGNED, TYPES, UINT16, UINT32, UNSIGNED, Array, Step

ROUNDINGS: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def saturated(x: Array) -> Array:
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, x.dtype.type(0), x.dtype.type(1)))


def conversion(to: str, source: str, options: set[str]) -> Callable[[Array], Array]:
    to_float, source_float = "f" in to, "f" in source
    rounding = next((ROUNDINGS[x] for x in ROUNDINGS if x in options), None)
    mode = next((x for x in ("rn", "rz", "rm", "rp") if x in options), "rn")
    read: Callable[[Array], Array] = bfloat16_to_float32 if source == "bf16" else lambda x: x
    wide = FLOAT32 if source == "bf16" else TYPES[source]
    function: Callable[[Array], Array]
    if not source_float and not to_float:
        limits = np.iinfo(TYPES[to])
        if "sat" in options:
            bounds = [max(int(limits.min), int(np.iinfo(wide).min)), min(int(limits.max), int(np.iinfo(wide).max))]
            function = lambda x: np.clip(x, *(wide.type(v) for v in bounds)).astype(TYPES[to])  # noqa: E731
        else:
            function = lambda x: x.astype(TYPES[to])  # noqa: E731
    elif not source_float:
        if mode != "rn" or to == "bf16" or (to == "f16" and wide.itemsize > 2):
            raise NotImplementedError(f"conversion of {source} to {to} by {mode}")
        function = lambda x: x.astype(TYPES[to])  # noqa: E731
    elif not to_float:
        if rounding is None:
            raise NotImplementedError("conversion to an integer without its rounding")
        function = to_integer(rounding, TYPES[to], wide)
    elif to == "tf32":
        if "rna" not in options:
            raise NotImplementedError("conversion to tf32 other than by rna")
        function = lambda x: np.where(  # noqa: E731
            np.isnan(x), np.uint32(0x7FFFFFFF), (x.view(UINT32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        )
    elif to == "bf16":
        if mode != "rn" or wide is not FLOAT32:
            raise NotImplementedError(f"conversion of {source} to bf16 by {mode}")
        function = float32_to_bfloat16
    elif rounding is not None:
        function = lambda x: rounding(x).astype(TYPES[to])  # noqa: E731
    elif TYPES[to].itemsize < wide.itemsize:
        function = directed(mode, TYPES[to])
    else:
        function = lambda x: x.astype(TYPES[to])  # noqa: E731
    steps: list[Callable[[Array], Array]] = [read]
    if "ftz" in options and wide is FLOAT32:
        steps.append(flushed)
    if "sat" in options and source_float and to_float:
        steps.append(saturated)
    steps.append(function)
    if "ftz" in options and to == "f32":
        steps.append(flushed)

    def convert(x: Array) -> Array:
        for step in steps:
            x = step(x)
        return x

    return convert


@opcode("cvt")
def convert(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    *rest, to, source = modifiers
    options = set(rest)
    unsupported(options - {"rn", "rz", "rm", "rp", "rna", "ftz", "sat", *ROUNDINGS})
    if to.endswith("x2"):
        half = conversion(to[:-2], source, options)

        def pair(high: Array, low: Array) -> Array:
            high, low = (half(x).view(UINT16).astype(UINT32) for x in (high, low))
            return high << np.uint32(16) | low

        return simple(d, pair, operands, source, to="b32")
    function = conversion(to, source, options)
    a, slot, bits = d.source(operands[1], source, loose=True), d.destination(operands[0], to, loose=True), d.bits
    a_bits, a_type = bits(operands[1], TYPES[source].itemsize * 8), TYPES[source]
    narrow = a_bits != a_type.itemsize * 8
    width = bits(operands[0], TYPES[to].itemsize * 8)
    widen = width != TYPES[to].itemsize * 8
    wide = SIGNED[width] if TYPES[to].kind == "i" else UNSIGNED[width]

    def whole(x: Array) -> Array:
        if narrow:
            x = x.astype(UNSIGNED[a_type.itemsize * 8]).view(a_type)
        x = function(x)
        return (x.view(UINT16) if x.dtype is FLOAT16 and widen else x).astype(wide) if widen else x

    return elementwise(whole, slot, (a, UNSIGNED[a_bits] if narrow else a_type))


@opcode("cvta")
def convert_address(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    space = next(x for x in modifiers if x in ("global", "shared", "local", "param", "const"))
    kind = modifiers[-1]
    window = np.uint64(d.windows.get(space, 0))
    if not window:
        return move(d, name, [kind], operands)
    function = np.subtract if "to" in modifiers else np.add
    return simple(d, lambda x: function(x, window), operands, kind)
