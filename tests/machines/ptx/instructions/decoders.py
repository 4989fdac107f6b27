"""Decoders: one turns the modifiers and operands of an instruction into a closure that takes the batch of lanes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from machines.ptx.values import TYPES, Array, Step

DECODERS: dict[str, Callable[..., Step]] = {}


def opcode(*names: str) -> Callable[[Callable[..., Step]], Callable[..., Step]]:
    def register(decoder: Callable[..., Step]) -> Callable[..., Step]:
        DECODERS.update(dict.fromkeys(names, decoder))
        return decoder

    return register


def unsupported(modifiers: set[str]) -> None:
    if modifiers:
        raise NotImplementedError(f"modifiers {sorted(modifiers)}")


def elementwise(function: Callable[..., Array], to: int, *sources: tuple[int, np.dtype[Any]]) -> Step:
    """A step that writes function(sources) to register `to`; sources are registers and what to view them as."""
    if len(sources) == 1:
        ((a, a_type),) = sources

        def step(s: Any) -> None:
            x = s.R[a]
            if x.dtype is not a_type:
                x = x.view(a_type)
            x = function(x)
            if s.mask is None:
                s.R[to] = x
            else:
                s.put(to, x)
    elif len(sources) == 2:
        (a, a_type), (b, b_type) = sources

        def step(s: Any) -> None:
            R = s.R
            x, y = R[a], R[b]
            if x.dtype is not a_type:
                x = x.view(a_type)
            if y.dtype is not b_type:
                y = y.view(b_type)
            x = function(x, y)
            if s.mask is None:
                R[to] = x
            else:
                s.put(to, x)
    else:

        def step(s: Any) -> None:
            R = s.R
            s.put(to, function(*[R[a] if R[a].dtype is t else R[a].view(t) for a, t in sources]))

    return step


def simple(d: Any, function: Callable[..., Array], operands: Any, kind: str, to: str | None = None) -> Step:
    """elementwise() of operands that are all of one type."""
    sources = [(d.source(x, kind), TYPES[kind]) for x in operands[1:]]
    return elementwise(function, d.destination(operands[0], to or kind), *sources)
