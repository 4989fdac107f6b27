"""The training's attention, rows and packed talks, against the plain way; gradients of the whole forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tam_fast.demo import train as tr
from tam_fast.demo.train import attention, batches, checks, lean, rows
from tam_fast.demo.train.packing import pack

HEADS, GROUPS, WIDTH = 4, 2, 8
LENGTHS = ((5, 2, 4), (3, 7, 2))


def _talks():
    longest = max(map(max, LENGTHS))
    weights = (torch.arange(longest) < torch.tensor(LENGTHS)[..., None]).float()
    tokens = torch.arange(weights.numel()).view(weights.shape)
    return pack(tokens, weights), tokens


def test_packed_talks_hold_every_token_that_predicts_another():
    talks, tokens = _talks()
    pairs = [
        (int(tokens[sample, talk, place]), int(tokens[sample, talk, place + 1]), sample, place)
        for sample, lengths in enumerate(LENGTHS)
        for talk, length in enumerate(lengths)
        for place in range(length - 1)
    ]
    parts = (part.tolist() for part in (talks.ids, talks.targets, talks.samples, talks.places))
    assert list(zip(*parts, strict=True)) == pairs
    for raster, height, width in ((talks.by_sample, 2, 9), (talks.by_talk, 6, 6)):
        filled = raster.fill(talks.ids + 1)
        assert filled.shape == (height, width)
        assert int((filled > 0).sum()) == len(talks.ids)
        assert torch.equal(raster.read(filled), talks.ids + 1)
    assert talks.by_talk.fill(talks.ids)[1, 0] == tokens[0, 1, 0]
    assert talks.by_sample.fill(talks.ids)[1, 0] == tokens[1, 0, 0]


def _plain(query, key, value, shared, shown):
    """The same in float64, one talk after another, each as a sequence of its own."""
    samples, results = len(LENGTHS), []
    edge, begin = samples * len(shown), samples * shared
    heads = (x.double().repeat_interleave(HEADS // GROUPS, 1) for x in (key, value))
    keys, values = heads
    query = query.double()

    def mix(asking, keys, values, seen):
        scores = torch.einsum("qhd,khd->hqk", asking, keys) / WIDTH**0.5
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values)

    for sample in range(samples):
        mine = slice(sample * shared, (sample + 1) * shared)
        asking = query[sample * len(shown) : (sample + 1) * len(shown)]
        results.append(mix(asking, keys[mine], values[mine], torch.arange(shared) <= shown[:, None]))
    done = 0
    for sample, lengths in enumerate(LENGTHS):
        mine = slice(sample * shared, (sample + 1) * shared)
        for length in (one - 1 for one in lengths):
            own = slice(begin + done, begin + done + length)
            asking = query[edge + done : edge + done + length]
            seen = torch.ones(length, shared + length, dtype=torch.bool).tril(shared)
            results.append(mix(asking, *(torch.cat([x[mine], x[own]]) for x in (keys, values)), seen))
            done += length
    return torch.cat(results)


@pytest.mark.parametrize("at_once", [3, 5, 100])
@pytest.mark.parametrize("shown", [None, [10, 0, 4], []])
def test_attention_and_its_gradients_are_those_of_one_talk_at_a_time(monkeypatch, at_once, shown):
    monkeypatch.setattr(attention, "_AT_ONCE", at_once)
    shared, (talks, _) = 11, _talks()
    places = torch.arange(shared) if shown is None else torch.tensor(shown, dtype=torch.int64)
    generator = torch.Generator().manual_seed(5)
    count, asking = len(talks.ids) + 2 * shared, len(talks.ids) + 2 * len(places)
    inputs = [
        torch.randn(size, generator=generator).requires_grad_()
        for size in ((asking, HEADS, WIDTH), (count, GROUPS, WIDTH), (count, GROUPS, WIDTH))
    ]
    pattern = attention.Pattern.of(talks, shared, None if shown is None else places)
    assert len(pattern.parts) == (round(shared / at_once) or 1 if shown is None else min(1, len(places)))
    above = torch.randn((asking, HEADS, WIDTH), generator=generator)
    mixed, plain = attention.attend(*inputs, pattern), _plain(*inputs, shared, places)
    torch.testing.assert_close(mixed.double(), plain, rtol=1e-5, atol=2e-6)
    ours = torch.autograd.grad(mixed, inputs, above)
    theirs = torch.autograd.grad(plain, inputs, above.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=5e-6)


def test_rows_are_normalised_as_by_torch():
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.testing.assert_close(rows.normalise(x, 1e-3), F.rms_norm(x, (6,), eps=1e-3))
    assert torch.autograd.gradcheck(lambda x: rows.normalise(x, 1e-3), x)


def test_turned_pairs_give_the_products_of_a_rotary_embedding():
    generator = torch.Generator().manual_seed(0)
    states, angles = torch.randn(7, 12, generator=generator), torch.randn(7, 4, generator=generator)
    weights = [torch.randn(3 * WIDTH, 12, generator=generator) for _ in range(2)]

    def plain(weight):
        first, second = (states @ weight.T).view(7, 3, WIDTH).chunk(2, dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def ours(weight):
        return rows.turn((states @ rows.in_pairs(weight, WIDTH).T).view(7, 3, WIDTH), rows.phases(angles))

    query, key = (torch.einsum("qhd,khd->hqk", *(make(weight) for weight in weights)) for make in (plain, ours))
    torch.testing.assert_close(query, key, rtol=1e-5, atol=1e-4)


# The whole forward pass


@pytest.fixture(scope="module")
def trainer(tokenizer_folder):
    return tr.Trainer(tr.SMOKE, lambda line: None, tokenizer_folder)


@pytest.mark.parametrize("kind", ["image", "pair", "film"])
def test_gradients_are_those_of_the_stock_model(trainer, kind):
    sample = checks._examples()[kind]
    batch = batches.make_batch(np.random.default_rng(1), [sample], trainer.words, tr.plan.GRID, pictures=True)
    talks = pack(batch.tokens, batch.weights)
    # Slots out of order: who asks for some states gets those, in the order asked for.
    shown = trainer.lean.before(batch.shape)[1][[70, 3, 200]]
    generator = torch.Generator().manual_seed(2)
    at_slots, states = trainer.lean.read(trainer.lean.slots(batch), talks, batch.shape, shown)
    lengths = ((batch.weights[0] > 0).sum(dim=1) - 1).tolist()
    above = torch.randn(states.shape, generator=generator)
    above_slots = torch.randn(at_slots.shape, generator=generator)
    plain = [checks._stock(trainer.lean, batch, talk) for talk in range(len(lengths))]
    begin = trainer.lean.before(batch.shape)[0].shape[1]
    whole = torch.cat([rows[begin : begin + length] for rows, length in zip(plain, lengths, strict=True)])
    parameters = dict(trainer.model.model.named_parameters())
    ours = torch.autograd.grad((states * above).sum() + (at_slots * above_slots).sum(), parameters.values())
    theirs = torch.autograd.grad((whole * above).sum() + (plain[0][shown] * above_slots[0]).sum(), parameters.values())
    for name, one, other in zip(parameters, ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-4, name


@pytest.mark.long
def test_losses_in_bfloat16_are_near_those_in_float32(trainer):
    for stage in ("language", "polish", "settle"):
        batch, alone = trainer.batch(stage, 0)
        found = []
        for number_format in (torch.float32, torch.bfloat16):
            noise = torch.Generator().manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16, enabled=number_format == torch.bfloat16):
                loss = trainer.losses.of(stage, batch, noise, alone)
            gradient = torch.autograd.grad(loss, trainer.lean.words)[0]
            found.append((float(loss.detach()), gradient))
        (one, its), (other, others) = found
        assert one != other
        assert one == pytest.approx(other, rel=0.02)
        assert (its - others).norm() < 0.1 * its.norm()


def test_final_states_of_slots_are_made_where_a_loss_judges_them(trainer, monkeypatch):
    seen = []

    def watch(self, slots, talks, shape, shown):
        seen.append(len(shown))
        return read(self, slots, talks, shape, shown)

    read = lean.Lean.read
    monkeypatch.setattr(lean.Lean, "read", watch)
    stages = {}
    for stage in ("language", "alignment", "settle"):
        batch, alone = trainer.batch(stage, 0)
        trainer.losses.of(stage, batch, torch.Generator().manual_seed(0), alone)
        judged = batch.pictures is None or stage == "settle"
        stages[stage] = min(batch.shape.slots, trainer.plan.slots_judged) if judged else 0
    assert seen == list(stages.values())
    assert stages["language"] > stages["alignment"] == 0
