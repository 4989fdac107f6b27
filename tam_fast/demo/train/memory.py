"""How the process that trains holds its memory: :func:`keep_freed_memory`."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for what is asked for next; True if it can (glibc).

    By default it hands every large tensor back to the system, and a tenth of a training step goes into fresh pages. It
    holds for the whole process: for a program of one's own, not for a library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
