"""The images that the user names: finding them, checking their heads, decoding them."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tam_fast.cli.console import ExitCode, Failure, one_line, reason, tell
from tam_fast.cli.streams import is_stdin, most_bytes, read_pipe, read_stdin

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Source", "decode", "find_images"]

_OPTION = "--max-pixels"


@dataclass
class Source:
    """One image that the user named.

    Parameters
    ----------
    name : str
        What the user wrote.
    file : Path or BytesIO
        Where it lies; the bytes of standard input or of a pipe.
    stem : str
        What its results are called.
    """

    name: str
    file: Path | io.BytesIO
    stem: str


def find_images(names: Sequence[str], max_pixels: int, fail: Callable[[str, Failure], None]) -> list[Source]:
    """Find the images and check their heads; without names, the sample scene that comes with the package.

    Parameters
    ----------
    names : sequence of str
        Paths of files and pipes, and "-" for standard input.
    max_pixels : int
        Larger images are refused.
    fail : callable
        Called with the name of each image that cannot be used and the reason; the others are still found.

    Raises
    ------
    Failure
        If standard input is named twice, or there is no name and no sample scene.
    """
    if not names:
        from tam_fast.demo import sample_scenes

        names = [str(path) for path in sample_scenes()[:1]]
        if not names:
            raise Failure(ExitCode.FILE, "this installation lacks the sample scenes; name an image")
    if sum(is_stdin(name) for name in names) > 1:
        raise Failure(ExitCode.USAGE, "IMAGE: expected '-' (standard input) at most once")

    def find(name: str) -> Source | None:
        try:
            return _find(name, max_pixels)
        except Failure as failure:
            fail(name, failure)
        except (OSError, ValueError) as error:
            text = reason(error) if isinstance(error, OSError) else one_line(error)
            fail(name, Failure(ExitCode.FILE, f"the image cannot be read: {text}"))
        return None

    return [source for name in names if (source := find(name)) is not None]


def _find(name: str, max_pixels: int) -> Source:
    """Check that a name is that of an image which is not too large, by its head alone."""
    from tam_fast.models.images import not_a_path, read_head

    if is_stdin(name):
        source = Source(name, read_stdin(most_bytes(max_pixels)), "stdin")
    else:
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
            raise Failure(ExitCode.FILE, "expected an image file, got a folder")
        if stat.S_ISFIFO(mode):
            source = Source(name, read_pipe(path, most_bytes(max_pixels)), path.stem)
        elif stat.S_ISREG(mode):
            # Without permission there is nothing to identify.
            with path.open("rb"):
                source = Source(name, path, path.stem)
        else:
            raise Failure(ExitCode.FILE, "expected an image file, got a device or a socket")
    with _unreadable():
        read_head(source.file, max_pixels, _OPTION)
    return source


def decode(source: Source, max_pixels: int, quiet: bool) -> Image.Image:
    """Decode an image to upright RGB as the library does; unless `quiet`, say when it is the first of many frames."""
    from tam_fast.models.images import read_image

    with _unreadable():
        picture, more = read_image(source.file, max_pixels, _OPTION)
    if more and not quiet:
        note = f"{source.name}: more than one frame; the first one is taken"
        tell(f"tam-fast: {one_line(note)}")
    return picture


@contextmanager
def _unreadable() -> Iterator[None]:
    """Make what is wrong with an image a failure, and its only line: Pillow also warns of damage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ValueError as error:
            raise Failure(ExitCode.FILE, one_line(error)) from error
