"""The CUDA kernels for tests: emulated everywhere, from the same sources, and on the GPU where there is one."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from places import ROOT
from torch import Tensor

TARGETS = ("emulated", "cuda") if torch.cuda.is_available() else ("emulated",)


@dataclass(frozen=True)
class Target:
    """A compiled module, and where the tensors lie whose addresses it takes."""

    module: Any
    device: torch.device

    @property
    def emulated(self) -> bool:
        return bool(self.module.emulated)

    @property
    def stream(self) -> int:
        return 0 if self.emulated else torch.cuda.current_stream(self.device).cuda_stream

    def put(self, x: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.as_tensor(x, dtype=dtype).to(self.device)


def _sources() -> list[Path]:
    folders = [ROOT / "csrc" / name for name in ("cuda", "include", "bindings")]
    return [
        ROOT / "CMakeLists.txt",
        ROOT / "csrc" / "CMakeLists.txt",
        *sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()),
    ]


def run(*command: str) -> None:
    """Run a program of a build; what it prints is in the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}")


def cached(cache: Path, build: Callable[[Path, Path], None]) -> Path:
    """Return the folder `cache`, made by build(scratch folder, folder of what is kept) if it is not there yet."""
    if not cache.is_dir():
        cache.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            kept = Path(folder) / "kept"
            kept.mkdir()
            build(Path(folder), kept)
            try:
                kept.rename(cache)  # at once, so that nobody finds half of it
            except OSError:
                if not cache.is_dir():
                    raise
    return cache


def cache_folder(maker: str) -> Path:
    """Path of the folder, perhaps still to be made, for what `maker` makes of these very sources."""
    digest = hashlib.sha256(maker.encode())
    for path in _sources():
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"tam_fast-{user}" / digest.hexdigest()[:16]


@functools.cache
def emulation_folder() -> Path:
    """Return where ``_cuda_emulated`` and ``test_cuda_emulation`` lie, built from these sources or cached."""
    found = importlib.util.find_spec("pybind11")
    if found is None or found.origin is None or shutil.which("cmake") is None:
        pytest.skip("building the emulation needs cmake and pybind11, which the extra 'test' installs")
    pybind11 = Path(found.origin).parent / "share" / "cmake" / "pybind11"

    def make(folder: Path, kept: Path) -> None:
        build = folder / "build"
        run(
            *("cmake", "-S", str(ROOT), "-B", str(build), *(("-G", "Ninja") if shutil.which("ninja") else ())),
            *("-DTAM_FAST_CUDA=OFF", "-DTAM_FAST_CUDA_EMULATION=ON", "-DTAM_FAST_TESTS=ON", "-DTAM_FAST_WERROR=ON"),
            *(f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release", f"-Dpybind11_DIR={pybind11}"),
        )
        for name in ("_cuda_emulated", "test_cuda_emulation"):
            run("cmake", "--build", str(build), "--target", name, "--parallel", str(os.cpu_count() or 1))
        for path in (*build.rglob("_cuda_emulated*.so"), *build.rglob("test_cuda_emulation")):
            shutil.copy2(path, kept)

    return cached(cache_folder(sys.version), make)


def import_module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def emulation() -> Any:
    """Return the module ``_cuda_emulated`` of the checkout's sources."""
    module = import_module("_cuda_emulated", next(emulation_folder().glob("_cuda_emulated*.so")))
    assert module.emulated
    return module


@functools.cache
def load(name: str) -> Target:
    """Return the module that a name of ``TARGETS`` stands for."""
    if name == "emulated":
        return Target(emulation(), torch.device("cpu"))
    from tam_fast import _cuda  # built with nvcc

    assert not _cuda.emulated
    return Target(_cuda, torch.device("cuda", torch.cuda.current_device()))
