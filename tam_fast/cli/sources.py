"""Files that the user names, and streams that stand for them."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from tam_fast.cli.console import ExitCode, Failure, one_line, reason
from tam_fast.cli.streams import is_stdin, most_bytes, read_pipe, read_stdin

__all__ = ["Fail", "Source", "check_stdin", "find_all", "open_source"]

Fail: TypeAlias = Callable[[str, Failure], None]
Found = TypeVar("Found")


@dataclass
class Source:
    """One image, video or conversation that the user named.

    Parameters
    ----------
    name : str
        What the user wrote.
    file : Path or BytesIO
        Where it lies; the bytes of standard input or of a pipe.
    stem : str
        What its results are called.
    is_video : bool
        Whether it is one.
    """

    name: str
    file: Path | io.BytesIO
    stem: str
    is_video: bool = False

    def data(self) -> Path | bytes:
        """Return what the library takes."""
        return self.file if isinstance(self.file, Path) else self.file.getvalue()


def check_stdin(names: Iterable[str], argument: str) -> None:
    """Refuse names of which more than one stands for standard input."""
    if sum(is_stdin(name) for name in names) > 1:
        raise Failure(ExitCode.USAGE, f"{argument}: expected '-' (standard input) at most once")


def find_all(wanted: Iterable[tuple[str, str, Callable[[str], Found]]], fail: Fail) -> list[Found]:
    """Find what is named: of each the name, what it is to be, and the function that finds it.

    `fail` is told of those that cannot be used; the others are still found.
    """

    def one(name: str, what: str, find: Callable[[str], Found]) -> list[Found]:
        try:
            return [find(name)]
        except Failure as failure:
            fail(name, failure)
        except (OSError, ValueError) as error:
            text = reason(error) if isinstance(error, OSError) else one_line(error)
            fail(name, Failure(ExitCode.FILE, f"the {what} cannot be read: {text}"))
        return []

    return [source for item in wanted for source in one(*item)]


def open_source(name: str, what: str, max_pixels: int) -> Source:
    """Find what a name stands for; standard input and pipes are read to their end.

    Parameters
    ----------
    name : str
    what : str
        What the file is to hold, with its article: "an image".
    max_pixels : int
        Bounds what is read of a stream.

    Raises
    ------
    Failure, OSError
        If it is no file, or cannot be read.
    """
    from tam_fast.models.images import not_a_path

    limit = most_bytes(max_pixels)
    if is_stdin(name):
        return Source(name, read_stdin(limit, what), "stdin")
    path = Path(name)
    problem = not_a_path(name)
    if problem:
        raise Failure(ExitCode.FILE, f"expected a file, got {problem}")
    try:
        # "" would be the folder where we are.
        mode = os.stat(name).st_mode  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        raise Failure(ExitCode.FILE, "no such file") from None
    if stat.S_ISDIR(mode):
        raise Failure(ExitCode.FILE, f"expected {what} file, got a folder")
    if stat.S_ISFIFO(mode):
        return Source(name, read_pipe(path, limit, what), path.stem)
    if not stat.S_ISREG(mode):
        raise Failure(ExitCode.FILE, f"expected {what} file, got a device or a socket")
    # Without permission there is nothing to identify.
    with path.open("rb"):
        return Source(name, path, path.stem)
