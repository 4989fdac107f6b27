"""What a model multiplies its final hidden states with: :class:`Head` reads the rows of any lm_head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tam_fast.models.errors import ModelNotSupportedError

__all__ = ["Head"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_PROBES = 64  # unit vectors that go through a head at a time: 64 x 151,936 float32 values are 39 MB


class Head:
    """The classifier of a model: plain weights as they are, others row by row.

    Rows of adapters (LoRA) are merged, quantised ones dequantised, offloaded ones fetched, and of a head that is
    nothing of the kind unit vectors tell the rows; whether they are what the model multiplies with is not decided here
    but by :mod:`tam_fast.models.recording`, against the model's own logits.

    Parameters
    ----------
    model : transformers.PreTrainedModel

    Attributes
    ----------
    module : torch.nn.Module
        What ``get_output_embeddings()`` returns; that of the language model inside where the model has none itself.
    plain : (V, C) Tensor or None
        The weight, where it can be taken as it is.
    exact : bool
        False where the head quantises, so that its logits are those of its rows only nearly.

    Raises
    ------
    ModelNotSupportedError
        If the model has no head, or (when rows are asked for) they cannot be told.
    """

    def __init__(self, model: Any) -> None:
        self.module: Any = _classifier(model)
        self.name = type(model).__name__
        tells = ("weight", "base_layer", "out_features", "dequantize")
        if not isinstance(self.module, torch.nn.Module) or not any(hasattr(self.module, name) for name in tells):
            raise ModelNotSupportedError(
                f"model: expected get_output_embeddings() with a weight, got none in {self.name}"
            )
        self.plain = _plain_weight(self.module)
        self.exact = self.plain is not None or not _is_quantised(self.module)
        self.config: Any = model.config
        self._tied = _is_tied(self.module, model)

    def check(self, states: Tensor) -> None:
        """Read one row, so that a head that cannot be read is refused before the model runs.

        Parameters
        ----------
        states : (n, C) Tensor
            Of the dtype and on the device of final hidden states.
        """
        if self._tied:
            raise ModelNotSupportedError(
                f"model: expected an lm_head of its own under an adapter, got one in {self.name} whose weight is also "
                "the input embedding's: merged, the adapter would change what the model reads, too; untie them first"
            )
        if self.plain is None:
            self.rows(torch.zeros(1, dtype=torch.int64), states)

    @property
    def size(self) -> int:
        """V, the number of rows."""
        if self.plain is not None:
            return int(self.plain.shape[0])
        inner = self.module
        while inner is not None:
            size = getattr(inner, "out_features", None)
            if isinstance(size, int):
                return size
            inner = getattr(inner, "base_layer", None)
        return int(getattr(self.config.get_text_config(), "vocab_size", 0))

    def rows(self, token_ids: Tensor, like: Tensor) -> Tensor:
        """Return some rows (n, C), float, of the weights.

        Parameters
        ----------
        token_ids : (n,) int64
        like : Tensor (..., C)
            Final hidden states: the dtype and device that the head takes.
        """
        if self.plain is not None:
            return self.plain[token_ids.to(self.plain.device)]
        try:
            found = _rows(self.module, token_ids)
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):
            found = None  # not what it looked like; the head itself is asked
        return self.probed(token_ids, like) if found is None else found

    def probed(self, token_ids: Tensor, like: Tensor) -> Tensor:
        """Return some rows (n, C), float32, as the head itself multiplies: from the logits of unit vectors."""
        channels = like.shape[-1]
        rows = torch.empty((token_ids.numel(), channels), dtype=torch.float32, device=like.device)
        ids = token_ids.to(like.device)
        try:
            with torch.no_grad():
                bias = self._logits(like.new_zeros((1, channels)), ids)
                for begin in range(0, channels, _PROBES):
                    count = min(_PROBES, channels - begin)
                    units = like.new_zeros((count, channels))
                    units[torch.arange(count), begin + torch.arange(count)] = 1.0
                    rows[:, begin : begin + count] = (self._logits(units, ids) - bias).T
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            weight = _weight(self.module)
            what = type(self.module).__name__
            if weight is not None and weight.device.type == "meta":
                what += ", offloaded without a hook that brings it back,"
            elif weight is not None:
                what += (
                    f" with a weight {tuple(weight.shape)} of {weight.dtype} (leave the lm_head out of quantisation)"
                )
            raise ModelNotSupportedError(
                f"model: expected an lm_head whose rows can be read, got {what} in {self.name}: {error}"
            ) from error
        return rows

    def _logits(self, states: Tensor, ids: Tensor) -> Tensor:
        logits = self.module(states[None])[0]
        some: Tensor = logits.index_select(1, ids.to(logits.device)).to(states.device, torch.float32)
        return some

    def matrix(self, like: Tensor) -> Tensor:
        """Return all rows (V, C); made anew where the head is not plain."""
        return self.plain if self.plain is not None else self.rows(torch.arange(self.size), like)

    def bias(self, token_ids: Tensor) -> Tensor | None:
        """Return what is added to the logits of some tokens (n,), float32 on the CPU; None if nothing is."""
        module, added = self.module, _adapted_bias(self.module, token_ids)
        while hasattr(module, "base_layer"):
            module = module.base_layer
        bias = getattr(module, "bias", None)
        bias = bias() if callable(bias) and not isinstance(bias, Tensor) else bias
        if not isinstance(bias, Tensor) or bias.ndim != 1:
            return added
        if bias.device.type == "meta":
            with _Fetched(module):
                some = _some(module.bias, token_ids)
        else:
            some = _some(bias, token_ids)
        return some if added is None else some + added


def _classifier(model: Any) -> Any:
    """Find the classifier of a model, or of the whole language model that is its decoder."""
    for find_owner in (lambda: model, getattr(model, "get_decoder", lambda: None)):
        find = getattr(find_owner(), "get_output_embeddings", None)
        found = find() if callable(find) else None
        if found is not None:
            return found
    return None


def _plain_weight(module: Any) -> Tensor | None:
    """Return a head's weight (V, C) if it is an ordinary one in memory."""
    if hasattr(module, "base_layer") or hasattr(module, "modules_to_save"):
        return None
    weight = _weight(module)
    if weight is None or weight.ndim != 2 or weight.dtype not in _FLOATS or weight.device.type == "meta":
        return None
    return None if _can_dequantise(weight) or weight.layout != torch.strided else weight.detach()


def _is_tied(module: Any, model: Any) -> bool:
    """Whether an adapter works on a weight that is the input embedding's, too."""
    if not hasattr(module, "base_layer") or _is_idle(module):
        return False
    while hasattr(module, "base_layer"):
        module = module.base_layer
    find = getattr(model, "get_input_embeddings", None)
    embedding = getattr(find() if callable(find) else None, "weight", None)
    return isinstance(embedding, Tensor) and embedding is getattr(module, "weight", None)


def _weight(module: Any) -> Tensor | None:
    for hook in getattr(module, "_forward_pre_hooks", {}).values():
        if type(hook).__name__ == "WeightNorm":  # sets the weight when the module runs
            computed = hook.compute_weight(module)
            return computed if isinstance(computed, Tensor) else None
    weight = getattr(module, "weight", None)
    if callable(weight) and not isinstance(weight, Tensor):
        weight = weight()  # of torch.ao's modules
    return weight if isinstance(weight, Tensor) else None


def _can_dequantise(weight: Tensor) -> bool:
    return bool(weight.is_quantized) or type(weight).dequantize is not Tensor.dequantize


def _is_quantised(module: Any) -> bool:
    while hasattr(module, "base_layer"):
        module = module.base_layer
    weight = _weight(module)
    return weight is None or weight.dtype not in _FLOATS or _can_dequantise(weight)


class _Fetched:
    """Brings the weights of an offloaded module (accelerate's hooks) into memory for a ``with`` block."""

    def __init__(self, module: Any) -> None:
        self._module, self._hook = module, getattr(module, "_hf_hook", None)

    def __enter__(self) -> None:
        if self._hook is not None:
            self._hook.pre_forward(self._module)

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.post_forward(self._module, None)


def _rows(module: Any, token_ids: Tensor) -> Tensor | None:
    """Read rows (n, C) of a head's weights; None if it is of no known kind."""
    if hasattr(module, "base_layer"):
        return _adapted_rows(module, token_ids)
    weight = _weight(module)
    if weight is not None and weight.device.type == "meta":
        with _Fetched(module):
            weight = _weight(module)
            if weight is None or weight.device.type == "meta" or weight.dtype not in _FLOATS:
                return None
            return weight.detach()[token_ids.to(weight.device)].clone()
    if weight is not None and _can_dequantise(weight):
        return weight.dequantize()[token_ids.to(weight.device)]
    if weight is not None and weight.dtype in _FLOATS and weight.ndim == 2 and weight.layout == torch.strided:
        return weight.detach()[token_ids.to(weight.device)]
    if callable(getattr(module, "dequantize", None)):  # HQQ
        whole = module.dequantize()
        return whole[token_ids.to(whole.device)] if isinstance(whole, Tensor) and whole.ndim == 2 else None
    return None


def _is_idle(module: Any) -> bool:
    """Whether an adapter adds nothing to its layer: it is switched off, or merged into its weight."""
    return bool(getattr(module, "disable_adapters", False) or getattr(module, "merged", False))


def _adapted_rows(module: Any, token_ids: Tensor) -> Tensor | None:
    """Rows of a layer with LoRA adapters: the base's and B A, scaled, of each active one."""
    rows = _rows(module.base_layer, token_ids)
    if rows is None:
        return None
    if _is_idle(module):
        return rows
    if not hasattr(module, "lora_A"):
        return None  # another kind of adapter
    rows = rows.float()
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        special = getattr(module, "use_dora", {}).get(name) or name in getattr(module, "lora_variant", {})
        if special or getattr(module, "lora_bias", {}).get(name):
            return None
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        some = b.detach()[token_ids.to(b.device)].float()
        rows = rows + (module.scaling[name] * (some @ a.detach().float())).to(rows.device)
    return rows


def _some(bias: Tensor, token_ids: Tensor) -> Tensor:
    return bias.detach()[token_ids.to(bias.device)].float().cpu()


def _adapted_bias(module: Any, token_ids: Tensor) -> Tensor | None:
    """Return what LoRA adapters with a bias of their own (``lora_bias``) add to some logits; None if nothing."""
    if not hasattr(module, "lora_B") or _is_idle(module):
        return None
    found = None
    for name in module.active_adapters:
        bias = getattr(module.lora_B[name], "bias", None) if name in module.lora_B else None
        if isinstance(bias, Tensor):
            some = module.scaling[name] * _some(bias, token_ids)
            found = some if found is None else found + some
    return found
