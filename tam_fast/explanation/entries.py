"""Values of a JSON document, with a check of their types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["entry", "items", "number"]

_T = TypeVar("_T")


def entry(mapping: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """Return an entry; ValueError that begins with its name if it is of another type or not there."""
    value = mapping.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def number(value: Any, name: str) -> float:
    """Return a finite number; ValueError that begins with its name if it is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {str(value)[:60]!r}")
    return float(value)


def items(mapping: Mapping[str, Any], name: str, kind: type[_T]) -> list[_T]:
    """Return an entry that is a list of values of one type; ValueError as :func:`entry`."""
    return [entry({name: value}, name, kind) for value in entry(mapping, name, list)]
