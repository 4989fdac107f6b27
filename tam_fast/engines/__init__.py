"""Final hidden states that other engines made: readers of vLLM's files and of SGLang's responses.

Each gives :class:`EngineStates`, whose rows stand for positions as :func:`tam_fast.explain_states` takes them; what is
short, or another request's, is refused with the server's setting at fault. :class:`Classifier` reads an lm_head and a
final norm from a model's folder, without the rest of the model.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS = {"Classifier": "checkpoint", "EngineStates": "states"}
_MODULES = ("sglang", "vllm")

__all__ = ["Classifier", "EngineStates", "sglang", "vllm"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"tam_fast.engines.{_ROOMS[name]}"), name)
    if name in _MODULES:
        return import_module(f"tam_fast.engines.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
