"""Small kernels for the tests of the PTX machine: written around a few instructions, launched on arrays."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest

from machines.ptx import Fault, Memory, Module, Statistics

TYPES = {"b8": "u1", "b16": "u2", "b32": "u4", "b64": "u8", "u8": "u1", "u16": "u2", "u32": "u4", "u64": "u8",
         "s8": "i1", "s16": "i2", "s32": "i4", "s64": "i8", "f16": "f2", "f32": "f4", "f64": "f8", "pred": "u4",
         "bf16": "u2", "f16x2": "u4", "bf16x2": "u4"}  # fmt: skip
REGISTERS = """
    .reg .pred %p<10>; .reg .b16 %h<20>; .reg .b32 %r<40>; .reg .f32 %f<40>; .reg .b64 %rd<20>; .reg .f64 %fd<10>;
"""
INDEX = """
    mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r4, %r2, %r3, %r1;
    ld.param.u64 %rd1, [to]; mul.wide.u32 %rd2, %r4, 4; add.s64 %rd3, %rd1, %rd2;
"""
SHOW = "ld.shared.u32 %r9, [{0}]; st.global.u32 [%rd3], %r9;"


def module(body: str, parameters: str = ".param .u64 to", directives: str = "", declarations: str = "") -> Module:
    text = f".version 8.8\n.target sm_80\n.address_size 64\n{declarations}\n.visible .entry kernel({parameters})\n"
    return Module(f"{text}{directives}\n{{{REGISTERS}{body}}}\n")


def launch(made: Module, grid, block, *arrays: np.ndarray, scalars: bytes = b"", **options) -> Statistics:
    memory = Memory()
    for array in arrays:
        memory.add(array.ctypes.data, array.nbytes)
    values = b"".join(struct.pack("Q", array.ctypes.data) for array in arrays)
    return made.kernels["kernel"].launch(grid, block, values + scalars, memory=memory, **options)


def execute(body: str, grid=1, block=32, result="u4", size: int | None = None, inputs=(), **options) -> np.ndarray:
    """What a kernel stores, from the parameters `to` and `from0`, `from1`, ... on."""
    declarations = options.pop("declarations", "")
    directives = options.pop("directives", "")
    names = ", ".join([".param .u64 to", *(f".param .u64 from{i}" for i in range(len(inputs)))])
    to = np.zeros(np.prod(grid) * np.prod(block) if size is None else size, result)
    launch(module(body, names, directives, declarations), grid, block, to, *inputs, **options)
    return to


def evaluate(instruction: str, to: str, *operands: tuple[str, np.ndarray]) -> np.ndarray:
    """An instruction of %d and %a0, %a1, ... on whole arrays, a lane each."""
    count = len(operands[0][1])
    arrays = [np.ascontiguousarray(np.asarray(values).astype(TYPES[kind])) for kind, values in operands]
    lines = ["mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mad.lo.s32 %r1, %r2, 96, %r1;",
             f"setp.ge.u32 %p1, %r1, {count}; @%p1 ret;"]  # fmt: skip
    for index, (kind, array) in enumerate(zip([k for k, _ in operands], arrays, strict=True)):
        bits = 8 * array.itemsize
        lines.append(f".reg .b{max(bits, 16)} %a{index}; ld.param.u64 %rd1, [from{index}];")
        lines.append(f"mul.wide.u32 %rd2, %r1, {array.itemsize}; add.s64 %rd1, %rd1, %rd2;")
        if kind == "pred":
            lines.append(f"ld.global.b32 %r3, [%rd1]; .reg .pred %q{index}; setp.ne.b32 %q{index}, %r3, 0;")
        else:
            lines.append(f"ld.global.b{bits} %a{index}, [%rd1];")
    size = np.dtype(TYPES[to]).itemsize
    lines.append(f"ld.param.u64 %rd1, [to]; mul.wide.u32 %rd2, %r1, {size}; add.s64 %rd1, %rd1, %rd2;")
    if to == "pred":
        lines.append(f".reg .pred %d; {instruction}; selp.u32 %r4, 1, 0, %d; st.global.b32 [%rd1], %r4; ret;")
    else:
        lines.append(f".reg .b{max(8 * size, 16)} %d; {instruction}; st.global.b{8 * size} [%rd1], %d; ret;")
    return execute("\n".join(lines), -(-count // 96), 96, TYPES[to], count, arrays)


def bits_of(kind: str, count: int = 300, seed: int = 0) -> np.ndarray:
    """Numbers of a type: every bit random, and the awkward ones."""
    dtype = np.dtype(TYPES[kind])
    random = np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        awkward = [
            0.0,
            -0.0,
            np.inf,
            -np.inf,
            np.nan,
            1,
            -1,
            limits.max,
            limits.tiny,
            limits.smallest_subnormal,
            0.5,
            2.5,
        ]
    else:
        limits = np.iinfo(dtype)
        awkward = [0, 1, limits.max, limits.min, limits.max // 3]
    awkward = np.array(awkward, dtype)
    random[: len(awkward) ** 2] = np.roll(np.tile(awkward, len(awkward)), seed * len(awkward))[: len(random)]
    if seed:
        random[: len(awkward) ** 2] = np.repeat(awkward, len(awkward))
    return random


def same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit by bit, but for what NaN it is."""
    expected = np.asarray(expected).astype(got.dtype)
    if got.dtype.kind == "f":
        both = np.isnan(got) & np.isnan(expected)
        assert np.array_equal(np.isnan(got), np.isnan(expected))
        assert np.array_equal(np.signbit(got)[~both], np.signbit(expected)[~both])
        assert np.array_equal(got[~both], expected[~both])
    else:
        np.testing.assert_array_equal(got, expected)


def faults(match: str, body: str, grid=1, block=64, **options) -> None:
    with pytest.raises(Fault, match=match):
        execute(INDEX + body, grid, block, **options)


def aligned(values: np.ndarray) -> np.ndarray:
    room = np.zeros(values.nbytes + 16, "u1")
    begin = -room.ctypes.data % 16
    made = room[begin : begin + values.nbytes].view(values.dtype)
    made[:] = values
    return made


PRECISION = {
    "f16": (11, -24, 65504.0),
    "f32": (24, -149, 3.4028234663852886e38),
    "f64": (53, -1074, 1.7976931348623157e308),
}


def rounded(exact: Fraction, kind: str) -> float:
    """The nearest number of a type, ties to even."""
    digits, lowest, highest = PRECISION[kind]
    if not exact:
        return 0.0
    exponent = abs(exact.numerator).bit_length() - abs(exact.denominator).bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent
    ulp = Fraction(2) ** max(exponent - digits + 1, lowest)
    value = round(exact / ulp) * ulp
    return float(value) if abs(value) <= highest else np.copysign(np.inf, float(exact > 0) - 0.5)
