"""Gradient CAMs of the decoder's layers: Grad-CAM, Grad-CAM++, Layer-CAM at any inner layer, and LLaVA-CAM.

Activations are what a layer gives at the visual positions, X_l (N, C); gradients are those of a token's logit z_i with
respect to them. The T tokens share one forward pass, whose graph begins at the layer, and have a backward pass each.
Nothing is cached: keys and values from a cache would cut the graph.

Of the last layer they do not exist. z_i reads the last layer's states at the one row that predicts the token, so that
the gradient is exactly 0 at every visual position. The paper's reading of "last layer", which is the default, takes the
score at the visual positions themselves; it needs no gradient (:mod:`tam_fast.methods.logit`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tam_fast.methods.logit import cam, final_grad_cam_plusplus, final_layer_cam, plusplus_alpha
from tam_fast.methods.registry import register
from tam_fast.methods.task import Task, hooked, is_pixels, layer_number, layers_of
from tam_fast.models.capture import decoder_of
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.wrappers import uncompiled, unwrap

__all__ = ["check_sigma", "gradients_of", "noisy_tasks", "scores_of"]

Weigh: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Of activations and gradients (N, C), float32: a map (N,) before its negative values are dropped."""

_PACKAGE = "pytorch-grad-cam's"
_EPSILON = 1e-7  # pytorch-grad-cam's, in the scaling of a map
COPIES = 50  # of the image, LLaVA-CAM's


# One graph, T backward passes ------------------------------------------------------------------------------------


def scores_of(task: Task, embeddings: Tensor | None = None) -> Tensor:
    """Run the decoder and score the targets: z_i (T,), with a graph to whatever needs a gradient."""
    with uncompiled(task.model):
        return task.logits(task.call(embeddings))


def gradients_of(scores: Tensor, sources: Sequence[Tensor], method: str) -> Iterator[list[Tensor]]:
    """Go through the gradients of each score (T,) with respect to some tensors; one backward pass at a time.

    Raises
    ------
    ModelNotSupportedError
        If nothing flows back, as from weights in a format that has no backward pass.
    """
    if not scores.requires_grad:
        raise ModelNotSupportedError(
            f"method: {method!r} needs gradients, and none flow through the decoder: one of its modules computes "
            "without a graph (weights in a format without a backward pass, or torch.no_grad inside)"
        )
    count = scores.shape[0]
    for index in range(count):
        found = torch.autograd.grad(scores[index], list(sources), retain_graph=index + 1 < count, allow_unused=True)
        yield [torch.zeros_like(source) if part is None else part for source, part in zip(sources, found, strict=True)]


class _Watched:
    """Where a graph begins: the outputs of some modules, in the order in which they run."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def look(self, _index: int, _module: Any, _arguments: Any, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        if self.outputs:  # part of the graph already
            self.outputs.append(state)
            return None
        leaf = state.detach().requires_grad_()
        self.outputs.append(leaf)
        return (leaf, *output[1:]) if isinstance(output, tuple) else leaf


def _at_modules(
    task: Task, modules: Sequence[torch.nn.Module], method: str, embeddings: Tensor | None = None
) -> tuple[list[Tensor], Iterator[list[Tensor]]]:
    """Activations (N, C) of some modules, in order, and an iterator over their gradients for each target."""
    seen = _Watched()
    with hooked(modules, seen.look):
        scores = scores_of(task, embeddings)

    def at_visual(output: Tensor) -> Tensor:
        if output.ndim < 3 or output.shape[:2] != (1, task.positions):
            raise ModelNotSupportedError(
                f"method: {method!r} needs layers that give (1, {task.positions}, C), and one of "
                f"{type(task.decoder).__name__} gives {tuple(output.shape)}"
            )
        # Streams of hyper-connections are channels like others.
        return output.detach()[0, task.visual.to(output.device)].flatten(1).float()

    states = [at_visual(output) for output in seen.outputs]
    return states, ([at_visual(part) for part in parts] for parts in gradients_of(scores, seen.outputs, method))


# Grad-CAM and its kin --------------------------------------------------------------------------------------------


def inner_layers(task: Task, layer: Any) -> list[int]:
    """Check ``layer=``: a layer's number or "mean"; [] for the last layer, whose gradients are 0, with a warning."""
    found = _numbered(task.decoder, layer)
    if not found:
        warnings.warn(
            f"layer: {layer} is the last: a token's logit reads its states at one row only, so that its gradient, and "
            "the map, is 0 at every visual position; None takes the final-layer reading",
            UserWarning,
            stacklevel=2,
        )
    return found


def _numbered(decoder: torch.nn.Module, layer: Any) -> list[int]:
    last = len(layers_of(decoder)) - 1
    if not last:
        raise ModelNotSupportedError(
            f"method: gradients need an inner layer, and the decoder {type(decoder).__name__} has one layer"
        )
    if isinstance(layer, str):
        if layer != "mean":
            raise ValueError(f'layer: expected None, a layer\'s number or "mean", got {layer!r}')
        return list(range(last))
    index = layer_number(layers_of(decoder), layer)
    return [] if index == last else [index]


def _scaled(maps: Tensor) -> Tensor:
    """Scale maps (..., N) as pytorch-grad-cam does: (m - min m) / (1e-7 + max(m - min m))."""
    shifted = maps - maps.amin(dim=-1, keepdim=True)
    return shifted / (_EPSILON + shifted.amax(dim=-1, keepdim=True))


def _cams(task: Task, layer: Any, weigh: Weigh, method: str) -> Tensor:
    """Make maps (T, N) at one inner layer, or the mean of all inner layers' scaled maps, scaled again."""
    indices = inner_layers(task, layer)
    if not indices:
        return torch.zeros((len(task), task.visual.numel()))
    states, gradients = _at_modules(task, [task.layers[index] for index in indices], method)
    maps = torch.stack(
        [
            torch.stack([weigh(state, part.to(state)).relu().cpu() for state, part in zip(states, parts, strict=True)])
            for parts in gradients
        ]
    )  # (T, layers, N)
    return _scaled(_scaled(maps).mean(dim=1)) if layer == "mean" else maps[:, 0]


def grad_cam_map(states: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM before its relu (N,) of activations and gradients (N, C): sum_c (mean_V g_c) a_c."""
    return states @ gradients.mean(dim=0)


def _plusplus(states: Tensor, gradients: Tensor) -> Tensor:
    weights = (gradients.relu() * plusplus_alpha(gradients.double(), states.double().sum(dim=0))).sum(dim=0)
    return states @ weights.to(states)


def _layer_cam(states: Tensor, gradients: Tensor) -> Tensor:
    return (states * gradients.relu()).sum(dim=1)


def _has_layers(model: Any, layer: Any = None, **_: Any) -> None:
    if layer is not None:
        _numbered(decoder_of(unwrap(model)), layer)


_COST = "1 forward; at an inner layer T backwards more"
_OF_LAYERS: Any = {"kind": "gradient", "needs": ["states", "gradients"], "check": _has_layers, "layer": None}


@register("grad_cam", source=f"Selvaraju et al. 2017, Eq. 1 and 2; {_PACKAGE} form", cost=_COST, **_OF_LAYERS)
def grad_cam(task: Task, layer: Any = None) -> Tensor:
    """Grad-CAM: relu(sum_c (mean_V g_c) a_c). ``layer=None`` is CAM, its final-layer reading.

    ``layer="mean"``: the maps of all layers but the last, each scaled by (m - min) / (1e-7 + max - min), the package's
    way; their mean, scaled again.
    """
    return cam(task) if layer is None else _cams(task, layer, grad_cam_map, "grad_cam")


@register("grad_cam_plusplus", source=f"Chattopadhay et al. 2018, Eq. 19; {_PACKAGE} form", cost=_COST, **_OF_LAYERS)
def grad_cam_plusplus(task: Task, layer: Any = None) -> Tensor:
    """Grad-CAM++: alpha = g^2 / (2 g^2 + g^3 sum_V a + 1e-6), 0 where g = 0; weight = sum_V relu(g) alpha."""
    return final_grad_cam_plusplus(task) if layer is None else _cams(task, layer, _plusplus, "grad_cam_plusplus")


@register("layer_cam", source=f"Jiang et al. 2021, Eq. 6 to 8; {_PACKAGE} form", cost=_COST, **_OF_LAYERS)
def layer_cam(task: Task, layer: Any = None) -> Tensor:
    """Layer-CAM: relu(sum_c relu(g) a)."""
    return final_layer_cam(task) if layer is None else _cams(task, layer, _layer_cam, "layer_cam")


# LLaVA-CAM -------------------------------------------------------------------------------------------------------

# What a layer's MLP reads; where there are norms behind the attention too (Gemma's), it is not the one of this name.
_BEFORE_MLP = ("pre_feedforward_layernorm", "post_attention_layernorm", "ffn_norm")


def _norms(layers: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
    found = []
    for index, layer in enumerate(layers):
        norm = next((getattr(layer, name) for name in _BEFORE_MLP if hasattr(layer, name)), None)
        if not isinstance(norm, torch.nn.Module):
            raise ModelNotSupportedError(
                f"method: 'llava_cam' reads the norm before a layer's MLP ({', '.join(_BEFORE_MLP)}), and layer "
                f"{index}, {type(layer).__name__}, has none"
            )
        found.append(norm)
    return found


def _has_norms(model: Any, layer: Any = None, smooth: Any = False, sigma: Any = 0.1, **_: Any) -> None:
    decoder = decoder_of(unwrap(model))
    _norms(layers_of(decoder))
    _numbered(decoder, 0 if layer is None else _one(layer))
    check_sigma(sigma)
    if smooth is not False:
        _copies(smooth)


def _one(layer: Any) -> Any:
    if isinstance(layer, str):
        raise ValueError(f"layer: expected a layer's number, got {layer!r}")
    return layer


@register(
    "llava_cam",
    kind="gradient",
    needs=["states", "gradients"],
    source='Zhang et al. 2024, "From Redundancy to Relevance"; as EAGLE mends its code',
    cost="1 forward and T backwards, for each noisy copy",
    check=_has_norms,
    layer=None,
    smooth=False,
    sigma=0.1,
    seed=0,
    noise=None,
)
def llava_cam(
    task: Task, layer: Any = None, smooth: Any = False, sigma: float = 0.1, seed: int = 0, noise: Any = None
) -> Tensor:
    """LLaVA-CAM, published as Smooth Grad-CAM++: relu(mean_c w a) with w = mean_V relu(g), divided by its maximum.

    a is the output of the norm before the MLP of a layer; by default that of the last but one. There is no term of
    Grad-CAM++ in it, in spite of its name.

    Parameters
    ----------
    task : Task
    layer : int, optional
    smooth : bool or int
        How many noisy copies of the image are averaged; True: 50, as published. Each copy's maps are divided by their
        maxima, and their mean is again.
    sigma : float
        Standard deviation of the noise, as a part of the range of values in the image. Noise is added to the pixels
        as the model takes them, and to the visual embeddings where its inputs have no pixels.
    seed : int
    noise : (copies, N, C) Tensor, optional
        Noise to be added to the visual embeddings, in place of drawn noise.
    """
    last = len(task.layers) - 1
    if layer is None:
        layer = max(last - 1, 0)
    index = inner_layers(task, _one(layer))
    if not index:
        return torch.zeros((len(task), task.visual.numel()))
    norms = [_norms(task.layers)[number] for number in index]

    def maps(one: Task, embeddings: Tensor | None = None) -> Tensor:
        (state,), gradients = _at_modules(one, norms, "llava_cam", embeddings)
        found = [((state @ part.relu().mean(dim=0).to(state)) / state.shape[1]).relu() for (part,) in gradients]
        return by_maximum(torch.stack(found))

    if noise is None and smooth is False:
        return maps(task)
    count, total = 0, torch.zeros(())
    for one, embeddings in noisy_tasks(task, _copies(smooth), sigma, seed, noise):
        total = total + maps(one, embeddings)
        count += 1
    return by_maximum(total / count)


def by_maximum(maps: Tensor) -> Tensor:
    """Divide maps (T, N) by their maxima; maps of zeros stay zero."""
    largest = maps.amax(dim=-1, keepdim=True)
    return maps / torch.where(largest > 0, largest, 1.0)


def _copies(smooth: Any) -> int:
    if isinstance(smooth, bool):
        return COPIES
    if not hasattr(smooth, "__index__") or int(smooth.__index__()) < 1:
        raise ValueError(f"smooth: expected False, True or a number of copies from 1, got {smooth!r}")
    return int(smooth.__index__())


# Noise -----------------------------------------------------------------------------------------------------------


def noisy_tasks(
    task: Task, copies: int, sigma: float, seed: int, noise: Any = None, pixels: bool = True
) -> Iterator[tuple[Task, Tensor | None]]:
    """Go through noisy copies: of a task with other pixels, or of its embeddings (1, S, C).

    Parameters
    ----------
    task : Task
    copies : int
    sigma : float
        Standard deviation, as a part of max - min of the values that it is added to.
    seed : int
    noise : (copies, N, C) Tensor, optional
        To be added to the visual embeddings as it is.
    pixels : bool
        Whether pixels get the noise, where there are any.
    """
    check_sigma(sigma)
    names = [name for name, value in task.inputs.items() if is_pixels(name, value)] if pixels else []
    generator = torch.Generator().manual_seed(seed)
    if noise is None and names:
        for _ in range(copies):
            others = dict(task.inputs)
            for name in names:
                others[name] = _disturbed(others[name], sigma, generator)
            yield task.with_inputs(others), None
        return
    visual = task.call.embeddings[0, task.visual.to(task.device)]
    if noise is None:
        drawn: Iterator[Tensor] = (_disturbed(visual, sigma, generator) for _ in range(copies))
    else:
        given = torch.as_tensor(noise)
        if given.ndim != 3 or given.shape[1:] != visual.shape or not given.shape[0]:
            raise ValueError(
                f"noise: expected (copies, N, C) = (copies, {', '.join(map(str, visual.shape))}), "
                f"got {tuple(given.shape)}"
            )
        drawn = (visual + part.to(visual) for part in given)
    for values in drawn:
        yield task, with_visual(task, values)


def check_sigma(sigma: Any) -> None:
    """Check ``sigma=``, a standard deviation."""
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0 <= sigma < float("inf"):
        raise ValueError(f"sigma: expected a finite number from 0, got {sigma!r}")


def with_visual(task: Task, values: Tensor) -> Tensor:
    """Return the decoder's embeddings (1, S, C) with others (N, C) at the visual positions; differentiable in them."""
    base = task.call.embeddings
    return base.index_copy(1, task.visual.to(base.device), values.to(base)[None])


def _disturbed(values: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add noise, drawn on the CPU in float32, so that it is the same on every device."""
    spread = sigma * float(values.float().amax() - values.float().amin())
    drawn = torch.randn(values.shape, generator=generator) * spread
    return values + drawn.to(values)
