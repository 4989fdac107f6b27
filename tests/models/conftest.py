"""Fixtures of the models' tests: tiny models of each group of layouts, with their processors."""

from __future__ import annotations

import pytest
from conftest_models import llava_model, llava_processor, picture, qwen_model, qwen_processor


@pytest.fixture(scope="module")
def qwen():
    processor = qwen_processor()
    return qwen_model(processor), processor


@pytest.fixture(scope="module")
def llava():
    processor = llava_processor()
    return llava_model(processor), processor


@pytest.fixture(scope="module")
def model(qwen):
    return qwen[0]


@pytest.fixture(scope="module")
def processor(qwen):
    return qwen[1]


@pytest.fixture(scope="module")
def inputs(processor):
    """What the processor makes of a question about a picture."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return dict(processor(images=[picture()], text=[text], return_tensors="pt"))
