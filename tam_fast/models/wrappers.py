"""Wrappers around a model: those that change nothing about it are taken off, compiled ones run uncompiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tam_fast.models.errors import ModelNotSupportedError

__all__ = ["check_weights", "input_device", "uncompiled", "unwrap"]


def unwrap(model: Any) -> Any:
    """Return the transformers model inside wrappers that change nothing about what it computes.

    ``torch.compile(model)``, DataParallel, DistributedDataParallel, and PEFT's wrapper, whose adapters live in the
    layers of the model inside and stay active.

    Raises
    ------
    ModelNotSupportedError
        If PEFT's wrapper itself changes what the model reads: prompt, prefix and p-tuning put virtual tokens, which
        have no place in the sequence of token ids, before the prompt.
    """
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, parallel):
            model = model.module
        elif type(model).__module__.partition(".")[0] == "peft" and hasattr(model, "peft_config"):
            active: Any = getattr(model, "active_adapters", None) or getattr(model, "active_adapter", ())
            active = active() if callable(active) else active
            for name in [active] if isinstance(active, str) else active:
                config = model.peft_config[name]
                if getattr(config, "is_prompt_learning", False):
                    raise ModelNotSupportedError(
                        f"model: expected adapters in the layers (LoRA and the like), got {type(config).__name__} "
                        f"{name!r}: its virtual tokens have no place in the sequence that is explained"
                    )
            base = getattr(model, "base_model", model)
            model = getattr(base, "model", base)
        else:
            return model


def _is_compiled(module: Any) -> bool:
    forward = getattr(module, "__dict__", {}).get("forward")
    return (
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module, "_orig_mod")
        or hasattr(forward, "_torchdynamo_orig_callable")
    )


@contextmanager
def uncompiled(model: Any, always: bool = False) -> Iterator[None]:
    """Run what of a model is compiled as it was written, inside a ``with`` block: compiled graphs know no later hooks.

    Where the model, its inner model or its decoder is compiled, ``torch.compiler.set_stance("force_eager")`` holds for
    the block (in the whole process); else, unless `always`, nothing is done.
    """
    find = getattr(model, "get_decoder", None)
    parts = (model, getattr(model, "model", None), find() if callable(find) else None)
    inner = [getattr(part, "_modules", {}).values() for part in parts if part is not None]
    if always or any(_is_compiled(part) for part in (*parts, *(child for some in inner for child in some))):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def check_weights(model: Any) -> None:
    """Refuse weights on the ``meta`` device, which have no values, unless a hook (accelerate's) fetches them.

    Raises
    ------
    ModelNotSupportedError
        Names the first one: a product with it is an error at best, and at worst whatever memory held.
    """
    fetched: tuple[str, ...] = ()  # names of modules whose hook fetches all that is in them
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        hook = getattr(module, "_hf_hook", None)
        if any(getattr(part, "place_submodules", False) for part in getattr(hook, "hooks", (hook,))):
            fetched = (*fetched, prefix)
        if hook is not None or prefix.startswith(fetched):
            continue
        for own, weight in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if weight.device.type == "meta":
                raise ModelNotSupportedError(
                    f"model: expected weights that have values, got {prefix}{own} of "
                    f"{type(model).__name__} on the meta device, offloaded without a hook that fetches it"
                )


def input_device(model: Any) -> torch.device:
    """Return the device that a model takes its inputs on; of an offloaded one, where its hooks compute."""
    device: torch.device = model.device
    if device.type != "meta":
        return device
    hook = getattr(model, "_hf_hook", None)
    places = [getattr(hook, "execution_device", None), *getattr(model, "hf_device_map", {}).values()]
    for place in places:
        if place is not None and str(place) not in ("disk", "meta"):
            return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return torch.device("cpu")
