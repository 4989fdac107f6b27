"""Hidden states that vLLM wrote: files of its ``ExampleHiddenStatesConnector``.

The server is started with the speculative method ``extract_hidden_states`` for one layer, the decoder's last
(``eagle_aux_hidden_state_layer_ids: [num_hidden_layers]``), the connector with ``use_synchronization_lock``, and
``--no-enable-prefix-caching``; a request asks for its output tokens too
(``kv_transfer_params={"include_output_tokens": true}``). The path of its file is in the full response's
``kv_transfer_params["hidden_states_path"]``. ``docs/datasets.md`` has the whole command.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from tam_fast.engines.states import EngineStates, check_ids, check_states, whole_ids

__all__ = ["read"]

_POLL = 0.02


def read(
    path: str | os.PathLike[str], token_ids: Any | None, *, layer: int = -1, timeout: float = 10.0, lock: bool = True
) -> EngineStates:
    """Read the hidden states of one request from vLLM's file.

    Parameters
    ----------
    path : path
        ``DIR/<request id>.safetensors``: ``hidden_states`` (tokens, layers, C) and ``token_ids`` (tokens,).
    token_ids : int Tensor, ndarray or list (S + 1,), optional
        Prompt and answer, as they were sent and received, to compare the file's with. None takes what the file says,
        all of its rows.
    layer : int
        Which of the file's layers, in the order in which the server was asked for them; the last one.
    timeout : float
        Seconds to wait for the writer: files come late, and grow.
    lock : bool
        Wait for the writer's lock, ``PATH.lock``. False for a server without ``use_synchronization_lock``: then a file
        that is still written to can be told by its length alone.

    Returns
    -------
    EngineStates
        Not normed: vLLM gives the last layer's output, before the decoder's final norm.

    Raises
    ------
    FileNotFoundError
        If the file, or the lock, is not there in time.
    TimeoutError
        If the writer holds the lock for longer.
    ValueError
        If it is no such file, or its rows are not those of the request: the server's setting at fault is named.
    """
    file = Path(os.fsdecode(path))
    expected = None if token_ids is None else whole_ids(token_ids)
    until = time.monotonic() + timeout
    with _shared(file.with_name(f"{file.name}.lock"), until) if lock else _there(file, until):
        tensors = _load(file)
    for name in ("hidden_states", "token_ids"):
        if name not in tensors:
            raise ValueError(f"{file}: expected an array {name!r}, got {', '.join(sorted(tensors)) or 'none'}")
    states, ids = tensors["hidden_states"], tensors["token_ids"]
    if states.ndim != 3 or ids.ndim != 1 or states.shape[0] != ids.shape[0]:
        raise ValueError(
            f"{file}: expected hidden_states (tokens, layers, C) and token_ids (tokens,), got {tuple(states.shape)} "
            f"and {tuple(ids.shape)}"
        )
    if not -states.shape[1] <= layer < states.shape[1]:
        raise ValueError(f"layer: expected one of the {states.shape[1]} in {file}, got {layer}")
    if expected is not None:
        states, ids = _compared(file, states, ids, expected)
    hidden = states[:, layer].clone()
    check_states(hidden, str(file))
    return EngineStates(hidden, ids.long(), normed=False)


def _compared(file: Path, states: Tensor, ids: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of a request, whose ids are expected, and their ids."""
    count, wanted = ids.shape[0], expected.numel() - 1
    found = ids.tolist()
    if found == expected.tolist():
        # An end mark followed, which is no part of the answer.
        return states[:wanted], ids[:wanted]
    if count < wanted and found == expected[:count].tolist():
        raise ValueError(f"{file}: expected {wanted} rows, got the first {count}: {_missing_end(count)}")
    if count < wanted and found == expected[wanted - count : wanted].tolist():
        raise ValueError(
            f"{file}: expected {wanted} rows, got the last {count}: start the server with --no-enable-prefix-caching"
        )
    check_ids(found, expected, str(file))
    return states, ids


def _missing_end(count: int) -> str:
    return (
        f"without output tokens a file has the prompt's rows alone; send kv_transfer_params={{'include_output_tokens': "
        f"true}} (and turn chunked prefill off if the prompt is longer than {count})"
    )


def _load(file: Path) -> dict[str, Any]:
    import safetensors
    from safetensors.torch import load

    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as opened:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"{file}: expected a regular file, got none")
        data = opened.read()
    try:
        found: dict[str, Any] = load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected a whole safetensors file, got {type(error).__name__}: {error}") from error
    return found


@contextmanager
def _there(file: Path, until: float) -> Iterator[None]:
    """Wait until a file is there."""
    while not file.exists():
        if time.monotonic() >= until:
            raise FileNotFoundError(f"path: expected hidden states in {file}, got no such file")
        time.sleep(_POLL)
    yield


@contextmanager
def _shared(path: Path, until: float) -> Iterator[None]:
    """Hold a lock that the writer holds alone while it writes."""
    while not path.exists():
        if time.monotonic() >= until:
            raise FileNotFoundError(
                f"path: expected the writer's lock {path}, got none; start the server with use_synchronization_lock in "
                f"kv_connector_extra_config, or read with lock=False"
            )
        time.sleep(_POLL)
    with path.open("rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise TimeoutError(f"path: expected the writer to let go of {path}, it still holds it") from None
                time.sleep(_POLL)
        yield
