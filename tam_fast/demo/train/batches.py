"""Samples as tensors: :func:`make_batch`. No mask of a picture, and no place in one, is ever part of a batch.

What text slots hold is drawn from the same scenes, but such a batch has no pictures: it is language about a symbolic
grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tam_fast.demo import scenes as sc
from tam_fast.demo.scenes.shapes import Floats
from tam_fast.demo.train.plan import PATCH
from tam_fast.demo.train.samples import Sample, Shape
from tam_fast.demo.train.words import NOTHING, SLOT_WORDS, Words

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "Batch", "dialogue", "make_batch", "patchify"]

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

_PROMPT_WEIGHT = 0.1
# Weight of a deciding word that the question does not hold: in an answer with few of them, and with many.
_FEW_WEIGHT, _MANY_WEIGHT, _FEW = 4.0, 2.0, 3
# Share of a cell's own-word target: shape, colour, plural.
_OWN_WORDS = (0.42, 0.45, 0.13)
_COLUMNS = {word: column for column, word in enumerate(SLOT_WORDS)}


@dataclass
class Batch:
    """One batch: samples of one shape and their talks, padded on the right.

    ``tokens`` (B, T, L) are the ids after the visual slots, each talk beginning with ``<|vision_end|>``; ``weights``
    (B, T, L) is the loss weight of *predicting* that token. ``pictures`` is (B, N, 2 * 3 * PATCH ** 2) for pixels, None
    for text. For text, ``slots`` (B, N, W) are the mixing weights of the scene words, ``own`` (B, N, W) the own-word
    targets and ``slot_weights`` (B, N) their loss weights. ``words`` (B, W) says which scene words the objects bear.
    """

    shape: Shape
    tokens: Tensor
    weights: Tensor
    words: Tensor
    pictures: Tensor | None = None
    slots: Tensor | None = None
    own: Tensor | None = None
    slot_weights: Tensor | None = None


def patchify(frames: NDArray[np.uint8]) -> Tensor:
    """Frames (B, F, H, W, 3) uint8 as the processor's patches (B, N, 3 * 2 * PATCH ** 2) float32 of one plane.

    F is 1 (an image: the frame counts twice) or 2 (consecutive frames of a video).
    """
    batch, count, height, width = frames.shape[:4]
    x = torch.from_numpy(frames).to(torch.float32) / 255.0
    x = (x - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    x = x.view(batch, count, height // PATCH, PATCH, width // PATCH, PATCH, 3).permute(0, 2, 4, 6, 1, 3, 5)
    x = x.expand(-1, -1, -1, -1, 2, -1, -1)
    return x.reshape(batch, (height // PATCH) * (width // PATCH), -1)


def dialogue(turns: Sequence[tuple[str, str]], words: Words) -> tuple[list[int], list[float]]:
    """Token ids after the visual slots and the loss weight of each: most for words that decide an answer."""
    ids: list[int] = []
    weights: list[float] = []
    for index, (question, answer) in enumerate(turns):
        opening = "<|vision_end|>" if index == 0 else "<|im_start|>user\n"
        prompt = (*words.ids(opening), *words.ids(question), *words.ids("<|im_end|>\n<|im_start|>assistant\n"))
        reply = (*words.ids(answer), *words.ids("<|im_end|>"))
        ids += [*prompt, *reply, *words.ids("\n")]
        fresh = [token for token in reply if token in words.content and token not in prompt]
        heavy = _FEW_WEIGHT if len(fresh) <= _FEW else _MANY_WEIGHT
        weights += [_PROMPT_WEIGHT] * len(prompt)
        weights += [heavy if token in fresh else 1.0 for token in reply] + [_PROMPT_WEIGHT]
    return ids, weights


def make_batch(
    rng: np.random.Generator, samples: Sequence[Sample], words: Words, grid: int, *, pictures: bool
) -> Batch:
    """Make one batch of samples of one shape, at `grid` cells along a side."""
    shape = samples[0].shape(grid)
    rows = [[dialogue(talk, words) for talk in sample.talks] for sample in samples]
    length = max(len(ids) for row in rows for ids, _ in row)
    tokens = torch.full((len(rows), len(rows[0]), length), words.id("<|endoftext|>"), dtype=torch.int64)
    weights = torch.zeros(tokens.shape)
    for index, row in enumerate(rows):
        for number, (ids, loss) in enumerate(row):
            tokens[index, number, : len(ids)] = torch.tensor(ids)
            weights[index, number, : len(ids)] = torch.tensor(loss)
    said = torch.zeros((len(rows), len(SLOT_WORDS)))
    for index, sample in enumerate(samples):
        for plane in sample.planes:
            for item in (item for scene in plane for item in scene.objects):
                said[index, _COLUMNS[f" {item.colour}"]] = 1.0
                said[index, _COLUMNS[f" {item.shape}"]] = 1.0
    if pictures:
        planes = [
            patchify(np.stack([[sc.render(scene, grid * PATCH) for scene in s.planes[plane]] for s in samples]))
            for plane in range(shape.planes)
        ]
        return Batch(shape, tokens, weights, said, pictures=torch.cat(planes, dim=1))
    slots, own, slot_weights = _text_slots(rng, samples, shape, grid)
    return Batch(
        shape,
        tokens,
        weights,
        said,
        slots=torch.from_numpy(slots),
        own=torch.from_numpy(own),
        slot_weights=torch.from_numpy(slot_weights),
    )


def _text_slots(
    rng: np.random.Generator, samples: Sequence[Sample], shape: Shape, grid: int
) -> tuple[Floats, Floats, Floats]:
    """Draw what stands in the slots of a text: ``slots``, ``own`` and ``slot_weights`` of a :class:`Batch`."""
    slots = np.zeros((len(samples), shape.planes, shape.cells, len(SLOT_WORDS)), dtype=np.float32)
    own = np.zeros_like(slots)
    slot_weights = np.ones(slots.shape[:3], dtype=np.float32)
    for index, sample in enumerate(samples):
        for plane, scenes in enumerate(sample.planes):
            kept = rng.random(shape.cells) >= 0.12
            pure = rng.integers(0, 2, shape.cells)
            share = np.where(rng.random(shape.cells) < 0.7, rng.uniform(0.3, 0.7, shape.cells), pure)
            total = np.zeros(shape.cells, dtype=np.float32)
            for scene in scenes:
                covered = sc.coverage(scene, grid).reshape(len(scene.objects), shape.cells) / len(scenes)
                for item, part in zip(scene.objects, covered, strict=True):
                    columns = [_COLUMNS[f" {word}"] for word in (item.shape, item.colour, sc.PLURALS[item.shape])]
                    slots[index, plane, :, columns[0]] += part * kept * share
                    slots[index, plane, :, columns[1]] += part * kept * (1.0 - share)
                    for column, weight in zip(columns, _OWN_WORDS, strict=True):
                        own[index, plane, :, column] += part * weight
                total += covered.sum(axis=0)
            slots[index, plane, :, _COLUMNS[NOTHING]] = 1.0 - total * kept
            own[index, plane, :, _COLUMNS[NOTHING]] = 1.0 - total
            # A cell that was dropped cannot name what it does not show.
            slot_weights[index, plane] = np.where(kept, 1.0 + 3.0 * total, (total < 0.05).astype(np.float32))
    flat = (len(samples), shape.slots)
    return slots.reshape(*flat, -1), own.reshape(*flat, -1), slot_weights.reshape(flat)
