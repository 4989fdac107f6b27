"""Shared memory, and what is known of every byte of it."""

from __future__ import annotations

import numpy as np

from machines.ptx.faults import LaneFault
from machines.ptx.registers import Registers, Work
from machines.ptx.spaces import SHARED_BASE, SHIFTS, aligned
from machines.ptx.values import INT64, UINT64, UNSIGNED, Array, first, scalar

# What is known of a byte of shared memory: that it holds a value, that the warp (number + 1) in the low bits wrote it
# since the last barrier, and who else touched it. A copy in flight writes, but holds no value yet.
HOLDS, WRITTEN, MANY = 0x80, 0x40, 0x3F
REPEAT = {1: 1, 2: 0x0101, 4: 0x01010101, 8: 0x0101010101010101}
COMBINATIONS = [a | b | c for a in (0, HOLDS) for b in (0, WRITTEN) for c in (0, MANY)]
EVERY = {
    unit: {known: scalar(known * repeat, UNSIGNED[unit * 8]) for known in COMBINATIONS}
    for unit, repeat in REPEAT.items()
}
ONE = scalar(1, INT64)
SHARED_BEGIN = scalar(SHARED_BASE, UINT64)


class SharedMemory(Registers):
    """The lanes with the shared memory of their blocks; copies to it may be in flight."""

    def __init__(self, work: Work):
        super().__init__(work)
        self.shared_bytes, self.shared_stride = work.shared_bytes, -(-work.shared_bytes // 16) * 16
        data = self.random.integers(0, 256, self.blocks * self.shared_stride, np.uint8)
        self.shared = {size: data.view(UNSIGNED[size * 8]) for size in (1, 2, 4, 8)}
        state = np.zeros_like(data)
        self.state = {size: state.view(UNSIGNED[size * 8]) for size in REPEAT}
        self.block_base = np.repeat(np.arange(self.blocks) * self.shared_stride, self.threads)
        warp = self.thread // 32 + 1
        tags = (warp * REPEAT[8]).astype(UINT64)  # in all bytes of a word
        self.tags = {size: tags.astype(UNSIGNED[size * 8]) for size in REPEAT}
        self.copies: list[tuple[Array, Array, Array, Array]] = []  # lanes, places, data, groups

    def shared_places(self, addresses: Array, size: int, lanes: Array | None, name: str = "address") -> Array:
        """Where bytes are in the batch's shared memory."""
        offsets = addresses - SHARED_BEGIN
        spread = int(np.bitwise_or.reduce(offsets))  # no offset is larger, or less aligned
        if spread & (size - 1):
            aligned(addresses, size, name)
        if spread + size > self.shared_bytes and int(np.maximum.reduce(offsets)) + size > self.shared_bytes:
            at = first((offsets + np.uint64(size) > self.shared_bytes) | (addresses < SHARED_BEGIN))
            place = int(addresses[at]) - SHARED_BASE
            raise LaneFault(f"{size} bytes at {place} of the {self.shared_bytes} of shared memory", at)
        return offsets.view(INT64) + (self.block_base if lanes is None else self.block_base[lanes])

    def _words(self, places: Array, size: int, lanes: Array | None) -> tuple[Array, Array, Array, int]:
        """Index of what is known of words of shared memory, that, the tags of the lanes, bytes of a word."""
        unit = min(size, 8)
        index, tags = places >> SHIFTS[unit], self.tags[unit]
        tags = tags if lanes is None else tags[lanes]
        if size > unit:
            index, tags = np.concatenate((index, index + ONE)), np.concatenate((tags, tags))
        return index, self.state[unit], tags, unit

    def watch_reads(self, places: Array, size: int, lanes: Array | None) -> None:
        index, state, tags, unit = self._words(places, size, lanes)
        word = EVERY[unit]
        found, own = state[index], tags | word[HOLDS]
        others = (found & word[HOLDS | MANY]) != own
        if not np.count_nonzero(others):
            return
        clean = ((found & word[HOLDS | WRITTEN]) == word[HOLDS]) | ~others
        if np.count_nonzero(clean) < clean.size:
            self._watch_bytes_read(index, state, tags, unit, len(places))
            return
        touched = found & word[MANY]
        simple = (touched == tags) | (touched == word[0])
        if np.count_nonzero(simple) == simple.size:
            fresh = found | tags
        else:
            rest = touched[~simple].view(np.uint8).reshape(-1, unit)
            if np.count_nonzero(rest != rest[:, :1]):
                self._watch_bytes_read(index, state, tags, unit, len(places))
                return
            fresh = found | np.where(simple, tags, word[MANY])
        state[index] = fresh
        again = state[index]
        both = again != fresh
        if np.count_nonzero(both):
            state[index[both]] = again[both] | word[MANY]

    def _watch_bytes_read(self, index: Array, state: Array, tags: Array, unit: int, lanes: int) -> None:
        known, tag = state[index].view(np.uint8).reshape(-1, unit), tags.view(np.uint8).reshape(-1, unit)
        touched = known & MANY
        if np.count_nonzero(known < HOLDS):
            at, byte = (int(x[0]) for x in np.nonzero(known < HOLDS))
            place = int(index[at]) * unit + byte
            what = "a copy to it is in flight" if self._in_flight(place) else "it was never written"
            raise LaneFault(f"reads shared memory at {self.shared_offset(place)}, but {what}", at % lanes)
        race = (known & WRITTEN != 0) & (touched != tag)
        if np.count_nonzero(race):
            self._race("read", index, known, race, unit, lanes)
        fresh = np.where(touched == 0, tag | HOLDS, np.where(touched == tag, known, MANY | HOLDS))
        state[index] = fresh.view(state.dtype).reshape(-1)
        again = state[index].view(np.uint8).reshape(-1, unit)
        if np.count_nonzero(again != fresh):
            both = (again != fresh).any(1)
            mixed = np.where(again != fresh, MANY | HOLDS, again)[both]
            state[index[both]] = mixed.view(state.dtype).reshape(-1)

    def watch_writes(
        self, places: Array, size: int, lanes: Array | None, holds: int, values: list[Array]
    ) -> Array | None:
        """Note writes, and return the lanes that write with another warp's at once: all must write the same.

        Two warps may write the same value, as they do where Triton has several warps hold the same elements.
        """
        index, state, tags, unit = self._words(places, size, lanes)
        fresh = tags | EVERY[unit][WRITTEN | holds]
        touched = state[index] & EVERY[unit][MANY]
        if np.count_nonzero(touched) and np.count_nonzero((touched != 0) & (touched != tags)):
            known, tag = state[index].view(np.uint8).reshape(-1, unit), tags.view(np.uint8).reshape(-1, unit)
            others = (known & MANY != 0) & (known & MANY != tag)
            here = places + np.arange(0, size, unit)[:, None]
            present = self.shared[1][here.reshape(-1, 1) + np.arange(unit)]
            written = np.stack(values, axis=1).view(np.uint8).reshape(len(places), size // unit, unit)
            written = written.swapaxes(0, 1).reshape(-1, unit)
            race = others & ((known & (WRITTEN | HOLDS) != WRITTEN | HOLDS) | (present != written))
            if np.count_nonzero(race):
                self._race("write", index, known, race, unit, len(places))
            many = np.where(others, np.uint8(MANY), np.uint8(0))
            fresh = (fresh.view(np.uint8).reshape(-1, unit) | many).view(fresh.dtype).reshape(-1)
        state[index] = fresh
        again = state[index]
        both = again != fresh
        if not np.count_nonzero(both):
            return None
        other = np.flatnonzero(both)
        found, mine = again[other].view(np.uint8), fresh[other].view(np.uint8)
        state[index[other]] = np.where(found != mine, found | np.uint8(MANY), found).view(state.dtype)
        return np.unique(other % len(places))

    def _race(self, what: str, index: Array, known: Array, race: Array, unit: int, lanes: int) -> None:
        at = first(race.any(1))
        byte = first(race[at])
        other = int(known[at, byte])
        who = f"warp {(other & MANY) - 1}" if other & MANY != MANY else "several warps"
        did = "wrote" if other & WRITTEN else "read"
        place = self.shared_offset(int(index[at]) * unit + byte)
        message = f"race: {what} of shared memory at {place}, which {who} {did} since the last barrier"
        raise LaneFault(message, at % lanes)

    def shared_offset(self, place: int) -> int:
        """Where a place is in the memory of its block."""
        return int(place) % self.shared_stride

    def _in_flight(self, place: int) -> bool:
        return any(
            np.count_nonzero((places <= place) & (places + data.shape[1] > place)) for _, places, data, _ in self.copies
        )

    def new_epoch(self, blocks: Array | None) -> None:
        """A barrier of some blocks, or all: what was touched before is nobody's any longer."""
        if not self.shared_stride:
            return
        state = self.state[1].reshape(self.blocks, -1)
        if blocks is None:
            state &= HOLDS
        else:
            state[blocks] &= HOLDS
