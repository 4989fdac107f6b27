"""What the stages of the training minimise: :class:`Losses`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tam_fast.demo.train.batches import Batch, dialogue
from tam_fast.demo.train.lean import Lean
from tam_fast.demo.train.plan import Plan
from tam_fast.demo.train.samples import draw
from tam_fast.demo.train.words import Words

__all__ = ["Losses", "after_slots"]


def after_slots(states: Tensor, batch: Batch) -> Tensor:
    """States (B, T, L, C) of the tokens after the visual slots."""
    talks, rows = batch.tokens.shape[1:]
    after: Tensor = states[:, states.shape[1] - talks * rows :]
    return after.view(len(after), talks, rows, -1)


class Losses:
    """Losses of one batch, over the states of a :class:`Lean`."""

    def __init__(self, plan: Plan, lean: Lean, words: Words) -> None:
        self.plan = plan
        self.lean = lean
        self.unigram = self._unigram(words)
        self.known = torch.cat([lean.slot_ids, self.unigram.nonzero().flatten()]).unique()

    def _unigram(self, words: Words) -> Tensor:
        """Frequencies (V,) of the tokens of answers."""
        rng = np.random.default_rng(self.plan.seed)
        counts = torch.zeros(words.size)
        for _ in range(40):
            for sample in draw(rng, self.plan, 10, pictures=False):
                for talk in sample.talks:
                    ids, weights = dialogue(talk, words)
                    counts.index_add_(0, torch.tensor(ids), (torch.tensor(weights) >= 1.0).float())
        return counts / counts.sum()

    def text(self, states: Tensor, batch: Batch) -> Tensor:
        """Next-token loss on the text after the visual slots, weighted."""
        logits = F.linear(after_slots(states, batch)[:, :, :-1], self.lean.words).float()
        losses = F.cross_entropy(logits.flatten(0, 2), batch.tokens[:, :, 1:].flatten(), reduction="none")
        weights = batch.weights[:, :, 1:].flatten()
        return (losses * weights).sum() / weights.sum()

    def _some_slots(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw which slots are looked at: their places among the slots, and in the sequence. All would take longer."""
        _, places, _ = self.lean.before(batch.shape)
        some = torch.randperm(len(places), generator=rng)[: self.plan.slots_judged]
        return some, places[some]

    def _calibration(self, partition: Tensor) -> Tensor:
        """A weak pull of the log-partition to a constant: it sets how many cells a word leaves dark."""
        return self.plan.log_partition_weight * (partition - self.plan.log_partition).square().mean()

    def slot(self, states: Tensor, batch: Batch, rng: torch.Generator) -> Tensor:
        """Every text slot names its own words."""
        assert batch.own is not None
        assert batch.slot_weights is not None
        some, places = self._some_slots(batch, rng)
        at_slots, share, words = states[:, places], self.plan.smoothing, self.lean.words
        partition = F.linear(at_slots, words).float().logsumexp(dim=-1)
        # The expected logit is the state's product with the expected word: cheaper than a mean over all logits.
        wanted = (1 - share) * (batch.own[:, some] @ words[self.lean.slot_ids]) + share * (self.unigram @ words)
        expected = (at_slots * wanted).float().sum(-1)
        weights = batch.slot_weights[:, some]
        return ((partition - expected) * weights).sum() / weights.sum() + self._calibration(partition)

    def stray(self, states: Tensor, batch: Batch, rng: torch.Generator) -> Tensor:
        """Visual states of a picture predict words of scenes and answers, whichever, and no template or stray bytes.

        The caption loss alone lets cells at outlines turn into copies of template tokens: harmless to captions, but
        holes in every word's map. As for text slots, the log-partition is pulled to a constant.
        """
        logits = F.linear(states[:, self._some_slots(batch, rng)[1]], self.lean.words).float()
        partition = logits.logsumexp(dim=-1)
        return (partition - logits[..., self.known].logsumexp(dim=-1)).mean() + self._calibration(partition)

    def warmup(self, batch: Batch, alone: bool) -> Tensor:
        """Image-level labels: the best visual tokens of a picture show the words of its caption, and only those.

        Pictures of one object (`alone`) are classified as well: the best colour and the best shape are its own.
        """
        visual = self.lean.slots(batch).float()
        words = self.lean.words[self.lean.slot_ids[:16]].detach()
        scores = visual @ words.T / words.square().sum(-1)
        pooled = scores.topk(max(1, batch.shape.cells // (5 if alone else 25)), dim=1).values.mean(dim=1)
        labels = batch.words[:, :16]
        loss = F.binary_cross_entropy_with_logits((pooled - 0.25) * 16.0, labels)
        if alone:
            colours, shapes = (pooled * 16.0).chunk(2, dim=1)
            loss = loss + 0.5 * F.cross_entropy(colours, labels[:, :8]) + F.cross_entropy(shapes, labels[:, 8:])
        return loss

    def of(self, stage: str, batch: Batch, noise: torch.Generator, alone: bool = False) -> Tensor:
        """Loss of one batch in a stage; `noise` draws what is added to text slots."""
        if stage == "warmup":
            return self.warmup(batch, alone)
        states = self.lean.read(self.lean.slots(batch, noise), batch.tokens, batch.shape)
        loss = self.text(states, batch)
        if batch.pictures is None:
            return loss + 0.5 * self.slot(states, batch, noise)
        return loss + self.plan.stray_weight * self.stray(states, batch, noise) if stage == "settle" else loss
