"""The product of gathered hidden states and classifier rows by CUDA kernels, against the float64 oracle."""

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
HALVES = [torch.float16, torch.bfloat16]
# Sums over a stage and then over stages, in float32; tensor cores truncate within a stage. Relative to sum |F_c w_c|.
TOLERANCE = 5e-7
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]


@pytest.fixture(params=TARGETS)
def cuda(request: pytest.FixtureRequest) -> Cuda:
    """The kernels on every device there is, the emulated one included."""
    return Cuda.named(request.param)


def case(s: int, c: int, v: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * s + c + seed)
    return torch.randn(s, c, generator=generator).to(dtype), torch.randn(v, c, generator=generator).to(dtype)


def indices(limit: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(limit, (count,), generator=torch.Generator().manual_seed(seed))


def scores(
    cuda: Cuda,
    hidden: list[Tensor],
    classifier: Tensor,
    classes: list[Tensor],
    positions: list[Tensor | None] | None = None,
    *,
    flag: Tensor | None = None,
    padding: int = 0,
    **plan: Any,
) -> list[Tensor]:
    """Results of one call; rows are `padding` longer than they need be, which must stay as it was."""
    hidden, classifier = [cuda.put(x) for x in hidden], cuda.put(classifier)
    classes = [cuda.put(x) for x in classes]
    places = [None if p is None else cuda.put(p) for p in positions or [None] * len(hidden)]
    counts = [x.shape[0] if p is None else p.shape[0] for x, p in zip(hidden, places, strict=True)]
    out = [
        torch.full((len(u), n + padding), -7.0, dtype=torch.float32, device=cuda.device)
        for u, n in zip(classes, counts, strict=True)
    ]
    flags = None if flag is None else cuda.put(flag)
    items = [
        (
            cuda.matrix(x),
            (0 if p is None else p.data_ptr(), n),
            (u.data_ptr(), len(u)),
            y.data_ptr(),
            y.stride(0),
        )
        for x, p, n, u, y in zip(hidden, places, counts, classes, out, strict=True)
    ]
    cuda.module.token_scores(
        items, cuda.matrix(classifier), 0 if flags is None else flags.data_ptr(), cuda.stream, **plan
    )
    cuda.wait()
    if flag is not None and flags is not None:
        flag.copy_(flags)
    for y, n in zip(out, counts, strict=True):
        assert (y[:, n:] == -7.0).all()
    return [y[:, :n].cpu() for y, n in zip(out, counts, strict=True)]


def check(got: Tensor, hidden: Tensor, classifier: Tensor, classes: Tensor, positions: Tensor | None = None) -> None:
    f = (hidden if positions is None else hidden[positions]).double().numpy()
    w = classifier.double().numpy()
    expected = oracle.token_scores(f, w, classes.numpy())
    magnitude = np.abs(w[classes.numpy()]) @ np.abs(f).T
    assert got.shape == expected.shape
    assert (np.abs(got.numpy() - expected) <= TOLERANCE * magnitude + 1e-30).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("i", range(len(SIZES)))
def test_against_the_oracle(cuda: Cuda, dtype: torch.dtype, i: int) -> None:
    u, p, c = SIZES[i], SIZES[(i + 4) % len(SIZES)], SIZES[(2 * i + 7) % len(SIZES)]
    hidden, classifier = case(p + 3, c, 70, dtype)
    classes, positions = indices(70, u), indices(p + 3, p, 1)
    for places in (positions, None):
        (got,) = scores(cuda, [hidden], classifier, [classes], [places], padding=3)
        check(got, hidden, classifier, classes, places)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [64, 128, 200, 256, 896])
def test_many_channels_and_several_tiles(cuda: Cuda, dtype: torch.dtype, channels: int) -> None:
    hidden, classifier = case(70, channels, 90, dtype)
    classes, positions = indices(90, 67), indices(70, 66, 1)
    check(scores(cuda, [hidden], classifier, [classes], [positions])[0], hidden, classifier, classes, positions)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(1, 1, 8), (129, 130, 72), (64, 256, 200), (128, 65, 64), (300, 20, 16)])
def test_large_tiles(cuda: Cuda, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    u, p, c = shape
    hidden, classifier = case(p, c, 50, dtype)
    classes = indices(50, u)
    check(scores(cuda, [hidden], classifier, [classes], tile=128)[0], hidden, classifier, classes)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("splits", [2, 3, 16])
def test_blocks_that_share_a_tile(cuda: Cuda, dtype: torch.dtype, splits: int) -> None:
    hidden, classifier = case(66, 1104, 90, dtype)
    classes = indices(90, 65)
    memory = torch.zeros(cuda.module.TOKEN_SCORES_WORKSPACE_BYTES // 8, dtype=torch.int64, device=cuda.device)
    plan = {"workspace": memory.data_ptr(), "workspace_bytes": 8 * memory.numel(), "splits": splits}
    for tile in (64, 128)[: 1 + (dtype != torch.float32)]:
        results = []
        for _ in range(3):  # the workspace must be fit for use again
            (got,) = scores(cuda, [hidden], classifier, [classes], tile=tile, **plan)
            check(got, hidden, classifier, classes)
            results.append(got)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
    # More blocks than there are channels for: some sums are empty.
    (got,) = scores(cuda, [hidden[:, :8]], classifier[:, :8], [classes], tile=64, **plan)
    check(got, hidden[:, :8], classifier[:, :8], classes)


def test_a_workspace_serves_where_blocks_are_few(cuda: Cuda) -> None:
    """Left to itself the launcher splits such a product: another order of summation shows it."""
    hidden, classifier = case(20, 4096, 40, torch.bfloat16)
    classes = indices(40, 10)
    memory = torch.zeros(cuda.module.TOKEN_SCORES_WORKSPACE_BYTES // 8, dtype=torch.int64, device=cuda.device)
    (alone,) = scores(cuda, [hidden], classifier, [classes])
    (shared,) = scores(
        cuda, [hidden], classifier, [classes], workspace=memory.data_ptr(), workspace_bytes=8 * memory.numel()
    )
    (small,) = scores(cuda, [hidden], classifier, [classes], workspace=memory.data_ptr(), workspace_bytes=20000)
    check(alone, hidden, classifier, classes)
    check(shared, hidden, classifier, classes)
    assert torch.equal(small, alone)
    assert not torch.equal(shared, alone)


@pytest.mark.parametrize(
    "plan", [{"tile": 96}, {"tile": 64, "splits": 2}, {"tile": 64, "splits": 0}, {"tile": 128, "splits": 17}]
)
def test_a_plan_that_cannot_be_met_is_an_error(cuda: Cuda, plan: dict[str, int]) -> None:
    hidden, classifier = case(20, 64, 40, torch.bfloat16)
    with pytest.raises(RuntimeError, match="token_scores: "):
        scores(cuda, [hidden], classifier, [indices(40, 10)], **plan)
    if plan["tile"] == 128:
        with pytest.raises(RuntimeError, match="token_scores: "):
            scores(cuda, [hidden.float()], classifier.float(), [indices(40, 10)], tile=128)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_misaligned_rows(cuda: Cuda, dtype: torch.dtype) -> None:
    hidden, classifier = case(21, 40, 50, dtype)
    classes, positions = indices(50, 11), indices(21, 30, 1)
    (expected,) = scores(cuda, [hidden], classifier, [classes], [positions])
    check(expected, hidden, classifier, classes, positions)
    wide = torch.zeros(21, 49, dtype=dtype)
    for offset in (0, 1, 8):  # aligned or not, each with rows that are not
        wide[:, offset : offset + 40] = hidden
        (got,) = scores(cuda, [wide[:, offset : offset + 40]], classifier, [classes], [positions])
        assert torch.equal(got, expected)
    spread = torch.stack([hidden, hidden + 1], -1)[..., 0]
    rotated = classifier.t().contiguous().t()
    assert torch.equal(scores(cuda, [spread], rotated, [classes], [positions])[0], expected)
    twice = torch.stack([classifier, classifier + 1])
    assert torch.equal(scores(cuda, [hidden], twice[0], [classes], [positions])[0], expected)


@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.bfloat16)],
)
def test_mixed_dtypes(cuda: Cuda, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    hidden, classifier = case(9, 40, 12, torch.float32)
    hidden, classifier = hidden.to(dtypes[0]), classifier.to(dtypes[1])
    classes = indices(12, 7)
    check(scores(cuda, [hidden], classifier, [classes])[0], hidden, classifier, classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_out_of_range_is_nan_and_reads_nothing(cuda: Cuda, dtype: torch.dtype) -> None:
    hidden, classifier = case(10, 24, 12, dtype)
    classes = torch.tensor([3, -1, 3, 12, 2**40, 0, 11])
    positions = torch.tensor([0, 10, 9, -5, 4, 4, -(2**50)])
    flag = torch.zeros(1, dtype=torch.int32)
    (got,) = scores(cuda, [hidden], classifier, [classes], [positions], flag=flag)
    known = ((classes >= 0) & (classes < 12))[:, None] & ((positions >= 0) & (positions < 10))[None]
    assert torch.equal(torch.isnan(got), ~known)
    (clean,) = scores(
        cuda,
        [hidden],
        classifier,
        [classes.clamp(0, 11)],
        [positions.clamp(0, 9)],
        flag=torch.zeros(1, dtype=torch.int32),
    )
    assert torch.equal(got[known], clean[known])
    assert flag.item() == 1
    (nothing,) = scores(cuda, [hidden[:0]], classifier, [classes], [positions])
    assert torch.isnan(nothing).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_flag_tells_of_sums_that_are_not_finite(cuda: Cuda, dtype: torch.dtype, bad: float) -> None:
    hidden, classifier = case(40, 30, 12, dtype)
    classes = indices(12, 9)
    flag = torch.zeros(1, dtype=torch.int32)
    scores(cuda, [hidden], classifier, [classes], flag=flag)
    assert flag.item() == 0
    hidden[37, 5] = bad
    (got,) = scores(cuda, [hidden], classifier, [classes], flag=flag)
    assert flag.item() == 1
    if np.isnan(bad):
        assert torch.isnan(got[:, 37]).all()
    else:
        assert torch.equal(got[:, 37], torch.relu(bad * classifier[classes, 5].float()))
    assert torch.isfinite(got[:, :37]).all()
    scores(cuda, [hidden], classifier, [classes], [torch.arange(30)], flag=flag)
    assert flag.item() == 1, "the flag is set, never cleared"


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_range(cuda: Cuda, scale: float) -> None:
    hidden, classifier = case(9, 40, 12, torch.float32)
    classes = indices(12, 7)
    for f, w in ((scale, scale), (scale, 1.0), (scale, 1 / scale)):
        x, y = hidden * f, classifier * w
        check(scores(cuda, [x], y, [classes])[0], x, y, classes)


@pytest.mark.parametrize("count", [2, 8, 9, 64, 65, 70])
def test_a_ragged_list_gives_what_each_gives_alone(cuda: Cuda, count: int) -> None:
    _, classifier = case(1, 24, 30, torch.bfloat16)
    hidden = [case(1 + 7 * i % 20, 24, 1, torch.bfloat16 if i % 5 else torch.float32, i)[0] for i in range(count)]
    hidden[1] = hidden[1][:0]
    classes = [indices(30, i * 5 % 13, i) for i in range(count)]
    together = scores(cuda, hidden, classifier, classes)
    for x, u, got in zip(hidden, classes, together, strict=True):
        assert got.shape == (len(u), len(x))
        assert torch.equal(got, scores(cuda, [x], classifier, [u])[0])
        check(got, x, classifier, u)
    assert scores(cuda, [], classifier, []) == []


def test_no_channels(cuda: Cuda) -> None:
    (got,) = scores(cuda, [torch.zeros(5, 0)], torch.zeros(4, 0), [torch.tensor([1, 2, 4])])
    assert torch.equal(got[:2], torch.zeros(2, 5))
    assert torch.isnan(got[2]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_whatever_the_order_of_threads(cuda: Cuda, dtype: torch.dtype) -> None:
    hidden, classifier = case(70, 330, 40, dtype)
    classes = indices(40, 70)
    memory = torch.zeros(cuda.module.TOKEN_SCORES_WORKSPACE_BYTES // 8, dtype=torch.int64, device=cuda.device)
    plan = {"workspace": memory.data_ptr(), "workspace_bytes": 8 * memory.numel(), "tile": 64, "splits": 3}
    results = []
    for seed in range(3):
        cuda.set_seed(seed)
        results.append(
            (scores(cuda, [hidden], classifier, [classes])[0], scores(cuda, [hidden], classifier, [classes], **plan)[0])
        )
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])


def test_arguments_are_checked(cuda: Cuda) -> None:
    hidden, classifier = case(4, 8, 5, torch.float32)
    x, w, u, y = (cuda.put(v) for v in (hidden, classifier, indices(5, 3), torch.zeros(3, 4)))
    item = (cuda.matrix(x), (0, 4), (u.data_ptr(), 3), y.data_ptr(), 4)
    for change, words in (
        ((cuda.matrix(x[:, :6]), *item[1:]), "hidden: channels: expected 8, got 6"),
        ((*item[:2], (0, 3), *item[3:]), "classes: expected the address"),
        ((*item[:3], 0, 4), "items: expected the address"),
        (item[:4], "items: expected 5 fields, got 4"),
        ((*item[:1], (0, -1), *item[2:]), "positions: expected a size, got -1"),
    ):
        with pytest.raises(ValueError, match=words):
            cuda.module.token_scores([change], cuda.matrix(w), 0, cuda.stream)
    with pytest.raises(ValueError, match="workspace: expected an address that is a multiple of 16"):
        cuda.module.token_scores([item], cuda.matrix(w), 0, cuda.stream, workspace=8, workspace_bytes=8)
