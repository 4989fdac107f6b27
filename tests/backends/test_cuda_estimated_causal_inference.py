"""Interference maps by CUDA kernels: E_t = sum_k r_tk A_k, undivided, times a power of two of the target's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from machines.cuda_calls import Cuda
from machines.cuda_modules import TARGETS
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

# float32 sums of 64 terms and over those, relative to sum_k |r_tk A_k|.
TOLERANCE = 3e-7
# 1 to 4 targets alone take the kernel for few, 5 and more that for many.
TARGET_COUNTS = [1, 2, 3, 4, 5, 8, 31, 32, 33, 65]
CONTEXTS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130, 300]
POSITIONS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]


@pytest.fixture(params=TARGETS)
def cuda(request: pytest.FixtureRequest) -> Cuda:
    """The kernels on every device there is, the emulated one included."""
    return Cuda.named(request.param)


@dataclass
class Answer:
    """Relevance (T, K) and context (K, N) maps, and which of the relevances count."""

    context: Tensor
    relevance: Tensor
    context_rows: Tensor | None = None
    target_rows: Tensor | None = None
    context_names: Tensor | None = None
    target_names: Tensor | None = None
    lengths: Tensor | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """T, K, N."""
        t = len(self.relevance) if self.target_rows is None else len(self.target_rows)
        return t, self.relevance.shape[1], self.context.shape[1]

    def counted(self) -> Array:
        """The relevances that count, 0 elsewhere."""
        rows = self.relevance if self.target_rows is None else self.relevance[self.target_rows]
        counted = rows.double().numpy().copy()
        for t, row in enumerate(counted):
            if self.lengths is not None:
                row[int(self.lengths[t]) :] = 0
            if self.target_names is not None and self.context_names is not None:
                row[(self.context_names == self.target_names[t]).numpy()] = 0
            if self.target_names is not None and self.target_names[t] == -1:
                row[:] = 0
        return counted

    def maps(self) -> Array:
        """The context's maps in order."""
        return (self.context if self.context_rows is None else self.context[self.context_rows]).double().numpy()


def matrix(t: int, k: int, n: int, *, triangular: bool = False, seed: int = 0) -> Answer:
    generator = torch.Generator().manual_seed(1000 * t + 10 * k + n + seed)
    relevance = torch.relu(torch.randn(t, k, generator=generator))
    if triangular:
        relevance = torch.tril(relevance, diagonal=max(k - t, 0))
    return Answer(torch.relu(torch.randn(k, n, generator=generator)), relevance)


def gather(t: int, k: int, n: int, *, seed: int = 0, padding: int = 0) -> Answer:
    """Rows of one score matrix: maps, then relevances; lengths that grow, names that repeat, a target without name."""
    generator = torch.Generator().manual_seed(1000 * t + 10 * k + n + seed)
    classes = max(2, (t + k) // 2)
    scores = torch.relu(torch.randn(classes, n + k + padding, generator=generator))
    names = torch.randint(classes, (k,), generator=generator)
    target_names = torch.randint(classes, (t,), generator=generator)
    rows = target_names.clone()
    target_names[:: max(t // 2, 2)] = -1
    lengths = (torch.arange(t) + max(k - t, 0)).clamp(max=k)
    return Answer(scores[:, :n], scores[:, n : n + k], names, rows, names, target_names, lengths)


def interference(cuda: Cuda, answers: list[Answer]) -> list[Tensor]:
    kept, items, outputs = [], [], []
    for a in answers:
        t, k, n = a.sizes
        # Slices of one score matrix travel as one, so that they keep their alignment.
        parts = [
            None if x is None else cuda.put(x)
            for x in (a.context, a.relevance, a.context_rows, a.target_rows, a.context_names, a.target_names, a.lengths)
        ]
        kept.append(parts)
        context, relevance, *indices = parts
        assert context is not None
        assert relevance is not None
        context_rows, target_rows, *names = (0 if x is None else x.data_ptr() for x in indices)
        out = torch.full((t + 1, n), -7.0, device=cuda.device)
        outputs.append(out)
        items.append(
            (
                (out.data_ptr(), n, 0),  # the activation, which this kernel does not read
                (context.data_ptr(), context.stride(0), context_rows),
                (relevance.data_ptr(), relevance.stride(0), target_rows),
                tuple(names),
                (0, 0, 0, 0, 0),
                (t, k, n),
                (1, 1, n, 0),
                out.data_ptr(),
                (0, cuda.module.F32, 0, 0, 0),
            )
        )
    cuda.module.interference(items, cuda.stream)
    cuda.wait()
    for out in outputs:
        assert (out[-1] == -7.0).all()
    return [out[:-1].cpu() for out in outputs]


def factors(counted: Array) -> Array:
    """The power of two that brings a row's largest finite magnitude to [1, 2), within float32's normal numbers."""
    finite = np.where(np.isfinite(counted), np.abs(counted), 0.0)
    exponent = np.frexp(finite.max(-1, initial=0.0))[1] - 1
    exponent = np.where(finite.max(-1, initial=0.0) < 2.0**-126, -127, exponent)
    return np.ldexp(1.0, np.maximum(-exponent, -126))


def check(got: Tensor, answer: Answer) -> None:
    counted, maps = answer.counted(), answer.maps()
    scaled = counted * factors(counted)[:, None]
    assert (np.abs(got.numpy() - scaled @ maps) <= TOLERANCE * (np.abs(scaled) @ np.abs(maps)) + 1e-37).all()


@pytest.mark.parametrize("t", TARGET_COUNTS)
@pytest.mark.parametrize("i", range(len(CONTEXTS)))
def test_against_the_oracle(cuda: Cuda, t: int, i: int) -> None:
    k, n = CONTEXTS[i], POSITIONS[(2 * i + t) % len(POSITIONS)]
    answers = [matrix(t, k, n), gather(t, k, n), gather(t, k, n, padding=3)]
    for answer, got in zip(answers, interference(cuda, answers), strict=True):
        check(got, answer)


@pytest.mark.parametrize("t", [1, 4, 40])
@pytest.mark.parametrize("k", [1023, 1024, 1025, 2100])
def test_long_contexts(cuda: Cuda, t: int, k: int) -> None:
    for answer in (matrix(t, k, 37), gather(t, k, 37)):
        check(interference(cuda, [answer])[0], answer)


@pytest.mark.parametrize("t", [3, 37])
def test_rows_that_are_aligned_and_rows_that_are_not(cuda: Cuda, t: int) -> None:
    answer = matrix(t, 70, 40)
    (expected,) = interference(cuda, [answer])
    check(expected, answer)
    for width, offset in ((44, 0), (44, 4), (41, 0), (44, 1)):
        wide = torch.full((70, width), torch.nan)
        wide[:, offset : offset + 40] = answer.context
        assert torch.equal(interference(cuda, [Answer(wide[:, offset : offset + 40], answer.relevance)])[0], expected)


@pytest.mark.parametrize("t", [2, 9])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-10, 1e10, 1e30, 1e37])
def test_range(cuda: Cuda, t: int, scale: float) -> None:
    """Relevances of any size times maps of any size."""
    for other in (1.0, 1e-30, 1e30):
        answer = matrix(t, 100, 20)
        answer.relevance *= scale
        answer.context *= other
        check(interference(cuda, [answer])[0], answer)


@pytest.mark.parametrize("t", [2, 9])
@pytest.mark.parametrize("late", [1e-30, 1e-6, 1e6, 1e12, 1e30])
@pytest.mark.parametrize("early", [0.0, 1.0])
@pytest.mark.parametrize("maps", [1e-30, 1e5, 1e30])
def test_relevances_that_change_size_along_the_context(
    cuda: Cuda, t: int, late: float, early: float, maps: float
) -> None:
    """The largest comes last: what was summed before belongs to another power of two."""
    answer = matrix(t, 150, 20)
    answer.relevance[:, :64] *= early
    answer.relevance[:, 64:] *= late
    answer.relevance[0, 149] = 3 * late
    answer.context *= maps
    check(interference(cuda, [answer])[0], answer)
    answer.relevance = answer.relevance.flip(1).contiguous()
    check(interference(cuda, [answer])[0], answer)


@pytest.mark.parametrize("t", [3, 40])
def test_nothing_counts(cuda: Cuda, t: int) -> None:
    answer = gather(t, 70, 33)
    assert answer.target_names is not None
    assert answer.lengths is not None
    for change in (
        {"target_names": torch.full_like(answer.target_names, -1)},
        {"lengths": torch.zeros_like(answer.lengths)},
        {"relevance": torch.zeros_like(answer.relevance)},
    ):
        values = {**vars(answer), **change, "context": torch.full_like(answer.context, torch.nan)}
        (got,) = interference(cuda, [Answer(**values)])
        assert torch.equal(got, torch.zeros(t, 33))


@pytest.mark.parametrize("t", [4, 40])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", [matrix, gather])
def test_a_bad_context_map_reaches_only_targets_that_count_it(cuda: Cuda, t: int, bad: float, form: object) -> None:
    answer = matrix(t, 90, 35) if form is matrix else gather(t, 90, 35)
    (clean,) = interference(cuda, [answer])
    # A map that some target counts, and not all of them.
    k = int(((answer.counted() > 0).sum(0) % t > 0).argmax())
    row = k if answer.context_rows is None else int(answer.context_rows[k])
    answer.context[row, 7] = bad
    answer.context[row, 30:] = bad
    counted, maps = answer.counted(), answer.maps()
    with np.errstate(invalid="ignore"):
        expected = np.isfinite(np.where(counted[:, :, None] != 0, maps[None], 0.0)).all(1)
    (got,) = interference(cuda, [answer])
    assert (~expected).any()
    assert expected.any()
    assert np.array_equal(np.isfinite(got.numpy()), expected)
    # Recomputed alone, an element is summed in another order.
    limit = 1e-6 * clean.abs().max()
    assert (got - clean)[torch.from_numpy(expected)].abs().max() <= limit
    untouched = torch.isfinite(answer.context).all(0)
    assert torch.equal(got[:, untouched], clean[:, untouched])


@pytest.mark.parametrize("t", [3, 40])
def test_relevances_that_are_not_finite(cuda: Cuda, t: int) -> None:
    answer = matrix(t, 90, 35)
    answer.context += 0.1
    answer.relevance[0, 80] = torch.inf
    answer.relevance[1, 3] = torch.nan
    answer.relevance[2, 5:7] = -torch.inf
    (got,) = interference(cuda, [answer])
    assert torch.equal(got[0], torch.full((35,), torch.inf))
    assert torch.isnan(got[1]).all()
    assert torch.equal(got[2], torch.full((35,), -torch.inf))
    rest = Answer(answer.context, answer.relevance[3:])
    assert torch.equal(got[3:], interference(cuda, [Answer(answer.context, answer.relevance)])[0][3:])
    if t > 3:
        counted = rest.counted()
        scaled = counted * factors(counted)[:, None]
        assert np.allclose(got[3:].numpy(), scaled @ rest.maps(), rtol=1e-6, atol=0)


def test_only_context_that_counts_is_read(cuda: Cuda) -> None:
    """Beyond the longest length lie rows that name no row."""
    for t in (2, 40):
        answer = gather(t, 200, 33)
        assert answer.context_rows is not None
        answer.lengths = torch.full((t,), 70)
        (expected,) = interference(cuda, [answer])
        check(expected, answer)
        answer.context_rows[70:] = 2**45
        answer.relevance[:, 70:] = torch.nan
        assert torch.equal(interference(cuda, [answer])[0], expected)


def test_names_whose_halves_agree(cuda: Cuda) -> None:
    """Names are compared in full."""
    for t in (2, 40):
        answer = gather(t, 70, 20)
        answer.context_names = (torch.arange(70) % 3 + 1) << 32
        answer.target_names = torch.arange(t) % 3 + 1
        check(interference(cuda, [answer])[0], answer)
        answer.target_names = answer.target_names << 32
        check(interference(cuda, [answer])[0], answer)


def test_lengths_out_of_range(cuda: Cuda) -> None:
    for t in (2, 40):
        answer = gather(t, 70, 20)
        assert answer.lengths is not None
        answer.lengths[0] = 500
        answer.lengths[1] = -3
        (got,) = interference(cuda, [answer])
        answer.lengths = answer.lengths.clamp(0, 70)
        check(got, answer)


@pytest.mark.parametrize("count", [2, 8, 9, 64, 65, 70])
@pytest.mark.parametrize("few", [False, True])
def test_a_ragged_list(cuda: Cuda, count: int, few: bool) -> None:
    answers = []
    for i in range(count):
        form = gather if i % 3 else matrix
        answers.append(form(i % 4 + (i % 3 != 0) if few else 3 + i * 7 % 40, 1 + i * 11 % 80, 1 + i * 5 % 40, seed=i))
    answers[0] = matrix(0, 3, 5)
    for answer, got in zip(answers, interference(cuda, answers), strict=True):
        check(got, answer)
    assert interference(cuda, []) == []


def test_empty(cuda: Cuda) -> None:
    """No context: the maps are not written. No positions or targets: there is nothing to write."""
    (got,) = interference(cuda, [matrix(5, 0, 9)])
    assert (got == -7).all()
    for answer in (matrix(5, 3, 0), matrix(0, 3, 9)):
        assert interference(cuda, [answer])[0].numel() == 0


@pytest.mark.parametrize("t", [3, 40])
def test_same_bits_whatever_the_order_of_threads(cuda: Cuda, t: int) -> None:
    answer = gather(t, 300, 50)
    answer.context[2, 4] = torch.nan
    results = []
    for seed in range(3):
        cuda.set_seed(seed)
        results.append(interference(cuda, [answer])[0].view(torch.int32))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
