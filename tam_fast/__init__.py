"""Token Activation Maps of multimodal LLMs, on compiled kernels: which pixels made the model say this word?

Importing this loads nothing but names: what stands behind one is imported when it is first used.
``torch.ops.tam_fast`` is there at once where torch is, else with the first name or ``import tam_fast.operators``.
Types are in ``__init__.pyi``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import extend_path
from typing import Any

# In a checkout, `python -m` finds this folder before the installed package; the compiled module is in the latter.
__path__ = extend_path(__path__, __name__)

from tam_fast._version import __version__

# Public names, and the room that each of them lives in.
_HOMES = {
    "ActivationMapStream": "maps.stream",
    "Explainer": "explain",
    "Explanation": "explanation",
    "Grid": "maps.layout",
    "Layout": "maps.layout",
    "ModelNotSupportedError": "models",
    "TokenActivationMaps": "maps.answer",
    "TokenMap": "maps.stream",
    "activation_maps": "maps.answer",
    "backend_info": "backends.selection",
    "compare": "explanation.compare",
    "estimated_causal_inference": "operators",
    "explain_states": "explain",
    "layout_of": "models.geometry",
    "least_squares_scale": "operators",
    "load": "explanation",
    "load_demo": "demo",
    "load_processor": "models.processors",
    "open_dataset": "dataset",
    "rank_gaussian_filter": "operators",
    "token_scores": "operators",
    "use_backend": "backends.selection",
}
_ROOMS = (
    *("_C", "backends", "dataset", "demo", "engines", "evaluation", "explain", "explanation"),
    *("maps", "methods", "models", "operators", "render"),
)

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import_module("tam_fast.operators")
        value = getattr(import_module(f"tam_fast.{_HOMES[name]}"), name)
    elif name in _ROOMS:
        value = import_module(f"tam_fast.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


if "torch" in sys.modules:
    import_module("tam_fast.operators")
