"""Instructions that compute: sums, products, shifts, logic, and approximations of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from machines.ptx.floats import canonical, extremum, flushing, fma16, fma32, fma64, widened
from machines.ptx.instructions.decoders import elementwise, opcode, simple, unsupported
from machines.ptx.integers import (
    count_bits,
    divide,
    extract_field,
    insert_field,
    leading_zeros,
    logic3,
    multiply_high,
    permute_bytes,
    reverse_bits,
)
from machines.ptx.values import FLOAT32, FLOAT64, TYPES, UINT16, UINT32, UINT64, UNSIGNED, Array, Step

FLOATS: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs, "div": np.divide,
    "sqrt": np.sqrt, "rcp": np.reciprocal, "fma": fma32, "mad": fma32, "min": extremum("min"), "max": extremum("max"),
}  # fmt: skip
INTEGERS: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "neg": np.negative, "abs": np.abs, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "div": lambda x, y: divide(x, y, False), "rem": lambda x, y: divide(x, y, True),
}  # fmt: skip


def in_float64(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: function(x.astype(FLOAT64)).astype(FLOAT32)


APPROXIMATIONS: dict[str, Callable[[Array], Array]] = {
    "ex2": in_float64(np.exp2), "lg2": in_float64(np.log2), "rsqrt": in_float64(lambda x: 1 / np.sqrt(x)),
    "sin": in_float64(np.sin), "cos": in_float64(np.cos), "tanh": in_float64(np.tanh), "rcp": in_float64(np.reciprocal),
    "sqrt": in_float64(np.sqrt),
}  # fmt: skip


@opcode("add", "sub", "neg", "abs", "min", "max", "div", "rem", "and", "or", "xor", "not", "sqrt", "rcp", "fma",
        "ex2", "lg2", "rsqrt", "sin", "cos", "tanh")  # fmt: skip
def arithmetic(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    *rest, kind = modifiers
    options = set(rest)
    if kind == "pred" or (TYPES[kind].kind in "iu" and "f" not in kind):
        unsupported(options)
        if kind == "pred" and name == "not":
            return simple(d, np.logical_not, operands, kind)
        # wrapping is the same with and without a sign, and numpy is silent about it only without
        unsigned = name in ("add", "sub", "neg") and kind != "pred"
        return simple(d, INTEGERS[name], operands, f"u{TYPES[kind].itemsize * 8}" if unsigned else kind)
    function: Callable[..., Array]
    if name in APPROXIMATIONS and "approx" in options:
        function = APPROXIMATIONS[name]
    elif "NaN" in options:
        function = extremum(name, nan=True)
    else:
        function = FLOATS[name]
    half = "f16" in kind
    if half and name == "fma":
        if kind != "f16":
            raise NotImplementedError("packed fma")
        function = fma16
    elif half:
        if name in ("neg", "abs"):
            sign = np.array(0x80008000 if "x2" in kind else 0x8000, TYPES[kind] if kind != "f16" else UINT16)
            bits = f"b{sign.itemsize * 8}"
            function = (lambda x: x ^ sign) if name == "neg" else (lambda x: x & ~sign)
            return simple(d, function, operands, bits)
        function = widened(function, kind)
    elif name == "fma" and kind == "f64":
        function = fma64
    if "ftz" in options and not half:
        function = flushing(function)
    if name not in ("neg", "abs", "min", "max") and not half:
        function = canonical(function, TYPES[kind])
    unsupported(options - {"rn", "ftz", "approx", "full", "NaN"})
    return simple(d, function, operands, kind)


@opcode("mul", "mad")
def multiplication(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    *rest, kind = modifiers
    if "f" in kind:
        return arithmetic(d, "fma" if name == "mad" else name, modifiers, operands)
    options, dtype = set(rest), TYPES[kind]
    bits = dtype.itemsize * 8
    unsupported(options - {"lo", "hi", "wide"})
    unsigned, result = UNSIGNED[bits], kind
    if "wide" in options:
        result = f"{kind[0]}{2 * bits}"
        wide = TYPES[result]

        def product(x: Array, y: Array) -> Array:
            return np.multiply(x.astype(wide), y.astype(wide))
    elif "hi" in options:
        product = multiply_high
    else:

        def product(x: Array, y: Array) -> Array:
            return np.multiply(x.view(unsigned), y.view(unsigned))

    to = d.destination(operands[0], result)
    factors = [(d.source(x, kind), dtype) for x in operands[1:3]]
    if name == "mul":
        return elementwise(product, to, *factors)
    final = UNSIGNED[TYPES[result].itemsize * 8]
    return elementwise(
        lambda x, y, z: np.add(product(x, y).view(final), z), to, *factors, (d.source(operands[3], result), final)
    )


@opcode("copysign")
def copysign(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    return simple(d, lambda sign, value: np.copysign(value, sign), operands, modifiers[-1])


@opcode("shl", "shr")
def shift(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    (kind,) = modifiers
    dtype, function = TYPES[kind], np.left_shift if name == "shl" else np.right_shift
    bits = dtype.itemsize * 8
    to, source = d.destination(operands[0], kind), d.source(operands[1], kind)
    amount = d.integer(operands[2])
    if amount is not None and 0 <= amount < bits:
        return elementwise(function, to, (source, dtype), (d.constant(amount, dtype), dtype))

    def clamped(x: Array, by: Array) -> Array:
        shifted = function(x, np.minimum(by, np.uint32(bits - 1)).astype(dtype))
        if dtype.kind == "i" and name == "shr":
            return shifted
        return np.where(by < bits, shifted, dtype.type(0))

    return elementwise(clamped, to, (source, dtype), (d.source(operands[2], "u32"), UINT32))


@opcode("shf")
def funnel_shift(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    left, wrap = "l" in modifiers, "wrap" in modifiers

    def function(low: Array, high: Array, by: Array) -> Array:
        by = (by & np.uint32(31) if wrap else np.minimum(by, np.uint32(32))).astype(UINT64)
        pair = low.astype(UINT64) | high.astype(UINT64) << np.uint64(32)
        return (((pair << by) >> np.uint64(32)) if left else (pair >> by)).astype(UINT32)

    return simple(d, function, operands, "u32")


@opcode("popc", "clz", "brev", "prmt", "bfe", "bfi", "lop3")
def bits(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    (kind,) = modifiers
    if name in ("popc", "clz"):
        return simple(d, count_bits if name == "popc" else leading_zeros, operands, f"u{kind[1:]}", to="u32")
    if name == "lop3":
        return simple(d, logic3(d.integer(operands[4])), operands[:4], kind)
    to = d.destination(operands[0], kind)
    values = 2 if name == "bfi" else 1
    if name in ("bfe", "bfi"):
        sources = [(d.source(x, kind), TYPES[kind]) for x in operands[1 : 1 + values]]
        places = [(d.source(x, "u32"), UINT32) for x in operands[1 + values :]]
        return elementwise(extract_field if name == "bfe" else insert_field, to, *sources, *places)
    return simple(d, reverse_bits if name == "brev" else permute_bytes, operands, kind)
