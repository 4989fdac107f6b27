"""The trained model as a folder that transformers loads: :func:`save`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tam_fast.demo import ASSETS
from tam_fast.demo.train.batches import IMAGE_MEAN, IMAGE_STD
from tam_fast.demo.train.plan import GRID, PATCH
from tam_fast.demo.train.words import word_id

__all__ = ["TOKENIZER_FILES", "save"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Copied as they are shipped."""


def save(model: Any, output: Path) -> None:
    """Write weights (fp16 safetensors), configurations and tokenizer: a folder that transformers loads."""
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    output.mkdir(parents=True, exist_ok=True)
    # The classifier is the embedding; only one of the two is stored.
    state = {
        name: value.detach().to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(state, str(output / "model.safetensors"), metadata={"format": "pt"})
    config = model.config.to_dict()
    config["dtype"] = "float16"
    config.pop("transformers_version", None)
    (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation = GenerationConfig(
        eos_token_id=word_id("<|im_end|>"),
        pad_token_id=word_id("<|endoftext|>"),
        do_sample=False,
        max_new_tokens=96,
    ).to_dict()
    kept = {key: generation[key] for key in ("eos_token_id", "pad_token_id", "do_sample", "max_new_tokens")}
    (output / "generation_config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    pixels = (GRID * PATCH) ** 2
    image_processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
        "patch_size": PATCH,
        "merge_size": 1,
        "temporal_patch_size": 2,
    }
    processor = {"processor_class": "Qwen2VLProcessor", "image_processor": image_processor}
    (output / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
    legacy = {**image_processor, "processor_class": "Qwen2VLProcessor"}
    (output / "preprocessor_config.json").write_text(json.dumps(legacy, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (ASSETS / name).resolve() != (output / name).resolve():
            shutil.copyfile(ASSETS / name, output / name)
