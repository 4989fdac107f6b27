"""How well the model does while it is trained, and that it runs elsewhere as it was trained."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tam_fast.demo import scenes as sc
from tam_fast.demo.train.batches import Batch, make_batch
from tam_fast.demo.train.lean import Lean
from tam_fast.demo.train.plan import GRID, Phase
from tam_fast.demo.train.words import SLOT_WORDS, word_id

__all__ = ["check_parity", "validate"]


@torch.no_grad()
def validate(lean: Lean, pictures: bool, grid: int, count: int = 96) -> dict[str, float]:
    """Figures on scenes of a fixed validation seed, none of which are trained on or reported.

    ``exact``: the greedy caption equals the reference token for token. ``words``: share of its colour and shape
    words predicted. ``peak``: the raw map of a colour or shape word peaks on a cell that its object covers.
    ``function``: mean of the raw maps of function words, as a share of the object words' mean peak.
    """
    lean.model.eval()
    rng = np.random.default_rng(987_654)
    batch = make_batch(rng, Phase(1, grid, count), pictures, captions=True)
    content = {word_id(word) for word in SLOT_WORDS[:24]}
    function = [word_id(word) for word in (" a", ",", " and", "The", " shows", ".")]
    hits, peaks, heights, floors = [0, 0], [0, 0], 0.0, 0.0
    states = _states(lean, batch)
    words, start = lean.words, len(lean.prefix)
    after = start + grid * grid
    guesses = F.linear(states[:, after:-1], words).argmax(-1)
    right = guesses == batch.tokens[:, 1:]
    asked = batch.weights[:, 1:] == 1.0
    exact = (right | ~asked).all(dim=1).float().mean()
    for index, scene in enumerate(batch.scenes):
        for token, ok, answer in zip(
            batch.tokens[index, 1:].tolist(), right[index].tolist(), asked[index].tolist(), strict=True
        ):
            if answer and token in content:
                hits[0] += int(ok)
                hits[1] += 1
        covered = sc.coverage(scene, grid).reshape(len(scene.objects), -1)
        cells = states[index, start:after]
        floor = F.linear(cells, words[function]).clamp(min=0).mean()
        for group in scene.groups:
            for word in (group.colour, group.shape):
                fits = [i for i, o in enumerate(scene.objects) if word in (o.colour, o.shape)]
                scores = cells @ words[word_id(f" {word}")]
                peaks[0] += int(covered[fits, int(scores.argmax())].max() > 0.3)
                peaks[1] += 1
                heights += float(scores.max())
                floors += float(floor)
    return {
        "exact": round(float(exact), 3),
        "words": round(hits[0] / hits[1], 4),
        "peak": round(peaks[0] / peaks[1], 4),
        "height": round(heights / peaks[1], 2),
        "function": round(floors / max(heights, 1e-9), 3),
    }


def _states(lean: Lean, batch: Batch, rows: int = 24) -> Tensor:
    """Final hidden states (B, S, C), some rows of the batch at a time."""
    parts: list[Tensor] = []
    with torch.autocast("cpu", torch.bfloat16):
        for begin in range(0, len(batch.tokens), rows):
            some = slice(begin, begin + rows)
            piece = Batch(
                batch.grid,
                batch.tokens[some],
                batch.weights[some],
                batch.words[some],
                pictures=None if batch.pictures is None else batch.pictures[some],
                slots=None if batch.slots is None else batch.slots[some],
            )
            parts.append(lean.read(lean.slots(piece), piece.tokens, batch.grid).float())
    return torch.cat(parts)


@torch.no_grad()
def check_parity(lean: Lean) -> float:
    """Largest difference of the lean forward's states from the stock model's, on one picture.

    Raises
    ------
    RuntimeError
        If it exceeds 1e-3: the weights would not run elsewhere as they were trained.
    """
    lean.model.eval()
    batch = make_batch(np.random.default_rng(1), Phase(1, GRID, 1), pictures=True, captions=True)
    assert batch.pictures is not None
    states = lean.read(lean.slots(batch), batch.tokens, GRID)[0]
    image = torch.full((GRID * GRID,), lean.model.config.image_token_id)
    ids = torch.cat([lean.prefix, image, batch.tokens[0]])[None]
    stock = lean.model.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=batch.pictures[0],
        image_grid_thw=torch.tensor([[1, GRID, GRID]]),
        mm_token_type_ids=(ids == lean.model.config.image_token_id).int(),
    ).last_hidden_state[0]
    difference = float((states - stock).abs().max())
    if not difference < 1e-3:
        raise RuntimeError(f"lean and stock forward differ by {difference}")
    return difference
