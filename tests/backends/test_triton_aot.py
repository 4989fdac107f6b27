"""Every Triton kernel compiles to machine code for the GPUs that matter, without one, and keeps to its registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from places import TESTS

# What a program may have without further ado on the smallest GPU of an architecture.
SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024}


def python(*arguments: str, cache: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(cache), "TAM_FAST_CACHE": str(cache / "tam_fast")}
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=TESTS
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result.stdout


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every kernel of every module of the backend, however it is used."""
    code = """
import importlib, json, pkgutil
import triton
from tam_fast.backends import triton as backend
from tam_fast.backends.triton.kernels import common
names = set()
for found in pkgutil.walk_packages(backend.__path__, backend.__name__ + "."):
    module = importlib.import_module(found.name)
    names |= {name for name, value in vars(module).items() if name.endswith("_kernel")}
assert names == set(common.KERNELS), (names, common.KERNELS)
print(json.dumps(sorted(names)))
"""
    return set(json.loads(python("-c", code, cache=tmp_path_factory.mktemp("cache"))))


@pytest.mark.long
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(number, marks=pytest.mark.program(str(TESTS / "machines" / "triton_compiler.py"), str(number)))
        for number in SHARED_BYTES
    ],
)
def test_every_kernel_compiles_and_neither_spills_nor_uses_local_memory(
    architecture: int, kernels: set[str], program: subprocess.CompletedProcess[str]
) -> None:
    assert program.returncode == 0, program.stdout[-2000:] + program.stderr[-6000:]
    lines = program.stdout.splitlines()
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    count = Counter(item["kernel"] for item in found)
    assert set(count) == kernels, "a kernel that no wrapper launches, or that the compiler's calls do not reach"
    for item in found:
        taken = item["resources"]
        assert taken["stack"] == 0, item
        assert taken["local"] == 0, item
        assert taken["registers"] <= 255, item
        assert taken["dynamic"] <= SHARED_BYTES[architecture], item
