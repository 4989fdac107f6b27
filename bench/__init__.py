"""The benchmarks: ``python -m bench``, run from the repository's root."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"

# Results are checked by the tests' oracle, with the tests' tolerances.
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
