"""A fixed number of greedy steps, for tests that watch a model while it generates."""

from __future__ import annotations

from typing import Any

STEPS = 5


def generate(model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
    settings = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
    return model.generate(**inputs, **{**settings, **kwargs})
