"""What every family is put through, for the test modules of the groups of layouts."""

from __future__ import annotations

import pytest
from explaining import check_explanations
from families import Built, build, names_of
from painting import check, flat, measure, mutants

from tam_fast.models.layouts import visual_mask


def families(group: str):
    """Parametrise a test over the families of a group: the first in every run, the others where all is tested."""
    names = names_of(group)
    return pytest.mark.parametrize(
        "name", [names[0], *(pytest.param(name, marks=pytest.mark.long) for name in names[1:])]
    )


def build_or_skip(name: str) -> Built:
    """Build a family's model; older versions of transformers do not have all of them."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    model_type = name.partition(".")[0]
    if model_type not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    return build(name)


def check_geometry(name: str) -> None:
    """Paint every case of a family; its layout must be what shows, and no mutant of it."""
    built = build_or_skip(name)
    model = flat(built)
    survivors: dict[str, int] = {}
    tried: dict[str, int] = {}
    for sizes in built.sizes:
        measured = measure(built, sizes, model)
        check(measured, measured.layout)
        visual = visual_mask(built.model.config, measured.prompt.input_ids)
        for mutant, layout in mutants(measured.layout, visual):
            tried[mutant] = tried.get(mutant, 0) + 1
            try:
                check(measured, layout)
            except AssertionError:
                continue
            survivors[mutant] = survivors.get(mutant, 0) + 1
    assert tried
    # Where a raster has one row or a picture's halves look alike, a mutant may be right.
    assert not survivors, f"wrong layouts that painting took for right: {survivors} of {tried}"


def check_answers(name: str) -> None:
    """Explain an answer about the first and the last case of a family."""
    built = build_or_skip(name)
    for sizes in (built.sizes[0], built.sizes[-1]):
        check_explanations(built, sizes)
