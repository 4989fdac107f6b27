"""Scores against the float64 oracle: relu(F w) for gathered classifier rows."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import tolerances
import torch

import tam_fast
from tam_fast import _C

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def case(s: int, c: int, v: int, t: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(s * 1000 + c)
    hidden = torch.randn(s, c, generator=generator).to(dtype)
    classifier = torch.randn(v, c, generator=generator).to(dtype)
    return hidden, classifier, torch.randint(v, (t,), generator=generator)


def check(got: torch.Tensor, hidden: torch.Tensor, classifier: torch.Tensor, ids: torch.Tensor) -> None:
    f, w = hidden.double().numpy(), classifier.double().numpy()
    expected = oracle.token_scores(f, w, ids.numpy())
    magnitude = np.abs(w[ids.numpy()]) @ np.abs(f).T
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    assert (np.abs(got.numpy() - expected) <= tolerances.SCORES * magnitude + 1e-30).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 4, 2), (17, 48, 60, 9), (33, 129, 7, 31), (65, 64, 200, 65)])
def test_against_the_oracle(path: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    hidden, classifier, ids = case(*shape, dtype)
    check(tam_fast.token_scores(hidden, classifier, ids), hidden, classifier, ids)


def test_realistic_size(isa: str) -> None:
    hidden, classifier, ids = case(300, 1536, 500, 40, torch.bfloat16)
    check(tam_fast.token_scores(hidden, classifier, ids), hidden, classifier, ids)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_mixed_dtypes(isa: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    hidden, classifier, ids = case(9, 40, 12, 7)
    hidden, classifier = hidden.to(dtypes[0]), classifier.to(dtypes[1])
    check(tam_fast.token_scores(hidden, classifier, ids), hidden, classifier, ids)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(isa: str, dtype: torch.dtype) -> None:
    hidden, classifier, ids = case(21, 34, 50, 11, dtype)
    expected = tam_fast.token_scores(hidden, classifier, ids)
    views = (
        (hidden.t().contiguous().t(), classifier.t().contiguous().t()),
        (torch.stack([hidden, hidden], -1)[..., 0], torch.cat([classifier, classifier], 1)[:, :34]),
    )
    for states, weight in views:
        assert torch.equal(tam_fast.token_scores(states, weight, ids), expected)


@pytest.mark.parametrize("channels", [100, 1100])
def test_bits_do_not_depend_on_batch_threads_or_instruction_set(threads: None, channels: int) -> None:
    hidden, classifier, ids = case(67, channels, 80, 37, torch.bfloat16)
    results = []
    for name in _C.available_isas():
        _C.set_isa(name)
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(tam_fast.token_scores(hidden, classifier, ids))
            results.append(torch.cat([tam_fast.token_scores(hidden, classifier, ids[i : i + 1]) for i in range(37)]))
            results.append(torch.cat([tam_fast.token_scores(hidden[i : i + 1], classifier, ids) for i in range(67)], 1))
            results.append(torch.cat([tam_fast.token_scores(hidden[:30], classifier, ids), results[0][:, 30:]], 1))
            assert _C.last_isa() == name
        finally:
            _C.set_isa(None)
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_list(path: str) -> None:
    hidden, classifier, ids = case(12, 20, 30, 8)
    many = tam_fast.token_scores([hidden, hidden[:3], hidden[:0]], classifier, [ids, ids[:2], ids])
    assert torch.equal(many[0], tam_fast.token_scores(hidden, classifier, ids))
    assert torch.equal(many[1], many[0][:2, :3])
    assert many[2].shape == (8, 0)
    assert tam_fast.token_scores([], classifier, []) == []


def test_numpy_lists_and_empty(path: str) -> None:
    hidden, classifier, ids = case(6, 8, 9, 3)
    got = tam_fast.token_scores(hidden.numpy(), classifier.numpy(), ids.tolist())
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, tam_fast.token_scores(hidden, classifier, ids).numpy())
    assert tam_fast.token_scores(hidden, classifier, []).shape == (0, 6)


def test_only_rows_of_the_tokens_are_read(path: str) -> None:
    hidden, classifier, ids = case(4, 8, 9, 3)
    ids = torch.tensor([1, 5])
    poisoned = torch.full_like(classifier, float("nan"))
    poisoned[ids] = classifier[ids]
    assert torch.equal(tam_fast.token_scores(hidden, poisoned, ids), tam_fast.token_scores(hidden, classifier, ids))


def test_nan_is_not_rectified_away(path: str) -> None:
    hidden, classifier, ids = case(4, 8, 9, 3)
    hidden[2, 3] = float("nan")
    got = tam_fast.token_scores(hidden, classifier, ids)
    assert torch.isnan(got[:, 2]).all()
    assert not torch.isnan(got[:, [0, 1, 3]]).any()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"hidden": torch.zeros(3)}, ValueError, ["hidden", "(S, C)", "(3,)"]),
        ({"hidden": torch.zeros(3, 4)}, ValueError, ["hidden", "C = 8", "(3, 4)"]),
        ({"hidden": torch.zeros(3, 8, dtype=torch.int64)}, TypeError, ["hidden", "int64"]),
        ({"classifier": torch.zeros(9)}, ValueError, ["classifier", "(V, C)"]),
        ({"token_ids": [9]}, ValueError, ["token_ids", "0 to 8", "9"]),
        ({"token_ids": [-1]}, ValueError, ["token_ids", "-1"]),
        ({"token_ids": [0.5]}, TypeError, ["token_ids", "integers", "float"]),
        ({"token_ids": torch.zeros(1, 1, dtype=torch.int64)}, ValueError, ["token_ids", "(1, 1)"]),
        ({"token_ids": torch.tensor([True])}, TypeError, ["token_ids", "bool"]),
        ({"hidden": [torch.zeros(3, 8)], "token_ids": torch.tensor([1])}, TypeError, ["token_ids", "list"]),
        ({"hidden": [torch.zeros(3, 8)], "token_ids": []}, ValueError, ["token_ids", "1 items", "0"]),
    ],
)
def test_errors(change: dict[str, object], kind: type[Exception], words: list[str]) -> None:
    arguments: dict[str, object] = {"hidden": torch.zeros(3, 8), "classifier": torch.zeros(9, 8), "token_ids": [1]}
    with pytest.raises(kind) as caught:
        tam_fast.token_scores(**(arguments | change))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [16, 100, 1104])
def test_one_or_two_tokens_of_halves_have_the_bits_of_many(isa: str, dtype: torch.dtype, channels: int) -> None:
    # Whole groups of channels are read as they are then, without a float32 copy.
    hidden, classifier, ids = case(51, channels, 40, 7, dtype)
    views = {"contiguous": hidden, "rows apart": torch.cat([hidden, hidden], 1)[:, :channels], "odd": hidden[1::2]}
    for name, states in views.items():
        for weight in (classifier, classifier.float()):
            many = tam_fast.token_scores(states, weight, ids)
            for count in (1, 2):
                few = tam_fast.token_scores(states, weight, ids[:count])
                assert torch.equal(few, many[:count]), (name, count)
