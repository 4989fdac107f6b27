"""The PTX machine's conversions against numpy's, torch's and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from machines.ptx_kernels import TYPES, bits_of, evaluate, rounded, same


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
