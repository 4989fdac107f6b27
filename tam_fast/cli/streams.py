"""What comes as a stream: standard input and pipes, read to their end, but neither for ever nor without bound."""

from __future__ import annotations

import io
import os
import re
import select
import sys
import time
from pathlib import Path

from tam_fast.cli.console import ExitCode, Failure, reason

__all__ = ["is_stdin", "most_bytes", "read_pipe", "read_stdin"]

WRITER_WAIT = 5.0
"""Seconds until somebody must have opened a pipe to write."""

SILENCE_WAIT = 60.0
"""Seconds that the writer of a pipe may be silent."""

_STDIN = re.compile(r"-|/dev/(stdin|fd/0)|/proc/self/fd/0")
_CHUNK = 1 << 20


def is_stdin(name: str) -> bool:
    """Whether a name stands for standard input."""
    return _STDIN.fullmatch(name) is not None


def most_bytes(max_pixels: int) -> int:
    """How long an image of so many pixels may be: uncompressed, in four channels of 32 bits, with a long head."""
    return (64 << 20) + 16 * max_pixels


def read_stdin(limit: int, what: str = "an image") -> io.BytesIO:
    """Read standard input to its end; `what` it is to be is said where it is empty.

    Raises
    ------
    Failure
        If it is closed, cannot be read or is longer than `limit` bytes.
    """
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise Failure(ExitCode.FILE, "standard input is closed")
    data = bytearray()
    try:
        while True:
            chunk = stream.read(_CHUNK)
            if chunk is None:
                # It does not block and has nothing yet.
                select.select([stream], [], [])
                continue
            if not chunk:
                break
            data += chunk
            _check_length(data, limit)
    except OSError as error:
        raise Failure(ExitCode.FILE, f"standard input cannot be read: {reason(error)}") from error
    if not data:
        raise Failure(ExitCode.FILE, f"not {what}: standard input is empty")
    return io.BytesIO(data)


def read_pipe(path: Path, limit: int, what: str = "an image") -> io.BytesIO:
    """Read a named pipe, or one that the shell made, to its end.

    Raises
    ------
    Failure
        If nobody writes to it, its writer falls silent, or it is longer than `limit` bytes.
    OSError
        If it cannot be opened or read.
    """
    # Without O_NONBLOCK, opening would wait for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return io.BytesIO(_read(handle, limit, what))
    finally:
        os.close(handle)


def _read(handle: int, limit: int, what: str) -> bytes:
    data = bytearray()
    waiting, deadline = False, time.monotonic() + WRITER_WAIT
    while True:
        try:
            chunk = os.read(handle, _CHUNK)
        except BlockingIOError:
            # There is a writer, which has nothing yet.
            waiting = True
            if not select.select([handle], [], [], SILENCE_WAIT)[0]:
                raise Failure(ExitCode.FILE, f"the pipe's writer was silent for {SILENCE_WAIT:.0f} s") from None
            continue
        if chunk:
            data += chunk
            _check_length(data, limit)
        elif data or waiting:
            break
        elif time.monotonic() > deadline:
            raise Failure(ExitCode.FILE, f"nobody wrote to this pipe for {WRITER_WAIT:.0f} s")
        else:
            time.sleep(0.02)
    if not data:
        raise Failure(ExitCode.FILE, f"not {what}: the pipe is empty")
    return bytes(data)


def _check_length(data: bytearray, limit: int) -> None:
    if len(data) > limit:
        raise Failure(ExitCode.FILE, f"expected at most {limit >> 20} MiB, which --max-pixels allows, got more")
