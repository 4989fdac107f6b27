"""Where and how kernels are launched: devices, configurations, and one launch for many items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import triton

from tam_fast.backends.triton import tuning
from tam_fast.backends.triton.tuning import Configuration, Tuner

__all__ = ["INTERPRETED", "configured", "info", "many", "measuring", "on", "one", "tiles", "tuner", "unavailable"]

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether the kernels were made for Triton's interpreter, and so for CPU tensors."""


# -------------------------------------------------------------------------------------------------------------- devices


def unavailable(device: torch.device | None = None) -> str | None:
    """Say why Triton cannot serve tensors of a device (by default: of any), or None if it can."""
    if INTERPRETED:
        if device is None or device.type == "cpu":
            return None
        return f"TRITON_INTERPRET=1 interprets kernels on CPU tensors, got tensors on {device}"
    if device is not None and device.type != "cuda":
        return f"expected CUDA tensors (or TRITON_INTERPRET=1 set before the start), got tensors on {device}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device, and TRITON_INTERPRET=1 is not set"
    return None


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device current for launches, or refuse it."""
    why = unavailable(device)
    if why is not None:
        raise RuntimeError(f"triton: {why}")
    if INTERPRETED:
        return np.errstate(all="ignore")
    if device.index is None or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def _capturing() -> bool:
    return not INTERPRETED and bool(torch.cuda.is_current_stream_capturing())


# ------------------------------------------------------------------------------------------------------- configurations


_tuners: dict[str, Tuner] = {}


def tuner() -> Tuner:
    """Return the configurations for the current device."""
    if INTERPRETED:
        name = "interpreter"
    else:
        major, minor = torch.cuda.get_device_capability()
        name = f"sm_{major}{minor}"
        if torch.version.hip is not None:
            name = str(torch.cuda.get_device_properties().gcnArchName).partition(":")[0]
    return _tuners.setdefault(name, Tuner(name))


_measured_now = False  # whether inside measuring()


@contextmanager
def measuring() -> Iterator[None]:
    """Measure configurations of whatever is launched inside a ``with`` block and was never measured."""
    global _measured_now
    _measured_now = True
    try:
        yield
    finally:
        _measured_now = False


def _measure(launch: Callable[[Configuration], Any]) -> Callable[[Configuration], float | None]:
    def measure(configuration: Configuration) -> float | None:
        try:
            compiled = launch(configuration)
            if getattr(compiled, "n_spills", 0):
                return None
            return float(triton.testing.do_bench(lambda: launch(configuration), warmup=5, rep=20, return_mode="median"))
        except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError):
            return None

    return measure


def configured(
    kernel: str, number_format: str, sizes: Sequence[int], launch: Callable[[Configuration], Any]
) -> Configuration:
    """Find a launch's configuration; where that was asked for and none is known, measure some first."""
    known = tuner()
    configuration, measured = known.find(kernel, number_format, sizes)
    if not measured and (_measured_now or tuning.is_requested()) and not INTERPRETED and not _capturing():
        configuration = known.tune(kernel, number_format, sizes, _measure(launch))
    return configuration


def info() -> dict[str, Any]:
    """Tell whether Triton can serve here, why not, and which configurations are in use and where they came from."""
    why = unavailable()
    return {
        "version": str(triton.__version__),
        "available": why is None,
        "why": why or ("TRITON_INTERPRET=1" if INTERPRETED else "CUDA device found"),
        "interpreted": INTERPRETED,
        "cache": str(tuning.cache_folder()),
        "autotune": tuning.is_requested(),
        "configurations": {name: known.info() for name, known in _tuners.items()},
    }


# ------------------------------------------------------------------------------------------------------------- launches


def tiles(size: int, block: int) -> int:
    """How many blocks cover some size."""
    return -(-size // block)


def one(kernel: Any, programs: int, configuration: Configuration, *arguments: int, **constants: Any) -> Any:
    """Launch a kernel, and return what was compiled."""
    return kernel[(programs,)](
        *arguments,
        **constants,
        **configuration.blocks,
        num_warps=configuration.warps,
        num_stages=configuration.stages,
        enable_fp_fusion=True,
    )


def many(
    kernel: Any,
    programs: Callable[[int, Configuration], int],
    items: Sequence[Sequence[int]],
    device: torch.device,
    configuration: Configuration,
    *common: int,
    **constants: Any,
) -> Any:
    """Launch a kernel once for all items; the i-th is worked on by programs(i, configuration) programs."""
    counts = [programs(i, configuration) for i in range(len(items))]
    some = [(count, item) for count, item in zip(counts, items, strict=True) if count]
    if len(some) > 1 and not _capturing():
        first, rows = 0, []
        for count, item in some:
            rows.append((first, *item))
            first += count
        table = torch.tensor(rows, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
        table = table.to(device, non_blocking=True)
        return one(
            kernel, first, configuration, table.data_ptr(), len(some), *common, *(0,) * len(items[0]), **constants
        )
    compiled = None
    for count, item in some:
        # A graph would copy a table from memory that has long been used for something else.
        compiled = one(kernel, count, configuration, 0, 1, *common, *item, **constants)
    return compiled
