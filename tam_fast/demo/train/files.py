"""The trained model as a folder that transformers loads, with a record of its training: :func:`save`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tam_fast.demo.train.batches import IMAGE_MEAN, IMAGE_STD
from tam_fast.demo.train.plan import GRID, PATCH
from tam_fast.demo.train.words import Words

__all__ = ["RECORD", "TOKENIZER_FILES", "save"]

RECORD = "training.json"
"""How the weights were made, and what they learned."""

SMALLEST = 16
"""Cells along a side of the smallest square picture that is not enlarged: the images of a pair."""

FRAME_CELLS = 12
"""Cells along a side of a video's square frame."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Copied as they are shipped."""


def save(model: Any, output: Path, words: Words, record: Mapping[str, Any]) -> None:
    """Write weights (fp16 safetensors), configurations, tokenizer and the record of the training (JSON)."""
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
        eos_token_id=words.id("<|im_end|>"),
        pad_token_id=words.id("<|endoftext|>"),
        do_sample=False,
        max_new_tokens=96,
    ).to_dict()
    kept = {key: generation[key] for key in ("eos_token_id", "pad_token_id", "do_sample", "max_new_tokens")}
    (output / "generation_config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    video_processor = {
        "video_processor_type": "Qwen2VLVideoProcessor",
        "do_sample_frames": False,
        **_pixels(FRAME_CELLS, FRAME_CELLS),
    }
    image_processor = {"image_processor_type": "Qwen2VLImageProcessor", **_pixels(SMALLEST, GRID)}
    processor = {
        "processor_class": "Qwen2VLProcessor",
        "image_processor": image_processor,
        "video_processor": video_processor,
    }
    for name, content in (
        ("processor_config.json", processor),
        ("preprocessor_config.json", {**image_processor, "processor_class": "Qwen2VLProcessor"}),
        ("video_preprocessor_config.json", {**video_processor, "processor_class": "Qwen2VLProcessor"}),
        (RECORD, record),
    ):
        (output / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (words.folder / name).resolve() != (output / name).resolve():
            shutil.copyfile(words.folder / name, output / name)


def _pixels(smallest: int, largest: int) -> dict[str, Any]:
    """What a processor does with pixels: pictures of between so many cells squared keep their size."""
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"shortest_edge": (smallest * PATCH) ** 2, "longest_edge": (largest * PATCH) ** 2},
        "patch_size": PATCH,
        "merge_size": 1,
        "temporal_patch_size": 2,
    }
