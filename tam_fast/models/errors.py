"""What is raised about models."""

from __future__ import annotations

__all__ = ["ModelNotSupportedError"]


class ModelNotSupportedError(ValueError):
    """The model cannot be explained (yet); the message says what is missing or why it never can be."""
