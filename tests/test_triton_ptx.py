"""The Triton backend as on a GPU of architecture sm_80, without one: what its compiler makes, launched by its JIT."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def test_compiled_cases(tmp_path: Path) -> None:
    # Triton decides at its first import whether functions are interpreted, and for which device others are compiled.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TAM_FAST_CACHE": str(tmp_path / "tam_fast")}
    environment["TRITON_INTERPRET"] = "0"
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(FOLDER.parent), "--durations=5")
    command = [sys.executable, "-m", "pytest", str(FOLDER / "triton_ptx_cases.py"), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    summary = result.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed is not None, summary
    assert int(passed[1]) > 200, summary
    assert "skipped" not in summary
