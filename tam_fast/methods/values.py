"""How likely each token is where a part of what the model sees is absent: :class:`Values`, which perturbation asks.

v(mask) = log p(y_i | what the mask keeps). One forward pass of the teacher-forced answer gives all T tokens; the vision
tower runs once, unless pixels are replaced.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tam_fast.methods.pixels import PIXEL_BASELINES, Pixels
from tam_fast.methods.task import DecoderCall, Task, is_pixels
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.wrappers import uncompiled

__all__ = ["Values", "check_baseline"]

_APART = {
    True: 1e-2,
    False: 0.25,
}  # nats by which rounding may set variants apart that are run at once: float32, halves


def check_baseline(model: Any, method: str, baseline: Any) -> None:
    """Check what stands for what is absent, as far as that can be known before the model runs.

    Raises
    ------
    ValueError
        If it is a name of nothing.
    ModelNotSupportedError
        If it is of pixels and the model takes none.
    """
    if not isinstance(baseline, str) or baseline in ("mean_embedding", "zero"):
        return
    if baseline not in PIXEL_BASELINES:
        known = ", ".join(("mean_embedding", "zero", *PIXEL_BASELINES))
        raise ValueError(f"baseline: expected one of {known}, or an embedding (C,), got {baseline!r}")
    taken = inspect.signature(type(model).forward).parameters
    if not any(is_pixels(name, torch.empty(0)) for name in taken):
        raise ModelNotSupportedError(
            f"method: {method!r} with baseline={baseline!r} needs a model that is given pixels, and "
            f"{type(model).__name__} takes none"
        )


class Values:
    """The value of masks: log p of each target where some cells are absent.

    Parameters
    ----------
    task : Task
    method : str
        Which asks; for messages.
    baseline : str or (C,) or (N, C) Tensor
        What stands where a cell is absent. ``"mean_embedding"``: the mean of the input's visual embeddings.
        ``"zero"``, or embeddings. They take the cells' place where the decoder reads the image; what a model adds at
        these cells to deeper layers becomes its mean, or nothing. ``"grey"``, ``"black"``, ``"mean"``, ``"blur"``: of
        pixels, which are encoded again: see :class:`tam_fast.methods.pixels.Pixels`.
    normalization : (mean, standard deviation), optional
        What the processor does to pixels of 0..1; ``"grey"`` and ``"black"`` need it.
    batch_size : int
        Variants at once. Halved where memory does not suffice; 1 where a decoder cannot, with a warning.
    budget : int, optional
        How many variants at most are run.
    progress : callable, optional
        Is told how many variants were run, and how many will be: ``progress(done, total)``.

    Attributes
    ----------
    run : int
        How many variants were run.
    exhausted : bool
        Whether the budget ended before all was asked.
    """

    def __init__(
        self,
        task: Task,
        method: str,
        *,
        baseline: Any = "mean_embedding",
        normalization: Any = None,
        batch_size: int = 8,
        budget: int | None = None,
        progress: Callable[[int, int], object] | bool | None = False,
    ) -> None:
        self.task, self.method = task, method
        self._size = _count(batch_size, "batch_size")
        self.budget = None if budget is None else _count(budget, "budget")
        if progress is True or not (progress in (False, None) or callable(progress)):
            raise TypeError(f"progress: expected a callable (done, total) or False, got {progress!r}")
        self._progress = progress if callable(progress) else None
        self._planned = 0
        self.run = 0
        self.exhausted = False
        self._known: dict[bytes, Tensor] = {}
        self._checked = False
        self._pixels = self._embedded = None
        if isinstance(baseline, str) and baseline in PIXEL_BASELINES:
            self._pixels = Pixels(task, method, baseline, normalization)
        else:
            if normalization is not None:
                raise ValueError(f"normalization: expected None with baseline={baseline!r}, got {normalization!r}")
            self._embedded = Embedded(task, method, baseline)

    def plan(self, count: int) -> None:
        """Say that so many more variants will be asked for; for progress alone."""
        self._planned += count

    def __call__(self, kept: Tensor) -> Tensor:
        """Score masks (M, N) of cells that stay: bool, or how much stays in 0..1; returns (m, T) float64, CPU.

        m < M where the budget ends: the values of the first m masks. Masks that were asked before are not run again.
        """
        keys = [row.tobytes() for row in kept.numpy()]
        wanted: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key not in self._known:
                wanted.setdefault(key, index)
        left = len(wanted) if self.budget is None else self.budget - self.run
        if len(wanted) > left:
            self.exhausted = True
            wanted = dict(list(wanted.items())[: max(left, 0)])
        order = list(wanted.items())
        while order:
            part, order = order[: self._size], order[self._size :]
            for (key, _), found in zip(part, self._scored(kept[[index for _, index in part]]), strict=True):
                self._known[key] = found
            self.run += len(part)
            if self._progress is not None:
                self._progress(self.run, self._total())
        rows = []
        for key in keys:
            if key not in self._known:
                break
            rows.append(self._known[key])
        return torch.stack(rows) if rows else torch.empty((0, len(self.task)), dtype=torch.float64)

    def _total(self) -> int:
        total = max(self._planned, self.run)
        return total if self.budget is None else min(total, self.budget)

    def warn(self, what: str) -> None:
        """Warn, if the budget ended, what the maps then are made of."""
        if self.exhausted:
            warnings.warn(
                f"budget: {self.method!r} ended after {self.run} forwards, before all were run: {what}",
                UserWarning,
                stacklevel=2,
            )

    # One part ------------------------------------------------------------------------------------

    def _scored(self, kept: Tensor) -> Tensor:
        """Score masks (B, N): (B, T) float64."""
        with torch.no_grad(), uncompiled(self.task.model):
            if self._pixels is not None:
                states = (self.task.with_inputs(self._pixels.inputs(row)).hidden() for row in kept)
                return torch.stack([self._told(hidden) for hidden in states])
            assert self._embedded is not None
            return self._together(kept)

    def _together(self, kept: Tensor) -> Tensor:
        """Run variants (B, N) at once, or less of them where that is too much: (B, T) float64."""
        assert self._embedded is not None
        if len(kept) == 1:
            return self._told(self._embedded.hidden(kept))
        if len(kept) > self._size:
            return torch.cat([self._together(part) for part in kept.split(self._size)])
        try:
            found = self._told(self._embedded.hidden(kept))
        except torch.OutOfMemoryError:
            self._size, why = max(len(kept) // 2, 1), ""
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            self._size, why = 1, f"{type(error).__name__}: {error}"
        else:
            if self._checked or self._as_alone(kept[:1], found[0]):
                self._checked = True
                return found
            self._size, why = 1, "their values are others than those of each alone"
        # Outside the handlers, whose error holds the memory.
        if why:
            warnings.warn(
                f"batch_size: {type(self.task.decoder).__name__} cannot run several variants at once, they are run one "
                f"by one ({why})",
                UserWarning,
                stacklevel=2,
            )
        return torch.cat([self._together(part) for part in kept.split(self._size)])

    def _as_alone(self, kept: Tensor, found: Tensor) -> bool:
        """Whether one of several variants has the values (T,) that it has alone."""
        assert self._embedded is not None
        alone = self._told(self._embedded.hidden(kept))[0]
        apart = _APART[self.task.model.dtype == torch.float32]
        return torch.allclose(alone, found, rtol=apart, atol=apart)

    def _told(self, hidden: Tensor) -> Tensor:
        return self.task.log_probabilities(hidden).to("cpu", torch.float64)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value.__index__()) < 1:
        raise ValueError(f"{name}: expected a number from 1, got {value!r}")
    return int(value.__index__())


class Embedded:
    """Takes cells away where the decoder reads the image, and where it reads more of it in deeper layers.

    Raises
    ------
    ModelNotSupportedError
        If the model shows its decoder the image in a way that is not known.
    """

    def __init__(self, task: Task, method: str, baseline: Any) -> None:
        call = task.call
        self._call = call
        self._visual = task.visual.to(task.device)
        values = call.embeddings[0, self._visual]
        self._deep = deep_features(call)
        self._refuse(task, method, values)
        self._values, self._absent = values, _absent(values, baseline)
        places = torch.full((task.positions,), -1, dtype=torch.int64, device=self._visual.device)
        if self._deep is not None:
            places[self._deep.positions.to(places.device)] = torch.arange(len(self._deep.positions)).to(places)
        self._rows = places[self._visual]  # of the features that deeper layers get
        self._mean = isinstance(baseline, str) and baseline == "mean_embedding"

    def _refuse(self, task: Task, method: str, values: Tensor) -> None:
        why = ""
        if self._call.pixels:
            why = f"has what its decoder sees replaced inside it ({self._call.pixels[0]})"
        elif unknown := _unknown(self._call, self._deep, task.positions):
            why = f"gives its decoder {unknown} too, of which it is not known which cells they show"
        elif not bool(values.any()) and self._deep is None:
            why = "gives it zeros there"
        if why:
            raise ModelNotSupportedError(
                f"method: {method!r} needs the visual embeddings that the decoder {type(task.decoder).__name__} reads, "
                f"and {type(task.model).__name__} {why}"
            )

    def hidden(self, kept: Tensor) -> Tensor:
        """Run the decoder on variants (B, N): final states (B, S, C)."""
        base, count = self._call.embeddings, len(kept)
        kept = kept.to(base.device)
        mixed = _mixed(self._values, self._absent, kept)
        embeddings = base.expand(count, -1, -1).index_copy(1, self._visual, mixed)
        call = self._call
        if self._deep is not None:
            call = self._deep.replaced(call, lambda feature: self._deeper(feature, kept))
        found = call(embeddings)
        return found if found.ndim == 3 else found[None]

    def _deeper(self, feature: Tensor, kept: Tensor) -> Tensor:
        """Take cells away from a feature (V, C) of a deeper layer: (B V, C)."""
        known = self._rows >= 0
        rows = self._rows[known].to(feature.device)
        shown = feature[rows]
        absent = shown.float().mean(dim=0).to(shown).expand_as(shown) if self._mean else torch.zeros_like(shown)
        mixed = _mixed(shown, absent, kept[:, known].to(feature.device))
        return feature.expand(len(kept), -1, -1).index_copy(1, rows, mixed).flatten(0, 1)


def _mixed(values: Tensor, absent: Tensor, kept: Tensor) -> Tensor:
    """Mix values (N, C) and what stands for them where absent, as masks (B, N) say: (B, N, C)."""
    if kept.dtype == torch.bool:
        return torch.where(kept[:, :, None], values, absent)
    part = kept[:, :, None].float()
    return (part * values.float() + (1 - part) * absent.float()).to(values)


def _absent(values: Tensor, baseline: Any) -> Tensor:
    if isinstance(baseline, str):
        if baseline == "zero":
            return torch.zeros_like(values)
        return values.float().mean(dim=0).to(values).expand_as(values)
    try:
        given = torch.as_tensor(baseline)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"baseline: expected a name or an embedding, got {type(baseline).__name__}") from error
    if tuple(given.shape) not in ((values.shape[1],), tuple(values.shape)) or not given.is_floating_point():
        raise ValueError(
            f"baseline: expected embeddings ({values.shape[1]},) or {tuple(values.shape)}, "
            f"got {tuple(given.shape)} of {given.dtype}"
        )
    return given.detach().to(values).expand_as(values)


class Deep:
    """Features of the image that a decoder adds to deeper layers (deepstack), at the positions that a mask names.

    Attributes
    ----------
    positions : (V,) int64
    """

    def __init__(self, names: list[str], positions: Tensor) -> None:
        self.names, self.positions = names, positions

    def tensors(self, call: DecoderCall) -> list[Tensor]:
        """List the features (V, C) of all layers."""
        found: list[Tensor] = []
        for name in self.names:
            value = call.options[name]
            found += value.values() if isinstance(value, dict) else value
        return found

    def replaced(self, call: DecoderCall, change: Callable[[Tensor], Tensor]) -> DecoderCall:
        """Make the call with others in their place."""
        others: dict[str, Any] = {}
        for name in self.names:
            value = call.options[name]
            if isinstance(value, dict):
                others[name] = {layer: change(feature) for layer, feature in value.items()}
            else:
                others[name] = type(value)(change(feature) for feature in value)
        return call.with_options(**others)


def deep_features(call: DecoderCall) -> Deep | None:
    """Find what a decoder adds to deeper layers: lists or dicts of features (V, C), with a mask of V positions."""
    length = call.embeddings.shape[1]
    masks = [
        value.flatten()
        for value in call.options.values()
        if isinstance(value, Tensor) and value.dtype == torch.bool and value.numel() == length
    ]
    for mask in masks:
        count = int(mask.sum())
        names = [name for name, value in call.options.items() if _is_features(value, count)]
        if names:
            return Deep(names, mask.nonzero()[:, 0].cpu())
    return None


def _inside(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value) if isinstance(value, (dict, list, tuple)) else []


def _is_features(value: Any, count: int) -> bool:
    parts = _inside(value)
    return bool(parts) and all(
        isinstance(part, Tensor) and part.is_floating_point() and part.ndim == 2 and part.shape[0] == count
        for part in parts
    )


def _unknown(call: DecoderCall, deep: Deep | None, length: int) -> str:
    """Name an option that may show a decoder the image, too; '' if there is none."""
    for name, value in call.options.items():
        if deep is not None and name in deep.names:
            continue
        for part in _inside(value):
            # Masks (.., S, S) and rotary tables (.., S, R) are of positions, not of what is seen.
            if isinstance(part, Tensor) and part.is_floating_point() and length not in part.shape:
                return name
    return ""
