"""The PTX machine's integers against Python's: arithmetic, logic, fields of bits, and moves that pack."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from machines.ptx_kernels import bits_of, evaluate, same


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
