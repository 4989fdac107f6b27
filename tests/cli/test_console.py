"""What the user is told when something goes wrong, and that nothing steers the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from conftest_cli import FakeExplainer, assert_fails, run

from tam_fast.cli.console import ExitCode, Failure, failures, one_line, printable


def test_unexpected_failure(explainer: FakeExplainer, photo: Path) -> None:
    explainer.error = RuntimeError("something\n   broke " + "x" * 5000)
    result = run("explain", photo)
    assert_fails(result, 1, "unexpected RuntimeError: something broke xxx")
    assert len(result.stderr) < 1000
    result = run("explain", photo, "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "raise self.error" in result.stderr


def test_answer_cannot_steer_the_terminal(explainer: FakeExplainer, photo: Path) -> None:
    explainer.tokens = ["\x1b[31mA", " [bold]b[/bold]", "\x07 \x1b]0;x"]
    result = run("explain", photo)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "[bold]b[/bold]" in result.stdout


def test_control_characters_are_replaced() -> None:
    assert printable("a\x1b[31m\tb\nc\x07\u202e") == "a\ufffd[31m\tb\nc\ufffd\ufffd"
    assert one_line("a\n  b\tc \x00") == "a b c \ufffd"
    assert one_line("x" * 500, 10) == "x" * 7 + "..."


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Failure(ExitCode.FILE, "a file:\nnone"), 3, "tam-fast: error: a file: none"),
        (OSError(28, "No space left on device"), 3, "tam-fast: error: No space left on device"),
        (PermissionError(13, "Permission denied", "a.png"), 3, "tam-fast: error: a.png: Permission denied"),
        (OSError("words of a library"), 3, "tam-fast: error: words of a library"),
        (KeyError("x"), 1, "tam-fast: error: unexpected KeyError: 'x' (--debug shows where)"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_failures(error: Exception, code: int, line: str, debug: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, failures(debug):
        raise error
    assert caught.value.exit_code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == line
    assert ("Traceback" in captured.err) == debug


@pytest.mark.parametrize("error", [typer.Exit(4), BrokenPipeError()])
def test_what_is_no_failure_passes(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)), failures(debug=True):
        raise error
    assert capsys.readouterr().err == ""
