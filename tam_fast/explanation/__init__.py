"""The result: `explanation` answers questions about it and draws it, `words` splits its text, `files` keeps it.

`result` says what it is made of; `naming`, `reading` and `pictures` are ways to ask it, each built on the one before.
"""

from tam_fast.explanation.compare import Comparison
from tam_fast.explanation.explanation import Explanation, Peak, load
from tam_fast.explanation.files import FORMAT
from tam_fast.explanation.frames import Frames
from tam_fast.explanation.graph import Graph
from tam_fast.explanation.grounding import Contrast, Grounding
from tam_fast.explanation.words import Candidate, Word

__all__ = [
    "FORMAT",
    "Candidate",
    "Comparison",
    "Contrast",
    "Explanation",
    "Frames",
    "Graph",
    "Grounding",
    "Peak",
    "Word",
    "load",
]
