"""Forward passes for batches of equal shape: :class:`Lean`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tam_fast.demo.train.batches import Batch
from tam_fast.demo.train.samples import Shape
from tam_fast.demo.train.words import BETWEEN, PREFIX, SLOT_WORDS, Words

__all__ = ["Lean"]


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """Attention in float32: on a CPU faster than in bfloat16 for heads as small as these."""
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=causal)


def _attend_apart(query: Tensor, key: Tensor, value: Tensor, start: int, talks: int) -> Tensor:
    """Attention (B, H, S, D) of a shared beginning of `start` positions and of talks that do not see each other."""
    shared = _attend(query[:, :, :start], key[:, :, :start], value[:, :, :start], causal=True)
    batch, heads, length, width = query.shape
    own = (batch, heads, talks, (length - start) // talks, width)
    rows = own[3]

    def apart(x: Tensor, with_shared: bool) -> Tensor:
        mine = x[:, :, start:].reshape(own).transpose(1, 2)
        if with_shared:
            before = x[:, None, :, :start].expand(-1, talks, -1, -1, -1)
            mine = torch.cat([before, mine], dim=3)
        return mine.flatten(0, 1)

    seen = torch.ones(rows, start + rows, dtype=torch.bool).tril(start)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(
            apart(query, False).float(), apart(key, True).float(), apart(value, True).float(), attn_mask=seen
        )
    mixed = mixed.reshape(batch, talks, heads, rows, width).transpose(1, 2).reshape(batch, heads, -1, width)
    return torch.cat([shared, mixed], dim=2)


def _norm(x: Tensor, norm: Any) -> Tensor:
    """RMS norm in one operator; transformers' takes six."""
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


class Lean(nn.Module):
    """Batched forward passes over the modules of a ``Qwen2VLForConditionalGeneration``, all of a batch in one shape."""

    def __init__(self, model: Any, words: Words) -> None:
        super().__init__()
        self.model = model
        self.text = model.model.language_model
        self.visual = model.model.visual
        self.prefix = torch.tensor(words.ids(PREFIX))
        self.between = torch.tensor(words.ids(BETWEEN))
        self.slot_ids = torch.tensor([words.id(word) for word in SLOT_WORDS])

    @property
    def words(self) -> Tensor:
        """Embedding and classifier (V, C), tied."""
        weight: Tensor = self.text.embed_tokens.weight
        return weight

    def see(self, patches: Tensor, shape: Shape) -> Tensor:
        """Visual tokens (B, N, C) of patches (B, N, P); every plane is seen by itself."""
        visual = self.visual
        batch = patches.shape[0] * shape.planes
        index = torch.arange(shape.cells)
        places = torch.stack([index // shape.width, index % shape.width], 1)
        frequencies = (places[..., None] * visual.rotary_pos_emb.inv_freq).flatten(1)
        angles = torch.cat([frequencies, frequencies], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        x = F.linear(patches.reshape(batch, shape.cells, -1), visual.patch_embed.proj.weight.flatten(1))
        for block in visual.blocks:
            heads = block.attn.num_heads
            qkv = block.attn.qkv(block.norm1(x)).view(batch, shape.cells, 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = _attend(_turn(qkv[0], cos, sin), _turn(qkv[1], cos, sin), qkv[2])
            x = x + block.attn.proj(mixed.transpose(1, 2).reshape(batch, shape.cells, -1))
            x = x + block.mlp(block.norm2(x))
        merged: Tensor = visual.merger.mlp(visual.merger.ln_q(x))
        return merged.reshape(patches.shape[0], shape.slots, -1)

    def before(self, shape: Shape) -> tuple[Tensor, Tensor, int]:
        """Where things stand before the tokens: positions (3, S'), sequence index (N,) of the slots, next position.

        A video is one run of slots, images are runs of their own with :data:`BETWEEN` between them.
        """
        cells = torch.arange(shape.cells)
        rows, columns = cells // shape.width, cells % shape.width
        pieces, slots = [torch.arange(len(self.prefix)).expand(3, -1)], []
        length = current = len(self.prefix)
        for plane in range(shape.planes):
            if plane and not shape.video:
                current += max(shape.height, shape.width)
                pieces.append((torch.arange(len(self.between)) + current).expand(3, -1))
                current += len(self.between)
                length += len(self.between)
            time = torch.full_like(cells, plane if shape.video else 0)
            pieces.append(torch.stack([time, rows, columns]) + current)
            slots.append(cells + length)
            length += shape.cells
        return torch.cat(pieces, dim=1), torch.cat(slots), current + max(shape.height, shape.width)

    def read(self, slots: Tensor, tokens: Tensor, shape: Shape) -> Tensor:
        """Return final hidden states (B, S, C) of prefix, visual slots (B, N, C) and T talks (B, T, L) after them.

        Every talk stands as if it were the only one: the positions of all begin anew, and none sees another.
        """
        batch = slots.shape[0]
        embedding = self.text.embed_tokens
        places, _, after = self.before(shape)
        pieces = [embedding(self.prefix).expand(batch, -1, -1)]
        for plane, part in enumerate([slots] if shape.video else slots.chunk(shape.planes, dim=1)):
            pieces += [embedding(self.between).expand(batch, -1, -1)] if plane else []
            pieces.append(part)
        talks, rows = tokens.shape[1:]
        x = torch.cat([*pieces, embedding(tokens.flatten(1))], dim=1)
        start = x.shape[1] - talks * rows
        following = (torch.arange(rows) + after).repeat(talks).expand(3, -1)
        cos, sin = self.text.rotary_emb(x, torch.cat([places, following], dim=1)[:, None])
        for layer in self.text.layers:
            attention = layer.self_attn
            heads = (*x.shape[:2], -1, attention.head_dim)
            normed = _norm(x, layer.input_layernorm)
            query = attention.q_proj(normed).view(heads).transpose(1, 2)
            key = attention.k_proj(normed).view(heads).transpose(1, 2)
            value = attention.v_proj(normed).view(heads).transpose(1, 2)
            query, key = _turn(query, cos, sin), _turn(key, cos, sin)
            groups = attention.num_key_value_groups
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            mixed = _attend_apart(query, key, value, start, talks)
            x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            x = x + layer.mlp(_norm(x, layer.post_attention_layernorm))
        normed_states: Tensor = _norm(x, self.text.norm)
        return normed_states

    def slots(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        """Return what fills the visual slots (B, N, C): visual tokens, or noisy mixtures of word embeddings."""
        if batch.pictures is not None:
            return self.see(batch.pictures, batch.shape)
        assert batch.slots is not None
        mixed = batch.slots @ self.words[self.slot_ids]
        if rng is not None:
            scale = torch.rand((*mixed.shape[:2], 1), generator=rng) * 0.8 + 0.7
            noise = torch.randn(mixed.shape, generator=rng) * (0.3 * self.words[self.slot_ids].detach().std())
            mixed = mixed * scale + noise
        return mixed
