"""Arithmetic of integers and of bits as the device does it, on numpy arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from machines.ptx.values import INT64, SIGNED, UINT32, UINT64, UNSIGNED, Array


def multiply_high(x: Array, y: Array) -> Array:
    bits = x.itemsize * 8
    if bits < 64:
        wide = (SIGNED if x.dtype.kind == "i" else UNSIGNED)[2 * bits]
        return (np.multiply(x, y, dtype=wide) >> bits).astype(x.dtype)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b = x.view(UINT64), y.view(UINT64)
    cross = (a >> half) * (b & low) + ((a & low) * (b & low) >> half)
    other = (a & low) * (b >> half) + (cross & low)
    high = (a >> half) * (b >> half) + (cross >> half) + (other >> half)
    if x.dtype.kind == "i":
        high = high - np.where(x < 0, b, np.uint64(0)) - np.where(y < 0, a, np.uint64(0))
    return high.view(x.dtype)


def divide(x: Array, y: Array, remainder: bool) -> Array:
    """Towards zero; what PTX leaves open, the quotient by zero, has all bits set."""
    unsigned, zero = UNSIGNED[x.itemsize * 8], y == 0
    if x.dtype.kind == "u":
        safe = np.where(zero, y.dtype.type(1), y)
        result = x % safe if remainder else x // safe
    else:
        a, b = (np.where(v < 0, -v, v).view(unsigned) for v in (x, np.where(zero, y.dtype.type(1), y)))
        result = (a % b if remainder else a // b).view(x.dtype)
        result = np.where((x < 0) if remainder else ((x < 0) != (y < 0)), -result, result)
    return np.where(zero, x if remainder else np.array(-1).astype(x.dtype), result)


def count_bits(x: Array) -> Array:
    return np.bitwise_count(x).astype(UINT32)


def reverse_bits(x: Array) -> Array:
    size = x.itemsize
    rows = np.unpackbits(x.view(np.uint8).reshape(-1, size), axis=1, bitorder="little")[:, ::-1]
    return np.packbits(rows, axis=1, bitorder="little").reshape(-1).view(x.dtype)


def leading_zeros(x: Array) -> Array:
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < x.itemsize * 8:
            x = x | (x >> x.dtype.type(shift))
    return np.uint32(x.itemsize * 8) - np.bitwise_count(x).astype(UINT32)


NIBBLES = np.array([0, 4, 8, 12], UINT32)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    pool = np.empty((len(a), 2), UINT32)
    pool[:, 0], pool[:, 1] = a, b
    nibbles = (selector[:, None] >> NIBBLES) & np.uint32(15)
    places = (nibbles & np.uint32(7)) + (8 * np.arange(len(a))).astype(UINT32)[:, None]
    chosen = pool.view(np.uint8).reshape(-1)[places]
    signs = nibbles > 7
    if np.count_nonzero(signs):
        chosen = np.where(signs, (chosen >> 7) * np.uint8(255), chosen)
    return chosen.view(UINT32).reshape(-1)


def extract_field(x: Array, position: Array, length: Array) -> Array:
    bits, signed = x.itemsize * 8, x.dtype.kind == "i"
    position, length = (np.minimum(v.view(UINT32) & np.uint32(255), bits).astype(INT64) for v in (position, length))
    length_here = np.minimum(length, bits - position)
    wide = x.astype(INT64) if bits == 32 else x.view(INT64)
    unsigned = wide.view(UINT64) if bits == 64 else wide.view(UINT64) & np.uint64(0xFFFFFFFF)
    field = np.where(position < bits, unsigned >> np.minimum(position, 63).view(UINT64), np.uint64(0))
    keep = np.where(length_here >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(length_here, 63).view(UINT64)) - 1)
    field = field & keep.astype(UINT64)
    if signed:
        last = np.minimum(position + length - 1, bits - 1)
        sign = ((unsigned >> np.clip(last, 0, 63).view(UINT64)) & np.uint64(1)) * (length > 0)
        field = np.where(sign == 1, field | ~keep.astype(UINT64), field)
    return field.astype(UNSIGNED[bits])


def insert_field(source: Array, target: Array, position: Array, length: Array) -> Array:
    bits = source.itemsize * 8
    position, length = ((v.view(UINT32) & np.uint32(255)).astype(UINT64) for v in (position, length))
    ones = np.where(length >= bits, ~np.uint64(0), (np.uint64(1) << np.minimum(length, 63)) - np.uint64(1))
    place = np.minimum(position, np.uint64(63))
    mask = np.where(position >= bits, np.uint64(0), ones << place)
    mixed = (target.astype(UINT64) & ~mask) | ((source.astype(UINT64) << place) & mask)
    return mixed.astype(source.dtype)


def logic3(table: int) -> Callable[[Array, Array, Array], Array]:
    def function(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros_like(a)
        for row in range(8):
            if table >> row & 1:
                result = result | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
        return result

    return function
