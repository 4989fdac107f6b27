"""Grad-CAM on the vision encoder, the naive way of many tutorials: of its last block that the decoder uses.

Encoders keep their patches in orders of their own: with a class token, merged two by two, in windows, in tiles. Which
patch becomes which cell is asked of the model itself: gradients of the visual embeddings, with the cells' numbers
written into their signs bit by bit, arrive at each patch as the number of its cell.
"""

from __future__ import annotations

import re
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tam_fast.methods.gradients import grad_cam_map, gradients_of
from tam_fast.methods.registry import register
from tam_fast.methods.task import DecoderCall, Task, is_pixels
from tam_fast.models.capture import decoder_of
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.wrappers import uncompiled

__all__ = ["vision_blocks"]

_METHOD = "vision_grad_cam"
_ATTENDS = re.compile("attn|attention", re.IGNORECASE)
_QUERIES = re.compile("qformer|perceiver|resampler", re.IGNORECASE)  # theirs stand for no place in the image


def vision_blocks(model: Any) -> list[torch.nn.Module]:
    """List the blocks of attention that a model has outside its text decoder; those of all its encoders."""
    inside = {id(module) for module in decoder_of(model).modules()}
    found = []
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and id(module) not in inside:
            found += [block for block in module if _is_block(block)]
    return found


def _is_block(module: torch.nn.Module) -> bool:
    attends = any(_ATTENDS.search(name) for name, _ in module.named_children())
    return attends and not _QUERIES.search(type(module).__name__)


def _refused(model: Any, reason: str) -> ModelNotSupportedError:
    return ModelNotSupportedError(f"method: {_METHOD!r} {reason} in {type(model).__name__}")


def _check(model: Any, **_: Any) -> None:
    if not vision_blocks(model):
        raise _refused(model, "needs a vision encoder with blocks of attention outside the decoder, found none")


@dataclass
class _Seen:
    """Outputs of each block, in the order in which the blocks ran last; the graph begins anew at each."""

    outputs: dict[int, list[Tensor]] = field(default_factory=dict)

    def look(self, block: int, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        if not isinstance(state, Tensor) or not state.is_floating_point():
            return None
        leaf = state.detach().requires_grad_()
        self.outputs[block] = [*self.outputs.pop(block, []), leaf]
        return (leaf, *output[1:]) if isinstance(output, tuple) else leaf


def _run_encoder(task: Task, blocks: list[torch.nn.Module]) -> tuple[DecoderCall, list[list[Tensor]]]:
    """Run what comes before the decoder, and cut its graph behind each block."""
    seen, thread = _Seen(), threading.get_ident()
    with ExitStack() as stack:
        for number, block in enumerate(blocks):

            def look(_module: Any, _arguments: Any, output: Any, number: int = number) -> Any:
                return seen.look(number, output) if threading.get_ident() == thread else None

            # Before the hooks with which transformers records hidden states, which must see where the graph begins.
            stack.callback(block.register_forward_hook(look, prepend=True).remove)
        call = task.decoder_call()
    return call, list(seen.outputs.values())


@register(
    _METHOD,
    kind="gradient",
    needs=["states", "gradients"],
    source="Selvaraju et al. 2017, on the vision encoder; naive",
    cost="1 forward, T backwards",
    check=_check,
)
def vision_grad_cam(task: Task) -> Tensor:
    """Grad-CAM on the last block of the vision encoder that the decoder's embeddings are made of.

    relu(sum_c (mean g_c) a_c) at every patch, the mean being over those that have a cell; a cell's value is the mean of
    its patches. Class tokens are left out. Of several encoders it is the one that ran last.

    Raises
    ------
    ModelNotSupportedError
        If a patch of that block belongs to several cells, or a cell has no patch (pooling by attention, overlapping
        convolutions); known when the encoder has run, before the decoder.
    """
    model = task.model
    call, outputs = _run_encoder(task, vision_blocks(model))
    if not outputs and any(is_pixels(name, value) for name, value in task.inputs.items()):
        raise _refused(model, "needs blocks of attention that run in the vision encoder, found none")
    if not outputs:
        raise ValueError(f"inputs: expected pixels for method {_METHOD!r}, got {', '.join(sorted(task.inputs))}")
    visual = call.embeddings[0, task.visual.to(call.embeddings.device)]
    block, cells = _cells_of_patches(model, visual, outputs)
    with uncompiled(model):
        scores = task.logits(call())
    used = cells >= 0
    states = _patches(block)[used]
    counts = torch.zeros(visual.shape[0], device=states.device).index_add(0, cells[used], torch.ones_like(states[:, 0]))
    maps = []
    for parts in gradients_of(scores, block, _METHOD):
        values = grad_cam_map(states, _patches(parts)[used]).relu()
        maps.append(torch.zeros_like(counts).index_add(0, cells[used], values) / counts)
    return torch.stack(maps)


def _patches(outputs: list[Tensor]) -> Tensor:
    """Put all patches of a block's calls (..., C) in one row (P, C), float32."""
    return torch.cat([output.detach().flatten(0, -2).float() for output in outputs])


def _cells_of_patches(model: Any, visual: Tensor, outputs: list[list[Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Find the last block that visual embeddings (N, C) are made of, and each of its patches' cell (P,); -1: none."""
    if not visual.requires_grad:
        raise _refused(
            model,
            "needs visual embeddings that depend on the blocks of the vision encoder, found none that do (it runs "
            "without a graph, or what it sees goes elsewhere)",
        )
    count = visual.shape[0]
    drawn = torch.randn(visual.shape[1], generator=torch.Generator().manual_seed(0)).to(visual)

    def arrived(signs: Tensor, sources: list[Tensor]) -> list[Tensor | None]:
        weighted = (visual * drawn * signs.to(visual)[:, None]).sum()
        return list(torch.autograd.grad(weighted, sources, retain_graph=True, allow_unused=True))

    ones = torch.ones(count)
    found = iter(arrived(ones, [part for parts in outputs for part in parts]))
    block, base = None, torch.empty(0)
    for parts in outputs:
        gradients = [next(found) for _ in parts]
        if all(part is not None and bool(part.any()) for part in gradients):
            block, base = parts, _patches([part for part in gradients if part is not None])
    if block is None:
        raise _refused(model, "needs visual embeddings that depend on a block of the vision encoder, found none")
    size = base.square().sum(dim=1)
    used = size > 0
    cells = torch.zeros(base.shape[0], dtype=torch.int64, device=base.device)
    for bit in range(max(count - 1, 1).bit_length()):
        signs = 1.0 - 2.0 * ((torch.arange(count) >> bit) & 1)
        gradients = arrived(signs, block)
        told = _patches([part for part in gradients if part is not None])
        sign = (told * base).sum(dim=1).sign()
        apart = (told - sign[:, None] * base).square().sum(dim=1)
        if bool((apart[used] > 1e-3 * size[used]).any()):
            raise _refused(
                model,
                "needs patches that belong to one cell each, and what follows the encoder's last block mixes them",
            )
        cells += (sign < 0).long() << bit
    cells = torch.where(used, cells, -1)
    if cells[used].unique().numel() != count:
        raise _refused(model, "needs a patch for every cell, and some have none")
    return block, cells
