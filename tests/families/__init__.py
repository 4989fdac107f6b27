"""Tiny random-weight models of every family, each from its own configuration and its own processor.

One module a group of layouts, one function a family, found by :func:`build`. Tests paint pictures (``painting.py``) and
explain answers (``explaining.py``) with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

_TESTED = (5, 23)  # the version that must have them all

_builders: dict[str, Callable[[], Built]] = {}


@dataclass(frozen=True)
class Built:
    """A model, its processor, and what a test has to know about them.

    Attributes
    ----------
    model, processor
        The model in evaluation mode; random weights, greedy.
    sizes : list of lists of (width, height)
        Pictures of each case of the painting test: wide, tall, small, large; one and two images.
    mixers : str
        Pattern of names of parameters that are zeroed for painting, so that positions do not mix in the vision tower.
    flatten : callable, optional
        Does what else has to be done to a copy of the model for painting.
    options : dict
        Arguments of the processor's ``images_kwargs``, set on it.
    observe : callable, optional
        Finds what pictures give the decoder at each position (P, C) in its keyword arguments, where those are not its
        input embeddings.
    """

    model: Any
    processor: Any
    sizes: list[list[tuple[int, int]]]
    mixers: str = r"(vision|visual|vit|tower).*(attn|attention).*\b(o_proj|out_proj|proj|dense|projection_layer|wo)\."
    flatten: Callable[[Any], None] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    observe: Callable[[dict[str, Any]], Any] | None = None


def family(name: str) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Register a builder under a model type, with a dot and a variant behind it where there are several."""

    def take(builder: Callable[[], Built]) -> Callable[[], Built]:
        assert name not in _builders, name
        _builders[name] = builder
        return builder

    return take


@functools.cache
def build(name: str) -> Built:
    """Build a family's model, once a process.

    Older versions of transformers lack some classes, or make them only with torchvision: there they are skipped.
    """
    from families.tools import version

    builder = builders()[name]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # vectors (gates, class tokens) come as models draw them
            return builder()
    except Exception as error:  # configurations are validated in ways of their own
        if version() >= _TESTED:
            raise
        reason = " ".join(str(error).split())[:160]
        pytest.skip(f"transformers {transformers.__version__} cannot make {name} here: {reason}")


@functools.cache
def builders() -> dict[str, Callable[[], Built]]:
    """Every builder, by name."""
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        import_module(f"families.{path.stem}")
    return _builders


def names_of(group: str) -> list[str]:
    """The families that one module builds."""
    import_module(f"families.{group}")
    return [name for name, builder in _builders.items() if builder.__module__ == f"families.{group}"]
