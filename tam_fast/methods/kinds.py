"""Which modules of a decoder relevance has a rule for: :func:`kinds_of`.

A norm is told by what it does to numbers, not by its class: y = w x / rms(x), where w may be stored as w - 1 or not at
all, or the same of x - mean(x), plus a bias. Gated MLPs and attention are told by their parts. Whatever else has
parameters or changes its input (experts and their routers, convolutions, linear attention, gates of attention) has no
rule here, and is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tam_fast.methods.attention_calls import attention_modules, check_attention
from tam_fast.methods.task import layers_of
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.wrappers import input_device

__all__ = ["Activation", "Kinds", "Norm", "kinds_of"]


@dataclass(frozen=True)
class Norm:
    """A norm: y = weight (x - c) / sqrt(mean (x - c)^2 + epsilon) + bias, with c = mean x if `centred`, else 0.

    Attributes
    ----------
    module : torch.nn.Module
    weight : (...) float32 Tensor
        Of the last dimensions of x; ones where the module has none.
    bias : (...) float32 Tensor or None
    epsilon : float
    centred : bool
    """

    module: torch.nn.Module
    weight: Tensor
    bias: Tensor | None
    epsilon: float
    centred: bool

    def scale(self, states: Tensor) -> Tensor:
        """Return 1 / rms (..., 1) float32 of states (..., C)."""
        wide = states.float()
        if self.centred:
            wide = wide - wide.mean(dim=-1, keepdim=True)
        return torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.epsilon)


@dataclass(frozen=True)
class Activation:
    """An activation f of an MLP, with f(0) = 0.

    Attributes
    ----------
    module : torch.nn.Module
    slope : float
        Of f at 0: what f(g) / g is there.
    gated : bool
        Whether it multiplies another projection.
    """

    module: torch.nn.Module
    slope: float
    gated: bool


@dataclass
class Kinds:
    """The modules of a decoder that have a rule.

    Attributes
    ----------
    layers : list of torch.nn.Module
    norms : list of Norm
    activations : list of Activation
    products : list of torch.nn.Module
        Those that read the product act(gate) * up of a gated MLP.
    """

    layers: list[torch.nn.Module]
    norms: list[Norm] = field(default_factory=list)
    activations: list[Activation] = field(default_factory=list)
    products: list[torch.nn.Module] = field(default_factory=list)


def kinds_of(decoder: torch.nn.Module, method: str) -> Kinds:
    """Find the kind of every module of a decoder; only norms and activations are tried, on a few numbers.

    Raises
    ------
    ModelNotSupportedError
        If one has no rule; names it, and the method.
    """
    layers = list(layers_of(decoder))
    attending = check_attention(layers, method)
    finder = _Finder(method, input_device(decoder), Kinds(layers))
    for name, child in decoder.named_children():
        if not (isinstance(child, torch.nn.ModuleList) and list(child) == layers):
            finder.outside(child, name)
    for index, layer in enumerate(layers):
        attention = attention_modules([layer])[0] if index in attending else None
        finder.layer(layer, attention, f"layers.{index}")
    return finder.kinds


# Linear parts of attention. A gate of what attention gives would be one too: names tell them apart.
_ATTENTION = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "dense", "wq", "wk", "wv", "wo"),
        *("qkv_proj", "query_key_value", "att_proj", "attn_out"),
        *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    )
)
# (what the activation reads, what it multiplies, what reads the product)
_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("gate_up_proj", "", "down_proj"))
# (what the activation reads, what reads it)
_PLAIN = (
    *(("fc1", "fc2"), ("up_proj", "down_proj"), ("dense_h_to_4h", "dense_4h_to_h"), ("c_fc", "c_proj")),
    *(("fc_in", "fc_out"),),
)
_ROTARY = re.compile("rotary|rope|rotemb", re.IGNORECASE)
_STILL = (torch.nn.Identity, torch.nn.Dropout)


class _Finder:
    """Goes through a decoder's modules, and notes those that need a rule."""

    def __init__(self, method: str, device: torch.device, kinds: Kinds) -> None:
        self.method = method
        self.device = device
        self.kinds = kinds
        self._seen: set[int] = set()

    def refuse(self, module: torch.nn.Module, where: str, why: str = "") -> ModelNotSupportedError:
        return ModelNotSupportedError(
            f"method: {self.method!r} has rules for RMSNorm, LayerNorm, gated and plain MLPs and softmax attention, "
            f"and none for {where}, {type(module).__name__}{why and f': {why}'}"
        )

    def outside(self, module: torch.nn.Module, where: str) -> None:
        """What stands beside the layers: the final norm; embeddings, whose work is done, and rotary embeddings."""
        if not isinstance(module, (torch.nn.Embedding, *_STILL)) and not _ROTARY.search(type(module).__name__):
            self.norm(module, where)

    def layer(self, layer: torch.nn.Module, attention: torch.nn.Module | None, where: str) -> None:
        if attention is None:
            raise self.refuse(layer, where, "it has no attention of queries and keys")
        self.own(layer, where)
        for name, child in layer.named_children():
            if child is attention:
                self.attention(child, f"{where}.{name}")
            elif isinstance(child, _STILL) or _ROTARY.search(type(child).__name__):
                continue
            elif any(True for _ in child.children()):
                self.mlp(child, f"{where}.{name}")
            else:
                self.norm(child, f"{where}.{name}")

    def own(self, module: torch.nn.Module, where: str, known: Sequence[str] = ()) -> None:
        """Refuse parameters that a module has beside those of its parts."""
        for name, _ in module.named_parameters(recurse=False):
            if name not in known:
                raise self.refuse(module, where, f"it has parameters of its own ({name})")

    def attention(self, attention: torch.nn.Module, where: str) -> None:
        self.own(attention, where, ("sinks",))  # they take a share of the softmax, and give nothing
        parts = dict(attention.named_children())
        for name, child in parts.items():
            if _linear(child):
                if name not in _ATTENTION:
                    raise self.refuse(child, f"{where}.{name}", "what it is to attention is not known")
            elif not isinstance(child, _STILL) and not _ROTARY.search(type(child).__name__):
                self.norm(child, f"{where}.{name}")
        wide, read = (_features(parts.get(name)) for name in ("q_proj", "o_proj"))
        if "kv_b_proj" not in parts and wide and read and wide[1] != read[0]:
            why = f"q_proj gives {wide[1]} channels for o_proj's {read[0]}: queries and more"
            raise self.refuse(attention, where, why)

    def mlp(self, mlp: torch.nn.Module, where: str) -> None:
        self.own(mlp, where)
        parts = {name: child for name, child in mlp.named_children() if not isinstance(child, _STILL)}
        linear = {name for name, child in parts.items() if _linear(child)}
        others = [name for name in parts if name not in linear]
        for gate, up, down in _GATED:
            if linear == {gate, up, down} - {""}:
                if not up and (_features(parts[gate]) or (0, 0))[1] != 2 * (_features(parts[down]) or (0, 0))[0]:
                    continue
                self.activation(mlp, parts, others, where, gated=True)
                if self.new(parts[down]):
                    self.kinds.products.append(parts[down])
                return
        if any(linear == set(pair) for pair in _PLAIN):
            self.activation(mlp, parts, others, where, gated=False)
            return
        raise self.refuse(mlp, where, f"of {', '.join(sorted(parts)) or 'nothing'}")

    def activation(
        self, mlp: torch.nn.Module, parts: dict[str, torch.nn.Module], others: list[str], where: str, gated: bool
    ) -> None:
        if len(others) != 1 or not others[0].startswith("act"):
            why = f"of projections, {', '.join(others)}" if others else "its activation is no module"
            raise self.refuse(mlp, where, why)
        module = parts[others[0]]
        self.own(module, f"{where}.{others[0]}")
        points = torch.tensor([0.0, -1e-3, 1e-3, 1.0], device=self.device)
        with torch.no_grad():
            values = _tried(module, points)
            alone = _tried(module, points[3:])
        if values is None or alone is None or values.shape != points.shape or values[0] != 0.0 or values[3] != alone[0]:
            raise self.refuse(module, f"{where}.{others[0]}", "no function of one number that is 0 at 0")
        if self.new(module):
            self.kinds.activations.append(Activation(module, float((values[2] - values[1]) / 2e-3), gated))

    def new(self, module: torch.nn.Module) -> bool:
        """Whether a module was not met before: one that stands in several places has its rule once."""
        if id(module) in self._seen:
            return False
        self._seen.add(id(module))
        return True

    def norm(self, module: torch.nn.Module, where: str) -> None:
        found = next(self.norms(module), None)
        if found is None:
            raise self.refuse(module, where)
        if self.new(module):
            self.kinds.norms.append(found)

    @torch.no_grad()
    def norms(self, module: torch.nn.Module) -> Iterator[Norm]:
        """Yield a norm that does what a module does; none if none does."""
        if any(True for _ in module.children()):
            return
        parameters = list(module.parameters(recurse=False))
        place = parameters[0] if parameters and parameters[0].device.type != "meta" else None
        device = self.device if place is None else place.device
        shape = tuple(parameters[0].shape) if parameters else (8,)
        epsilon = next((getattr(module, name) for name in _EPSILONS if hasattr(module, name)), None)
        epsilon = torch.finfo(torch.float32).eps if epsilon is None else float(epsilon)
        ends = torch.ones(shape, device=device)
        ends.view(-1)[::2] = -1.0
        rows = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0)).to(device)
        rows[1] *= 30.0
        rows[2] *= 1e-3  # as small as epsilon
        probes = torch.cat([ends[None], -ends[None], rows])
        if shape[-1] < 4:
            return
        narrow = torch.float32
        values = None if isinstance(module, _ONE_DTYPE) else _tried(module, probes)
        if values is None and parameters:
            narrow = parameters[0].dtype
            probes = probes.to(narrow).float()
            values = _tried(module, probes.to(narrow))
        if values is None or values.shape != probes.shape:
            return
        values = values.float()
        tolerance = 1e-5 if narrow == torch.float32 else 4 * torch.finfo(narrow).eps
        if parameters:
            tolerance = max(tolerance, torch.finfo(parameters[0].dtype).eps)
        for centred in (False, True):
            plain = Norm(module, torch.ones(shape), None, epsilon, centred)
            states = (probes - probes.mean(dim=-1, keepdim=True) if centred else probes) * plain.scale(probes)
            weight = (values[0] - values[1]) / (states[0] - states[1])
            bias = (values[0] + values[1]) / 2
            largest = float(values.abs().amax())
            expected = states * weight + bias
            if bool((expected - values).abs().amax() <= tolerance * max(largest, 1e-12)):
                if not parameters:  # of any width
                    weight = weight.flatten().mean()[None]
                yield Norm(
                    module, weight, bias if bool(bias.abs().amax() > tolerance * largest) else None, epsilon, centred
                )
                return


_ONE_DTYPE = (torch.nn.LayerNorm, torch.nn.RMSNorm)  # they take states in the dtype of their weights
_EPSILONS = ("variance_epsilon", "eps", "norm_eps", "epsilon")


def _tried(module: torch.nn.Module, values: Tensor) -> Tensor | None:
    """What a module makes of some values, without its hooks; None if it does not take them."""
    try:
        found: Any = module.forward(values)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
    return found if isinstance(found, Tensor) else None


def _linear(module: torch.nn.Module) -> bool:
    """Whether a module is linear: a Linear, or one with adapters (LoRA), which is all made of them."""
    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    empty = (torch.nn.ModuleDict, torch.nn.ModuleList, torch.nn.ParameterDict, *_STILL)
    return any(isinstance(leaf, torch.nn.Linear) for leaf in leaves) and all(
        isinstance(leaf, (torch.nn.Linear, *empty)) for leaf in leaves
    )


def _features(module: torch.nn.Module | None) -> tuple[int, int] | None:
    """Channels in and out of a linear module."""
    try:
        return int(module.in_features), int(module.out_features)  # type: ignore[union-attr,arg-type]
    except AttributeError:
        return None
