"""Options that contradict each other, and what the library is asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest_cli import FakeExplainer, assert_fails, run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--messages", "m.json", "-p", "x"), "--prompt: expected none with --messages, got 'x'"),
        (("--messages", "m.json", "--text-only"), "--text-only: expected none with --messages, got both"),
        (("--turn", "0"), "--turn: expected none without --messages, got 0"),
        (("--messages", "m.json", "--turn", "-2"), "--turn: expected at least -1, got -2"),
        (("--text-only",), "--prompt: expected what to ask with --text-only, got none"),
        (("x.png", "--text-only", "-p", "x"), "IMAGE: expected none with --text-only, got 'x.png'"),
        (("--video", "x.gif", "--text-only", "-p", "x"), "--video: expected none with --text-only, got 'x.gif'"),
        (("--text-only", "-p", "x", "--contrast"), "--contrast: expected none with --text-only, got both"),
        (("--word", "a", "--targets", "answer"), "--word: expected none with --targets, got 'a'"),
        (("--regex", "a", "--targets", "thinking"), "--regex: expected none with --targets, got 'a'"),
        (("--regex", "("), "--regex: expected a regular expression, got '(': missing )"),
        (("--word", " "), "--word: expected some text, got ' '"),
        (("--prefix", ""), "--prefix: expected some text, got ''"),
        (("--targets", "prompt", "--answer", "A."), "--answer: expected none with --targets prompt, got 'A.'"),
        (("--targets", "prompt", "--prefix", "A"), "--prefix: expected none with --targets prompt, got 'A'"),
        (("--targets", "prompt", "--compat", "paper"), "--compat: expected none with --targets prompt, got 'paper'"),
        (("--targets", "prompt", "--contrast"), "--contrast: expected none with --targets prompt, got both"),
        (("x.mp4", "--fps", "2", "--num-frames", "4"), "--fps: expected none with --num-frames, got 2.0"),
        (("x.mp4", "--fps", "0"), "--fps: expected frames a second above 0, got 0.0"),
        (("x.mp4", "--num-frames", "0"), "--num-frames: expected at least 1, got 0"),
        (("--fps", "2"), "--fps: expected a video whose frames are to be taken, got none"),
        (("--num-frames", "2"), "--num-frames: expected a video whose frames are to be taken, got none"),
        (("-", "--video", "-"), "IMAGE: expected '-' (standard input) at most once"),
        (("-", "--messages", "-"), "--messages: expected '-' (standard input) at most once"),
    ],
)
def test_contradictions(explainer: FakeExplainer, options: tuple[str, ...], message: str) -> None:
    """They are refused before a file is read: none of those that are named is there."""
    assert_fails(run("explain", *options), 2, message)
    assert explainer.calls == []
    assert not Path("tam-fast-out").exists()


def test_what_is_explained_is_passed_on(explainer: FakeExplainer, photo: Path) -> None:
    options = ("--word", "red", "--word", "circle", "--regex", "A|a", "--context", "conversation", "--contrast")
    assert run("explain", photo, *options, "--prefix", "A").exit_code == 0
    (call,) = explainer.calls
    assert call["targets"] == ["red", "circle", re.compile("A|a")]
    assert (call["context"], call["grounding"], call["prefix"]) == ("conversation", "contrast", "A")
    assert call["do_sample"] is False
    assert run("explain", photo, "--targets", "prompt").exit_code == 0
    assert explainer.calls[1]["targets"] == "prompt"
    assert "do_sample" not in explainer.calls[1]


def test_the_help_text_has_groups() -> None:
    lines = run("explain", "--help").stdout.splitlines()
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "Arguments:",
        "What is asked:",
        "The model:",
        "What is explained:",
        "Results:",
        "Options:",
    ]
    assert lines.index("What is explained:") < next(i for i, line in enumerate(lines) if "--word WORD" in line)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("targets[0]: expected something in the answer 'A cat', got 'dog'", 4, "photo.jpg: --word: expected something"),
        ("targets[1]: expected something in the answer 'A cat', got 'd.g'", 4, "photo.jpg: --regex: expected some"),
        ("targets: expected an answer with a thinking section, got 'A'", 4, "photo.jpg: --targets: expected an answer"),
        ("grounding: expected a model that", 4, "photo.jpg: --contrast: expected a model that"),
        ("fps: expected at most 768 frames", 2, "photo.jpg: --fps: expected at most 768 frames"),
        ("images: expected less", 4, "photo.jpg: images: expected less"),
    ],
)
def test_what_the_library_refuses_is_said_in_the_commands_words(
    explainer: FakeExplainer, photo: Path, error: str, code: int, message: str
) -> None:
    explainer.error = ValueError(error)
    assert_fails(run("explain", photo, "--word", "dog", "--regex", "d.g"), code, message)
