"""The CUDA module as nvcc builds it, without a GPU: its PTX on the machine, its launches through a stand-in runtime."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from machines import cuda_modules, ptx

RUNTIME = Path(__file__).with_name("cuda_runtime_double.cpp")
# The oldest architecture there are kernels for; no inline PTX of theirs needs a later one.
ARCHITECTURE = "80-virtual"
MULTIPROCESSORS, SHARED_BYTES = 132, 227 * 1024  # of an H100
LONGEST_PARAMETERS = 32764
LAUNCH_FAILURE = 719


@functools.cache
def folder() -> Path:
    """Return where ``_cuda`` on the stand-in runtime and its kernels' PTX lie, built from these sources or cached."""
    pybind11 = importlib.util.find_spec("pybind11")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    if pybind11 is None or pybind11.origin is None or shutil.which("cmake") is None:
        pytest.skip("building the CUDA module needs cmake and pybind11, which the extra 'test' installs")
    pybind11_folder = Path(pybind11.origin).parent / "share" / "cmake" / "pybind11"
    runtime = hashlib.sha256(RUNTIME.read_bytes()).hexdigest()
    cache = cuda_modules.cache_folder(f"ptx {ARCHITECTURE} {nvcc} {sys.version} {runtime}")

    def make(scratch: Path, kept: Path) -> None:
        build, kernels, runtime_object = scratch / "build", scratch / "ptx", scratch / "cuda_runtime_double.o"
        kernels.mkdir()
        compiled = ("-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "-c", str(RUNTIME), "-o", str(runtime_object))
        cuda_modules.run(nvcc, *compiled)
        cuda_modules.run(
            *("cmake", "-S", str(ROOT), "-B", str(build)),
            *(("-G", "Ninja") if shutil.which("ninja") else ()),
            *("-DTAM_FAST_CUDA=ON", "-DTAM_FAST_WERROR=ON", f"-DCMAKE_CUDA_ARCHITECTURES={ARCHITECTURE}"),
            *(f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_FLAGS=--keep --keep-dir={kernels}"),
            # An object comes before libraries: nothing is left for the runtime library to define.
            f"-DCMAKE_MODULE_LINKER_FLAGS={runtime_object}",
            *("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"),
            "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_folder}",
        )
        parallel = ("--parallel", str(os.cpu_count() or 1))
        cuda_modules.run("cmake", "--build", str(build), "--target", "_cuda", *parallel)
        for source in (ROOT / "csrc" / "cuda").glob("*.cu"):
            shutil.copy2(kernels / f"{source.stem}.ptx", kept)
        shutil.copy2(next(build.rglob("_cuda*.so")), kept)

    return cuda_modules.cached(cache, make)


_HANDLER = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint * 3),
    ctypes.POINTER(ctypes.c_uint * 3),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
)


class PtxModule:
    """The module ``_cuda``, whose launches run on the machine. To tests it is what the emulated module is.

    Launches touch the memory of ``running()``. Faults of theirs are raised by the call that launched.
    """

    emulated = True

    def __init__(self, folder: Path) -> None:
        path = next(folder.glob("_cuda*.so"))
        self._module = cuda_modules.import_module("_cuda", path)
        assert not self._module.emulated
        self._runtime = ctypes.CDLL(str(path))
        self._handler = _HANDLER(self._launch)  # kept alive
        self._runtime.set_launch_handler(self._handler)
        self._runtime.shared_bytes_allowed.restype = ctypes.c_size_t
        self._texts = {path: path.read_text() for path in sorted(folder.glob("*.ptx"))}
        self._file_of = {
            name: path for path, text in self._texts.items() for name in re.findall(r"\.entry\s+(\w+)", text)
        }
        self._change: Callable[[str], str] = str
        self._modules: dict[Path, ptx.Module] = {}
        self._memory: ptx.Memory | None = None
        self._error: BaseException | None = None
        self._seed = 0
        self._launches = 0
        self.launched: set[str] = set()  # since running() began

    @property
    def kernels(self) -> set[str]:
        """Names of all kernels in the PTX."""
        return set(self._file_of)

    def kernel(self, name: str) -> ptx.Kernel:
        path = self._file_of[name]
        if path not in self._modules:
            self._modules[path] = ptx.Module(self._change(self._texts[path]))
        return self._modules[path].kernels[name]

    def shared_bytes_allowed(self, name: str) -> int:
        """Dynamic shared memory that launches of a kernel may ask for."""
        return int(self._runtime.shared_bytes_allowed(name.encode()))

    def set_seed(self, seed: int) -> None:
        self._seed = seed

    def launches(self) -> int:
        return self._launches

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return functools.partial(self._call, value) if callable(value) else value

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._error = None
        try:
            return function(*arguments, **options)
        except RuntimeError as error:
            assert self._runtime.pending_error() == 0, "a launch left its error to whoever asks later"
            if self._error is not None:
                raise self._error from error
            raise

    def _launch(self, name: bytes, grid: Any, block: Any, shared_bytes: int, addresses: Any) -> int:
        try:
            self._run(name.decode(), tuple(grid.contents), tuple(block.contents), shared_bytes, addresses)
        except BaseException as error:  # a callback has nobody to raise it to
            self._error = error
            return LAUNCH_FAILURE
        return 0

    def _run(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int, addresses: Any) -> None:
        if self._memory is None:
            raise AssertionError("a launch outside running()")
        kernel = self.kernel(name)
        assert kernel.parameter_bytes <= LONGEST_PARAMETERS
        values = bytearray(kernel.parameter_bytes)
        count = len(kernel.parameters)
        assert addresses[count] is None, "the launchers end them so"
        for address, parameter in zip(addresses[:count], kernel.parameters, strict=True):
            values[parameter.offset : parameter.offset + parameter.size] = ctypes.string_at(address, parameter.size)
        kernel.launch(grid, block, bytes(values), shared_bytes=shared_bytes, memory=self._memory, seed=self._seed)
        self._launches += 1
        self.launched.add(name)

    @contextmanager
    def running(self) -> Iterator[PtxModule]:
        """Let launches touch the tensors that are made or used from here on."""
        with ptx.Memory.recording() as memory:
            self._memory = memory
            self.launched = set()
            try:
                yield self
            finally:
                self._memory = None
                self._seed = 0

    @contextmanager
    def altered(self, change: Callable[[str], str]) -> Iterator[None]:
        """Let launches run PTX that was changed."""
        modules, self._modules, self._change = self._modules, {}, change
        try:
            yield
        finally:
            self._modules, self._change = modules, str

    @contextmanager
    def device(self, *, multiprocessors: int = MULTIPROCESSORS, shared_bytes: int = SHARED_BYTES) -> Iterator[None]:
        """Be another device than an H100."""
        self._runtime.set_device(multiprocessors, shared_bytes)
        try:
            yield
        finally:
            self._runtime.set_device(MULTIPROCESSORS, SHARED_BYTES)


@functools.cache
def load() -> PtxModule:
    """Return the module, built from the checkout's sources."""
    return PtxModule(folder())
