"""Arithmetic of floating-point numbers as the device does it, on numpy arrays.

Not exactly as the device: the approximations (ex2, lg2, rcp, ...) are correctly rounded or nearly, div.full is div.rn,
and NaNs that come in through memory keep their sign and payload, where the device would make most of them 0x7fffffff.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from machines.ptx.values import (
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT64,
    TYPES,
    UINT16,
    UINT32,
    UNSIGNED,
    Array,
    flags,
    scalar,
)


def canonical(function: Callable[..., Array], dtype: np.dtype[Any]) -> Callable[..., Array]:
    """The function, with the NaNs that it makes as the device makes them: positive, where the host's are negative."""
    if dtype is FLOAT64:
        return function
    nan = np.array({FLOAT32: 0x7FFFFFFF, FLOAT16: 0x7FFF}[dtype], UNSIGNED[dtype.itemsize * 8]).view(dtype)

    def made(*operands: Array) -> Array:
        result = function(*operands)
        if flags.invalid:
            flags.invalid = False
            result = np.where(np.isnan(result), nan, result)
        return result

    return made


SMALLEST = {dtype: scalar(np.finfo(dtype).tiny, dtype) for dtype in (FLOAT16, FLOAT32, FLOAT64)}


def flushed(x: Array) -> Array:
    """Subnormal numbers become zeros of their sign."""
    small = np.abs(x) < SMALLEST[x.dtype]
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if np.count_nonzero(small) else x


def flushing(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *operands: flushed(function(*[flushed(x) for x in operands]))


def rounded_to_odd(x: Array, y: Array) -> Array:
    """x + y in float64, of inexact sums the neighbour whose last bit is one: rounding it again rounds only once."""
    total = x + y
    back = total - x
    error = (x - (total - back)) + (y - back)
    bits = total.view(INT64)
    odd = bits + np.where((error > 0) == (total > 0), 1, -1)
    return np.where((error != 0) & np.isfinite(total) & ((bits & 1) == 0), odd, bits).view(FLOAT64)


BELOW_FLOAT32, TIE_OF_FLOAT32 = scalar(0x1FFFFFFF, INT64), scalar(0x10000000, INT64)


def fma32(x: Array, y: Array, z: Array) -> Array:
    """x * y + z rounded once: the product is exact in float64, so only ties that the sum made can round wrongly."""
    product, z = x.astype(FLOAT64) * y.astype(FLOAT64), z.astype(FLOAT64)
    total = product + z
    flags.underflow = False
    result = total.astype(FLOAT32)
    if flags.underflow or np.count_nonzero((total.view(INT64) & BELOW_FLOAT32) == TIE_OF_FLOAT32):
        result = rounded_to_odd(product, z).astype(FLOAT32)
    return result


def fma16(x: Array, y: Array, z: Array) -> Array:
    return rounded_to_odd(x.astype(FLOAT64) * y.astype(FLOAT64), z.astype(FLOAT64)).astype(FLOAT16)


def two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    total = x + y
    back = total - x
    return total, (x - (total - back)) + (y - back)


def fma64(x: Array, y: Array, z: Array) -> Array:
    """x * y + z rounded once: Boldo and Melquiond (2008), "Emulation of a FMA and correctly rounded sums".

    Where a product's error could underflow or a split overflow, by fractions.
    """
    product = x * y
    halves = []
    for factor in (x, y):
        wide = factor * 134217729.0
        high = wide - (wide - factor)
        halves.append((high, factor - high))
    (x_high, x_low), (y_high, y_low) = halves
    error = x_low * y_low - (((product - x_high * y_high) - x_low * y_high) - x_high * y_low)
    small, small_error = two_sum(z, error)
    large, large_error = two_sum(product, small)
    result = large + rounded_to_odd(large_error, small_error)
    sizes = np.abs([x, y])
    inside = ((sizes == 0) | ((sizes > 2.0**-480) & (sizes < 2.0**480))).all(0) & (np.abs(z) < 2.0**1000)
    exact = (x == 0) | (y == 0)
    if np.count_nonzero(inside & ~exact) == result.size:
        return result
    finite = np.isfinite(x) & np.isfinite(y)
    result = np.where(exact | ~finite, product + z, np.where(np.isfinite(z), result, z))
    for lane in np.flatnonzero(~inside & ~exact & finite & np.isfinite(z)):
        total = Fraction(float(x[lane])) * Fraction(float(y[lane])) + Fraction(float(z[lane]))
        try:
            result[lane] = float(total) if total else product[lane] + z[lane]
        except OverflowError:
            result[lane] = np.inf if total > 0 else -np.inf
    return result


def extremum(name: str, nan: bool = False) -> Callable[[Array, Array], Array]:
    """PTX's min and max: the number where one operand is NaN (unless .NaN), and -0 below +0."""
    table: dict[str, tuple[Any, Any]] = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}
    function, signs = table[name][nan], np.bitwise_or if name == "min" else np.bitwise_and

    def chosen(x: Array, y: Array) -> Array:
        result = function(x, y)
        bits = UNSIGNED[result.itemsize * 8]
        magnitude = result.view(bits)
        if np.count_nonzero(magnitude + magnitude) != result.size:
            both = (x == 0) & (y == 0)
            result = np.where(both, signs(x.view(bits), y.view(bits)), result.view(bits)).view(result.dtype)
        return result

    return chosen


def bfloat16_to_float32(x: Array) -> Array:
    return (x.view(UINT16).astype(UINT32) << 16).view(FLOAT32)


def float32_to_bfloat16(x: Array) -> Array:
    bits = x.view(UINT32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(UINT16)


def float32_to_float16(x: Array) -> Array:
    half = x.astype(FLOAT16)
    if np.count_nonzero(half != half):
        half = np.where(np.isnan(half), np.uint16(0x7FFF).view(FLOAT16), half)
    return half


def widened(function: Callable[..., Array], kind: str) -> Callable[..., Array]:
    """A function of float32 on halves, alone or packed; rounding twice is innocuous for one sum, product or choice."""
    if kind.startswith("bf16"):

        def made(*operands: Array) -> Array:
            return float32_to_bfloat16(function(*[bfloat16_to_float32(x) for x in operands])).view(TYPES[kind])
    else:

        def made(*operands: Array) -> Array:
            wide = function(*[x.view(FLOAT16).astype(FLOAT32) for x in operands])
            return float32_to_float16(wide).view(UINT16).view(UNSIGNED[TYPES[kind].itemsize * 8])

    return made


def directed(mode: str, dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    """Conversion to a narrower floating-point type by PTX's rounding mode."""

    def convert(x: Array) -> Array:
        near = x.astype(dtype)
        back, zero = near.astype(x.dtype), dtype.type(0)
        if mode == "rz":
            return np.where(np.abs(back) > np.abs(x), np.nextafter(near, zero), near)
        if mode == "rm":
            return np.where(back > x, np.nextafter(near, dtype.type(-np.inf)), near)
        return np.where(back < x, np.nextafter(near, dtype.type(np.inf)), near)

    return near_conversion(dtype) if mode == "rn" else convert


def near_conversion(dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    return float32_to_float16 if dtype is FLOAT16 else lambda x: x.astype(dtype)


def to_integer(rounding: Callable[[Array], Array], dtype: np.dtype[Any], source: np.dtype[Any]) -> Callable[..., Array]:
    """Saturating, as PTX always does; NaN is 0, or the highest bit alone where 64 bits are on either side."""
    bits, signed = dtype.itemsize * 8, dtype.kind == "i"
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if signed else (0.0, 2.0**bits)
    limits = np.iinfo(dtype)
    nan = (1 << (bits - 1)) if source is FLOAT64 or bits == 64 else 0

    def convert(x: Array) -> Array:
        whole = rounding(x.astype(FLOAT64))
        inside = (whole >= low) & (whole < high)
        if np.count_nonzero(inside) == inside.size:
            return whole.astype(dtype)
        result = np.where(inside, whole, 0.0).astype(dtype)
        result = np.where(whole >= high, dtype.type(limits.max), np.where(whole < low, dtype.type(limits.min), result))
        return np.where(np.isnan(whole), np.array(nan, UNSIGNED[bits]).view(dtype), result)

    return convert
