"""The embedded model, from its files: :func:`load_embedded`, what stands behind ``load_demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["ASSETS", "load_embedded"]

ASSETS = Path(__file__).parents[1] / "demo" / "assets"
"""The shipped files: weights, configuration, tokenizer, scenes."""


def load_embedded(path: str | Path | None = None) -> tuple[Any, Any]:
    """Load the embedded model and its processor; see :func:`tam_fast.load_demo`."""
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
