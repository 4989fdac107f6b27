"""From a conversation to what a model takes, and the layout of the sequence: :func:`prepare_chat`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from tam_fast.maps.layout import Layout
from tam_fast.models.chat import Chat
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.family import Family
from tam_fast.models.frames import process_videos
from tam_fast.models.images import ImageLike, check_sizes, load_images
from tam_fast.models.layouts.source import VisualInput, visual_mask
from tam_fast.models.places import Places, find_places, with_users_texts
from tam_fast.models.prompts import RenderedPrompt, render_prompt
from tam_fast.models.registry import family_of
from tam_fast.models.text import special_token_ids
from tam_fast.models.thinking import closed, is_open
from tam_fast.models.typed import SpecialTokens, Tokenised, check_special_tokens, check_text, masked, tokenise

__all__ = [
    "Context",
    "ImageLike",
    "PromptInputs",
    "RenderedPrompt",
    "load_images",
    "prepare_chat",
    "prepare_inputs",
    "render_prompt",
]

Context: TypeAlias = Literal["turn", "conversation"]
"""Whose words are the context of an answer: those of its turn, or of the whole conversation."""


@dataclass(frozen=True)
class PromptInputs:
    """One prompt, ready for the model.

    Attributes
    ----------
    family : Family
    inputs : dict of str to object
        What the processor returned and a model may take, on the CPU: tensors, and lists of what is no tensor.
    input_ids : (P,) int64
    rendered : RenderedPrompt
    rendered_ids : tuple of int
        Token ids of ``rendered.text``, one a placeholder: what the prompt is before the processor expands it.
    layout : Layout
        Grids, positions of the prompt's text, and P as the answer's start.
    special_tokens : "text" or "obey"
        What became of control tokens in the prompt.
    stretches : tuple of tuple of int
        Positions of each text that a user wrote, of those in ``layout.prompt``; () if they are not told apart.
    """

    family: Family
    inputs: dict[str, Any]
    input_ids: Tensor
    rendered: RenderedPrompt
    rendered_ids: tuple[int, ...]
    layout: Layout
    special_tokens: SpecialTokens = "text"
    stretches: tuple[tuple[int, ...], ...] = ()


def prepare_inputs(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    prompt: str,
    special_tokens: SpecialTokens = "text",
) -> PromptInputs:
    """Turn images and a prompt into model inputs, and find their places in the sequence.

    One user turn, the images before the text; :func:`prepare_chat` takes all else.

    Parameters
    ----------
    model : transformers.PreTrainedModel or PreTrainedConfig
    processor : transformers.ProcessorMixin
    images : sequence of PIL images
        May be empty.
    prompt : str
    special_tokens : "text" or "obey"
        ``"obey"`` takes control tokens in the prompt for what they are.

    Returns
    -------
    PromptInputs

    Raises
    ------
    ValueError, TypeError, ModelNotSupportedError
        As :func:`prepare_chat`.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a string, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError(f"prompt: expected a text, got {prompt!r}: the answer is explained against its words")
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    chat = Chat(({"role": "user", "content": content},), list(images), [], 0, prompt)
    return prepare_chat(model, processor, chat, special_tokens)


def prepare_chat(
    model: Any,
    processor: Any,
    chat: Chat,
    special_tokens: SpecialTokens = "text",
    context: Context = "turn",
) -> PromptInputs:
    """Turn a conversation into model inputs, and find the places of its images and words in the sequence.

    The positions of the prompt's text (``Layout.prompt``) are the tokens that spell what was said: not the template's,
    the system prompt's, the processor's, special or visual ones. They are found by the offsets that a fast tokenizer
    reports, see :mod:`tam_fast.models.places`.

    Control tokens and placeholders that were typed are text, as any other: see :func:`tam_fast.models.typed.tokenise`.
    Where there are such, the processor is given the chat with a character in place of each text, and the texts' tokens
    are put in afterwards.

    Parameters
    ----------
    model : transformers.PreTrainedModel or PreTrainedConfig
    processor : transformers.ProcessorMixin
    chat : Chat
        See :func:`tam_fast.models.chat.read_chat`.
    special_tokens : "text" or "obey"
        ``"obey"`` takes control tokens in the conversation for what they are.
    context : "turn" or "conversation"
        Whose words are the prompt's text: those from the last message of a user on (tools' results and the beginning
        of the answer included), or all that users, assistants and tools said.

    Returns
    -------
    PromptInputs

    Raises
    ------
    ValueError, TypeError
        If a text has a lone surrogate or holds the model's placeholder of an image that is to be obeyed, or nothing of
        the prompt is text.
    ModelNotSupportedError
        If model type, processor or tokenizer are not supported, or the processor takes no videos, or no text without
        images; the message says what is missing.
    """
    family = family_of(model)
    config = getattr(model, "config", model)
    _check_chat(processor, chat, special_tokens, context)
    check_special_tokens(special_tokens)
    if not getattr(processor.tokenizer, "is_fast", False):
        raise ModelNotSupportedError(
            "processor: expected a fast tokenizer, which reports tokens' characters, got "
            f"{type(processor.tokenizer).__name__}"
        )
    if chat.videos and not family.videos:
        raise ModelNotSupportedError(
            f"videos: expected none, because their layout is not known for model type {config.model_type!r}, got "
            f"{len(chat.videos)}"
        )
    if chat.videos and chat.images and not family.mixed:
        raise ModelNotSupportedError(
            f"videos: expected none beside images, which models of type {config.model_type!r} cannot tell apart, got "
            f"{len(chat.videos)} and {len(chat.images)} images"
        )
    rendered = render_prompt(family, processor, chat.messages)
    if chat.prefix:
        joint = family.answer_prefix if not chat.prefix[0].isspace() else ""
        if is_open(rendered.text[max((stop for _, stop in rendered.spans), default=0) :]):
            # The template began a thinking section: what follows is the answer's beginning.
            rendered = replace(rendered, text=f"{rendered.text}{closed(processor)}")
            joint = ""
        rendered = rendered.continued(joint + chat.prefix, len(chat.messages))
    check_sizes(processor, chat.images)
    tokens = tokenise(
        processor.tokenizer,
        rendered.text,
        rendered.spans,
        add_special_tokens=rendered.add_special_tokens,
        special_tokens=special_tokens,
        placeholders=_placeholders(processor),
    )
    text = masked(rendered.text, rendered.spans)[0] if tokens.typed else rendered.text
    found, replaced = _process(family, processor, chat, text, rendered.add_special_tokens)
    inputs = taken(model, found)
    ids = inputs["input_ids"]
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise ValueError(f"processor: expected input_ids (1, P) for one prompt, got shape {tuple(ids.shape)}")
    if _leaves_out(processor, chat, text) and not bool(visual_mask(config, ids[0]).any()):
        raise _left_out(processor, chat, text)
    if tokens.typed:
        inputs, places = with_users_texts(config, processor, inputs, rendered, tokens, replaced)
    else:
        places = find_places(config, processor, ids[0], rendered, tokens, replaced)
    ids = inputs["input_ids"]
    source = VisualInput(config, processor, ids[0], {**found, **inputs}, [image.size for image in chat.images])
    grids = family.grids(source) if chat.images or chat.videos else ()
    chosen = _chosen(processor, rendered, tokens, places, chat, context)
    positions = _said(processor, ids[0], chosen)
    if not positions.numel():
        name = "prompt" if chat.is_plain else "messages"
        raise ValueError(f"{name}: expected at least one token of text, got only special ones in {chat.prompt!r}")
    layout = Layout(tuple(grids), positions, int(ids.shape[1]))
    written = _written_by_users(rendered, tokens, places, chat, set(positions.tolist()))
    return PromptInputs(family, inputs, ids[0], rendered, tokens.ids, layout, special_tokens, written)


def _check_chat(processor: Any, chat: Chat, special_tokens: object, context: object) -> None:
    """Refuse texts that cannot be tokenised, and placeholders that are to be obeyed."""
    if context not in ("turn", "conversation"):
        raise ValueError(f"context: expected 'turn' or 'conversation', got {context!r}")
    placeholders = _placeholders(processor) if special_tokens == "obey" else []
    for number, message in enumerate(chat.messages):
        name = "prompt" if chat.is_plain else f"messages[{number}]"
        for part in message["content"]:
            if part["type"] != "text":
                continue
            check_text(name, part["text"])
            for token in placeholders:
                if token in part["text"]:
                    raise ValueError(f"{name}: expected text without the placeholder {token!r}, got {part['text']!r}")
    check_text("prefix", chat.prefix)


def _chosen(
    processor: Any, rendered: RenderedPrompt, tokens: Tokenised, places: Places, chat: Chat, context: object
) -> list[int]:
    """Choose of the positions of a conversation's texts those that are the prompt's."""
    if context == "conversation" or not any(number < chat.first for number in rendered.messages):
        return list(places)
    if len(places) != len(tokens.stretches):
        raise ModelNotSupportedError(
            f"processor: expected {len(tokens.stretches)} tokens of the chat's texts from {type(processor).__name__}, "
            f"got {len(places)}: its turns cannot be told apart"
        )
    return [
        place
        for place, stretch in zip(places, tokens.stretches, strict=True)
        if rendered.messages[stretch] >= chat.first
    ]


def _written_by_users(
    rendered: RenderedPrompt, tokens: Tokenised, places: Places, chat: Chat, chosen: set[int]
) -> tuple[tuple[int, ...], ...]:
    """Gather the positions of each text of a user, as far as they are chosen."""
    if len(places) != len(tokens.stretches):
        return ()
    found: dict[int, list[int]] = {}
    for place, stretch in zip(places, tokens.stretches, strict=True):
        number = rendered.messages[stretch]
        if place in chosen and number < len(chat.messages) and chat.messages[number]["role"] == "user":
            found.setdefault(stretch, []).append(place)
    return tuple(tuple(found[stretch]) for stretch in sorted(found))


def _placeholders(processor: Any) -> list[str]:
    """List the strings that a processor expands."""
    found = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio"))
    return [token for token in found if isinstance(token, str) and token]


# What processors return that is no input of a model: targets of training, and bookkeeping.
_NO_INPUTS = frozenset(
    {"labels", "text_replacement_offsets", "offset_mapping", "special_tokens_mask", "video_metadata"}
)


def _process(
    family: Family, processor: Any, chat: Chat, text: str, add_special_tokens: bool
) -> tuple[dict[str, Any], list[Mapping[str, Any]] | None]:
    """Run a processor; return the model's inputs, and what replaced each placeholder where it can tell."""
    options: dict[str, Any] = {
        "return_tensors": "pt",
        "add_special_tokens": add_special_tokens,
        "return_mm_token_type_ids": True,
    }
    settings = getattr(processor, "image_processor", None)
    if family.image_options and chat.images and getattr(settings, family.image_options[0], None):
        asked = {name: getattr(settings, name, None) for name in family.image_options}
        options["images_kwargs"] = {name: value for name, value in asked.items() if value is not None}
    if chat.images:
        options["images"] = list(chat.images)
    if chat.videos:
        arrays, settings_of_videos = process_videos(processor, chat.videos)
        options |= {"videos": arrays, **settings_of_videos}
    if _tells_replacements():
        options["return_text_replacement_offsets"] = True
    try:
        found = dict(processor(text=[text], **options))
    except Exception as error:
        if isinstance(error, ValueError) and _leaves_out(processor, chat, text):
            raise _left_out(processor, chat, text) from error
        if not chat.images and not chat.videos:
            raise ModelNotSupportedError(
                f"images: expected at least one image, without which {type(processor).__name__} prepares no prompt "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}), got none"
            ) from error
        if chat.videos and not isinstance(error, ModelNotSupportedError):
            lengths = ", ".join(str(len(clip.frames)) for clip in chat.videos)
            raise ModelNotSupportedError(
                f"videos: expected such as {type(processor).__name__} prepares together, got {len(chat.videos)} of "
                f"{lengths} frames: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from error
        raise
    replaced = found.get("text_replacement_offsets")
    return found, replaced[0] if isinstance(replaced, list) and len(replaced) == 1 else None


def _leaves_out(processor: Any, chat: Chat, text: str) -> str:
    """Say of what a chat does not hold the processor's placeholders, 'image' or 'video'; '' if it holds all."""
    for kind, given in (("image", chat.images), ("video", chat.videos)):
        token = getattr(processor, f"{kind}_token", None)
        if isinstance(token, str) and text.count(token) != len(given):
            return kind
    return ""


def _left_out(processor: Any, chat: Chat, text: str) -> ModelNotSupportedError:
    """Make the error of a chat template that leaves images or videos out."""
    kind = _leaves_out(processor, chat, text) or "image"
    count = len(chat.images if kind == "image" else chat.videos)
    return ModelNotSupportedError(
        f"processor: expected a chat template that writes {getattr(processor, f'{kind}_token', None)!r} for each of "
        f"{count} {kind}s, got {text[:200]!r} from {type(processor).__name__}"
    )


def taken(model: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """Choose of a processor's outputs what a model takes."""
    known: set[str] = set()
    for method in (getattr(type(model), name, None) for name in ("forward", "prepare_inputs_for_generation")):
        if method is not None:
            known.update(inspect.signature(method).parameters)
    return {
        name: value
        for name, value in found.items()
        if name not in _NO_INPUTS
        and value is not None
        and (name in known or not name.endswith("token_type_ids"))
        and (name in known or isinstance(value, Tensor))
    }


def _tells_replacements() -> bool:
    """Whether this version of transformers reports what replaced a placeholder."""
    from transformers import processing_utils

    return "return_text_replacement_offsets" in getattr(processing_utils.TextKwargs, "__annotations__", {})


def _said(processor: Any, input_ids: Tensor, places: Places) -> Tensor:
    """Leave out special tokens of the positions (n,) of texts."""
    special = special_token_ids(processor.tokenizer)
    chosen = [place for place in places if int(input_ids[place]) not in special]
    return torch.tensor(chosen, dtype=torch.int64)
