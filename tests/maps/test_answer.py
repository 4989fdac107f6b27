"""activation_maps against the oracle, for one answer and many; what is refused; its operations and its memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from answers import SIZES, Case, check, stream
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import tam_fast
from tam_fast import _C, Grid, Layout
from tam_fast.maps import answer, scores


@pytest.mark.parametrize("compat", [None, "official", "paper"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_the_oracle(path: str, sizes: list[tuple[int, int]], compat: str | None) -> None:
    case = Case(sizes, seed=len(sizes), interleaved=len(sizes) == 2)
    check(case.maps(compat=compat), case.oracle(compat=compat))


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("interference", [True, False])
@pytest.mark.parametrize("compat", [None, "paper"])
def test_options(isa: str, kernel_size: int, interference: bool, compat: str | None) -> None:
    case = Case([(9, 10), (3, 4)])
    options = {"kernel_size": kernel_size, "interference": interference, "compat": compat}
    check(case.maps(**options), case.oracle(**options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(path: str, dtype: torch.dtype) -> None:
    case = Case([(8, 9)], dtype=dtype)
    got = case.maps()
    assert got.maps.dtype == torch.float32
    check(got, case.oracle())


@pytest.mark.parametrize(("n_p", "n_t"), [(0, 1), (0, 5), (1, 1), (3, 1), (40, 90)])
def test_prompt_and_answer_lengths(path: str, n_p: int, n_t: int) -> None:
    case = Case([(5, 6)], n_p=n_p, n_t=n_t, v=50)
    for compat in (None, "official", "paper"):
        got = case.maps(compat=compat)
        assert got.maps.shape == (n_t, 30)
        assert got.relevance.shape == (n_t, n_p + n_t - 1)
        check(got, case.oracle(compat=compat))


def test_fields() -> None:
    case = Case([(6, 7), (2, 3)])
    got = case.maps()
    assert len(got) == 7
    assert got.target_ids.tolist() == case.token_ids[case.answer_start :].tolist()
    assert got.context_ids.tolist() == [*case.token_ids[case.layout.prompt].tolist(), *got.target_ids[:-1].tolist()]
    assert got.layout is case.layout
    assert torch.equal(got.grid(2, 0), got.maps[2, :42].view(6, 7))
    assert torch.equal(got.grid(-1, -1), got.maps[6, 42:].view(2, 3))
    for t, g, words in ((7, 0, "t: expected"), (0, 2, "g: expected")):
        with pytest.raises(IndexError, match=words):
            got.grid(t, g)
    assert torch.equal(got.uint8(), (got.maps * 255).floor().to(torch.uint8))
    assert got.maps.min() >= 0
    assert got.maps.max() <= 1
    for t in range(7):
        assert (got.relevance[t, 5 + t :] == 0).all()


def test_a_token_that_nothing_activates_is_flat(path: str) -> None:
    case = Case([(3, 3)], n_t=3, v=40, n_p=4)
    case.token_ids = torch.arange(len(case.token_ids))
    case.classifier = torch.cat([case.classifier, torch.randn(10, 32)])[: len(case.token_ids)]
    case.classifier = torch.nn.functional.pad(
        case.classifier, (0, 0, 0, len(case.token_ids) - len(case.classifier)), value=0.1
    )
    case.classifier[case.token_ids[case.answer_start + 1]] = 0
    got = case.maps()
    assert got.flat.tolist() == [False, True, False]
    assert (got.maps[1] == 0).all()
    assert (got.relevance[1] == 0).all()
    check(got, case.oracle())


def test_constant_windows_of_the_official_program_are_nan() -> None:
    case = Case([(6, 6)], n_p=3, n_t=2)
    # A state of zeros predicts token 0, whose map is then shown first; on one cell it is higher than elsewhere.
    case.hidden[case.layout.prompt] = 0
    case.hidden[case.layout.visual_positions] = case.classifier[0]
    case.hidden[case.layout.visual_positions[0]] *= 2
    got = case.maps(compat="official")
    expected = case.oracle(compat="official")
    assert np.isnan(expected.maps).any()
    assert np.array_equal(np.isnan(got.maps.numpy()), np.isnan(expected.maps))
    assert (got.uint8()[torch.isnan(got.maps)] == 0).all()
    assert not torch.isnan(case.maps().maps).any()


def test_texts_decide_what_the_same_word_is() -> None:
    case = Case([(5, 5)], n_p=3, n_t=4, v=60)
    ids = case.maps(compat="official")
    names = [f"token {i}" for i in [*ids.context_ids.tolist(), int(ids.target_ids[-1])]]
    assert torch.equal(case.maps(compat="official", texts=names).maps, ids.maps)
    merged = case.maps(compat="official", texts=["same"] * 7)
    assert (merged.scale == 0).all()
    with pytest.warns(UserWarning, match="texts: expected 7 strings"):
        fallen_back = case.maps(compat="official", texts=names[:-1])
    assert torch.equal(fallen_back.maps, ids.maps)
    with pytest.raises(ValueError, match="texts: expected only with"):
        case.maps(texts=names)
    with pytest.raises(TypeError, match="texts: expected a sequence of str"):
        case.maps(compat="official", texts="words")


@pytest.mark.parametrize("compat", [None, "official", "paper"])
def test_many_answers_in_one_call_are_the_answers_alone(isa: str, compat: str | None) -> None:
    cases = [Case(sizes, n_p=2 + i, n_t=3 + 2 * i, seed=i) for i, sizes in enumerate(SIZES)]
    classifier = cases[0].classifier
    together = tam_fast.activation_maps(
        [c.hidden for c in cases], classifier, [c.token_ids for c in cases], [c.layout for c in cases], compat=compat
    )
    assert isinstance(together, list)
    for case, got in zip(cases, together, strict=True):
        case.classifier = classifier
        alone = case.maps(compat=compat)
        for name in ("maps", "relevance", "scale", "flat"):
            # The official program draws NaN where windows are constant.
            assert np.array_equal(getattr(got, name), getattr(alone, name), equal_nan=name == "maps"), name
    assert tam_fast.activation_maps([], classifier, [], []) == []


def test_bits_are_the_same_on_every_path(threads: None) -> None:
    case = Case([(20, 21), (7, 8)], n_p=30, n_t=60, v=40, dtype=torch.bfloat16)
    results = []
    for name in _C.available_isas():
        _C.set_isa(name)
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(case.maps())
            assert _C.last_isa() == name
        finally:
            _C.set_isa(None)
    for got in results[1:]:
        for name in ("maps", "relevance", "scale"):
            assert torch.equal(getattr(got, name), getattr(results[0], name)), name


def test_operators_compose_to_the_fused_step(isa: str) -> None:
    """The public operators, one after another, give what the fused one gives."""
    case = Case([(8, 9)], n_p=4, n_t=6, v=200, c=16)
    case.token_ids = torch.randperm(200)[: len(case.token_ids)]
    got = case.maps()
    ids = torch.cat([got.context_ids, got.target_ids[-1:]])
    scores = tam_fast.token_scores(case.hidden, case.classifier, ids)
    places = torch.cat([case.layout.prompt, case.answer_start - 1 + torch.arange(6)])
    visual = scores[:, case.layout.visual_positions]
    raw = scores[4:, places[:-1]]
    inside = torch.arange(9)[None] < 4 + torch.arange(6)[:, None]
    causal, scale = tam_fast.estimated_causal_inference(visual[4:], visual[:-1], raw * inside)
    assert torch.equal(scale, got.scale)
    for t in range(6):
        together = torch.cat([causal[t], raw[t, : 4 + t]])
        normal = (causal[t] - together.min()) / (together.max() - together.min())
        filtered = tam_fast.rank_gaussian_filter(normal.view(8, 9)).flatten()
        assert (filtered - got.maps[t]).abs().max() <= 2e-7


@pytest.mark.parametrize("compat", [None, "official"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_parts_of_an_answer_are_the_answer(
    monkeypatch: pytest.MonkeyPatch, compat: str | None, interleaved: bool
) -> None:
    """However few relevances are made at a time, and whether the answer is scored with the prompt or on its own."""
    case = Case([(5, 6), (4, 4)], n_p=9, n_t=33, v=25, interleaved=interleaved)
    whole = case.maps(compat=compat)
    for block in (1, 97, 1000):
        for module in (answer, scores):
            monkeypatch.setattr(module, "BLOCK", block)
        parts = case.maps(compat=compat)
        for name in ("maps", "relevance", "scale", "flat"):
            assert np.array_equal(getattr(parts, name), getattr(whole, name), equal_nan=name == "maps"), name


class Watch(TorchDispatchMode):
    """Count torch's operations, the largest tensor that one computes with, and the bytes that are alive together."""

    FREE = (
        "empty",
        "new_empty",
        "lift_fresh",
        "view",
        "slice",
        "select",
        "detach",
        "unsqueeze",
        "as_strided",
        "alias",
        "ones",
    )

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.largest = 0
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        self.operations += 1
        name = str(function).removeprefix("aten.")
        taken = [value for value in torch.utils._pytree.tree_leaves(args) if isinstance(value, torch.Tensor)]
        made = [value for value in torch.utils._pytree.tree_leaves(output) if isinstance(value, torch.Tensor)]
        if not name.startswith(self.FREE):
            self.largest = max(self.largest, *(value.numel() for value in taken + made))
        for value in made:
            storage = value.untyped_storage()
            # Those of numpy's arrays are not torch's.
            if storage._cdata not in {other.untyped_storage()._cdata for other in taken}:
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return output


GRAIN = 32768  # elements from which on torch hands work to its threads


@pytest.mark.parametrize("interleaved", [False, True])
def test_no_work_for_the_threads_of_torch(interleaved: bool) -> None:
    """A second pool, which spins between its jobs, would take the processor from ours."""
    case = Case([(40, 40), (40, 41)], n_p=60, n_t=90, c=64, v=300, interleaved=interleaved)
    with Watch() as watch:
        case.maps()
    assert watch.largest < GRAIN < case.hidden.numel()
    assert watch.operations <= 40
    prefill = case.answer_start
    maps = tam_fast.ActivationMapStream(case.classifier, case.layout, case.token_ids[:prefill])
    with Watch() as watch:
        maps.extend(case.hidden[:prefill])
        maps.append(int(case.token_ids[prefill]))
    assert watch.largest < GRAIN
    with Watch() as watch:
        for t in range(1, 90):
            maps.extend(case.hidden[prefill + t - 1 : prefill + t])
            maps.append(int(case.token_ids[prefill + t]))
    assert watch.largest < GRAIN
    assert watch.operations <= 10 * 89, "a token costs few operations"


def peak(function: Callable[[], object]) -> int:
    """Largest number of bytes that torch's tensors and numpy's arrays take together, at most."""
    tracemalloc.start()
    try:
        with Watch() as watch:
            function()
        return watch.peak + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("interleaved", [False, True])
def test_peak_memory_of_a_long_answer(interleaved: bool) -> None:
    """Beyond maps, relevances and the context's scores there are a few blocks, however long answer and video are."""
    case = Case([(50, 60)] * 2, n_p=20, n_t=900, c=4, v=4000, interleaved=interleaved)
    distinct = len(set(case.token_ids[case.layout.prompt].tolist() + case.token_ids[case.answer_start :].tolist()))
    needed = 4 * (900 * 6000 + 900 * 919 + distinct * case.answer_start)
    case.maps()
    assert peak(case.maps) <= needed + 6 * 4 * scores.BLOCK


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_state_is_named(bad: float) -> None:
    case = Case([(4, 5)])
    for position in (int(case.layout.visual_positions[7]), int(case.layout.prompt[2]), case.answer_start + 1):
        broken = Case([(4, 5)])
        broken.hidden[position, 3] = bad
        with pytest.raises(ValueError, match=f"hidden: expected finite states, got NaN or Inf at position {position}$"):
            broken.maps()
        with pytest.raises(ValueError, match="hidden: expected finite states"):
            stream(broken)
    unread = Case([(4, 5)])
    unread.hidden[0] = bad
    assert torch.equal(unread.maps().maps, case.maps().maps)


def test_a_bad_state_that_no_score_shows_is_named() -> None:
    """Where Inf meets negative weights alone, every score is 0."""
    case = Case([(4, 5)])
    case.classifier[:, 3] = -1
    case.classifier[:, 4] = 1
    for position in (int(case.layout.visual_positions[7]), int(case.layout.prompt[2]), case.answer_start + 1):
        kept = case.hidden[position].clone()
        case.hidden[position, 4] = float("-inf")
        for attempt in (case.maps, lambda: stream(case)):
            with pytest.raises(ValueError, match=f"hidden: .* NaN or Inf at position {position}$"):
                attempt()
        case.hidden[position] = kept
    case.maps()


def test_positions_without_a_score_are_no_error() -> None:
    case = Case([(4, 5)], c=8)
    case.hidden[case.layout.visual_positions] = -case.classifier.abs().amax(0) * 100
    case.classifier.abs_()
    got = case.maps()
    assert torch.isfinite(got.maps).all()
    for t, step in enumerate(stream(case)):
        assert torch.equal(step.map, got.maps[t])


def test_a_bad_classifier_row_is_named() -> None:
    case = Case([(4, 5)])
    token = int(case.token_ids[case.answer_start])
    case.classifier[token, 0] = float("nan")
    with pytest.raises(
        ValueError, match=f"classifier: expected finite scores, got nan for token id {token} at position"
    ):
        case.maps()
    with pytest.raises(ValueError, match=f"got nan for token id {token} at position"):
        stream(case)


def test_huge_finite_states_are_no_error() -> None:
    case = Case([(4, 5)])
    case.hidden *= 2.0**120
    case.classifier *= 2.0**-60
    maps = case.maps().maps
    assert torch.isfinite(maps).all()
    for t, step in enumerate(stream(case)):
        assert torch.equal(step.map, maps[t])


def test_a_score_that_overflows_is_named() -> None:
    case = Case([(4, 5)], n_t=6, v=90, seed=3)
    token, position = int(case.token_ids[-1]), case.answer_start + 2
    assert (case.token_ids == token).sum() == 1
    case.hidden[position] = case.classifier[token] * 2.0**100
    case.classifier[token] *= 2.0**60
    for attempt in (case.maps, lambda: stream(case)):
        with pytest.raises(ValueError, match=f"got inf for token id {token} at position {position} "):
            attempt()


def test_tensors_that_require_grad() -> None:
    case = Case([(4, 5)])
    expected = case.maps()
    case.hidden.requires_grad_()
    case.classifier = torch.nn.Parameter(case.classifier)
    assert torch.equal(case.maps().maps, expected.maps)
    for t, step in enumerate(stream(case)):
        assert torch.equal(step.map, expected.maps[t])
        assert not step.map.requires_grad


def test_negated_views_are_read_as_what_they_are() -> None:
    case = Case([(4, 5)])
    expected = case.maps()
    case.hidden = torch.complex(torch.zeros_like(case.hidden), -case.hidden).conj().imag
    assert case.hidden.is_neg()
    assert torch.equal(case.maps().maps, expected.maps)
    for t, step in enumerate(stream(case)):
        assert torch.equal(step.map, expected.maps[t])


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"token_ids": torch.zeros(4, dtype=torch.int64)}, ValueError, ["token_ids", "S + 1"]),
        ({"layout": "layout"}, TypeError, ["layout", "str"]),
        ({"compat": "exact"}, ValueError, ["compat", "official", "exact"]),
        ({"kernel_size": 4}, ValueError, ["kernel_size", "4"]),
        ({"hidden": torch.zeros(3)}, ValueError, ["hidden", "(S, C)"]),
        ({"hidden": [torch.zeros(3, 4)]}, TypeError, ["token_ids", "list"]),
        ({"layout": Layout([Grid([0], 1, 1)], [], 999)}, ValueError, ["layout", "answer_start", "999"]),
    ],
)
def test_errors(change: dict[str, object], kind: type[Exception], words: list[str]) -> None:
    case = Case([(4, 5)])
    arguments: dict[str, object] = {
        "hidden": case.hidden,
        "classifier": case.classifier,
        "token_ids": case.token_ids,
        "layout": case.layout,
    }
    with pytest.raises(kind) as caught:
        tam_fast.activation_maps(**(arguments | change))
    for word in words:
        assert word in str(caught.value)
