"""Options of ``tam-fast explain`` about other methods than TAM: what they ask for, and whether it is there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tam_fast.cli.asking import Job
from tam_fast.cli.console import ExitCode, Failure, one_line, shortened, tell

if TYPE_CHECKING:
    from tam_fast.methods import Method

__all__ = ["check_method", "method_arguments", "option_value", "told", "translated_option"]

_PYTHON_ONLY = ("masks", "noise", "normalization", "progress")
_WORDS = {"true": True, "false": False}


def check_method(job: Job) -> None:
    """Refuse a method, or options of it, that are not there, before anything is read or loaded.

    Raises
    ------
    Failure
        Names the option, what was expected and what was got.
    """
    _options(job, _method(job))


def method_arguments(job: Job, images: Any, progress: Callable[[int, int], object] | None = None) -> dict[str, Any]:
    """Return what ``explain`` takes for another method than TAM; nothing for TAM.

    Parameters
    ----------
    job : Job
    images : image, list of images or None
        What is explained, but for what stands in messages.
    progress : callable, optional
        Of methods that tell it, see :func:`told`.

    Raises
    ------
    Failure
        If superpixels are asked for where there is no image.
    """
    if job.method == "tam":
        return {}
    method = _method(job)
    options = _options(job, method)
    if options.get("images") is True and images is None and job.messages is None:
        raise Failure(ExitCode.USAGE, "--method-option: expected images whose superpixels images=true takes")
    if progress is not None and "progress" in method.options:
        options["progress"] = progress
    return {"method": job.method, "scale": job.scale, "method_options": options}


@contextmanager
def told(job: Job) -> Iterator[Callable[[int, int], object] | None]:
    """Show on stderr's last line how many passes a method has made of how many, while it works."""
    if job.method == "tam" or job.quiet or not sys.stderr.isatty():
        yield None
        return
    try:
        yield lambda done, total: tell(f"\r\x1b[Ktam-fast: pass {done} of {total}", end="")
    finally:
        tell("\r\x1b[K", end="")


def translated_option(job: Job, error: Exception) -> Failure | None:
    """Say what a method has against the value of an option, in the words of the command line; None of all else."""
    name, colon, _ = str(error).partition(": ")
    if not (colon and job.method_options and name in _method(job).options):
        return None
    return Failure(ExitCode.MODEL, f"--method-option: {one_line(error)}")


def option_value(default: Any, name: str, text: str) -> Any:
    """Read the value of an option by the type of its default.

    ``none`` is None. Beside a number numbers are taken, beside true or false these and whole numbers; beside a word or
    None whole numbers (``layer=3``), true and false, and any word (``layer=mean``).

    Raises
    ------
    Failure
        If it is none of these.
    """
    if text == "none":
        return None
    of_words = default is None or isinstance(default, (bool, str))
    if of_words and text in _WORDS:
        return _WORDS[text]
    with suppress(ValueError):
        return float(text) if isinstance(default, float) else int(text)
    if of_words and not isinstance(default, bool):
        return text
    expected = "a number" if isinstance(default, float) else "a whole number"
    expected = "true, false or a whole number" if of_words else expected
    raise Failure(ExitCode.USAGE, f"--method-option: {name}: expected {expected}, got {shortened(text)!r}")


def _method(job: Job) -> Method:
    from tam_fast.methods import METHODS, parse

    try:
        return METHODS[parse(job.method).method]
    except ValueError as error:
        raise Failure(ExitCode.USAGE, f"--{error}") from error


def _options(job: Job, method: Method) -> dict[str, Any]:
    found: dict[str, Any] = {}
    known = [name for name in method.options if name not in _PYTHON_ONLY]
    for given in job.method_options:
        name, equals, text = given.partition("=")
        shown = shortened(given)
        if not equals or not name or not text:
            raise Failure(ExitCode.USAGE, f"--method-option: expected NAME=VALUE, got {shown!r}")
        if name in found:
            raise Failure(ExitCode.USAGE, f"--method-option: expected {name} at most once, got {shown!r} too")
        if name not in known:
            listed = f"one of {', '.join(known)}" if known else "none"
            where = ", which only Python has" if name in method.options else ""
            expected = f"{listed} with --method {shortened(job.method)}"
            raise Failure(ExitCode.USAGE, f"--method-option: expected {expected}, got {shortened(name)!r}{where}")
        if name == "images" and text not in _WORDS:
            raise Failure(
                ExitCode.USAGE, f"--method-option: images: expected true, for superpixels, or false, got {text!r}"
            )
        found[name] = option_value(method.options[name], name, text)
    return found
