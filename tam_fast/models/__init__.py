"""How model families lay out their visual tokens: data, not patches.

`families` says which layout a model type has, `registry` looks it up, `layouts` builds the grids, `geometry` puts them
together for inputs made elsewhere, `images` reads pictures, `prompts` writes chats out, `inputs` turns both into what
the model takes, `places` and `turns` find the user's words in it, `capture` and `recording` read final hidden states
and candidates while the model runs, `heads` the classifier, `text` maps tokens to characters, `processors` loads
processors, `folders` checks their files.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tam_fast.models.errors import ModelNotSupportedError

if TYPE_CHECKING:
    from tam_fast.models.geometry import layout_of
    from tam_fast.models.registry import register
    from tam_fast.models.supported import Support, support

__all__ = ["ModelNotSupportedError", "Support", "layout_of", "register", "support"]

# Imported when they are used: they need torch, and the command reads images before it loads that.
_HOMES = {"Support": "supported", "layout_of": "geometry", "register": "registry", "support": "supported"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"tam_fast.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
