"""Scenes and conversations as tensors: :func:`make_batch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_fast.demo import scenes as sc
from tam_fast.demo.train.plan import PATCH, Phase
from tam_fast.demo.train.words import NOTHING, SLOT_WORDS, token_ids, word_id

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "Batch", "dialogue", "make_batch", "patchify"]

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# Share of a cell's own-word target: shape, colour, plural.
_OWN_WORDS = (0.42, 0.45, 0.13)
_COLUMNS = {word: column for column, word in enumerate(SLOT_WORDS)}
_Floats: TypeAlias = "NDArray[np.float32]"


@dataclass
class Batch:
    """One batch: scenes with a shared grid and their conversations, padded on the right.

    ``tokens`` (B, L) are the ids after the visual slots, beginning with ``<|vision_end|>``; ``weights`` (B, L) is the
    loss weight of *predicting* that token. ``pictures`` is (B, N, 2 * 3 * PATCH ** 2) for images, None for text. For
    text, ``slots`` (B, N, W) are the mixing weights of the scene words, ``own`` (B, N, W) the own-word targets and
    ``slot_weights`` (B, N) their loss weights. ``words`` (B, W) says which scene words the caption contains.
    """

    grid: int
    tokens: Tensor
    weights: Tensor
    words: Tensor
    pictures: Tensor | None = None
    slots: Tensor | None = None
    own: Tensor | None = None
    slot_weights: Tensor | None = None
    scenes: tuple[sc.Scene, ...] = ()


def patchify(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures (B, S, S, 3) uint8 as the image processor's patches (B, N, 3 * 2 * PATCH ** 2) float32."""
    batch, side = pictures.shape[0], pictures.shape[1]
    cells = side // PATCH
    x = torch.from_numpy(pictures).to(torch.float32) / 255.0
    x = (x - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    x = x.view(batch, cells, PATCH, cells, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    x = x.unsqueeze(4).expand(-1, -1, -1, -1, 2, -1, -1)
    return x.reshape(batch, cells * cells, -1)


def dialogue(turns: list[tuple[str, str]]) -> tuple[list[int], list[float]]:
    """Token ids after the visual slots and the loss weight of each: 1 for answers, 0.1 for the prompt."""
    ids: list[int] = []
    weights: list[float] = []
    for index, (question, answer) in enumerate(turns):
        opening = "<|vision_end|>" if index == 0 else "<|im_start|>user\n"
        prompt = (*token_ids(opening), *token_ids(question), *token_ids("<|im_end|>\n<|im_start|>assistant\n"))
        reply = (*token_ids(answer), *token_ids("<|im_end|>"))
        ids += [*prompt, *reply, *token_ids("\n")]
        weights += [0.1] * len(prompt) + [1.0] * len(reply) + [0.1]
    return ids, weights


def make_batch(
    rng: np.random.Generator,
    phase: Phase,
    pictures: bool,
    turns: int = 3,
    captions: bool = False,
    make: Callable[[np.random.Generator], sc.Scene] = sc.make_scene,
) -> Batch:
    """Draw scenes and conversations; with ``captions`` a single full caption each (for validation)."""
    scenes = [make(rng) for _ in range(phase.batch)]
    pad = word_id("<|endoftext|>")
    rows = []
    for scene in scenes:
        asked = [(sc.DESCRIBE, sc.caption(scene))] if captions else sc.conversation(scene, rng, turns)
        rows.append(dialogue(asked))
    length = max(len(ids) for ids, _ in rows)
    tokens = torch.full((len(rows), length), pad, dtype=torch.int64)
    weights = torch.zeros((len(rows), length))
    for index, (ids, loss) in enumerate(rows):
        tokens[index, : len(ids)] = torch.tensor(ids)
        weights[index, : len(ids)] = torch.tensor(loss)
    words = torch.zeros((len(rows), len(SLOT_WORDS)))
    for index, scene in enumerate(scenes):
        for group in scene.groups:
            words[index, _COLUMNS[f" {group.colour}"]] = 1.0
            words[index, _COLUMNS[f" {group.shape}"]] = 1.0
    if pictures:
        drawn = np.stack([sc.render(scene, phase.grid * PATCH) for scene in scenes])
        return Batch(phase.grid, tokens, weights, words, pictures=patchify(drawn), scenes=tuple(scenes))
    slots, own, slot_weights = _text_slots(rng, scenes, phase.grid)
    return Batch(
        phase.grid,
        tokens,
        weights,
        words,
        slots=torch.from_numpy(slots),
        own=torch.from_numpy(own),
        slot_weights=torch.from_numpy(slot_weights),
        scenes=tuple(scenes),
    )


def _text_slots(rng: np.random.Generator, scenes: Sequence[sc.Scene], grid: int) -> tuple[_Floats, _Floats, _Floats]:
    """Draw what stands in the slots of a text: ``slots``, ``own`` and ``slot_weights`` of a :class:`Batch`."""
    cells = grid * grid
    slots = np.zeros((len(scenes), cells, len(SLOT_WORDS)), dtype=np.float32)
    own = np.zeros_like(slots)
    slot_weights = np.ones((len(scenes), cells), dtype=np.float32)
    for index, scene in enumerate(scenes):
        covered = sc.coverage(scene, grid).reshape(len(scene.objects), cells)
        kept = rng.random(cells) >= 0.12
        share = np.where(rng.random(cells) < 0.7, rng.uniform(0.3, 0.7, cells), rng.integers(0, 2, cells))
        for item, part in zip(scene.objects, covered, strict=True):
            columns = [_COLUMNS[f" {word}"] for word in (item.shape, item.colour, sc.PLURALS[item.shape])]
            slots[index, :, columns[0]] += part * kept * share
            slots[index, :, columns[1]] += part * kept * (1.0 - share)
            for column, weight in zip(columns, _OWN_WORDS, strict=True):
                own[index, :, column] += part * weight
        total = covered.sum(axis=0)
        slots[index, :, _COLUMNS[NOTHING]] = 1.0 - total * kept
        own[index, :, _COLUMNS[NOTHING]] = 1.0 - total
        # A cell that was dropped cannot name what it does not show.
        slot_weights[index] = np.where(kept, 1.0 + 3.0 * total, (total < 0.05).astype(np.float32))
    return slots, own, slot_weights
