"""The model that explains a data set: from what the caller names to an Explainer, in whatever process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Any

from tam_fast.explain import Explainer
from tam_fast.models.fingerprint import fingerprint

__all__ = ["ModelSpec", "described", "spec_of", "versions"]

_PACKAGES = ("tam-fast", "torch", "transformers", "tokenizers", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True)
class ModelSpec:
    """How a worker comes by its model.

    Attributes
    ----------
    name : str, optional
        A model folder or a model hub id. None is the embedded model.
    device : str, optional
        None leaves the model where it is loaded, which is the CPU.
    dtype : str
        ``"auto"`` leaves the weights as they are stored.
    explainer : Explainer, optional
        One that is there already; it stays in this process.
    """

    name: str | None = None
    device: str | None = None
    dtype: str = "auto"
    explainer: Explainer | None = field(default=None, compare=False)

    def load(self) -> Explainer:
        """Load the model, or return the one that is there."""
        if self.explainer is not None:
            return self.explainer
        if self.name is not None:
            return Explainer.from_pretrained(self.name, device=self.device, dtype=self.dtype)
        from tam_fast.models.embedded import load_embedded

        model, processor = load_embedded()
        return Explainer(model if self.device is None else model.to(self.device), processor)


def spec_of(model: Any, device: str | None = None, dtype: str = "auto") -> ModelSpec:
    """Read what the caller names a model by: None, a folder or id, an Explainer, or a model and its processor.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    if model is None or isinstance(model, str):
        return ModelSpec(model, device, dtype)
    if isinstance(model, tuple) and len(model) == 2:
        model = Explainer(*model)
    if not isinstance(model, Explainer):
        raise TypeError(
            f"model: expected an id or folder, an Explainer, or (model, processor), got {type(model).__name__}"
        )
    return ModelSpec(explainer=model)


def described(explainer: Explainer) -> Mapping[str, Any]:
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
