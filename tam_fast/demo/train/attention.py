"""Attention of a shared beginning and of talks that do not see one another: :class:`Pattern`, :func:`attend`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tam_fast.demo.train.packing import Talks

__all__ = ["Pattern", "attend"]

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Queries of a shared beginning that are attended at once: only keys up to the last of them are looked at.
_AT_ONCE = 112


@dataclass(frozen=True)
class Pattern:
    """Who sees whom in a batch of B samples.

    Rows of keys are the ``shared`` positions of every sample, then the tokens of ``talks``. Rows of queries are
    ``shown`` shared positions of every sample, then the tokens. ``parts`` are runs of the shown positions: from, to,
    the number of shared keys that they may see any of, and the additive mask (to - from, keys).
    """

    shared: int
    shown: int
    talks: Talks
    parts: tuple[tuple[int, int, int, Tensor], ...]

    @classmethod
    def of(cls, talks: Talks, shared: int, shown: Tensor | None = None) -> Pattern:
        """Make the pattern of all shared positions as queries, or of the positions `shown` (J,) int64 only."""
        places = torch.arange(shared) if shown is None else shown
        runs = max(1, round(shared / _AT_ONCE)) if shown is None else min(1, len(shown))
        edges = [round(len(places) * run / max(1, runs)) for run in range(runs + 1)]
        parts = []
        for begin, end in itertools.pairwise(edges):
            keys = end if shown is None else shared
            unseen = torch.arange(keys) > places[begin:end, None]
            parts.append((begin, end, keys, torch.zeros(unseen.shape).masked_fill_(unseen, float("-inf"))))
        return cls(shared, len(places), talks, tuple(parts))

    def split(self, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Rows (N, H, D) as views: `first` positions of every sample (B, H, first, D), and tokens (M, H, D)."""
        edge = self.talks.by_sample.height * first
        return rows[:edge].unflatten(0, (self.talks.by_sample.height, first)).transpose(1, 2), rows[edge:]


def _up(raster: Tensor) -> Tensor:
    return raster.transpose(1, 2)


def _for_each_query(rows: Tensor, groups: int) -> Tensor:
    return rows[:, :, None].expand(-1, -1, groups, -1).flatten(1, 2)


class _Attend(torch.autograd.Function):
    """Torch's flash attention for CPUs, forward and backward, in pieces that need no rectangle of all keys.

    A token's share of the shared keys and of its own talk are attended apart and put together by their partitions.
    The backward pass of each piece takes the whole's results and partitions, which makes its gradients those of the
    whole (Dao et al. 2022, algorithm 4). Done with slices and autograd, gradients would be copied many times over.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        by_sample, by_talk = pattern.talks.by_sample, pattern.talks.by_talk
        keys, own_keys = pattern.split(_for_each_query(key, groups), pattern.shared)
        values, own_values = pattern.split(_for_each_query(value, groups), pattern.shared)
        own_keys, own_values = _up(by_talk.fill(own_keys)), _up(by_talk.fill(own_values))
        before, tokens = pattern.split(query, pattern.shown)
        mixed = torch.empty_like(query)
        mixed_before, mixed_tokens = pattern.split(mixed, pattern.shown)
        kept = []
        for begin, end, seen, mask in pattern.parts:
            result = _flash(before[:, :, begin:end], keys[:, :, :seen], values[:, :, :seen], attn_mask=mask)
            mixed_before[:, :, begin:end] = result[0]
            kept += result
        far, far_partition = _flash(_up(by_sample.fill(tokens)), keys, values)
        near, near_partition = _flash(_up(by_talk.fill(tokens)), own_keys, own_values, is_causal=True)
        far, far_partition = by_sample.read(_up(far)), by_sample.read(_up(far_partition))
        near, near_partition = by_talk.read(_up(near)), by_talk.read(_up(near_partition))
        torch.lerp(near, far, (far_partition - near_partition).sigmoid()[..., None], out=mixed_tokens)
        partition = torch.logaddexp(far_partition, near_partition)
        ctx.save_for_backward(query, keys, values, own_keys, own_values, mixed, partition, *kept)
        ctx.pattern, ctx.groups = pattern, groups
        return mixed

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        pattern: Pattern = ctx.pattern
        query, keys, values, own_keys, own_values, mixed, partition, *kept = ctx.saved_tensors
        by_sample, by_talk = pattern.talks.by_sample, pattern.talks.by_talk
        before, tokens = pattern.split(query, pattern.shown)
        above_before, above_tokens = pattern.split(above[0].contiguous(), pattern.shown)
        of_tokens = (above_tokens, tokens, pattern.split(mixed, pattern.shown)[1], partition)
        # Empty places have queries, gradients and partitions of 0: nothing comes of them.
        grads, rows, results, spread = (_up(by_sample.fill(x)) for x in of_tokens)
        far, of_keys, of_values = _flash_backward(grads, rows, keys, values, results, spread, 0.0, False)
        grads, rows, results, spread = (_up(by_talk.fill(x)) for x in of_tokens)
        near, own_keys, own_values = _flash_backward(grads, rows, own_keys, own_values, results, spread, 0.0, True)
        of_query = torch.empty_like(query)
        query_before, query_tokens = pattern.split(of_query, pattern.shown)
        torch.add(by_sample.read(_up(far)), by_talk.read(_up(near)), out=query_tokens)
        for (begin, end, seen, mask), result, spread in zip(pattern.parts, kept[::2], kept[1::2], strict=True):
            some = (slice(None), slice(None), slice(begin, end))
            back, more_keys, more_values = _flash_backward(
                above_before[some],
                before[some],
                keys[:, :, :seen],
                values[:, :, :seen],
                result,
                spread,
                0.0,
                False,
                attn_mask=mask,
            )
            query_before[some] = back
            of_keys[:, :, :seen] += more_keys
            of_values[:, :, :seen] += more_values

        def rows_of(shared: Tensor, own: Tensor) -> Tensor:
            whole = torch.cat([_up(shared).flatten(0, 1), by_talk.read(_up(own))])
            summed: Tensor = whole.unflatten(1, (-1, ctx.groups)).sum(dim=2)
            return summed

        return of_query, rows_of(of_keys, own_keys), rows_of(of_values, own_values), None


def attend(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
    """Mix `value` (N, G, D) over what `pattern` lets each `query` (M, H, D) see of `key` (N, G, D).

    Scores are scaled by D ** -0.5; every H / G query heads share a head of keys. Returns (M, H, D) float32: this
    arithmetic is in float32 even where matrix products are not, which on a CPU is faster for heads as small as these.
    """
    with torch.autocast("cpu", enabled=False):
        mixed: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
            query.float(), key.float(), value.float(), pattern
        )
    return mixed
