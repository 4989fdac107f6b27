"""Tiny models are quickest on one thread: the others would wait for work in a busy loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from methods import golden


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=golden.NAMES)
def decoder(request: pytest.FixtureRequest) -> golden.Case:
    """Run the test on each golden decoder."""
    return golden.decoder(request.param)
