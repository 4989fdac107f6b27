"""A driver for Triton whose device is ``machines.ptx``: kernels are compiled and launched by Triton's own JIT, without
a GPU, and work on CPU tensors. Compilation ends with PTX for sm_80.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from machines import ptx

ARCHITECTURE = 80  # with mma.sync; later ones have instructions of their own for products of matrices
SHARED_BYTES = 99 * 1024  # of a program on the smallest GPU of this generation
FORMATS = {"i32": "i", "i64": "q", "u32": "I", "u64": "Q", "fp32": "f", "fp64": "d"}  # of arguments


def ends_with_ptx(*arguments: Any) -> Any:
    """Make PTX the last stage; Triton also asks without arguments what tells such compilations from others."""
    if not arguments:
        return "ends with PTX", "ends with PTX"
    stages: dict[str, Callable[[Any, dict[str, Any]], Any]] = arguments[1]
    stages["cubin"] = lambda text, metadata: text.encode()
    return None


class Event:
    """A point in time, as ``torch.cuda.Event``."""

    def __init__(self, enable_timing: bool) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.seconds - self.seconds)


class Interface:
    """What Triton's benchmarks ask for in place of ``torch.cuda``."""

    Event = Event

    @staticmethod
    def synchronize() -> None:
        pass


class Utilities:
    """What Triton asks of a device and does with a module. Kernels are ``loaded`` once they are compiled."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
        module = ptx.Module(binary.decode())
        assert list(module.kernels) == [name]
        self.loaded.append(name)
        return module, module.kernels[name], 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass


class Launcher:
    """Launches of one kernel: takes what ``JITFunction.run`` gives the launcher of a GPU."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.types = tuple(source.signature.values())
        self.metadata = metadata

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        kernel: ptx.Kernel,
        packed_metadata: tuple[int, int, int],
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *arguments: Any,
    ) -> None:
        warps, clusters, shared = packed_metadata
        assert clusters == 1
        assert self.metadata.global_scratch_size == self.metadata.profile_scratch_size == 0
        assert not self.metadata.launch_cooperative_grid
        assert not self.metadata.launch_pdl
        given = [(of, value) for of, value in zip(self.types, arguments, strict=True) if of != "constexpr"]
        # Every kernel takes two more addresses, of scratch memory.
        given += [("u64", 0), ("u64", 0)]
        parameters = bytearray(kernel.parameter_bytes)
        for (of, value), place in zip(given, kernel.parameters, strict=True):
            assert struct.calcsize(FORMATS[of]) == place.size
            struct.pack_into("<" + FORMATS[of], parameters, place.offset, value)
        driver = triton.runtime.driver.active
        driver.launches[self.metadata.name] += 1
        if x * y * z:
            assert driver.memory is not None, "launched outside of tensors()"
            kernel.launch(
                (x, y, z),
                (32 * warps, 1, 1),
                bytes(parameters),
                shared_bytes=shared,
                memory=driver.memory,
                seed=driver.launches.total(),
            )


class Driver(DriverBase):
    """Triton's device. Launches are counted by kernel."""

    def __init__(self) -> None:
        self.utils = Utilities()
        self.launcher_cls = Launcher
        self.launches: Counter[str] = Counter()
        self.memory: ptx.Memory | None = None

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", ARCHITECTURE, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_device_interface(self) -> type[Interface]:
        return Interface

    def get_empty_cache_for_benchmark(self) -> None:
        pass

    def clear_cache(self, cache: None) -> None:
        pass

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    @contextmanager
    def tensors(self) -> Iterator[None]:
        """Let kernels touch the tensors that are made or used inside a ``with`` block."""
        with ptx.Memory.recording() as self.memory:
            try:
                yield
            finally:
                self.memory = None


def install() -> Driver:
    """Make Triton compile for the machine and launch on it, in this process."""
    assert not triton.knobs.runtime.interpret
    driver = Driver()
    triton.runtime.driver.set_active(driver)
    triton.knobs.runtime.add_stages_inspection_hook = ends_with_ptx
    return driver
