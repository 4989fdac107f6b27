"""Standard input, pipes, and standard streams that are closed or full."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest_cli import REPOSITORY, FakeExplainer, assert_fails, run

from tam_fast.cli import streams
from tam_fast.cli.console import Failure


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "WRITER_WAIT", 0.2)
    monkeypatch.setattr(streams, "SILENCE_WAIT", 0.2)


def _write(pipe: Path, *pieces: bytes, pause: float = 0.0, hold: float = 0.0) -> threading.Thread:
    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            for piece in pieces:
                time.sleep(pause)
                file.write(piece)
            time.sleep(hold)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_named_pipe_is_read_to_its_end(explainer: FakeExplainer, pipe: Path, photo: Path) -> None:
    data = photo.read_bytes()
    writer = _write(pipe, data[:100], data[100:], pause=0.05)
    result = run("explain", pipe, "-q")
    writer.join(10)
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path("tam-fast-out/pipe.png").exists()
    assert explainer.calls[0]["images"][0].size == (48, 32)


def test_a_pipe_that_the_shell_made(explainer: FakeExplainer, photo: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, photo.read_bytes())
    os.close(writing)
    result = run("explain", f"/dev/fd/{reading}", "-q")
    os.close(reading)
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path(f"tam-fast-out/{reading}.png").exists()


def test_a_pipe_without_a_writer_does_not_stop_the_others(explainer: FakeExplainer, pipe: Path, photo: Path) -> None:
    result = run("explain", pipe, photo, "-q")
    assert result.exit_code == 3
    assert result.stderr.splitlines() == [f"tam-fast: error: {pipe}: nobody wrote to this pipe for 0 s"]
    assert Path("tam-fast-out/photo.png").exists()


@pytest.mark.parametrize(
    ("pieces", "hold", "message"),
    [
        ((b"x",), 1.0, "the pipe's writer was silent for 0 s"),
        ((b"no image",), 0.0, "not an image"),
        ((b"", b""), 0.1, "the pipe is empty"),
    ],
)
def test_pipes_that_fail(
    explainer: FakeExplainer, pipe: Path, pieces: tuple[bytes, ...], hold: float, message: str
) -> None:
    _write(pipe, *pieces, hold=hold)
    assert_fails(run("explain", pipe), 3, message)


def test_a_stream_without_end_is_refused(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = _write(pipe, b"x" * 5000)
    with pytest.raises(Failure, match="--max-pixels allows"):
        streams.read_pipe(pipe, 4000)
    writer.join(10)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * 5000)))
    with pytest.raises(Failure, match="--max-pixels allows"):
        streams.read_stdin(4000)


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_names_of_standard_input(explainer: FakeExplainer, photo: Path, name: str) -> None:
    result = run("explain", name, "-q", input=photo.read_bytes())
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path("tam-fast-out/stdin.png").exists()
    assert_fails(run("explain", "-", name, input=b""), 2, "'-' (standard input) at most once")


@pytest.mark.parametrize("name", ["/dev/null", "/dev/zero"])
def test_devices_are_no_images(explainer: FakeExplainer, name: str) -> None:
    assert_fails(run("explain", name), 3, f"{name}: expected an image file, got a device or a socket")


class Unwilling(io.RawIOBase):
    """A stream that fails when it is read, or has nothing yet."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise OSError(5, "Input/output error")


def test_standard_input_that_fails(explainer: FakeExplainer, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, message in (
        (None, "standard input is closed"),
        (io.TextIOWrapper(io.BufferedReader(Unwilling())), "standard input cannot be read: Input/output error"),
    ):
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(Failure, match=message):
            streams.read_stdin(100)


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `$t` is the command."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        ["bash", "-c", f't="{sys.executable} -m tam_fast"; {line}'],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )


@pytest.mark.parametrize(
    ("line", "code", "stderr"),
    [
        ("$t explain - -q <&-", 3, "-: standard input is closed"),
        ("$t explain - -q </dev/null", 3, "-: not an image: standard input is empty"),
        ("$t --version >/dev/full", 3, "standard output cannot be written: No space left on device"),
        ("$t --help >/dev/full", 3, "standard output cannot be written: No space left on device"),
        ("$t --version >&-", 3, "standard output cannot be written: Bad file descriptor"),
        ("$t explain none.png -q >&-", 3, "none.png: no such file"),
        ("$t explain none.png <&- >&- 2>&-", 3, None),
        ("$t explain none.png 2>/dev/full", 3, None),
        ("$t explain $'\\xff\\e.png'", 3, "\ufffd\ufffd.png: no such file"),
        ("$t explain -p $'\\xff'", 2, r"--prompt: expected text in UTF-8, got '\udcff'"),
        ("$t explain --answer $'a\\xff'", 2, r"--answer: expected text in UTF-8, got 'a\udcff'"),
    ],
)
def test_streams_of_a_process(tmp_path: Path, line: str, code: int, stderr: str | None) -> None:
    done = shell(line, tmp_path)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr == ("" if stderr is None else f"tam-fast: error: {stderr}\n")


def test_errors_do_not_spoil_the_document(tmp_path: Path) -> None:
    done = shell("$t explain none.png --json 2>&-", tmp_path)
    assert done.returncode == 3
    assert json.loads(done.stdout)["errors"][0]["image"] == "none.png"


class Full(io.StringIO):
    """A standard output whose disk is full."""

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_all_is_explained_though_standard_output_is_full(
    explainer: FakeExplainer, photo: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    from tam_fast.cli import explain

    runs = explain._run

    def on_full(*arguments: object) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Full())
            return runs(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(explain, "_run", on_full)
    result = run("explain", photo, photo, *options)
    assert_fails(result, 3, "standard output cannot be written: No space left on device")
    assert Path("tam-fast-out/photo.png").exists()
    assert Path("tam-fast-out/photo-2.png").exists()
