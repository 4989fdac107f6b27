"""Layouts of the group `proportions`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

from layout_cases import check_answers, check_geometry, families


@families("proportions")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("proportions")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)
