"""The operators: `ops` validates, documents and hands over to ``torch.ops.tam_fast``, which `library` registers."""

from tam_fast.operators.ops import (
    estimated_causal_inference,
    least_squares_scale,
    rank_gaussian_filter,
    token_scores,
)

__all__ = ["estimated_causal_inference", "least_squares_scale", "rank_gaussian_filter", "token_scores"]
