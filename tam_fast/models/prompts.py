"""A chat written out by its template, and where its texts stand: :func:`render_prompt`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.family import Family
from tam_fast.models.thinking import without_section

__all__ = ["RenderedPrompt", "chat_template", "render_prompt"]


@dataclass(frozen=True)
class RenderedPrompt:
    """A chat written out as the model's template wants it.

    Attributes
    ----------
    text : str
        With one placeholder an image or video.
    spans : tuple of (int, int)
        Where texts of the conversation stand in it, start and end: those of users, assistants and tools, not those of
        the system.
    add_special_tokens : bool
        Whether the tokenizer is to add what the template did not write, such as the mark of the beginning.
    messages : tuple of int
        Which message each span is of.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    add_special_tokens: bool
    messages: tuple[int, ...] = ()

    def continued(self, text: str, message: int) -> RenderedPrompt:
        """Append the beginning of the answer."""
        span = (len(self.text), len(self.text) + len(text))
        return replace(self, text=self.text + text, spans=(*self.spans, span), messages=(*self.messages, message))


_SYSTEM, _OTHERS = frozenset({"system", "developer"}), frozenset({"assistant", "tool"})
# Some templates take what others than users say only as a string: whose contents are made one, in turn.
_PLAIN = (frozenset[str](), _SYSTEM, _OTHERS, _SYSTEM | _OTHERS)


def render_prompt(family: Family, processor: Any, messages: Sequence[Mapping[str, Any]]) -> RenderedPrompt:
    """Write a chat out by its template, and find the texts of the conversation in it.

    The template is the processor's, else the tokenizer's, else the family's documented one. For each shape of a chat it
    is applied a second time with a mark in place of each text; where the marks come out, the texts stand. So a text
    that also occurs elsewhere (in the system prompt, say) is not confused, and nothing about templates need be known.

    Parameters
    ----------
    family : Family
    processor : transformers.ProcessorMixin
    messages : sequence of mapping
        In the chat format of transformers, each ``content`` a list of parts.

    Returns
    -------
    RenderedPrompt

    Raises
    ------
    ModelNotSupportedError
        If there is no template, it refuses the chat, or it changes the texts beyond trimming them.
    """
    template = chat_template(family, processor)

    def render(chat: Sequence[Mapping[str, Any]]) -> str:
        rendered = processor.apply_chat_template(
            list(chat), chat_template=template, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    text, refused = "", None
    roles = set(_roles(messages))
    for plain in _PLAIN:
        if plain and not roles & plain:
            continue
        chat = [_plain(message) if message["role"] in plain else message for message in messages]
        marked, texts, numbers = _marked(chat)
        try:
            text = render(chat)
            for known in (True, False):  # a template may have changed, or tell the time
                spans = _spans(_pattern(processor, template, marked, render, known), text, texts)
                if spans is not None:
                    bos = getattr(processor.tokenizer, "bos_token", None)
                    written = bos and text.startswith(bos) and all(start >= len(bos) for start, _ in spans)
                    return RenderedPrompt(text, tuple(spans), not written, tuple(numbers))
        except Exception as error:  # templates raise what they like
            if isinstance(error, ModelNotSupportedError):
                raise
            refused = refused or error
    if not text and refused is not None:
        raise ModelNotSupportedError(
            f"processor: expected a chat template that takes a chat of {', '.join(_roles(messages))}, got "
            f"{type(refused).__name__}: {refused} from {type(processor).__name__}"
        ) from refused
    raise ModelNotSupportedError(
        f"processor: expected a chat template that keeps the texts of a chat as they are, got {text[:200]!r} from "
        f"{type(processor).__name__}"
    )


def _roles(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(message["role"]) for message in messages]


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a string of a message's content, where it is text alone."""
    parts = message["content"]
    if all(part["type"] == "text" for part in parts):
        return {**message, "content": "".join(part["text"] for part in parts)}
    return message


def _marked(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str], list[int]]:
    """Put a mark in place of each text of a conversation; return the chat, the texts, and whose message each is."""
    texts: list[str] = []
    numbers: list[int] = []

    def mark(text: str, number: int) -> str:
        # Private-use characters: no template looks for them, trims them or has them in it.
        texts.append(text)
        numbers.append(number)
        return f"\ue0b0{len(texts) - 1}\ue0b1"

    def marked(text: str, role: str, number: int) -> str:
        # Templates leave out what an assistant thought, told by its marks.
        said = without_section(text) if role == "assistant" else text
        return text[: len(text) - len(said)] + (mark(said, number) if said.strip() else said)

    made: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role not in ("system", "developer"):
            if isinstance(content, str):
                content = marked(content, role, number)
            else:
                content = [
                    {**part, "text": marked(part["text"], role, number)} if part["type"] == "text" else part
                    for part in content
                ]
        made.append({**message, "content": content})
    return made, texts, numbers


# What templates made of marked chats, by processor: prompts of one shape are rendered once each.
_patterns: WeakKeyDictionary[Any, OrderedDict[str, str]] = WeakKeyDictionary()
_PATTERNS = 16  # kept of each processor


def _pattern(
    processor: Any,
    template: str | None,
    marked: Sequence[Mapping[str, Any]],
    render: Callable[[Sequence[Mapping[str, Any]]], str],
    known: bool,
) -> str:
    """Render a chat with marks in place of the users' texts, or remember what that gave if `known` will do."""
    shape = repr((template, marked))
    try:
        patterns = _patterns.setdefault(processor, OrderedDict())
    except TypeError:  # one of those that cannot be a key
        return render(marked)
    pattern = patterns.get(shape) if known else None
    if pattern is None:
        pattern = patterns[shape] = render(marked)
        if len(patterns) > _PATTERNS:
            patterns.popitem(last=False)
    return pattern


def chat_template(family: Family, processor: Any) -> str | None:
    """Choose a template; None leaves the choice to the processor, where it has several by name."""
    for owner in (processor, processor.tokenizer):
        template = getattr(owner, "chat_template", None)
        if template:
            return template if isinstance(template, str) else None
    if family.chat_template is None:
        raise ModelNotSupportedError(
            f"processor: expected a chat template, got none in {type(processor).__name__} or its tokenizer, and none "
            f"is documented for {family.title}"
        )
    return family.chat_template


def _spans(pattern: str, text: str, texts: Sequence[str]) -> list[tuple[int, int]] | None:
    """Find where texts stand in a rendered chat, by the same chat with marks; None if it is not the pattern's."""
    head, *rest = pattern.split("\ue0b0")
    if not text.startswith(head):
        return None
    spans: list[tuple[int, int]] = []
    seen: set[int] = set()
    place = len(head)
    for part in rest:
        number, _, tail = part.partition("\ue0b1")
        index = int(number) if number.isdecimal() else -1
        if not 0 <= index < len(texts) or index in seen:
            return None
        seen.add(index)
        for shown in (texts[index], texts[index].strip(), texts[index].lstrip(), texts[index].rstrip()):
            if text.startswith(shown + tail, place):
                break
        else:
            return None
        spans.append((place, place + len(shown)))
        place += len(shown) + len(tail)
    return spans if place == len(text) and len(seen) == len(texts) else None
