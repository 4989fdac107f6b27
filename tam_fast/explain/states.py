"""Explanations of states that were made elsewhere: :func:`explain_states`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tam_fast.explain.job import CANDIDATES, Writer
from tam_fast.explanation import Candidate, Explanation
from tam_fast.maps.answer import activation_maps
from tam_fast.maps.layout import Layout
from tam_fast.maps.tokens import Compat
from tam_fast.models.capture import CapturedCandidates
from tam_fast.models.images import ImageLike, load_images
from tam_fast.models.text import token_pieces

__all__ = ["explain_states"]

_LOGIT_ROWS = 32  # answer positions whose logits are made at a time


def explain_states(
    hidden: Any,
    classifier: Any,
    token_ids: Any,
    layout: Layout,
    *,
    tokenizer: Any = None,
    images: ImageLike | Sequence[ImageLike] | None = None,
    classifier_bias: Any = None,
    norm: Callable[[Tensor], Tensor] | None = None,
    compat: Compat = None,
    kernel_size: int = 3,
    prompt: str = "",
    model: str = "",
) -> Explanation:
    """Explain an answer from final hidden states that another engine, or a file, gives.

    Parameters
    ----------
    hidden : Tensor or ndarray (S, C)
        One row for every position but the last generated token's, as the classifier reads them. float32, float16,
        bfloat16 or float64, any device.
    classifier : Tensor or ndarray (V, C)
        The lm_head's weight.
    token_ids : int Tensor, ndarray or list (S + 1,)
        Prompt and answer.
    layout : Layout
        Of the prompt, see :func:`tam_fast.layout_of`.
    tokenizer : transformers tokenizer, optional
        Says what the tokens read; without one they show as their ids.
    images : PIL image, path, array, or a sequence of them, optional
        The sources of the layout's grids, to draw on.
    classifier_bias : Tensor or ndarray (V,), optional
        The lm_head's bias: part of the candidates' probabilities, not of the maps, which it would move alike
        everywhere.
    norm : callable, optional
        Applied to states that are not normed yet: the decoder's final norm, such as ``model.model.norm``.
    compat, kernel_size
        As for :func:`tam_fast.activation_maps`.
    prompt, model : str
        What the explanation says of them.

    Returns
    -------
    Explanation
        Its ``source`` is ``"states"``. Candidates are the three likeliest tokens of each step by the classifier and
        its bias; a softcap or a factor that the model applies afterwards is not known here.

    Raises
    ------
    TypeError, ValueError
        As :func:`tam_fast.activation_maps`; if the norm changes the shape of the states, the bias does not fit the
        classifier, or the images are not as many as the layout's.
    """
    started = time.perf_counter()
    states, rows = _matrix(hidden, "hidden", "(S, C)"), _matrix(classifier, "classifier", "(V, C)")
    bias = None if classifier_bias is None else torch.as_tensor(classifier_bias)
    if bias is not None and tuple(bias.shape) != (rows.shape[0],):
        raise ValueError(f"classifier_bias: expected ({rows.shape[0]},), one a row, got {tuple(bias.shape)}")
    if norm is not None:
        states = _normed(norm, states)
    pictures = [] if images is None else load_images(images)
    with torch.no_grad():
        maps = activation_maps(states, rows, token_ids, layout, compat=compat, kernel_size=kernel_size).to("cpu")
        candidates = _candidates(states[layout.answer_start - 1 :], rows, bias, len(maps))
    elapsed = {"maps": time.perf_counter() - started}
    ids = maps.target_ids.tolist()
    words = maps.context_ids[: layout.prompt.numel()].tolist()
    texts: dict[str, Any]
    if tokenizer is None:
        tokens = [f"[{number}]" for number in ids]
        ends = np.cumsum([len(token) for token in tokens]).tolist()
        texts = {
            "tokens": tokens,
            "text": "".join(tokens),
            "offsets": [(end - len(token), end) for end, token in zip(ends, tokens, strict=True)],
            "candidates": _bare(candidates, len(ids)),
            "context_tokens": [f"[{number}]" for number in words] + tokens[:-1],
        }
    else:
        writer = Writer(tokenizer, candidates)
        for number in ids:
            writer.append(number)
        decoder, found = writer.whole()
        texts = {
            "tokens": decoder.pieces,
            "text": decoder.text,
            "offsets": decoder.offsets,
            "candidates": found,
            "context_tokens": token_pieces(tokenizer, words) + decoder.pieces[:-1],
        }
    elapsed["total"] = time.perf_counter() - started
    return Explanation(
        token_ids=ids, maps=maps, images=pictures, prompt=prompt, model=model, elapsed=elapsed, source="states", **texts
    )


def _matrix(value: Any, name: str, shape: str) -> Tensor:
    """Take a matrix of numbers as a tensor."""
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers {shape}, got {type(value).__name__}") from error
    if found.ndim != 2 or not found.is_floating_point():
        raise ValueError(f"{name}: expected floating point {shape}, got {tuple(found.shape)} of {found.dtype}")
    return found.detach()


def _normed(norm: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    if not callable(norm):
        raise TypeError(f"norm: expected a function of states, got {type(norm).__name__}")
    with torch.no_grad():
        found = norm(states[None])
    if not isinstance(found, Tensor) or found.shape != (1, *states.shape):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"norm: expected states {(1, *states.shape)} from it, got {got}")
    return found[0]


def _candidates(states: Tensor, rows: Tensor, bias: Tensor | None, count: int) -> CapturedCandidates:
    """Find the likeliest tokens of each answer position from its states (T, C)."""
    found = CapturedCandidates()
    weight = rows.to(states.device)
    for begin in range(0, count, _LOGIT_ROWS):
        logits = states[begin : min(begin + _LOGIT_ROWS, count)].to(weight.dtype) @ weight.T
        found.append(logits if bias is None else logits + bias.to(logits), CANDIDATES)
    return found


def _bare(candidates: CapturedCandidates, count: int) -> list[list[Candidate]]:
    """Name candidates by their ids."""
    return [[Candidate(number, f"[{number}]", p) for number, p in candidates[step]] for step in range(count)]
