"""What only a GPU can show: its maps beside the CPU's, repetition, streams, graphs, waiting, memory, launches, errors.

Without a GPU the tests that take `device` run on the kernels' twins (see conftest.py), at small sizes; the others are
skipped. ``bench/gpu_visit.sh test`` runs all of them on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import tolerances
import torch
from answers import Case, stream
from places import ROOT
from torch import Tensor

import tam_fast
from tam_fast.backends import selection

# Last, so that an installed tam_fast goes before the checkout's.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from bench.gpu import calls

BACKENDS = ("cuda", "triton")
HALF_A_SECOND = 1_000_000_000  # clock cycles, or a little less of them
REPEATS = 10_000


@pytest.fixture(params=BACKENDS)
def gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Serve every operator by a backend of the GPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    with tam_fast.use_backend(request.param):
        yield torch.device("cuda:0")


def bits(x: Tensor) -> Tensor:
    """The bits of a tensor, so that NaN equals itself."""
    if not x.is_floating_point():
        return x
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


def copies(results: list[Tensor]) -> list[Tensor]:
    return [x.clone() for x in results]


def one(device: torch.device, operator: str) -> calls.Call:
    """A small call of an operator."""
    call = calls.small(device)[calls.SMALL.index(operator)]
    assert call.name.startswith(operator)
    return call


def tolerance(x: Tensor) -> float:
    """Of the maximum: a GPU's, and that of rounding to few bits."""
    if x.dtype in (torch.float16, torch.bfloat16):
        # Each may round to either side of where the other does.
        return torch.finfo(x.dtype).eps + tolerances.DEVICE
    return tolerances.DEVICE


def large(channels: int, dtype: torch.dtype, n_t: int = 256) -> Case:
    """An answer of the size of a real one; scores are about 1, so that maps are not differences of large numbers."""
    case = Case([(36, 36)], n_p=30, n_t=n_t, c=channels, v=2000, dtype=dtype)
    generator = torch.Generator().manual_seed(channels)
    case.hidden = torch.randn(case.hidden.shape, generator=generator).to(dtype)
    case.classifier = (torch.randn(case.classifier.shape, generator=generator) * channels**-0.5).to(dtype)
    return case


# The CPU's maps.


def test_operators_give_what_the_cpu_gives(gpu: torch.device) -> None:
    ours = calls.operators(gpu)
    with tam_fast.use_backend("cpu"):
        expected = [[x.clone() for x in call.run()] for call in calls.operators(torch.device("cpu"))]
    wrong = []
    for call, wanted in zip(ours, expected, strict=True):
        for x, y in zip(call.run(), wanted, strict=True):
            if not y.numel():
                continue
            off, largest = (x.cpu().double() - y.double()).abs().max(), y.double().abs().max()
            if not off <= tolerance(y) * largest:
                wrong.append(f"{call.name}: off by {float(off / largest):.1e} of the maximum")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(512, 36, 36), (3, 1024, 1024), (64, 24, 24), (7, 333, 129)], ids=str)
@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
def test_filter_of_dense_and_sparse_maps(
    gpu: torch.device, shape: tuple[int, int, int], kernel_size: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(kernel_size)
    x = torch.rand(shape, generator=generator)
    x[::2] *= torch.rand(x[::2].shape, generator=generator) < 0.05
    x = x.to(dtype)
    expected = tam_fast.rank_gaussian_filter(x, kernel_size, backend="cpu").float()
    got = tam_fast.rank_gaussian_filter(x.to(gpu), kernel_size).cpu().float()
    allowed = tolerances.DEVICE
    if dtype != torch.float32:
        allowed += torch.finfo(dtype).eps
    assert (got - expected).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1536, 4096])
def test_a_real_answer(gpu: torch.device, channels: int, dtype: torch.dtype) -> None:
    case = large(channels, dtype)
    expected = case.maps(backend="cpu")
    levels = expected.uint8()
    got = case.to(gpu).maps()
    assert (got.maps.cpu() - expected.maps).abs().max() <= tolerances.DEVICE
    assert (got.relevance.cpu() - expected.relevance).abs().max() <= tolerances.DEVICE
    assert torch.equal(got.flat.cpu(), expected.flat)
    difference = (case.maps(dtype=torch.uint8).maps.cpu().int() - levels.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() <= 1e-4


def test_ragged_batches(device: torch.device) -> None:
    # 70 answers are more than fit in one launch.
    count = 70 if device.type == "cuda" else 4
    cases = calls.some_cases(device, count)
    together = tam_fast.activation_maps(
        [case.hidden for case in cases],
        cases[0].classifier,
        [case.token_ids for case in cases],
        [case.layout for case in cases],
    )
    for case, got in zip(cases, together, strict=True):
        alone = case.maps()
        assert torch.equal(got.maps, alone.maps)
        expected = case.to("cpu").maps(backend="cpu")
        assert (got.maps.cpu() - expected.maps).abs().max() <= tolerances.DEVICE
        assert torch.equal(got.flat.cpu(), expected.flat)


def test_a_long_stream_gives_the_maps_of_the_answer(gpu: torch.device) -> None:
    case = large(512, torch.bfloat16, n_t=150).to(gpu)
    whole = case.maps()
    expected = case.to("cpu").maps(backend="cpu").maps
    for t, step in enumerate(stream(case.to(gpu))):
        assert (step.map - expected[t]).abs().max() <= tolerances.DEVICE
        assert (step.map - whole.maps[t].cpu()).abs().max() <= tolerances.DEVICE


# Repetition and streams.


@pytest.mark.parametrize("operator", calls.SMALL)
def test_results_repeat_bit_for_bit(device: torch.device, operator: str) -> None:
    call = one(device, operator)
    first = copies(call.run())
    differed = torch.zeros(1, dtype=torch.bool, device=device)
    for _ in range(REPEATS if device.type == "cuda" else 2):
        for x, y in zip(call.run(), first, strict=True):
            differed |= (bits(x) != bits(y)).any()
    assert not differed.item(), call.name


def test_a_large_answer_repeats_bit_for_bit(gpu: torch.device) -> None:
    case = large(256, torch.bfloat16).to(gpu)
    again = calls.record([case]).again("answer_maps")
    answer = calls.record([case])
    found, launch = answer.calls["answer_maps"][0][0][0], answer.again("answer_maps")
    first = copies([found.maps, found.relevance, found.scale])
    differed = torch.zeros(1, dtype=torch.bool, device=gpu)
    for _ in range(REPEATS // 10):
        again()  # of another answer's buffers, so that what lies in the caches changes
        launch()
        for x, y in zip((found.maps, found.relevance, found.scale), first, strict=True):
            differed |= (bits(x) != bits(y)).any()
    assert not differed.item()


def test_two_streams_at_once(gpu: torch.device) -> None:
    streams = [torch.cuda.Stream(gpu), torch.cuda.Stream(gpu)]
    works = [calls.small(gpu), calls.small(gpu)]
    for call in works[1]:
        call.renew(99)
    expected = [[copies(call.run()) for call in work] for work in works]
    differed = [torch.zeros(1, dtype=torch.bool, device=gpu) for _ in streams]
    torch.cuda.synchronize()
    for _ in range(300):
        for index, queue in enumerate(streams):
            with torch.cuda.stream(queue):
                for call, wanted in zip(works[index], expected[index], strict=True):
                    for x, y in zip(call.run(), wanted, strict=True):
                        differed[index] |= (bits(x) != bits(y)).any()
    torch.cuda.synchronize()
    assert not any(flag.item() for flag in differed)


@pytest.mark.parametrize("operator", calls.SMALL)
def test_work_goes_to_the_current_stream(gpu: torch.device, operator: str) -> None:
    call = one(gpu, operator)
    call.renew(5)
    expected = copies(call.run())
    call.renew(6)
    assert not same(call.run(), expected), (
        f"{call.name}: other inputs gave the same results, so this would show nothing"
    )
    side = torch.cuda.Stream(gpu)
    with torch.cuda.stream(side):
        copies(call.run())  # takes this stream's memory
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        # What is launched elsewhere runs while this stream sleeps, on the inputs of before.
        torch.cuda._sleep(HALF_A_SECOND // 5)
        call.renew(5)
        got = copies(call.run())
    side.synchronize()
    assert same(got, expected), call.name


def test_another_device(gpu: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda:1")
    for there, here in zip(calls.small(other), calls.small(gpu), strict=True):
        assert torch.cuda.current_device() == 0
        found = there.run()
        assert all(x.device == other for x in found)
        assert same([x.cpu() for x in found], [x.cpu() for x in here.run()]), there.name
        assert torch.cuda.current_device() == 0


# Graphs.


def captured(run: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    run()  # compiles what is compiled at first use
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


@pytest.mark.parametrize("operator", calls.SMALL)
def test_a_replayed_graph_follows_its_inputs(gpu: torch.device, operator: str) -> None:
    call = one(gpu, operator)
    graph, results = captured(call.run)
    for seed in range(1, 6):
        call.renew(seed)
        graph.replay()
        torch.cuda.synchronize()
        got = copies(results)
        assert same(got, call.run()), f"{call.name}, seed {seed}"


def test_public_scores_can_be_captured_and_refuse_ids_by_nan(gpu: torch.device) -> None:
    hidden, classifier = torch.rand(9, 32, device=gpu), torch.rand(5, 32, device=gpu)
    ids = torch.tensor([1, 4, 2], device=gpu)
    graph, (scores,) = captured(lambda: [tam_fast.token_scores(hidden, classifier, ids)])
    graph.replay()
    assert torch.equal(scores, tam_fast.token_scores(hidden, classifier, ids))
    ids[1] = 5
    graph.replay()
    torch.cuda.synchronize()
    assert scores[1].isnan().all()
    assert not scores[[0, 2]].isnan().any()
    with pytest.raises(ValueError, match="token_ids: expected ids from 0 to 4"):
        tam_fast.token_scores(hidden, classifier, ids)


@pytest.mark.parametrize("operator", calls.SMALL)
def test_replays_allocate_nothing(gpu: torch.device, operator: str) -> None:
    call = one(gpu, operator)
    graph, _ = captured(call.run)
    graph.replay()
    torch.cuda.synchronize()
    free, count = torch.cuda.mem_get_info(gpu)[0], torch.cuda.memory_stats(gpu)["allocation.all.allocated"]
    for _ in range(100):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats(gpu)["allocation.all.allocated"] == count
    assert torch.cuda.mem_get_info(gpu)[0] == free


@pytest.mark.parametrize("operator", calls.SMALL)
def test_launches_take_no_memory_but_torchs(gpu: torch.device, operator: str) -> None:
    call = one(gpu, operator)
    for _ in range(3):
        call.run()
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info(gpu)[0]
    for _ in range(100):
        call.run()
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info(gpu)[0] == free, call.name


# Waiting.


def returns_before_the_device_is_done(run: Callable[[], object]) -> bool:
    """Whether a call comes back while the work before it is still under way."""
    torch.cuda.synchronize()
    torch.cuda._sleep(HALF_A_SECOND)
    before = torch.cuda.Event()
    before.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    still = not before.query()
    torch.cuda.synchronize()
    return still


@pytest.mark.parametrize("operator", calls.SMALL)
def test_operators_wait_for_nothing(gpu: torch.device, operator: str) -> None:
    call = one(gpu, operator)
    call.run()
    assert returns_before_the_device_is_done(call.run), call.name


def test_that_waiting_would_be_seen() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    x = torch.ones(1, device="cuda")

    def wait() -> None:
        torch.cuda.set_sync_debug_mode("default")
        x.item()

    assert not returns_before_the_device_is_done(wait)


def test_the_pipeline_waits_for_nothing_before_its_end(gpu: torch.device) -> None:
    case = large(256, torch.bfloat16, n_t=20).to(gpu)
    for _ in range(3):
        calls.record([case])  # pinned memory for the indices is taken at first, and given back by and by
    assert returns_before_the_device_is_done(lambda: calls.record([case]))


# Launches.


def launches(run: Callable[[], object]) -> list[str]:
    """Names of the kernels that a call launches."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    names = [event.name for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in names if not name.startswith(("Memcpy", "Memset"))]


@pytest.mark.parametrize("count", [1, 5])
def test_launches_of_whole_answers(gpu: torch.device, count: int) -> None:
    cases = calls.some_cases(gpu, count)
    arguments = [case.hidden for case in cases], cases[0].classifier, [case.token_ids for case in cases]
    names = launches(lambda: tam_fast.activation_maps(*arguments, [case.layout for case in cases]))
    others = [name for name in names if "token_scores" not in name]
    assert names
    assert len(names) > len(others), names
    assert len(others) <= 3, names


def test_launches_of_a_streamed_token(gpu: torch.device) -> None:
    step = calls.started_stream(Case([(12, 13)], n_t=9).to(gpu), 8)._context._step
    backend = selection.resident(gpu)
    names = launches(lambda: backend.step_answer(step, 3))
    assert 0 < len(names) <= 3, names


def test_launches_of_operators(gpu: torch.device) -> None:
    maps = [torch.rand(3, 9, 10, device=gpu), torch.rand(2, 5, 5, device=gpu)]
    assert len(launches(lambda: tam_fast.rank_gaussian_filter(maps))) == 1


def test_emulated_launches_of_whole_answers(device: torch.device) -> None:
    module = sys.modules.get("tam_fast._cuda")
    if not getattr(module, "emulated", False):
        pytest.skip("counts launches of the emulated kernels")
    cases = calls.some_cases(device, 5)
    before = module.launches()
    tam_fast.activation_maps(
        [case.hidden for case in cases],
        cases[0].classifier,
        [case.token_ids for case in cases],
        [case.layout for case in cases],
    )
    assert 0 < module.launches() - before <= 4


# Errors and selection, in processes of their own: an error on the device ends its use.


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_of_the_device_is_an_exception(backend: str) -> None:
    code = """
import torch, tam_fast
x = torch.rand(3, 9, 9, device="cuda")
tam_fast.rank_gaussian_filter(x)  # loads the kernel
torch.cuda.synchronize()
torch._assert_async(torch.zeros((), dtype=torch.bool, device="cuda"))
try:
    torch.cuda.synchronize()
except RuntimeError:
    print("broken", flush=True)
try:
    tam_fast.rank_gaussian_filter(x)
except RuntimeError as error:
    print("raised", " ".join(str(error).split()), flush=True)
"""
    done = python(code, TAM_FAST_BACKEND=backend)
    assert "broken" in done.stdout, done.stderr
    assert "raised" in done.stdout, done.stdout + done.stderr


def test_a_launch_that_is_refused_is_an_exception() -> None:
    # A spoilt capture refuses launches, and the device is unharmed. Nothing is allocated, which would be refused too.
    code = """
import torch
from tam_fast import _cuda
x = torch.rand(3, 9, 9, device="cuda")
y = torch.empty_like(x)
item = (x.data_ptr(), y.data_ptr(), _cuda.F32, *x.shape, *x.stride())
def launch():
    _cuda.rank_gaussian_filter([item], 3, False, torch.cuda.current_stream().cuda_stream)
launch()
torch.cuda.synchronize()
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            print("spoilt", flush=True)
        try:
            launch()
        except RuntimeError as error:
            print("raised", " ".join(str(error).split()), flush=True)
except RuntimeError:
    pass
"""
    done = python(code, TAM_FAST_BACKEND="cuda")
    assert "spoilt" in done.stdout, done.stderr
    assert "raised" in done.stdout, done.stdout + done.stderr
    assert "rank_gaussian_filter" in done.stdout.partition("raised")[2]


INFO = "import json, torch, tam_fast; tam_fast.rank_gaussian_filter(torch.rand(2, 5, 5, device='cuda')); "
INFO += "print(json.dumps(tam_fast.backend_info()))"


def test_the_default_is_cuda() -> None:
    done = python(INFO, TAM_FAST_BACKEND="")
    info = json.loads(done.stdout)
    assert info["cuda"]["usable"], info["cuda"]
    assert info["triton"]["usable"], info["triton"]
    assert not info["cuda"]["emulated"]
    assert {operator["cuda"] for operator in info["operators"].values()} == {"cuda"}
    assert {operator["cpu"].partition(" ")[0] for operator in info["operators"].values()} == {"cpu"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_environment_selects(backend: str) -> None:
    done = python(INFO, TAM_FAST_BACKEND=backend)
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)
    assert {operator["cuda"] for operator in info["operators"].values()} == {backend}


def test_the_cpu_serves_tensors_of_the_gpu_if_asked_to() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    x = torch.rand(2, 9, 9)
    got = tam_fast.rank_gaussian_filter(x.cuda(), backend="cpu")
    assert got.is_cuda
    assert torch.equal(got.cpu(), tam_fast.rank_gaussian_filter(x, backend="cpu"))


def test_tensors_of_the_cpu_are_refused() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for backend in BACKENDS:
        with pytest.raises(ValueError, match=f"expected a backend for the given tensors, got '{backend}'"):
            tam_fast.rank_gaussian_filter(torch.rand(2, 9, 9), backend=backend)
