"""Benchmarks run on one thread unless told otherwise, and say on what machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tam_fast


def cpu_name() -> str:
    """Model name of the processor as the system reports it."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Peers such as cv2.medianBlur use one thread by design; compare like with like."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    info = tam_fast.backend_info()
    machine_info["tam_fast"] = {
        "cpu": cpu_name(),
        "isa": info["isa"],
        "threads": 1,
        "version": info["version"],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
