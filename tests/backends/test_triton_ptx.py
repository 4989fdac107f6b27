"""The Triton backend as on a GPU of architecture sm_80, without one: what its compiler makes, launched by its JIT."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from places import ROOT
from programs import check_tests


# Triton decides at its first import whether functions are interpreted, and for which device others are compiled.
@pytest.mark.long
@pytest.mark.program(
    *("-m", "pytest", str(Path(__file__).with_name("triton_ptx_cases.py")), "-q", "-p", "no:cacheprovider"),
    *("--rootdir", str(ROOT), "--durations=5"),
    environment={"TRITON_INTERPRET": "0"},
)
def test_compiled_cases(program: subprocess.CompletedProcess[str]) -> None:
    check_tests(program, at_least=250)
