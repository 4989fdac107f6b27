"""The PTX machine against numpy and exact fractions, one group of instructions after the other; every fault planted."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx_machine import Fault, Memory, Module, Statistics

TYPES = {"b8": "u1", "b16": "u2", "b32": "u4", "b64": "u8", "u8": "u1", "u16": "u2", "u32": "u4", "u64": "u8",
         "s8": "i1", "s16": "i2", "s32": "i4", "s64": "i8", "f16": "f2", "f32": "f4", "f64": "f8", "pred": "u4",
         "bf16": "u2", "f16x2": "u4", "bf16x2": "u4"}  # fmt: skip
REGISTERS = """
    .reg .pred %p<10>; .reg .b16 %h<20>; .reg .b32 %r<40>; .reg .f32 %f<40>; .reg .b64 %rd<20>; .reg .f64 %fd<10>;
"""


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


# ------------------------------------------------------------------------------------------------------------- integers


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGER_CASES = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: a * b >> n,
    "min": lambda a, b, n: min(a, b),
    "max": lambda a, b, n: max(a, b),
    "div": lambda a, b, n: truncated(a, b) if b else -1,
    "rem": lambda a, b, n: a - truncated(a, b) * b if b else a,
}


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", INTEGER_CASES)
def test_integer_arithmetic(name: str, kind: str) -> None:
    a, b, bits = bits_of(kind), bits_of(kind, seed=1), int(kind[1:])
    expected = [INTEGER_CASES[name](int(x), int(y), bits) % 2**bits for x, y in zip(a, b, strict=True)]
    got = evaluate(f"{name}.{kind} %d, %a0, %a1", kind, (kind, a), (kind, b))
    np.testing.assert_array_equal(got.view(f"u{bits // 8}"), np.array(expected, f"u{bits // 8}"))


def test_wide_products_and_sums() -> None:
    a, b, c = bits_of("s32"), bits_of("s32", seed=1), bits_of("s64", seed=2)
    same(evaluate("mul.wide.s32 %d, %a0, %a1", "s64", ("s32", a), ("s32", b)), a.astype("i8") * b)
    u, v = a.view("u4"), b.view("u4")
    same(evaluate("mul.wide.u32 %d, %a0, %a1", "u64", ("u32", u), ("u32", v)), u.astype("u8") * v)
    wide = evaluate("mad.wide.s32 %d, %a0, %a1, %a2", "s64", ("s32", a), ("s32", b), ("s64", c))
    same(wide, a.astype("i8") * b + c)
    low = evaluate("mad.lo.s32 %d, %a0, %a1, %a2", "s32", ("s32", a), ("s32", b), ("s32", a))
    same(low, a * b + a)
    same(evaluate("mul.wide.u16 %d, %a0, %a1", "u32", ("u16", u), ("u16", v)), (u & 65535) * (v & 65535))


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_logic_and_shifts(kind: str) -> None:
    a, b, bits = bits_of(kind), bits_of(kind, seed=1), int(kind[1:])
    for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        same(evaluate(f"{name}.{kind} %d, %a0, %a1", kind, (kind, a), (kind, b)), function(a, b))
    same(evaluate(f"not.{kind} %d, %a0", kind, (kind, a)), ~a)
    by = np.random.default_rng(0).integers(0, 80, len(a)).astype("u4")
    signed = a.view(f"i{bits // 8}")
    left = [(int(x) << int(n)) % 2**bits for x, n in zip(a, by, strict=True)]
    same(evaluate(f"shl.{kind} %d, %a0, %a1", kind, (kind, a), ("u32", by)), np.array(left, a.dtype))
    right = [int(x) >> int(n) for x, n in zip(signed, by, strict=True)]
    same(evaluate(f"shr.s{bits} %d, %a0, %a1", f"s{bits}", (kind, a), ("u32", by)), np.array(right, signed.dtype))
    right = [int(x) >> int(n) for x, n in zip(a, by, strict=True)]
    same(evaluate(f"shr.u{bits} %d, %a0, %a1", kind, (kind, a), ("u32", by)), np.array(right, a.dtype))
    same(evaluate(f"shl.{kind} %d, %a0, 3", kind, (kind, a)), a << 3)
    same(evaluate(f"shr.s{bits} %d, %a0, 3", f"s{bits}", (kind, a)), signed >> 3)
    same(evaluate(f"shl.{kind} %d, %a0, {bits}", kind, (kind, a)), 0 * a)


def test_negation_and_sizes() -> None:
    a = bits_of("s32")
    same(evaluate("neg.s32 %d, %a0", "s32", ("s32", a)), -a)
    same(evaluate("abs.s32 %d, %a0", "s32", ("s32", a)), np.abs(a))


@pytest.mark.parametrize("bits", [32, 64])
def test_single_bits(bits: int) -> None:
    a = np.concatenate((bits_of(f"u{bits}"), np.array([1, 2, 0, 1 << (bits - 1)], f"u{bits // 8}")))
    text = [f"{int(x):0{bits}b}" for x in a]
    same(evaluate(f"popc.b{bits} %d, %a0", "u32", (f"b{bits}", a)), [x.count("1") for x in text])
    same(evaluate(f"clz.b{bits} %d, %a0", "u32", (f"b{bits}", a)), [bits - len(x.lstrip("0")) for x in text])
    reverse = np.array([int(x[::-1], 2) for x in text], a.dtype)
    same(evaluate(f"brev.b{bits} %d, %a0", f"b{bits}", (f"b{bits}", a)), reverse)


def test_fields() -> None:
    random = np.random.default_rng(3)
    a, b = bits_of("u32"), bits_of("u32", seed=1)
    position, length = (random.integers(0, 40, len(a)).astype("u4") for _ in range(2))
    unsigned, signed, inserted = [], [], []
    for x, y, p, n in zip(*(v.tolist() for v in (a, b, position, length)), strict=True):
        digits = [x >> i & 1 if i < 32 else 0 for i in range(p, p + n)]
        unsigned.append(sum(d << i for i, d in enumerate(digits)) % 2**32)
        sign = (x >> min(p + n - 1, 31) & 1) if n else 0
        digits = [x >> i & 1 if i < 32 else sign for i in range(p, p + n)]
        signed.append(sum((digits[i] if i < n else sign) << i for i in range(32)))
        mask = ((1 << n) - 1) << p
        inserted.append(((y & ~mask) | ((x << p) & mask)) % 2**32)
    pair = (("u32", position), ("u32", length))
    same(evaluate("bfe.u32 %d, %a0, %a1, %a2", "u32", ("u32", a), *pair), unsigned)
    same(evaluate("bfe.s32 %d, %a0, %a1, %a2", "u32", ("s32", a), *pair), signed)
    same(evaluate("bfi.b32 %d, %a0, %a1, %a2, %a3", "u32", ("u32", a), ("u32", b), *pair), inserted)


def test_permutations_of_bytes_and_any_logic() -> None:
    a, b, c = (bits_of("u32", seed=seed) for seed in range(3))
    selector = c & 0x7777 | np.random.default_rng(0).integers(0, 2, len(c)).astype("u4") << 11
    expected = []
    for x, y, s in zip(a.tolist(), b.tolist(), selector.tolist(), strict=True):
        pool = struct.pack("<II", x, y)
        picked = [pool[s >> 4 * i & 7] for i in range(4)]
        signs = [s >> 4 * i & 8 for i in range(4)]
        made = bytes((255 if p & 128 else 0) if n else p for p, n in zip(picked, signs, strict=True))
        expected.append(struct.unpack("<I", made)[0])
    same(evaluate("prmt.b32 %d, %a0, %a1, %a2", "u32", ("u32", a), ("u32", b), ("u32", selector)), expected)
    three = (("u32", a), ("u32", b), ("u32", c))
    same(evaluate("lop3.b32 %d, %a0, %a1, %a2, 0xE8", "u32", *three), (a & b) | (a & c) | (b & c))
    by = c % 40
    funnel = [((y << 32 | x) >> (n & 31)) % 2**32 for x, y, n in zip(a.tolist(), b.tolist(), by.tolist(), strict=True)]
    same(evaluate("shf.r.wrap.b32 %d, %a0, %a1, %a2", "u32", *three[:2], ("u32", by)), funnel)


def test_moves_pack_and_unpack() -> None:
    a, b = bits_of("u32"), bits_of("u32", seed=1)
    same(evaluate("mov.b64 %d, {%a0, %a1}", "u64", ("u32", a), ("u32", b)), a.astype("u8") | b.astype("u8") << 32)
    wide = bits_of("u64")
    same(evaluate("mov.b64 {_, %d}, %a0", "u32", ("u64", wide)), wide >> 32)
    same(evaluate("{ .reg .b16 %h<2>; mov.b32 {%h0, %h1}, %a0; mov.b32 %d, {%h1, %h0}; }", "u32", ("u32", a)),
         a >> 16 | a << 16)  # fmt: skip
    same(evaluate("{ mov.b32 %d, {0, %a0};}", "f32", ("u16", a)), (a.astype("u4") << 16).view("f4"))


# --------------------------------------------------------------------------------------------------------------- floats


@pytest.mark.parametrize("kind", ["f32", "f64", "f16"])
@pytest.mark.parametrize(
    "name, function", [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div.rn", np.divide)]
)
def test_float_arithmetic(name: str, function, kind: str) -> None:
    if kind == "f16" and name == "div.rn":
        return
    a, b = bits_of(kind), bits_of(kind, seed=1)
    with np.errstate(all="ignore"):
        expected = function(a, b)
    same(evaluate(f"{name}.{kind} %d, %a0, %a1", kind, (kind, a), (kind, b)), expected)


def test_nans_that_arise_are_the_devices() -> None:
    infinite = np.array([np.inf, 1.0, np.inf], "f4")
    got = evaluate("sub.f32 %d, %a0, %a1", "f32", ("f32", infinite), ("f32", infinite)).view("u4")
    assert [hex(x) for x in got.tolist()] == ["0x7fffffff", "0x0", "0x7fffffff"]


def test_subnormal_numbers_stay_unless_flushed() -> None:
    tiny = np.array([2.0**-140, -(2.0**-140), 1.0, 2.0**-126], "f4")
    one = np.ones(4, "f4")
    same(evaluate("mul.f32 %d, %a0, %a1", "f32", ("f32", tiny), ("f32", one)), tiny)
    same(evaluate("mul.ftz.f32 %d, %a0, %a1", "f32", ("f32", tiny), ("f32", one)), [0.0, -0.0, 1.0, 2.0**-126])
    same(evaluate("abs.ftz.f32 %d, %a0", "f32", ("f32", tiny)), [0.0, 0.0, 1.0, 2.0**-126])
    powers = np.array([-130.0, -149.0, 3.0], "f4")
    same(evaluate("ex2.approx.f32 %d, %a0", "f32", ("f32", powers)), [2.0**-130, 2.0**-149, 8])
    same(evaluate("ex2.approx.ftz.f32 %d, %a0", "f32", ("f32", powers)), [0.0, 0.0, 8.0])


def test_approximations() -> None:
    x = np.random.default_rng(0).uniform(0.01, 30, 200).astype("f4")
    for name, function in (("rcp.approx.ftz", np.reciprocal), ("sqrt.approx", np.sqrt), ("lg2.approx", np.log2),
                           ("ex2.approx", np.exp2), ("rsqrt.approx", lambda v: 1 / np.sqrt(v))):  # fmt: skip
        got = evaluate(f"{name}.f32 %d, %a0", "f32", ("f32", x))
        np.testing.assert_allclose(got, function(x.astype("f8")), rtol=2**-22)
    same(evaluate("sqrt.rn.f32 %d, %a0", "f32", ("f32", x)), np.sqrt(x))


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


def fma_cases(kind: str) -> tuple[np.ndarray, ...]:
    """Random triples, cancellations, and sums that end just beside a tie."""
    random = np.random.default_rng(5)
    dtype, digits = np.dtype(TYPES[kind]), PRECISION[kind][0]
    wide = {"f16": 4, "f32": 30, "f64": 400}[kind]
    count = 400
    a, b, c = (
        np.ldexp(random.uniform(-1, 1, count), random.integers(-wide, wide, count)).astype(dtype) for _ in range(3)
    )
    with np.errstate(all="ignore"):
        c[:80] = -(a[:80] * b[:80])  # cancels but for the product's error
    c[80:120] = 0
    for i in range(120, 240):  # one and half an ulp, and a little more or less: a tie that must not be one
        a[i], b[i] = 1 + 2.0 ** (1 - digits), 2.0**-digits * (1 + 2.0 ** (1 - digits) * (i % 3))
        c[i] = (-1) ** (i % 2) * (1 + (i % 5) * 2.0 ** (1 - digits))
        if i % 4 == 0:
            a[i], b[i] = 2.0 ** -(digits // 2 + 2), 2.0 ** -(digits // 2 + 2) * (1 if i % 8 else -1)
            c[i] = 1.0
    if kind == "f32":
        a[240:300] = np.ldexp(random.uniform(1, 2, 60), random.integers(-90, -60, 60)).astype(dtype)
        b[240:300] = np.ldexp(random.uniform(1, 2, 60), random.integers(-70, -55, 60)).astype(dtype)
        c[240:300] = np.ldexp(random.uniform(1, 2, 60), random.integers(-149, -125, 60)).astype(dtype)
        a[300:330], b[300:330] = 2.0**100, 2.0**28
    if kind == "f64":
        a[240:300] = np.ldexp(random.uniform(1, 2, 60), random.integers(-600, -400, 60))
        b[240:300] = np.ldexp(random.uniform(1, 2, 60), random.integers(-600, -400, 60))
        c[240:300] = np.ldexp(random.uniform(1, 2, 60), random.integers(-1074, -1000, 60))
        a[300:330], b[300:330] = 2.0**1000, 2.0**100
    return a, b, c


@pytest.mark.parametrize("kind", ["f16", "f32", "f64"])
def test_fma_rounds_once(kind: str) -> None:
    a, b, c = fma_cases(kind)
    expected = []
    for x, y, z in zip(a, b, c, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        expected.append(rounded(exact, kind))
    got = evaluate(f"fma.rn.{kind} %d, %a0, %a1, %a2", kind, (kind, a), (kind, b), (kind, c))
    np.testing.assert_array_equal(got, np.array(expected).astype(got.dtype))


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_fma_of_what_is_not_finite(kind: str) -> None:
    values = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, np.finfo(TYPES[kind]).max], TYPES[kind])
    a, b, c = (x.reshape(-1) for x in np.meshgrid(values, values, values, indexing="ij"))
    with np.errstate(all="ignore"):
        expected = (a.astype(np.longdouble) * b + c).astype(TYPES[kind])
    same(evaluate(f"fma.rn.{kind} %d, %a0, %a1, %a2", kind, (kind, a), (kind, b), (kind, c)), expected)


@pytest.mark.parametrize("kind", ["f32", "f64", "f16x2", "bf16x2"])
def test_min_and_max_prefer_numbers_and_order_zeros(kind: str) -> None:
    values = np.array([0.0, -0.0, 1.0, -2.0, np.inf, -np.inf, np.nan], "f4")
    a, b = (x.reshape(-1) for x in np.meshgrid(values, values))
    if kind == "f16x2":
        pack, unpack = (lambda x: np.repeat(x, 2).astype("f2").view("u4")), lambda x: x.view("f2")[::2]
    elif kind == "bf16x2":
        pack = lambda x: (x.view("u4") >> 16) | (x.view("u4") & 0xFFFF0000)  # noqa: E731
        unpack = lambda x: (x & 0xFFFF0000).view("f4")  # noqa: E731
    else:
        pack, unpack = (lambda x: x.astype(TYPES[kind])), lambda x: x
    for name, chosen in (("min", 0), ("max", 1)):
        got = unpack(evaluate(f"{name}.{kind} %d, %a0, %a1", kind, (kind, pack(a)), (kind, pack(b))))
        expected = []
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            ordered = sorted((x, y), key=lambda v: (v, np.copysign(1, v)))
            expected.append(y if np.isnan(x) else x if np.isnan(y) else ordered[chosen])
        same(got, np.array(expected))
        if kind == "f32":
            nan = evaluate(f"{name}.NaN.f32 %d, %a0, %a1", kind, (kind, a), (kind, b))
            same(np.isnan(nan).astype("u1"), (np.isnan(a) | np.isnan(b)).astype("u1"))


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "s32", "u32", "s64"])
def test_comparisons(kind: str) -> None:
    a, b = bits_of(kind), bits_of(kind, seed=1)
    cases = {"eq": a == b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "ne": a != b}
    if kind.startswith("f"):
        nan = np.isnan(a) | np.isnan(b)
        cases["ne"] = (a != b) & ~nan
        cases.update({f"{name}u": truth | nan for name, truth in cases.items()}, nan=nan, num=~nan)
    for name, truth in cases.items():
        same(evaluate(f"setp.{name}.{kind} %d, %a0, %a1", "pred", (kind, a), (kind, b)), truth)


def test_comparisons_combine() -> None:
    a, b, c = bits_of("s32"), bits_of("s32", seed=1), np.arange(300) % 2
    three = (("s32", a), ("s32", b), ("pred", c))
    same(evaluate("setp.lt.and.s32 %d, %a0, %a1, %q2", "pred", *three), (a < b) & (c == 1))
    same(evaluate("setp.lt.or.s32 %d, %a0, %a1, !%q2", "pred", *three), (a < b) | (c == 0))
    same(evaluate("setp.lt.s32 %p5|%d, %a0, %a1", "pred", *three), a >= b)
    same(evaluate("selp.b32 %d, %a0, %a1, %q2", "s32", *three), np.where(c, a, b))
    same(evaluate("selp.b32 %d, %a0, 7, %q2", "s32", *three), np.where(c, a, 7))
    same(evaluate("xor.pred %d, %q2, %q2", "pred", *three), 0 * c)
    same(evaluate("not.pred %d, %q2", "pred", *three), 1 - c)


def test_sign_is_copied_from_the_first() -> None:
    a, b = bits_of("f32"), bits_of("f32", seed=1)
    same(evaluate("copysign.f32 %d, %a0, %a1", "f32", ("f32", a), ("f32", b)), np.copysign(b, a))


# ---------------------------------------------------------------------------------------------------------- conversions


def test_conversions_of_integers() -> None:
    a = bits_of("s64")
    for to in ("u8", "s8", "u16", "s16", "u32", "s32"):
        same(evaluate(f"cvt.{to}.s64 %d, %a0", to, ("s64", a)), a.astype(TYPES[to]))
    b = bits_of("s32")
    same(evaluate("cvt.s64.s32 %d, %a0", "s64", ("s32", b)), b.astype("i8"))
    same(evaluate("cvt.u64.u32 %d, %a0", "u64", ("u32", b.view("u4"))), b.view("u4").astype("u8"))
    same(evaluate("cvt.s32.s8 %d, %a0", "s32", ("s32", b)), b.astype("i1").astype("i4"))
    same(evaluate("cvt.sat.u8.s32 %d, %a0", "u8", ("s32", b)), np.clip(b, 0, 255))
    same(evaluate("cvt.sat.s8.u32 %d, %a0", "s8", ("u32", b.view("u4"))), np.minimum(b.view("u4"), 127))


@pytest.mark.parametrize("to", ["s32", "u32", "s64", "u64", "u16", "s16", "u8"])
@pytest.mark.parametrize("source", ["f32", "f64"])
def test_conversions_to_integers_saturate(to: str, source: str) -> None:
    x = np.concatenate((bits_of(source), np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.0**31, 2.0**63, 2.0**64, -(2.0**63)])))
    x = x.astype(TYPES[source])
    limits = np.iinfo(TYPES[to])
    nan = limits.min if to[0] == "s" else (1 << (int(to[1:]) - 1))
    nan = 0 if source == "f32" and not to.endswith("64") else nan
    for name, function in (("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)):
        whole = function(x).tolist()
        exact = [
            nan if np.isnan(v) else limits.max if v > limits.max else limits.min if v < limits.min else int(v)
            for v in whole
        ]
        same(evaluate(f"cvt.{name}.{to}.{source} %d, %a0", to, (source, x)), np.array(exact, TYPES[to]))


def test_conversions_of_floats() -> None:
    x, y = bits_of("f32"), bits_of("f64")
    with np.errstate(all="ignore"):
        same(evaluate("cvt.rn.f16.f32 %d, %a0", "f16", ("f32", x)), x.astype("f2"))
        same(evaluate("cvt.rn.f32.f64 %d, %a0", "f32", ("f64", y)), y.astype("f4"))
    same(evaluate("cvt.f64.f32 %d, %a0", "f64", ("f32", x)), x.astype("f8"))
    half = bits_of("f16")
    same(evaluate("cvt.f32.f16 %d, %a0", "f32", ("f16", half)), half.astype("f4"))
    same(evaluate("cvt.f64.f16 %d, %a0", "f64", ("f16", half)), half.astype("f8"))
    same(evaluate("cvt.rmi.f32.f32 %d, %a0", "f32", ("f32", x)), np.floor(x))
    same(evaluate("cvt.sat.f32.f32 %d, %a0", "f32", ("f32", x)), np.clip(np.nan_to_num(x, nan=0.0, posinf=1), 0, 1))
    z = np.array([1 + 2.0**-25, -1 - 2.0**-25, 1 + 3 * 2.0**-25, 2.0**-150])
    same(evaluate("cvt.rz.f32.f64 %d, %a0", "f32", ("f64", z)), [1, -1, 1, 0])
    up = 1 + 2.0**-23
    same(evaluate("cvt.rp.f32.f64 %d, %a0", "f32", ("f64", z)), [up, -1, up, 2.0**-149])
    same(evaluate("cvt.rm.f32.f64 %d, %a0", "f32", ("f64", z)), [1, -up, 1, 0])
    integers = bits_of("s64")
    same(
        evaluate("cvt.rn.f32.s64 %d, %a0", "f32", ("s64", integers)),
        [rounded(Fraction(int(v)), "f32") for v in integers],
    )
    same(evaluate("cvt.rn.f64.s32 %d, %a0", "f64", ("s32", integers.astype("i4"))), integers.astype("i4"))


def test_conversions_of_bfloat16() -> None:
    x = bits_of("f32")
    x[200:210] = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x00008000] * 2, "u4").view("f4")
    torches = torch.from_numpy(x.copy()).to(torch.bfloat16)
    got = evaluate("cvt.rn.bf16.f32 %d, %a0", "bf16", ("f32", x))
    same((got.astype("u4") << 16).view("f4"), torches.to(torch.float32).numpy())
    same(evaluate("cvt.f32.bf16 %d, %a0", "f32", ("bf16", got)), (got.astype("u4") << 16).view("f4"))
    y = x[::-1].copy()
    for kind in ("bf16", "f16"):
        pair = evaluate(f"cvt.rn.{kind}x2.f32 %d, %a0, %a1", "u32", ("f32", x), ("f32", y))
        high, low = (evaluate(f"cvt.rn.{kind}.f32 %d, %a0", "u16", ("f32", v)) for v in (x, y))
        same(pair, high.astype("u4") << 16 | low)
    tf32 = evaluate(
        "cvt.rna.tf32.f32 %d, %a0", "u32", ("f32", np.array([1 + 2.0**-11, 1 + 2.0**-12, -1 - 2.0**-11], "f4"))
    )
    same(tf32.view("f4"), [1 + 2.0**-10, 1, -1 - 2.0**-10])


# -------------------------------------------------------------------------------------------------- lanes and registers

INDEX = """
    mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r4, %r2, %r3, %r1;
    ld.param.u64 %rd1, [to]; mul.wide.u32 %rd2, %r4, 4; add.s64 %rd3, %rd1, %rd2;
"""


def test_special_registers_of_grids_in_three_dimensions() -> None:
    names = ["%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%ntid.y", "%nctaid.z", "%laneid"]
    grid, block = (3, 2, 2), (5, 3, 2)
    body = """
        mov.u32 %r1, %ctaid.z; mov.u32 %r2, %nctaid.y; mov.u32 %r3, %ctaid.y; mad.lo.s32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x; mad.lo.s32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %ntid.z; mov.u32 %r3, %tid.z; mad.lo.s32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %ntid.y; mov.u32 %r3, %tid.y; mad.lo.s32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.s32 %r1, %r1, %r2, %r3;
        ld.param.u64 %rd1, [to]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
    """
    body += "\n".join(f"mov.u32 %r5, {n}; st.global.u32 [%rd1+{i * 360 * 4}], %r5;" for i, n in enumerate(names))
    got = execute(body, grid, block, size=360 * len(names)).reshape(len(names), 2, 2, 3, 2, 3, 5)
    z, y, x, c, b, a = np.meshgrid(*(np.arange(n) for n in (2, 2, 3, 2, 3, 5)), indexing="ij")
    for found, expected in zip(got, (a, b, c, x, y, z, 3 + 0 * a, 2 + 0 * a, (a + 5 * b + 15 * c) % 32), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_loops_of_different_lengths_meet_again() -> None:
    """Collatz: lanes leave a loop at different times and branch within it; all of them shuffle after it."""
    body = (
        INDEX
        + """
        add.s32 %r5, %r4, 1; mov.u32 %r6, 0;
    $loop:
        setp.eq.u32 %p1, %r5, 1; @%p1 bra $done;
        add.s32 %r6, %r6, 1; and.b32 %r7, %r5, 1; setp.eq.u32 %p2, %r7, 0; @%p2 bra $even;
        mad.lo.s32 %r5, %r5, 3, 1; bra.uni $loop;
    $even:
        shr.u32 %r5, %r5, 1; bra.uni $loop;
    $done:
        shfl.sync.idx.b32 %r8, %r6, 0, 31, -1;
        add.s32 %r6, %r6, %r8; st.global.u32 [%rd3], %r6; ret;
    """
    )
    steps = []
    for i in range(1, 641):
        n, value = 0, i
        while value != 1:
            value, n = (value // 2 if value % 2 == 0 else 3 * value + 1), n + 1
        steps.append(n)
    expected = np.array(steps) + np.repeat(np.array(steps)[::32], 32)
    np.testing.assert_array_equal(execute(body, 5, 128), expected)


def test_a_branch_placed_after_the_barrier_is_waited_for() -> None:
    body = (
        INDEX
        + """
        .shared .align 4 .b8 cell[4];
        setp.eq.u32 %p1, %r1, 5; @%p1 bra $cold;
    $join:
        bar.sync 0; ld.shared.u32 %r5, [cell]; st.global.u32 [%rd3], %r5; ret;
    $cold:
        mov.u32 %r6, 17; st.shared.u32 [cell], %r6; bra $join;
    """
    )
    np.testing.assert_array_equal(execute(body, 3, 64), np.full(192, 17))


def test_predicated_instructions_change_only_their_lanes() -> None:
    body = (
        INDEX
        + """
        mov.u32 %r5, 7; setp.lt.u32 %p1, %r1, 10; @%p1 mov.u32 %r5, 1; @!%p1 add.s32 %r5, %r5, %r1;
        @%p1 st.global.u32 [%rd3], %r5; @%p1 ret; st.global.u32 [%rd3], %r5;
    """
    )
    lane = np.arange(40)
    np.testing.assert_array_equal(execute(body, 1, 40), np.where(lane < 10, 1, 7 + lane))


def test_blocks_in_several_batches_and_statistics() -> None:
    to = np.zeros(300 * 128, "u4")
    body = INDEX + "setp.ne.u32 %p1, %r1, 3; @%p1 bra $end; add.s32 %r4, %r4, 1; $end: st.global.u32 [%rd3], %r4; ret;"
    statistics = launch(module(body), 300, 128, to)
    index = np.arange(300 * 128)
    np.testing.assert_array_equal(to, index + (index % 128 == 3))
    assert statistics.opcodes["st.global.u32"] == 300 * 128
    assert statistics.opcodes["add.s32"] == 300
    assert statistics.lanes == sum(statistics.opcodes.values())


# --------------------------------------------------------------------------------------------------------------- memory


def test_parameters_are_laid_out_and_read_through_registers() -> None:
    made = module(
        "mov.b64 %rd5, many; add.s64 %rd6, %rd5, 8; ld.param.u64 %rd1, [to]; ld.param.v2.u32 {%r1, %r2}, [%rd6+-8];"
        "ld.param.s8 %h1, [many+9]; cvt.s32.s16 %r3, %h1; ld.param.f32 %f1, [last];"
        "st.global.v2.b32 [%rd1], {%r1, %r2}; st.global.s32 [%rd1+8], %r3; st.global.f32 [%rd1+12], %f1;",
        ".param .u64 to, .param .u8 small, .param .align 8 .b8 many[12], .param .f32 last",
        ".maxntid 32, 1, 1",
    )
    kernel = made.kernels["kernel"]
    assert made.target == "sm_80"
    assert [(x.name, x.offset, x.size) for x in kernel.parameters] == [
        ("to", 0, 8), ("small", 8, 1), ("many", 16, 12), ("last", 28, 4)]  # fmt: skip
    assert (kernel.parameter_bytes, kernel.static_shared_bytes, kernel.max_threads) == (32, 0, 32)
    to = np.zeros(4, "u4")
    scalars = struct.pack("B7xIIbb2xf", 9, 11, 12, 0, -3, 2.5)
    launch(made, 1, 1, to, scalars=scalars)
    assert to.tolist() == [11, 12, 2**32 - 3, struct.unpack("I", struct.pack("f", 2.5))[0]]


@pytest.mark.parametrize("kind, count", [("u8", 4), ("u16", 2), ("u32", 4), ("u64", 2), ("f32", 2), ("u16", 4)])
def test_vectors_of_every_size(kind: str, count: int) -> None:
    size = np.dtype(TYPES[kind]).itemsize
    source = bits_of(kind, 64 * count)
    kinds = {1: "h", 2: "h", 4: "f" if kind == "f32" else "r", 8: "rd"}
    registers = ", ".join(f"%{kinds[size]}{10 + i}" for i in range(count))
    body = f"""
        .shared .align 16 .b8 block[{64 * count * size}];
        mov.u32 %r1, %tid.x; mul.lo.s32 %r2, %r1, {count * size}; cvt.u64.u32 %rd2, %r2;
        ld.param.u64 %rd1, [to]; ld.param.u64 %rd3, [from0]; add.s64 %rd1, %rd1, %rd2; add.s64 %rd3, %rd3, %rd2;
        ld.global.nc.v{count}.{kind} {{{registers}}}, [%rd3]; mov.u32 %r3, block; add.s32 %r3, %r3, %r2;
        st.shared.v{count}.{kind} [%r3], {{{registers}}}; cvt.u64.u32 %rd5, %r3; cvta.shared.u64 %rd6, %rd5;
        ld.v{count}.{kind} {{{registers}}}, [%rd6]; st.v{count}.{kind} [%rd1], {{{registers}}};
    """
    aligned = np.zeros(len(source) + 16, source.dtype)
    begin = -(aligned.ctypes.data) % 16 // size
    to = aligned[begin : begin + len(source)]
    inside = np.zeros_like(aligned)
    begin = -(inside.ctypes.data) % 16 // size
    inside[begin : begin + len(source)] = source
    launch(module(body, ".param .u64 to, .param .u64 from0"), 1, 64, to, inside[begin : begin + len(source)])
    np.testing.assert_array_equal(to.view("u1"), source.view("u1"))


def test_generic_addresses_of_several_spaces() -> None:
    body = (
        INDEX
        + """
        .shared .align 16 .b8 block[256]; .local .align 8 .b8 depot[8];
        mov.u32 %r5, block; shl.b32 %r6, %r1, 2; add.s32 %r5, %r5, %r6;
        cvt.u64.u32 %rd5, %r5; cvta.shared.u64 %rd5, %rd5;
        mov.u64 %rd6, depot; cvta.local.u64 %rd6, %rd6; rem.u32 %r7, %r1, 3; mov.u64 %rd7, %rd3;
        setp.eq.u32 %p1, %r7, 1; @%p1 mov.u64 %rd7, %rd5; setp.eq.u32 %p2, %r7, 2; @%p2 mov.u64 %rd7, %rd6;
        st.u32 [%rd7], %r4; ld.u32 %r8, [%rd7{0}]; @%p1 ld.shared.u32 %r8, [%r5]; st.global.u32 [%rd3], %r8;
    """
    )
    np.testing.assert_array_equal(execute(body.replace("{0}", ""), 3, 64), np.arange(192))
    with pytest.raises(Fault, match=r"block \(2, 0, 0\), thread \(63, 0, 0\): 4 bytes at .* outside memory"):
        execute(body.replace("{0}", "+4").replace("ld.u32", "@!%p1 ld.u32"), 3, 64)
    faults(r"thread \(7, 0, 0\): address 0x.* is in no space",
           "setp.eq.u32 %p1, %r1, 7; @%p1 add.s64 %rd3, %rd3, 0x1000000000000; st.u32 [%rd3], %r1;")  # fmt: skip


def test_local_memory_is_the_lanes_own() -> None:
    body = (
        INDEX
        + """
        .local .align 8 .b8 depot[64];
        mov.u64 %rd5, depot; cvta.local.u64 %rd6, %rd5; mul.lo.s32 %r5, %r4, 3; st.u32 [%rd6+8], %r5;
        bar.sync 0; ld.local.u32 %r6, [%rd5+8]; st.global.u32 [%rd3], %r6;
    """
    )
    np.testing.assert_array_equal(execute(body, 2, 64), np.arange(128) * 3)


def test_atomics_count_every_lane() -> None:
    body = """
        mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [to]; ld.param.u64 %rd2, [from0];
        atom.global.add.u32 %r2, [%rd2], 2; mul.wide.u32 %rd3, %r2, 2; add.s64 %rd1, %rd1, %rd3;
        st.global.u32 [%rd1], %r1;
        cvt.rn.f32.u32 %f1, %r1; red.global.add.f32 [%rd2+4], %f1; atom.global.max.s32 %r5, [%rd2+8], %r1;
        atom.global.cas.b32 %r6, [%rd2+12], 0, 99;
    """
    cells = np.zeros(4, "u4")
    got = execute(body, 2, 40, inputs=(cells,))
    assert sorted(got.tolist()) == sorted([*range(40), *range(40)])
    assert cells[0] == 160
    assert cells.view("f4")[1] == 2 * sum(range(40))
    assert cells[2:].tolist() == [39, 99]


REVERSE = """
    .shared .align 16 .b8 block[512];
    shl.b32 %r5, %r1, 2; mov.u32 %r6, block; add.s32 %r7, %r6, %r5; st.shared.u32 [%r7], %r4;
    bar.sync 0;
    mov.u32 %r8, 508; sub.s32 %r9, %r8, %r5; add.s32 %r10, %r6, %r9; ld.shared.u32 %r11, [%r10];
    st.global.u32 [%rd3], %r11;
"""


def test_barriers_exchange_shared_memory() -> None:
    index = np.arange(40 * 128).reshape(40, 128)
    np.testing.assert_array_equal(execute(INDEX + REVERSE, 40, 128), index[:, ::-1].reshape(-1))


def test_dynamic_shared_memory_follows_the_static() -> None:
    body = (
        INDEX
        + """
        .shared .align 8 .b8 own[20];
        mov.u32 %r5, dynamic; mov.u32 %r6, own; sub.s32 %r7, %r5, %r6; shl.b32 %r8, %r1, 2; add.s32 %r9, %r5, %r8;
        st.shared.u32 [%r9], %r7; ld.shared.u32 %r10, [%r9]; st.global.u32 [%rd3], %r10;
    """
    )
    declaration = ".extern .shared .align 16 .b8 dynamic[];"
    made = module(body, declarations=declaration)
    assert made.kernels["kernel"].static_shared_bytes == 32
    np.testing.assert_array_equal(execute(body, 1, 32, shared_bytes=128, declarations=declaration), np.full(32, 32))
    with pytest.raises(Fault, match="4 bytes at 156 of the 156 of shared memory"):
        execute(body, 1, 32, shared_bytes=124, declarations=declaration)


def test_barriers_reduce() -> None:
    body = (
        INDEX
        + """
        mov.u32 %r6, %ctaid.x; setp.eq.u32 %p1, %r1, %r6; setp.ge.u32 %p2, %r6, 90;
        bar.red.or.pred %p3, 0, %p1; bar.red.and.pred %p4, 0, !%p2; bar.red.popc.u32 %r9, 0, %p1;
        selp.u32 %r7, 1, 0, %p3; selp.u32 %r8, 2, 0, %p4; or.b32 %r7, %r7, %r8;
        shl.b32 %r9, %r9, 2; or.b32 %r7, %r7, %r9;
        st.global.u32 [%rd3], %r7;
    """
    )
    block = np.repeat(np.arange(100), 64)
    np.testing.assert_array_equal(execute(body, 100, 64), (block < 64) + 2 * (block < 90) + 4 * (block < 64))


def test_lanes_that_exited_do_not_hold_up_a_barrier() -> None:
    body = (
        INDEX
        + """
        setp.ge.u32 %p1, %r1, 96; @%p1 ret; bar.sync 0; st.global.u32 [%rd3], 5;
    """.replace("st.global.u32 [%rd3], 5", "mov.u32 %r5, 5; st.global.u32 [%rd3], %r5")
    )
    got = execute(body, 2, 128).reshape(2, 128)
    assert (got[:, :96] == 5).all()
    assert not got[:, 96:].any()


# ---------------------------------------------------------------------------------------------------------------- warps


@pytest.mark.parametrize(
    "mode, by, clamp, other",
    [
        ("bfly", 5, 31, lambda i: i ^ 5),
        ("bfly", 8, 0x181F, lambda i: i ^ 8),
        ("down", 3, 31, lambda i: i + 3 if i + 3 < 32 else i),
        ("up", 3, 0, lambda i: i - 3 if i >= 3 else i),
        ("idx", 3, 0x1C1F, lambda i: i // 4 * 4 + 3),
        ("down", 1, 0x1C1F & ~0x3 | 3, lambda i: i + 1 if i % 4 < 3 else i),
    ],
)
def test_shuffles(mode: str, by: int, clamp: int, other) -> None:
    body = (
        INDEX
        + f"""
        mul.lo.s32 %r5, %r4, 7; shfl.sync.{mode}.b32 %r6|%p1, %r5, {by}, {clamp}, -1;
        selp.u32 %r7, 1, 0, %p1; shl.b32 %r7, %r7, 16; or.b32 %r6, %r6, %r7; st.global.u32 [%rd3], %r6;
    """
    )
    segment, top = clamp >> 8, clamp & 31
    expected = []
    for i in range(128):
        lane = i % 32
        origin, last = other(lane), (lane & segment) | (top & ~segment)
        target = {"bfly": lane ^ by, "down": lane + by, "up": lane - by, "idx": (lane & segment) | (by & ~segment)}[
            mode
        ]
        inside = target >= last if mode == "up" else target <= last
        origin = target if inside else lane
        expected.append((i - lane + origin) * 7 + (inside << 16))
    np.testing.assert_array_equal(execute(body, 2, 64), expected)


def test_shuffles_by_registers_in_part_of_a_warp() -> None:
    body = (
        INDEX
        + """
        setp.ge.u32 %p1, %r1, 16; @%p1 bra $end; xor.b32 %r5, %r1, 9;
        shfl.sync.idx.b32 %r6, %r4, %r5, 31, 0xffff; st.global.u32 [%rd3], %r6;
    $end: ret;
    """
    )
    lane = np.arange(64) % 32
    np.testing.assert_array_equal(execute(body, 2, 32), np.where(lane < 16, np.arange(64) // 32 * 32 + (lane ^ 9), 0))


def test_reductions_and_votes() -> None:
    values = bits_of("s32", 64)
    start = INDEX + "ld.param.u64 %rd5, [from0]; add.s64 %rd6, %rd5, %rd2; ld.global.b32 %r5, [%rd6];"
    rows = values.reshape(2, 32)
    expectations = {"max.s32": rows.max(1), "min.s32": rows.min(1), "add.s32": rows.sum(1, dtype="i4")}
    expectations.update({"max.u32": rows.view("u4").max(1), "xor.b32": np.bitwise_xor.reduce(rows, axis=1)})
    for name, expected in expectations.items():
        body = start + f"redux.sync.{name} %r6, %r5, -1; st.global.u32 [%rd3], %r6;"
        got = execute(body, 1, 64, inputs=(values,))
        np.testing.assert_array_equal(got, np.repeat(expected, 32).astype("u4" if "u" in name else "i4").view("u4"))
    part = (
        start
        + """
        setp.ge.u32 %p1, %r1, 8; @%p1 ret; redux.sync.max.s32 %r6, %r5, 255; st.global.u32 [%rd3], %r6;
    """
    )
    np.testing.assert_array_equal(execute(part, 1, 32, inputs=(values,))[:8], np.full(8, values[:8].max()).view("u4"))
    vote = (
        start
        + """
        setp.lt.s32 %p1, %r5, 0; vote.sync.ballot.b32 %r6, %p1, -1; vote.sync.any.pred %p2, %p1, -1;
        vote.sync.all.pred %p3, !%p1, -1; @%p3 mov.u32 %r6, 0; @!%p2 mov.u32 %r6, 0; st.global.u32 [%rd3], %r6;
    """
    )
    ballot = [sum(int(v < 0) << i for i, v in enumerate(row)) for row in rows]
    np.testing.assert_array_equal(execute(vote, 1, 64, inputs=(values,)), np.repeat(ballot, 32))
    active = INDEX + "setp.lt.u32 %p1, %r1, 4; @%p1 bra $x; activemask.b32 %r5; st.global.u32 [%rd3], %r5; $x: ret;"
    assert execute(active)[7] == 0xFFFFFFF0


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count: int, transposed: bool) -> None:
    """Matrix i is 8 rows of 16 bytes, whose addresses lanes 8i to 8i + 7 hold; rows are stored in another order."""
    source = np.random.default_rng(0).integers(0, 65536, (2, 8 * 4, 8)).astype("u2")
    registers = ", ".join(f"%r{20 + i}" for i in range(count))
    stores = " ".join(f"st.global.u32 [%rd3+{256 * i}], %r{20 + i};" for i in range(count))
    body = (
        INDEX
        + f"""
        .shared .align 16 .b8 block[1024];
        ld.param.u64 %rd5, [from0]; mul.wide.u32 %rd6, %r1, 16; add.s64 %rd7, %rd5, %rd6;
        ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%rd7]; mov.u32 %r5, block; shl.b32 %r6, %r1, 4;
        xor.b32 %r7, %r6, 48; add.s32 %r7, %r5, %r7; st.shared.v4.u32 [%r7], {{%r10, %r11, %r12, %r13}};
        bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{registers}}}, [%r7]; {stores}
    """
    )
    aligned = np.zeros(1024 + 16, "u1")
    begin = -aligned.ctypes.data % 16
    inside = aligned[begin : begin + 1024]
    inside[:] = source.reshape(-1).view("u1")
    got = execute(body, 1, 64, size=64 * 4, inputs=(inside,)).reshape(4, 2, 32)
    matrices = source.reshape(2, 4, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(2, 3)
    for lane in range(32):
        for matrix in range(count):
            pair = matrices[:, matrix, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2].astype("u4")
            np.testing.assert_array_equal(got[matrix, :, lane], pair[:, 0] | pair[:, 1] << 16)


def plain_fragments(shape: str, kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The words of A's, B's and C's registers for every lane, as the PTX ISA draws them."""
    words = np.zeros((32, 10), "u4")
    for lane in range(32):
        g, t = divmod(lane, 4)
        if kind == "tf32":
            parts = [a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4], b[t, g], b[t + 4, g]]
            words[lane, :6] = np.array(parts, "f4").view("u4")
        else:
            rows = [a[g, 2 * t :], a[g + 8, 2 * t :], a[g, 2 * t + 8 :], a[g + 8, 2 * t + 8 :]]
            columns = [b[2 * t :, g], b[2 * t + 8 :, g]]
            words[lane, :6] = [int(x[0]) | int(x[1]) << 16 for x in (*rows, *columns)]
        words[lane, 6:] = np.array([c[g, 2 * t], c[g, 2 * t + 1], c[g + 8, 2 * t], c[g + 8, 2 * t + 1]], "f4").view(
            "u4"
        )
    return words


def multiply(shape: str, kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """A * B + C by one mma; halves are passed as their bits."""
    words = plain_fragments(shape, kind, a, b, c)
    loads = " ".join(f"ld.global.u32 %r{10 + i}, [%rd7+{4 * i}];" for i in range(10))
    body = (
        INDEX
        + f"""
        ld.param.u64 %rd5, [from0]; mul.wide.u32 %rd6, %r4, 40; add.s64 %rd7, %rd5, %rd6; {loads}
        mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {{%r20, %r21, %r22, %r23}},
            {{%r10, %r11, %r12, %r13}}, {{%r14, %r15}}, {{%r16, %r17, %r18, %r19}};
        mul.wide.u32 %rd6, %r4, 16; add.s64 %rd1, %rd1, %rd6; st.global.u32 [%rd1], %r20;
        st.global.u32 [%rd1+4], %r21; st.global.u32 [%rd1+8], %r22; st.global.u32 [%rd1+12], %r23;
    """
    )
    got = execute(body, 1, 32, "f4", 128, (words,)).reshape(32, 4)
    result = np.zeros((16, 8), "f4")
    for lane in range(32):
        g, t = divmod(lane, 4)
        result[g, 2 * t : 2 * t + 2], result[g + 8, 2 * t : 2 * t + 2] = got[lane, :2], got[lane, 2:]
    return result


def half_bits(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """x in a narrow type: what a register holds, and its value."""
    if kind == "tf32":
        return x.astype("f4"), (x.astype("f4").view("u4") & 0xFFFFE000).view("f4").astype("f8")
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    narrow = torch.from_numpy(x.copy()).to(dtype)
    return narrow.view(torch.int16).numpy().view("u2"), narrow.to(torch.float64).numpy()


@pytest.mark.parametrize("shape, kind, k", [("m16n8k16", "f16", 16), ("m16n8k16", "bf16", 16), ("m16n8k8", "tf32", 8)])
def test_mma_multiplies_matrices(shape: str, kind: str, k: int) -> None:
    random = np.random.default_rng(1)
    (a, a_value), (b, b_value) = (half_bits(random.standard_normal(size), kind) for size in ((16, k), (k, 8)))
    c = random.standard_normal((16, 8)).astype("f4")
    got, exact = multiply(shape, kind, a, b, c), a_value @ b_value + c
    sizes = np.abs(a_value) @ np.abs(b_value) + np.abs(c)
    assert (np.abs(got - exact) <= sizes * 2.0**-22).all()
    assert (got != exact.astype("f4")).any()  # it does not round


def test_mma_cuts_off_as_tensor_cores_do() -> None:
    """What lies 26 bits below the largest addend of a group is lost, and sums are cut off, not rounded."""
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
    a[0, :] = 1
    c[0, :] = 1
    b[:8, 0] = 2.0**-14 * 2.0**-10  # eight addends of 2**-24 and together 2**-21: kept by the two further bits
    b[8:, 1] = 2.0**-14 * 2.0**-9
    b[0, 2], b[1, 2] = 2.0**-24, 2.0**-24  # 2**-23: the last bit
    a[4, :], c[4, :], b[0, 3] = 0.5, 1, 3 * 2.0**-24  # three quarters of an ulp: cut off
    b[0, 4] = -(2.0**-24)
    a[1, :8] = 2.0**-12
    c[1, :] = 1
    b[:8, 5] = 2.0**-14  # products of 2**-26 each: all lost, though together they are an ulp and more
    got = multiply("m16n8k16", "f16", half_bits(a, "f16")[0], half_bits(b, "f16")[0], c)
    assert got[0, [0, 1, 2, 4]].tolist() == [1 + 2.0**-21, 1 + 2.0**-20, 1 + 2.0**-23, 1 - 2.0**-24]
    assert got[4, 3] == 1
    assert got[1, 5] == 1


def test_mma_of_what_is_not_finite() -> None:
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
    a[0, 0], a[1, 9], a[2, 3] = np.inf, np.nan, 1
    b[:, 0], c[3, 0] = 1, -np.inf
    got = multiply("m16n8k16", "bf16", half_bits(a, "bf16")[0], half_bits(b, "bf16")[0], c)
    assert np.array_equal(got[:4, 0], np.array([np.inf, np.nan, 1, -np.inf], "f4"), equal_nan=True)
    assert np.isnan(got[0, 1])
    assert got[1, 1:].view("u4").tolist() == [0x7FFFFFFF] * 7


# ------------------------------------------------------------------------------------------------- asynchronous copies

COPY = """
    .shared .align 16 .b8 block[1024];
    ld.param.u64 %rd5, [from0]; mul.wide.u32 %rd6, %r1, 16; add.s64 %rd7, %rd5, %rd6;
    mov.u32 %r5, block; shl.b32 %r6, %r1, 4; add.s32 %r7, %r5, %r6; xor.b32 %r8, %r6, 512; add.s32 %r8, %r5, %r8;
"""
SHOW = "ld.shared.u32 %r9, [{0}]; st.global.u32 [%rd3], %r9;"


def aligned(values: np.ndarray) -> np.ndarray:
    room = np.zeros(values.nbytes + 16, "u1")
    begin = -room.ctypes.data % 16
    made = room[begin : begin + values.nbytes].view(values.dtype)
    made[:] = values
    return made


def copy_case(body: str, **options) -> np.ndarray:
    return execute(INDEX + COPY + body, 1, 64, inputs=(aligned(np.arange(256, dtype="u4")),), **options)


def test_copies_arrive_after_their_wait_and_a_barrier() -> None:
    body = "cp.async.cg.shared.global [%r7], [%rd7], 16; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;"
    np.testing.assert_array_equal(copy_case(body + SHOW.format("%r8")), (np.arange(64) ^ 32) * 4)
    body = "cp.async.ca.shared.global [%r7], [%rd7], 8; cp.async.wait_all;"
    np.testing.assert_array_equal(copy_case(body + SHOW.format("%r7+4")), np.arange(64) * 4 + 1)


def test_copies_of_fewer_bytes_are_filled_with_zeros() -> None:
    body = """
        and.b32 %r9, %r1, 15; cp.async.cg.shared.global [%r7], [%rd7], 16, %r9; cp.async.commit_group;
        cp.async.wait_group 0; ld.shared.u32 %r9, [%r7+4]; st.global.u32 [%rd3], %r9;
    """
    whole = (np.arange(64) * 4 + 1).astype("u4").view("u1").reshape(64, 4)
    whole = np.where(np.arange(4, 8) < (np.arange(64) % 16)[:, None], whole, 0).astype("u1")
    np.testing.assert_array_equal(copy_case(body), whole.view("u4").reshape(-1))


def test_groups_of_copies_are_waited_for_in_order() -> None:
    body = """
        cp.async.ca.shared.global [%r7], [%rd7], 4; cp.async.commit_group;
        cp.async.ca.shared.global [%r7+4], [%rd7+4], 4; cp.async.commit_group; cp.async.wait_group 1;
    """
    np.testing.assert_array_equal(copy_case(body + SHOW.format("%r7")), np.arange(64) * 4)
    with pytest.raises(Fault, match="a copy to it is in flight"):
        copy_case(body + SHOW.format("%r7+4"))


# --------------------------------------------------------------------------------------------------------------- faults


def faults(match: str, body: str, grid=1, block=64, **options) -> None:
    with pytest.raises(Fault, match=match):
        execute(INDEX + body, grid, block, **options)


def test_a_fault_says_where() -> None:
    with pytest.raises(Fault) as caught:
        execute("\n" + INDEX + "\nst.global.u32 [%rd3+256], %r1;", 2, 64)
    message = str(caught.value)
    assert message.startswith("kernel, line 14: st.global.u32 [%rd3+256], %r1; block (1, 0, 0), thread (0, 0, 0): ")
    assert "are outside memory: 512 bytes from the start of a block of 512" in message


def test_global_memory_is_bounded_and_aligned() -> None:
    faults(r"thread \(0, 0, 0\): 4 bytes at .* outside memory", "st.global.u32 [%rd3+-4], %r1;")
    faults(r"thread \(63, 0, 0\).*outside memory", "ld.global.u32 %r5, [%rd3+4];")
    faults("is not a multiple of 4", "st.global.u32 [%rd3+2], %r1;")
    faults("is not a multiple of 8", "ld.global.v2.u32 {%r5, %r6}, [%rd3];")
    faults("outside memory", "mov.u64 %rd5, 0; ld.u32 %r6, [%rd5];")
    faults(
        r"block \(0, 0, 0\), thread \(33, 0, 0\).*outside",
        "setp.eq.u32 %p1, %r1, 33; mov.u64 %rd5, %rd3; @%p1 mov.u64 %rd5, 64; ld.global.u32 %r6, [%rd5];",
    )


def test_shared_memory_is_bounded_aligned_and_written_before_it_is_read() -> None:
    start = ".shared .align 16 .b8 block[256]; mov.u32 %r5, block; shl.b32 %r6, %r1, 2; add.s32 %r7, %r5, %r6;"
    faults("4 bytes at 256 of the 256 of shared memory", start + "st.shared.u32 [%r7+4], %r1;")
    faults("4 bytes at -4 of the 256", start + "st.shared.u32 [%r7+-4], %r1;")
    faults("is not a multiple of 4", start + "st.shared.u32 [%r7+1], %r1;")
    faults(
        "reads shared memory at 4, but it was never written",
        start + "setp.eq.u32 %p1, %r1, 1; @!%p1 st.shared.u32 [%r7], %r1; bar.sync 0; ld.shared.u32 %r8, [%r7];",
    )
    faults("reads shared memory at 2, but it was never written",
           start + "mov.u16 %h1, 3; st.shared.u16 [%r7], %h1; ld.shared.u32 %r8, [%r7];")  # fmt: skip
    faults("row .* is not a multiple of 16",
           start + "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [%r7];", block=32)  # fmt: skip


def test_two_warps_may_not_touch_shared_memory_without_a_barrier() -> None:
    faults("race: read of shared memory at 508, which warp 3 wrote since the last barrier",
           REVERSE.replace("bar.sync 0;", ""), block=128)  # fmt: skip
    again = REVERSE + "{0} st.shared.u32 [%r7], %r1;"
    faults("race: write of shared memory at 0, which warp 3 read since", again.replace("{0}", ""), block=128)
    execute(INDEX + again.replace("{0}", "bar.sync 0;"), 2, 128)
    both = ".shared .align 16 .b8 block[256]; mov.u32 %r5, block; and.b32 %r6, %r1, 31; add.s32 %r5, %r5, %r6;"
    faults(
        "race: two warps write different values to shared memory at 0",
        both + "cvt.u16.u32 %h1, %r1; st.shared.u8 [%r5], %h1;",
    )
    one = ".shared .align 4 .b8 cell[4]; setp.eq.u32 %p1, %r1, 0; mov.u32 %r5, 1;"
    one += "@%p1 st.shared.u32 [cell], %r5; bar.sync 0;"
    read = one + "ld.shared.u32 %r6, [cell]; setp.eq.u32 %p2, %r1, {0}; {1} @%p2 st.shared.u32 [cell], %r5;"
    faults("race: write of shared memory at 0, which several warps read", read.format(40, ""))
    execute(INDEX + read.format(40, "bar.sync 0;"), 1, 64)


def test_two_warps_may_write_the_same() -> None:
    start = """
        .shared .align 16 .b8 block[512]; mov.u32 %r5, block; and.b32 %r6, %r1, 31; shl.b32 %r7, %r6, 4;
        add.s32 %r5, %r5, %r7; {0}
    """
    for store in ("st.shared.u32 [%r5+4], %r6;", "st.shared.v4.u32 [%r5], {%r7, %r6, %r6, %r7};"):
        body = INDEX + start.replace("{0}", store)
        np.testing.assert_array_equal(execute(body + "bar.sync 0;" + SHOW.format("%r5+4"), 3, 64), np.arange(192) % 32)
        faults("race: read of shared memory at 4, which several warps wrote", body + SHOW.format("%r5+4"))
        later = body + "setp.eq.u32 %p1, %r1, 35; @%p1 st.shared.u32 [%r5+4], {0}; bar.sync 0;" + SHOW.format("%r5+4")
        execute(later.replace("{0}", "%r6"), 1, 64)
        faults("race: write of shared memory at 52, which several warps wrote", later.replace("{0}", "%r7"))


def test_what_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptx_machine.ENDLESS", 1000)
    faults("ran 1000 times and does not end", "$again: add.s32 %r5, %r4, 1; bra $again;")


def test_neighbouring_bytes_of_two_warps_are_no_race() -> None:
    body = (
        INDEX
        + """
        .shared .align 16 .b8 block[64]; mov.u32 %r5, block; and.b32 %r6, %r1, 31; shl.b32 %r6, %r6, 1;
        shr.u32 %r7, %r1, 5; add.s32 %r6, %r6, %r7; add.s32 %r6, %r5, %r6; cvt.u16.u32 %h1, %r1;
        st.shared.u8 [%r6], %h1; ld.shared.u8 %h2, [%r6]; bar.sync 0; add.s32 %r8, %r5, %r1; ld.shared.u8 %h2, [%r8];
        cvt.u32.u16 %r9, %h2; st.global.u32 [%rd3], %r9;
    """
    )
    np.testing.assert_array_equal(execute(body, 2, 64), np.tile(np.arange(64).reshape(2, 32).T.reshape(-1), 2))


def test_copies_in_flight_may_not_be_touched() -> None:
    start = "cp.async.cg.shared.global [%r7], [%rd7], 16;"
    for body, match in (
        (start + SHOW.format("%r7"), "a copy to it is in flight"),
        (start + "cp.async.wait_group 0;" + SHOW.format("%r7"), "a copy to it is in flight"),
        (start + "bar.sync 0;" + SHOW.format("%r8"), "a copy to it is in flight"),
        (start + "cp.async.wait_all;" + SHOW.format("%r8"), "race: read"),
        (start + "bar.sync 0; cp.async.wait_all;" + SHOW.format("%r8"), "race: read"),
        (start + "st.shared.u32 [%r8], %r1;", "race: write"),
        (start + "st.shared.u32 [%r7], %r1; cp.async.wait_all;", "arrives over what was written since"),
        (start.replace("[%r7]", "[%r7+4]"), "destination .* is not a multiple of 16"),
        (start.replace("[%rd7]", "[%rd7+4]"), "source .* is not a multiple of 16"),
        (start.replace("[%rd7]", "[%rd7+1024]"), "outside memory"),
        (start.replace("16;", "16, 17;"), "copies more than 16 bytes"),
    ):
        with pytest.raises(Fault, match=match):
            copy_case(body)
    copy_case(start.replace("[%rd7], 16;", "[%rd7+1024], 16, 0;"))


def test_warps_must_be_together() -> None:
    split = "setp.lt.u32 %p1, %r1, 8; @%p1 bra $x;"
    faults("divergence: it waits for lanes of the warp, one of which is at line .* 'bar.sync 0'",
           split + "shfl.sync.bfly.b32 %r6, %r4, 1, 31, -1; ret; $x: bar.sync 0; ret;")  # fmt: skip
    faults(
        r"thread \(16, 0, 0\): the lane is not among those that it names, 0x0000ffff",
        "shfl.sync.bfly.b32 %r6, %r4, 1, 31, 0xffff;",
    )
    faults(
        "reads lane 9, which is not there",
        "setp.ge.u32 %p1, %r1, 8; @%p1 bra $x; mov.u32 %r5, 9; shfl.sync.idx.b32 %r6, %r4, %r5, 31, 0xff; $x: ret;",
    )
    faults("lanes 0x000000ff of the warp do not exist or exited",
           ".shared .align 16 .b8 block[512]; setp.lt.u32 %p1, %r1, 8; @%p1 ret; mov.u32 %r5, block;"
           "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [%r5];", block=32)  # fmt: skip
    faults("do not exist", "mov.u32 %r5, 1024; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [%r5];", block=16)
    faults(
        "lanes of one warp name different lanes",
        "setp.lt.u32 %p1, %r1, 8; selp.b32 %r5, 0xff, 0xffffffff, %p1; redux.sync.max.u32 %r6, %r4, %r5;",
    )


def test_warps_may_come_to_an_instruction_one_part_after_the_other() -> None:
    body = (
        INDEX
        + """
        setp.lt.u32 %p1, %r1, 8; @%p1 bra $cold;
    $join: shfl.sync.bfly.b32 %r6, %r4, 1, 31, -1; st.global.u32 [%rd3], %r6; ret;
    $cold: add.s32 %r4, %r4, 100; bra $join;
    """
    )
    lane = np.arange(32) ^ 1
    np.testing.assert_array_equal(execute(body), lane + 100 * (lane < 8))


def test_barriers_must_complete() -> None:
    faults("divergence: a lane of the warp is at line .* 'bar.sync 0'",
           "setp.lt.u32 %p1, %r1, 8; @%p1 bra $x; bar.sync 0; ret; $x: bar.sync 0; ret;")  # fmt: skip
    faults("deadlock: the barrier waits for lanes of the block, one of which is at line .* 'bar.sync 1'",
           "setp.lt.u32 %p1, %r1, 32; @%p1 bra $x; bar.sync 0; ret; $x: bar.sync 1; ret;")  # fmt: skip


def test_launches_are_checked() -> None:
    faults("compiled for at most 64 threads", "", block=96, directives=".maxntid 64, 1, 1")
    faults("compiled for", "", block=32, directives=".reqntid 64")
    faults("more than 1024 threads", "", block=1025)
    faults("of shared memory: no device has more", "", shared_bytes=227 * 1024 + 1)
    execute("", shared_bytes=227 * 1024)
    with pytest.raises(Fault, match="grid"):
        execute("", grid=(1, 65536, 1), size=1)
    with pytest.raises(Fault, match="7 bytes of parameters for 8"):
        module("").kernels["kernel"].launch(1, 1, bytes(7), memory=Memory())


def test_registers_are_written_before_they_are_read() -> None:
    faults("register %r20 is read and was never written", "add.s32 %r5, %r20, 1;")
    some = "setp.lt.u32 %p1, %r1, 40; @%p1 bra $x; mov.u32 %r20, 5; $x: {0} st.global.u32 [%rd3], %r20;"
    faults(r"thread \(0, 0, 0\): register %r20 is read", some.format(""))
    execute(INDEX + some.format("@%p1 mov.u32 %r20, 7;"), 1, 64)
    faults("register %r21 is read", "mov.u32 %r21, %r20; st.global.u32 [%rd3], %r21;")
    execute(INDEX + "mov.u32 %r21, %r20; mov.u32 %r21, 5; st.global.u32 [%rd3], %r21;", 1, 64)
    faults("register %p5 is read", "@%p5 bra $x; $x: ret;")


def test_what_is_unknown_is_named_when_decoded() -> None:
    for body, match in (("wibble.u32 %r1, %r2;", "line 9: wibble.u32 %r1, %r2: .*opcode wibble.u32"),
                        ("add.sat.s32 %r1, %r2, %r3;", "sat"), ("add.s32 %rd1, %rd2, %rd3;", "%rd2 has 64 bits"),
                        ("bra $nowhere;", "nowhere"), ("mov.u64 %rd1, thing;", "address of 'thing'")):  # fmt: skip
        with pytest.raises(NotImplementedError, match=match):
            execute(body)


def test_memory_records_the_tensors_of_torch() -> None:
    body = (
        INDEX
        + "ld.param.u64 %rd5, [from]; add.s64 %rd6, %rd5, %rd2; ld.global.u32 %r5, [%rd6]; st.global.u32 [%rd3], %r5;"
    )
    kernel = module(body, ".param .u64 to, .param .u64 from").kernels["kernel"]
    before = torch.arange(64, dtype=torch.int32)

    def copy(to: int, source: int, memory: Memory) -> None:
        kernel.launch(1, 64, struct.pack("QQ", to, source), memory=memory)

    with Memory.recording() as memory:
        source = before + 1
        to = torch.empty(64, dtype=torch.int32)
        copy(to.data_ptr(), source.data_ptr(), memory)
        assert torch.equal(to, source)
        copy(to.data_ptr(), before.data_ptr(), memory)
        address = source.data_ptr()
        del source
        with pytest.raises(Fault, match="outside memory"):
            copy(to.data_ptr(), address, memory)
    alone = Memory()
    alone.add_tensor(to[3:])
    copy(to.data_ptr(), to.data_ptr(), alone)


def test_memory_records_what_operators_in_python_make() -> None:
    library = torch.library.Library("ptx_machine_test", "DEF")
    library.define("scratch(Tensor x) -> int")
    kept = []

    def scratch(x: torch.Tensor) -> int:
        kept.append(torch.empty_like(x))
        return kept[-1].data_ptr()

    library.impl("scratch", scratch, "CPU")
    with Memory.recording() as memory:
        address = torch.ops.ptx_machine_test.scratch(torch.zeros(1000))
    memory.refresh()
    memory.check(np.array([address + 3996], "u8"), 4)
