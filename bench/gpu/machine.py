"""On what GPU the figures were taken: names, versions, and clocks as they were found."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import subprocess
from collections.abc import Sequence

import torch

import tam_fast
from bench import machine

# Variable that names the commit where the sources were brought without their history.
COMMIT = "TAM_FAST_COMMIT"
_QUERIES = {
    "device": "name",
    "driver": "driver_version",
    "SM clock": "clocks.current.sm",
    "highest SM clock": "clocks.max.sm",
    "memory clock": "clocks.current.memory",
    "highest memory clock": "clocks.max.memory",
    "application clock": "clocks.applications.graphics",
    "power limit": "power.limit",
    "temperature": "temperature.gpu",
    "persistence mode": "persistence_mode",
    "compute mode": "compute_mode",
}


def _answer(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _asked(index: int) -> dict[str, str]:
    """What the driver's tool says; it is only asked, nothing is set."""

    def ask(names: Sequence[str]) -> list[str]:
        query = f"--query-gpu={','.join(names)}"
        return [
            value.strip()
            for value in _answer(["nvidia-smi", f"--id={index}", query, "--format=csv,noheader"]).split(",")
        ]

    values = ask(list(_QUERIES.values()))
    if len(values) != len(_QUERIES):
        # One query that a driver does not know spoils all of them.
        values = [ask([name])[0] or "unknown" for name in _QUERIES.values()]
    return dict(zip(_QUERIES, values, strict=True))


def commit() -> str:
    """The commit, by the environment if it says so."""
    return os.environ.get(COMMIT) or machine.commit()


def _version(module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return "none"
    return str(getattr(importlib.import_module(module), "__version__", "unknown"))


def describe(device: torch.device, backends: Sequence[str]) -> dict[str, str]:
    """Describe a device and the programs that measure on it."""
    described = {}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described = _asked(int(device.index or 0))
        described["device"] = properties.name
        described["compute capability"] = f"{properties.major}.{properties.minor}"
        described["multiprocessors"] = str(properties.multi_processor_count)
        described["L2 cache, MiB"] = f"{properties.L2_cache_size / 2**20:.0f}"
    else:
        described["device"] = f"rehearsal on {machine.cpu_name()}"
    info = tam_fast.backend_info()
    return {
        **described,
        "tam_fast": tam_fast.__version__,
        "backends": ", ".join(backends),
        "architectures": ", ".join(info["cuda"].get("architectures", [])) or "none",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": _version("triton"),
        "kornia": _version("kornia"),
        "cupy": _version("cupy"),
        "python": platform.python_version(),
        "commit": commit(),
        "date": machine.today(),
    }
