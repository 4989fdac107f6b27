"""The table of commands, usage errors, and how quickly the command answers."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path

import pytest
from conftest_cli import FakeExplainer, python, run

import tam_fast
from tam_fast.cli import app, main
from tam_fast.cli.console import ExitCode

# What takes long to import and is not needed to say how the command is used.
HEAVY = ("torch", "numpy", "transformers", "PIL", "scipy", "safetensors", "tam_fast.explain", "tam_fast.render")


def test_help_documents_exit_codes() -> None:
    for arguments in (("--help",), ("explain", "-h"), ("info", "--help")):
        result = run(*arguments)
        assert result.exit_code == 0
        for code in ExitCode:
            assert f"\n    {int(code)}  " in result.stdout
    assert "Usage" in run().output


@pytest.mark.parametrize("name", app.COMMANDS)
def test_every_command_of_the_table_has_a_help_text(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: tam-fast {name} " in result.stdout
    assert f"\n  {name} " in run("--help").stdout


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"tam-fast {tam_fast.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "--nosuch"),
        ("explain", "--compat", "other"),
        ("explain", "--dtype", "int8"),
        ("explain", "--max-new-tokens", "x"),
        ("nosuch",),
        ("info", "extra"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_as_a_process(tmp_path: Path) -> None:
    done = python("-m", "tam_fast", "explain", "none.png", folder=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == ["tam-fast: error: none.png: no such file"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--version",), 0),
        (("--help",), 0),
        (("explain", "--help"), 0),
        (("info", "--help"), 0),
        ((), 2),
        (("explain", "--dtype", "int8"), 2),
        (("explain", "--kernel-size", "4"), 2),
        (("nosuch",), 2),
    ],
)
def test_an_answer_about_usage_imports_nothing_heavy(arguments: tuple[str, ...], code: int) -> None:
    program = (
        "import sys; from tam_fast.cli import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try: main()\n"
        f"finally: print('imported:', *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = python("-c", program)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("arguments", [(), ("--model", "owner/name")])
def test_the_first_line_of_progress_comes_before_torch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """And before numpy and transformers: whoever waits is told at once what for."""
    program = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'numpy', 'transformers'):\n"
        "            print(name, 'is imported', file=sys.stderr, flush=True)\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from tam_fast.cli import main\n"
        f"sys.argv[1:] = ('explain', *{arguments!r})\n"
        "main()"
    )
    done = python("-c", program, folder=tmp_path)
    what = arguments[1] if arguments else "the embedded model"
    first, second = done.stderr.splitlines()
    assert first.startswith("tam-fast: ")
    assert first.endswith(f" s  loading {what}")
    assert second == "torch is imported"


def test_main_survives_an_encoding_without_the_answers_letters(
    explainer: FakeExplainer, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer.tokens = ["\u732b", " \ud800"]
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["tam-fast", "explain", str(photo)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    stdout.flush()
    assert rb"\u732b" in stdout.buffer.getvalue()  # type: ignore[attr-defined]


def test_module_is_the_command() -> None:
    assert importlib.import_module("tam_fast.__main__").main is main


def test_an_image_that_is_not_there_costs_no_model(tmp_path: Path) -> None:
    program = (
        "import sys; from tam_fast.cli import main\n"
        "sys.argv[1:] = ('explain', 'none.png')\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    done = python("-c", program, folder=tmp_path)
    assert (done.returncode, done.stdout) == (3, "False\n"), done.stderr
