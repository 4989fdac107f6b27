"""Made-up answers, and their comparison with the oracle."""

from __future__ import annotations

import numpy as np
import oracle
import tolerances
import torch

import tam_fast
from tam_fast import Grid, Layout

# Grids of one answer: one or several, of a single cell, of a single row, and of more positions than a vector has.
SIZES = [[(6, 7)], [(1, 1)], [(1, 9)], [(2, 2), (5, 3)], [(4, 4), (4, 4), (3, 8)], [(17, 16)]]


class Case:
    """A made-up answer: `before` template tokens, the grids, text, template tokens, then the answer."""

    def __init__(
        self,
        sizes: list[tuple[int, int]],
        n_p: int = 5,
        n_t: int = 7,
        c: int = 32,
        v: int = 12,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        interleaved: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        grids, begin = [], 3
        gap = 2 if interleaved else 0
        for source, (height, width) in enumerate(sizes):
            grids.append(Grid(torch.arange(begin, begin + height * width), height, width, source=source))
            begin += height * width + gap
        prompt = torch.arange(begin + 1, begin + 1 + n_p)
        self.answer_start = begin + 1 + n_p + 2
        self.layout = Layout(grids, prompt, self.answer_start)
        # Few distinct ids: words repeat, within the prompt, the answer and across both.
        self.token_ids = torch.randint(v, (self.answer_start + n_t,), generator=generator)
        mean = torch.randn(c, generator=generator)
        self.hidden = (torch.randn(len(self.token_ids) - 1, c, generator=generator) + mean).to(dtype)
        self.classifier = (torch.randn(v, c, generator=generator) + mean).to(dtype)
        self.sizes = sizes

    def to(self, device: torch.device | str) -> Case:
        """Put states and classifier on a device, in place."""
        self.hidden, self.classifier = self.hidden.to(device), self.classifier.to(device)
        return self

    def maps(self, **options: object) -> tam_fast.TokenActivationMaps:
        return tam_fast.activation_maps(self.hidden, self.classifier, self.token_ids, self.layout, **options)

    def oracle(self, **options: object) -> oracle.Answer:
        return oracle.activation_maps(
            self.hidden.double().cpu().numpy(),
            self.classifier.double().cpu().numpy(),
            self.token_ids.numpy(),
            self.layout.visual_positions.numpy(),
            self.sizes,
            self.layout.prompt.numpy(),
            self.answer_start,
            **options,
        )


def check(got: tam_fast.TokenActivationMaps, expected: oracle.Answer) -> None:
    got = got.to("cpu")
    # NaN, which only the official program draws, must stand in the same places.
    assert np.array_equal(np.isnan(got.maps.numpy()), np.isnan(expected.maps))
    assert np.nan_to_num(np.abs(got.maps.numpy() - expected.maps)).max() <= tolerances.PIPELINE
    assert np.abs(got.relevance.numpy() - expected.relevance).max(initial=0) <= tolerances.PIPELINE
    assert np.allclose(got.scale.numpy(), expected.scale, rtol=3e-6, atol=1e-7)
    assert np.array_equal(got.flat.numpy(), expected.flat)


def stream(case: Case, chunks: list[int] | None = None, **options: object) -> list[tam_fast.TokenMap]:
    """Feed an answer to a stream as a model would: the prefill in chunks, then a state a token."""
    prefill, steps = case.answer_start, []
    maps = tam_fast.ActivationMapStream(case.classifier, case.layout, case.token_ids[:prefill], **options)
    for part in case.hidden[:prefill].split(chunks or [prefill]):
        maps.extend(part)
    for t, token in enumerate(case.token_ids[prefill:].tolist()):
        steps.append(maps.append(token))
        assert len(maps) == t + 1
        if prefill + t < len(case.hidden):
            maps.extend(case.hidden[prefill + t : prefill + t + 1])
    return steps
