"""Conversations that the user names: a JSON file of messages, with the images and videos that it names."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tam_fast.cli.console import ExitCode, Failure, one_line
from tam_fast.cli.images import check_image, find_image
from tam_fast.cli.sources import Source, open_source
from tam_fast.cli.videos import find_video

__all__ = ["Conversation", "read_messages"]

_KEYS = {"image": ("image", "url", "path", "base64", "image_url"), "video": ("video", "url", "path", "video_url")}
"""Where a part of a message has its picture or video, as the library knows it."""
_SAMPLING = ("fps", "num_frames")


@dataclass(frozen=True)
class Conversation:
    """What a file of messages holds.

    Attributes
    ----------
    source : Source
        The file.
    messages : list of dict
        As in the file, images and videos as :class:`Source`.
    """

    source: Source
    messages: list[dict[str, Any]]

    def loaded(self, load: Callable[[Source], Any]) -> list[dict[str, Any]]:
        """Return the messages with what `load` makes of each image and video."""
        return [_mapped(message, load) for message in self.messages]

    def sources(self) -> list[Source]:
        """List its images, videos and frames in order."""
        found: list[Source] = []
        self.loaded(found.append)
        return found

    def has_videos(self) -> bool:
        """Whether there are videos, as files or as frames."""
        contents = [content for message in self.messages if isinstance(content := message.get("content"), list)]
        return any(_kind(part) == "video" for content in contents for part in content)


def read_messages(
    name: str,
    images: Sequence[Source],
    videos: Sequence[Source],
    *,
    turn: int,
    prefix: str | None,
    max_pixels: int,
    num_frames: int | None = None,
) -> Conversation:
    """Read messages, and find and check the images and videos that they name; nothing is decoded.

    Parameters
    ----------
    name : str
        A file, a pipe, or "-".
    images, videos : sequence of Source
        Those of the messages' parts that bring none themselves.
    turn, prefix
        Of the answer that is to be explained: that there is such a turn is checked as well.
    max_pixels, num_frames
        As for :func:`find_image` and :func:`find_video`.

    Raises
    ------
    Failure
        If it is no conversation, or an image or video of it cannot be used; names the part.
    OSError
        If the file cannot be read.
    """
    source = open_source(name, "a JSON", max_pixels)
    messages = _parsed(source)
    _check(messages, turn, prefix)
    folder = Path() if isinstance(source.file, io.BytesIO) else source.file.parent
    given = {"image": list(images), "video": list(videos)}
    wanted = {"image": 0, "video": 0}
    filled: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        content = message.get("content")
        parts: list[Any] = []
        for place, part in enumerate(content if isinstance(content, list) else []):
            kind = _kind(part)
            if kind is None:
                parts.append(part)
                continue
            keys = [key for key in _KEYS[kind] if part.get(key) is not None]
            if keys:
                where = f"messages[{number}]['content'][{place}]"
                found = _found(part[keys[0]], kind, keys[0], folder, where, max_pixels, num_frames)
            else:
                index = wanted[kind]
                wanted[kind] += 1
                found = given[kind][index] if index < len(given[kind]) else None
            rest = {key: value for key, value in part.items() if key not in _KEYS[kind]}
            parts.append({**rest, "type": kind, kind: found})
        filled.append({**message, "content": parts} if isinstance(content, list) else message)
    for kind, option in (("image", "IMAGE"), ("video", "--video")):
        if wanted[kind] != len(given[kind]):
            raise Failure(
                ExitCode.USAGE,
                f"{option}: expected as many as there are {kind}s without a file in the messages, {wanted[kind]}, "
                f"got {len(given[kind])}",
            )
    return Conversation(source, filled)


def _parsed(source: Source) -> list[Any]:
    data = source.data()
    try:
        document = json.loads(data.read_bytes() if isinstance(data, Path) else data)
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Failure(ExitCode.FILE, "messages: expected text in UTF-8, got half of a surrogate pair") from error
    except (ValueError, RecursionError) as error:
        raise Failure(ExitCode.FILE, f"messages: expected JSON, got what is none: {one_line(error, 200)}") from error
    if not isinstance(document, list):
        got = "an object" if isinstance(document, dict) else one_line(json.dumps(document), 40)
        raise Failure(ExitCode.FILE, f"messages: expected a JSON list of messages, got {got}")
    return document


def _check(messages: list[Any], turn: int, prefix: str | None) -> None:
    """Let the library check the conversation, its images and videos being stand-ins."""
    from PIL import Image

    from tam_fast.models.chat import read_chat

    pixel = Image.new("RGB", (1, 1))
    data = io.BytesIO()
    pixel.save(data, format="PNG")
    stand_ins = {"base64": base64.b64encode(data.getvalue()).decode()}

    def stand_in(part: Any) -> Any:
        kind = _kind(part)
        if kind is None:
            return part
        value: Any = pixel if kind == "image" else [pixel]
        keys = [key for key in _KEYS[kind] if part.get(key) is not None] or [kind]
        rest = {key: item for key, item in part.items() if key not in (*_KEYS[kind], *_SAMPLING)}
        return {**rest, **{key: stand_ins.get(key, value) for key in keys}}

    copies = [
        {**message, "content": [stand_in(part) for part in message["content"]]}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
    try:
        read_chat(messages=copies, turn=turn, prefix=prefix)
    except (ValueError, TypeError) as error:
        text = one_line(error)
        if text.startswith("messages"):
            raise Failure(ExitCode.FILE, text) from error
        raise Failure(ExitCode.USAGE, f"--{text}") from error


def _kind(part: Any) -> str | None:
    """Say whether a part of a message is an image or a video; None if it is neither."""
    kind = str(part.get("type")).removesuffix("_url").removeprefix("input_") if isinstance(part, Mapping) else None
    return kind if kind in _KEYS else None


def _found(value: Any, kind: str, key: str, folder: Path, where: str, max_pixels: int, num_frames: int | None) -> Any:
    """Find what a part names; of a video that is given as frames, each of them."""
    if isinstance(value, Mapping) and isinstance(value.get("url"), str):
        value = value["url"]  # as OpenAI's clients write it
    if isinstance(value, list) and kind == "video" and value:
        return [_found(item, "image", "path", folder, where, max_pixels, None) for item in value]
    if not isinstance(value, str):
        raise Failure(ExitCode.FILE, f"{where}: expected the path of {_ARTICLES[kind]}, got {type(value).__name__}")
    try:
        if kind == "image" and (key == "base64" or value[:11].lower() == "data:image/"):
            source = Source(where, io.BytesIO(_decoded(value)), "")
            check_image(source, max_pixels)
            return source
        return _at(value, kind, folder, max_pixels, num_frames)
    except (Failure, OSError) as error:
        code = error.code if isinstance(error, Failure) else ExitCode.FILE
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise Failure(code, f"{where}: {text}") from error


_ARTICLES = {"image": "an image", "video": "a video"}


def _at(value: str, kind: str, folder: Path, max_pixels: int, num_frames: int | None) -> Source:
    """Find a file by its path as seen from a folder."""
    from tam_fast.models.images import not_a_path

    # Behind a folder's name a URL would look like a path.
    problem = not_a_path(value)
    if problem:
        raise Failure(ExitCode.FILE, f"expected a file, got {problem}")
    if value == "-":
        raise Failure(ExitCode.FILE, "expected a file, got '-'")
    name = str(folder / value) if value else value
    try:
        return find_image(name, max_pixels) if kind == "image" else find_video(name, max_pixels, num_frames)
    except Failure as failure:
        raise Failure(failure.code, f"{name or repr(name)}: {failure}") from failure


def _decoded(value: str) -> bytes:
    head, comma, body = value.partition(",")
    if comma and not head.lower().endswith(";base64"):
        raise Failure(ExitCode.FILE, f"expected a data URI of base64, got {one_line(head, 60)!r}")
    try:
        return base64.b64decode("".join((body if comma else value).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Failure(ExitCode.FILE, f"expected base64, got {one_line(value, 40)!r}: {error}") from error


def _mapped(message: dict[str, Any], load: Callable[[Source], Any]) -> dict[str, Any]:
    if not isinstance(message.get("content"), list):
        return message
    parts: list[Any] = []
    for part in message["content"]:
        kind = _kind(part)
        if kind is None:
            parts.append(part)
            continue
        found = part[kind]
        loaded = [load(frame) for frame in found] if isinstance(found, list) else load(found)
        parts.append({**part, kind: loaded})
    return {**message, "content": parts}
