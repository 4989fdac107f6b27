"""How model families lay out their visual tokens: data, not patches.

`families` says which layout a model type has, `layouts` builds the grids, `inputs` turns images and a prompt into
what the model takes, `text` maps tokens to characters, `processors` loads processors.
"""

from __future__ import annotations

__all__ = ["ModelNotSupportedError"]


class ModelNotSupportedError(ValueError):
    """The model cannot be explained (yet); the message says what is missing or why it never can be."""
