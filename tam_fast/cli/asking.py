"""What the options of ``tam-fast explain`` ask for, and that they do not contradict each other."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tam_fast.cli.console import ExitCode, Failure, one_line, shortened
from tam_fast.cli.options import CMAP

if TYPE_CHECKING:
    from tam_fast.maps.tokens import Compat

__all__ = ["Job", "check", "translated"]


@dataclass(frozen=True)
class Job:
    """The options of ``explain``; None and empty is what was not given."""

    prompt: str | None
    videos: tuple[str, ...]
    fps: float | None
    num_frames: int | None
    together: bool
    text_only: bool
    messages: str | None
    turn: int | None
    max_pixels: int
    model: str | None
    device: str
    dtype: str
    max_new_tokens: int
    answer: str | None
    prefix: str | None
    targets: str | None
    words: tuple[str, ...]
    patterns: tuple[str, ...]
    context: str
    contrast: bool
    method: str
    method_options: tuple[str, ...]
    scale: str
    compat: Compat
    kernel_size: int
    output: Path
    cmap: str
    force: bool
    as_json: bool
    quiet: bool

    @property
    def generates(self) -> bool:
        """Whether the model is to write an answer."""
        return self.answer is None and self.targets != "prompt" and self.turn in (None, -1)

    @property
    def watchable(self) -> bool:
        """Whether a stream's explanation is the one that is asked for."""
        some = self.targets == "thinking" or self.words or self.patterns
        own = self.compat is None and not self.contrast and self.method == "tam"
        return self.generates and not some and own

    def arguments(self) -> dict[str, Any]:
        """Return what both ``explain`` and ``stream`` take."""
        found: dict[str, Any] = {"kernel_size": self.kernel_size, "max_new_tokens": self.max_new_tokens}
        if self.prefix is not None:
            found["prefix"] = self.prefix
        if self.context != "turn":
            found["context"] = self.context
        if self.fps is not None:
            found["fps"] = self.fps
        if self.num_frames is not None:
            found["num_frames"] = self.num_frames
        # The likeliest answer, the same at every run, whatever the model's own settings say about sampling.
        return {**found, "do_sample": False} if self.generates else found

    def explained(self) -> dict[str, Any]:
        """Return what ``explain`` alone takes."""
        found: dict[str, Any] = {"compat": self.compat}
        if self.answer is not None:
            found["answer"] = self.answer
        if self.turn is not None:
            found["turn"] = self.turn
        if self.words or self.patterns:
            found["targets"] = [*self.words, *map(re.compile, self.patterns)]
        elif self.targets is not None:
            found["targets"] = self.targets
        return {**found, "grounding": "contrast"} if self.contrast else found


def check(job: Job, names: Sequence[str]) -> None:
    """Refuse what cannot work, before anything is read or loaded.

    Parameters
    ----------
    job : Job
    names : sequence of str
        The images and videos that the user names, without options.

    Raises
    ------
    Failure
        Names the option, what was expected and what was got.
    """
    _check_texts(job)
    _check_numbers(job)
    _check_contradictions(job, names)
    if job.method != "tam":
        from tam_fast.cli.method import check_method

        check_method(job)
    # The default is there; to ask would import numpy before the first line of progress.
    if job.cmap != CMAP:
        from tam_fast.render import colormap

        try:
            colormap(job.cmap)
        except ValueError as error:
            raise Failure(ExitCode.USAGE, f"--{error}") from error


def _refuse(option: str, expected: str, got: object) -> NoReturn:
    raise Failure(ExitCode.USAGE, f"{option}: expected {expected}, got {got!r}")


def _check_texts(job: Job) -> None:
    texts = [("--prompt", job.prompt), ("--answer", job.answer), ("--prefix", job.prefix)]
    texts += [("--word", word) for word in job.words] + [("--regex", pattern) for pattern in job.patterns]
    for option, text in texts:
        if text is not None and not text.strip():
            _refuse(option, "some text", text)
        if any("\ud800" <= character <= "\udfff" for character in text or ""):
            _refuse(option, "text in UTF-8", shortened(text or ""))
    for pattern in job.patterns:
        _check_pattern(pattern)
    if job.model is not None and not job.model.strip():
        _refuse("--model", "a model folder or a model hub id", job.model)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        shown, problem = repr(shortened(pattern)), one_line(error)
        raise Failure(ExitCode.USAGE, f"--regex: expected a regular expression, got {shown}: {problem}") from error


def _check_numbers(job: Job) -> None:
    for option, number, least in (
        ("--max-new-tokens", job.max_new_tokens, 1),
        ("--max-pixels", job.max_pixels, 1),
        ("--num-frames", job.num_frames, 1),
        ("--turn", job.turn, -1),
    ):
        if number is not None and number < least:
            _refuse(option, f"at least {least}", number)
    if job.fps is not None and not (0 < job.fps < math.inf):
        _refuse("--fps", "frames a second above 0", job.fps)
    if not (1 <= job.kernel_size <= 15 and job.kernel_size % 2):
        _refuse("--kernel-size", "an odd number from 1 to 15", job.kernel_size)


def _check_contradictions(job: Job, names: Sequence[str]) -> None:
    def apart(option: str, others: Sequence[tuple[str, object]]) -> None:
        for other, value in others:
            if value not in (None, False, ()):
                first = value[0] if isinstance(value, tuple) else value
                got = "both" if first is True else repr(shortened(first) if isinstance(first, str) else first)
                raise Failure(ExitCode.USAGE, f"{other}: expected none with {option}, got {got}")

    if job.num_frames is not None:
        apart("--num-frames", [("--fps", job.fps)])
    if job.messages is not None:
        apart("--messages", [("--prompt", job.prompt), ("--text-only", job.text_only)])
    elif job.turn is not None:
        _refuse("--turn", "none without --messages", job.turn)
    if job.text_only:
        named: list[tuple[str, object]] = [("IMAGE", tuple(names)), ("--video", job.videos)]
        apart("--text-only", [*named, ("--together", job.together), ("--contrast", job.contrast)])
        if job.prompt is None:
            raise Failure(ExitCode.USAGE, "--prompt: expected what to ask with --text-only, got none")
    if job.method == "tam":
        scale = None if job.scale == "map" else job.scale
        apart("--method tam", [("--method-option", job.method_options), ("--scale", scale)])
    else:
        others: list[tuple[str, object]] = [("--compat", job.compat), ("--contrast", job.contrast)]
        apart(f"--method {shortened(job.method)}", [*others, ("--text-only", job.text_only)])
    if job.targets is not None:
        apart("--targets", [("--word", job.words), ("--regex", job.patterns)])
    if job.targets == "prompt":
        given = [("--answer", job.answer), ("--prefix", job.prefix), ("--compat", job.compat)]
        turn = None if job.turn == -1 else job.turn
        apart("--targets prompt", [*given, ("--contrast", job.contrast), ("--turn", turn)])
        apart("--targets prompt", [("--method", None if job.method == "tam" else job.method)])


def translated(job: Job, error: Exception) -> Failure:
    """Say what the library has against a request in the words of the command line."""
    text = one_line(error)
    name, colon, rest = text.partition(": ")
    place = re.fullmatch(r"targets\[(\d+)\]", name)
    if place is not None:
        option = "--word" if int(place[1]) < len(job.words) else "--regex"
        return Failure(ExitCode.MODEL, f"{option}: {rest}")
    options = {"targets": "--targets", "grounding": "--contrast", "method": "--method"}
    if colon and name in options:
        return Failure(ExitCode.MODEL, f"{options[name]}: {rest}")
    usage = {"turn": "--turn", "prefix": "--prefix", "fps": "--fps", "num_frames": "--num-frames"}
    if colon and name in usage:
        return Failure(ExitCode.USAGE, f"{usage[name]}: {rest}")
    return Failure(ExitCode.MODEL, text)
