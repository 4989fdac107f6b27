"""Which model it was: :func:`fingerprint`."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

__all__ = ["fingerprint"]

_SAMPLES = 32  # values of a tensor: a fine-tuned model differs in nearly all of them


def fingerprint(model: Any) -> dict[str, str]:
    """Tell which model this is, so that results of two runs can be told to be of the same one.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Loaded; on any device.

    Returns
    -------
    dict of str to str
        ``name``, ``type`` and ``dtype``; ``config``, the SHA-256 of its configuration (without the version of
        transformers that wrote it); and ``weights``, the SHA-256 of the names, shapes and number formats of its
        tensors with 32 values of each, evenly spread (none of those that are not in memory).
    """
    config = dict(model.config.to_dict())
    name = str(config.pop("_name_or_path", "") or getattr(model, "name_or_path", ""))
    for key in ("transformers_version", "torch_dtype", "dtype"):
        config.pop(key, None)
    text = json.dumps(config, sort_keys=True, default=str)
    return {
        "name": name,
        "type": str(config.get("model_type", "")),
        "dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "weights": _weights(model),
    }


def _weights(model: Any) -> str:
    found = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if not isinstance(tensor, torch.Tensor):
                continue
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            if tensor.device.type == "meta" or not tensor.numel():
                continue
            flat = tensor.detach().reshape(-1)
            places = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel())).long().to(flat.device)
            some = flat[places].cpu()
            found.update(some.view(torch.uint8).numpy().tobytes() if some.element_size() else b"")
    return found.hexdigest()
