"""Fixtures of the tests of asking: explainers of tiny models, and a check that no thread stays."""

from __future__ import annotations

import gc
import threading

import pytest
from explainers import make

from tam_fast import Explainer


@pytest.fixture(scope="module", params=["qwen2", "qwen2.5", "llava"])
def explainer(request):
    return Explainer(*make(request.param))


@pytest.fixture(scope="module")
def qwen():
    return Explainer(*make("qwen2"))


@pytest.fixture(scope="module", autouse=True)
def earlier_objects():
    """Spare the collections below what was made before: hundreds of thousands of objects, again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_stays():
    before = running()
    yield
    gc.collect()
    assert running() == before


def running():
    """Count the threads, without the one that watches progress bars, which stays for good."""
    return sum(not type(thread).__module__.startswith("tqdm") for thread in threading.enumerate())
