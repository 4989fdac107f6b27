"""Whole answers and streams on the backends whose tensors stay on a device, against the oracle and the CPU's maps."""

from __future__ import annotations

from pathlib import Path

import conftest_models
import numpy as np
import pytest
import tolerances
import torch
from answers import Case, check, stream

import tam_fast
from tam_fast.backends import arguments, selection

SIZES = [[(6, 7)], [(1, 1)], [(2, 2), (5, 3)], [(4, 4), (4, 4)], [(17, 16)]]


def compare(got: tam_fast.TokenActivationMaps, expected: tam_fast.TokenActivationMaps) -> None:
    """Within what a device may differ by from the CPU."""
    got = got.to("cpu")
    maps, wanted = got.maps.numpy(), expected.maps.numpy()
    assert np.array_equal(np.isnan(maps), np.isnan(wanted))
    assert np.nan_to_num(np.abs(maps - wanted)).max() <= tolerances.DEVICE
    assert torch.allclose(got.relevance, expected.relevance, rtol=0, atol=tolerances.DEVICE)
    assert torch.allclose(got.scale, expected.scale, rtol=3e-6, atol=1e-7)
    assert torch.equal(got.flat, expected.flat)
    assert torch.equal(got.context_ids, expected.context_ids)
    assert torch.equal(got.target_ids, expected.target_ids)


def test_the_backend_under_test_serves(device: torch.device) -> None:
    assert selection.resident(device) is not None


@pytest.mark.parametrize("compat", [None, "official", "paper"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_the_oracle(device: torch.device, sizes: list[tuple[int, int]], compat: str | None) -> None:
    case = Case(sizes, seed=len(sizes), interleaved=len(sizes) == 2)
    expected, on_cpu = case.oracle(compat=compat), case.maps(compat=compat, backend="cpu")
    got = case.to(device).maps(compat=compat)
    assert got.maps.device == device
    check(got, expected)
    compare(got, on_cpu)


@pytest.mark.parametrize(("kernel_size", "sizes"), [(1, [(9, 10), (3, 4)]), (5, [(9, 10), (3, 4)]), (9, [(4, 3)])])
@pytest.mark.parametrize("interference", [True, False])
def test_options(device: torch.device, kernel_size: int, sizes: list[tuple[int, int]], interference: bool) -> None:
    case = Case(sizes, n_t=4)
    options = {"kernel_size": kernel_size, "interference": interference}
    expected = case.oracle(**options)
    check(case.to(device).maps(**options), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_states(device: torch.device, dtype: torch.dtype) -> None:
    case = Case([(8, 9)], dtype=dtype)
    expected = case.oracle()
    check(case.to(device).maps(), expected)


def test_uint8_is_the_floor_of_255_times_the_map(device: torch.device) -> None:
    case = Case([(9, 10)], n_t=9)
    for compat in (None, "official", "paper"):
        expected = case.maps(compat=compat, backend="cpu").uint8()
        got = case.to(device).maps(compat=compat, dtype=torch.uint8).maps.cpu()
        case.to("cpu")
        assert got.dtype == torch.uint8
        difference = (got.int() - expected.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() <= 2e-3  # a few hundred pixels: one of them may lie on a step


@pytest.mark.parametrize(("n_p", "n_t"), [(0, 1), (0, 5), (1, 1), (40, 70)])
def test_prompt_and_answer_lengths(device: torch.device, n_p: int, n_t: int) -> None:
    case = Case([(5, 6)], n_p=n_p, n_t=n_t, v=50)
    expected = case.oracle()
    got = case.to(device).maps()
    assert got.maps.shape == (n_t, 30)
    assert got.relevance.shape == (n_t, n_p + n_t - 1)
    check(got, expected)


def test_many_answers_in_one_call(device: torch.device) -> None:
    cases = [Case([(6, 7)], n_t=3), Case([(2, 2), (5, 3)], n_p=0, seed=1), Case([(8, 9)], n_t=12, seed=2)]
    for case in cases:
        case.classifier = cases[0].classifier
    alone = [case.to(device).maps() for case in cases]
    together = tam_fast.activation_maps(
        [case.hidden for case in cases],
        cases[0].classifier,
        [case.token_ids for case in cases],
        [case.layout for case in cases],
    )
    for got, expected in zip(together, alone, strict=True):
        # How a product is divided among blocks may depend on the others.
        compare(got, expected.to("cpu"))


def test_a_result_repeats_bit_for_bit(device: torch.device) -> None:
    case = Case([(17, 16)], n_t=9).to(device)
    first = case.maps()
    for _ in range(3):
        again = case.maps()
        assert torch.equal(again.maps, first.maps)
        assert torch.equal(again.scale, first.scale)


def test_defaults_of_torch_are_no_matter(device: torch.device) -> None:
    case = Case([(4, 5)], n_t=3).to(device)
    for compat in (None, "official", "paper"):
        expected = case.maps(compat=compat)
        with torch.device("meta"):
            got = case.maps(compat=compat)
        assert torch.equal(got.maps, expected.maps)
        assert torch.equal(got.relevance, expected.relevance)
    steps = stream(case)
    with torch.device("meta"):
        for got, expected in zip(stream(case), steps, strict=True):
            assert torch.equal(got.map, expected.map)


def test_a_table_of_grids_outlives_the_cache_once_a_graph_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "_captured", [])
    sizes = [(2, 2), (5, 3)]
    table = arguments.grid_table(sizes, torch.device("cpu"))
    assert table.tolist() == [[2, 2, 0], [5, 3, 4]]
    assert arguments.grid_table(sizes, torch.device("cpu")) is table
    assert not arguments._captured
    monkeypatch.setattr(arguments, "_grid_table", lambda sizes, device: table)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for _ in range(2):
        arguments.grid_table(sizes, torch.device("cuda:0"))
    assert len(arguments._captured) == 1
    assert arguments._captured[0] is table


def test_a_token_that_nothing_activates_is_flat(device: torch.device) -> None:
    case = Case([(4, 5)], n_p=2, n_t=3)
    case.hidden = -case.hidden.abs()
    case.classifier = case.classifier.abs()
    got = case.to(device).maps().to("cpu")
    assert got.flat.all()
    assert not got.maps.any()
    assert not got.relevance.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_state_is_named(device: torch.device, bad: float) -> None:
    case = Case([(4, 5)]).to(device)
    case.hidden[7, 3] = bad
    with pytest.raises(ValueError, match="hidden: expected finite states, got NaN or Inf at position 7"):
        case.maps()
    with pytest.raises(ValueError, match="hidden: expected finite states, got NaN or Inf at position 7"):
        stream(case)
    # Template tokens before the first grid are nobody's business.
    case = Case([(4, 5)]).to(device)
    expected = case.maps()
    case.hidden[1, 3] = bad
    assert torch.equal(case.maps().maps, expected.maps)


def test_a_bad_state_of_the_answer_is_named(device: torch.device) -> None:
    case = Case([(4, 5)], n_t=6).to(device)
    position = case.answer_start + 2
    case.hidden[position, 0] = float("nan")
    message = f"hidden: expected finite states, got NaN or Inf at position {position}"
    with pytest.raises(ValueError, match=message):
        case.maps()
    with pytest.raises(ValueError, match=message):
        stream(case)


def test_a_bad_classifier_row_is_named(device: torch.device) -> None:
    case = Case([(4, 5)]).to(device)
    token = int(case.token_ids[-1])
    case.classifier[token, 2] = float("nan")
    with pytest.raises(ValueError, match=f"classifier: expected finite scores, got nan for token id {token}"):
        case.maps()


@pytest.mark.parametrize(
    ("sizes", "options"),
    [([(6, 7)], {}), ([(2, 2), (5, 3)], {"kernel_size": 5}), ([(4, 4)], {"interference": False})],
    ids=str,
)
def test_a_stream_gives_the_maps_of_the_answer(
    device: torch.device, sizes: list[tuple[int, int]], options: dict[str, object]
) -> None:
    case = Case(sizes, n_t=9, interleaved=len(sizes) == 2)
    expected = case.oracle(**options)
    steps = stream(case.to(device), **options)
    assert len(steps) == 9
    for t, step in enumerate(steps):
        assert step.map.device.type == "cpu"
        assert np.abs(step.map.numpy() - expected.maps[t]).max() <= tolerances.PIPELINE
        assert step.relevance.shape == (5 + t,)
        assert np.abs(step.relevance.numpy() - expected.relevance[t, : 5 + t]).max() <= tolerances.PIPELINE
        assert np.isclose(step.scale, expected.scale[t], rtol=3e-6, atol=1e-7)
        assert step.flat == expected.flat[t]


def test_a_long_stream_outgrows_its_buffers(device: torch.device) -> None:
    case = Case([(3, 4)], n_p=2, n_t=70, v=90, c=8)
    expected = case.oracle()
    for t, step in enumerate(stream(case.to(device))):
        assert np.abs(step.map.numpy() - expected.maps[t]).max() <= tolerances.PIPELINE
        assert np.abs(step.relevance.numpy() - expected.relevance[t, : 2 + t]).max() <= tolerances.PIPELINE


def test_a_stream_without_a_prompt_and_in_chunks(device: torch.device) -> None:
    case = Case([(3, 4)], n_p=0, n_t=4)
    expected = case.oracle()
    for t, step in enumerate(stream(case.to(device), chunks=[5, case.answer_start - 5])):
        assert np.abs(step.map.numpy() - expected.maps[t]).max() <= tolerances.PIPELINE


def test_operators_stay_on_the_device(device: torch.device) -> None:
    case = Case([(6, 7)], dtype=torch.bfloat16).to(device)
    ids = case.token_ids[:5].to(device)
    scores = tam_fast.token_scores(case.hidden, case.classifier, ids)
    assert scores.device == device
    wanted = tam_fast.token_scores(case.hidden.cpu(), case.classifier.cpu(), ids.cpu(), backend="cpu")
    assert torch.allclose(scores.cpu(), wanted, rtol=1e-5, atol=1e-4)
    causal, scale = tam_fast.estimated_causal_inference(scores, scores, scores[:, :5])
    assert causal.device == scale.device == device
    assert torch.allclose(tam_fast.least_squares_scale(scores, scores).cpu(), torch.ones(5), atol=1e-6)
    filtered = tam_fast.rank_gaussian_filter([causal[:, 3:45].reshape(5, 6, 7), causal[0, :9].reshape(3, 3).half()])
    wanted = tam_fast.rank_gaussian_filter(causal[:, 3:45].reshape(5, 6, 7).cpu(), backend="cpu")
    assert filtered[0].device == device
    assert (filtered[0].cpu() - wanted).abs().max() <= tolerances.DEVICE * float(wanted.abs().max())
    assert filtered[1].dtype == torch.float16


@pytest.mark.long
def test_a_map_larger_than_the_memory_of_a_block(device: torch.device) -> None:
    if selection._interpreted() and not selection._emulated():
        pytest.skip("takes minutes in Triton's interpreter; tests/backends/test_triton.py has maps of several programs")
    generator = torch.Generator().manual_seed(5)
    scores = torch.rand(6, 260 * 260, generator=generator)
    index = torch.arange(1, 6)  # more targets than are worked on one by one
    relevance, text = torch.rand(5, 1, generator=generator), torch.rand(5, 2, generator=generator)
    arguments = ([scores], [index], [index[:1] - 1], [relevance], [text], [index % 3], [260, 260], [1])
    expected = torch.ops.tam_fast.finish_maps.default(*arguments, 3, False, "cpu")
    moved = [[part.to(device) for part in parts] for parts in arguments[:6]]
    got = torch.ops.tam_fast.finish_maps.default(*moved, *arguments[6:], 3)
    assert (got[0][0].cpu() - expected[0][0]).abs().max() <= tolerances.DEVICE
    assert torch.allclose(got[2][0].cpu(), expected[2][0], rtol=1e-6)


def test_explainer_and_stream_of_a_model(device: torch.device) -> None:
    """The whole way of the embedded model; its answer is cut short."""
    if selection._interpreted() and not selection._emulated():
        pytest.skip("takes minutes in Triton's interpreter")
    model, processor = tam_fast.load_demo()
    image = Path(tam_fast.__file__).parent / "demo" / "assets" / "scenes" / "scene-1.png"
    with tam_fast.use_backend("cpu"):
        expected = tam_fast.Explainer(model, processor).explain(images=image, max_new_tokens=4)
    explainer = tam_fast.Explainer(model.to(device), processor)
    got = explainer.explain(images=image, max_new_tokens=4)
    assert got.token_ids == expected.token_ids
    assert got.maps.maps.device.type == "cpu"
    compare(got.maps, expected.maps)
    for step, row in zip(explainer.stream(images=image, max_new_tokens=4), expected.maps.maps, strict=True):
        assert (step.map.flatten() - row).abs().max() <= tolerances.DEVICE


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl", "llava-1.5"])
def test_explainer_and_stream_of_every_family(device: torch.device, family: str) -> None:
    """Generated and given answers, and streams, of tiny models whose weights are on the device."""
    if family == "llava-1.5":
        processor = conftest_models.llava_processor()
        model = conftest_models.llava_model(processor)
    else:
        processor = conftest_models.qwen_processor()
        model = conftest_models.qwen_model(processor, version=family.removeprefix("qwen").removesuffix("-vl"))
    arguments = {"images": conftest_models.picture(), "max_new_tokens": 3}
    with tam_fast.use_backend("cpu"):
        expected = tam_fast.Explainer(model, processor).explain(**arguments)
    explainer = tam_fast.Explainer(model.to(device), processor)
    got = explainer.explain(**arguments)
    given = explainer.explain(images=arguments["images"], answer=got.token_ids)
    assert got.token_ids == given.token_ids == expected.token_ids
    compare(got.maps, expected.maps)
    compare(given.maps, expected.maps)
    for step, row in zip(explainer.stream(**arguments), expected.maps.maps, strict=True):
        assert (step.map.flatten() - row).abs().max() <= tolerances.DEVICE
