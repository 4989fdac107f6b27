from typing import Any

from tam_fast import _C as _C
from tam_fast import (
    backends,
    dataset,
    demo,
    engines,
    evaluation,
    explain,
    explanation,
    maps,
    methods,
    models,
    operators,
    render,
)
from tam_fast._version import __version__
from tam_fast.backends.selection import backend_info, use_backend
from tam_fast.dataset import open_dataset
from tam_fast.demo import load_demo
from tam_fast.explain import Explainer, explain_states
from tam_fast.explanation import Explanation, load
from tam_fast.explanation.compare import compare
from tam_fast.maps.answer import TokenActivationMaps, activation_maps
from tam_fast.maps.layout import Grid, Layout
from tam_fast.maps.stream import ActivationMapStream, TokenMap
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.geometry import layout_of
from tam_fast.models.processors import load_processor
from tam_fast.operators import estimated_causal_inference, least_squares_scale, rank_gaussian_filter, token_scores

_cuda: Any  # compiled, where it was

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
    "backends",
    "compare",
    "dataset",
    "demo",
    "engines",
    "estimated_causal_inference",
    "evaluation",
    "explain",
    "explain_states",
    "explanation",
    "layout_of",
    "least_squares_scale",
    "load",
    "load_demo",
    "load_processor",
    "maps",
    "methods",
    "models",
    "open_dataset",
    "operators",
    "rank_gaussian_filter",
    "render",
    "token_scores",
    "use_backend",
]
