"""Forward passes for batches of equal shape: :class:`Lean`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tam_fast.demo.train.attention import Pattern, attend
from tam_fast.demo.train.batches import Batch
from tam_fast.demo.train.packing import Talks
from tam_fast.demo.train.rows import in_pairs, normalise, phases, turn
from tam_fast.demo.train.samples import Shape
from tam_fast.demo.train.words import BETWEEN, PREFIX, SLOT_WORDS, Words

__all__ = ["Lean"]

_QUICK = 1.702


def _projected(normal: Tensor, linear: Any, norm: Any, width: int = 0) -> Tensor:
    """Apply the weight of a norm and then a linear layer: one product with a matrix that holds both.

    With a `width` its rows are reordered, for heads of that width to be turned.
    """
    weight, bias = linear.weight * norm.weight, linear.bias
    if width:
        weight, bias = in_pairs(weight, width), None if bias is None else in_pairs(bias, width)
    return F.linear(normal, weight, bias)


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
        phase = phases((places[..., None] * visual.rotary_pos_emb.inv_freq).flatten(1))
        x = F.linear(patches.reshape(batch, shape.cells, -1), visual.patch_embed.proj.weight.flatten(1))
        for block in visual.blocks:
            attention, mlp = block.attn, block.mlp
            heads = (batch, shape.cells, attention.num_heads, attention.head_dim)
            normal = block.norm1(x)
            weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
            query, key = (
                F.linear(normal, in_pairs(weights[i], heads[-1]), in_pairs(biases[i], heads[-1])).view(heads)
                for i in (0, 1)
            )
            value = F.linear(normal, weights[2], biases[2]).view(heads).float()
            with torch.autocast("cpu", enabled=False):
                mixed = F.scaled_dot_product_attention(
                    turn(query, phase).transpose(1, 2), turn(key, phase).transpose(1, 2), value.transpose(1, 2)
                )
            x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
            # x sigmoid(a x) is silu(a x) / a: one operator, and the factors fit into the matrices.
            inner = F.linear(block.norm2(x), mlp.fc1.weight * _QUICK, mlp.fc1.bias * _QUICK)
            x = x + F.linear(F.silu(inner), mlp.fc2.weight / _QUICK, mlp.fc2.bias)
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

    def read(self, slots: Tensor, talks: Talks, shape: Shape, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Return final hidden states of the positions `shown` (J,) before the talks (B, J, C), and of the talks (M, C).

        The positions before the talks are the prefix and the visual slots (B, N, C). Every talk stands as if it were
        the only one: the positions of all begin anew, and none sees another. States that are not asked for are not
        made: in the last layer, all others serve as keys and values alone.
        """
        batch = slots.shape[0]
        embedding = self.text.embed_tokens
        places, _, after = self.before(shape)
        pieces = [embedding(self.prefix).expand(batch, -1, -1)]
        for plane, part in enumerate([slots] if shape.video else slots.chunk(shape.planes, dim=1)):
            pieces += [embedding(self.between).expand(batch, -1, -1)] if plane else []
            pieces.append(part)
        shared = places.shape[1]
        x = torch.cat([torch.cat(pieces, dim=1).flatten(0, 1), embedding(talks.ids)])
        positions = torch.cat([places.repeat(1, batch), (talks.places + after).expand(3, -1)], dim=1)
        cos, sin = self.text.rotary_emb(x, positions[:, None])
        half = cos.shape[-1] // 2
        phase = torch.complex(cos[0, :, None, :half].float(), sin[0, :, None, :half].float())
        pattern = Pattern.of(talks, shared)
        for layer in self.text.layers:
            attention, norm, mlp = layer.self_attn, layer.input_layernorm, layer.mlp
            width = attention.head_dim
            heads = (-1, width)
            normal = normalise(x, norm.variance_epsilon)
            key = turn(_projected(normal, attention.k_proj, norm, width).unflatten(-1, heads), phase)
            value = _projected(normal, attention.v_proj, norm).unflatten(-1, heads)
            if layer is self.text.layers[-1]:
                rows = (torch.arange(batch)[:, None] * shared + shown).flatten()
                rows = torch.cat([rows, torch.arange(batch * shared, len(x))])
                x, normal, phase = (part.index_select(0, rows) for part in (x, normal, phase))
                pattern = Pattern.of(talks, shared, shown)
            query = turn(_projected(normal, attention.q_proj, norm, width).unflatten(-1, heads), phase)
            x = x + attention.o_proj(attend(query, key, value, pattern).flatten(1))
            norm = layer.post_attention_layernorm
            normal = normalise(x, norm.variance_epsilon)
            gate = F.silu(_projected(normal, mlp.gate_proj, norm))
            x = x + mlp.down_proj(gate * _projected(normal, mlp.up_proj, norm))
        states = normalise(x, self.text.norm.variance_epsilon) * self.text.norm.weight
        edge = batch * len(shown)
        return states[:edge].view(batch, len(shown), x.shape[1]), states[edge:]

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
