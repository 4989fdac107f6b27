"""The operators on Triton kernels: for GPUs that the CUDA kernels were not built for, and under Triton's interpreter.

Everything is launched on the current stream of the tensors' device and not waited for; results are on that device.
Launches can be captured in a CUDA graph once their kernels are compiled, that is, after a first call. Kernels compile
at first use for each number format and window, never for other sizes. With ``TRITON_INTERPRET=1`` in the environment
before this module is imported, the kernels are interpreted on CPU tensors, which is slow and serves tests.

``kernels`` holds the kernels, the modules beside it launch them: ``filters``, ``scores``, and ``interference`` and
``finishing`` for ``answers``. All of them go through ``launch``, which asks ``tuning`` for configurations.
"""

from __future__ import annotations

try:
    import triton  # noqa: F401  (before everything that needs it)
except ImportError as error:
    raise ImportError(
        f"tam_fast.backends.triton: needs Triton, which cannot be imported ({error}): pip install 'tam-fast[gpu]'"
    ) from error

from tam_fast.backends.triton.answers import answer_maps, estimated_causal_inference, finish_maps, step_answer
from tam_fast.backends.triton.filters import rank_gaussian_filter
from tam_fast.backends.triton.finishing import least_squares_scale
from tam_fast.backends.triton.launch import INTERPRETED, info, unavailable
from tam_fast.backends.triton.measuring import tune
from tam_fast.backends.triton.operands import ContextStates
from tam_fast.backends.triton.scores import answer_scores, token_scores

__all__ = [
    "INTERPRETED",
    "ContextStates",
    "answer_maps",
    "answer_scores",
    "estimated_causal_inference",
    "finish_maps",
    "info",
    "least_squares_scale",
    "rank_gaussian_filter",
    "step_answer",
    "token_scores",
    "tune",
    "unavailable",
]
