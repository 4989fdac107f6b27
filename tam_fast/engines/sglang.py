"""Hidden states in SGLang's responses.

The server is started with ``--enable-return-hidden-states``, a request says ``"return_hidden_states": true``. Rows of a
prompt whose beginning was cached, or that was processed in chunks, are missing or another request's there; only a
server with ``--disable-radix-cache --chunked-prefill-size -1`` is trusted, and only if the counts are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tam_fast.engines.states import EngineStates, check_states, whole_ids

__all__ = ["read"]

_SETTINGS = "start the server with --disable-radix-cache --chunked-prefill-size -1"


def read(response: Mapping[str, Any], token_ids: Any, *, prompt_length: int) -> EngineStates:
    """Read the hidden states of one response.

    Parameters
    ----------
    response : mapping
        Of ``/generate``, decoded from JSON: ``meta_info["hidden_states"]`` is a list of the prompt's rows, then of one
        row for each step of the decoder.
    token_ids : int Tensor, ndarray or list (S + 1,)
        Prompt (image placeholders expanded) and answer.
    prompt_length : int
        How many of them are the prompt's.

    Returns
    -------
    EngineStates
        Normed: SGLang gives final states. The response says no ids of the prompt, so none are given.

    Raises
    ------
    TypeError, ValueError
        If it holds none, or their counts are not those of the request: the server's setting at fault is named.
    """
    expected = whole_ids(token_ids)
    if not isinstance(response, Mapping):
        raise TypeError(f"response: expected a mapping, got {type(response).__name__}")
    if isinstance(prompt_length, bool) or not 0 < prompt_length < expected.numel():
        raise ValueError(f"prompt_length: expected 1 to {expected.numel() - 1}, got {prompt_length!r}")
    meta = response.get("meta_info")
    parts = meta.get("hidden_states") if isinstance(meta, Mapping) else None
    if not isinstance(parts, list) or not parts:
        raise ValueError(
            'response: expected meta_info["hidden_states"], got none; start the server with '
            '--enable-return-hidden-states, and send "return_hidden_states": true'
        )
    cached = meta.get("cached_tokens") if isinstance(meta, Mapping) else None
    if cached:
        raise ValueError(f"response: expected no cached tokens, got {cached}, whose rows are not there; {_SETTINGS}")
    try:
        prompt = torch.tensor(parts[0], dtype=torch.float32)
        steps = torch.tensor(parts[1:], dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"response: expected lists of numbers in hidden_states, got {error}") from error
    prompt = prompt[None] if prompt.ndim == 1 else prompt
    if prompt.ndim != 2 or (len(parts) > 1 and (steps.ndim != 2 or steps.shape[1] != prompt.shape[1])):
        raise ValueError(
            f"response: expected rows (n, C) of the prompt, then (C,) a step, got {tuple(prompt.shape)} and "
            f"{tuple(steps.shape)}"
        )
    if prompt.shape[0] != prompt_length:
        kind = (
            "fewer: some were cached or came in chunks"
            if prompt.shape[0] < prompt_length
            else "more: another request's"
        )
        raise ValueError(
            f"response: expected {prompt_length} rows of the prompt, got {prompt.shape[0]}, {kind}; {_SETTINGS}"
        )
    answer = expected.numel() - prompt_length
    said = response.get("output_ids")
    if said is not None and list(said) != expected[prompt_length:].tolist():
        raise ValueError("response: expected the answer's ids in output_ids, got others: another request's")
    # The last token's row, where the engine gives it, predicts what was not generated.
    if len(steps) not in (answer - 1, answer):
        raise ValueError(f"response: expected {answer - 1} rows of the answer of {answer} tokens, got {len(steps)}")
    rows = torch.cat([prompt, steps[: answer - 1]]) if answer > 1 else prompt
    check_states(rows, "response")
    return EngineStates(rows, torch.empty(0, dtype=torch.int64), normed=True)
