"""Fixtures of the models' tests: tiny models of each group of layouts, with their processors."""

from __future__ import annotations

import pytest
from conftest_models import llava_model, llava_processor, qwen_model, qwen_processor


@pytest.fixture(scope="module")
def qwen():
    processor = qwen_processor()
    return qwen_model(processor), processor


@pytest.fixture(scope="module")
def llava():
    processor = llava_processor()
    return llava_model(processor), processor
