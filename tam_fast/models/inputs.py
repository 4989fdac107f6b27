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
from tam_fast.models.text import special_token_ids
from tam_fast.models.typed import SpecialTokens, Tokenised, check_special_tokens, check_text, masked, tokenise

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
    special_tokens : "text" or "obey"
        What became of control tokens in the prompt.
    """

    family: Family
    inputs: dict[str, Tensor]
    input_ids: Tensor
    rendered: RenderedPrompt
    rendered_ids: tuple[int, ...]
    layout: Layout
    special_tokens: SpecialTokens = "text"


def prepare_inputs(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    prompt: str,
    special_tokens: SpecialTokens = "text",
) -> PromptInputs:
    """Turn images and a prompt into model inputs, and find their places in the sequence.

    One user turn, the images before the text. The positions of the prompt's text (``Layout.prompt``) are the tokens
    that spell the user's own words: not the template's, the system prompt's, special or visual ones. They are found by
    the offsets that a fast tokenizer reports for the rendered chat; special placeholder tokens never merge with their
    neighbours, so that the other tokens are those of the expanded prompt, in order, which is checked.

    Control tokens and placeholders that the user typed are text, as any other: see
    :func:`tam_fast.models.typed.tokenise`. Where there are such, the processor is given the chat with a character in
    place of the user's text, and the text's tokens are put in afterwards.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    processor : transformers.ProcessorMixin
    images : sequence of PIL images
    prompt : str
    special_tokens : "text" or "obey"
        ``"obey"`` takes control tokens in the prompt for what they are.

    Returns
    -------
    PromptInputs

    Raises
    ------
    ValueError, TypeError
        If the prompt is empty, no string, has a lone surrogate, or holds the model's placeholder of an image that is
        to be obeyed.
    ModelNotSupportedError
        If model type, processor or tokenizer are not supported; the message says what is missing.
    """
    family = family_of(model)
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a string, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError(f"prompt: expected a text, got {prompt!r}: the answer is explained against its words")
    check_text("prompt", prompt)
    check_special_tokens(special_tokens)
    if not getattr(processor.tokenizer, "is_fast", False):
        raise ModelNotSupportedError(
            "processor: expected a fast tokenizer, which reports tokens' characters, got "
            f"{type(processor.tokenizer).__name__}"
        )
    placeholders = _placeholders(processor)
    if special_tokens == "obey":
        for token in placeholders:
            if token in prompt:
                raise ValueError(f"prompt: expected text without the placeholder {token!r}, got {prompt!r}")
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    rendered = render_prompt(family, processor, [{"role": "user", "content": content}])
    check_sizes(processor, images)
    tokens = tokenise(
        processor.tokenizer,
        rendered.text,
        rendered.spans,
        add_special_tokens=rendered.add_special_tokens,
        special_tokens=special_tokens,
        placeholders=placeholders,
    )
    inputs = processor(
        images=list(images),
        text=[masked(rendered.text, rendered.spans)[0] if tokens.typed else rendered.text],
        return_tensors="pt",
        add_special_tokens=rendered.add_special_tokens,
    )
    inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    ids = inputs["input_ids"]
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise ValueError(f"processor: expected input_ids (1, P) for one prompt, got shape {tuple(ids.shape)}")
    if tokens.typed:
        inputs = _with_users_texts(model.config, processor, inputs, rendered, tokens)
        ids = inputs["input_ids"]
    source = VisualInput(model.config, processor, ids[0], inputs, [image.size for image in images])
    grids = family.grids(source)
    positions = _text_positions(model.config, processor, ids[0], tokens)
    if not positions.numel():
        raise ValueError(f"prompt: expected at least one token of text, got only special ones in {prompt!r}")
    layout = Layout(tuple(grids), positions, int(ids.shape[1]))
    return PromptInputs(family, inputs, ids[0], rendered, tokens.ids, layout, special_tokens)


def _placeholders(processor: Any) -> list[str]:
    """List the strings that a processor expands."""
    found = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio"))
    return [token for token in found if isinstance(token, str) and token]


def _text_positions(config: Any, processor: Any, input_ids: Tensor, tokens: Tokenised) -> Tensor:
    """Find the positions (n_p,) of the users' texts among the expanded prompt's tokens (P,)."""
    short_ids = torch.tensor(tokens.ids, dtype=torch.int64)
    places, kept = _text_places(config, processor, input_ids, short_ids)
    # Where the short sequence's tokens went in the expanded one; -1 for placeholders.
    position_of = torch.full_like(short_ids, -1)
    position_of[kept] = places
    special = special_token_ids(processor.tokenizer)
    chosen = position_of[[index for index in tokens.users if tokens.ids[index] not in special]]
    return chosen[chosen >= 0]


def _text_places(config: Any, processor: Any, input_ids: Tensor, short_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Find the tokens that are no placeholders in the expanded prompt (P,) and in the chat; they must be the same."""
    places = torch.nonzero(~visual_mask(config, input_ids)).flatten()
    kept = torch.nonzero(~visual_mask(config, short_ids)).flatten()
    if not torch.equal(input_ids[places], short_ids[kept]):
        raise ModelNotSupportedError(
            f"processor: expected {type(processor).__name__} to expand only placeholders of the chat's "
            f"{kept.numel()} other tokens, got {places.numel()} others: the prompt's words cannot be located"
        )
    return places, kept


def _with_users_texts(
    config: Any, processor: Any, inputs: Mapping[str, Tensor], rendered: RenderedPrompt, tokens: Tokenised
) -> dict[str, Tensor]:
    """Put the tokens of a chat in place of those of the same chat without its users' texts, placeholders expanded."""
    old_ids = inputs["input_ids"][0]
    text, _ = masked(rendered.text, rendered.spans)
    masked_ids = processor.tokenizer(text, add_special_tokens=rendered.add_special_tokens)["input_ids"]
    places, _ = _text_places(config, processor, old_ids, torch.tensor(masked_ids, dtype=torch.int64))
    new_ids = torch.tensor(tokens.ids, dtype=torch.int64)
    old_runs, new_runs = (_runs(visual_mask(config, ids)) for ids in (old_ids, new_ids))
    if len(old_runs) != len(new_runs) or not places.numel():
        raise ModelNotSupportedError(
            f"processor: expected {len(new_runs)} runs of placeholders from {type(processor).__name__}, got "
            f"{len(old_runs)}: the prompt's words cannot be located"
        )
    # Positions (P,) of the old sequence whose values the new one's have; any text's for text.
    source: list[int] = []
    ids: list[int] = []
    place = 0
    for (first, last), (start, stop) in zip(old_runs, new_runs, strict=True):
        source += [int(places[0])] * (start - place) + list(range(first, last))
        ids += new_ids[place:start].tolist() + old_ids[first:last].tolist()
        place = stop
    source += [int(places[0])] * (len(new_ids) - place)
    ids += new_ids[place:].tolist()
    found = dict(inputs)
    for name, value in inputs.items():
        if value.ndim != 2 or value.shape != inputs["input_ids"].shape:
            continue
        if name != "input_ids" and bool((value[0, places] != value[0, places[0]]).any()):
            raise ModelNotSupportedError(
                f"processor: expected {name} (1, P) of {type(processor).__name__} to be the same for all text, got "
                "several values: control tokens in the prompt cannot be kept as text"
            )
        found[name] = value[:, source]
    found["input_ids"] = torch.tensor([ids], dtype=inputs["input_ids"].dtype)
    return found


def _runs(mask: Tensor) -> list[tuple[int, int]]:
    """List where the runs of a mask (P,) start and end."""
    runs: list[tuple[int, int]] = []
    for place in torch.nonzero(mask).flatten().tolist():
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs
