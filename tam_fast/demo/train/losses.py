"""What the stages of the training minimise: :class:`Losses`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tam_fast.demo.train.batches import Batch, dialogue
from tam_fast.demo.train.lean import Lean
from tam_fast.demo.train.packing import Talks, pack
from tam_fast.demo.train.plan import Plan
from tam_fast.demo.train.samples import draw
from tam_fast.demo.train.words import Words

__all__ = ["Losses"]

_NONE = torch.empty(0, dtype=torch.int64)


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

    def text(self, states: Tensor, talks: Talks) -> Tensor:
        """Next-token loss on the text after the visual slots, from the states (M, C) of its tokens, weighted."""
        losses = F.cross_entropy(F.linear(states, self.lean.words).float(), talks.targets, reduction="none")
        return (losses * talks.weights).sum() / talks.weights.sum()

    def _some_slots(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw which slots are looked at: their places among the slots, and in the sequence. All would take longer."""
        _, places, _ = self.lean.before(batch.shape)
        some = torch.randperm(len(places), generator=rng)[: self.plan.slots_judged]
        return some, places[some]

    def _calibration(self, partition: Tensor) -> Tensor:
        """A weak pull of the log-partition to a constant: it sets how many cells a word leaves dark."""
        return self.plan.log_partition_weight * (partition - self.plan.log_partition).square().mean()

    def slot(self, at_slots: Tensor, batch: Batch, some: Tensor) -> Tensor:
        """Text slots name their own words: states (B, J, C) at the slots `some` (J,)."""
        assert batch.own is not None
        assert batch.slot_weights is not None
        share, words = self.plan.smoothing, self.lean.words
        partition = F.linear(at_slots, words).float().logsumexp(dim=-1)
        # The expected logit is the state's product with the expected word: cheaper than a mean over all logits.
        wanted = (1 - share) * (batch.own[:, some] @ words[self.lean.slot_ids]) + share * (self.unigram @ words)
        expected = (at_slots * wanted).float().sum(-1)
        weights = batch.slot_weights[:, some]
        return ((partition - expected) * weights).sum() / weights.sum() + self._calibration(partition)

    def stray(self, at_slots: Tensor) -> Tensor:
        """Visual states (B, J, C) of a picture predict words of scenes and answers, and no template or stray bytes.

        The caption loss alone lets cells at outlines turn into copies of template tokens: harmless to captions, but
        holes in every word's map. As for text slots, the log-partition is pulled to a constant.
        """
        logits = F.linear(at_slots, self.lean.words).float()
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
        slots, talks = self.lean.slots(batch, noise), pack(batch.tokens, batch.weights)
        judged = batch.pictures is None or stage == "settle"
        some, places = self._some_slots(batch, noise) if judged else (_NONE, _NONE)
        at_slots, states = self.lean.read(slots, talks, batch.shape, places)
        loss = self.text(states, talks)
        if batch.pictures is None:
            return loss + 0.5 * self.slot(at_slots, batch, some)
        return loss + self.plan.stray_weight * self.stray(at_slots) if judged else loss
