"""Stages, steps and checkpoints: :class:`Trainer`, :func:`train`."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tam_fast.demo import ASSETS
from tam_fast.demo.train import checks, files
from tam_fast.demo.train.batches import Batch, make_batch
from tam_fast.demo.train.lean import Lean
from tam_fast.demo.train.losses import Losses
from tam_fast.demo.train.model import initialise, look_around, make_config
from tam_fast.demo.train.muon import Muon
from tam_fast.demo.train.plan import GRID, POLISH, STAGES, Phase, Plan
from tam_fast.demo.train.precision import narrow, precision
from tam_fast.demo.train.samples import captioned, draw
from tam_fast.demo.train.words import Words

__all__ = ["Trainer", "train"]

CHECKPOINT = "progress.pt"


class Trainer:
    """The model and its training. ``log`` receives one line of text at a time.

    Step k of a stage depends on the plan's seed, the stage and k alone, besides the weights and the optimisers: a run
    that is resumed from a checkpoint continues bit for bit, given the same code, torch, machine and number of threads.
    """

    def __init__(self, plan: Plan, log: Callable[[str], None] = print, tokenizer: Path = ASSETS) -> None:
        from transformers import Qwen2VLForConditionalGeneration

        torch.manual_seed(plan.seed)
        self.plan = plan
        self.log = log
        self.words = Words(tokenizer)
        self.model: Any = Qwen2VLForConditionalGeneration(make_config(plan, self.words))
        initialise(self.model)
        look_around(self.model.model.visual)
        self.lean = Lean(self.model, self.words)
        self.losses = Losses(plan, self.lean, self.words)
        self.history: list[tuple[str, float]] = []
        self.optimisers: list[torch.optim.Optimizer] = []
        self.place = (0, 0)
        self.seconds = 0.0
        self.pieces = 1
        self.figures: dict[str, float] = {}

    def _prepare(self, stage: str) -> None:
        """Thaw what a stage trains, and make its optimisers."""
        language = list(self.model.model.language_model.named_parameters())
        visual = list(self.model.model.visual.named_parameters())
        active = {"language": language, "polish": language + visual}.get("polish" if stage in POLISH else stage, visual)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for _, parameter in active:
            parameter.requires_grad_(True)
        matrices = [p for name, p in active if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in active if p.ndim != 2 or "embed" in name]
        muon = Muon(matrices, lr=0.0, weight_decay=0.01)
        adam = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.optimisers = [muon, adam]

    def _rate(self, stage: str, step: int, total: int) -> float:
        """Share of the full rate: linear warm-up over 30 steps, then a cosine down to 5 %."""
        progress = max(0.0, (step - 30) / max(1, total - 30))
        share = min(1.0, (step + 1) / 30) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        return share * (self.plan.polish_rate if stage in POLISH else 1.0)

    def batch(self, stage: str, step: int) -> tuple[Batch, bool]:
        """Draw the batch of a step, and whether its pictures are close-ups of one object."""
        rng = np.random.default_rng([self.plan.seed, STAGES.index(stage), step])
        phase = _phase(getattr(self.plan, stage), step)
        if stage == "warmup":
            samples = captioned(rng, self.plan, phase.batch, phase.grid)
            return make_batch(rng, samples, self.words, phase.grid, pictures=True), phase.grid < GRID
        pictures = stage != "language" and not (stage in POLISH and rng.random() < self.plan.text_share)
        drills = (self.plan.drills if phase.grid < GRID else 1) if stage == "language" else 0
        samples = draw(rng, self.plan, phase.batch, pictures=pictures, drills=drills)
        return make_batch(rng, samples, self.words, phase.grid, pictures=pictures), False

    def step(self, stage: str, step: int, total: int) -> float:
        """Take one step; returns the loss."""
        batch, alone = self.batch(stage, step)
        noise = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + STAGES.index(stage) * 100_003 + step)
        share = self._rate(stage, step, total)
        for optimiser, rate in zip(self.optimisers, (self.plan.muon_rate, self.plan.adam_rate), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.zero_grad()
        with narrow():
            loss = self.losses.of(stage, batch, noise, alone)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        return float(loss.detach())

    def run(self, checkpoint: Path | None = None, every: int = 100, stop_after: int | None = None) -> None:
        """Train from where the trainer stands to the end; a checkpoint is written every so many steps.

        With `stop_after` it stops, with a checkpoint, once so many steps of this call are done: for tests.
        """
        done = 0
        started = time.perf_counter() - self.seconds
        while self.place[0] < len(STAGES):
            number, first = self.place
            stage = STAGES[number]
            total = _steps(getattr(self.plan, stage))
            if not first:
                self._prepare(stage)
            self.model.train()
            for step in range(first, total):
                value = self.step(stage, step, total)
                self.history.append((stage, value))
                self.place = (number, step + 1)
                self.seconds = time.perf_counter() - started
                if (step + 1) % 50 == 0 or step + 1 == total:
                    recent = [loss for name, loss in self.history[-50:] if name == stage]
                    self.log(f"{self.seconds:7.0f} s  {stage} {step + 1}/{total}  loss {np.mean(recent):.4f}")
                if self.plan.validate_every and ((step + 1) % self.plan.validate_every == 0 or step + 1 == total):
                    self._validate(stage, _phase(getattr(self.plan, stage), step).grid)
                done += 1
                if checkpoint is not None and ((step + 1) % every == 0 or done == stop_after):
                    self.keep(checkpoint)
                if done == stop_after:
                    return
            self.place = (number + 1, 0)
            if checkpoint is not None:
                self.keep(checkpoint)

    def _validate(self, stage: str, grid: int) -> None:
        if stage == "warmup":
            return
        # The last figures choose among seeds: they are of more scenes.
        count = 240 if self.place == (len(STAGES) - 1, _steps(self.plan.settle)) else 48
        self.figures = checks.validate(self.lean, self.plan, self.words, stage != "language", grid, count)
        self.log(f"           {json.dumps(self.figures)}")
        self.model.train()

    def keep(self, path: Path) -> None:
        """Write a checkpoint: everything that the rest of the run depends on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": self._settings(),
            "place": list(self.place),
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "history": self.history,
            "seconds": self.seconds,
            "pieces": self.pieces,
            "figures": self.figures,
        }
        unfinished = path.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(path)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        ValueError
            If it was written under other settings: another plan, tokenizer, number of threads, version of torch or
            number format.
        """
        state = torch.load(path, weights_only=True)
        mine = self._settings()
        other = [name for name in mine if state["settings"].get(name) != mine[name]]
        if other:
            raise ValueError(f"checkpoints: expected {path} to be of a run with the same {', '.join(other)}")
        self.place = (state["place"][0], state["place"][1])
        self.model.load_state_dict(state["model"])
        if self.place[1]:
            self._prepare(STAGES[self.place[0]])
            for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(kept)
        self.history = [(stage, loss) for stage, loss in state["history"]]
        self.seconds, self.pieces, self.figures = state["seconds"], state["pieces"] + 1, state["figures"]

    def _settings(self) -> dict[str, str]:
        return {
            "plan": json.dumps(asdict(self.plan)),
            "vocabulary": str(self.words.size),
            "threads": str(torch.get_num_threads()),
            "torch": str(torch.__version__),
            "precision": precision(),
        }

    def record(self) -> dict[str, Any]:
        """How the weights were made: for ``training.json``."""
        return {
            "learned": sorted(self.plan.kinds),
            "seed": self.plan.seed,
            "steps": len(self.history),
            "seconds": round(self.seconds),
            "runs": self.pieces,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "precision": precision(),
            "machine": platform.machine(),
            "validation": self.figures,
            "plan": asdict(self.plan),
        }

    def check_parity(self) -> float:
        """Compare with the stock model: :func:`tam_fast.demo.train.checks.check_parity`."""
        return checks.check_parity(self.lean, self.words)

    def save(self, output: Path) -> None:
        """Write the model: :func:`tam_fast.demo.train.files.save`."""
        files.save(self.model, output, self.words, self.record())


def _steps(phases: tuple[Phase, ...]) -> int:
    return sum(phase.steps for phase in phases)


def _phase(phases: tuple[Phase, ...], step: int) -> Phase:
    """Find the phase that a step belongs to."""
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    raise IndexError(f"step: expected one of the stage's steps, got {step} beyond the last")


def train(
    output: Path,
    plan: Plan,
    log: Callable[[str], None] = print,
    checkpoints: Path | None = None,
    tokenizer: Path = ASSETS,
) -> dict[str, Any]:
    """Run all stages and write the model; returns the record of the training.

    Parameters
    ----------
    output : Path
        Folder of the weights, configurations and tokenizer.
    plan : Plan
        What is trained.
    log : callable
        Receives one line of text at a time.
    checkpoints : Path, optional
        Folder in which the run is kept every 100 steps; if it holds a run of the same plan, that run goes on.
    tokenizer : Path
        Folder of the tokenizer, by default the shipped one.

    Raises
    ------
    ValueError
        If the tokenizer lacks a scene word, or the checkpoint is of another plan.
    """
    trainer = Trainer(plan, log, tokenizer)
    missing = trainer.words.missing()
    if missing:
        raise ValueError(f"tokenizer: expected every scene word as one token, {tokenizer} splits {', '.join(missing)}")
    kept = None if checkpoints is None else checkpoints / CHECKPOINT
    if kept is not None and kept.is_file():
        trainer.resume(kept)
        log(f"goes on after step {len(trainer.history)}, kept in {kept}")
    trainer.run(kept)
    log(f"lean and stock forward differ by {trainer.check_parity():.2g}")
    trainer.save(output)
    log(f"written to {output} after {trainer.seconds:.0f} s")
    return trainer.record()
