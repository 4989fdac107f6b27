"""What registers hold: arrays with one element for each lane, and the types that instructions view them as.

Registers are arrays that are never written in place, of any type of their width; whoever reads one views it as what the
instruction says. Lanes that are not active are computed along and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any  # numpy's own annotations do not follow views from one type to another
Step = Callable[[Any], None]

BOOL: np.dtype[Any] = np.dtype(np.bool_)
FLOAT16, FLOAT32, FLOAT64 = (np.dtype(name) for name in ("f2", "f4", "f8"))
UNSIGNED: dict[int, np.dtype[Any]] = {bits: np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)}
SIGNED: dict[int, np.dtype[Any]] = {bits: np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)}
UINT16, UINT32, UINT64, INT32, INT64 = UNSIGNED[16], UNSIGNED[32], UNSIGNED[64], SIGNED[32], SIGNED[64]
TYPES: dict[str, np.dtype[Any]] = {
    **{f"{letter}{bits}": UNSIGNED[bits] for letter in "bu" for bits in UNSIGNED},
    **{f"s{bits}": SIGNED[bits] for bits in SIGNED},
    **{"f16": FLOAT16, "f32": FLOAT32, "f64": FLOAT64, "pred": BOOL},
    **{"bf16": UINT16, "f16x2": UINT32, "bf16x2": UINT32, "tf32": UINT32},
}


class FloatingPointFlags:
    """What the last operations of numpy raised: its error handler."""

    invalid = False
    underflow = False

    def __call__(self, kind: str, flags: int) -> None:
        self.invalid |= bool(flags & 8)
        self.underflow |= bool(flags & 4)


flags = FloatingPointFlags()


def first(bad: Array) -> int:
    return int(np.flatnonzero(bad)[0])


def scalar(value: Any, dtype: np.dtype[Any]) -> Array:
    """An array without axes: what numpy combines with arrays the fastest."""
    return np.array(value, dtype)
