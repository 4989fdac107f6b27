"""Which backend serves the operators: selection, environment variables, :func:`backend_info`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch

from tam_fast._version import __version__
from tam_fast.backends.contracts import OPERATORS, Backend, DeviceBackend, HostBackend
from tam_fast.backends.copying import copying

__all__ = ["backend_info", "serving", "use_backend"]

VARIABLE = "TAM_FAST_BACKEND"
BACKENDS = ("cpu", "cuda", "triton", "reference")
CPU = torch.device("cpu")
BUILD_CUDA = "pip install --force-reinstall --no-deps -C cmake.define.TAM_FAST_CUDA=ON ."
OLDEST_CUDA = (8, 0)  # compute capability that the CUDA kernels and Triton are built for


class _Choice(NamedTuple):
    name: str
    why: str
    backend: Backend
    resident: bool  # whether tensors stay on their device


_forced: tuple[str, str] | None = None  # name and who asked for it: use_backend
_chosen: dict[torch.device, _Choice] = {}


def _installed(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _without_cuda() -> str:
    from tam_fast import _C

    return _C.WITHOUT_CUDA or "tam_fast._cuda was there and is not any longer"


def _emulated() -> bool:
    """Whether the CUDA kernels were built for the CPU, to be tested there."""
    module = sys.modules.get("tam_fast._cuda")
    return bool(getattr(module, "emulated", False))


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _old_device(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and (major, minor) < OLDEST_CUDA:
        oldest = ".".join(map(str, OLDEST_CUDA))
        return f"needs compute capability {oldest} or later, and {device} has {major}.{minor}"
    return ""


def _unavailable(name: str) -> str:
    """Say why a backend cannot be used on this machine, '' if it can."""
    if name == "cuda":
        if not _installed("tam_fast._cuda"):
            return f"this installation was built without CUDA kernels ({_without_cuda()}); to build them: {BUILD_CUDA}"
        if torch.version.hip is not None:
            return "its kernels are for NVIDIA devices, and this torch is built for ROCm"
        if not (torch.cuda.is_available() or _emulated()):
            return "torch sees no CUDA device here"
    elif name == "triton":
        if not _installed("triton"):
            return "triton is not installed: pip install 'tam-fast[gpu]'"
        if not (torch.cuda.is_available() or _interpreted()):
            return "torch sees no CUDA device here (TRITON_INTERPRET=1 runs its kernels on CPU tensors, slowly)"
    elif name == "reference" and not _installed("scipy"):
        return "it needs scipy, which is not installed: pip install 'tam-fast[reference]'"
    return ""


def _refuses(name: str, device: torch.device) -> str:
    """Say why a backend that can be used here does not take tensors of a device, '' if it does."""
    if name == "cuda":
        if _emulated():
            return "" if device.type == "cpu" else f"emulated kernels take CPU tensors, got one on {device}"
        if device.type != "cuda":
            return f"its kernels take CUDA tensors, got one on {device}"
        return _old_device(device)
    if name == "triton":
        if device.type == "cuda":
            return _old_device(device)
        if device.type == "cpu" and _interpreted():
            return ""
        return f"its kernels take CUDA tensors, got one on {device}"
    return ""


def _load(name: str) -> Backend:
    return cast(Backend, importlib.import_module(f"tam_fast.backends.{name}"))


def _choice(name: str, why: str, device: torch.device) -> _Choice:
    backend = _load(name)
    resident = name in ("cuda", "triton")
    if not resident and device.type != "cpu":
        backend = copying(backend)
    return _Choice(name, why, backend, resident)


def _check(name: str, source: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    if reason := _unavailable(name):
        raise RuntimeError(f"{source}: expected a backend that can be used here, got {name!r}: {reason}")


def _explicit(name: str, source: str, device: torch.device) -> _Choice:
    """Take what was asked for, or raise."""
    _check(name, source)
    if reason := _refuses(name, device):
        raise ValueError(f"{source}: expected a backend for the given tensors, got {name!r}: {reason}")
    return _choice(name, source if source in ("use_backend", "backend") else f"{source}={name}", device)


def _automatic(device: torch.device) -> _Choice:
    """Take the quickest backend that can serve a device; `why` says what was passed over."""
    if device.type == "cpu":
        return _choice("cpu", "default: compiled kernels", device)
    passed: list[str] = []
    for name in ("cuda", "triton"):
        reason = _unavailable(name) or _refuses(name, device)
        if not reason:
            why = "; ".join([f"default for {device.type}", *passed])
            return _choice(name, why, device)
        passed.append(f"{name}: {reason}")
    return _choice("cpu", "; ".join(passed), device)


def asked(name: str | None = None) -> tuple[str, str] | None:
    """Return which backend was asked for, and by what: `name`, ``use_backend`` or ``TAM_FAST_BACKEND``."""
    if name is not None:
        return name, "backend"
    requested = os.environ.get(VARIABLE, "")
    return _forced or ((requested, VARIABLE) if requested else None)


def _choose(device: torch.device) -> _Choice:
    """Return who serves the tensors of a device; decided when first asked."""
    choice = _chosen.get(device)
    if choice is None:
        forced = asked()
        choice = _automatic(device) if forced is None else _explicit(*forced, device)
        _chosen[device] = choice
    return choice


def serving(device: torch.device, name: str | None = None) -> Backend:
    """Return the backend for tensors of a device: the one named, or else the one selected.

    Raises
    ------
    RuntimeError
        If a backend was asked for by name, ``use_backend`` or ``TAM_FAST_BACKEND`` that cannot be used here.
    ValueError
        If there is none of that name, or it does not take tensors of the device.
    """
    if name is None:
        choice = _chosen.get(device)
        return (choice or _choose(device)).backend
    return _explicit(name, "backend", device).backend


def host(name: str | None = None) -> HostBackend:
    """Return the backend for CPU tensors that keeps its data there."""
    return cast(HostBackend, serving(CPU, name))


def resident(device: torch.device, name: str | None = None) -> DeviceBackend | None:
    """Return the backend whose tensors stay on the device all along, None if that of the device has none."""
    choice = _choose(device) if name is None else _explicit(name, "backend", device)
    return cast(DeviceBackend, choice.backend) if choice.resident else None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every operator by one backend inside a ``with`` block (for all threads).

    Parameters
    ----------
    name : str
        ``"cpu"`` (compiled kernels; tensors of other devices are copied), ``"cuda"`` (compiled kernels, CUDA tensors),
        ``"triton"`` (CUDA tensors) or ``"reference"`` (numpy and scipy, written from the equations).

    Raises
    ------
    ValueError
        If there is no backend of that name.
    RuntimeError
        If this installation or machine cannot use it. Tensors that it does not take are refused when they come.
    """
    global _forced, _chosen
    _check(name, "name")
    before = _forced, _chosen
    _forced, _chosen = (name, "use_backend"), {}
    try:
        yield
    finally:
        _forced, _chosen = before


def _gpu() -> dict[str, Any]:
    """Who serves CUDA tensors, and what its kernels are, as far as can be told without one."""
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        try:
            choice = _choose(device)
        except (RuntimeError, ValueError) as error:
            return {"serves": "none", "why": str(error)}
        described = choice.name if choice.resident else f"{choice.name}, copied from and to the device"
        return {"serves": described, "why": choice.why}
    return {"serves": "none", "why": "torch sees no CUDA device here"}


def backend_info() -> dict[str, Any]:
    """Tell which backend, instruction set and thread count serve each operator, and why.

    Returns
    -------
    dict
        ``version``, ``backend`` and ``why`` (of CPU tensors, or the one that was asked for), ``threads`` (of
        ``torch.get_num_threads()``), ``isa`` and ``available_isas`` of the CPU kernels, ``cuda`` and ``triton``
        (``{"built": bool, "usable": bool, "why": str}`` and what they tell of themselves), ``operators``: for each
        operator a mapping from device type to a short description, and ``cuda_why``: why CUDA tensors are served so.

    Raises
    ------
    ValueError, RuntimeError
        If ``TAM_FAST_BACKEND`` or ``TAM_FAST_ISA`` ask for something this build or machine does not have.
    """
    forced = asked()
    if forced:
        _check(*forced)
    if forced and _refuses(forced[0], CPU):
        # CPU tensors will be refused; the choice stands for those of the GPU.
        name, why, on_cpu = forced[0], f"{forced[1]}={forced[0]}", "none"
        details: dict[str, Any] = {}
    else:
        choice = _choose(CPU)
        name, why, details = choice.name, choice.why, choice.backend.info()
        on_cpu = f"{name} ({details['isa']})" if details.get("isa") else name
    gpu = _gpu()
    return {
        "version": __version__,
        "backend": name,
        "why": why,
        "threads": torch.get_num_threads(),
        "isa": details.get("isa"),
        "isa_why": details.get("isa_why"),
        "available_isas": details.get("available_isas", []),
        "cuda": _describe("cuda", "tam_fast._cuda"),
        "triton": _describe("triton", "triton"),
        "operators": {operator: {"cpu": on_cpu, "cuda": gpu["serves"]} for operator in OPERATORS},
        "cuda_why": gpu["why"],
    }


def _describe(name: str, module: str) -> dict[str, Any]:
    reason = _unavailable(name)
    built = _installed(module)
    about = {"built": built, "usable": not reason, "why": reason or "can be used"}
    if built and (name == "cuda" or not reason):
        about.update(_load(name).info())
    return about
