"""The Triton backend as on a GPU of architecture sm_80, without one: what its compiler makes, launched by its JIT."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent


# Triton decides at its first import whether functions are interpreted, and for which device others are compiled.
@pytest.mark.program(
    *("-m", "pytest", str(FOLDER / "triton_ptx_cases.py"), "-q", "-p", "no:cacheprovider"),
    *("--rootdir", str(FOLDER.parent), "--durations=5"),
    environment={"TRITON_INTERPRET": "0"},
)
def test_compiled_cases(program: subprocess.CompletedProcess[str]) -> None:
    assert program.returncode == 0, program.stdout[-8000:] + program.stderr[-2000:]
    summary = program.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed is not None, summary
    assert int(passed[1]) > 200, summary
    assert "skipped" not in summary
