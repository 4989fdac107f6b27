"""The scores of one more token of a stream, from values that lie on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from machines.cuda_calls import Cuda
from machines.cuda_modules import TARGETS
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# float32 sums of 32 lanes, in order within a lane; relative to sum |F_c w_c|.
TOLERANCE = 5e-7


@pytest.fixture(params=TARGETS)
def cuda(request: pytest.FixtureRequest) -> Cuda:
    """The kernels on every device there is, the emulated one included."""
    return Cuda.named(request.param)


class Stream:
    """The device memory of a stream: what a captured graph would keep the addresses of."""

    def __init__(
        self, cuda: Cuda, prompt: Tensor, states: Tensor, classifier: Tensor, positions: Tensor, n_p: int, rows: int
    ) -> None:
        self.cuda, self.n_p = cuda, n_p
        self.prompt, self.states, self.classifier = cuda.put(prompt), cuda.put(states), cuda.put(classifier)
        self.positions = cuda.put(positions)
        self.n = len(positions) - n_p  # visual
        contexts = n_p + len(states)
        self.scores = torch.full((rows, self.n + contexts + 1), -7.0, device=cuda.device)
        self.state = torch.zeros(4, dtype=torch.int64, device=cuda.device)
        self.context_rows = torch.full((contexts,), -9, dtype=torch.int64, device=cuda.device)
        self.context_names = self.context_rows.clone()
        self.target = torch.full((3,), -9, dtype=torch.int64, device=cuda.device)  # row, name, length
        self.flag = torch.zeros(1, dtype=torch.int32, device=cuda.device)
        self.item: tuple[Any, ...] = (
            self._states(self.prompt),
            (self.positions.data_ptr(), len(positions)),
            self._states(self.states),
            self._states(self.classifier),
            self.state.data_ptr(),
            n_p,
            (self.scores.data_ptr(), self.scores.stride(0)),
            (
                self.context_rows.data_ptr(),
                self.context_names.data_ptr(),
                *(self.target[i:].data_ptr() for i in range(3)),
            ),
            self.flag.data_ptr(),
        )

    def _states(self, x: Tensor) -> tuple[int, ...]:
        assert x.stride(1) == 1
        return (x.data_ptr(), self.cuda.dtype(x), *x.shape, x.stride(0))

    def step(self, token: int, row: int, length: int, is_new: bool) -> None:
        self.state.copy_(torch.tensor([token, row, length, int(is_new)]))
        self.cuda.module.step_scores(self.item, self.cuda.stream)
        self.cuda.wait()

    def interference(self) -> Tensor:
        """The interference map of the stream's target, from the very memory that the step wrote."""
        out = torch.full((1, self.n), -7.0, device=self.cuda.device)
        rows, contexts = self.scores.stride(0), len(self.context_rows)
        item = (
            (self.scores.data_ptr(), rows, self.target.data_ptr()),
            (self.scores.data_ptr(), rows, self.context_rows.data_ptr()),
            (self.scores[:, self.n :].data_ptr(), rows, self.target.data_ptr()),
            (self.context_names.data_ptr(), self.target[1:].data_ptr(), self.target[2:].data_ptr()),
            (0, 0, 0, 0, 0),
            (1, contexts, self.n),
            (1, 1, self.n, 0),
            out.data_ptr(),
            (0, self.cuda.module.F32, 0, 0, 0),
        )
        self.cuda.module.interference([item], self.cuda.stream)
        self.cuda.wait()
        return out.cpu()


def case(dtype: torch.dtype, channels: int, *, n: int = 21, n_p: int = 5, capacity: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(channels)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "prompt": randn(n + n_p + 4, channels),
        "states": randn(capacity, channels),
        "classifier": randn(40, channels),
        "positions": torch.randperm(n + n_p + 4, generator=generator)[: n + n_p],
        "n_p": n_p,
        "rows": n_p + capacity,
    }


def expected_row(given: dict[str, Any], token: int, answered: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scores over prompt positions and the first states, and the sizes of their terms."""
    seen = torch.cat([given["prompt"][given["positions"]], given["states"][:answered]]).double().numpy()
    weight = given["classifier"][[token]].double().numpy()
    return oracle.token_scores(seen, weight, [0])[0], (np.abs(weight) @ np.abs(seen).T)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 7, 8, 16, 31, 32, 33, 64, 65, 128, 256, 264, 300, 513, 1024, 1544])
def test_against_the_oracle(cuda: Cuda, dtype: torch.dtype, channels: int) -> None:
    given = case(dtype, channels)
    stream = Stream(cuda, **given)
    stream.step(7, 2, 9, True)
    m = len(given["positions"])
    expected, size = expected_row(given, 7, 4)
    got = stream.scores.cpu().numpy()
    assert (np.abs(got[2, : m + 4] - expected) <= TOLERANCE * size + 1e-30).all()
    assert (got[2, m + 4 :] == -7).all()
    assert (np.delete(got, 2, 0) == -7).all()
    assert stream.flag.item() == 0


def test_rows_that_are_not_aligned(cuda: Cuda) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        given = case(dtype, 520)
        expected, size = expected_row(given, 7, 4)
        for name in ("prompt", "states", "classifier"):
            wide = torch.zeros(len(given[name]), 525, dtype=dtype)
            wide[:, 1:521] = given[name]
            stream = Stream(cuda, **{**given, name: wide[:, 1:521]})
            stream.step(7, 2, 9, True)
            assert (np.abs(stream.scores[2, : len(expected)].cpu().numpy() - expected) <= TOLERANCE * size).all()


def test_mixed_dtypes(cuda: Cuda) -> None:
    given = case(torch.float32, 64)
    given["prompt"], given["classifier"] = given["prompt"].half(), given["classifier"].bfloat16()
    expected, size = expected_row(given, 7, 4)
    stream = Stream(cuda, **given)
    stream.step(7, 2, 9, True)
    assert (np.abs(stream.scores[2, : len(expected)].cpu().numpy() - expected) <= TOLERANCE * size).all()


def test_a_known_row_is_scored_over_new_states_alone(cuda: Cuda) -> None:
    given = case(torch.bfloat16, 64)
    stream = Stream(cuda, **given)
    m = len(given["positions"])
    stream.step(7, 2, 9, False)
    expected, size = expected_row(given, 7, 4)
    got = stream.scores.cpu().numpy()
    assert (got[2, :m] == -7).all()
    assert (np.abs(got[2, m : m + 4] - expected[m:]) <= TOLERANCE * size[m:]).all()
    assert (got[2, m + 4 :] == -7).all()


def test_what_the_step_writes_for_its_successors(cuda: Cuda) -> None:
    given = case(torch.float32, 8)
    stream = Stream(cuda, **given)
    stream.step(7, 3, 5, True)
    assert stream.context_rows.tolist() == [-9] * 5 + [3] + [-9] * 7
    assert torch.equal(stream.context_names, stream.context_rows)
    assert stream.target.tolist() == [3, 3, 5]
    stream.target[1] = -1
    stream.step(9, 4, 6, True)
    assert stream.context_rows.tolist() == [-9] * 5 + [3, 4] + [-9] * 6
    assert stream.target.tolist() == [4, -1, 6]
    # Beyond the capacity nothing is written, before it or after it.
    before = stream.context_rows.clone()
    stream.step(9, 4, 13, False)
    stream.step(9, 4, -1, False)
    assert torch.equal(stream.context_rows, before)
    assert torch.equal(stream.context_names, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_out_of_range_is_nan_and_reads_nothing(cuda: Cuda, dtype: torch.dtype) -> None:
    given = case(dtype, 64)
    m = len(given["positions"])
    for token in (-1, 40, 2**40):
        stream = Stream(cuda, **given)
        stream.step(token, 2, 7, True)
        assert torch.isnan(stream.scores[2, : m + 2]).all()
        assert stream.flag.item() == 1
    given["positions"][[3, 5]] = torch.tensor([-1, 2**41])
    stream = Stream(cuda, **given)
    stream.step(7, 2, 7, True)
    assert torch.isnan(stream.scores[2]).nonzero().flatten().tolist() == [3, 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_flag_tells_of_sums_that_are_not_finite(cuda: Cuda, bad: float, dtype: torch.dtype) -> None:
    given = case(dtype, 300)
    given["states"][6, 17] = bad
    stream = Stream(cuda, **given)
    stream.step(7, 2, 11, True)  # the first six states
    assert stream.flag.item() == 0
    stream.step(7, 2, 12, True)
    assert stream.flag.item() == 1
    got = stream.scores[2, len(given["positions"]) + 6].cpu()
    assert torch.isnan(got) if np.isnan(bad) else got == torch.relu(bad * given["classifier"][7, 17].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_gives_what_the_batch_gives(cuda: Cuda, dtype: torch.dtype) -> None:
    """Token after token with the same addresses: a replayed graph. Then rows, names and maps against one call."""
    given = case(dtype, 136, n=33, n_p=6, capacity=9)
    n, n_p, m = 33, 6, 39
    answer = [11, 4, 11, 30, 4, 4, 25, 11]
    stream = Stream(cuda, **given)
    # The prompt's text comes first: its tokens are rows of their own, with no answer before them.
    prompt_text = [20, 21, 22, 20, 4, 23]
    rows: dict[int, int] = {}
    for length, token in enumerate(prompt_text):
        stream.step(token, rows.setdefault(token, len(rows)), length, True)
    maps = []
    for i, token in enumerate(answer):
        is_new = token not in rows
        stream.step(token, rows.setdefault(token, len(rows)), n_p + i, is_new)
        maps.append((stream.interference(), stream.target.tolist()))

    # Beyond the context the stream's rows are not written; where they are, they are those of token_scores.
    classes = cuda.put(torch.tensor(list(rows)))
    seen = torch.cat([given["prompt"][given["positions"]], given["states"]])
    hidden, weight = cuda.put(seen), cuda.put(given["classifier"])
    batch = torch.zeros(len(rows), len(seen), device=cuda.device)
    cuda.module.token_scores(
        [(cuda.matrix(hidden), (0, len(seen)), (classes.data_ptr(), len(rows)), batch.data_ptr(), len(seen))],
        cuda.matrix(weight),
        0,
        cuda.stream,
    )
    cuda.wait()
    last = {token: i for i, token in enumerate(answer)}
    size = float(seen.float().abs().max() * given["classifier"].float().abs().max()) * seen.shape[1]
    for token, row in rows.items():
        width = m + last.get(token, 0)
        difference = (stream.scores[row, :width] - batch[row, :width]).abs().max()
        assert difference <= 1e-7 * size

    order = torch.tensor([rows[token] for token in (*prompt_text, *answer)])
    assert torch.equal(stream.context_rows[: len(order)].cpu(), order)
    scores = batch.double().cpu()
    for i, (got, target) in enumerate(maps):
        row, length = rows[answer[i]], n_p + i
        assert target == [row, row, length]
        counted = torch.where(order[:length] == row, 0.0, scores[row, n : n + length])
        factor = 2.0 ** -np.floor(np.log2(float(counted.max())))
        expected = factor * counted @ scores[order[:length], :n]
        assert (got - expected).abs().max() <= 2e-6 * expected.max()


def test_same_bits_whatever_the_order_of_threads(cuda: Cuda) -> None:
    given = case(torch.bfloat16, 700)
    results = []
    for seed in range(3):
        cuda.set_seed(seed)
        stream = Stream(cuda, **given)
        stream.step(7, 2, 12, True)
        results.append(stream.scores)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_no_positions_and_no_capacity(cuda: Cuda) -> None:
    given = case(torch.float32, 16, capacity=0)
    stream = Stream(cuda, **given)
    stream.step(7, 2, 4, True)
    expected, size = expected_row(given, 7, 0)
    assert (np.abs(stream.scores[2, : len(expected)].cpu().numpy() - expected) <= TOLERANCE * size).all()
    assert stream.context_rows.tolist() == [-9, -9, -9, -9, 2]
    given = case(torch.float32, 16, n=0, n_p=0)
    stream = Stream(cuda, **given)
    stream.step(7, 2, 3, True)
    expected, size = expected_row(given, 7, 3)
    assert (np.abs(stream.scores[2, :3].cpu().numpy() - expected) <= TOLERANCE * size).all()
    assert stream.target.tolist() == [2, 2, 3]


def test_arguments_are_checked(cuda: Cuda) -> None:
    stream = Stream(cuda, **case(torch.float32, 16))
    for place, value, words in (
        (0, stream._states(stream.prompt[:, :8]), "prompt: channels: expected 16, got 8"),
        (2, stream._states(stream.states[:, :8]), "states: channels: expected 16, got 8"),
        (1, (0, 3), "positions: expected the address"),
        (4, 0, "item: expected the address"),
        (5, -1, "item: expected a size, got -1"),
        (6, (0, 3), "scores: expected the address"),
        (7, (0, 1, 1, 1, 1), "context: expected the address"),
    ):
        item = (*stream.item[:place], value, *stream.item[place + 1 :])
        with pytest.raises(ValueError, match=words):
            cuda.module.step_scores(item, cuda.stream)
