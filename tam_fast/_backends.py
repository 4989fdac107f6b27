"""Which backend serves the operators: selection, environment variables, :func:`backend_info`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from tam_fast._version import __version__

__all__ = ["backend_info", "current", "use_backend"]

VARIABLE = "TAM_FAST_BACKEND"
BACKENDS = ("cpu", "reference")


@dataclass
class StepBuffers:
    """What a stream keeps between its tokens, on the CPU; a step uses the first rows of those with a capacity."""

    token: Tensor  # (1,) int64
    scores: Tensor  # (S, ) of the token over the prompt
    maps: Tensor  # (capacity, N) scores of every distinct token at the visual positions
    row: Tensor  # (1,) int64, the token's among them
    relevance: Tensor  # (capacity,) summed over the context tokens of one row
    text: Tensor  # (capacity,) raw relevance of every context token
    length: Tensor  # (1,) int64, how many there are
    scale: Tensor  # (1,)
    flat: Tensor  # (1,) bool


class Backend(Protocol):
    """One function per operator, the same names in every module of ``tam_fast.backends``."""

    def rank_gaussian_filter(
        self, maps: list[Tensor], kernel_size: int, *, constant_window_nan: bool = False
    ) -> list[Tensor]: ...

    def token_scores(self, hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor]) -> list[Tensor]: ...

    def least_squares_scale(self, target: Tensor, interference: Tensor) -> Tensor: ...

    def estimated_causal_inference(
        self, activation: list[Tensor], context: list[Tensor], relevance: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]: ...

    def finish_maps(
        self,
        scores: list[Tensor],
        activation_rows: list[Tensor],
        context_rows: list[Tensor] | None,
        relevance: list[Tensor],
        text_relevance: list[Tensor],
        text_length: list[Tensor],
        grids: list[list[tuple[int, int]]],
        kernel_size: int,
        *,
        constant_window_nan: bool = False,
        out: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]: ...

    # The two operators for one more token of a stream.

    def step_scores(
        self, buffers: StepBuffers, classifier: Tensor, prompt: Tensor | None, states: Tensor, count: int, begin: int
    ) -> None: ...

    def step_maps(
        self,
        buffers: StepBuffers,
        classes: int,
        length: int,
        sizes: list[tuple[int, int]],
        kernel_size: int,
        out: tuple[Tensor, Tensor],
    ) -> None: ...

    def info(self) -> dict[str, Any]: ...


_current: Backend | None = None
_name = ""
_why = ""


def _load(name: str, source: str) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    try:
        return cast(Backend, importlib.import_module(f"tam_fast.backends.{name}"))
    except ModuleNotFoundError as error:
        if error.name != "scipy":
            raise
        raise ModuleNotFoundError(
            f"{source}: the reference backend needs scipy, which is not installed: pip install 'tam-fast[reference]'",
            name="scipy",
        ) from error


def current() -> Backend:
    """Return the backend in use: ``TAM_FAST_BACKEND`` if it is set when first asked, else ``cpu``."""
    global _current, _name, _why
    if _current is None:
        requested = os.environ.get(VARIABLE, "")
        _name = requested or "cpu"
        _why = f"{VARIABLE}={requested}" if requested else "default: compiled kernels"
        _current = _load(_name, VARIABLE)
    return _current


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every operator by one backend inside a ``with`` block (for all threads).

    Parameters
    ----------
    name : str
        ``"cpu"`` (compiled kernels) or ``"reference"`` (numpy and scipy, written from the equations).

    Raises
    ------
    ValueError
        If there is no backend of that name.
    """
    global _current, _name, _why
    before = _current, _name, _why
    _current, _name, _why = _load(name, "name"), name, "use_backend"
    try:
        yield
    finally:
        _current, _name, _why = before


def backend_info() -> dict[str, Any]:
    """Tell which backend, instruction set and thread count serve each operator, and why.

    Returns
    -------
    dict
        ``version``, ``backend``, ``why``, ``threads`` (of ``torch.get_num_threads()``), ``isa`` and ``available_isas``
        of the CPU kernels, ``cuda`` and ``triton`` (``{"built": bool, "why": str}``), and ``operators``: for each
        operator a mapping from device type to a short description.

    Raises
    ------
    ValueError
        If ``TAM_FAST_BACKEND`` or ``TAM_FAST_ISA`` ask for something this build or machine does not have.
    """
    from tam_fast._library import OPERATORS

    backend = current()
    details = backend.info()
    on_cpu = f"{_name} ({details['isa']})" if details.get("isa") else _name
    elsewhere = f"{on_cpu}, copied from and to the device"
    return {
        "version": __version__,
        "backend": _name,
        "why": _why,
        "threads": torch.get_num_threads(),
        "isa": details.get("isa"),
        "isa_why": details.get("isa_why"),
        "available_isas": details.get("available_isas", []),
        "cuda": {"built": False, "why": "this version has no CUDA kernels"},
        "triton": {"built": False, "why": "this version has no Triton kernels"},
        "operators": {name: {"cpu": on_cpu, "cuda": elsewhere} for name in OPERATORS},
    }
