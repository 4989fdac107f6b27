"""What is measured on a GPU: ``python -m bench.gpu``, and the parts of ``bench/gpu_visit.sh``.

Nothing heavy is imported here.
"""

from __future__ import annotations

TABLES = {
    "filter": "Rank Gaussian filter and fused normalise + filter beside a copy of the same bytes",
    "answer": "A whole answer: scores, maps from scores, maps from states",
    "stream": "One streamed token",
    "causal": "Causal inference of a whole answer",
}


def file_name(table: str) -> str:
    """Name of a table's CSV."""
    return f"gpu_{table}.csv"
