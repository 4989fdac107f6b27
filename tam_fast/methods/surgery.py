"""CLIP Surgery on a decoder: ArchiSurgery's second path of values that attend to values, and feature surgery.

From final states and classifier rows, like CAM; no gradients.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

from tam_fast.methods.attention_calls import AttentionCall, attention_calls, attention_modules, check_attention
from tam_fast.methods.registry import register
from tam_fast.methods.task import Task, hooked, layers_of
from tam_fast.models.capture import decoder_of
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.wrappers import uncompiled

__all__ = ["without_shared"]

_SOURCE = "Li et al. 2023, CLIP Surgery"

# Feature surgery -------------------------------------------------------------------------------------------------


def without_shared(similarity: Tensor, scores: Tensor) -> Tensor:
    """Take from each class's similarities what all classes share: feature surgery.

    S(j, t) = q_t s(j, t) - mean_t' q_t' s(j, t'), with q = softmax(2 `scores`) / mean softmax(2 `scores`).

    Parameters
    ----------
    similarity : (..., K, N) Tensor
        s, of K classes at N positions.
    scores : (..., K) Tensor
        How much each class is that of the whole image: F_cls . w_t.

    Returns
    -------
    (..., K, N) Tensor
        Signed.
    """
    weights = (2 * scores).softmax(dim=-1)
    weights = weights / weights.mean(dim=-1, keepdim=True)
    weighted = weights[..., None] * similarity
    return weighted - weighted.mean(dim=-2, keepdim=True)


def _check_cls(_model: Any, cls: Any = "token", **_: Any) -> None:
    if cls not in ("token", "mean"):
        raise ValueError(f'cls: expected "token" or "mean", got {cls!r}')


@register(
    "feature_surgery",
    kind="logit",
    needs=["states"],
    signed=True,
    source=f"{_SOURCE}, Eq. 6 to 8",
    cost="1 forward",
    check=_check_cls,
    cls="token",
    normalize=True,
)
def feature_surgery(task: Task, cls: str = "token", normalize: bool = True) -> Tensor:
    """Feature surgery: similarities of final states and classifier rows, less what the answer's tokens share; signed.

    The classes are the answer's distinct tokens; with one alone all is shared, and its maps are zero.

    Parameters
    ----------
    task : Task
    cls : "token" or "mean"
        What stands for CLIP's class token, which a decoder has not: the state at the position that predicts the token
        explained, or the mean visual state.
    normalize : bool
        Whether states and rows are made unit vectors first, as CLIP's are. As they come, the softmax over classes has
        one winner, and nothing is left of the others.
    """
    _check_cls(None, cls)
    hidden = task.hidden()
    states = hidden[task.visual.to(hidden.device)].float()
    classes, which = task.targets.unique(return_inverse=True)
    if classes.numel() == 1:
        warnings.warn(
            "method: 'feature_surgery' takes away what the answer's tokens share, and this answer has one token: its "
            "map is zero",
            UserWarning,
            stacklevel=2,
        )
    rows = task.classifier_rows(classes).to(states)
    if cls == "token":
        whole = hidden[task.rows.to(hidden.device)].to(states)
    else:
        whole = states.mean(dim=0, keepdim=True)
    if normalize:
        states, rows, whole = unit(states, dim=1), unit(rows, dim=1), unit(whole, dim=1)
    similarity = rows @ states.T
    maps = [without_shared(similarity, rows @ one) for one in whole]
    if len(maps) == 1:
        return maps[0][which.to(states.device)]
    return torch.stack([made[number] for made, number in zip(maps, which.tolist(), strict=True)])


# ArchiSurgery ----------------------------------------------------------------------------------------------------

# What a layer may be made of for its residual path to be known.
_PARTS = {
    *("self_attn", "attention", "attn", "mlp", "feed_forward", "block_sparse_moe", "moe", "shared_mlp"),
    *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    *("post_self_attn_layernorm", "post_mlp_layernorm", "operator_norm", "ffn_norm", "attn_norm", "ff_norm"),
    *("dropout", "resid_attn_dropout", "resid_mlp_dropout"),
}


def _norm_behind(layer: torch.nn.Module) -> torch.nn.Module | None:
    """Find the norm that a layer's attention passes before it is added (Gemma, GLM-4, OLMo 2); most have none."""
    names = dict(layer.named_children())
    if "post_self_attn_layernorm" in names:
        return names["post_self_attn_layernorm"]
    if "pre_feedforward_layernorm" in names or "input_layernorm" not in names:
        return names.get("post_attention_layernorm")
    return None


def _check_surgery(model: Any, depth: Any = 2, **_: Any) -> None:
    layers = layers_of(decoder_of(model))
    count = _depth(depth, len(layers))
    method = "archi_surgery"
    check_attention(layers, method)
    attending = attention_modules(layers)
    for index in range(len(layers) - count, len(layers)):
        layer = layers[index]
        if attending[index] is None:
            raise ModelNotSupportedError(
                f"method: {method!r} lets values attend to values in the last {count} layers, and layer {index}, "
                f"{type(layer).__name__}, does not attend: give a smaller depth"
            )
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        strange = [name for name, _ in layer.named_children() if name not in _PARTS] + [name for name, _ in own]
        if strange:
            raise ModelNotSupportedError(
                f"method: {method!r} needs layers whose residual path is known, and {type(layer).__name__} has "
                f"{', '.join(strange)}"
            )


def _depth(depth: Any, layers: int) -> int:
    if isinstance(depth, bool) or not hasattr(depth, "__index__") or not 1 <= int(depth.__index__()) <= layers:
        raise ValueError(f"depth: expected a number of layers from 1 to {layers}, got {depth!r}")
    return int(depth.__index__())


@register(
    "archi_surgery",
    kind="logit",
    needs=["states", "attention"],
    source=f"{_SOURCE}, Eq. 3 to 5",
    cost="1 forward, and the attention of `depth` layers twice",
    check=_check_surgery,
    depth=2,
)
def archi_surgery(task: Task, depth: int = 2) -> Tensor:
    """ArchiSurgery: CAM of a second path, in which the values of the last `depth` layers attend to values.

    x' += O(softmax(v v^T) v) in each of them, without the MLP, v being the original path's; that runs on unchanged.
    Values are repeated for grouped queries and get no rotary embeddings; scaling, mask, gates and norms behind the
    attention are the model's own. relu(norm(x'_V) . w_t).
    """
    layers = task.layers[len(task.layers) - _depth(depth, len(task.layers)) :]
    with _SecondPath(layers), uncompiled(task.model), torch.no_grad():
        hidden = task.call()
    states = hidden[task.visual.to(hidden.device)].float()
    rows = task.classifier_rows().to(states)
    return (rows @ states.T).relu()


class _SecondPath:
    """The states x' beside those of the original path through some last layers; in the end they take their place."""

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        self._layers = layers
        self._modules = [module for module in attention_modules(layers) if module is not None]
        self._asked: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._states: Tensor | None = None
        self._again = False
        self._hooks = ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(attention_calls(self._layers, self._attend))
            stack.enter_context(hooked(self._layers, self._passed))
            thread = threading.get_ident()
            for module in (self._layers[0], *self._modules):
                handle = module.register_forward_pre_hook(partial(self._entered, thread), with_kwargs=True)
                stack.callback(handle.remove)
            self._hooks = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _entered(
        self, thread: int, module: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        if threading.get_ident() != thread or self._again:
            return
        if module is self._layers[0]:
            self._states = arguments[0] if arguments else options["hidden_states"]
        else:
            self._asked[id(module)] = (arguments, options)

    def _attend(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor] | None:
        """Let values attend to values, where a module is asked again."""
        if not self._again:
            return None
        return call.value.repeat_interleave(call.groups, dim=1), call.value, call.value

    def _passed(self, index: int, layer: torch.nn.Module, _arguments: Any, output: Any) -> Any:
        """Add what the layer's attention gives on values; behind the last layer hand the second path on."""
        module = self._modules[index]
        arguments, options = self._asked.pop(id(module))
        assert self._states is not None
        self._again = True
        try:
            attended = module(*arguments, **options)
        finally:
            self._again = False
        attended = attended[0] if isinstance(attended, tuple) else attended
        norm = _norm_behind(layer)
        if norm is not None:
            attended = norm(attended)
        self._states = self._states + attended * getattr(layer, "residual_multiplier", 1.0)
        if index < len(self._layers) - 1:
            return None
        return (self._states, *output[1:]) if isinstance(output, tuple) else self._states
