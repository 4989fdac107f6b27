"""Token Activation Maps of multimodal LLMs, on compiled kernels: which pixels made the model say this word?"""

from __future__ import annotations

from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# In a checkout, `python -m` finds this folder before the installed package; the compiled module is in the latter.
__path__ = extend_path(__path__, __name__)

from tam_fast._backends import backend_info, use_backend
from tam_fast._version import __version__
from tam_fast.layout import Grid, Layout
from tam_fast.ops import estimated_causal_inference, least_squares_scale, rank_gaussian_filter, token_scores
from tam_fast.pipeline import TokenActivationMaps, activation_maps
from tam_fast.streaming import ActivationMapStream, TokenMap

if TYPE_CHECKING:
    from tam_fast.demo import load_demo
    from tam_fast.explainer import Explainer
    from tam_fast.explanation import Explanation, load
    from tam_fast.models import ModelNotSupportedError
    from tam_fast.models.processors import load_processor

__all__ = [
    "ActivationMapStream",
    "Explainer",
    "Explanation",
    "Grid",
    "Layout",
    "ModelNotSupportedError",
    "TokenActivationMaps",
    "TokenMap",
    "__version__",
    "activation_maps",
    "backend_info",
    "estimated_causal_inference",
    "least_squares_scale",
    "load",
    "load_demo",
    "load_processor",
    "rank_gaussian_filter",
    "token_scores",
    "use_backend",
]

# Loaded on first use: what works on arrays must not pay for models and pictures.
_LAZY = {
    "Explainer": "tam_fast.explainer",
    "Explanation": "tam_fast.explanation",
    "ModelNotSupportedError": "tam_fast.models",
    "load": "tam_fast.explanation",
    "load_demo": "tam_fast.demo",
    "load_processor": "tam_fast.models.processors",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
