"""The CUDA kernels as nvcc compiles them, their PTX run instruction by instruction, against the float64 oracle."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from backends import test_cuda_estimated_causal_inference as interference
from backends import test_cuda_finish_maps as finish_maps
from backends import test_cuda_least_squares_scale as least_squares
from backends import test_cuda_rank_gaussian_filter as filters
from backends import test_cuda_stream_step as stream_step
from backends import test_cuda_token_scores as token_scores
from machines import cuda_on_ptx, ptx
from machines.cuda_calls import Cuda
from maps import test_device_answer
from torch import Tensor

import tam_fast
from tam_fast.backends import arguments

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
FILTER_TOLERANCES = {
    torch.float32: tolerances.FILTER_SPARSE,
    torch.float16: tolerances.FILTER_FLOAT16,
    torch.bfloat16: tolerances.FILTER_BFLOAT16,
    torch.float64: 1e-12,
}
# Of the tests of a kernel some are run here, and what they leave out is added: interpreting takes its time.
Run = Callable[[Cuda], None]
CASES: dict[str, Run] = {}


def case(name: str, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function with these options to the cases."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        CASES[name] = partial(function, **options)
        return function

    return add


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    with cuda_on_ptx.load().running() as module:
        yield Cuda(module, CPU)


# ------------------------------------------------------------------------------------------------ rank_gaussian_filter


def filter_one_map_and_several(cuda: Cuda, kernel_size: int, dtype: torch.dtype) -> None:
    lone = [filters.dense(1, 5, 6)]  # neither of a whole number of strips
    several = [filters.dense(2, 4, 8), filters.sparse(1, 5, 3, share=0.3), filters.dense(1, 1, 2)]
    for maps in (lone, several):
        given = [x.to(dtype) for x in maps]
        for x, y in zip(given, filters.filtered(cuda, given, kernel_size), strict=True):
            assert filters.error(y, x, kernel_size) <= FILTER_TOLERANCES[dtype]


for kernel_size in (1, 3, 5, 7):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        case(f"filter-{kernel_size}-{dtype}", kernel_size=kernel_size, dtype=dtype)(filter_one_map_and_several)
for kernel_size in (1, 3):  # windows of float64 are counted
    case(f"filter-{kernel_size}-float64", kernel_size=kernel_size, dtype=torch.float64)(filter_one_map_and_several)


@case("filter-9")
def filter_counted_windows(cuda: Cuda) -> None:
    """Of any size: every value of a window is compared with every other, which takes the machine its time."""
    maps = filters.dense(2, 5, 7)
    (got,) = filters.filtered(cuda, [maps], 9)
    assert filters.error(got, maps, 9) <= tolerances.FILTER_DENSE


@case("filter-strips")
def filter_long_strips(cuda: Cuda) -> None:
    """A device with one multiprocessor has strips of many rows."""
    with cuda_on_ptx.load().device(multiprocessors=1):
        for maps in (filters.dense(8, 21, 32), filters.dense(1, 40, 30).bfloat16()):
            (got,) = filters.filtered(cuda, [maps])
            assert filters.error(got, maps) <= FILTER_TOLERANCES[maps.dtype]


case("filter-small-beside-large-3", low=1e-20, kernel_size=3)(filters.test_small_values_beside_large_ones)
case("filter-official-3", kernel_size=3)(filters.test_constant_windows_of_the_official_program)
case("filter-layouts-12", dtype=torch.float32, kernel_size=3, width=12)(filters.test_layouts)
case("filter-layouts-13", dtype=torch.bfloat16, kernel_size=3, width=13)(filters.test_layouts)
case("filter-nan", kernel_size=3, bad=np.nan, dtype=torch.float16, width=14)(
    filters.test_nonfinite_values_spoil_their_windows_only
)

# -------------------------------------------------------------------------------------------------------- token_scores


def score(
    cuda: Cuda, dtype: torch.dtype, channels: int, sizes: list[tuple[int, int]], offset: int = 0, **plan: int
) -> None:
    """Classes x positions of every item; rows of the classifier begin `offset` channels into wider ones."""
    workspace = torch.zeros(cuda.module.TOKEN_SCORES_WORKSPACE_BYTES // 8, dtype=torch.int64)
    if plan.get("splits", 1) > 1:
        plan |= {"workspace": workspace.data_ptr(), "workspace_bytes": 8 * workspace.numel()}
    _, classifier = token_scores.case(1, channels, 50, dtype)
    wide = torch.full((50, channels + offset), torch.nan, dtype=dtype)
    wide[:, offset:] = classifier
    hidden = [token_scores.case(positions + 3, channels, 1, dtype)[0] for _, positions in sizes]
    classes = [token_scores.indices(50, count) for count, _ in sizes]
    places: list[Tensor | None] = [token_scores.indices(positions + 3, positions, 1) for _, positions in sizes]
    results = token_scores.scores(cuda, hidden, wide[:, offset:], classes, places, padding=3, **plan)
    for x, u, p, got in zip(hidden, classes, places, results, strict=True):
        token_scores.check(got, x, classifier, u, p)
    assert not workspace[:2048].any(), "the arrivals, which the next launch counts from 0"


for dtype in (torch.float32, torch.float16, torch.bfloat16):
    # More lines of channels than there are stages, the last one not full.
    channels = 136 if dtype == torch.float32 else 328
    case(f"scores-{dtype}-64", dtype=dtype, channels=channels, sizes=[(70, 35)], tile=64)(score)
    case(f"scores-{dtype}-64-several", dtype=dtype, channels=40, sizes=[(5, 9), (66, 3), (1, 1)], tile=64)(score)
    case(f"scores-{dtype}-gathered", dtype=dtype, channels=channels + 1, sizes=[(9, 35)], offset=1, tile=64, splits=2)(
        score
    )
    case(f"scores-{dtype}-gathered-several", dtype=dtype, channels=37, sizes=[(5, 9), (2, 3)], offset=1)(score)
    case(f"scores-{dtype}-split", dtype=dtype, channels=channels, sizes=[(70, 9)], tile=64, splits=3)(score)
    if dtype != torch.float32:
        case(f"scores-{dtype}-128", dtype=dtype, channels=328, sizes=[(130, 100)], tile=128, splits=2)(score)
        case(f"scores-{dtype}-128-several", dtype=dtype, channels=40, sizes=[(5, 9), (3, 3)], tile=128)(score)
case("scores-float64", dtype=torch.float64, channels=37, sizes=[(5, 9)])(score)
case("scores-mixed", dtypes=(torch.float16, torch.bfloat16))(token_scores.test_mixed_dtypes)
case("scores-out-of-range", dtype=torch.bfloat16)(token_scores.test_out_of_range_is_nan_and_reads_nothing)
case("scores-no-channels")(token_scores.test_no_channels)

case("scores-garbage", dtype=torch.bfloat16)(token_scores.test_same_bits_whatever_the_order_of_threads)

# ------------------------------------------------------------------------------------------ estimated_causal_inference


def interfere(cuda: Cuda, sizes: list[tuple[int, int, int]], padding: int = 0) -> None:
    """(targets, contexts, positions) of every answer."""
    for form in (interference.matrix, partial(interference.gather, padding=padding)):
        answers = [form(*size) for size in sizes]
        for answer, got in zip(answers, interference.interference(cuda, answers), strict=True):
            interference.check(got, answer)


def interfere_again(cuda: Cuda, positions: int) -> None:
    """The largest relevances come so late that a block begins anew with another factor."""
    answer = interference.matrix(9, 150, positions)
    answer.relevance[:, 64:] *= 1e30
    interference.check(interference.interference(cuda, [answer])[0], answer)


case("interference-few", sizes=[(3, 70, 9)])(interfere)
case("interference-few-long", sizes=[(1, 1060, 9)])(interfere)
case("interference-few-several", sizes=[(4, 33, 17), (1, 2, 3)])(interfere)
case("interference-tiles", sizes=[(40, 328, 36)])(interfere)
case("interference-tiles-several", sizes=[(5, 68, 36), (3, 8, 4)])(interfere)
case("interference-gathered", sizes=[(9, 70, 35)])(interfere)
case("interference-gathered-several", sizes=[(5, 64, 33), (33, 3, 1)], padding=3)(interfere)
case("interference-again", positions=20)(interfere_again)
case("interference-gathered-again", positions=21)(interfere_again)
case("interference-nan", t=40, bad=float("nan"), form=interference.gather)(
    interference.test_a_bad_context_map_reaches_only_targets_that_count_it
)
case("interference-names")(interference.test_names_whose_halves_agree)

# ------------------------------------------------------------------------------------------------ least_squares_scale

for dtype in least_squares.DTYPES:
    case(f"scale-{dtype}", dtype=dtype, n=300)(least_squares.test_against_the_oracle)
case("scale-several", count=9)(least_squares.test_a_ragged_list_gives_what_each_gives_alone)
case("scale-range", scale=1e200)(least_squares.test_squares_of_float64_stay_in_range)
case("scale-not-finite", dtype=torch.float64)(least_squares.test_zero_nan_and_infinity)

# -------------------------------------------------------------------------------------------------------- finish_maps


def finish_in_global_memory(cuda: Cuda, kernel_size: int) -> None:
    answer = finish_maps.random_answer(3, 4, [(6, 8)])
    (beyond,) = finish_maps.finished(cuda, [answer], kernel_size, shared_positions=0)
    (shared,) = finish_maps.finished(cuda, [answer], kernel_size)
    assert finish_maps.same_bits(beyond, shared)


for kernel_size in (1, 3, 5, 7):
    case(f"finish-{kernel_size}", kernel_size=kernel_size)(finish_maps.test_kernel_sizes)
    # Several answers, in memory of the block and in global memory.
    case(f"finish-several-{kernel_size}", kernel_size=kernel_size, shared_positions=40)(
        finish_maps.test_maps_that_do_not_fit_into_shared_memory
    )
    case(f"finish-beyond-{kernel_size}", kernel_size=kernel_size)(finish_in_global_memory)
for grids in ("ragged", "aligned tiles"):
    case(f"finish-{grids}", grids=grids, gathered=True)(finish_maps.test_grids)
case("finish-causal", in_place=True)(finish_maps.test_causal_stage)
case("finish-not-finite", where="interference", bad=torch.nan)(finish_maps.test_nonfinite_values)
case("finish-garbage", sizes=[(3, 5), (9, 9)])(finish_maps.test_repeats_have_the_same_bits)
case("finish-flat")(finish_maps.test_flat_rows)


@case("finish-uint8")
def finish_uint8(cuda: Cuda) -> None:
    answer = finish_maps.random_answer(3, 4, [(5, 8), (3, 3)])
    (floats,) = finish_maps.finished(cuda, [answer])
    (bytes_,) = finish_maps.finished(cuda, [replace(answer, dtype=torch.uint8)])
    finish_maps.check(floats, answer)
    assert torch.equal(bytes_.maps, (floats.maps * 255).floor().to(torch.uint8))


@case("finish-shared-memory-asked-for")
def finish_large_map(cuda: Cuda) -> None:
    """More shared memory than there is without asking; and on a device that does not have it, global memory."""
    answer = finish_maps.random_answer(1, 2, [(101, 126)])
    (shared,) = finish_maps.finished(cuda, [answer])
    finish_maps.check(shared, answer)
    with cuda_on_ptx.load().device(shared_bytes=48 * 1024):
        assert cuda.module.finish_maps_shared_positions() < 101 * 126
        (spilled,) = finish_maps.finished(cuda, [answer])
    assert finish_maps.same_bits(spilled, shared)


def test_a_launch_does_not_lower_what_another_thread_has_asked_for(cuda: Cuda) -> None:
    """Shared memory is asked for by function, and launched with in a second call."""
    finish_maps.finished(cuda, [finish_maps.random_answer(1, 2, [(101, 126)])])
    allowed = [cuda.module.shared_bytes_allowed(name) for name in cuda.module.launched if "finish_maps" in name]
    assert allowed == [cuda_on_ptx.SHARED_BYTES]


# -------------------------------------------------------------------------------------------------------- stream_step

for dtype, channels in ((torch.float32, 300), (torch.float16, 1032), (torch.bfloat16, 1300), (torch.float64, 33)):
    case(f"step-{dtype}", dtype=dtype, channels=channels)(stream_step.test_against_the_oracle)
case("step-unaligned")(stream_step.test_rows_that_are_not_aligned)
case("step-writes")(stream_step.test_what_the_step_writes_for_its_successors)
case("step-out-of-range", dtype=torch.bfloat16)(stream_step.test_out_of_range_is_nan_and_reads_nothing)


# ------------------------------------------------------------------------------------------------------------ all cases


@functools.cache
def launched_by(name: str) -> frozenset[str]:
    """Run a case, once; the kernels that it launched."""
    with cuda_on_ptx.load().running() as module:
        CASES[name](Cuda(module, CPU))
        return frozenset(module.launched)


@pytest.mark.parametrize("name", CASES)
def test_kernels(name: str) -> None:
    assert launched_by(name)


def test_every_kernel_is_launched() -> None:
    """With every type, size and capacity that it is compiled for."""
    launched = frozenset().union(*(launched_by(name) for name in CASES))
    assert launched == cuda_on_ptx.load().kernels


def test_the_module_says_what_it_is() -> None:
    module = cuda_on_ptx.load()
    assert module.architectures() == [cuda_on_ptx.ARCHITECTURE]
    assert module.__version__ == tam_fast.__version__


def test_the_bits_of_the_emulation(cuda: Cuda) -> None:
    """What takes no approximation of the device: nvcc contracts and reorders nothing there that g++ does not."""
    emulated = Cuda.named("emulated")
    pairs = [least_squares.pair(3, 300)]
    (hidden, classifier), classes = token_scores.case(60, 200, 70, torch.bfloat16), token_scores.indices(70, 60)
    answers = [interference.gather(9, 150, 33), interference.matrix(40, 70, 20)]
    for run in (
        lambda on: least_squares.scales(on, pairs),
        lambda on: token_scores.scores(on, [hidden], classifier, [classes]),
        lambda on: token_scores.scores(on, [hidden.float()], classifier.float(), [classes]),
        lambda on: interference.interference(on, answers),
    ):
        for got, expected in zip(run(cuda), run(emulated), strict=True):
            assert torch.equal(got, expected)


def test_items_travel_in_the_parameters() -> None:
    """Some kernels' are longer than the 4 KiB that were the limit before CUDA 12.1, none than today's."""
    module = cuda_on_ptx.load()
    sizes = [module.kernel(name).parameter_bytes for name in module.kernels]
    assert max(sizes) > 4096
    assert max(sizes) <= cuda_on_ptx.LONGEST_PARAMETERS


# ------------------------------------------------------------------------------------------------------- whole answers


@pytest.fixture
def backend(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve every operator by the backend for CUDA on this module."""
    monkeypatch.setitem(sys.modules, "tam_fast._cuda", cuda.module)
    monkeypatch.setattr(tam_fast, "_cuda", cuda.module, raising=False)
    monkeypatch.delitem(sys.modules, "tam_fast.backends.cuda", raising=False)
    arguments._grid_table.cache_clear()  # tables that were made before the machine watched
    try:
        with tam_fast.use_backend("cuda"):
            yield
    finally:
        sys.modules.pop("tam_fast.backends.cuda", None)


@pytest.mark.parametrize("compat", [None, "official"])
def test_activation_maps(backend: None, compat: str | None) -> None:
    test_device_answer.test_against_the_oracle(CPU, [(2, 2), (5, 3)], compat)


def test_stream(backend: None) -> None:
    test_device_answer.test_a_stream_without_a_prompt_and_in_chunks(CPU)


# -------------------------------------------------------------------------------------------------------------- faults


def one_short(x: Tensor) -> Tensor:
    """The same values at another address, but for the last one, which is no memory of the device's."""
    return x.flatten()[:-1].clone()


def test_a_filter_that_leaves_its_memory_is_a_fault(cuda: Cuda) -> None:
    x, y = filters.dense(1, 6, 8), torch.zeros(1, 6, 8)
    item = filters.item_of(cuda, x, y)
    cuda.module.rank_gaussian_filter([item], 3, False, 0)
    short_x, short_y = one_short(x), one_short(y)
    for changed in ((short_x.data_ptr(), *item[1:]), (item[0], short_y.data_ptr(), *item[2:])):
        with pytest.raises(ptx.Fault):
            cuda.module.rank_gaussian_filter([changed], 3, False, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_memory_that_is_not_there_are_a_fault(cuda: Cuda, dtype: torch.dtype) -> None:
    hidden, classifier = token_scores.case(9, 40, 12, dtype)
    classes, out = token_scores.indices(12, 7), torch.zeros(7, 9)
    item = (cuda.matrix(hidden), (0, 9), (classes.data_ptr(), 7), out.data_ptr(), 9)
    cuda.module.token_scores([item], cuda.matrix(classifier), 0, 0)
    short_hidden, short_classes, short_out = one_short(hidden), one_short(classes), one_short(out)
    for changed in (
        ((short_hidden.data_ptr(), *item[0][1:]), *item[1:]),
        (*item[:2], (short_classes.data_ptr(), 7), *item[3:]),
        (*item[:3], short_out.data_ptr(), 9),
    ):
        with pytest.raises(ptx.Fault):
            cuda.module.token_scores([changed], cuda.matrix(classifier), 0, 0)


@pytest.mark.parametrize(
    ("change", "run"),
    [
        ("bar.sync", partial(least_squares.test_against_the_oracle, dtype=torch.float32, n=300)),
        ("bar.sync", partial(score, dtype=torch.bfloat16, channels=328, sizes=[(9, 9)], tile=64)),
        ("cp.async.wait_group", partial(score, dtype=torch.bfloat16, channels=328, sizes=[(9, 9)], tile=64)),
        ("cp.async.wait_group", partial(interfere, sizes=[(40, 328, 36)])),
        ("bar.sync", partial(finish_maps.test_kernel_sizes, kernel_size=3)),
    ],
)
def test_kernels_that_do_not_wait_are_a_fault(cuda: Cuda, change: str, run: Run) -> None:
    with (
        cuda_on_ptx.load().altered(lambda text: text.replace(change, f"// {change}")),
        pytest.raises(ptx.Fault, match="shared memory"),
    ):
        run(cuda)
    run(cuda)


def test_kernels_fit_the_smallest_devices(cuda: Cuda) -> None:
    """A block of compute capability 8.6 and 8.9 has 99 KB of shared memory."""
    with cuda_on_ptx.load().device(shared_bytes=99 * 1024):
        score(cuda, torch.bfloat16, 8, [(3, 3)], tile=128)
        interfere(cuda, [(5, 3, 4)])
        interfere(cuda, [(1, 3, 4)])


def test_a_launch_that_the_device_refuses_is_an_error_of_that_call_alone(cuda: Cuda) -> None:
    answer = interference.matrix(40, 8, 9)  # its kernel asks for some 60 KB of shared memory
    with cuda_on_ptx.load().device(shared_bytes=48 * 1024), pytest.raises(RuntimeError, match="invalid argument"):
        interference.interference(cuda, [answer])
    interference.check(interference.interference(cuda, [answer])[0], answer)
