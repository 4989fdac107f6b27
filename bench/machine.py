"""On what the figures were taken, and this process's place on it."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from bench import ROOT

# Limits that are read when a library is loaded, so that they must stand before the process starts.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def cpu_name() -> str:
    """Model name of the processor as the system reports it."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def pin() -> bool:
    """Stay on one of the processors that this process may use; False where the system does not let it."""
    try:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    except (AttributeError, OSError):
        return False
    return True


def commit() -> str:
    """Short name of the commit, with "+" if the working tree differs from it; results and pages do not count."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!bench/results", ":!README.md", ":!docs")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def today() -> str:
    """Date (UTC)."""
    return datetime.now(timezone.utc).date().isoformat()


def describe() -> dict[str, str]:
    """Describe processor, instruction set and versions of this process; imports what it names."""
    import cv2
    import numpy as np
    import torch

    import tam_fast

    return {
        "cpu": cpu_name(),
        "isa": str(tam_fast.backend_info()["isa"]),
        "tam_fast": tam_fast.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
    }


def line(machine: dict[str, str]) -> str:
    """One line of text about a table's machine."""
    parts = [f"{machine['cpu']} ({machine['isa']})"]
    parts += [f"{name} {machine[name]}" for name in ("tam_fast", "torch", "numpy", "opencv", "python")]
    parts += [f"commit {machine['commit']}", machine["date"]]
    if machine["pinned"] == "no":
        parts.append("one-thread tables not pinned to a core")
    return ", ".join(parts)


def gpu_line(machine: Mapping[str, str]) -> str:
    """One line of text about the GPU of a table."""
    parts = [machine["device"]]
    parts += [f"{name} {machine[name]}" for name in ("driver", "cuda", "torch", "triton") if name in machine]
    if machine.get("SM clock", "unknown") != "unknown":
        parts.append(f"clocks as found (SM {machine['SM clock']} at rest, at most {machine['highest SM clock']})")
    return ", ".join([*parts, f"tam_fast {machine['tam_fast']}", f"commit {machine['commit']}", machine["date"]])


def reset_high_water() -> None:
    """Let the peak of resident memory begin again, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def high_water() -> float:
    """Peak resident memory of this process since the reset, or since its start where there is none; MiB."""
    with contextlib.suppress(OSError):
        for text in Path("/proc/self/status").read_text().splitlines():
            if text.startswith("VmHWM:"):
                return int(text.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
