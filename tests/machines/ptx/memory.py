"""Global memory: the blocks of the host's that a kernel may touch."""

from __future__ import annotations

import bisect
import ctypes
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from machines.ptx.faults import LaneFault
from machines.ptx.spaces import SHIFTS, aligned
from machines.ptx.values import INT64, UINT64, UNSIGNED, Array, first, scalar

LOWEST = 4096  # no host address is below
_BYTES = np.ctypeslib.as_array((ctypes.c_uint8 * (2**47 - 2 * LOWEST)).from_address(LOWEST))
HOST = {size: _BYTES.view(UNSIGNED[size * 8]) for size in (1, 2, 4, 8)}


class Memory:
    """The global memory that kernels may touch, as blocks of host memory."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        self._storages: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self._bounds: tuple[list[int], list[int]] | None = None
        self._arrays: tuple[Array, Array] = (np.zeros(0, UINT64), np.zeros(0, UINT64))

    @staticmethod
    def recording() -> Recorder:
        """Memory that knows, while it is active as a context, every tensor that torch takes or returns."""
        return Recorder()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def add(self, address: int, size: int) -> None:
        self._blocks[address] = max(size, self._blocks.get(address, 0))
        self._bounds = None

    def add_tensor(self, tensor: torch.Tensor) -> None:
        """The whole storage of a CPU tensor, for as long as it lives."""
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        reference = StorageWeakRef(storage)
        known = self._storages.get(reference.cdata)
        if known is None or known[1:] != (address, size) or known[0].expired():
            self._storages[reference.cdata] = (reference, address, size)
            self._bounds = None

    def refresh(self) -> None:
        """Forget the tensors that died, and order the rest."""
        dead = [key for key, (reference, *_) in self._storages.items() if reference.expired()]
        for key in dead:
            del self._storages[key]
        if self._bounds is not None and not dead:
            return
        blocks = sorted([*self._blocks.items(), *((address, size) for _, address, size in self._storages.values())])
        starts: list[int] = []
        ends: list[int] = []
        for address, size in blocks:
            if not size:
                continue
            if starts and address < ends[-1]:
                ends[-1] = max(ends[-1], address + size)
            else:
                starts.append(address)
                ends.append(address + size)
        self._bounds = (starts, ends)
        self._arrays = (np.array(starts, UINT64), np.array(ends, UINT64))

    def locate(self, addresses: Array, size: int, whole: int) -> tuple[Array, Array]:
        """Index of elements of `size` bytes, and the host memory that it is an index of.

        Raises LaneFault for the first address from which `whole` bytes are not in one block, or that is not aligned.
        """
        assert self._bounds is not None
        starts, ends = self._bounds
        block = bisect.bisect_right(starts, int(addresses[0])) - 1
        if block >= 0:
            start, length = starts[block], ends[block] - starts[block]
            offsets = addresses - scalar(start, UINT64)
            spread = int(np.bitwise_or.reduce(offsets))  # no offset is larger, or less aligned
            if not (start | spread) & (whole - 1) and (
                spread + whole <= length or int(np.maximum.reduce(offsets)) + whole <= length
            ):
                return offsets.view(INT64) >> SHIFTS[size], HOST[size][(start - LOWEST) // size :]
        aligned(addresses, whole)
        self.check(addresses, whole)
        return (addresses - np.uint64(LOWEST)).view(INT64) >> SHIFTS[size], HOST[size]

    def check(self, addresses: Array, size: int) -> None:
        """Raise LaneFault for the first address from which `size` bytes are not in one block."""
        assert self._bounds is not None
        starts, ends = self._bounds
        low, high = int(addresses.min()), int(addresses.max())
        block = bisect.bisect_right(starts, low) - 1
        if block >= 0 and high + size <= ends[block]:
            return
        firsts, lasts = self._arrays
        if not len(firsts):
            raise LaneFault(f"{size} bytes at {low:#x}, and there is no memory")
        blocks = np.searchsorted(firsts, addresses, "right").astype(INT64) - 1
        bad = (blocks < 0) | (addresses > np.uint64(2**47)) | (addresses + np.uint64(size) > lasts[blocks])
        if np.count_nonzero(bad):
            at = first(bad)
            address = int(addresses[at])
            block = bisect.bisect_right(starts, address) - 1
            where = f"before every block, the first of which is at {starts[0]:#x}"
            if block >= 0:
                begin, length = starts[block], ends[block] - starts[block]
                where = f"{address - begin} bytes from the start of a block of {length} at {begin:#x}"
            raise LaneFault(f"{size} bytes at {address:#x} are outside memory: {where}", at)


class Recorder(Memory):
    """Memory with a dispatch mode: see Memory.recording()."""

    def __enter__(self) -> Recorder:
        self._mode = _RecordingMode(self)
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        self._mode.__exit__(*exception)  # type: ignore[no-untyped-call]


class _RecordingMode(TorchDispatchMode):
    def __init__(self, memory: Memory):
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = memory

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs))
        if function.namespace in ("aten", "prim", "prims"):
            result = function(*args, **(kwargs or {}))
        else:  # operators written in Python: also what they make on the way
            with self:
                result = function.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **(kwargs or {}))
        self._note(result)
        return result

    def _note(self, values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout == torch.strided:
                self.memory.add_tensor(value)
