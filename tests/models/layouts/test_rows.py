"""Layouts of the group `rows`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

from layout_cases import check_answers, check_geometry, families


@families("rows")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("rows")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)
