"""The CUDA kernel of finished maps, emulated and on a GPU if there is one, against float64 and the CPU's maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import oracle
import pytest
import tolerances
import torch
from machines import cuda_modules
from machines.cuda_modules import Target
from torch import Tensor

from tam_fast.backends import cpu

Sizes = list[tuple[int, int]]


@pytest.fixture(params=cuda_modules.TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    chosen = cuda_modules.load(request.param)
    yield chosen
    if chosen.emulated:
        chosen.module.set_seed(0)


@dataclass
class Answer:
    """The arguments of one answer on the CPU; relevance (T, K) already has 0 where a context token does not count."""

    activation: Tensor  # (T, N)
    context: Tensor  # (K, N)
    relevance: Tensor  # (T, K)
    text: Tensor  # (T, L)
    text_lengths: Tensor  # (T,)
    sizes: Sizes
    dtype: torch.dtype = torch.float32
    keep: list[Tensor] = field(default_factory=list)  # whose addresses an item holds

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.activation.shape[0], self.context.shape[0], self.activation.shape[1]

    def interference(self) -> Tensor:
        """E (T, N), undivided, times the power of two that brings a row's largest relevance to [1, 2): the contract."""
        r = self.relevance.double()
        largest = torch.where(torch.isfinite(r), r.abs(), 0).amax(-1, keepdim=True) if r.shape[1] else r.sum(-1, True)
        exponent = torch.where(largest > 0, 1 - torch.frexp(largest).exponent, 0).clamp(-126, 127)
        terms = torch.ldexp(r, exponent)[:, :, None] * self.context.double()
        return torch.where(r[:, :, None] == 0, 0, terms).sum(1).float()


def random_answer(
    targets: int = 5, contexts: int = 4, sizes: Sizes | None = None, text: int = 6, seed: int = 0, share: float = 0.7
) -> Answer:
    sizes = sizes or [(6, 8)]
    source = torch.Generator().manual_seed(seed)
    positions = sum(height * width for height, width in sizes)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=source)

    shared = rand(1, positions)
    return Answer(
        torch.relu(rand(targets, positions) - 0.3 + shared),
        torch.relu(rand(contexts, positions) - 0.3 + shared),
        rand(targets, contexts) * (rand(targets, contexts) < share),
        rand(targets, text),
        torch.randint(text + 1, (targets,), generator=source),
        sizes,
    )


def expected(answer: Answer, kernel_size: int = 3, official: bool = False) -> tuple[np.ndarray, ...]:
    """Maps, text, scale and flat in float64."""
    a, c, r = (x.double().numpy() for x in (answer.activation, answer.context, answer.relevance))
    with np.errstate(all="ignore"):
        causal, scale = (
            oracle.estimated_causal_inference(a, c, r) if c.shape[0] else (np.maximum(a, 0), np.zeros(len(a)))
        )
    maps, text = np.zeros_like(causal), np.zeros(answer.text.shape)
    flat = np.zeros(len(maps), bool)
    for t, length in enumerate(answer.text_lengths.tolist()):
        raw = answer.text[t, :length].double().numpy()
        together = np.concatenate([causal[t], raw])
        low, high = (together.min(), together.max()) if together.size else (0.0, 0.0)
        flat[t] = not low < high and not np.isnan(together).any()
        if not flat[t]:
            text[t, :length] = (raw - low) / (high - low)
            offset = 0
            for height, width in answer.sizes:
                part = slice(offset, offset + height * width)
                grid = ((causal[t, part] - low) / (high - low)).reshape(height, width)
                maps[t, part] = oracle.rank_gaussian_filter(grid, kernel_size, official=official).ravel()
                offset = part.stop
    return maps, text, scale, flat


@dataclass
class Finished:
    maps: Tensor
    text: Tensor
    scale: Tensor
    flat: Tensor

    def parts(self) -> tuple[Tensor, ...]:
        return self.maps, self.text, self.scale, self.flat


def table_of(answer: Answer) -> Tensor:
    rows, offset = [], 0
    for height, width in answer.sizes:
        rows.append([height, width, offset])
        offset += height * width
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


def item_of(target: Target, answer: Answer, *, gathered: bool = False, in_place: bool = False) -> tuple[Any, Finished]:
    """Return an item of the binding and where its results go, which hold rubbish until then."""
    t, k, n = answer.shape
    text = answer.text.shape[1]

    def put(x: Tensor) -> Tensor:
        answer.keep.append(target.put(x))
        return answer.keep[-1]

    def out(*shape: int, dtype: torch.dtype, value: float) -> Tensor:
        answer.keep.append(torch.full(shape, value, dtype=dtype, device=target.device))
        return answer.keep[-1]

    done = Finished(
        out(t, n, dtype=answer.dtype, value=7),
        out(t, text, dtype=torch.float32, value=7),
        out(t, dtype=torch.float32, value=7),
        out(t, dtype=torch.uint8, value=7),
    )
    interference = put(answer.interference())
    if in_place:
        done.maps.copy_(interference)
        interference = done.maps
    module = target.module
    outputs = (
        done.maps.data_ptr(),
        module.U8 if answer.dtype == torch.uint8 else module.F32,
        *(x.data_ptr() for x in (done.text, done.scale, done.flat)),
    )
    equal = len(set(answer.sizes)) == 1
    grids = (
        len(answer.sizes),
        *(answer.sizes[0] if equal else (0, 0)),
        0 if equal else put(table_of(answer)).data_ptr(),
    )
    lengths = put(answer.text_lengths).data_ptr()
    if not gathered:
        rows = [(x.data_ptr(), x.shape[1], 0) for x in map(put, (answer.activation, answer.context, answer.relevance))]
        raw = (put(answer.text).data_ptr(), text, 0, text, lengths)
        return (*rows, (0, 0, 0), raw, (t, k, n), grids, interference.data_ptr(), outputs), done
    # As the pipeline has it: one matrix of scores, whose last columns are relevances that names and lengths mask.
    assert text == k
    scores = torch.full((t + k + 1, n + k + 3), torch.nan)
    order = torch.randperm(t + k, generator=torch.Generator().manual_seed(t))
    target_rows, context_rows = order[:t], order[t:]
    scores[target_rows, :n], scores[context_rows, :n] = answer.activation, answer.context
    scores[target_rows, n : n + k] = answer.text
    s, tr, cr = put(scores), put(target_rows), put(context_rows)
    stride = scores.shape[1]
    relevance = (s.data_ptr() + 4 * n, stride, tr.data_ptr())
    names = [put(x).data_ptr() for x in names_of(answer)]
    item = (
        (s.data_ptr(), stride, tr.data_ptr()),
        (s.data_ptr(), stride, cr.data_ptr()),
        relevance,
        tuple(names),
        (*relevance, k, lengths),
        (t, k, n),
        grids,
        interference.data_ptr(),
        outputs,
    )
    return item, done


def names_of(answer: Answer) -> tuple[Tensor, Tensor, Tensor]:
    """Context names, target names and lengths with which the raw text gives the answer's relevance."""
    t, k, _ = answer.shape
    return torch.arange(k) % 3, torch.arange(t) % 5 - 1, torch.arange(t) % (k + 1)


def gathered_answer(targets: int, contexts: int, sizes: Sizes, seed: int = 0) -> Answer:
    """An answer whose relevance is its text as far as names and lengths let it count."""
    answer = random_answer(targets, contexts, sizes, contexts, seed)
    context_names, target_names, lengths = names_of(answer)
    counts = (torch.arange(contexts) < lengths[:, None]) & (context_names != target_names[:, None])
    return replace(answer, relevance=torch.where(counts & (target_names != -1)[:, None], answer.text, 0.0))


def run(target: Target, items: list[Any], kernel_size: int = 3, stage: int = 0, **options: Any) -> None:
    constant = options.pop("constant_window_nan", False)
    target.module.finish_maps(items, kernel_size, constant, stage, target.stream, **options)


def finished(
    target: Target,
    answers: list[Answer],
    kernel_size: int = 3,
    *,
    gathered: bool = False,
    in_place: bool = False,
    **options: Any,
) -> list[Finished]:
    pairs = [item_of(target, answer, gathered=gathered, in_place=in_place) for answer in answers]
    run(target, [item for item, _ in pairs], kernel_size, **options)
    return [Finished(*(part.cpu() for part in done.parts())) for _, done in pairs]


def check(done: Finished, answer: Answer, kernel_size: int = 3) -> None:
    maps, text, scale, flat = expected(answer, kernel_size)
    np.testing.assert_allclose(done.scale.double(), scale, rtol=1e-6, atol=1e-7 * max(scale.max(initial=0), 1e-30))
    assert done.flat.bool().tolist() == flat.tolist()
    np.testing.assert_allclose(done.text.double(), text, atol=tolerances.PIPELINE)
    np.testing.assert_allclose(done.maps.double(), maps, atol=tolerances.PIPELINE)


def same_bits(a: Finished, b: Finished) -> bool:
    pairs = zip(a.parts(), b.parts(), strict=True)
    return all(torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8)) for x, y in pairs)


# ------------------------------------------------------------------------------------------------- against the oracle

GRIDS: dict[str, Sizes] = {
    "one": [(6, 8)],
    "tam": [(36, 36)],
    "odd": [(7, 9)],
    "tiles": [(5, 5)] * 4,
    "aligned tiles": [(4, 8)] * 3,
    "ragged": [(3, 4), (1, 1), (8, 5), (2, 12), (16, 16)],
    "a row": [(1, 21)],
    "a column": [(21, 1)],
    "many": [(2, 3)] * 150,
    "large": [(40, 77)],
}


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("gathered", [False, True])
def test_grids(target: Target, grids: str, gathered: bool) -> None:
    answer = gathered_answer(7, 6, GRIDS[grids]) if gathered else random_answer(5, 4, GRIDS[grids])
    (done,) = finished(target, [answer], gathered=gathered)
    check(done, answer)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9, 11, 13, 15])
def test_kernel_sizes(target: Target, kernel_size: int) -> None:
    answer = random_answer(3, 4, [(9, 11), (4, 4)])
    (done,) = finished(target, [answer], kernel_size)
    check(done, answer, kernel_size)


@pytest.mark.parametrize("seed", range(3))
def test_against_the_cpu(target: Target, seed: int) -> None:
    answer = random_answer(9, 40, [(12, 16), (7, 7)], 30, seed)
    (done,) = finished(target, [answer])
    scores = torch.cat([answer.activation, answer.context])
    maps, text, scale, flat = cpu.finish_maps(
        [scores],
        [torch.arange(9)],
        [torch.arange(9, 49)],
        [answer.relevance],
        [answer.text],
        [answer.text_lengths],
        [answer.sizes],
        3,
    )
    assert (done.maps - maps[0]).abs().max() <= tolerances.DEVICE
    assert (done.text - text[0]).abs().max() <= tolerances.DEVICE
    torch.testing.assert_close(done.scale, scale[0], rtol=1e-6, atol=0)
    assert torch.equal(done.flat.bool(), flat[0])


def test_interference_and_finish_together(target: Target) -> None:
    answer = gathered_answer(9, 12, [(10, 12)])
    item, done = item_of(target, answer, gathered=True)
    keep = torch.full((9, 120), torch.nan, device=target.device)
    item = (*item[:7], keep.data_ptr(), item[8])
    target.module.interference([item], target.stream)
    run(target, [item])
    check(Finished(*(part.cpu() for part in done.parts())), answer)


@pytest.mark.parametrize("gathered", [False, True])
def test_uint8(target: Target, gathered: bool) -> None:
    for sizes in ([(36, 36)], [(5, 7), (3, 3)]):
        answer = gathered_answer(6, 5, sizes) if gathered else random_answer(6, 5, sizes)
        (floats,) = finished(target, [answer], gathered=gathered)
        (bytes_,) = finished(target, [replace(answer, dtype=torch.uint8)], gathered=gathered)
        assert torch.equal(bytes_.maps, (floats.maps * 255).floor().clamp(0, 255).to(torch.uint8))
        maps = expected(answer)[0]
        assert (np.abs(bytes_.maps.numpy() - np.floor(maps * 255)) > 0).mean() <= 1e-2
        assert np.abs(bytes_.maps.numpy() - maps * 255).max() <= 1.001


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
@pytest.mark.parametrize("shared_positions", [0, 40])
def test_maps_that_do_not_fit_into_shared_memory(target: Target, kernel_size: int, shared_positions: int) -> None:
    answers = [random_answer(3, 4, [(6, 8)]), random_answer(3, 4, [(7, 9), (5, 4)]), random_answer(2, 0, [(6, 8)])]
    answers.append(random_answer(2, 3, [(5, 8)]))
    results = finished(target, answers, kernel_size, shared_positions=shared_positions)
    for done, reference in zip(results, finished(target, answers, kernel_size), strict=True):
        assert same_bits(done, reference)


def test_a_map_larger_than_shared_memory(target: Target) -> None:
    positions = target.module.finish_maps_shared_positions()
    assert positions >= 10_000
    answer = random_answer(1, 1, [(positions // 200 + 1, 200)])
    (done,) = finished(target, [answer])
    check(done, answer)


# ------------------------------------------------------------------------------------------------------------ batches


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 9, 64, 65, 150])
def test_batches(target: Target, count: int) -> None:
    sides = [(3, 4), (5, 5), (2, 8), (1, 1), (7, 3)]
    answers = [random_answer(i % 4, i % 3, [sides[i % 5]] * (1 + i % 2), i % 6, seed=i) for i in range(count)]
    together = finished(target, answers)
    for answer, done in zip(answers, together, strict=True):
        assert same_bits(done, finished(target, [answer])[0])
        check(done, answer)


def test_nothing_to_do(target: Target) -> None:
    run(target, [])
    finished(target, [random_answer(0, 3)])


def test_interference_in_the_memory_of_the_maps(target: Target) -> None:
    answer = random_answer(5, 4, [(6, 8), (3, 5)])
    assert same_bits(finished(target, [answer], in_place=True)[0], finished(target, [answer])[0])


@pytest.mark.parametrize("sizes", [[(20, 20)], [(36, 36)], [(3, 5), (9, 9)]])
def test_repeats_have_the_same_bits(target: Target, sizes: Sizes) -> None:
    answers = [random_answer(4, 9, sizes, 300, seed=i) for i in range(3)]
    first = finished(target, answers)
    for seed in range(1, 4 if target.emulated else 100):
        if target.emulated:
            target.module.set_seed(seed)
        for done, reference in zip(finished(target, answers), first, strict=True):
            assert same_bits(done, reference)


# ----------------------------------------------------------------------------------------------------- special values


@pytest.mark.parametrize("gathered", [False, True])
def test_no_context(target: Target, gathered: bool) -> None:
    answer = random_answer(4, 0, [(5, 8)], 0 if gathered else 5)
    (done,) = finished(target, [answer], gathered=gathered)
    check(done, answer)
    assert (done.scale == 0).all()


def test_interference_is_not_read_where_nothing_counts(target: Target) -> None:
    answer = gathered_answer(10, 4, [(5, 8)])
    nothing = (names_of(answer)[1] == -1) | (names_of(answer)[2] == 0)
    assert 0 < nothing.sum() < 10
    item, done = item_of(target, answer, gathered=True)
    broken = answer.interference()
    broken[nothing] = torch.nan
    broken = target.put(broken)
    run(target, [(*item[:7], broken.data_ptr(), item[8])])
    check(Finished(*(part.cpu() for part in done.parts())), answer)


def test_interference_of_zero(target: Target) -> None:
    answer = random_answer(3, 4)
    answer.relevance[1] = 0
    answer.context[:] = 0
    (done,) = finished(target, [answer])
    check(done, answer)
    assert (done.scale == 0).all()


def test_flat_rows(target: Target) -> None:
    answer = random_answer(4, 2)
    answer.relevance[:] = 0
    answer.activation[0], answer.text[0] = 0, 0
    answer.activation[1], answer.text[1] = 0.25, 0.25
    answer.activation[2], answer.text_lengths[2] = 0.5, 0
    answer.activation[3], answer.text[3], answer.text_lengths[3] = 0.5, 0.25, 3
    for dtype in (torch.float32, torch.uint8):
        (done,) = finished(target, [replace(answer, dtype=dtype)])
        assert done.flat.tolist() == [1, 1, 1, 0]
        assert (done.maps[:3] == 0).all()
        assert (done.text[:3] == 0).all()
        assert (done.maps[3] == (1 if dtype == torch.float32 else 255)).all()
    for kernel_size in (3, 9):
        (done,) = finished(target, [answer], kernel_size, constant_window_nan=True)
        assert (done.maps[:3] == 0).all()
        assert torch.isnan(done.maps[3]).all()


def test_the_maximum_is_exactly_one_and_zero_is_positive(target: Target) -> None:
    answer = random_answer(20, 3, [(5, 7)], 4)
    (done,) = finished(target, [answer], 1)
    together = torch.cat([done.maps, done.text], 1)
    assert torch.equal(together.amax(1), torch.ones(20))
    assert not torch.signbit(together).any()


@pytest.mark.parametrize("where", ["activation", "text", "interference"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nonfinite_values(target: Target, where: str, bad: float) -> None:
    answer = random_answer(4, 3, [(6, 8), (3, 3)])
    answer.text_lengths[:] = 4
    if where == "activation":
        answer.activation[1, 5] = bad
    elif where == "text":
        answer.text[1, 2] = bad
    else:
        answer.context[1, 5] = bad
        answer.relevance[:, 1] = torch.tensor([0, 0.5, 0, 0])
    answer.text[2, 5] = torch.nan  # beyond the length
    (done,) = finished(target, [answer])
    clean = random_answer(4, 3, [(6, 8), (3, 3)])
    clean.text_lengths[:] = 4
    if where == "interference":
        clean.relevance[:, 1] = 0
    (reference,) = finished(target, [clean])
    others = [0, 2, 3]
    assert torch.equal(done.maps[others], reference.maps[others])
    assert torch.equal(done.text[others], reference.text[others])
    assert done.flat.tolist() == [0] * 4
    if where == "text" and bad == torch.inf:
        assert torch.equal(done.maps[1], torch.zeros(57))
        assert torch.isnan(done.text[1, 2])
    else:
        assert torch.isnan(done.maps[1]).all()
        assert torch.isnan(done.text[1, :4]).all()
    assert torch.equal(done.text[1, 4:], torch.zeros(2))
    (bytes_,) = finished(target, [replace(answer, dtype=torch.uint8)])
    assert (bytes_.maps[1] == 0).all()
    cpu_maps = cpu.finish_maps(
        [torch.cat([answer.activation, answer.context])],
        [torch.arange(4)],
        [torch.arange(4, 7)],
        [answer.relevance],
        [answer.text],
        [answer.text_lengths],
        [answer.sizes],
        3,
    )
    np.testing.assert_allclose(done.maps, cpu_maps[0][0], atol=tolerances.DEVICE, equal_nan=True)
    np.testing.assert_allclose(done.text, cpu_maps[1][0], atol=tolerances.DEVICE, equal_nan=True)


@pytest.mark.parametrize("maps", [1e-30, 1e-10, 1.0, 1e10, 1e30])
@pytest.mark.parametrize("relevances", [1e-38, 1e-20, 1.0, 1e20, 1e37])
def test_range(target: Target, maps: float, relevances: float) -> None:
    answer = random_answer(4, 3)
    answer.activation, answer.context, answer.text = (
        x * maps for x in (answer.activation, answer.context, answer.text)
    )
    answer.relevance *= relevances
    (done,) = finished(target, [answer])
    values, text, scale, _ = expected(answer)
    np.testing.assert_allclose(done.maps, values, atol=tolerances.PIPELINE)
    np.testing.assert_allclose(done.text, text, atol=tolerances.PIPELINE)
    finite = scale < 3e38
    np.testing.assert_allclose(done.scale[finite], scale[finite], rtol=1e-5)


def test_without_names_or_lengths(target: Target) -> None:
    answer = random_answer(4, 3, text=5)
    answer.text_lengths[:] = 5
    item, done = item_of(target, answer)
    run(target, [(*item[:4], (*item[4][:4], 0), *item[5:])])
    check(Finished(*(part.cpu() for part in done.parts())), answer)


def test_outputs_that_are_not_wanted(target: Target) -> None:
    answer = random_answer(4, 3)
    (reference,) = finished(target, [answer])
    item, done = item_of(target, answer)
    run(target, [(*item[:8], (*item[8][:2], 0, 0, 0))])
    assert torch.equal(done.maps.cpu(), reference.maps)
    assert (done.text == 7).all()
    assert (done.scale == 7).all()
    assert (done.flat == 7).all()


# --------------------------------------------------------------------------------------------------- causal maps only


@pytest.mark.parametrize("in_place", [False, True])
def test_causal_stage(target: Target, in_place: bool) -> None:
    answer = random_answer(6, 5, [(9, 13)])
    (done,) = finished(target, [answer], in_place=in_place, stage=target.module.FINISH_CAUSAL)
    causal, scale = oracle.estimated_causal_inference(answer.activation, answer.context, answer.relevance)
    np.testing.assert_allclose(done.maps, causal, atol=tolerances.CAUSAL * float(answer.activation.max()))
    np.testing.assert_allclose(done.scale, scale, rtol=1e-6)
    assert (done.text == 7).all()
    assert (done.flat == 7).all()


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"kernel_size": 4}, ["kernel_size", "odd", "4"]),
        ({}, {"stage": 2}, ["stage", "FINISH_MAPS", "2"]),
        ({6: (1, 6, 7, 0)}, {}, ["grids", "48", "1 x 6 x 7"]),
        ({6: (1, 0, 0, 0)}, {}, ["grids", "48"]),
        ({0: (0, 48, 0)}, {}, ["activation", "address", "0"]),
        ({4: (0, 6, 0, 6, 0)}, {}, ["text", "address", "0"]),
        ({7: 0}, {}, ["items", "address", "0"]),
        ({5: (5, 4, -48)}, {}, ["sizes", "-48"]),
        ({8: (16, 2, 0, 0, 0)}, {}, ["maps", "F32, U8", "2"]),
        ({8: (16, 4, 0, 0, 0)}, {"stage": 1}, ["maps", "F32", "U8"]),
    ],
)
def test_refusals(target: Target, change: dict[int, Any], options: dict[str, int], words: list[str]) -> None:
    item, _ = item_of(target, random_answer())
    changed = tuple(change.get(i, part) for i, part in enumerate(item))
    with pytest.raises(ValueError) as caught:
        run(target, [changed], **options)
    for word in words:
        assert word in str(caught.value)


def test_refusal_of_shared_memory_that_is_too_small_for_work_in_place(target: Target) -> None:
    answer = random_answer()
    item, _ = item_of(target, answer, in_place=True)
    with pytest.raises(ValueError, match=r"interference: expected memory of its own .* more than 47 positions"):
        run(target, [item], shared_positions=47)
    run(target, [item], shared_positions=48)
