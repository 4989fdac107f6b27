"""Loads, stores and atomics in every space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from machines.ptx.copies import Copies
from machines.ptx.faults import LaneFault
from machines.ptx.memory import HOST, LOWEST
from machines.ptx.registers import Work
from machines.ptx.shared import HOLDS, MANY, WRITTEN
from machines.ptx.spaces import SHIFTS, WINDOWS, aligned
from machines.ptx.values import INT64, UINT64, UNSIGNED, Array, first


class Access(Copies):
    """The lanes with all that they may load from and store to."""

    def __init__(self, work: Work):
        super().__init__(work)
        self.local_stride = -(-self.program.local_bytes // 16) * 16
        self.local = self.random.integers(0, 256, self.size * self.local_stride, np.uint8)

    def addresses(self, base: int | None, offset: int, lanes: Array | None) -> Array:
        if base is None:
            return np.full(self.size if lanes is None else len(lanes), offset, UINT64)
        value = self.R[base]
        if value.dtype.kind != "u":
            value = value.view(UNSIGNED[value.itemsize * 8])
        if lanes is not None:
            value = value[lanes]
        if offset:
            value = value + value.dtype.type(offset % (1 << value.itemsize * 8))
        return value if value.dtype is UINT64 else value.astype(UINT64)

    def space(self, addresses: Array) -> tuple[str, Array]:
        """What generic addresses are in, "generic" for several spaces, and where there."""
        low, high = int(addresses.min()), int(addresses.max())
        if high < 1 << 48:
            return "global", addresses
        for space, window in WINDOWS.items():
            if low >= window and high < 2 * window:
                return space, addresses if space == "param" else addresses - np.uint64(window)
        known = addresses < 1 << 48
        for window in WINDOWS.values():
            known |= (addresses >= window) & (addresses < 2 * window)
        if np.count_nonzero(known) < known.size:
            raise LaneFault(f"address {int(addresses[first(~known)]):#x} is in no space", first(~known))
        return "generic", addresses

    def _by_space(self, addresses: Array, lanes: Array | None, access: Callable[[Array, Array, Array], None]) -> None:
        """Access each space that generic addresses are in, by positions, addresses and lanes."""
        lanes = np.arange(self.size) if lanes is None else lanes
        spaces = addresses >> np.uint64(56)
        for space in np.unique(spaces):
            at = np.flatnonzero(spaces == space)
            try:
                access(at, addresses[at], lanes[at])
            except LaneFault as fault:
                fault.position = int(at[fault.position])
                raise

    def load(self, space: str, addresses: Array, size: int, count: int) -> list[Array]:
        return self._load(space, addresses, size, count, self.lanes())

    def _load(self, space: str, addresses: Array, size: int, count: int, lanes: Array | None) -> list[Array]:
        whole = size * count
        if space == "generic":
            space, addresses = self.space(addresses)
        if space == "generic":
            values = [np.empty(len(addresses), UNSIGNED[size * 8]) for _ in range(count)]

            def read(at: Array, some: Array, their: Array) -> None:
                for value, found in zip(values, self._load(space, some, size, count, their), strict=True):
                    value[at] = found

            self._by_space(addresses, lanes, read)
            return values
        if space == "param":
            return self._load_parameters(addresses, size, count)
        if space == "shared":
            places = self.shared_places(addresses, whole, lanes)
            self.watch_reads(places, whole, lanes)
            index, data = places >> SHIFTS[size], self.shared[size]
        else:
            index, data = self._places(space, addresses, size, whole, lanes)
        return [data[part:][index] if part else data[index] for part in range(count)]

    def store(self, space: str, addresses: Array, size: int, values: list[Array]) -> None:
        self._store(space, addresses, size, values, self.lanes())

    def _store(self, space: str, addresses: Array, size: int, values: list[Array], lanes: Array | None) -> None:
        whole, together = size * len(values), None
        if space == "generic":
            space, addresses = self.space(addresses)
        if space == "generic":

            def write(at: Array, some: Array, their: Array) -> None:
                self._store(space, some, size, [value[at] for value in values], their)

            self._by_space(addresses, lanes, write)
            return
        if space == "shared":
            places = self.shared_places(addresses, whole, lanes)
            together = self.watch_writes(places, whole, lanes, HOLDS, values)
            index, data = places >> SHIFTS[size], self.shared[size]
        else:
            index, data = self._places(space, addresses, size, whole, lanes)
        for part, value in enumerate(values):
            data[part:][index] = value
        if together is not None:
            for part, value in enumerate(values):
                lost = together[data[index[together] + part] != value[together]]
                if len(lost):
                    place = self.shared_offset(index[lost[0]] * size)
                    what = f"race: two warps write different values to shared memory at {place}"
                    raise LaneFault(what, int(lost[0]))

    def _places(self, space: str, addresses: Array, size: int, whole: int, lanes: Array | None) -> tuple[Array, Array]:
        """Index of elements, and what it is an index of."""
        if space == "global":
            return self.memory.locate(addresses, size, whole)
        if space != "local":
            raise LaneFault(f"access to {space} memory")
        aligned(addresses, whole)
        if int(addresses.max()) + whole > self.program.local_bytes:
            raise LaneFault(f"address {int(addresses.max()):#x} of local memory", int(addresses.argmax()))
        lane = np.arange(self.size) if lanes is None else lanes
        return (lane * self.local_stride + addresses.view(INT64)) // size, self.local.view(UNSIGNED[size * 8])

    def _load_parameters(self, addresses: Array, size: int, count: int) -> list[Array]:
        offsets = (addresses - np.uint64(WINDOWS["param"])).view(INT64)
        bad = (offsets < 0) | (offsets + size * count > len(self.parameters)) | (offsets % (size * count) != 0)
        if np.count_nonzero(bad):
            at = first(bad)
            raise LaneFault(f"{size * count} bytes at {int(offsets[at])} of the parameters' {len(self.parameters)}", at)
        padded = np.frombuffer(self.parameters + bytes(-len(self.parameters) % size), UNSIGNED[size * 8])
        return [padded[offsets // size + part] for part in range(count)]

    def atomic_cell(self, space: str, addresses: Array, i: int, dtype: np.dtype[Any]) -> Array:
        address, lanes = addresses[i : i + 1], self.lanes()
        lane = np.array([i]) if lanes is None else lanes[i : i + 1]
        try:
            if space == "generic":
                space, address = self.space(address)
            size = dtype.itemsize
            aligned(address, size)
            if space == "global":
                self.memory.check(address, size)
                at = (int(address[0]) - LOWEST) // size
                return HOST[size][at : at + 1].view(dtype)
            place = int(self.shared_places(address, size, lane)[0])
        except LaneFault as fault:
            raise LaneFault(str(fault), i) from None
        known = self.state[1][place : place + size]
        if (known < HOLDS).any():
            raise LaneFault(f"reads shared memory at {self.shared_offset(place)}, but it was never written", i)
        other = (known & WRITTEN != 0) & (known & MANY != self.tags[1][lane[0]])
        if other.any():
            raise LaneFault(f"race: atomic at {self.shared_offset(place)}, which another warp wrote", i)
        known[:] = HOLDS | MANY
        return self.shared[size][place // size : place // size + 1].view(dtype)
