"""From images and a prompt to what a model takes, and the layout of the sequence: :func:`prepare_inputs`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor

from tam_fast.maps.layout import Layout
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.families import Family, family_of
from tam_fast.models.images import ImageLike, check_sizes, load_images
from tam_fast.models.layouts import VisualInput, visual_mask
from tam_fast.models.text import special_token_ids, tokens_in_spans

__all__ = ["ImageLike", "PromptInputs", "RenderedPrompt", "load_images", "prepare_inputs", "render_prompt"]


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
    template = _chat_template(family, processor)
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
                return RenderedPrompt(text, tuple(spans), not (bos and text.startswith(bos)))
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


def _chat_template(family: Family, processor: Any) -> str | None:
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


@dataclass(frozen=True)
class PromptInputs:
    """One prompt, ready for the model.

    Attributes
    ----------
    family : Family
    inputs : dict of str to Tensor
        All that the processor returned, on the CPU.
    input_ids : (P,) int64
    rendered : RenderedPrompt
    rendered_ids : tuple of int
        Token ids of ``rendered.text``, one a placeholder: what the prompt is before the processor expands it.
    layout : Layout
        Grids, positions of the prompt's text, and P as the answer's start.
    """

    family: Family
    inputs: dict[str, Tensor]
    input_ids: Tensor
    rendered: RenderedPrompt
    rendered_ids: tuple[int, ...]
    layout: Layout


def prepare_inputs(model: Any, processor: Any, images: Sequence[Image.Image], prompt: str) -> PromptInputs:
    """Turn images and a prompt into model inputs, and find their places in the sequence.

    One user turn, the images before the text. The positions of the prompt's text (``Layout.prompt``) are the tokens
    that spell the user's own words: not the template's, the system prompt's, special or visual ones. They are found by
    the offsets that a fast tokenizer reports for the rendered chat; special placeholder tokens never merge with their
    neighbours, so that the other tokens are those of the expanded prompt, in order, which is checked.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    processor : transformers.ProcessorMixin
    images : sequence of PIL images
    prompt : str

    Returns
    -------
    PromptInputs

    Raises
    ------
    ValueError, TypeError
        If the prompt is empty, no string, or holds the model's placeholder of an image.
    ModelNotSupportedError
        If model type, processor or tokenizer are not supported; the message says what is missing.
    """
    family = family_of(model)
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a string, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError(f"prompt: expected a text, got {prompt!r}: the answer is explained against its words")
    for kind in ("image", "video"):
        token = getattr(processor, f"{kind}_token", None)
        if isinstance(token, str) and token and token in prompt:
            raise ValueError(f"prompt: expected text without the placeholder {token!r}, got {prompt!r}")
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    rendered = render_prompt(family, processor, [{"role": "user", "content": content}])
    check_sizes(processor, images)
    inputs = processor(
        images=list(images),
        text=[rendered.text],
        return_tensors="pt",
        add_special_tokens=rendered.add_special_tokens,
    )
    inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    ids = inputs["input_ids"]
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise ValueError(f"processor: expected input_ids (1, P) for one prompt, got shape {tuple(ids.shape)}")
    source = VisualInput(model.config, processor, ids[0], inputs, [image.size for image in images])
    grids = family.grids(source)
    positions, rendered_ids = _text_positions(model.config, processor, ids[0], rendered)
    if not positions.numel():
        raise ValueError(f"prompt: expected at least one token of text, got only special ones in {prompt!r}")
    layout = Layout(tuple(grids), positions, int(ids.shape[1]))
    return PromptInputs(family, inputs, ids[0], rendered, rendered_ids, layout)


def _text_positions(
    config: Any, processor: Any, input_ids: Tensor, rendered: RenderedPrompt
) -> tuple[Tensor, tuple[int, ...]]:
    """Find the positions (n_p,) of the users' texts among the expanded prompt's tokens (P,); with the rendered ids."""
    tokenizer = processor.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ModelNotSupportedError(
            f"processor: expected a fast tokenizer, which reports tokens' characters, got {type(tokenizer).__name__}"
        )
    short = tokenizer(rendered.text, add_special_tokens=rendered.add_special_tokens, return_offsets_mapping=True)
    short_ids = torch.tensor(short["input_ids"], dtype=torch.int64)
    places = torch.nonzero(~visual_mask(config, input_ids)).flatten()
    kept = torch.nonzero(~visual_mask(config, short_ids)).flatten()
    if not torch.equal(input_ids[places], short_ids[kept]):
        raise ModelNotSupportedError(
            f"processor: expected {type(processor).__name__} to expand only placeholders of the chat's "
            f"{kept.numel()} other tokens, got {places.numel()} others: the prompt's words cannot be located"
        )
    # Where the short sequence's tokens went in the expanded one; -1 for placeholders.
    position_of = torch.full_like(short_ids, -1)
    position_of[kept] = places
    special = special_token_ids(tokenizer)
    found = tokens_in_spans(short["offset_mapping"], rendered.spans)
    chosen = position_of[[index for index in found if int(short_ids[index]) not in special]]
    return chosen[chosen >= 0], tuple(short["input_ids"])
