"""What is asked of a model, one explanation each: images, videos, a conversation, or a text alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tam_fast.cli.asking import Job
from tam_fast.cli.console import ExitCode, Failure
from tam_fast.cli.images import decode, find_image, sample
from tam_fast.cli.messages import Conversation, read_messages
from tam_fast.cli.sources import Fail, Source, check_stdin, find_all
from tam_fast.cli.videos import find_video, is_video

__all__ = ["Question", "find_questions"]


@dataclass
class Question:
    """One explanation that is to be made.

    Attributes
    ----------
    name : str
        What it is called in lines about it.
    stem : str
        What its files are called.
    label : dict
        How the JSON document names it.
    images, videos : list of Source
        What the prompt is about; none with a conversation.
    prompt : str or None
    conversation : Conversation or None
    """

    name: str
    stem: str
    label: dict[str, Any]
    images: list[Source] = field(default_factory=list)
    videos: list[Source] = field(default_factory=list)
    prompt: str | None = None
    conversation: Conversation | None = None

    def sources(self) -> list[Source]:
        """List all files that it needs."""
        if self.conversation is None:
            return [*self.images, *self.videos]
        return [self.conversation.source, *self.conversation.sources()]

    def all_videos(self) -> list[Source]:
        """List the videos, those in a conversation too."""
        return [source for source in self.sources() if source.is_video]

    def arguments(self, max_pixels: int, quiet: bool) -> dict[str, Any]:
        """Decode the images, and return what ``explain`` and ``stream`` take of it."""

        def load(source: Source) -> Any:
            return source.data() if source.is_video else decode(source, max_pixels, quiet)

        if self.conversation is not None:
            return {"messages": self.conversation.loaded(load)}
        found: dict[str, Any] = {"prompt": self.prompt}
        if self.images:
            pictures = [load(source) for source in self.images]
            found["images"] = pictures[0] if len(pictures) == 1 else pictures
        return {**found, "videos": [load(source) for source in self.videos]} if self.videos else found


def find_questions(job: Job, names: Sequence[str], fail: Fail) -> list[Question]:
    """Find and check everything that is asked about, before a model is loaded.

    Parameters
    ----------
    job : Job
    names : sequence of str
        The images and videos that the user names, without options.
    fail : callable
        Called with the name of each that cannot be used and the reason. The others are still asked about, unless they
        are asked about together.

    Raises
    ------
    Failure
        If standard input is named twice, there is nothing to ask about, or frames are asked for where there is no
        video.
    """
    messages = [] if job.messages is None else [job.messages]
    check_stdin([*names, *job.videos, *messages], "--messages" if messages else "IMAGE")
    if not (names or job.videos or messages or job.text_only):
        names = [sample()]
    if not messages:
        _check_sampling(job, any(map(is_video, names)) or bool(job.videos))
    image = partial(find_image, max_pixels=job.max_pixels)
    video = partial(find_video, max_pixels=job.max_pixels, num_frames=job.num_frames)
    wanted: list[tuple[str, str, Callable[[str], Source]]] = [
        (name, "video", video) if is_video(name) else (name, "image", image) for name in names
    ]
    wanted += [(name, "video", video) for name in job.videos]
    failed: list[str] = []

    def tell(name: str, failure: Failure) -> None:
        failed.append(name)
        fail(name, failure)

    found = find_all(wanted, tell)
    if failed and (job.together or messages):
        return []
    if job.messages is not None:
        return _of_messages(job, job.messages, found, fail)
    if job.text_only:
        return [Question("text", "text", {"image": None}, prompt=job.prompt)]
    groups = [sorted(found, key=lambda source: source.is_video)] if job.together else [[source] for source in found]
    return [_about(group, job) for group in groups]


def _about(group: Sequence[Source], job: Job) -> Question:
    from tam_fast.models.chat import DEFAULT_PROMPTS

    images = [source for source in group if not source.is_video]
    videos = [source for source in group if source.is_video]
    name = ", ".join(source.name for source in group)
    return Question(
        name,
        "together" if job.together else group[0].stem,
        {"image": [source.name for source in group] if job.together else name},
        images,
        videos,
        job.prompt if job.prompt is not None else DEFAULT_PROMPTS[0 if images else 1],
    )


def _of_messages(job: Job, name: str, found: Sequence[Source], fail: Fail) -> list[Question]:
    images = [source for source in found if not source.is_video]
    videos = [source for source in found if source.is_video]
    read = partial(
        read_messages,
        images=images,
        videos=videos,
        turn=-1 if job.turn is None else job.turn,
        prefix=job.prefix,
        max_pixels=job.max_pixels,
        num_frames=job.num_frames,
    )
    conversations = find_all([(name, "conversation", read)], fail)
    if not conversations:
        return []
    (conversation,) = conversations
    _check_sampling(job, conversation.has_videos())
    if job.contrast and not conversation.sources():
        raise Failure(ExitCode.USAGE, "--contrast: expected messages with an image or a video, got none")
    stem = "stdin" if not isinstance(conversation.source.file, Path) else conversation.source.stem
    return [Question(name, stem, {"image": None, "messages": name}, conversation=conversation)]


def _check_sampling(job: Job, has_video: bool) -> None:
    for option, value in (("--fps", job.fps), ("--num-frames", job.num_frames)):
        if value is not None and not has_video:
            raise Failure(ExitCode.USAGE, f"{option}: expected a video whose frames are to be taken, got none")
