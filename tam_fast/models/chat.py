"""What is asked: images, videos and a prompt, or a whole conversation, brought to one form: :func:`read_chat`."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from tam_fast.models.images import load_images
from tam_fast.models.videos import Clip, load_videos

__all__ = ["DEFAULT_PROMPTS", "Chat", "read_chat"]

DEFAULT_PROMPTS = ("Describe this image.", "Describe this video.")
"""What is asked about images, and about videos, if nothing else is."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_DATA = {
    "image": ("image", "url", "path", "base64", "image_url"),
    "video": ("video", "url", "path", "video_url"),
}
"""Names under which a part of a message has its picture or video."""
_SAMPLING = ("fps", "num_frames")
_HINTS = ("detail", "uuid", "cache_control")  # of servers, which say nothing of what is shown
_REASONING = ("reasoning_content", "reasoning")  # where servers keep what a model thought


@dataclass(frozen=True, eq=False)
class Chat:
    """A conversation up to the answer that is explained.

    Attributes
    ----------
    messages : tuple of dict
        In the chat format of transformers; each content a list of parts, images and videos without their data.
    images : list of PIL images
        In the order of their parts.
    videos : list of Clip
        In the order of theirs.
    first : int
        Index of the message that begins the explained turn: the last of a user.
    prompt : str
        What the user says in it.
    prefix : str
        The beginning of the answer, where it was given.
    answer : str or None
        The recorded answer, where a past turn is explained.
    reasoning : str or None
        What was thought before the recorded answer, where that was kept apart from it.
    is_plain : bool
        Whether it was a prompt, and no messages.
    """

    messages: tuple[dict[str, Any], ...]
    images: list[Image.Image]
    videos: list[Clip]
    first: int
    prompt: str
    prefix: str = ""
    answer: str | None = None
    is_plain: bool = True
    reasoning: str | None = None


def read_chat(
    images: Any = None,
    prompt: str | None = None,
    *,
    videos: Any = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    turn: int = -1,
    prefix: str | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Chat:
    """Bring what is asked to one form, and check it.

    Parameters
    ----------
    images, videos
        As for :func:`load_images` and :func:`load_videos`. With `messages`, those of its parts that bring no data.
    prompt : str, optional
        What the user says, images and videos standing before it; not with `messages`.
    messages : sequence of mapping, optional
        A conversation in the chat format of transformers.
    turn : int
        -1: the next answer. k >= 0: the recorded answer to the k-th message of a user.
    prefix : str, optional
        The beginning of the answer, which goes on from there; the same as a last message of an assistant.
    fps, num_frames, progress
        How video files are sampled, and who is told how far reading them is, as for :func:`load_videos`.

    Returns
    -------
    Chat

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If arguments contradict each other, are empty, or of another type; names the argument.
    """
    if isinstance(turn, bool) or not hasattr(turn, "__index__"):
        raise TypeError(f"turn: expected a whole number, got {turn!r}")
    if prefix is not None:
        _check_prefix(prefix, messages, int(turn))
    sampling = {"fps": fps, "num_frames": num_frames, "progress": progress}
    if messages is None:
        return replace(_plain(images, prompt, videos, int(turn), sampling), prefix=prefix or "")
    if prompt is not None:
        raise ValueError(f"prompt: expected none with messages, which hold what the user says, got {prompt!r}")
    every = checked = _check(messages)
    checked, recorded = _until(checked, int(turn))
    answer = None if recorded is None else _text_of(recorded)
    if int(turn) == -1 and checked[-1]["role"] == "assistant":
        prefix = _text_of(checked.pop())
        if not prefix.strip():
            raise ValueError("messages: expected the beginning of an answer in the last one, got an empty assistant's")
    users = [number for number, message in enumerate(checked) if message["role"] == "user"]
    if not users:
        raise ValueError(f"messages: expected one of a user, got {_count(checked)}")
    cleaned, pictures, clips = _gathered(checked, every, images, videos, sampling)
    prompt = "\n".join(part["text"] for part in cleaned[users[-1]]["content"] if part["type"] == "text")
    thought = next((recorded[name] for name in _REASONING if recorded.get(name)), None) if recorded else None
    return Chat(tuple(cleaned), pictures, clips, users[-1], prompt, prefix or "", answer, False, thought)


def _check_prefix(prefix: Any, messages: Any, turn: int) -> None:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a string, got {type(prefix).__name__}")
    if not prefix.strip():
        raise ValueError(f"prefix: expected the beginning of an answer, got {prefix!r}")
    if turn != -1:
        raise ValueError(f"prefix: expected none with turn={turn}, whose answer is recorded, got {prefix!r}")
    last = messages[-1] if isinstance(messages, Sequence) and messages else None
    if isinstance(last, Mapping) and last.get("role") == "assistant":
        raise ValueError(f"prefix: expected none with a last message of an assistant, which is one, got {prefix!r}")


def _plain(images: Any, prompt: str | None, videos: Any, turn: int, sampling: dict[str, Any]) -> Chat:
    """Make the one turn of a prompt."""
    if turn != -1:
        raise ValueError(f"turn: expected -1 (the next answer) without messages, got {turn}")
    for name in _SAMPLING:
        if videos is None and sampling[name] is not None:
            raise ValueError(f"{name}: expected none without videos, got {sampling[name]}")
    if images is None and videos is None and prompt is None:
        raise ValueError("images: expected at least one image, a video, messages, or a prompt without, got none")
    pictures = [] if images is None else load_images(images)
    clips = [] if videos is None else load_videos(videos, **sampling)
    if prompt is None:
        prompt = DEFAULT_PROMPTS[0 if pictures else 1]
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a string, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError(f"prompt: expected a text, got {prompt!r}: the answer is explained against its words")
    content = [{"type": "image"}] * len(pictures) + [{"type": "video"}] * len(clips)
    message = {"role": "user", "content": [*(dict(part) for part in content), {"type": "text", "text": prompt}]}
    return Chat((message,), pictures, clips, 0, prompt)


def _check(messages: Any) -> list[dict[str, Any]]:
    """Check messages, and bring each content to a list of parts."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages: expected a list of {{'role': ..., 'content': ...}}, got {type(messages).__name__}")
    if not messages:
        raise ValueError("messages: expected at least one, got none")
    checked: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        name = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise TypeError(f"{name}: expected {{'role': ..., 'content': ...}}, got {type(message).__name__}")
        role = message.get("role")
        if role not in _ROLES:
            raise ValueError(f"{name}: expected role {', '.join(_ROLES)}, got {role!r}")
        content = message.get("content")
        if content is None and role == "assistant" and message.get("tool_calls"):
            content = []
        for key in _REASONING:
            if message.get(key) is not None and not isinstance(message[key], str):
                raise TypeError(f"{name}[{key!r}]: expected a string, got {type(message[key]).__name__}")
        checked.append({**message, "content": _parts(content, f"{name}['content']")})
    return checked


def _parts(content: Any, name: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise TypeError(f"{name}: expected a text or a list of parts, got {type(content).__name__}")
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        where = f"{name}[{number}]"
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, Mapping):
            raise TypeError(f"{where}: expected {{'type': 'text' | 'image' | 'video', ...}}, got {type(part).__name__}")
        kind = str(part.get("type")).removesuffix("_url").removeprefix("input_")
        if kind not in ("text", "image", "video"):
            raise ValueError(f"{where}: expected type 'text', 'image' or 'video', got {part.get('type')!r}")
        if kind == "text" and not isinstance(part.get("text"), str):
            raise TypeError(f"{where}: expected a string as text, got {type(part.get('text')).__name__}")
        parts.append({**part, "type": kind})
    return parts


def _until(messages: list[dict[str, Any]], turn: int) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Cut a conversation before the answer to explain; return what was before, and the message that was recorded."""
    if turn == -1:
        return messages, None
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if not 0 <= turn < len(users):
        raise ValueError(
            f"turn: expected -1 (the next answer) or 0 to {len(users) - 1}, one of {len(users)} messages of a user, "
            f"got {turn}"
        )
    end = users[turn + 1] if turn + 1 < len(users) else len(messages)
    # With tools there may be several; the last is the answer.
    answers = [
        number
        for number in range(users[turn], end)
        if messages[number]["role"] == "assistant" and _text_of(messages[number]).strip()
    ]
    if not answers:
        raise ValueError(
            f"turn: expected a message of a user that an assistant's follows, got {turn}, whose answer is not "
            "recorded" + (": leave turn out to generate it" if end == len(messages) else "")
        )
    return messages[: answers[-1]], messages[answers[-1]]


def _text_of(message: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def _count(messages: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(message["role"]) for message in messages) or "none"


def _gathered(
    messages: Sequence[dict[str, Any]],
    every: Sequence[dict[str, Any]],
    images: Any,
    videos: Any,
    sampling: dict[str, Any],
) -> tuple[list[dict[str, Any]], list[Image.Image], list[Clip]]:
    """Load the pictures and videos of a conversation up to a turn; return its messages without them.

    Those that are given apart are of the parts of all of its messages, or of those up to the turn.
    """
    pictures: dict[int, Image.Image] = {}
    clips: dict[int, Clip] = {}
    empty: dict[str, list[int]] = {"image": [], "video": []}
    counts = {"image": 0, "video": 0}
    cleaned: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        parts: list[dict[str, Any]] = []
        for place, part in enumerate(message["content"]):
            kind = part["type"]
            if kind == "text":
                parts.append({"type": "text", "text": part["text"]})
                continue
            name = f"messages[{number}]['content'][{place}]"
            index = counts[kind]
            counts[kind] += 1
            data = _data(part, kind, name)
            if data is None:
                empty[kind].append(index)
            elif kind == "image":
                pictures[index] = _named(load_images, data, {}, name)[0]
            else:
                clips[index] = _named(load_videos, *_sampled(data, part, sampling), name)[0]
            parts.append({"type": kind})
        cleaned.append({**message, "content": parts})
    given_images = [] if images is None else load_images(images)
    given_videos = [] if videos is None else load_videos(videos, **sampling)
    for kind, given, into in (("image", given_images, pictures), ("video", given_videos, clips)):
        wanted, whole = len(empty[kind]), _without_data(every, kind)
        if len(given) not in (wanted, whole):
            places = str(wanted) if wanted == whole else f"{wanted} (up to the turn) or {whole}"
            raise ValueError(
                f"{kind}s: expected one for each of {places} {kind} parts of messages that bring no data themselves, "
                f"got {len(given)}"
            )
        into.update(zip(empty[kind], given, strict=False))  # type: ignore[arg-type]
    return cleaned, [pictures[k] for k in sorted(pictures)], [clips[k] for k in sorted(clips)]


def _without_data(messages: Sequence[dict[str, Any]], kind: str) -> int:
    """Count the parts of a kind that bring no data."""
    parts = (part for message in messages for part in message["content"] if part["type"] == kind)
    return sum(all(part.get(key) is None for key in _DATA[kind]) for part in parts)


def _data(part: Mapping[str, Any], kind: str, name: str) -> Any:
    """Find the picture or video of a part; None if it brings none."""
    known = {"type", *_DATA[kind], *_HINTS, *((*_SAMPLING, "nframes") if kind == "video" else ())}
    if other := sorted(str(key) for key in part if key not in known):
        got = ", ".join(other)
        raise ValueError(f"{name}: expected {', '.join(sorted(known))}, got {got}: set it on the processor")
    found = [(key, part[key]) for key in _DATA[kind] if part.get(key) is not None]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"{name}: expected one of {', '.join(_DATA[kind])}, got {', '.join(key for key, _ in found)}")
    key, value = found[0]
    if isinstance(value, Mapping) and isinstance(value.get("url"), str):
        value = value["url"]  # as OpenAI's clients write it
    if key == "base64" or (kind == "image" and isinstance(value, str) and value[:11].lower() == "data:image/"):
        return _decoded(value, name)
    return value


def _decoded(value: Any, name: str) -> bytes:
    """Decode base64, with or without the head of a data URI."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected base64 as a string, got {type(value).__name__}")
    head, comma, body = value.partition(",")
    if comma and not head.lower().endswith(";base64"):
        raise ValueError(f"{name}: expected a data URI of base64, got {head[:60]!r}")
    try:
        return base64.b64decode("".join((body if comma else value).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: expected base64, got {value[:40]!r}: {error}") from error


def _sampled(data: Any, part: Mapping[str, Any], sampling: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Put what a part says of its rate where it belongs: of a file how it is sampled, of frames how fast they came."""
    told = {key: part[key] for key in _SAMPLING if part.get(key) is not None}
    if part.get("nframes") is not None:  # Qwen's own tools call it so
        told.setdefault("num_frames", part["nframes"])
    if "fps" in told and not isinstance(data, (str, os.PathLike, bytes, Mapping)):
        data = {"video": data, "fps": told.pop("fps")}
    return data, {**sampling, **told}


def _named(load: Any, data: Any, options: Mapping[str, Any], name: str) -> Any:
    """Load a picture or video, and let an error say which part it is of."""
    try:
        return load([data]) if load is load_images else load(data, **options)
    except (ValueError, TypeError, FileNotFoundError) as error:
        text = str(error)
        head, colon, rest = text.partition(": ")
        raise type(error)(f"{name}: {rest if colon and head.startswith(('images', 'videos')) else text}") from error
