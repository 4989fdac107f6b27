"""An lm_head and a final norm out of a model's folder, without the rest of the model: :class:`Classifier`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tam_fast.models.capture import decoder_of
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.folders import check_model_files

__all__ = ["Classifier"]


@dataclass(frozen=True, eq=False)
class Classifier:
    """What turns a decoder's last states into scores of tokens.

    Attributes
    ----------
    weight : (V, C) Tensor
        Of the lm_head.
    bias : (V,) Tensor or None
    norm : torch.nn.Module
        The decoder's final norm.
    config : transformers configuration
    name : str
        Of the folder.
    """

    weight: Tensor
    bias: Tensor | None
    norm: Callable[[Tensor], Tensor]
    config: Any
    name: str

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Classifier:
        """Read a model's folder: configuration and safetensors files, of which only these tensors are read.

        Raises
        ------
        ValueError, FileNotFoundError
            If it is no model's folder, or lacks the tensors.
        ModelNotSupportedError
            If its lm_head is none of plain weights, or its final norm cannot be told.
        """
        import transformers

        path = Path(os.fsdecode(folder))
        check_model_files(path, "folder")
        config = transformers.AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            auto: Any = transformers.AutoModelForImageTextToText
            bare = auto.from_config(config)
        head, norm_name, norm = bare.get_output_embeddings(), *_final_norm(bare)
        if not isinstance(head, torch.nn.Linear):
            raise ModelNotSupportedError(f"folder: expected an lm_head of plain weights, got {type(head).__name__}")
        names = {id(parameter): name for name, parameter in bare.named_parameters(remove_duplicate=False)}
        wanted = {name: f"{norm_name}.{name}" for name, _ in norm.named_parameters()}
        with _Tensors(path) as stored:
            weight = stored.get(names[id(head.weight)], tied=_embedding_name(bare, head))
            bias = None if head.bias is None else stored.get(names[id(head.bias)])
            state = {name: stored.get(full) for name, full in wanted.items()}
        filled = norm.to_empty(device="cpu").to(weight.dtype)
        filled.load_state_dict(state)
        return cls(weight, bias, filled.eval().requires_grad_(False), config, str(path))


def _final_norm(model: Any) -> tuple[str, torch.nn.Module]:
    """Find the norm behind a decoder's layers, and its name in the model."""
    decoder = decoder_of(model)
    for attribute in ("norm", "final_layernorm", "ln_f", "final_norm", "embedding_norm"):
        norm = getattr(decoder, attribute, None)
        if isinstance(norm, torch.nn.Module):
            return next((name, module) for name, module in model.named_modules() if module is norm)
    raise ModelNotSupportedError(f"folder: expected a decoder with a final norm, got none in {type(decoder).__name__}")


def _embedding_name(model: Any, head: torch.nn.Linear) -> str | None:
    """Name the input embedding, where the lm_head is tied to it and not stored itself."""
    embedding = model.get_input_embeddings()
    text = model.config.get_text_config()
    tied = getattr(model.config, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False)
    if not tied or embedding is None or embedding.weight.shape != head.weight.shape:
        return None
    found: str = next(name for name, module in model.named_modules() if module is embedding)
    return f"{found}.weight"


class _Tensors:
    """The tensors of a folder's safetensors files, read one by one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        else:
            from safetensors import safe_open

            with safe_open(folder / "model.safetensors", framework="pt") as file:
                self._files = dict.fromkeys(file.keys(), "model.safetensors")

    def __enter__(self) -> _Tensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._files = {}

    def get(self, name: str, tied: str | None = None) -> Tensor:
        """Read one tensor; older files name modules with other beginnings."""
        from safetensors import safe_open

        for wanted in (name, tied):
            if wanted is None:
                continue
            found = wanted if wanted in self._files else self._by_ending(wanted)
            if found is not None:
                with safe_open(self._folder / Path(self._files[found]).name, framework="pt") as file:
                    tensor: Tensor = file.get_tensor(found)
                    return tensor
        raise ValueError(f"folder: expected a tensor {name} in {self._folder}, got none")

    def _by_ending(self, name: str) -> str | None:
        """Find the one stored name that is this one but for its first parts."""
        parts = name.split(".")
        for begin in range(len(parts)):
            ending = ".".join(parts[begin:])
            if ending.count(".") < 1:
                break
            fits = [stored for stored in self._files if stored == ending or stored.endswith(f".{ending}")]
            fits = [stored for stored in fits if "vis" not in stored.split(ending)[0]]
            if len(fits) == 1:
                return fits[0]
        return None
