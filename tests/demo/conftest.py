"""The embedded model, loaded once."""

from __future__ import annotations

import pytest

from tam_fast.demo import load_demo


@pytest.fixture(scope="session")
def demo():
    return load_demo()
