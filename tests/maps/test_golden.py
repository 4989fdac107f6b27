"""``compat="official"`` against the recorded output of the published program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
import tolerances

import tam_fast

CASES = sorted(Path(__file__).with_name("data").glob("*.npz"), key=lambda path: path.name)


def layout_of(case: np.lib.npyio.NpzFile) -> tam_fast.Layout:
    grids, begin = [], 0
    for height, width in case["grids"].tolist():
        grids.append(tam_fast.Grid(case["visual_positions"][begin : begin + height * width], height, width))
        begin += height * width
    return tam_fast.Layout(grids, case["prompt_positions"], int(case["answer_start"]))


def check(maps: tam_fast.TokenActivationMaps, case: np.lib.npyio.NpzFile) -> None:
    assert maps.maps.shape == case["expected_float"].shape
    assert np.abs(maps.maps.numpy() - case["expected_float"]).max() <= tolerances.OFFICIAL_FLOAT
    levels = np.abs(maps.uint8().numpy().astype(int) - case["expected_u8"].astype(int))
    assert levels.max() <= tolerances.OFFICIAL_UINT8_LEVELS
    assert (levels > 0).mean() <= tolerances.OFFICIAL_UINT8_SHARE


def test_there_are_cases() -> None:
    assert len(CASES) == 6


@pytest.mark.parametrize("file", CASES, ids=lambda path: path.stem)
def test_official(isa: str, file: Path) -> None:
    with np.load(file) as case:
        check(
            tam_fast.activation_maps(
                case["hidden"], case["classifier"], case["token_ids"], layout_of(case), compat="official"
            ),
            case,
        )


@pytest.mark.parametrize("file", [file for file in CASES if "36x36" not in file.stem], ids=lambda path: path.stem)
def test_official_on_the_reference_backend(file: Path) -> None:
    with np.load(file) as case, tam_fast.use_backend("reference"):
        maps = tam_fast.activation_maps(
            case["hidden"], case["classifier"], case["token_ids"], layout_of(case), compat="official"
        )
        check(maps, case)


@pytest.mark.parametrize("file", CASES, ids=lambda path: path.stem)
def test_oracle_is_official_too(file: Path) -> None:
    with np.load(file) as case:
        answer = oracle.activation_maps(
            case["hidden"],
            case["classifier"],
            case["token_ids"],
            case["visual_positions"],
            [tuple(size) for size in case["grids"].tolist()],
            case["prompt_positions"],
            int(case["answer_start"]),
            compat="official",
        )
        assert np.abs(answer.maps - case["expected_float"]).max() <= tolerances.OFFICIAL_FLOAT


def test_all_cases_in_one_call(isa: str) -> None:
    cases = [np.load(file) for file in CASES]
    classifier = cases[0]["classifier"]
    for case in cases:
        if not np.array_equal(case["classifier"], classifier):
            # Every case has its own classifier; stack them and shift the ids.
            classifier = np.concatenate([case["classifier"] for case in cases])
            break
    # Quirk 1 takes an argmax over the whole classifier, so the stacked run uses the library's own definition.
    offsets = np.cumsum([0] + [case["classifier"].shape[0] for case in cases[:-1]])
    shared = classifier.shape[0] != cases[0]["classifier"].shape[0]
    ids = [case["token_ids"] + (offset if shared else 0) for case, offset in zip(cases, offsets, strict=True)]
    layouts = [layout_of(case) for case in cases]
    together = tam_fast.activation_maps([case["hidden"] for case in cases], classifier, ids, layouts)
    for case, maps, layout in zip(cases, together, layouts, strict=True):
        alone = tam_fast.activation_maps(case["hidden"], case["classifier"], case["token_ids"], layout)
        assert np.array_equal(maps.maps.numpy(), alone.maps.numpy())
        assert np.array_equal(maps.relevance.numpy(), alone.relevance.numpy())
        assert np.array_equal(maps.scale.numpy(), alone.scale.numpy())
