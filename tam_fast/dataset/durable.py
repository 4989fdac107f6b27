"""Files that are whole or not there: written beside, flushed to the disk, renamed; and the lock of a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Locked", "append_line", "locked", "read_lines", "sync_folder", "write_whole"]

UNFINISHED = ".unfinished"
"""How the name of a file ends while it is written."""


class Locked(RuntimeError):
    """Another process writes to the folder."""


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know no such thing.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that at any moment it is the old one, or none, or the new one, whole.

    Parameters
    ----------
    path : Path
        In a folder that is there. What stands there is replaced.
    data : bytes
    """
    # A worker that a cluster takes for dead may still write; on another machine, processes have the same numbers.
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    sync_folder(path.parent)


def append_line(path: Path, entry: Any) -> None:
    """Append an entry as a line of JSON, and flush it to the disk."""
    made = not path.exists()
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
        # What a crash cut short must not spoil this entry.
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if made:
        sync_folder(path.parent)


def read_lines(path: Path) -> list[Any]:
    """Read what :func:`append_line` wrote; a last line that a crash cut short is passed over."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found: list[Any] = []
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):  # cut short by a crash, and gone on behind it
            found.append(json.loads(line))
    return found


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system releases when the process ends, however it ends.

    Raises
    ------
    Locked
        If another process holds it.
    """
    import fcntl

    path = folder / ".lock"
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(f"output: expected a folder that nobody writes to, another process holds {path}") from error
        yield
