"""The number format of the training's matrix products: :func:`narrow`, :func:`precision`."""

from __future__ import annotations

import torch

__all__ = ["narrow", "precision"]


def precision() -> str:
    """Return ``"bfloat16"`` where the processor multiplies such numbers itself, else ``"float32"``.

    Where it does not (no AVX-512), oneDNN has no kernels for them, and a step takes some ten times as long.
    """
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def narrow() -> torch.autocast:
    """Make a context in which matrix products are of :func:`precision`; weights and their sums stay float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bfloat16")
