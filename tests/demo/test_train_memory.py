"""Memory of the program that trains: what is freed stays at hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tam_fast.demo.train import memory

# The module by its path: importing the package would take seconds.
PROGRAM = """
import importlib.util, resource, sys
spec = importlib.util.spec_from_file_location("memory", sys.argv[1])
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        block = bytearray(b"x") * (40 << 20)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
plain = faults()
kept = memory.keep_freed_memory()
faults()
print(plain, int(kept), faults())
"""


def test_blocks_that_come_and_go_cost_no_fresh_pages():
    command = [sys.executable, "-c", PROGRAM, memory.__file__]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    plain, kept, after = map(int, output.split())
    if not kept:
        pytest.skip("this C library has no such setting")
    assert after < 0.1 * plain


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False
