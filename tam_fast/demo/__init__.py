"""The embedded model: a small Qwen2-VL-architecture model, its processor and a few sample scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["load_demo", "sample_scenes"]

ASSETS = Path(__file__).parent / "assets"
"""The shipped files: weights, configuration, tokenizer, scenes."""


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
    folder = Path(path) if path is not None else ASSETS
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"path: expected the embedded model's weights at {weights}, found none")
    # After the folder was looked at: these imports take seconds.
    import torch
    from safetensors.torch import load_file
    from transformers import GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from tam_fast.models.processors import load_processor

    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings.pop("dtype", None)
    settings.pop("model_type", None)
    model: Any = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**settings))
    state = {name: value.to(torch.float32) for name, value in load_file(str(weights)).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"{weights}: missing {sorted(missing)}, unexpected {sorted(unexpected)}")
    model.tie_weights()
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    model.generation_config = GenerationConfig(**generation)
    model.config.name_or_path = "tam-fast demo" if path is None else str(folder)
    model = model.to(torch.float32).eval()
    return model, load_processor(folder)


def sample_scenes() -> list[Path]:
    """Return the paths of the shipped sample pictures (PNG), sorted.

    Beside each lies a JSON file of the same stem with ``seed``, ``size``, ``caption`` and ``objects`` (colour, shape,
    box and number of visible pixels). ``tam_fast.demo.scenes.make_scene(numpy.random.default_rng(seed))`` makes the
    scene again, and ``tam_fast.demo.scenes.masks`` its masks.
    """
    return sorted((ASSETS / "scenes").glob("*.png"))
