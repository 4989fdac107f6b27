"""The PTX machine's floating-point numbers against numpy and exact fractions: arithmetic, choices and comparisons."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from machines.ptx_kernels import PRECISION, TYPES, bits_of, evaluate, rounded, same


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
