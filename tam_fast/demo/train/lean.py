"""Forward passes for batches of equal grids: :class:`Lean`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tam_fast.demo.train.batches import Batch
from tam_fast.demo.train.words import PREFIX, SLOT_WORDS, token_ids, word_id

__all__ = ["Lean"]


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
        self.prefix = torch.tensor(token_ids(PREFIX))

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
        words = self.words[torch.tensor([word_id(word) for word in SLOT_WORDS])]
        mixed = batch.slots @ words
        if rng is not None:
            scale = torch.rand((*mixed.shape[:2], 1), generator=rng) * 0.8 + 0.7
            noise = torch.randn(mixed.shape, generator=rng) * (0.3 * words.detach().std())
            mixed = mixed * scale + noise
        return mixed
