"""Layer-wise relevance propagation of the text decoder, down to what it reads of the image: AttnLRP and CP-LRP.

Relevance is gradient x input under replaced derivatives (:mod:`tam_fast.methods.rules`), of a token's logit z_i, summed
over channels, signed. It is taken at the visual embeddings, and at the features that some models add to deeper layers
at the same positions (deepstack: Qwen3-VL, Granite 4 Vision): a position's relevance is the sum of both. The vision
tower is not gone through.

CP-LRP conserves: over all positions it sums to z_i, less what biases take. AttnLRP does not, since a softmax keeps its
own derivative: without biases, the sum was 0.78 to 1.13 of z_i in a small random decoder. Its values are not shares.

Norms are computed in float32, the rest in the model's dtype. In bfloat16 maps are nearly those of float32; gradients of
float16 may overflow, which is an error.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from tam_fast.methods.gradients import gradients_of
from tam_fast.methods.kinds import Kinds, kinds_of
from tam_fast.methods.registry import register
from tam_fast.methods.rules import Rule, rules
from tam_fast.methods.task import Task, hooked
from tam_fast.models.capture import decoder_of
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.wrappers import input_device, uncompiled, unwrap

__all__ = ["attn_lrp", "check_conservation", "cp_lrp", "relevance"]


def _checker(rule: Rule) -> Callable[..., None]:
    def check(model: Any, **_: Any) -> None:
        kinds_of(decoder_of(unwrap(model)), rule)

    return check


@register(
    "attn_lrp",
    kind="relevance",
    needs=["gradients"],
    signed=True,
    source="Achtibat et al. 2024 (ICML), AttnLRP; as gradient x input in the authors' efficient form",
    cost="1 forward, T backwards",
    check=_checker("attn_lrp"),
)
def attn_lrp(task: Task) -> Tensor:
    """AttnLRP: relevance of each visual position, signed."""
    return relevance(task, "attn_lrp", task.visual)


@register(
    "cp_lrp",
    kind="relevance",
    needs=["gradients"],
    signed=True,
    source="Ali et al. 2022 (ICML), conservative propagation: attention weights, gates and norms are constants",
    cost="1 forward, T backwards",
    check=_checker("cp_lrp"),
)
def cp_lrp(task: Task) -> Tensor:
    """CP-LRP: relevance of each visual position, signed; over all positions it sums to z_i, less what biases take."""
    return relevance(task, "cp_lrp", task.visual)


def relevance(task: Task, rule: Rule, positions: Tensor) -> Tensor:
    """Return the relevance (T, P) float32 of some positions (P,) for each target; all share one graph.

    Raises
    ------
    ModelNotSupportedError
        If a part of the decoder has no rule, the image reaches it in another way than by its embeddings, or float16
        overflows.
    """
    kinds = kinds_of(task.decoder, rule)
    if task.call.pixels:
        raise ModelNotSupportedError(
            f"method: {rule!r} needs the visual embeddings that the decoder {type(task.decoder).__name__} reads, and "
            f"{type(task.model).__name__} has them replaced inside it ({task.call.pixels[0]})"
        )
    check_conservation(task.decoder, kinds, rule)
    call = task.call
    places = positions.to(call.embeddings.device)
    values = call.embeddings[0, places].requires_grad_()
    added = _Added(task)
    with uncompiled(task.model), rules(kinds, rule):
        hidden = call.with_options(**added.options)(call.embeddings.index_copy(1, places, values[None]))
        scores = task.logits(hidden)
    maps = []
    for gradient, *others in gradients_of(scores, [values, *added.values], rule):
        found = (gradient.float() * values.detach().float()).sum(dim=1)
        maps.append(found + added.relevance(others, places).to(found))
    made = torch.stack(maps)
    if task.model.dtype == torch.float16 and not bool(made.isfinite().all()):
        raise _overflow(task.decoder, rule)
    return made


def _overflow(decoder: torch.nn.Module, method: str) -> ModelNotSupportedError:
    return ModelNotSupportedError(
        f"method: {method!r} overflows in float16 in {type(decoder).__name__}: load the model in bfloat16 or float32"
    )


class _Added:
    """Features (M, C) that a model gives its decoder for deeper layers, one row a visual position, in their order.

    Attributes
    ----------
    options : dict
        Of the decoder, with copies that gradients are taken of.
    values : list of (M, C) Tensor
        The copies.
    """

    def __init__(self, task: Task) -> None:
        self.options: dict[str, Any] = {}
        self.values: list[Tensor] = []
        self._places = torch.zeros(0, dtype=torch.int64)
        self._length = task.positions
        given = task.call.options
        for name, value in given.items():
            if name.startswith("deepstack") and isinstance(value, dict):
                self.options[name] = {key: self._leaf(part) for key, part in value.items()}
            elif name.startswith("deepstack") and isinstance(value, (list, tuple)):
                self.options[name] = [self._leaf(part) for part in value]
        if self.values:
            mask = next((given[name] for name in ("visual_pos_masks", "vision_mask") if name in given), None)
            rows = mask.flatten().nonzero()[:, 0] if isinstance(mask, Tensor) else None
            if rows is None or any(part.shape[0] != rows.numel() for part in self.values):
                raise ModelNotSupportedError(
                    f"method: relevance needs to know where {type(task.model).__name__} adds features to deeper layers "
                    f"of {type(task.decoder).__name__} ({', '.join(self.options)})"
                )
            self._places = rows

    def _leaf(self, value: Tensor) -> Tensor:
        leaf = value.detach().clone().requires_grad_()
        self.values.append(leaf)
        return leaf

    def relevance(self, gradients: list[Tensor], positions: Tensor) -> Tensor:
        """Sum what was added at each of some positions (P,), times its gradient."""
        total = torch.zeros(self._length, device=positions.device)
        for value, gradient in zip(self.values, gradients, strict=True):
            found = (gradient.float() * value.detach().float()).sum(dim=1)
            total.index_add_(0, self._places.to(total.device), found.to(total.device))
        return total[positions]


# What a decoder does beside its modules ------------------------------------------------------------------------------

_confirmed: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
_PROBE = 5  # positions


def check_conservation(decoder: torch.nn.Module, kinds: Kinds, method: str) -> None:
    """Make sure that the rules see all that a decoder's layers do, on five random positions; once a decoder.

    Under CP-LRP's rules a layer is linear, but for biases: with d = output - input, the relevance of d . output that
    arrives at the input, plus what biases take, is d . output. What a module computes beside its parts (a gate of what
    attention gives, a cap) breaks it.

    Raises
    ------
    ModelNotSupportedError
        If a layer does not conserve; names it, and the method.
    """
    if decoder in _confirmed:
        return
    seen = _Seen(kinds)
    width = getattr(decoder.config, "hidden_size", 0)
    drawn = torch.randn((1, _PROBE, int(width)), generator=torch.Generator().manual_seed(0))
    weights = next((part for part in decoder.parameters() if part.is_floating_point()), drawn)
    dtype = weights.dtype
    embeddings = drawn.to(input_device(decoder), dtype).requires_grad_()
    with uncompiled(decoder), torch.enable_grad(), rules(kinds, "cp_lrp"), seen:
        decoder(inputs_embeds=embeddings, use_cache=False)
    rounding = torch.finfo(dtype).eps
    for index, layer in enumerate(kinds.layers):
        begin, end = seen.inputs[index], seen.outputs[index]
        biased = seen.biased[index]
        step = (end - begin.to(end.device)).detach()
        sources = [begin, *(output for output, _ in biased)]
        gradient, *others = torch.autograd.grad(end, sources, step, retain_graph=True, allow_unused=True)
        if gradient is None:
            gradient = torch.zeros_like(begin)
        arrived = _dot(gradient, begin) + sum(
            _dot(part, bias) for part, (_, bias) in zip(others, biased, strict=True) if part is not None
        )
        expected = _dot(step, end)
        allowed = max(1e-3, 16 * rounding) * _dot(step, step) + 8 * rounding * _dot(step.abs(), end.abs())
        if dtype == torch.float16 and not math.isfinite(arrived - expected):
            raise _overflow(decoder, method)
        if not abs(arrived - expected) <= allowed:
            raise ModelNotSupportedError(
                f"method: {method!r} has no rule for something that layers.{index}, {type(layer).__name__}, does "
                f"beside its norms, projections, activations and attention: of relevance {expected:.6g}, "
                f"{arrived:.6g} arrives"
            )
    _confirmed.add(decoder)


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one.detach().double() * other.detach().to(one.device).double()).sum())


class _Seen:
    """Inputs and outputs of a decoder's layers, and outputs (with biases) of what in them has a bias."""

    def __init__(self, kinds: Kinds) -> None:
        count = len(kinds.layers)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.biased: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(count)]
        self._layers = kinds.layers
        norms = {id(norm.module): norm.bias for norm in kinds.norms if norm.bias is not None}
        self._parts: list[tuple[int, torch.nn.Module, Tensor | None]] = []
        for index, layer in enumerate(kinds.layers):
            for part in layer.modules():
                if id(part) in norms:
                    self._parts.append((index, part, norms[id(part)]))
                elif isinstance(part, torch.nn.Linear) and part.bias is not None:
                    self._parts.append((index, part, None))

    def __enter__(self) -> None:
        with ExitStack() as hooks:
            hooks.enter_context(hooked(self._layers, self._before, pre=True))
            hooks.enter_context(hooked(self._layers, self._after))
            hooks.enter_context(hooked([part for _, part, _ in self._parts], self._part))
            self._hooks = hooks.pop_all()

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _before(self, _index: int, _layer: torch.nn.Module, arguments: Any) -> None:
        given = arguments[0] if arguments else self.outputs[-1]
        self.inputs.append(given)

    def _after(self, _index: int, _layer: torch.nn.Module, _arguments: Any, output: Any) -> None:
        self.outputs.append(output[0] if isinstance(output, tuple) else output)

    def _part(self, place: int, part: torch.nn.Module, arguments: Any, output: Tensor) -> None:
        index, _, bias = self._parts[place]
        if bias is None:  # what it makes of zeros: weights may be quantised, or fetched when they are used
            with torch.no_grad():
                bias = part.forward(torch.zeros_like(arguments[0][..., :1, :]))
        self.biased[index].append((output, bias))
