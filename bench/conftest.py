"""The benchmarks as quick checks: ``pytest bench`` runs and checks every peer once; timing is ``python -m bench``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Last, so that an installed tam_fast goes before the checkout's.
sys.path.append(str(Path(__file__).resolve().parents[1]))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Peers such as cv2.medianBlur use one thread by design; compare like with like."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
