"""Training of the embedded model: ``python -m tam_fast.demo.train --output DIR``.

Three stages, none of which sees a mask of an image:

1. *language*: the language model alone, on text in the chat layout whose visual slots hold word embeddings of a
   symbolic scene; next-token loss on the text, and every slot names its own content.
2. *alignment*: the language model is frozen; the vision tower and the merger learn from captions and answers, after a
   warm-up that needs no more than the words of the caption: close-ups of single objects, then whole scenes.
3. *polish*: everything at a low rate, with stage-1 text in part of the batches so that visual states stay readable; in
   its second part ("settle") a weak loss keeps visual states from predicting tokens that are no words of a scene.

Seed and step counts are fixed, and every stage draws from its own streams, so that a run may be resumed between stages.
The forward pass here is a lean one for batches of equal grids; its parity with the stock
``Qwen2VLForConditionalGeneration`` is checked before the weights are written.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tam_fast.demo import scenes as sc

__all__ = ["Plan", "Trainer", "main", "make_config", "train"]

ASSETS = Path(__file__).parent / "assets"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PATCH = 8
GRID = 20
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
PREFIX = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
NOTHING = " nothing"
STAGES = ("language", "warmup", "alignment", "polish", "settle")
POLISH = ("polish", "settle")
# Share of a cell's own-word target: shape, colour, plural.
OWN_WORDS = (0.42, 0.45, 0.13)


@dataclass(frozen=True)
class Phase:
    """Some steps at one grid and batch size."""

    steps: int
    grid: int
    batch: int


@dataclass(frozen=True)
class Plan:
    """The whole schedule. The default one made the shipped weights."""

    seed: int = 20
    language: tuple[Phase, ...] = (Phase(800, 10, 48), Phase(250, 14, 32), Phase(600, 20, 20))
    warmup: tuple[Phase, ...] = (Phase(450, 10, 32), Phase(80, 20, 24))
    alignment: tuple[Phase, ...] = (Phase(300, 20, 20),)
    polish: tuple[Phase, ...] = (Phase(350, 20, 20),)
    settle: tuple[Phase, ...] = (Phase(260, 20, 20),)
    muon_rate: float = 6e-3
    adam_rate: float = 2e-3
    polish_rate: float = 0.4
    text_share: float = 0.4
    smoothing: float = 0.3
    log_partition: float = 10.0
    log_partition_weight: float = 0.02
    validate_every: int = 200
    text_config: dict[str, Any] = field(default_factory=dict)
    vision_config: dict[str, Any] = field(default_factory=dict)


SMOKE = Plan(
    language=(Phase(6, 6, 8),),
    warmup=(Phase(2, 6, 8),),
    alignment=(Phase(3, 6, 8),),
    polish=(Phase(3, 6, 8),),
    settle=(Phase(2, 6, 8),),
    validate_every=0,
    text_config={"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2},
    vision_config={"depth": 1, "embed_dim": 64, "num_heads": 2, "hidden_size": 64},
)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(ASSETS / "tokenizer.json"))


@lru_cache(maxsize=65536)
def _ids(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer().encode(text).ids)


def _word_id(word: str) -> int:
    ids = _ids(word)
    if len(ids) != 1:
        raise RuntimeError(f"expected one token for {word!r}, got {len(ids)}: the tokenizer does not fit the scenes")
    return ids[0]


def make_config(plan: Plan) -> Any:
    """Make the model's ``Qwen2VLConfig``.

    The base of the rotary angles is 30: with the usual 10,000 or more, a step of one cell turns the slow pairs that
    carry the column by less than a thousandth of a radian, and left and right cannot be told apart.
    """
    from transformers import Qwen2VLConfig

    text = {
        "vocab_size": _tokenizer().get_vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 30.0, "mrope_section": [2, 7, 7]},
        "bos_token_id": None,
        "eos_token_id": _word_id("<|im_end|>"),
        "pad_token_id": _word_id("<|endoftext|>"),
        "use_cache": True,
        "tie_word_embeddings": True,
        **plan.text_config,
    }
    vision = {
        "depth": 3,
        "embed_dim": 128,
        "num_heads": 4,
        "mlp_ratio": 3,
        "hidden_size": 128,
        "patch_size": PATCH,
        "spatial_merge_size": 1,
        "temporal_patch_size": 2,
        "in_channels": 3,
        **plan.vision_config,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=_word_id("<|image_pad|>"),
        video_token_id=_word_id("<|video_pad|>"),
        vision_start_token_id=_word_id("<|vision_start|>"),
        vision_end_token_id=_word_id("<|vision_end|>"),
        tie_word_embeddings=True,
        architectures=["Qwen2VLForConditionalGeneration"],
    )


def _initialise(model: nn.Module) -> None:
    """Draw matrices with standard deviation 1 / sqrt(fan_in), half of it where they write to the residual stream."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                std = 1.0 / math.sqrt(parameter[0].numel())
                if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
                    std *= 0.5
                parameter.normal_(0.0, std)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)


# Cells (down, across) that the heads of each vision layer look at first.
_OFFSETS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2)),
    ((-2, -2), (-2, 2), (2, -2), (2, 2)),
)


def _look_around(visual: Any, strength: float = 5.0) -> None:
    """Make every head of the vision tower look at one neighbouring cell, like a tap of a convolution, to begin with.

    A constant key, turned by the rotary embedding, meets a constant query turned by the head's offset; both stand in
    the biases of the two fastest pairs of each axis. From plain noise instead, colours are learned in fifty steps but
    shapes not in hundreds: no head attends by place, and a shape is nothing but the places of its cells.
    """
    with torch.no_grad():
        frequencies = visual.rotary_pos_emb.inv_freq
        for block, offsets in zip(visual.blocks, _OFFSETS, strict=False):
            attention = block.attn
            attention.qkv.weight[: 2 * attention.dim] *= 0.5
            bias = attention.qkv.bias.view(3, attention.num_heads, attention.head_dim)
            for head, offset in zip(range(attention.num_heads), offsets, strict=False):
                for axis in (0, 1):
                    for fast in (0, 1):
                        pair = axis * len(frequencies) + fast
                        angle = float(frequencies[fast]) * offset[axis]
                        bias[0, head, pair] = strength * math.cos(angle)
                        bias[0, head, pair + attention.head_dim // 2] = strength * math.sin(angle)
                        bias[1, head, pair] = strength


# ---------------------------------------------------------------------------------------------------------------------
# Batches


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


SLOT_WORDS: tuple[str, ...] = (
    *(f" {colour}" for colour in sc.COLOURS),
    *(f" {shape}" for shape in sc.SHAPES),
    *(f" {sc.PLURALS[shape]}" for shape in sc.SHAPES),
    NOTHING,
)


def patchify(pictures: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """Pictures (B, S, S, 3) uint8 as the image processor's patches (B, N, 3 * 2 * PATCH ** 2) float32."""
    batch, side = pictures.shape[0], pictures.shape[1]
    cells = side // PATCH
    x = torch.from_numpy(pictures).to(torch.float32) / 255.0
    x = (x - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    x = x.view(batch, cells, PATCH, cells, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    x = x.unsqueeze(4).expand(-1, -1, -1, -1, 2, -1, -1)
    return x.reshape(batch, cells * cells, -1)


def _dialogue(turns: list[tuple[str, str]]) -> tuple[list[int], list[float]]:
    """Token ids after the visual slots and the loss weight of each: 1 for answers, 0.1 for the prompt."""
    ids: list[int] = []
    weights: list[float] = []
    for index, (question, answer) in enumerate(turns):
        opening = "<|vision_end|>" if index == 0 else "<|im_start|>user\n"
        prompt = (*_ids(opening), *_ids(question), *_ids("<|im_end|>\n<|im_start|>assistant\n"))
        reply = (*_ids(answer), *_ids("<|im_end|>"))
        ids += [*prompt, *reply, *_ids("\n")]
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
    pad = _word_id("<|endoftext|>")
    rows = []
    for scene in scenes:
        asked = [(sc.DESCRIBE, sc.caption(scene))] if captions else sc.conversation(scene, rng, turns)
        rows.append(_dialogue(asked))
    length = max(len(ids) for ids, _ in rows)
    tokens = torch.full((len(rows), length), pad, dtype=torch.int64)
    weights = torch.zeros((len(rows), length))
    for index, (ids, loss) in enumerate(rows):
        tokens[index, : len(ids)] = torch.tensor(ids)
        weights[index, : len(ids)] = torch.tensor(loss)
    names = {word: column for column, word in enumerate(SLOT_WORDS)}
    words = torch.zeros((len(rows), len(SLOT_WORDS)))
    for index, scene in enumerate(scenes):
        for group in scene.groups:
            words[index, names[f" {group.colour}"]] = 1.0
            words[index, names[f" {group.shape}"]] = 1.0
    if pictures:
        drawn = np.stack([sc.render(scene, phase.grid * PATCH) for scene in scenes])
        return Batch(phase.grid, tokens, weights, words, pictures=patchify(drawn), scenes=tuple(scenes))
    cells = phase.grid * phase.grid
    slots = np.zeros((len(rows), cells, len(SLOT_WORDS)), dtype=np.float32)
    own = np.zeros_like(slots)
    slot_weights = np.ones((len(rows), cells), dtype=np.float32)
    for index, scene in enumerate(scenes):
        covered = sc.coverage(scene, phase.grid).reshape(len(scene.objects), cells)
        kept = rng.random(cells) >= 0.12
        share = np.where(rng.random(cells) < 0.7, rng.uniform(0.3, 0.7, cells), rng.integers(0, 2, cells))
        for item, part in zip(scene.objects, covered, strict=True):
            columns = (names[f" {item.shape}"], names[f" {item.colour}"], names[f" {sc.PLURALS[item.shape]}"])
            slots[index, :, columns[0]] += part * kept * share
            slots[index, :, columns[1]] += part * kept * (1.0 - share)
            for column, weight in zip(columns, OWN_WORDS, strict=True):
                own[index, :, column] += part * weight
        total = covered.sum(axis=0)
        slots[index, :, names[NOTHING]] = 1.0 - total * kept
        own[index, :, names[NOTHING]] = 1.0 - total
        # A cell that was dropped cannot name what it does not show.
        slot_weights[index] = np.where(kept, 1.0 + 3.0 * total, (total < 0.05).astype(np.float32))
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


# ---------------------------------------------------------------------------------------------------------------------
# Lean forward passes


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Lean(nn.Module):
    """Batched forward passes over the modules of a ``Qwen2VLForConditionalGeneration``, all grids of a batch equal."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.text = model.model.language_model
        self.visual = model.model.visual
        self.prefix = torch.tensor(_ids(PREFIX))

    @property
    def words(self) -> Tensor:
        """Embedding and classifier (V, C), tied."""
        weight: Tensor = self.text.embed_tokens.weight
        return weight

    def see(self, patches: Tensor, grid: int) -> Tensor:
        """Visual tokens (B, N, C) of patches (B, N, P)."""
        visual = self.visual
        batch, cells = patches.shape[:2]
        index = torch.arange(cells)
        places = torch.stack([index // grid, index % grid], 1)
        frequencies = (places[..., None] * visual.rotary_pos_emb.inv_freq).flatten(1)
        angles = torch.cat([frequencies, frequencies], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        x = F.linear(patches, visual.patch_embed.proj.weight.flatten(1))
        for block in visual.blocks:
            heads = block.attn.num_heads
            qkv = block.attn.qkv(block.norm1(x)).view(batch, cells, 3, heads, -1).permute(2, 0, 3, 1, 4)
            query, key = _turn(qkv[0], cos, sin).to(qkv.dtype), _turn(qkv[1], cos, sin).to(qkv.dtype)
            mixed = F.scaled_dot_product_attention(query, key, qkv[2])
            x = x + block.attn.proj(mixed.transpose(1, 2).reshape(batch, cells, -1))
            x = x + block.mlp(block.norm2(x))
        merged: Tensor = visual.merger.mlp(visual.merger.ln_q(x))
        return merged

    def read(self, slots: Tensor, tokens: Tensor, grid: int) -> Tensor:
        """Return final hidden states (B, S, C) of prefix, visual slots (B, N, C) and the tokens (B, L) after them."""
        batch, start = slots.shape[0], len(self.prefix)
        embedding = self.text.embed_tokens
        x = torch.cat([embedding(self.prefix).expand(batch, -1, -1), slots, embedding(tokens)], dim=1)
        index = torch.arange(grid * grid)
        cells = torch.stack([torch.zeros_like(index), index // grid, index % grid]) + start
        before = torch.arange(start).expand(3, -1)
        after = (torch.arange(tokens.shape[1]) + start + grid).expand(3, -1)
        positions = torch.cat([before, cells, after], dim=1)[:, None]
        cos, sin = self.text.rotary_emb(x, positions)
        for layer in self.text.layers:
            attention = layer.self_attn
            shape = (*x.shape[:2], -1, attention.head_dim)
            normed = layer.input_layernorm(x)
            query = attention.q_proj(normed).view(shape).transpose(1, 2)
            key = attention.k_proj(normed).view(shape).transpose(1, 2)
            value = attention.v_proj(normed).view(shape).transpose(1, 2)
            query, key = _turn(query, cos, sin).to(value.dtype), _turn(key, cos, sin).to(value.dtype)
            groups = attention.num_key_value_groups
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        normed_states: Tensor = self.text.norm(x)
        return normed_states

    def slots(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        """Return what fills the visual slots (B, N, C): visual tokens, or noisy mixtures of word embeddings."""
        if batch.pictures is not None:
            return self.see(batch.pictures, batch.grid)
        assert batch.slots is not None
        words = self.words[torch.tensor([_word_id(word) for word in SLOT_WORDS])]
        mixed = batch.slots @ words
        if rng is not None:
            scale = torch.rand((*mixed.shape[:2], 1), generator=rng) * 0.8 + 0.7
            noise = torch.randn(mixed.shape, generator=rng) * (0.3 * words.detach().std())
            mixed = mixed * scale + noise
        return mixed


# ---------------------------------------------------------------------------------------------------------------------
# Losses and stages


class Trainer:
    """Model, losses and stages. ``log`` receives one line of text at a time."""

    def __init__(self, plan: Plan, log: Callable[[str], None] = print) -> None:
        from transformers import Qwen2VLForConditionalGeneration

        torch.manual_seed(plan.seed)
        self.plan = plan
        self.log = log
        self.model: Any = Qwen2VLForConditionalGeneration(make_config(plan))
        _initialise(self.model)
        _look_around(self.model.model.visual)
        self.lean = Lean(self.model)
        self.noise = torch.Generator().manual_seed(plan.seed)
        self.slot_ids = torch.tensor([_word_id(word) for word in SLOT_WORDS])
        self.unigram = self._unigram()
        self.history: list[tuple[str, float]] = []
        self.started = time.perf_counter()

    def _unigram(self) -> Tensor:
        """Frequencies (V,) of the tokens of answers."""
        rng = np.random.default_rng(self.plan.seed)
        counts = torch.zeros(_tokenizer().get_vocab_size())
        for _ in range(400):
            ids, weights = _dialogue(sc.conversation(sc.make_scene(rng), rng, 2))
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

    @torch.no_grad()
    def validate(self, pictures: bool, grid: int, count: int = 96) -> dict[str, float]:
        """Figures on scenes of a fixed validation seed, none of which are trained on or reported.

        ``exact``: the greedy caption equals the reference token for token. ``words``: share of its colour and shape
        words predicted. ``peak``: the raw map of a colour or shape word peaks on a cell that its object covers.
        ``function``: mean of the raw maps of function words, as a share of the object words' mean peak.
        """
        self.model.eval()
        rng = np.random.default_rng(987_654)
        batch = make_batch(rng, Phase(1, grid, count), pictures, captions=True)
        parts: list[Tensor] = []
        content = {_word_id(word) for word in SLOT_WORDS[:24]}
        function = [_word_id(word) for word in (" a", ",", " and", "The", " shows", ".")]
        hits, peaks, heights, floors = [0, 0], [0, 0], 0.0, 0.0
        with torch.autocast("cpu", torch.bfloat16):
            for part in range(0, count, 24):
                rows = slice(part, part + 24)
                piece = Batch(
                    grid,
                    batch.tokens[rows],
                    batch.weights[rows],
                    batch.words[rows],
                    pictures=None if batch.pictures is None else batch.pictures[rows],
                    slots=None if batch.slots is None else batch.slots[rows],
                )
                parts.append(self.lean.read(self.lean.slots(piece), piece.tokens, grid).float())
        states = torch.cat(parts)
        words, start = self.lean.words, len(self.lean.prefix)
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
                    scores = cells @ words[_word_id(f" {word}")]
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

    @torch.no_grad()
    def check_parity(self) -> float:
        """Largest difference of the lean forward's states from the stock model's, on one picture.

        Raises
        ------
        RuntimeError
            If it exceeds 1e-3: the weights would not run elsewhere as they were trained.
        """
        self.model.eval()
        grid = GRID
        batch = make_batch(np.random.default_rng(1), Phase(1, grid, 1), pictures=True, captions=True)
        assert batch.pictures is not None
        lean = self.lean.read(self.lean.slots(batch), batch.tokens, grid)[0]
        image = torch.full((grid * grid,), self.model.config.image_token_id)
        ids = torch.cat([self.lean.prefix, image, batch.tokens[0]])[None]
        stock = self.model.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=batch.pictures[0],
            image_grid_thw=torch.tensor([[1, grid, grid]]),
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
        ).last_hidden_state[0]
        difference = float((lean - stock).abs().max())
        if not difference < 1e-3:
            raise RuntimeError(f"lean and stock forward differ by {difference}")
        return difference

    def save(self, output: Path) -> None:
        """Write weights (fp16 safetensors), configurations and tokenizer: a folder that transformers loads."""
        from safetensors.torch import save_file
        from transformers import GenerationConfig

        output.mkdir(parents=True, exist_ok=True)
        # The classifier is the embedding; only one of the two is stored.
        state = {
            name: value.detach().to(torch.float16).contiguous()
            for name, value in self.model.state_dict().items()
            if name != "lm_head.weight"
        }
        save_file(state, str(output / "model.safetensors"), metadata={"format": "pt"})
        config = self.model.config.to_dict()
        config["dtype"] = "float16"
        config.pop("transformers_version", None)
        (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        generation = GenerationConfig(
            eos_token_id=_word_id("<|im_end|>"),
            pad_token_id=_word_id("<|endoftext|>"),
            do_sample=False,
            max_new_tokens=96,
        ).to_dict()
        kept = {key: generation[key] for key in ("eos_token_id", "pad_token_id", "do_sample", "max_new_tokens")}
        (output / "generation_config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        pixels = (GRID * PATCH) ** 2
        image_processor = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD),
            "rescale_factor": 1 / 255,
            "resample": 3,
            "size": {"shortest_edge": pixels, "longest_edge": pixels},
            "patch_size": PATCH,
            "merge_size": 1,
            "temporal_patch_size": 2,
        }
        processor = {"processor_class": "Qwen2VLProcessor", "image_processor": image_processor}
        (output / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
        legacy = {**image_processor, "processor_class": "Qwen2VLProcessor"}
        (output / "preprocessor_config.json").write_text(json.dumps(legacy, indent=2) + "\n", encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (ASSETS / name).resolve() != (output / name).resolve():
                shutil.copyfile(ASSETS / name, output / name)


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


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, configuration and tokenizer")
    parser.add_argument("--checkpoints", type=Path, help="folder of a checkpoint for every stage; resumes from there")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny model, to try the program")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    def log(line: str) -> None:
        print(line, flush=True)

    train(options.output, SMOKE if options.smoke else Plan(), log, options.checkpoints)


if __name__ == "__main__":
    main()
