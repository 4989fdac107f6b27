"""The front door: :class:`Explainer` asks a model and explains what it says.

`explainer` is what a user calls, `job` one prompt and what its explanation is made of, `generation` what ``generate``
may be given and how it is watched, `stream` an answer that is explained while it is written, `states` what
another engine made.
"""

from tam_fast.explain.explainer import Explainer
from tam_fast.explain.states import explain_states
from tam_fast.explain.stream import ExplanationStream, Step

__all__ = ["Explainer", "ExplanationStream", "Step", "explain_states"]
