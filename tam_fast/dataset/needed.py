"""Packages that are no dependency of the whole: :func:`need`."""

from __future__ import annotations

import importlib.util

__all__ = ["need"]


def need(name: str, extra: str) -> None:
    """Raise ModuleNotFoundError, which says what to install, if a package is not there; nothing is imported."""
    if importlib.util.find_spec(name) is None:
        text = f"{name}: expected the package, got none: pip install 'tam-fast[{extra}]'"
        raise ModuleNotFoundError(text, name=name)
