"""The images that the user names: finding them, checking their heads, decoding them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tam_fast.cli.console import ExitCode, Failure, one_line, tell
from tam_fast.cli.sources import Fail, Source, check_stdin, find_all, open_source

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["check_image", "decode", "find_image", "find_images", "sample"]

_OPTION = "--max-pixels"


def sample() -> str:
    """Name the sample scene that comes with the package.

    Raises
    ------
    Failure
        If there is none.
    """
    from tam_fast.demo import sample_scenes

    names = [str(path) for path in sample_scenes()[:1]]
    if not names:
        raise Failure(ExitCode.FILE, "this installation lacks the sample scenes; name an image")
    return names[0]


def find_images(names: Sequence[str], max_pixels: int, fail: Fail) -> list[Source]:
    """Find images and check their heads.

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
        If standard input is named twice.
    """
    check_stdin(names, "IMAGE")
    return find_all([(name, "image", partial(find_image, max_pixels=max_pixels)) for name in names], fail)


def find_image(name: str, max_pixels: int) -> Source:
    """Check that a name is that of an image which is not too large, by its head alone."""
    source = open_source(name, "an image", max_pixels)
    check_image(source, max_pixels)
    return source


def check_image(source: Source, max_pixels: int) -> None:
    """Refuse what is no image, or too large by its head."""
    from tam_fast.models.images import read_head

    with _unreadable():
        read_head(source.file, max_pixels, _OPTION)


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
