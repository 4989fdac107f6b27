"""``compat="official"``: quirks of the published program, as far as they lie in which token stands for which."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

__all__ = ["compared_texts", "predicted_token"]


def compared_texts(texts: Any, expected: int, where: str) -> list[str] | None:
    """Check the strings that the program compares instead of ids; None if ids must do."""
    if texts is None:
        return None
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"texts{where}: expected a sequence of str, got {type(texts).__name__}")
    if len(texts) != expected:
        # Re-tokenising a decoded text need not give the tokens back; the program then compares the wrong ones.
        warnings.warn(
            f"texts{where}: expected {expected} strings (prompt and answer tokens), got {len(texts)}; comparing ids",
            stacklevel=4,
        )
        return None
    return list(texts)


def predicted_token(state: Tensor, classifier: Tensor) -> int:
    """Argmax over the vocabulary of F . w at one position (C,), in chunks of classifier rows."""
    best, token = float("-inf"), 0
    for begin in range(0, classifier.shape[0], 16384):
        value, index = (classifier[begin : begin + 16384].float() @ state.float()).max(0)
        if float(value) > best:
            best, token = float(value), begin + int(index)
    return token
