"""Maps from one generated token on: the bits of the whole answer's, what came before as context."""

from __future__ import annotations

import pytest
import torch

import tam_fast
from tam_fast.maps.layout import Grid, Layout

LAYOUT = Layout((Grid(torch.arange(1, 13), 3, 4),), torch.tensor([14, 15]), 17)


def made(steps: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(17 + steps - 1, 16, generator=generator)
    return hidden, torch.randn(30, 16, generator=generator), torch.randint(30, (17 + steps,), generator=generator)


@pytest.mark.parametrize("compat", [None, "official", "paper"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_first_leaves_the_rows_before_out(compat, backend):
    hidden, classifier, ids = made()
    options = {"compat": compat, "backend": backend}
    whole = tam_fast.activation_maps(hidden, classifier, ids, LAYOUT, **options)
    for first in range(6):
        some = tam_fast.activation_maps(hidden, classifier, ids, LAYOUT, first=first, **options)
        for name in ("maps", "relevance", "scale", "flat", "target_ids"):
            found, expected = getattr(some, name), getattr(whole, name)[first:]
            same = torch.equal if compat != "paper" else torch.allclose  # a product of matrices
            assert same(found, expected), (name, first)
        assert torch.equal(some.context_ids, whole.context_ids)


def test_first_of_several_answers():
    hidden, classifier, ids = made()
    whole = tam_fast.activation_maps(hidden, classifier, ids, LAYOUT)
    found = tam_fast.activation_maps([hidden] * 2, classifier, [ids] * 2, [LAYOUT] * 2, first=[4, 0])
    assert torch.equal(found[0].maps, whole.maps[4:])
    assert torch.equal(found[1].maps, whole.maps)


@pytest.mark.parametrize("first, error", [(6, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_first_that_is_none(first, error):
    hidden, classifier, ids = made()
    with pytest.raises(error, match="first: expected"):
        tam_fast.activation_maps(hidden, classifier, ids, LAYOUT, first=first)


@pytest.mark.parametrize("compat", [None, "paper"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_text_without_images_has_relevance_alone(compat, backend):
    hidden, classifier, ids = made()
    layout = Layout((), LAYOUT.prompt, 17)
    found = tam_fast.activation_maps(hidden, classifier, ids, layout, compat=compat, backend=backend)
    assert found.maps.shape == (6, 0)
    scores = (hidden @ classifier[ids[17:]].T).relu().T  # (T, S)
    for step in range(6):
        raw = torch.cat([scores[step, [14, 15]], scores[step, 16 : 16 + step]])
        expected = (raw - raw.min()) / (raw.max() - raw.min()) if raw.max() > raw.min() else torch.zeros_like(raw)
        assert torch.allclose(found.relevance[step, : 2 + step], expected, atol=1e-6)
    assert torch.equal(found.scale, torch.zeros(6))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_neither_image_nor_words_is_flat(backend):
    hidden, classifier, ids = made()
    found = tam_fast.activation_maps(hidden, classifier, ids, Layout((), [], 17), backend=backend)
    assert bool(found.flat[0])
    assert bool(torch.isfinite(found.relevance).all())


def test_a_stream_without_images_gives_the_same():
    hidden, classifier, ids = made()
    layout = Layout((), LAYOUT.prompt, 17)
    whole = tam_fast.activation_maps(hidden, classifier, ids, layout)
    stream = tam_fast.ActivationMapStream(classifier, layout, ids[:17])
    stream.extend(hidden)
    for step in range(6):
        shown = stream.append(int(ids[17 + step]))
        assert shown.map.shape == (0,)
        assert torch.equal(shown.relevance, whole.relevance[step, : 2 + step])
