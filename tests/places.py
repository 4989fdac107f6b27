"""Where things lie: the checkout, its tests, and the development data beside it."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def data_folder() -> Path:
    """Folder of photographs, tokenizers and processors; there is none but beside a development checkout."""
    return Path(os.environ.get("TAM_FAST_TEST_DATA", ROOT.parent / "shared" / "data"))
