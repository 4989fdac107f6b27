"""Other explanations of the same tokens: every method that the paper compares, and the field's.

They take a model, its inputs over prompt and answer, a layout and the tokens: :func:`attribute` gives raw maps, and
:func:`refine` puts causal inference and a filter on those of any method ("+ ours" of the paper's Table 3).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS = {
    "METHODS": "registry",
    "Method": "registry",
    "register": "registry",
    "AttributionMaps": "attribution",
    "attention_rows": "weights",
    "attribute": "attribution",
    "available": "attribution",
    "refine": "refining",
    "parse": "refining",
}

__all__ = [
    "METHODS",
    "AttributionMaps",
    "Method",
    "attention_rows",
    "attribute",
    "available",
    "parse",
    "refine",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"tam_fast.methods.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
