"""The embedded model: a small Qwen2-VL-architecture model, its processor and a few sample scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tam_fast.models.embedded import ASSETS

__all__ = ["ASSETS", "load_demo", "sample_scenes"]


def load_demo(path: str | Path | None = None) -> tuple[Any, Any]:
    """Load the embedded model and its processor; nothing is fetched from a network.

    Parameters
    ----------
    path : str or Path, optional
        Another folder written by ``tam_fast.demo.train``; by default the shipped one.

    Returns
    -------
    (model, processor)
        A ``transformers.Qwen2VLForConditionalGeneration`` in float32 on the CPU (stored as float16), in evaluation
        mode, and its processor.

    Raises
    ------
    FileNotFoundError
        If the folder lacks the weights.
    RuntimeError
        If the weights do not fit the configuration.
    """
    from tam_fast.models.embedded import load_embedded

    return load_embedded(path)


def sample_scenes() -> list[Path]:
    """Return the paths of the shipped sample pictures (PNG), sorted.

    Beside each lies a JSON file of the same stem with ``seed``, ``size``, ``caption`` and ``objects`` (colour, shape,
    box and number of visible pixels). ``tam_fast.demo.scenes.make_scene(numpy.random.default_rng(seed))`` makes the
    scene again, and ``tam_fast.demo.scenes.masks`` its masks.
    """
    return sorted((ASSETS / "scenes").glob("*.png"))
