"""Lanes of blocks that run together: their registers, which of them execute, and the warps they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from machines.ptx.faults import LaneFault
from machines.ptx.memory import Memory
from machines.ptx.spaces import WINDOWS
from machines.ptx.values import BOOL, INT64, UINT32, UINT64, UNSIGNED, Array

if TYPE_CHECKING:
    from machines.ptx.module import Kernel


@dataclass(frozen=True)
class Work:
    """The blocks of a launch that run together, by their numbers, and what they are given."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    chosen: range
    parameters: bytes
    shared_bytes: int
    dynamic_shared_bytes: int
    memory: Memory
    seed: int


class Registers:
    """`R` holds the registers, `mask` the lanes that execute (None: all of them)."""

    def __init__(self, work: Work):
        self.kernel, self.program, self.memory = work.kernel, work.kernel.program, work.memory
        self.block_shape, self.grid, self.chosen, self.parameters = work.block, work.grid, work.chosen, work.parameters
        threads = work.block[0] * work.block[1] * work.block[2]
        self.threads = -(-threads // 32) * 32
        self.blocks = len(work.chosen)
        self.size = self.blocks * self.threads
        self.random = np.random.default_rng((work.seed, work.chosen.start))
        self.mask: Array | None = None
        self._lanes: tuple[Any, Array] = (None, np.zeros(0, INT64))
        thread = np.tile(np.arange(self.threads), self.blocks)
        self.thread, self.lane_in_warp = thread, thread % 32
        self.live = thread < threads
        self._live_bits: Array | None = None
        self.plans: dict[Any, Any] = {}
        self._garbage: dict[Any, Array] = {}
        self._registers(thread, work.shared_bytes, work.dynamic_shared_bytes)
        self.written = {slot: np.zeros(self.size, BOOL) for slot in self.program.tracked}

    def _registers(self, thread: Array, shared: int, dynamic: int) -> None:
        program = self.program
        if self.size not in program.constants:
            constants: list[Array | None] = [None] * len(program.names)
            for slot, value in program.fixed.items():
                constants[slot] = np.full(self.size, value)
            program.constants[self.size] = constants
        self.R: list[Any] = list(program.constants[self.size])
        index = np.repeat(np.array(self.chosen), self.threads)
        bx, by, _ = self.block_shape
        gx, gy, _ = self.grid
        vectors = {
            "%tid": (thread % bx, thread // bx % by, thread // (bx * by)),
            "%ctaid": (index % gx, index // gx % gy, index // (gx * gy)),
            "%ntid": self.block_shape, "%nctaid": self.grid,
        }  # fmt: skip
        one = np.uint64(1) << self.lane_in_warp.astype(UINT64)
        singles: dict[str, Any] = {
            "%laneid": self.lane_in_warp, "%warpid": thread // 32, "%nwarpid": self.threads // 32,
            "%dynamic_smem_size": dynamic, "%total_smem_size": shared, "%lanemask_eq": one,
            "%lanemask_lt": one - 1, "%lanemask_le": 2 * one - 1,
            "%lanemask_ge": 2**32 - one, "%lanemask_gt": 2**32 - 2 * one,
        }  # fmt: skip
        for name, slot in program.specials.items():
            stem, _, axis = name.partition(".")
            value = vectors[stem]["xyz".index(axis)] if axis else singles.get(name, 0)
            made = np.empty(self.size, UNSIGNED[program.widths[slot]])
            made[:] = value
            self.R[slot] = made

    def garbage(self, dtype: np.dtype[Any]) -> Array:
        if dtype not in self._garbage:
            made = self.random.integers(0, 256, self.size * dtype.itemsize, np.uint8)
            self._garbage[dtype] = (made & 1).view(BOOL) if dtype is BOOL else made.view(dtype)
        return self._garbage[dtype]

    def put(self, slot: int, value: Array) -> None:
        """Write a register of the active lanes."""
        if self.mask is not None:
            old = self.R[slot]
            if old is None:
                old = self.garbage(value.dtype)
            elif old.dtype is not value.dtype:
                old = old.view(value.dtype)
            value = np.where(self.mask, value, old)
        self.R[slot] = value

    def put_lanes(self, slot: int, value: Array, lanes: Array | None) -> None:
        if lanes is None:
            self.R[slot] = value
            return
        old = self.R[slot]
        made = self.garbage(value.dtype).copy() if old is None else old.view(value.dtype).copy()
        made[lanes] = value
        self.R[slot] = made

    def put_warps(self, slot: int, value: Array, warps: Array) -> None:
        if self.mask is None:
            self.R[slot] = value.reshape(-1)
            return
        old = self.R[slot]
        made = self.garbage(value.dtype).copy() if old is None else old.view(value.dtype).copy()
        made.reshape(-1, 32)[warps] = value
        self.R[slot] = made

    def lanes(self) -> Array | None:
        """Numbers of the active lanes, None for all."""
        if self.mask is None:
            return None
        if self._lanes[0] is not self.mask:
            self._lanes = (self.mask, np.flatnonzero(self.mask))
        return self._lanes[1]

    def position(self, lane: int) -> int:
        """That of a lane among the active ones, which a LaneFault asks for."""
        return lane if self.mask is None else int(np.count_nonzero(self.mask[:lane]))

    def parameter(self, address: int, dtype: np.dtype[Any]) -> Array:
        offset = address - WINDOWS["param"]
        if not 0 <= offset <= len(self.parameters) - dtype.itemsize or offset % dtype.itemsize:
            raise LaneFault(f"{dtype.itemsize} bytes at {offset} of the parameters' {len(self.parameters)}")
        return np.full(self.size, np.frombuffer(self.parameters, dtype, 1, offset)[0])

    def active_bits(self, mask: Array | None = None) -> Array:
        mask = self.mask if mask is None else mask
        if mask is None:
            return np.full(self.size // 32, 0xFFFFFFFF, UINT32)
        return np.packbits(mask, bitorder="little").view(UINT32)

    def live_bits(self) -> Array:
        if self._live_bits is None:
            self._live_bits = np.packbits(self.live, bitorder="little").view(UINT32)
        return self._live_bits

    def named_by_warp(self, named: Array, active: Array) -> Array:
        return np.where(active.reshape(-1, 32), named, np.uint32(0)).max(1)

    def end(self, mask: Array | None) -> None:
        """Lanes are gone."""
        self.live = self.live & ~(np.ones(self.size, BOOL) if mask is None else mask)
        self._live_bits = None
