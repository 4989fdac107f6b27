"""Queries, keys and values of a decoder's layers as its attention is given them: :class:`attention_calls`.

Models of transformers choose the function that attends by name, from their configuration. While one is watched, each of
its attention modules has a copy of the configuration whose name finds ours, which shows the call to whoever watches and
hands it on to the function that was chosen before: SDPA, FlashAttention or eager, untouched. The name reads as before:
models that ask for it (sparse attention makes its mask only for some) do what they did. No attention weights are made.
In other threads the call is handed on as it is. Nothing stays: when nobody watches any more, the configurations are the
models' own, and transformers knows no name of ours.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from tam_fast.models.errors import ModelNotSupportedError

__all__ = ["AttentionCall", "attention_calls", "attention_modules", "check_attention"]

_NAME = "tam_fast_watched"


@dataclass
class AttentionCall:
    """One call of a layer's attention.

    Attributes
    ----------
    layer : int
    module : torch.nn.Module
    query : (1, H, S, D) Tensor
        After rotary embeddings and norms.
    key, value : (1, H_kv, S, D) Tensor
        As many heads as the layer has of them; H is a multiple (grouped queries).
    mask : Tensor or None
        As the function is given it; None is causal.
    scaling : float
        Of the products of queries and keys.
    window : int or None
        How far back a position attends, itself included; None: to all before it.
    softcap : float or None
    sinks : (H,) or (1, H, S, 1) Tensor or None
        Logits of attention sinks, one a head (or also one a query), which take a share of the weights and give nothing.
    causal : bool
        Whether positions attend to none behind them where `mask` does not say it.
    bias : (1, H, S, S) Tensor or None
        Of positions; added to the scaled products.
    """

    layer: int
    module: torch.nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    causal: bool = True
    bias: Tensor | None = None

    @property
    def groups(self) -> int:
        """How many heads of queries share one of keys and values."""
        return self.query.shape[1] // self.key.shape[1]


Watcher: TypeAlias = Callable[[AttentionCall], "tuple[Tensor, Tensor, Tensor] | None"]
After: TypeAlias = Callable[[AttentionCall, Tensor], "Tensor | None"]

_watching = threading.local()  # .stack: the watchers of this thread, innermost last


class _Key(str):
    """What ours is registered under: equal to the model's own name, with another hash: a dict tells them apart."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash((_NAME, str(self)))


class _Registered:
    """One function's name, under which the registry, a dict, finds ours while somebody watches, and else that function.

    A thread that runs the model unwatched may hold the name when the last watcher leaves. From then on the name has the
    hash of a plain string, and finds what the model had chosen. Both hashes are computed by C code, so that no thread
    is stopped between the hash and the place that it is looked up at.
    """

    def __init__(self, name: str) -> None:
        self.key = _Key(name)
        self.count = 0
        self._special = staticmethod(partial(int, hash(self.key)))
        self._kind: Any = type("_Name", (str,), {"__slots__": (), "__hash__": str.__hash__})
        self.name: str = self._kind(name)

    def enter(self) -> str:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if not self.count:
            ALL_ATTENTION_FUNCTIONS.register(self.key, _attend)
            self._kind.__hash__ = self._special
        self.count += 1
        return self.name

    def leave(self) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self.count -= 1
        if not self.count:
            self._kind.__hash__ = str.__hash__
            ALL_ATTENTION_FUNCTIONS._global_mapping.pop(self.key, None)


def attention_modules(layers: Sequence[torch.nn.Module]) -> list[torch.nn.Module | None]:
    """Find the module in each layer that attends; None where a layer has linear attention or another mixer."""
    found: list[torch.nn.Module | None] = []
    for layer in layers:
        named = [module for name, module in layer.named_children() if name in ("self_attn", "attention", "attn")]
        found.append(named[0] if named and hasattr(named[0], "config") else None)
    return found


def check_attention(layers: Sequence[torch.nn.Module], method: str) -> list[int]:
    """List the layers that attend, before anything is run.

    Raises
    ------
    ModelNotSupportedError
        If there are none, or one chooses its function in a way that is not known; names method and module.
    """
    modules = attention_modules(layers)
    attending = [index for index, module in enumerate(modules) if module is not None]
    if not attending:
        kinds = sorted({type(layer).__name__ for layer in layers})
        raise ModelNotSupportedError(f"method: {method!r} needs layers of attention, got none in {', '.join(kinds)}")
    for index in attending:
        module = modules[index]
        source = getattr(sys.modules.get(type(module).__module__), "ALL_ATTENTION_FUNCTIONS", None)
        if source is None:
            raise ModelNotSupportedError(
                f"method: {method!r} needs attention that transformers' AttentionInterface chooses, got "
                f"{type(module).__name__} of {type(module).__module__}, which does not ask it"
            )
        name = _implementation(getattr(module, "config", None))
        if name.startswith(("flex_", "paged|")):
            raise ModelNotSupportedError(
                f"method: {method!r} needs sdpa, FlashAttention or eager, got attn_implementation={name!r} of "
                f"{type(module).__name__}: model.set_attn_implementation('sdpa')"
            )
    return attending


class attention_calls:
    """Watch the attention of a decoder's layers inside a ``with`` block, in the thread that entered it.

    Parameters
    ----------
    layers : sequence of torch.nn.Module
        The decoder's, in order.
    watcher : callable
        Called with each :class:`AttentionCall`; may return other queries, keys and values to attend with.
    after : callable, optional
        Called with the same and what the attention gave (1, S, H, D); may return another output.
    """

    _lock = threading.RLock()
    _entered: ClassVar[dict[int, tuple[int, Any]]] = {}  # by module: how often it is watched, and its own configuration
    _names: ClassVar[dict[str, _Registered]] = {}

    def __init__(self, layers: Sequence[torch.nn.Module], watcher: Watcher, after: After | None = None) -> None:
        self._modules = [
            (index, module) for index, module in enumerate(attention_modules(layers)) if module is not None
        ]
        self._watcher = watcher
        self._after = after

    def __enter__(self) -> attention_calls:
        with self._lock, ExitStack() as undo:
            for index, module in self._modules:
                self._watch(index, module)
                undo.callback(self._leave, module)
            undo.pop_all()
        _stack().append(({id(module) for _, module in self._modules}, self._watcher, self._after))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _stack().pop()
        with self._lock:
            for _, module in self._modules:
                self._leave(module)

    def _watch(self, index: int, module: torch.nn.Module) -> None:
        count, own = self._entered.get(id(module), (0, module.config))
        if not count:
            watched: Any = copy.copy(own)
            name = _implementation(own)
            watched._attn_implementation_internal = self._names.setdefault(name, _Registered(name)).enter()
            module.__dict__["_tam_fast_layer"] = index
            module.config = watched
        self._entered[id(module)] = (count + 1, own)

    def _leave(self, module: torch.nn.Module) -> None:
        count, own = self._entered[id(module)]
        if count > 1:
            self._entered[id(module)] = (count - 1, own)
            return
        # The configuration first: another thread may be on its way to our function.
        watched: Any = module.config
        module.config = own
        module.__dict__.pop("_tam_fast_layer", None)
        del self._entered[id(module)]
        self._names[str(watched._attn_implementation_internal)].leave()


def _stack() -> list[Any]:
    if not hasattr(_watching, "stack"):
        _watching.stack = []
    found: list[Any] = _watching.stack
    return found


def _implementation(config: Any) -> str:
    return str(config._attn_implementation or "eager")


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> Any:
    _, own = attention_calls._entered.get(id(module), (0, module.config))
    layer = module.__dict__.get("_tam_fast_layer")
    seen: list[tuple[After, AttentionCall]] = []
    for modules, watcher, after in _stack():
        if id(module) not in modules or layer is None:
            continue
        causal = options.get("is_causal")
        call = AttentionCall(
            layer,
            module,
            query,
            key,
            value,
            attention_mask,
            query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            options.get("sliding_window"),
            options.get("softcap"),
            options.get("s_aux", options.get("sinks")),
            bool(getattr(module, "is_causal", True) if causal is None else causal),
            options.get("position_bias"),
        )
        others = watcher(call)
        if others is not None:
            query, key, value = others
        if after is not None:
            seen.append((after, call))
    asked = module
    if module.config is not own:  # functions read more of a configuration than we name
        asked = copy.copy(module)
        asked.config = own
    output, *rest = _chosen(asked, own)(asked, query, key, value, attention_mask, scaling=scaling, **options)
    for after, call in reversed(seen):
        other = after(call, output)
        output = output if other is None else other
    return (output, *rest)


def _chosen(module: torch.nn.Module, own: Any) -> Callable[..., Any]:
    """Find the function that the model's own configuration names; a model may have one of its own by a known name."""
    source = sys.modules[type(module).__module__]
    eager = getattr(source, "eager_attention_forward", None)
    found: Callable[..., Any] = source.ALL_ATTENTION_FUNCTIONS.get_interface(_implementation(own), eager)
    return found
