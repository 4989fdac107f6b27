"""The Triton kernels compiled, and launched by Triton's JIT, on the PTX machine. Collected by test_triton_ptx.py."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import answers
import numpy as np
import oracle
import pytest
import tolerances
import torch
from answers import Case, check
from backends import triton_cases as cases
from backends.triton_cases import *  # noqa: F403
from machines import ptx, triton_on_ptx
from places import ROOT

import tam_fast
from tam_fast.backends import arguments, selection
from tam_fast.backends import triton as backend
from tam_fast.backends.triton import launch, operands
from tam_fast.backends.triton.kernels import common

# Last, so that an installed tam_fast goes before the checkout's.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from bench.gpu import calls

machine = triton_on_ptx.install()
cases.DEVICE = torch.device("cpu")
del test_tensors_of_another_device_are_refused  # noqa: F821 (here they are served)
del test_runs_repeat_bit_for_bit  # noqa: F821 (here they do, whatever the kernels)
del test_answers_as_uint8  # noqa: F821 (here for fewer windows)
del test_tune  # noqa: F821 (what it measures here, it measures slowly)


@pytest.fixture(autouse=True)
def on_the_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve CPU tensors by compiled kernels, which may touch no tensor of another test."""
    assert not backend.INTERPRETED
    monkeypatch.setattr(selection, "_interpreted", lambda: True)
    monkeypatch.setattr(launch, "unavailable", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: divmod(triton_on_ptx.ARCHITECTURE, 10))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    arguments._grid_table.cache_clear()
    with machine.tensors():
        yield


def shifted(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, contiguous, at an address that is a multiple of their size only."""
    moved = x.new_empty(x.numel() + 1)[1:].view(x.shape)
    assert moved.data_ptr() % 16 == x.element_size()
    return moved.copy_(x)


# ------------------------------------------------------------------------------------------------------------ launching


def test_one_compilation_serves_every_size_and_address() -> None:
    maps, states, classifier = cases.dense(1, 1, 1), cases.dense(16, 16), cases.dense(16, 16, seed=1)
    backend.rank_gaussian_filter([maps], 1)
    backend.token_scores([states], classifier, [torch.tensor([1])])
    loaded, launched = machine.utils.loaded.copy(), machine.launches.copy()
    backend.rank_gaussian_filter([maps.expand(16, 1, 1), shifted(cases.dense(2, 3, 16))], 1)
    for _ in range(2):
        backend.token_scores([cases.dense(3, 32)], cases.dense(1, 32), [torch.tensor([0, 0])])
    assert machine.utils.loaded == loaded
    assert machine.launches - launched == {"rank_gaussian_filter_kernel": 1, "token_scores_kernel": 2}


def test_a_false_promise_of_alignment_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, classifier, ids = cases.product(17, 48, 60, 9, torch.bfloat16)
    monkeypatch.setattr(operands, "aligned", lambda *operands: True)
    with pytest.raises(ptx.Fault, match=r"token_scores_kernel.*multiple of 16"):
        backend.token_scores([shifted(hidden)], classifier, [ids])


def test_operators_give_what_the_cpu_gives() -> None:
    with tam_fast.use_backend("triton"):
        operators = calls.small(cases.DEVICE)[: calls.SMALL.index("answer_scores")]
        found = [call.run() for call in operators]
    with tam_fast.use_backend("cpu"):
        for call, results in zip(operators, found, strict=True):
            for x, y in zip(results, call.run(), strict=True):
                assert (x.double() - y.double()).abs().max() <= tolerances.DEVICE * y.double().abs().max(), call.name


# ------------------------------------------------------------------------------------------------ rank_gaussian_filter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
def test_filter_at_any_address(kernel_size: int, dtype: torch.dtype) -> None:
    maps = cases.dense(1, 6, 3).to(dtype)
    allowed = {torch.float16: tolerances.FILTER_FLOAT16, torch.bfloat16: tolerances.FILTER_BFLOAT16}
    got = cases.filtered(shifted(maps), kernel_size)
    assert cases.filter_error(got, maps, kernel_size) <= allowed.get(dtype, tolerances.FILTER_DENSE)


# --------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("shape", [(65, 64, 20, 33), (21, 48, 9, 5), (70, 200, 7, 300)], ids=str)
def test_scores_by_tf32(shape: tuple[int, int, int, int]) -> None:
    hidden, classifier, ids = cases.product(*shape)
    torch.set_float32_matmul_precision("high")
    try:
        got = backend.token_scores([hidden], classifier, [ids])[0]
    finally:
        torch.set_float32_matmul_precision("highest")
    f, w = cases.host(hidden), cases.host(classifier)[ids.numpy()]
    error = np.abs(cases.host(got) - oracle.token_scores(f, w, np.arange(len(w))))
    # Each factor is cut to 11 bits.
    assert (error <= 2.0**-9 * (np.abs(w) @ np.abs(f).T)).all()
    assert error.max() > 1e-5, "that was float32"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_scores_at_any_address(dtype: torch.dtype) -> None:
    hidden, classifier, ids = cases.product(17, 48, 60, 9, dtype)
    for states, weight in ((shifted(hidden), classifier), (hidden, shifted(classifier)), (hidden, classifier)):
        got = backend.token_scores([states], weight, [shifted(ids)])[0]
        cases.check_scores(got, hidden, classifier, ids)


def test_scores_of_a_long_answer() -> None:
    hidden, classifier, ids = cases.product(2070, 80, 150, 140, torch.bfloat16)
    before = machine.launches.copy()
    got = backend.token_scores([hidden], classifier, [ids])[0]
    cases.check_scores(got, hidden, classifier, ids)
    assert machine.launches - before == {"token_scores_kernel": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_of_many_channels(dtype: torch.dtype) -> None:
    # Tensor cores truncate their sums: over all channels those would be off by five times as much.
    hidden, classifier, ids = cases.product(16, 4096, 8, 8, dtype)
    got, expected = backend.token_scores([hidden], classifier, [ids])[0], oracle.token_scores
    wanted = expected(cases.host(hidden), cases.host(classifier), ids.numpy())
    assert np.abs(cases.host(got) - wanted).max() <= tolerances.DEVICE * wanted.max()


# ------------------------------------------------------------------------------------------------------- interference


@pytest.mark.parametrize("shape", [(3, 2, 5), (4, 130, 70), (33, 65, 100)], ids=str)
def test_inference_at_any_address(shape: tuple[int, int, int]) -> None:
    inputs = cases.inference_case(*shape)
    cases.check_inference(cases.inferred(*(shifted(x) for x in inputs)), inputs)


# -------------------------------------------------------------------------------------------------------- whole answers


def compare(got: tam_fast.TokenActivationMaps, expected: tam_fast.TokenActivationMaps) -> None:
    assert (got.maps - expected.maps).abs().max() <= tolerances.DEVICE
    assert torch.allclose(got.relevance, expected.relevance, rtol=0, atol=tolerances.DEVICE)
    assert torch.allclose(got.scale, expected.scale, rtol=3e-6, atol=1e-7)
    assert torch.equal(got.flat, expected.flat)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_activation_maps_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    case = Case([(2, 2), (7, 5)], n_p=6, n_t=7, c=64, v=9, dtype=dtype)
    got = case.maps(backend="triton")
    check(got, case.oracle())
    compare(got, case.maps(backend="cpu"))


def test_activation_maps_of_a_batch() -> None:
    batch = [Case([(6, 7)], seed=1), Case([(3, 3)], n_p=0, n_t=2, seed=2), Case([(1, 1), (5, 2)], n_t=20, seed=3)]
    inputs = (
        [case.hidden for case in batch],
        batch[0].classifier,
        [case.token_ids for case in batch],
        [case.layout for case in batch],
    )
    on_cpu = tam_fast.activation_maps(*inputs, backend="cpu")
    for got, expected in zip(tam_fast.activation_maps(*inputs, backend="triton"), on_cpu, strict=True):
        compare(got, expected)


@pytest.mark.parametrize("kernel_size", [3, 9])
def test_maps_as_uint8(kernel_size: int) -> None:
    cases.test_answers_as_uint8(kernel_size)


@pytest.mark.parametrize("options", [{"kernel_size": 1}, {"kernel_size": 5}, {"compat": "official"}], ids=str)
def test_options_of_activation_maps(options: dict[str, Any]) -> None:
    case = Case([(5, 4)], n_t=4)
    check(case.maps(backend="triton", **options), case.oracle(**options))


def test_stream_of_maps() -> None:
    case = Case([(5, 4)], n_t=4)
    expected = case.maps(backend="cpu")
    with tam_fast.use_backend("triton"):
        for t, step in enumerate(answers.stream(case, [5, 3, case.answer_start - 8])):
            assert (step.map - expected.maps[t]).abs().max() <= tolerances.DEVICE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_at_any_address(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "Case", functools.partial(Case, c=33))
    cases.test_context_maps_made_from_states(5, 7, dtype)
    cases.test_a_stream_is_the_answer([(2, 2), (5, 3)], 2, 3, dtype, True)


# --------------------------------------------------------------------------------------------------------- completeness


def test_every_kernel_was_launched() -> None:
    """Last: by the tests above."""
    assert set(machine.launches) == set(common.KERNELS)
