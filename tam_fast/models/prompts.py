"""A chat written out by its template, and where the users' texts stand in it: :func:`render_prompt`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.family import Family

__all__ = ["RenderedPrompt", "chat_template", "render_prompt"]


@dataclass(frozen=True)
class RenderedPrompt:
    """A chat written out as the model's template wants it.

    Attributes
    ----------
    text : str
        With one placeholder an image.
    spans : tuple of (int, int)
        Where the users' own texts stand in it, start and end.
    add_special_tokens : bool
        Whether the tokenizer is to add what the template did not write, such as the mark of the beginning.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    add_special_tokens: bool


def render_prompt(family: Family, processor: Any, messages: Sequence[Mapping[str, Any]]) -> RenderedPrompt:
    """Write a chat out by its template, and find the users' texts in it.

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
        If there is no template, or it changes the texts beyond trimming them.
    """
    template = chat_template(family, processor)
    texts: list[str] = []
    marked: list[dict[str, Any]] = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if message["role"] == "user" and part["type"] == "text":
                # Private-use characters: no template looks for them, trims them or has them in it.
                parts.append({**part, "text": f"\ue0b0{len(texts)}\ue0b1"})
                texts.append(part["text"])
            else:
                parts.append(part)
        marked.append({**message, "content": parts})

    def render(chat: Sequence[Mapping[str, Any]]) -> str:
        rendered = processor.apply_chat_template(
            list(chat), chat_template=template, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    text = render(messages)
    for known in (True, False):  # a template may have changed, or tell the time
        pattern = _pattern(processor, template, marked, render, known)
        for shown in (texts, [text.strip() for text in texts]):
            filled, spans = _fill(pattern, shown)
            if filled == text:
                bos = getattr(processor.tokenizer, "bos_token", None)
                written = bos and text.startswith(bos) and all(start >= len(bos) for start, _ in spans)
                return RenderedPrompt(text, tuple(spans), not written)
    raise ModelNotSupportedError(
        f"processor: expected a chat template that keeps the user's text as it is, got {text[:200]!r} from "
        f"{type(processor).__name__}"
    )


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


def _fill(pattern: str, texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Put the texts in place of their marks; return the whole and where they stand."""
    spans: list[tuple[int, int]] = []
    head, *rest = pattern.split("\ue0b0")
    filled = head
    for part in rest:
        number, _, tail = part.partition("\ue0b1")
        index = int(number) if number.isdecimal() else -1
        if not 0 <= index < len(texts):
            return "", []
        spans.append((len(filled), len(filled) + len(texts[index])))
        filled += texts[index] + tail
    return filled, spans
