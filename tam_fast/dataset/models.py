"""The model that explains a data set: from what the caller names to an Explainer, in whatever process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Any

from tam_fast.dataset.recorded import Recorded
from tam_fast.explain import Explainer
from tam_fast.models.fingerprint import fingerprint

__all__ = ["ModelSpec", "described", "spec_of", "versions"]

_PACKAGES = ("tam-fast", "torch", "transformers", "tokenizers", "numpy", "pillow", "pyarrow")
_DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ModelSpec:
    """How a worker comes by its model.

    Attributes
    ----------
    name : str, optional
        A model folder or a model hub id. None is the embedded model.
    device : str, optional
        None leaves the model where it is loaded, which is the CPU; ``"auto"`` is a GPU where there is one.
    dtype : str
        ``"auto"`` leaves the weights as they are stored.
    explainer : Explainer, optional
        One that is there already; it stays in this process.
    states : str, optional
        Folder of recorded states, see :class:`tam_fast.dataset.recorded.Recorded`.
    """

    name: str | None = None
    device: str | None = None
    dtype: str = "auto"
    explainer: Explainer | None = field(default=None, compare=False)
    states: str | None = None

    def load(self) -> Explainer | Recorded:
        """Load the model, or return the one that is there.

        With `states` only its lm_head and final norm, which explain what is recorded there.
        """
        if self.explainer is not None:
            return self.explainer
        if self.states is not None:
            return Recorded.from_folder(self.name, self.states, self.dtype)
        import torch

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.name is not None:
            return Explainer.from_pretrained(self.name, device=device, dtype=self.dtype)
        from tam_fast.models.embedded import load_embedded

        model, processor = load_embedded()
        if self.dtype != "auto":
            model = model.to(getattr(torch, self.dtype))
        return Explainer(model if device is None else model.to(device), processor)


def spec_of(
    model: Any, device: str | None = None, dtype: str = "auto", states: str | os.PathLike[str] | None = None
) -> ModelSpec:
    """Read what the caller names a model by: None, a folder or id, an Explainer, or a model and its processor.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(_DTYPES)}, got {dtype!r}")
    if isinstance(model, os.PathLike):
        model = os.fsdecode(model)
    if model is None or isinstance(model, str):
        return ModelSpec(model, device, dtype, None, None if states is None else os.fsdecode(states))
    if states is not None:
        raise TypeError(
            f"model: expected a folder with states, of which nothing else is read, got {type(model).__name__}"
        )
    if isinstance(model, tuple) and len(model) == 2:
        model = Explainer(*model)
    if not isinstance(model, Explainer):
        raise TypeError(
            f"model: expected an id or folder, an Explainer, or (model, processor), got {type(model).__name__}"
        )
    return ModelSpec(explainer=model)


def described(explainer: Explainer | Recorded) -> Mapping[str, Any]:
    """Describe a model and its processor: plain data, of the configuration."""
    processor = explainer.processor
    return {**fingerprint(explainer.model), "processor": type(processor).__name__}


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: version(name) for name in _PACKAGES if _is_there(name)}


def _is_there(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
