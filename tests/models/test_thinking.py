"""Thinking sections: found at the beginning of an answer, whoever opened them, and nowhere else."""

from __future__ import annotations

import pytest

from tam_fast.models.thinking import MARKS, find_section, is_open, without_section


@pytest.mark.parametrize("opening, closing", MARKS)
def test_a_section_is_found_between_its_marks(opening, closing):
    text = f"\n{opening}\nA dog. Or a cat?\n{closing}\n\nA dog."
    section = find_section(text)
    assert text[section.start : section.stop] == "A dog. Or a cat?"
    assert text[section.end :] == "A dog."
    assert section.closed
    assert without_section(text) == "A dog."


def test_the_template_may_have_opened_it():
    assert is_open("<|im_start|>assistant\n<think>\n")
    assert not is_open("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not is_open("assistant\n")
    section = find_section("A cat, no.\n</think>\n\nA dog.", opened=True)
    assert "A cat, no.\n</think>\n\nA dog."[section.start : section.stop] == "A cat, no."
    assert "A cat, no.\n</think>\n\nA dog."[section.end :] == "A dog."


def test_one_that_was_cut_off_goes_on_to_the_end():
    section = find_section("<think>A cat, or")
    assert (section.start, section.stop, section.end, section.closed) == (7, 16, 16, False)
    assert find_section("no end", opened=True).end == 6


@pytest.mark.parametrize("text", ["A dog.", "The tag <think> opens a section.", "", "A </think> alone"])
def test_a_mark_in_an_answer_opens_none(text):
    assert find_section(text) is None
    assert without_section(text) == text


def test_an_empty_section_is_one():
    text = "<think>\n\n</think>\n\nA dog."
    section = find_section(text)
    assert text[section.start : section.stop] == ""
    assert text[section.end :] == "A dog."
