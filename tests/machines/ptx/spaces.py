"""Where addresses of each space begin, and how they must be aligned."""

from __future__ import annotations

import numpy as np

from machines.ptx.faults import LaneFault
from machines.ptx.values import INT64, Array, first, scalar

SHARED_LIMIT = 227 * 1024
SHARED_BASE = 1024  # what the device keeps for itself comes first, so 0 is nobody's address
WINDOWS = {"shared": 1 << 56, "local": 1 << 57, "param": 1 << 58}  # of generic addresses; the host's lie far below
SHIFTS = {size: scalar(size.bit_length() - 1, INT64) for size in (1, 2, 4, 8)}


def aligned(addresses: Array, size: int, name: str = "address") -> None:
    bad = addresses & np.uint64(size - 1) != 0
    if np.count_nonzero(bad):
        at = first(bad)
        raise LaneFault(f"{name} {int(addresses[at]):#x} is not a multiple of {size}", at)
