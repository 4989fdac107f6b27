"""Losses and stages: :class:`Trainer`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tam_fast.demo import scenes as sc
from tam_fast.demo.train import checks, files
from tam_fast.demo.train.batches import Batch, dialogue, make_batch
from tam_fast.demo.train.lean import Lean
from tam_fast.demo.train.model import initialise, look_around, make_config
from tam_fast.demo.train.plan import GRID, POLISH, STAGES, Phase, Plan
from tam_fast.demo.train.words import SLOT_WORDS, vocabulary_size, word_id

__all__ = ["Trainer", "train"]


class Trainer:
    """Model, losses and stages. ``log`` receives one line of text at a time."""

    def __init__(self, plan: Plan, log: Callable[[str], None] = print) -> None:
        from transformers import Qwen2VLForConditionalGeneration

        torch.manual_seed(plan.seed)
        self.plan = plan
        self.log = log
        self.model: Any = Qwen2VLForConditionalGeneration(make_config(plan))
        initialise(self.model)
        look_around(self.model.model.visual)
        self.lean = Lean(self.model)
        self.noise = torch.Generator().manual_seed(plan.seed)
        self.slot_ids = torch.tensor([word_id(word) for word in SLOT_WORDS])
        self.unigram = self._unigram()
        self.history: list[tuple[str, float]] = []
        self.started = time.perf_counter()

    def _unigram(self) -> Tensor:
        """Frequencies (V,) of the tokens of answers."""
        rng = np.random.default_rng(self.plan.seed)
        counts = torch.zeros(vocabulary_size())
        for _ in range(400):
            ids, weights = dialogue(sc.conversation(sc.make_scene(rng), rng, 2))
            counts.index_add_(0, torch.tensor(ids), (torch.tensor(weights) == 1.0).float())
        return counts / counts.sum()

    def text_loss(self, states: Tensor, batch: Batch) -> Tensor:
        """Next-token loss on the text after the visual slots, weighted."""
        start = states.shape[1] - batch.tokens.shape[1]
        logits = F.linear(states[:, start:-1], self.lean.words).float()
        losses = F.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
        weights = batch.weights[:, 1:].flatten()
        return (losses * weights).sum() / weights.sum()

    def slot_loss(self, states: Tensor, batch: Batch) -> Tensor:
        """Every text slot names its own words; a weak pull keeps the log-partition near a constant."""
        assert batch.own is not None
        assert batch.slot_weights is not None
        start = len(self.lean.prefix)
        logits = F.linear(states[:, start : start + batch.grid**2], self.lean.words).float()
        partition = logits.logsumexp(dim=-1)
        share = self.plan.smoothing
        expected = (1 - share) * (batch.own * logits[..., self.slot_ids]).sum(-1) + share * (logits @ self.unigram)
        weights = batch.slot_weights
        loss = ((partition - expected) * weights).sum() / weights.sum()
        return loss + self.plan.log_partition_weight * (partition - self.plan.log_partition).square().mean()

    def stray_loss(self, states: Tensor, batch: Batch) -> Tensor:
        """Visual states of a picture predict words of scenes and answers, whichever, and no template or stray bytes.

        The caption loss alone lets cells at outlines turn into copies of template tokens: harmless to captions, but
        holes in every word's map. As for text slots, the log-partition is pulled to a constant.
        """
        start = len(self.lean.prefix)
        logits = F.linear(states[:, start : start + batch.grid**2], self.lean.words).float()
        known = torch.cat([self.slot_ids, self.unigram.nonzero().flatten()]).unique()
        partition = logits.logsumexp(dim=-1)
        stray = (partition - logits[..., known].logsumexp(dim=-1)).mean()
        return stray + self.plan.log_partition_weight * (partition - self.plan.log_partition).square().mean()

    def warmup_loss(self, batch: Batch) -> Tensor:
        """Image-level labels: the best visual tokens of a picture show the words of its caption, and only those.

        Pictures of one object are classified as well: the best colour and the best shape are its own.
        """
        visual = self.lean.slots(batch).float()
        words = self.lean.words[self.slot_ids[:16]].detach()
        scores = visual @ words.T / words.square().sum(-1)
        alone = all(len(scene.objects) == 1 for scene in batch.scenes)
        pooled = scores.topk(max(1, batch.grid**2 // (5 if alone else 25)), dim=1).values.mean(dim=1)
        labels = batch.words[:, :16]
        loss = F.binary_cross_entropy_with_logits((pooled - 0.25) * 16.0, labels)
        if alone:
            colours, shapes = (pooled * 16.0).chunk(2, dim=1)
            loss = loss + 0.5 * F.cross_entropy(colours, labels[:, :8]) + F.cross_entropy(shapes, labels[:, 8:])
        return loss

    def step_loss(self, stage: str, batch: Batch) -> Tensor:
        """Loss of one batch in a stage."""
        if stage == "warmup":
            return self.warmup_loss(batch)
        states = self.lean.read(self.lean.slots(batch, self.noise), batch.tokens, batch.grid)
        loss = self.text_loss(states, batch)
        if batch.pictures is None:
            return loss + 0.5 * self.slot_loss(states, batch)
        return loss + 0.2 * self.stray_loss(states, batch) if stage == "settle" else loss

    def _optimisers(self, stage: str) -> list[torch.optim.Optimizer]:
        language = list(self.model.model.language_model.named_parameters())
        visual = list(self.model.model.visual.named_parameters())
        active = {"language": language, "polish": language + visual}.get("polish" if stage in POLISH else stage, visual)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for _, parameter in active:
            parameter.requires_grad_(True)
        matrices = [p for name, p in active if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in active if p.ndim != 2 or "embed" in name]
        scale = self.plan.polish_rate if stage in POLISH else 1.0
        muon = torch.optim.Muon(
            matrices, lr=self.plan.muon_rate * scale, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW(others, lr=self.plan.adam_rate * scale, betas=(0.9, 0.98), weight_decay=0.0)
        return [muon, adam]

    def _schedule(self, stage: str, phases: tuple[Phase, ...], rng: np.random.Generator) -> Iterator[Batch]:
        for phase in phases:
            for _ in range(phase.steps):
                pictures = stage != "language"
                if stage in POLISH and rng.random() < self.plan.text_share:
                    pictures = False
                # A close-up on 10 cells has the scale of a scene on 20 at a quarter of the price.
                close = stage == "warmup" and phase.grid < GRID
                make = sc.make_closeup if close else sc.make_scene
                yield make_batch(rng, phase, pictures, captions=stage == "warmup", make=make)

    def run(self, stage: str, phases: tuple[Phase, ...]) -> None:
        """Train one stage: linear warm-up of the rate over 30 steps, then a cosine down to 5 %."""
        plan = self.plan
        total = sum(phase.steps for phase in phases)
        rng = np.random.default_rng([plan.seed, STAGES.index(stage)])
        self.noise.manual_seed(int(rng.integers(2**31)))
        optimisers = self._optimisers(stage)
        rates = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
        active = [p for p in self.model.parameters() if p.requires_grad]
        self.model.train()
        smooth = 0.0
        for step, batch in enumerate(self._schedule(stage, phases, rng)):
            progress = max(0.0, (step - 30) / max(1, total - 30))
            factor = min(1.0, (step + 1) / 30) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
            groups = [group for optimiser in optimisers for group in optimiser.param_groups]
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * factor
            with torch.autocast("cpu", torch.bfloat16):
                loss = self.step_loss(stage, batch)
            for optimiser in optimisers:
                optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(active, 1.0)
            for optimiser in optimisers:
                optimiser.step()
            value = float(loss.detach())
            self.history.append((stage, value))
            smooth = value if step == 0 else 0.95 * smooth + 0.05 * value
            if (step + 1) % 25 == 0 or step + 1 == total:
                seconds = time.perf_counter() - self.started
                self.log(f"{seconds:7.0f} s  {stage} {step + 1}/{total}  loss {smooth:.4f}")
            if plan.validate_every and ((step + 1) % plan.validate_every == 0 or step + 1 == total):
                self.log(f"           {json.dumps(self.validate(stage != 'language', batch.grid))}")
                self.model.train()

    def validate(self, pictures: bool, grid: int, count: int = 96) -> dict[str, float]:
        """Figures on scenes of a fixed validation seed: :func:`tam_fast.demo.train.checks.validate`."""
        return checks.validate(self.lean, pictures, grid, count)

    def check_parity(self) -> float:
        """Compare with the stock model: :func:`tam_fast.demo.train.checks.check_parity`."""
        return checks.check_parity(self.lean)

    def save(self, output: Path) -> None:
        """Write the model: :func:`tam_fast.demo.train.files.save`."""
        files.save(self.model, output)


def train(
    output: Path, plan: Plan, log: Callable[[str], None] = print, checkpoints: Path | None = None
) -> list[tuple[str, float]]:
    """Run all stages and write the model; returns (stage, loss) of every step.

    With ``checkpoints`` every stage's end is kept there, and stages whose checkpoint is there already are skipped.
    """
    trainer = Trainer(plan, log)
    for stage in STAGES:
        kept = None if checkpoints is None else checkpoints / f"{stage}.pt"
        if kept is not None and kept.is_file():
            trainer.model.load_state_dict(torch.load(kept, weights_only=True))
            log(f"{stage}: taken from {kept}")
            continue
        trainer.run(stage, getattr(plan, stage))
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(trainer.model.state_dict(), kept)
    log(f"lean and stock forward differ by {trainer.check_parity():.2g}")
    trainer.save(output)
    log(f"written to {output} after {time.perf_counter() - trainer.started:.0f} s")
    return trainer.history
