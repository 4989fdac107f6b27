"""The result: `explanation` answers questions about it and draws it, `words` splits its text, `files` keeps it."""

from tam_fast.explanation.explanation import Explanation, Peak, load
from tam_fast.explanation.files import FORMAT
from tam_fast.explanation.words import Candidate, Word

__all__ = ["FORMAT", "Candidate", "Explanation", "Peak", "Word", "load"]
