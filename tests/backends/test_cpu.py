"""The compiled module below the operators: bits on every instruction set, thread count and batch place; refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tam_fast import _C
from tam_fast.backends import cpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SIDES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_maps(*shape: int, seed: int = 0, density: float = 1.0) -> Tensor:
    source = generator(seed)
    return torch.rand(shape, generator=source) * (torch.rand(shape, generator=source) < density)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shapes, dtypes and bytes: NaN equals NaN here, and 0 does not equal -0."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))
    )


def on_every_isa(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Results of the serial path, after a check that all paths ran and gave the same bits."""
    expected: list[Tensor] = []
    try:
        for isa in _C.available_isas():
            _C.set_isa(isa)
            results = run()
            assert _C.last_isa() == isa
            expected = expected or results
            for result, reference in zip(results, expected, strict=True):
                assert same_bits(result, reference), f"{isa} differs from serial"
    finally:
        _C.set_isa(None)
    return expected


def on_any_number_of_threads(run: Callable[[], list[Tensor]]) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run()
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            for result, reference in zip(run(), expected, strict=True):
                assert same_bits(result, reference), f"{count} threads"
    finally:
        torch.set_num_threads(before)


def answer(targets: int, contexts: int, grids: list[tuple[int, int]], text: int, seed: int = 0) -> dict[str, object]:
    """Random arguments of ``finish_maps`` for one answer; scores has rows to spare."""
    source = generator(seed)
    rows = targets + contexts + 2
    positions = sum(height * width for height, width in grids)
    relevance = torch.rand(targets, contexts, generator=source)
    return {
        "scores": torch.relu(torch.randn(rows, positions, generator=source)),
        "activation_rows": torch.randint(rows, (targets,), generator=source),
        "context_rows": torch.randint(rows, (contexts,), generator=source),
        "relevance": relevance * (torch.rand(targets, contexts, generator=source) < 0.6),
        "text_relevance": torch.rand(targets, text, generator=source),
        "text_length": torch.randint(text + 1, (targets,), generator=source),
        "grids": grids,
    }


def finish(answers: list[dict[str, object]], kernel_size: int) -> list[Tensor]:
    columns = {name: [item[name] for item in answers] for name in answers[0]}
    return [part for parts in cpu.finish_maps(**columns, kernel_size=kernel_size) for part in parts]  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ same bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
def test_rank_gaussian_filter_bits(kernel_size: int, dtype: torch.dtype) -> None:
    maps = [
        random_maps(2, 20, 37),
        random_maps(33, 65, density=0.1),
        random_maps(3, 1, 5, 6) - 0.3,
        torch.zeros(0, 4, 4),
    ]
    maps = [x.to(dtype) for x in maps]
    maps[1][3, 4] = torch.nan
    results = on_every_isa(lambda: cpu.rank_gaussian_filter(maps, kernel_size))
    on_any_number_of_threads(lambda: cpu.rank_gaussian_filter(maps, kernel_size))
    for x, y in zip(maps, results, strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        alone = [cpu.rank_gaussian_filter([m], kernel_size)[0] for m in x.reshape(-1, *x.shape[-2:])]
        assert same_bits(y, torch.stack(alone).reshape(x.shape) if alone else x)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_rank_gaussian_filter_bits_at_awkward_sizes(kernel_size: int) -> None:
    maps = [random_maps(height, width, seed=height) for height in SIDES for width in SIDES]
    on_every_isa(lambda: cpu.rank_gaussian_filter(maps, kernel_size))


@pytest.mark.parametrize("shape", [(300, 700), (1, 5000), (5000, 1), (65, 257)])
def test_rank_gaussian_filter_bits_of_large_maps(shape: tuple[int, int]) -> None:
    maps = [random_maps(*shape), random_maps(*shape).half()]
    on_every_isa(lambda: cpu.rank_gaussian_filter(maps, 3))
    on_any_number_of_threads(lambda: cpu.rank_gaussian_filter(maps, 3))


# Rows shorter and longer than a vector, with and without a part of one at their end; maps cut into strips, and into
# columns as well.
PLAIN_SHAPES = [
    *[(3, width) for width in (8, 9, 15, 16, 17, 18, 31, 32, 36)],
    *[(height, 24) for height in (1, 2, 3, 4, 7, 200)],
    *[(30, width) for width in (95, 96, 97, 102, 108, 112, 127, 128, 129, 144, 200, 256, 257, 300)],
    (1, 1000),
    (2, 130),
]


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_rank_gaussian_filter_bits_of_plain_maps(kernel_size: int) -> None:
    # The serial path has no short cut for plain maps: these compare it with the general way.
    maps = [random_maps(2, *shape, density=0.7).to(dtype) for shape in PLAIN_SHAPES for dtype in DTYPES]
    results = on_every_isa(lambda: cpu.rank_gaussian_filter(maps, kernel_size))
    sliced = [torch.nn.functional.pad(x, (3, 2, 1, 4))[..., 1:-4, 3:-2] for x in maps]
    columns = [torch.nn.functional.pad(x[..., None], (0, 1))[..., 0] for x in maps]
    for others in (sliced, columns):
        assert not any(x.is_contiguous() for x in others)
        for got, expected in zip(cpu.rank_gaussian_filter(others, kernel_size), results, strict=True):
            assert same_bits(got, expected)


@pytest.mark.parametrize("value", [-0.25, -0.0, torch.nan, torch.inf, 1e-20, 1e-41, 2.0**-46, 256.0, 256.5, 1e30])
@pytest.mark.parametrize("shape", [(20, 36), (300, 24), (40, 112), (40, 300)])
def test_rank_gaussian_filter_bits_with_one_value_that_is_not_plain(shape: tuple[int, int], value: float) -> None:
    height, width = shape
    places = [(0, 0), (height - 1, width - 1), (height // 2, width // 2), (0, width - 1), (height // 2, 0)]
    maps = [random_maps(*shape, seed=place) for place in range(len(places))]
    for x, place in zip(maps, places, strict=True):
        x[place] = value
    results = on_every_isa(lambda: cpu.rank_gaussian_filter(maps, 3))
    on_any_number_of_threads(lambda: cpu.rank_gaussian_filter(maps, 3))
    for x, place, result in zip(maps, places, results, strict=True):
        # Far from that value it makes no difference.
        clean = x.clone()
        clean[place] = 0.5
        (expected,) = cpu.rank_gaussian_filter([clean], 3)
        far = torch.ones(shape, dtype=torch.bool)
        far[max(place[0] - 1, 0) : place[0] + 2, max(place[1] - 1, 0) : place[1] + 2] = False
        if value == 1e30:  # the others are then lost beside it
            assert torch.allclose(result[far], expected[far], rtol=1e-6)
        else:
            assert same_bits(result[far], expected[far])


def test_rank_gaussian_filter_writes_its_output_only() -> None:
    for shape in PLAIN_SHAPES:
        for dtype in DTYPES[:3]:
            x = random_maps(*shape).to(dtype)
            guarded = torch.full((x.numel() + 256,), 7.0, dtype=dtype)
            output = guarded[128:-128]
            item = (x.data_ptr(), output.data_ptr(), cpu._DTYPES[dtype], shape, x.stride())
            _C.rank_gaussian_filter([item], 3, False, 1)
            assert same_bits(output.view(shape), cpu.rank_gaussian_filter([x], 3)[0])
            assert bool((guarded[:128] == 7).all())
            assert bool((guarded[-128:] == 7).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_rank_gaussian_filter_layouts(dtype: torch.dtype) -> None:
    base = random_maps(3, 4, 40, 50).to(dtype)
    layouts = [
        base.permute(1, 0, 3, 2),
        base[:, :, ::2, ::3],
        base[..., 1:-3],
        base.transpose(1, 3),
        base[0, 0].expand(5, 40, 50),
        base[0, 0, :1].expand(40, 50),
        base[0, 0, :, :1].expand(40, 50),
        base[0, 0, 3:4, 4:5],
    ]
    for kernel_size in (1, 3, 5):
        expected = cpu.rank_gaussian_filter([x.contiguous() for x in layouts], kernel_size)
        for result, reference in zip(cpu.rank_gaussian_filter(layouts, kernel_size), expected, strict=True):
            assert same_bits(result, reference)


@pytest.mark.parametrize("classifier_dtype", DTYPES)
@pytest.mark.parametrize("hidden_dtype", DTYPES)
def test_token_scores_bits(hidden_dtype: torch.dtype, classifier_dtype: torch.dtype) -> None:
    source = generator(1)
    classifier = torch.randn(50, 100, generator=source).to(classifier_dtype)
    hidden = [torch.randn(s, 100, generator=source).to(hidden_dtype) for s in (1, 5, 67, 0)]
    ids = [torch.randint(50, (t,), generator=source) for t in (1, 0, 131, 2)]
    results = on_every_isa(lambda: cpu.token_scores(hidden, classifier, ids))
    on_any_number_of_threads(lambda: cpu.token_scores(hidden, classifier, ids))
    # A token or a position alone, and other layouts.
    alone = torch.cat([cpu.token_scores([hidden[2]], classifier, [ids[2][t : t + 1]])[0] for t in range(131)])
    assert same_bits(results[2], alone)
    alone = torch.cat([cpu.token_scores([hidden[2][s : s + 1]], classifier, [ids[2]])[0] for s in range(67)], 1)
    assert same_bits(results[2], alone)
    columns = cpu.token_scores([hidden[2].t().contiguous().t()], classifier.t().contiguous().t(), [ids[2]])[0]
    assert same_bits(results[2], columns)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 33, 1296])
def test_least_squares_scale_bits(size: int, dtype: torch.dtype) -> None:
    target, interference = random_maps(20, 3, size).to(dtype), random_maps(20, 3, size, seed=1).to(dtype)
    (scale,) = on_every_isa(lambda: [cpu.least_squares_scale(target, interference)])
    on_any_number_of_threads(lambda: [cpu.least_squares_scale(target, interference)])
    permuted = cpu.least_squares_scale(target.transpose(0, 1), interference.transpose(0, 1))
    assert same_bits(scale, permuted.t())


@pytest.mark.parametrize(
    ("targets", "contexts", "size"), [(1, 1, 1), (1, 0, 5), (0, 3, 4), (9, 70, 33), (37, 200, 130)]
)
def test_estimated_causal_inference_bits(targets: int, contexts: int, size: int) -> None:
    activation, context = random_maps(targets, size), random_maps(contexts, size, seed=1)
    relevance = random_maps(targets, contexts, seed=2, density=0.7).tril(contexts - targets)

    def run(rows: slice = slice(None)) -> list[Tensor]:
        causal, scale = cpu.estimated_causal_inference([activation[rows]], [context], [relevance[rows]])
        return causal + scale

    causal, scale = on_every_isa(run)
    on_any_number_of_threads(run)
    for t in range(targets):
        alone = run(slice(t, t + 1))
        assert same_bits(alone[0], causal[t : t + 1])
        assert same_bits(alone[1], scale[t : t + 1])


def test_special_values_spread_by_relevance_alone() -> None:
    activation, context = random_maps(20, 50), random_maps(90, 50, seed=1)
    relevance = random_maps(20, 90, seed=2, density=0.5)
    (clean,), _ = cpu.estimated_causal_inference([activation], [context], [relevance])
    context[7, 3], context[80, 4] = torch.nan, torch.inf
    causal, scale = on_every_isa(
        lambda: [x[0] for x in cpu.estimated_causal_inference([activation], [context], [relevance])]
    )
    hit = (relevance[:, 7] != 0) | (relevance[:, 80] != 0)
    assert hit.any()
    assert not hit.all()
    assert torch.equal(scale.isnan(), hit)
    assert causal[hit].isnan().all()
    assert same_bits(causal[~hit], clean[~hit])


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_finish_maps_bits(kernel_size: int) -> None:
    answers = [
        answer(12, 30, [(24, 24), (5, 7)], 30),
        answer(0, 3, [(2, 3)], 2),
        answer(1, 0, [(1, 9)], 0),
        answer(40, 80, [(3, 3)], 7),
    ]
    results = on_every_isa(lambda: finish(answers, kernel_size))
    on_any_number_of_threads(lambda: finish(answers, kernel_size))
    alone = [finish([item], kernel_size) for item in answers]
    for i, result in enumerate(results):
        assert same_bits(result, alone[i % len(answers)][i // len(answers)])


def test_finish_maps_equals_the_separate_operators() -> None:
    item = answer(9, 30, [(24, 24), (5, 7)], 30)
    (maps, text, scale, flat) = finish([item], 3)
    scores, relevance = item["scores"], item["relevance"]
    assert isinstance(scores, Tensor)
    assert isinstance(relevance, Tensor)
    (causal,), (expected_scale,) = cpu.estimated_causal_inference(
        [scores[item["activation_rows"]]],
        [scores[item["context_rows"]]],
        [relevance],  # type: ignore[index]
    )
    assert same_bits(scale, expected_scale)
    assert not flat.any()
    for t in range(9):
        length = int(item["text_length"][t])  # type: ignore[index]
        known = item["text_relevance"][t, :length]  # type: ignore[index]
        both = torch.cat([causal[t], known])
        low, unit = both.min(), both.max() - both.min()
        assert same_bits(text[t, :length], (known - low) / unit)
        assert not text[t, length:].any()
        start = 0
        for height, width in ((24, 24), (5, 7)):
            grid = ((causal[t, start : start + height * width] - low) / unit).view(height, width)
            filtered = cpu.rank_gaussian_filter([grid], 3)[0].flatten()
            assert same_bits(maps[t, start : start + height * width], filtered)
            start += height * width


# ---------------------------------------------------------------------------------------------------- surroundings


def test_concurrent_callers() -> None:
    maps = random_maps(40, 36, 36)
    (expected,) = cpu.rank_gaussian_filter([maps], 3)

    def work(_: int) -> bool:
        return all(same_bits(cpu.rank_gaussian_filter([maps], 3)[0], expected) for _ in range(20))

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(work, range(4)))


def test_flush_to_zero_is_neither_heeded_nor_changed() -> None:
    maps = random_maps(5, 36, 36) * 1e-41
    (expected,) = cpu.rank_gaussian_filter([maps], 3)
    assert expected.any()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        (flushed,) = cpu.rank_gaussian_filter([maps], 3)
        still_flushing = not (torch.full((), 1e-30) * torch.full((), 1e-10)).item()
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(flushed, expected)
    assert still_flushing


def test_fork_after_use() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    program = """
import os, torch
from tam_fast.backends import cpu
torch.set_num_threads(2)
maps = torch.rand(200, 36, 36)
expected = cpu.rank_gaussian_filter([maps], 3)[0]
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(cpu.rank_gaussian_filter([maps], 3)[0], expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def run_with_isa(name: str) -> subprocess.CompletedProcess[str]:
    program = """
import torch
from tam_fast import _C
from tam_fast.backends import cpu
cpu.rank_gaussian_filter([torch.rand(5, 5)], 3)
print(_C.last_isa())
"""
    environment = {**os.environ, "TAM_FAST_ISA": name}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_environment_variable_selects_the_instruction_set() -> None:
    for name in _C.available_isas():
        assert run_with_isa(name).stdout.strip() == name
    missing = sorted({"avx2", "avx512"} - set(_C.available_isas()))
    for name in [*missing, "sse9"]:
        refused = run_with_isa(name)
        assert refused.returncode != 0
        assert "RuntimeError: TAM_FAST_ISA" in refused.stderr
        assert f"'{name}'" in refused.stderr
        assert "expected" in refused.stderr


def test_set_isa() -> None:
    with pytest.raises(RuntimeError, match=r"expected one of serial, avx2, avx512.*got 'sse9'"):
        _C.set_isa("sse9")
    _C.set_isa("serial")
    assert _C.isa() == "serial"
    _C.set_isa(None)
    info = cpu.info()
    assert (info["isa"], info["available_isas"]) == (_C.isa(), _C.available_isas())


MAP = (64, 64, _C.F32, (3, 3), (3, 1))  # addresses that must never be read
MATRIX = (64, _C.F32, 3, 4, 4, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _C.rank_gaussian_filter([(0, *MAP[1:])], 3, False, 1), "maps: expected the address"),
        (lambda: _C.rank_gaussian_filter([(*MAP[:2], 9, *MAP[3:])], 3, False, 1), "F32, F16, BF16, F64, got 9"),
        (lambda: _C.rank_gaussian_filter([(*MAP[:3], (3,), (1,))], 3, False, 1), "2 to 10 dimensions, got 1"),
        (lambda: _C.rank_gaussian_filter([(*MAP[:3], (3, -3), (3, 1))], 3, False, 1), "expected a size, got -3"),
        (lambda: _C.rank_gaussian_filter([(*MAP[:3], (3, 3), (1,))], 3, False, 1), "strides: expected 2 fields"),
        (lambda: _C.rank_gaussian_filter([MAP[:4]], 3, False, 1), "expected 5 fields, got 4"),  # type: ignore[list-item]
        (lambda: _C.rank_gaussian_filter([], 4, False, 1), "kernel_size: expected an odd number"),
        (lambda: _C.rank_gaussian_filter([], 17, False, 1), "kernel_size: expected an odd number"),
        (lambda: _C.rank_gaussian_filter([], 3, False, 0), "threads: expected at least 1, got 0"),
        (lambda: _C.token_scores([((64, 0, 2, 5, 5, 1), (64, 0, 1), 64)], MATRIX, 1), "channels: expected 4, got 5"),
        (
            lambda: _C.estimated_causal_inference([(MATRIX, MATRIX, MATRIX, 64, 64)], 1),
            "context tokens: expected 3, got 4",
        ),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("ids", [[0, 3], [-1]])
def test_rows_out_of_range_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="token_ids: expected values from 0 to 2"):
        cpu.token_scores([torch.zeros(1, 4)], torch.zeros(3, 4), [torch.tensor(ids)])


def test_grids_that_do_not_fit_are_refused() -> None:
    item = answer(2, 3, [(4, 5)], 1)
    for grids in ([(4, 4)], [(4, 5), (1, 1)], [(0, 5)], [(-4, -5)], [(2**62, 2**62)]):
        with pytest.raises(ValueError, match="grids"):
            finish([{**item, "grids": grids}], 3)
